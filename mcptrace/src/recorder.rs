//! The recorder: a few aggregates that are always on, and what they found in the past.
//!
//! Every second the collectors yield a [`Tick`]; the store keeps it; history answers questions about what was kept.

pub mod metrics;
pub mod tick;
