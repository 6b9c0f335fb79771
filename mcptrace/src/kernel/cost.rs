//! What attached programs cost: their run time as the kernel measures it in a short window, and the cost of entering them.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::{
    bpf,
    hook::Hook,
    loader::{self, AttachedProgram, Kernel},
};

/// Nanoseconds that a hook costs before its program's first instruction.
///
/// Measured on the reference machine (Linux 6.18, 2 vCPU AMD EPYC) with empty programs: 77 for entering a system call, which
/// includes the kernel's slow path for traced calls, 45 more for its return, 15 for any other tracepoint.
pub fn hook_ns(hook: &Hook) -> f64 {
    match hook {
        Hook::Tracepoint("sys_enter") => 77.0,
        Hook::Tracepoint("sys_exit") => 45.0,
        // The reference machine cannot attach to functions: taken to cost what a tracepoint does.
        Hook::Tracepoint(_) | Hook::Return(_) => 15.0,
        // The slow path of counted faults: a record of the registers is prepared before the program is asked.
        Hook::PageFaults { .. } => 300.0,
        // An interrupt of the timer, or a trap into the kernel and back.
        Hook::Clock { .. } | Hook::Function(_) => 1000.0,
    }
}

/// What the kernel tells about a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Time in the program, while run-time statistics were on, in nanoseconds.
    pub run_time_ns: u64,
    /// Runs, while run-time statistics were on.
    pub runs: u64,
    /// Runs skipped because the program was already running on that CPU (5.12 and later).
    pub recursion_misses: Option<u64>,
}

/// Asks the kernel about a program. aya's `ProgramInfo` lacks the misses.
pub fn info(program: i32) -> Option<Info> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: the kernel fills at most `length` bytes of the structure and writes back how many.
    let outcome = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program, &raw mut info, &raw mut length) };
    let known = std::mem::offset_of!(libbpf_sys::bpf_prog_info, recursion_misses) + 8;
    (outcome == 0).then(|| Info {
        run_time_ns: info.run_time_ns,
        runs: info.run_cnt,
        recursion_misses: (length as usize >= known).then_some(info.recursion_misses),
    })
}

/// What the statistics say that an empty program takes: the cost of reading the clock, which is no cost of a program (75 ns on the
/// reference machine). Measured once, beside the first probe that sees enough events.
static EMPTY_RUN_NS: OnceLock<f64> = OnceLock::new();
/// How many runs are enough.
const ENOUGH_RUNS: u64 = 200;

/// The same where no probe has measured it yet: that of the reference machine.
const USUAL_EMPTY_RUN_NS: f64 = 75.0;
/// What it costs to enter a program of a script, whose hook is not known: a tracepoint's least.
const UNKNOWN_HOOK_NS: f64 = 50.0;

/// Run-time statistics of programs that another process holds, over a window.
#[derive(Debug)]
pub struct OthersSample {
    started: Instant,
    before: Vec<(OwnedFd, Info)>,
    /// On, host-wide, as long as this is open.
    _statistics: OwnedFd,
}

impl OthersSample {
    /// Begins a window for the programs of a process.
    ///
    /// # Errors
    ///
    /// Why they cannot be measured: the kernel does not allow it, or they cannot be seen.
    pub fn begin(process: u32) -> Result<Self, String> {
        let held = bpf::held_by(process).map_err(|error| format!("its programs cannot be listed: {error}"))?;
        let opened = held.iter().filter_map(|id| bpf::open(*id));
        let programs: Vec<_> = opened.filter_map(|fd| info(fd.as_raw_fd()).map(|info| (fd, info))).collect();
        if programs.len() < held.len() {
            let lacking = held.len() - programs.len();
            return Err(format!(
                "{lacking} of its {} programs cannot be looked at, which takes CAP_SYS_ADMIN",
                held.len()
            ));
        }
        let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)
            .map_err(|error| format!("run-time statistics cannot be switched on ({})", loader::chain(&error)))?;
        Ok(Self { started: Instant::now(), before: programs, _statistics: statistics })
    }

    /// How long the window has been open.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the window: what the programs cost in it, in percent of one CPU.
    pub fn end(self) -> f64 {
        let window = self.started.elapsed();
        let empty_run_ns = EMPTY_RUN_NS.get().copied().unwrap_or(USUAL_EMPTY_RUN_NS);
        let one = |(program, before): &(OwnedFd, Info)| {
            let after = info(program.as_raw_fd())?;
            let runs = (after.runs - before.runs) as f64;
            let inside = (after.run_time_ns - before.run_time_ns) as f64 - runs * empty_run_ns;
            Some(inside.max(0.0) + runs * UNKNOWN_HOOK_NS)
        };
        let ns: f64 = self.before.iter().filter_map(one).sum();
        ns / window.as_nanos() as f64 * 100.0
    }
}

