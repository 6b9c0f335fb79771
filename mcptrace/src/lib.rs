//! mcptrace: see what a Linux kernel is doing, through MCP or a shell, at a stated cost.

pub mod kernel;
pub mod report;
