//! The recorder: a few aggregates that are always on, and what they found in the past.
//!
//! Every second the collectors yield a [`Tick`]; the store keeps it; history answers questions about what was kept.

pub mod governor;
mod kept;
mod mapped;
pub mod metrics;
mod proc;
mod programs;
pub mod run;
pub mod sink;
mod syscalls;
pub mod tick;
