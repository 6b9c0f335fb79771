//! How many events a second come through, and whether all of them are accounted for.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
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

/// Floods `file_opens` from a process of its own, which is all that it sees.
pub(crate) fn measure(quick: bool) -> Result<Flood> {
    eprintln!("bench: flood of file_opens");
    // The reader and the flood share all CPUs, as they would anywhere.
    machine::keep_to_no_cpu()?;
    let flood = flood(if quick { 1 } else { 10 });
    machine::keep_to_cpu(crate::TOOLS_CPU)?;
    flood
}

/// The process that opens: waits for the end of its input, opens for so long, and says how often.
pub(crate) fn child(seconds: u64) -> Result<String> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let opens = open_for(Duration::from_secs(seconds));
    Ok(opens.to_string())
}

fn flood(seconds: u64) -> Result<Flood> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--flood-child", &seconds.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the flood")?;
    let mut input = child.stdin.take().context("no pipe to the flood")?;
    let filter = Filter { pid: Some(child.id()), ..Filter::default() };
    let request = ProbeRequest { probe: "file_opens".to_owned(), filter, seconds: 60.0, ..ProbeRequest::default() };
    // What it opens on its way to its input is not the flood's.
    thread::sleep(Duration::from_millis(500));
    let probe = variant::start(&request)?;
    input.flush()?;
    drop(input);
    let output = child.wait_with_output()?;
    probe.execution.stop_and_wait();
    let opens =
        String::from_utf8(output.stdout)?.trim().parse().context("the flood does not say how often it opened")?;
    Ok(Flood { seconds: seconds as f64, opens, loss: probe.execution.loss() })
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
