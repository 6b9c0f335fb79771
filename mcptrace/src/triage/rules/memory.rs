//! Memory: stalls, limits, kills.

use serde_json::{Value, json};

use super::{Rule, cpu::members, over};
use crate::triage::{
    Focus, Number,
    evidence::{Evidence, about, number, part, sort, word},
    finding::{Judged, Kind, Next, Who},
};

pub(super) const RECLAIM: Rule =
    Rule { kind: Kind::MemoryReclaim, focus: Focus::Memory, probes: &["memory_reclaim"], judge: reclaim };
pub(super) const LIMIT: Rule =
    Rule { kind: Kind::MemoryLimit, focus: Focus::Memory, probes: &["memory_reclaim"], judge: limit };
pub(super) const OOM: Rule = Rule { kind: Kind::Oom, focus: Focus::Memory, probes: &["oom_kills"], judge: oom };

/// Share of time that threads were stalled for memory by kinds of stall, all together; may be above 1.
fn stalled(evidence: &Evidence, kinds: &[&str]) -> f64 {
    let wanted = evidence.series("memory_reclaim").iter().filter(|one| kinds.contains(&word(&one.key, "stall")));
    wanted.map(|one| one.mean * one.count as f64 / 1e9).sum::<f64>() / evidence.seconds()
}

/// The machine is short of memory and programs reclaim it themselves.
fn reclaim(evidence: &Evidence) -> Option<Judged> {
    let direct = stalled(evidence, &["direct", "compaction"]);
    let pressure = evidence.stalled(|one| one.memory_us).unwrap_or(0.0);
    let swapped =
        evidence.after.vm_change(&evidence.before, "pswpin") + evidence.after.vm_change(&evidence.before, "pswpout");
    let scanned = evidence.after.vm_change(&evidence.before, "pgscan_direct");
    // Pressure inside one control group is the group's.
    let of_machine = if scanned > 0 || direct > 0.0 { pressure } else { 0.0 };
    let who = evidence.by_process("memory_reclaim", "pid", "stalls/s", |row| word(row, "stall") != "cgroup");
    Some(Judged {
        impact: over(direct.max(of_machine), 0.02, 0.5)?,
        confidence: 0.85,
        summary: "The machine is short of memory: programs stall while they reclaim it.".into(),
        evidence: vec![
            Number::new("stalled_in_reclaim", direct * 100.0, "% of one thread's time"),
            Number::new("time_with_memory_stalls", pressure * 100.0, "%"),
            Number::new("swapped", evidence.per_second(swapped), "pages/s"),
        ],
        who: if who.is_empty() { largest(evidence) } else { who },
        next: Next::probe("page_faults", json!({}), json!({})),
    })
}

/// The largest processes.
fn largest(evidence: &Evidence) -> Vec<Who> {
    let all = evidence.processes();
    let mut who: Vec<_> = all
        .iter()
        .map(|change| evidence.who(change.pid, change.process.resident as f64 / 1_048_576.0, "MiB resident"))
        .collect();
    sort(&mut who);
    who.truncate(3);
    who
}

/// A control group is at its limit.
fn limit(evidence: &Evidence) -> Option<Judged> {
    let full = |used: u64, limit: u64| limit > 0 && used as f64 >= 0.9 * limit as f64;
    let mut at_limit: Vec<_> = evidence
        .cgroups()
        .filter(|(_, group)| group.limit_hits > 0 && full(group.memory, group.memory_limit))
        .collect();
    at_limit.sort_by(|a, b| b.1.limit_hits.cmp(&a.1.limit_hits).then(a.0.len().cmp(&b.0.len())));
    let (path, group) = at_limit.first().copied()?;
    let hits = evidence.per_second(group.limit_hits);
    let stalled = stalled(evidence, &["cgroup"]);
    let stalls = evidence.by_process("memory_reclaim", "pid", "stalls/s", |row| word(row, "stall") == "cgroup");
    let used = group.memory as f64 / group.memory_limit as f64 * 100.0;
    let mut who = vec![Who { cgroup: path.to_owned(), ..part(used, "% of its limit") }];
    who.extend(if stalls.is_empty() { members(evidence, path) } else { stalls });
    Some(Judged {
        impact: over(hits, 1.0, 1000.0)?.max(over(stalled, 0.02, 0.5).unwrap_or(0.0)),
        confidence: 0.9,
        summary: "A control group is at its memory limit and keeps hitting it.".into(),
        evidence: vec![
            Number::new("limit_hits", hits, "1/s"),
            Number::new("memory", group.memory as f64 / 1_048_576.0, "MiB"),
            Number::new("limit", group.memory_limit as f64 / 1_048_576.0, "MiB"),
            Number::new("stalled_in_reclaim", stalled * 100.0, "% of one thread's time"),
        ],
        next: Next::probe("page_faults", about(&who[1..]), json!({})),
        who,
    })
}

/// Processes are killed for want of memory.
fn oom(evidence: &Evidence) -> Option<Judged> {
    let kills = evidence.after.vm_change(&evidence.before, "oom_kill").max(evidence.seen("oom_kills"));
    if kills == 0 {
        return None;
    }
    let events = evidence.events("oom_kills");
    let who = events.iter().map(|row| {
        let pid = Some(number(row, "pid") as u32).filter(|pid| *pid > 0);
        let group = ["container", "unit"].map(|field| word(row, field)).into_iter().find(|name| !name.is_empty());
        let size = number(row, "anon_bytes") + number(row, "file_bytes") + number(row, "shmem_bytes");
        Who {
            pid,
            comm: word(row, "comm").into(),
            cgroup: group.unwrap_or("").into(),
            ..part(size as f64 / 1_048_576.0, "MiB when it was killed")
        }
    });
    let largest = events.iter().map(|row| number(row, "anon_bytes")).max().unwrap_or(0);
    Some(Judged {
        impact: 0.9,
        confidence: 0.95,
        summary: "The kernel kills processes because memory has run out.".into(),
        evidence: vec![
            Number::new("kills", kills as f64, "processes"),
            Number::new("largest_victim", largest as f64 / 1_048_576.0, "MiB"),
        ],
        who: who.collect(),
        next: Next::probe("oom_kills", json!({}), Value::Null),
    })
}
