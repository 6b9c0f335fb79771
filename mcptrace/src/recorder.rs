//! The recorder: a few aggregates that are always on, and what they found in the past.
//!
//! Every second the collectors yield a [`tick::Tick`]; the [`store`] keeps it; [`history`] answers questions about what was kept. What is
//! recorded stands in [`metrics::METRICS`].

pub mod governor;
pub mod history;
mod kept;
mod mapped;
pub mod metrics;
pub mod place;
mod proc;
mod programs;
pub mod run;
mod running;
pub mod sink;
pub mod status;
pub mod store;
mod syscalls;
pub mod tick;
