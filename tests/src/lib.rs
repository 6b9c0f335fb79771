//! What the tests share.

pub mod probing;
pub mod workload;
