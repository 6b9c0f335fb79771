//! What the tests share.

pub mod http;
pub mod mcp;
pub mod memory_group;
pub mod probing;
pub mod program;
pub mod simulated;
pub mod soak;
pub mod workload;
