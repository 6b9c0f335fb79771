//! Locks: of programs and of the kernel.

use serde_json::json;

use super::{Rule, ms, over};
use crate::triage::{
    Focus, Number,
    evidence::{Evidence, about, number, part, sort, word},
    finding::{Judged, Kind, Next, Who},
};

pub(super) const USER: Rule =
    Rule { kind: Kind::UserLockContention, focus: Focus::Locks, probes: &["futex_waits"], judge: user };
pub(super) const KERNEL: Rule =
    Rule { kind: Kind::KernelLockContention, focus: Focus::Locks, probes: &["kernel_locks"], judge: kernel };

/// Idle threads wait long and seldom; threads that fight for a lock wait often and shortly.
const SHORT_WAIT_MS: f64 = 50.0;

/// Threads of a program wait for each other.
fn user(evidence: &Evidence) -> Option<Judged> {
    let contended = |row: &&crate::report::Row| {
        let waits = number(row, "waits").saturating_sub(number(row, "timed_out"));
        let mean = ms(number(row, "total_ns")) / number(row, "waits").max(1) as f64;
        number(row, "pid") != u64::from(evidence.own) && evidence.per_second(waits) >= 50.0 && mean <= SHORT_WAIT_MS
    };
    let rows: Vec<_> = evidence.rows("futex_waits").iter().filter(contended).collect();
    let waiting = |row: &crate::report::Row| number(row, "total_ns") as f64 / 1e9 / evidence.seconds();
    let mut who: Vec<_> = rows
        .iter()
        .map(|row| {
            let pid = Some(number(row, "pid") as u32);
            Who { pid, comm: word(row, "comm").into(), ..part(waiting(row), "threads waiting on average") }
        })
        .collect();
    sort(&mut who);
    let worst = rows.iter().max_by(|a, b| waiting(a).total_cmp(&waiting(b)))?;
    let waits = evidence.per_second(number(worst, "waits"));
    Some(Judged {
        impact: over(waiting(worst), 0.7, 8.0)?.min(over(waits, 50.0, 2000.0)?),
        confidence: 0.8,
        summary: "Threads of a process wait for each other's lock most of the time.".into(),
        evidence: vec![
            Number::new("threads_waiting", waiting(worst), "threads on average"),
            Number::new("waits", waits, "1/s"),
            Number::new("longest_wait", ms(number(worst, "max_ns")), "ms"),
        ],
        next: Next::probe("futex_waits", about(&who), json!({ "stacks": true })),
        who,
    })
}

/// Threads wait for locks of the kernel.
fn kernel(evidence: &Evidence) -> Option<Judged> {
    let stacks = evidence.stacks("kernel_locks");
    let waiting = stacks.iter().map(|one| one.value as f64 / 1e9).sum::<f64>() / evidence.seconds();
    let impact = over(waiting, 0.3, 4.0)?;
    let mut by_comm: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for stack in stacks {
        *by_comm.entry(&stack.comm).or_default() += stack.value;
    }
    let processes = evidence.processes();
    let mut who: Vec<_> = by_comm
        .into_iter()
        .map(|(comm, ns)| {
            // Stacks know the command only; the busiest process of that name is the likeliest.
            let pid = processes.iter().find(|change| change.process.comm == comm).map(|change| change.pid);
            let value = ns as f64 / 1e9 / evidence.seconds();
            Who { pid, comm: comm.into(), ..part(value, "threads waiting on average") }
        })
        .collect();
    sort(&mut who);
    let heaviest = stacks.iter().max_by_key(|one| one.value)?;
    let frame = heaviest.frames.iter().rev().find(|frame| !is_lock(frame)).cloned().unwrap_or_default();
    let lock =
        Who { device: frame, ..part(heaviest.value as f64 / 1e9 / evidence.seconds(), "threads waiting on average") };
    who.insert(1.min(who.len()), lock);
    Some(Judged {
        impact,
        confidence: 0.85,
        summary: "Threads wait for a lock of the kernel.".into(),
        evidence: vec![Number::new("threads_waiting", waiting, "threads on average")],
        next: Next::probe("kernel_locks", about(&who), json!({ "stacks": true })),
        who,
    })
}

/// Whether a frame is the locking itself and not who locks.
fn is_lock(frame: &str) -> bool {
    ["lock", "mutex", "rwsem", "down_", "semaphore", "schedule"].iter().any(|part| frame.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locking_is_not_who_locks() {
        assert!(is_lock("_raw_spin_lock_irqsave_[k]") && is_lock("rwsem_down_write_slowpath_[k]"));
        assert!(!is_lock("ext4_buffered_write_iter_[k]"));
    }
}
