//! How long tools take until their programs are attached.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    cases::Case,
    peer::{Peer, resident_bytes},
    rounds::median,
    variant::{Variant, start_probe},
};

/// The target: from the call of `run_probe` until all is attached, in milliseconds.
pub(crate) const TARGET_MS: f64 = 15.0;

/// All start-up times.
#[derive(Debug)]
pub(crate) struct Startup {
    /// The first native call of a process, which reads the kernel's types; in milliseconds.
    pub(crate) first_ms: f64,
    /// The probe of that call.
    pub(crate) first_probe: &'static str,
    /// How many runs a median is of.
    pub(crate) runs: u32,
    pub(crate) rows: Vec<Row>,
}

/// Medians for a case, in milliseconds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: &'static Case,
    pub(crate) mcptrace_ms: f64,
    pub(crate) bpftrace: Option<PeerStart>,
    pub(crate) tool: Option<PeerStart>,
}

/// The median of some starts of a tool, and its memory once attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerStart {
    pub(crate) ms: f64,
    pub(crate) resident_bytes: u64,
}

/// Measures start-up. Nothing native may have been called in this process before.
pub(crate) fn measure(cases: &[&'static Case], quick: bool) -> Result<Startup> {
    eprintln!("bench: start-up");
    let (runs, peer_runs) = if quick { (3, 1) } else { (5, 1) };
    let first_probe = cases[0].probe;
    let first_ms = start_once(cases[0])?;
    let rows = cases.iter().map(|case| row(case, runs, peer_runs)).collect::<Result<_>>()?;
    Ok(Startup { first_ms, first_probe, runs, rows })
}

fn row(case: &'static Case, runs: u32, peer_runs: u32) -> Result<Row> {
    Ok(Row {
        case,
        mcptrace_ms: start_often(case, runs)?,
        bpftrace: start_peer(case, Variant::Bpftrace, peer_runs),
        tool: start_peer(case, Variant::Tool, peer_runs),
    })
}

/// The median of runs half a second apart: what a call finds that is not hot in any cache.
fn start_often(case: &Case, runs: u32) -> Result<f64> {
    let times = (0..runs).map(|_| {
        sleep(Duration::from_millis(500));
        start_once(case)
    });
    Ok(median(times.collect::<Result<_>>()?).unwrap_or_default())
}

fn start_once(case: &Case) -> Result<f64> {
    let started = Instant::now();
    let running = start_probe(case, 10.0)?;
    let took = milliseconds(started.elapsed());
    drop(running);
    Ok(took)
}

/// `None` if there is no such tool or it does not run here.
fn start_peer(case: &Case, variant: Variant, runs: u32) -> Option<PeerStart> {
    let words = variant.command(case).ok()??;
    let starts: Result<Vec<_>> = (0..runs).map(|_| start_peer_once(&words)).collect();
    let starts = starts.inspect_err(|error| eprintln!("bench: {error:#}")).ok()?;
    let resident_bytes = starts.iter().map(|(_, bytes)| *bytes).max()?;
    Some(PeerStart { ms: median(starts.into_iter().map(|(ms, _)| ms).collect())?, resident_bytes })
}

fn start_peer_once(words: &[String]) -> Result<(f64, u64)> {
    let peer = Peer::start(words)?;
    Ok((milliseconds(peer.took), resident_bytes(peer.id())?))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
