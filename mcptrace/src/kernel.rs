//! All that touches the kernel for native probes.

pub mod btf;
