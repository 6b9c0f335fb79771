//! Mixed use at full tilt for as long as one likes, and whether the server grows meanwhile: `cargo xtask soak`.
//!
//! A daemon with its recorder serves clients that run probes and scripts, stop them, ask wrongly, ask the past, and die. Work comes in
//! rounds. After each, everything is left alone until threads that wait for work have ended; what the process holds then must not grow.

mod clients;
mod daemon;
mod measure;
mod verdict;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::mcp::left_over;
use clients::Crowd;
use daemon::Daemon;

pub use clients::Done;
pub use measure::Held;
pub use verdict::{Round, grown, table};

/// Threads for blocking work end after 10 s without any (tokio), and connections are forgotten well before.
const CALM: Duration = Duration::from_secs(12);
/// How often it is looked what the process holds.
const EVERY: Duration = Duration::from_millis(200);

/// How to soak.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program.
    pub program: PathBuf,
    /// How often.
    pub rounds: u32,
    /// How long the work of a round is; the calm after it comes on top.
    pub work: Duration,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    /// One for each round.
    pub rounds: Vec<Round>,
    /// Programs that the daemon held at any time, and of those the ones that the kernel still had after its end.
    pub programs: usize,
    /// See `programs`.
    pub left: Vec<u32>,
    /// The exit code of the daemon, told to end in the middle of work.
    pub exit: Option<i32>,
    /// Control groups of the daemon's boxes that were left.
    pub groups: Vec<PathBuf>,
}

/// Soaks; `tell` gets each round when it is over. Needs root.
///
/// # Panics
///
/// If the daemon does not start, ends early, or answers what it must not.
pub async fn soak(plan: &Plan, mut tell: impl FnMut(&Round)) -> Outcome {
    let daemon = Daemon::start(&plan.program).await;
    let begun = Instant::now();
    let mut rounds = Vec::new();
    let mut programs = BTreeSet::new();
    for number in 1..=plan.rounds {
        let crowd = Crowd::start(&daemon);
        let peak = watch(&daemon, plan.work, &mut programs).await;
        let done = crowd.end().await;
        daemon.stop_all().await;
        sleep(CALM).await;
        let calm = Held::at_rest(daemon.pid()).await;
        let round = Round { number, minutes: begun.elapsed().as_secs_f64() / 60.0, done, peak, calm };
        tell(&round);
        rounds.push(round);
    }
    // It is told to end when it has most to do.
    let crowd = Crowd::start(&daemon);
    watch(&daemon, Duration::from_secs(2), &mut programs).await;
    crowd.abandon();
    let (exit, groups) = daemon.end().await;
    let ever: Vec<u32> = programs.into_iter().collect();
    Outcome { rounds, programs: ever.len(), left: left_over(&ever).await, exit, groups }
}

/// The most that a daemon held at any look during some time.
async fn watch(daemon: &Arc<Daemon>, time: Duration, programs: &mut BTreeSet<u32>) -> Held {
    let begun = Instant::now();
    let mut peak = Held::default();
    while begun.elapsed() < time {
        programs.extend(measure::programs(daemon.pid()));
        peak = peak.max(Held::now(daemon.pid()));
        sleep(EVERY).await;
    }
    peak
}
