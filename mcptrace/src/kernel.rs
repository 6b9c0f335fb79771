//! All that touches the kernel for native probes.

pub mod arch;
pub mod attached;
mod batch;
pub mod bpf;
pub mod btf;
pub mod cgroups;
pub mod cost;
pub mod discovery;
pub mod filter;
pub mod hook;
pub mod image;
pub mod layout;
pub mod loader;
pub mod privilege;
pub mod processes;
pub mod shed;
pub mod stacks;
pub mod support;
pub mod symbols;
pub mod tracefs;
mod uprobes;
