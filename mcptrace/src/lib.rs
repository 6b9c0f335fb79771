//! mcptrace: see what a Linux kernel is doing, through MCP or a shell, at a stated cost.
//!
//! `docs/architecture.md` has the map and the invariants. In short: [`probes`] say what to trace, [`kernel`] loads and attaches it,
//! [`distribution`] and [`report`] shape what was found.

pub mod audit;
pub mod bpftrace;
pub mod capabilities;
pub mod cli;
pub mod clock;
pub mod config;
pub mod distribution;
pub mod errno;
pub mod execution;
pub mod executions;
#[cfg(test)]
mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod guarded;
pub mod kernel;
pub mod memory;
pub mod principal;
pub mod probes;
mod range;
pub mod recorder;
pub mod report;
pub mod scripts;
pub mod secrets;
pub mod server;
pub mod signals;
pub mod store;
pub mod suggest;
pub mod text;
pub mod triage;
