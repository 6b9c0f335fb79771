//! What the tests share.

pub mod boxes;
pub mod histories;
pub mod http;
pub mod lacks;
pub mod latency;
pub mod mcp;
pub mod memory_group;
pub mod named_group;
pub mod peers;
pub mod probing;
pub mod program;
pub mod simulated;
pub mod soak;
pub mod tracers;
pub mod workload;
