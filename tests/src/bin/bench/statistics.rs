//! What programs cost by the kernel's own statistics, where the loop's time varies by more than they add.

use std::{
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use mcptrace_tests::tracers;

use crate::{cases::Case, variant::Variant};

/// What the programs of a variant did for one event of the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct InPrograms {
    /// Nanoseconds in them, with what the statistics themselves take.
    pub(crate) ns: f64,
    /// How often they ran.
    pub(crate) runs: f64,
    /// Events that the probe saw; 0 of others.
    pub(crate) seen: f64,
}

/// Runs a workload under a variant with the kernel's statistics switched on.
pub(crate) fn measure(case: &Case, variant: Variant, length: Duration) -> Result<InPrograms> {
    let others = tracers::loaded();
    let running = variant.start(case)?;
    let own = |id: &u32| !others.contains(id);
    let programs: Vec<u32> = tracers::loaded().into_iter().filter(|id| own(id)).collect();
    let seen = running.seen();
    let switched_on = switch_on()?;
    let timing = case.workload.run(length)?;
    let (ns, runs) = spent(&programs);
    drop(switched_on);
    let events = timing.events as f64;
    let seen = seen.zip(running.seen()).map_or(0.0, |(before, after)| (after - before) as f64 / events);
    Ok(InPrograms { ns: ns as f64 / events, runs: runs as f64 / events, seen })
}

/// Statistics are kept for as long as this is (`BPF_ENABLE_STATS`, bpf(2)).
fn switch_on() -> Result<OwnedFd> {
    // SAFETY: takes a number and gives a descriptor.
    let descriptor = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    ensure!(descriptor >= 0, "the kernel keeps no run-time statistics: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    ensure!(descriptor.as_raw_fd() >= 0, "no descriptor");
    Ok(descriptor)
}

/// Nanoseconds and runs. Programs start at zero: nobody has run them with statistics before.
fn spent(programs: &[u32]) -> (u64, u64) {
    let own = ProgInfoIter::default().filter(|info| programs.contains(&info.id));
    own.fold((0, 0), |(ns, runs), info| (ns + info.run_time_ns, runs + info.run_cnt))
}