/// Where the first tracepoint program is, else where a busy machine has enough events.
fn attach_empty(beside: &[AttachedProgram]) -> Option<(AttachedProgram, Info)> {
    let tracepoint = beside.iter().find_map(|program| program.hook.tracepoint()).unwrap_or("sched_switch");
    let program = Kernel::get().ok()?.attach_empty(tracepoint).ok()?;
    let before = info(program.raw_fd())?;
    Some((program, before))
}

fn calibrate(empty: Option<&(AttachedProgram, Info)>) {
    let Some((program, before)) = empty else { return };
    let Some(after) = info(program.raw_fd()).filter(|after| after.runs - before.runs >= ENOUGH_RUNS) else { return };
    let mean = (after.run_time_ns - before.run_time_ns) as f64 / (after.runs - before.runs) as f64;
    // Another execution may have been first; both are right.
    let _ = EMPTY_RUN_NS.set(mean);
}

/// The run time of each program, sampled in a window.
#[derive(Debug)]
pub struct Sample {
    started: Instant,
    before: Vec<Info>,
    empty: Option<(AttachedProgram, Info)>,
    /// Run-time statistics are on, host-wide, as long as this is open.
    _statistics: OwnedFd,
}

/// What a [`Sample`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// CPU time spent in and on the programs, in nanoseconds, during the window.
    pub ns: f64,
    /// Runs of the program that counts events.
    pub events: u64,
    /// Length of the window.
    pub window: Duration,
}

impl Sample {
    /// Begins a window; `None` where the kernel does not allow it (before 5.8, or without `CAP_SYS_ADMIN`).
    pub fn begin(programs: &[AttachedProgram]) -> Option<Self> {
        let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).ok()?;
        let before = programs.iter().map(|program| info(program.raw_fd())).collect::<Option<_>>()?;
        let empty = if EMPTY_RUN_NS.get().is_none() { attach_empty(programs) } else { None };
        Some(Self { started: Instant::now(), before, empty, _statistics: statistics })
    }

    /// How long the window has been open.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the window.
    pub fn end(self, programs: &[AttachedProgram], counts: &str) -> Option<Cost> {
        let (window, each) = self.end_each(programs)?;
        let mut cost = Cost { window, ..Cost::default() };
        for (program, (ns, runs)) in programs.iter().zip(each) {
            cost.ns += ns;
            if program.name == counts {
                cost.events = runs;
            }
        }
        Some(cost)
    }

    /// Ends the window: its length, and for each program the nanoseconds spent in and on it, and its runs.
    pub fn end_each(self, programs: &[AttachedProgram]) -> Option<(Duration, Vec<(f64, u64)>)> {
        let window = self.started.elapsed();
        calibrate(self.empty.as_ref());
        let empty_run_ns = EMPTY_RUN_NS.get().copied().unwrap_or(0.0);
        let one = |(program, before): (&AttachedProgram, &Info)| {
            let after = info(program.raw_fd())?;
            let runs = after.runs - before.runs;
            let in_program = (after.run_time_ns - before.run_time_ns) as f64 - runs as f64 * empty_run_ns;
            Some((in_program.max(0.0) + runs as f64 * hook_ns(&program.hook), runs))
        };
        let each = programs.iter().zip(&self.before).map(one).collect::<Option<_>>()?;
        Some((window, each))
    }
}
