//! Memory: stalls, limits, kills.

use serde_json::{Value, json};

use super::{Rule, cpu::members, over};
use crate::triage::{
    Focus, Number,
    evidence::{Evidence, about, number, part, sort, word},
    finding::{Judged, Kind, Next, Who},
    system::Cgroup,
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

/// Whether pressure is for want of memory of the machine: else it is of one control group, or of memory that lies in pieces, which is
/// compacted while there is enough of it.
pub(in crate::triage) fn is_short(available: f64, swapped_per_second: f64) -> bool {
    available < 0.15 || swapped_per_second >= 100.0
}

/// The machine is short of memory and programs reclaim it themselves.
fn reclaim(evidence: &Evidence) -> Option<Judged> {
    let direct = stalled(evidence, &["direct"]);
    let pressure = evidence.stalled(|one| one.memory_us).unwrap_or(0.0);
    let swapped =
        evidence.after.vm_change(&evidence.before, "pswpin") + evidence.after.vm_change(&evidence.before, "pswpout");
    let available = evidence.after.memory.map_or(1.0, |(available, all)| available as f64 / all.max(1) as f64);
    let of_machine = if is_short(available, evidence.per_second(swapped)) { pressure } else { 0.0 };
    let who = evidence.by_process("memory_reclaim", "pid", "stalls/s", |row| word(row, "stall") == "direct");
    Some(Judged {
        impact: over(direct.max(of_machine), 0.02, 0.5)?,
        confidence: 0.85,
        summary: "The machine is short of memory: programs stall while they reclaim it.".into(),
        evidence: vec![
            Number::new("stalled_in_reclaim", direct * 100.0, "% of one thread's time"),
            Number::new("time_with_memory_stalls", pressure * 100.0, "%"),
            Number::new("available", available * 100.0, "%"),
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

/// How bad it is that control groups hit their limits so often a second, and that their threads stall for that share of the time. What was
/// cached and is read again costs little time in the kernel's reclaim and much at the disk: often is bad even where each time is short.
pub(in crate::triage) fn held_up(hits: f64, stalled: f64) -> Option<f64> {
    let (often, long) = (over(hits, 1.0, 1000.0), over(stalled, 0.02, 0.5));
    often.into_iter().chain(long).max_by(f64::total_cmp)
}

/// A control group is at its limit.
fn limit(evidence: &Evidence) -> Option<Judged> {
    let mut at_limit: Vec<_> =
        evidence.cgroups().filter(|(_, group)| group.limit_hits > 0 && group.used() >= NEAR).collect();
    at_limit.sort_by(|a, b| b.1.limit_hits.cmp(&a.1.limit_hits).then(a.0.len().cmp(&b.0.len())));
    let Some((path, group)) = at_limit.first().copied() else {
        return near_limit(evidence.cgroups(), |path| members(evidence, path));
    };
    let hits = evidence.per_second(group.limit_hits);
    let stalled = stalled(evidence, &["cgroup"]);
    let stalls = evidence.by_process("memory_reclaim", "pid", "stalls/s", |row| word(row, "stall") == "cgroup");
    let used = group.used() * 100.0;
    let mut who = vec![Who { cgroup: path.to_owned(), ..part(used, "% of its limit") }];
    who.extend(if stalls.is_empty() { members(evidence, path) } else { stalls });
    Some(Judged {
        impact: held_up(hits, stalled)?,
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

/// From here on a control group is near its limit, as a share of it.
const NEAR: f64 = 0.9;

/// A control group has no room left but for caches, and has not hit its limit yet.
pub(in crate::triage) fn near_limit<'a>(
    groups: impl Iterator<Item = (&'a str, Cgroup)>,
    members: impl Fn(&str) -> Vec<Who>,
) -> Option<Judged> {
    let mut near: Vec<_> = groups.filter(|(_, group)| group.needed() >= NEAR).collect();
    near.sort_by(|a, b| b.1.needed().total_cmp(&a.1.needed()).then(a.0.len().cmp(&b.0.len())));
    let (path, group) = near.first().copied()?;
    let mut who =
        vec![Who { cgroup: path.to_owned(), ..part(group.needed() * 100.0, "% of its limit, without caches") }];
    who.extend(members(path));
    Some(Judged {
        // Nothing has happened yet: worth knowing, and at the very end more than that.
        impact: over(group.needed(), NEAR, 1.0)?.min(0.4),
        confidence: 0.8,
        summary: "A control group is near its memory limit: a little more, and its programs stall or are killed."
            .into(),
        evidence: vec![
            Number::new("memory", group.memory as f64 / 1_048_576.0, "MiB"),
            Number::new("of_it_caches", group.cache as f64 / 1_048_576.0, "MiB"),
            Number::new("limit", group.memory_limit as f64 / 1_048_576.0, "MiB"),
        ],
        next: Next::probe("memory_reclaim", json!({}), json!({})),
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn near(memory: u64, cache: u64, memory_limit: u64) -> Option<Judged> {
        let group =
            Cgroup { memory: memory * MIB, cache: cache * MIB, memory_limit: memory_limit * MIB, ..Cgroup::default() };
        near_limit([("/a/b", group), ("/none", Cgroup::default())].into_iter(), |_| Vec::new())
    }

    #[test]
    fn a_group_that_is_about_to_hit_its_limit_is_told_of_before() {
        let found = near(192, 2, 200).unwrap();
        assert_eq!((&*found.who[0].cgroup, found.who[0].value.round() as u32), ("/a/b", 95));
        assert!(found.impact < 0.6, "nothing has happened yet: {}", found.impact);
        assert!(near(192, 100, 200).is_none(), "caches make room");
        assert!(near(100, 0, 200).is_none() && near(100, 0, 0).is_none());
    }

    #[test]
    fn compaction_with_enough_memory_is_no_shortage() {
        assert!(!is_short(0.675, 0.0) && !is_short(0.15, 99.0));
        assert!(is_short(0.05, 0.0) && is_short(0.5, 500.0));
    }
}
