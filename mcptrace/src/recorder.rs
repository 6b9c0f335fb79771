//! The recorder: a few aggregates that are always on, and what they found in the past.
//!
//! Every second the collectors yield a [`tick::Tick`]; the [`store`] keeps it; [`history`] answers questions about what was kept. What is
//! recorded stands in [`metrics::METRICS`].

pub mod history;
pub mod metrics;
pub mod place;
pub mod store;
pub mod tick;
