//! How many events a second come through, and whether all of them are accounted for.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use mcptrace::{executions::ProbeRequest, kernel::filter::Filter, report::Loss};
use rustix::fs::{CWD, Mode, OFlags};

use crate::{machine, variant};

/// Threads that open files as fast as they can.
const THREADS: usize = 2;

/// What came of a flood of opens.
#[derive(Debug)]
pub(crate) struct Flood {
    pub(crate) seconds: f64,
    /// What the workload itself counted.
    pub(crate) opens: u64,
    pub(crate) loss: Loss,
}

/// Floods `file_opens`, which sees only this process.
pub(crate) fn measure(quick: bool) -> Result<Flood> {
    eprintln!("bench: flood of file_opens");
    let length = Duration::from_secs(if quick { 1 } else { 5 });
    // The reader and the flood share all CPUs, as they would anywhere.
    machine::keep_to_no_cpu()?;
    let flood = flood(length);
    machine::keep_to_cpu(crate::TOOLS_CPU)?;
    flood
}

fn flood(length: Duration) -> Result<Flood> {
    let filter = Filter { pid: Some(std::process::id()), ..Filter::default() };
    let request = ProbeRequest { probe: "file_opens".to_owned(), filter, seconds: 60.0, ..ProbeRequest::default() };
    let probe = variant::start(&request)?;
    let before = probe.execution.loss().seen.unwrap_or_default();
    let started = Instant::now();
    let opens = open_for(length);
    let seconds = started.elapsed().as_secs_f64();
    probe.execution.stop_and_wait();
    // Reading /proc and the like between attaching and the flood may have opened files.
    let opens = opens + before;
    Ok(Flood { seconds, opens, loss: probe.execution.loss() })
}

/// Opens and closes files in several threads; how often.
fn open_for(length: Duration) -> u64 {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| open_until(&stop))).collect();
        thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum()
    })
}

fn open_until(stop: &AtomicBool) -> u64 {
    let mut opens = 0;
    while !stop.load(Ordering::Relaxed) {
        opens += u64::from(rustix::fs::openat(CWD, "/proc/self/exe", OFlags::RDONLY, Mode::empty()).is_ok());
    }
    opens
}
