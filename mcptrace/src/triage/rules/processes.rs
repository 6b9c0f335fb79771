//! Processes: starts, signals, calls that fail.

use serde_json::json;

use super::{Rule, over};
use crate::{
    report::Row,
    triage::{
        Focus, Number,
        evidence::{Evidence, about, number, part, sort, word},
        finding::{Judged, Kind, Next, Who},
    },
};

pub(super) const EXEC_STORM: Rule =
    Rule { kind: Kind::ExecStorm, focus: Focus::Processes, probes: &["process_exec"], judge: exec_storm };
pub(super) const SIGNAL_STORM: Rule =
    Rule { kind: Kind::SignalStorm, focus: Focus::Processes, probes: &["signals"], judge: signal_storm };
pub(super) const FAILURES: Rule =
    Rule { kind: Kind::SyscallFailures, focus: Focus::Processes, probes: &["syscall_errors"], judge: failures };

/// Programs are started all the time.
fn exec_storm(evidence: &Evidence) -> Option<Judged> {
    let execs = evidence.per_second(evidence.seen("process_exec"));
    // What the kernel counts as forks are threads as well, which many healthy programs make all the time: only shown.
    let made = evidence.per_second(evidence.after.forks.saturating_sub(evidence.before.forks));
    let who = evidence.by_process("process_exec", "ppid", "starts/s", |_| true);
    Some(Judged {
        impact: over(execs, 20.0, 400.0)?,
        confidence: 0.9,
        summary: "Processes are started at a high rate.".into(),
        evidence: vec![Number::new("execs", execs, "1/s"), Number::new("forks_and_threads", made, "1/s")],
        next: Next::probe("process_exec", json!({}), json!({})),
        who,
    })
}

/// Signals are sent all the time.
fn signal_storm(evidence: &Evidence) -> Option<Judged> {
    let events = evidence.events("signals");
    // The end of children is what starting them brings; timers are a program's own clock.
    let wanted = |row: &Row| word(row, "signal") != "SIGCHLD" && word(row, "origin") == "user";
    let share = events.iter().filter(|row| wanted(row)).count() as f64 / events.len().max(1) as f64;
    let rate = evidence.per_second(evidence.seen("signals")) * share;
    let who = evidence.by_process("signals", "sender_pid", "signals/s", wanted);
    Some(Judged {
        impact: over(rate, 100.0, 5000.0)?,
        confidence: 0.85,
        summary: "A process sends signals at a high rate.".into(),
        evidence: vec![Number::new("signals", rate, "1/s")],
        next: Next::probe("signals", about(&who), json!({})),
        who,
    })
}

/// Errors that are a program's normal way: nothing there yet, try again, not so. EINVAL is how readlink says that it is no link.
const NORMAL: [&str; 13] = [
    "EINVAL",
    "EAGAIN",
    "EWOULDBLOCK",
    "EINTR",
    "interrupted",
    "EINPROGRESS",
    "ETIMEDOUT",
    "ECHILD",
    "EALREADY",
    "ENOTTY",
    "EEXIST",
    "ESPIPE",
    "ERANGE",
];

/// One process makes the same call again and again, and it fails.
fn failures(evidence: &Evidence) -> Option<Judged> {
    let wanted = |row: &&Row| {
        !NORMAL.contains(&word(row, "errno")) && number(row, "pid") != u64::from(evidence.own) && number(row, "pid") > 0
    };
    let mut rows: Vec<_> = evidence.rows("syscall_errors").iter().filter(wanted).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(number(row, "errors")));
    let worst = rows.first()?;
    let rate = evidence.per_second(number(worst, "errors"));
    let mut who: Vec<_> = rows
        .iter()
        .map(|row| Who {
            pid: Some(number(row, "pid") as u32),
            comm: word(row, "comm").into(),
            ..part(evidence.per_second(number(row, "errors")), "failed calls/s")
        })
        .collect();
    sort(&mut who);
    let (call, errno) = (word(worst, "syscall"), word(worst, "errno"));
    Some(Judged {
        impact: over(rate, 100.0, 20_000.0)?,
        confidence: 0.75,
        // Both are names of the kernel's own, not what a program chose.
        summary: format!("A process makes a system call that fails again and again: {call} with {errno}."),
        evidence: vec![Number::new("failed_calls", rate, "1/s")],
        next: Next::probe("syscall_errors", about(&who), json!({ "syscall": call, "events": true })),
        who,
    })
}
