//! What the tests share.

pub mod probing;
pub mod program;
pub mod workload;
