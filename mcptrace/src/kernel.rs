//! All that touches the kernel for native probes.

pub mod btf;
pub mod discovery;
pub mod tracefs;
