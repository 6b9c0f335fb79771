//! CPUs: too few, held back, taken away, or lost to interrupts.

use serde_json::json;

use super::{Rule, USED_UP, ms, over};
use crate::triage::{
    Focus, Number,
    evidence::{Evidence, about, number, part, sort, word},
    finding::{Judged, Kind, Next, Who},
};

pub(super) const SATURATION: Rule =
    Rule { kind: Kind::CpuSaturation, focus: Focus::Cpu, probes: &["runq_latency"], judge: saturation };
pub(super) const RUNQ_DELAY: Rule =
    Rule { kind: Kind::RunqDelay, focus: Focus::Cpu, probes: &["runq_latency"], judge: runq_delay };
pub(super) const RUNAWAY: Rule = Rule { kind: Kind::RunawayProcess, focus: Focus::Cpu, probes: &[], judge: runaway };
pub(super) const STEAL: Rule = Rule { kind: Kind::CpuSteal, focus: Focus::Cpu, probes: &[], judge: steal };
pub(super) const INTERRUPTS: Rule =
    Rule { kind: Kind::IrqLoad, focus: Focus::Cpu, probes: &["irq_time"], judge: interrupts };
pub(super) const THROTTLING: Rule =
    Rule { kind: Kind::CgroupThrottling, focus: Focus::Cpu, probes: &[], judge: throttling };

/// All CPUs are used, and threads wait for them.
fn saturation(evidence: &Evidence) -> Option<Judged> {
    let used = evidence.cpu_used();
    if used < USED_UP {
        return None;
    }
    // Where the kernel does not say how much was stalled, what was waited for does.
    let waited = waited_seconds(evidence) / evidence.seconds();
    let stalled = evidence.stalled(|one| one.cpu_us).unwrap_or_else(|| waited.min(1.0));
    let impact = over(stalled, 0.2, 0.9)?;
    let who = evidence.busiest();
    let evidence = vec![
        Number::new("cpu_used", used * 100.0, "%"),
        Number::new("time_with_threads_waiting", stalled * 100.0, "%"),
        Number::new("threads_waiting", waited, "threads on average"),
    ];
    Some(Judged {
        impact,
        confidence: 0.9,
        summary: "All CPUs are busy and runnable threads wait for them: more work than CPUs.".into(),
        next: Next::probe("cpu_profile", about(&who), json!({})),
        evidence,
        who,
    })
}

/// Seconds that threads waited for a CPU, all together.
fn waited_seconds(evidence: &Evidence) -> f64 {
    evidence.series("runq_latency").iter().map(|one| one.mean * one.count as f64 / 1e9).sum()
}

/// Threads wait long for a CPU.
fn runq_delay(evidence: &Evidence) -> Option<Judged> {
    let series = evidence.series("runq_latency");
    let worst = series.iter().filter(|one| one.count >= 20).max_by_key(|one| one.p99)?;
    let impact = over(ms(worst.p99), 10.0, 200.0)?;
    // A single thread that waits is no trouble: the sum has to count too.
    let waiting = waited_seconds(evidence) / evidence.seconds();
    let impact = impact.min(over(waiting, 0.1, 2.0)?);
    let mut who: Vec<_> = series
        .iter()
        .filter(|one| number(&one.key, "pid") != u64::from(evidence.own))
        .map(|one| {
            let waited = one.mean * one.count as f64 / 1e9 / evidence.seconds() * 100.0;
            let pid = Some(number(&one.key, "pid") as u32).filter(|pid| *pid > 0);
            Who { pid, comm: word(&one.key, "comm").into(), ..part(waited, "% of the time waiting for a CPU") }
        })
        .collect();
    sort(&mut who);
    Some(Judged {
        impact,
        confidence: 0.7,
        summary: "Runnable threads wait long until they get a CPU.".into(),
        evidence: vec![
            Number::new("wait_p99_worst", ms(worst.p99), "ms"),
            Number::new("threads_waiting", waiting, "threads on average"),
        ],
        next: Next::probe("runq_latency", json!({}), json!({ "by": "pid" })),
        who,
    })
}

/// One process uses a CPU, or more, all the time.
fn runaway(evidence: &Evidence) -> Option<Judged> {
    let who: Vec<_> = evidence.busiest().into_iter().filter(|one| one.value >= 85.0).collect();
    let first = who.first()?;
    let share = first.value / 100.0 / f64::from(evidence.cpus.max(1));
    // A program that computes is no trouble by itself: how sure depends on how much of the machine it takes.
    let impact = 0.3 + 0.3 * share.min(1.0);
    Some(Judged {
        impact,
        confidence: 0.5 + 0.3 * share.min(1.0),
        summary: "A process computes without pause.".into(),
        evidence: vec![
            Number::new("cpu_of_process", first.value, "% of one CPU"),
            Number::new("share_of_machine", share * 100.0, "%"),
        ],
        next: Next::probe("cpu_profile", about(&who), json!({})),
        who,
    })
}

/// The hypervisor gives the CPUs to others.
fn steal(evidence: &Evidence) -> Option<Judged> {
    let cpu = evidence.cpu();
    let share = if cpu.all > 0.0 { cpu.steal / cpu.all } else { 0.0 };
    Some(Judged {
        impact: over(share, 0.1, 0.5)?,
        confidence: 0.9,
        summary: "The hypervisor gives CPU time of this machine to others.".into(),
        evidence: vec![Number::new("steal", share * 100.0, "% of CPU time")],
        who: Vec::new(),
        next: Next::probe("runq_latency", json!({}), json!({ "by": "cpu" })),
    })
}

/// Interrupts take the CPUs.
fn interrupts(evidence: &Evidence) -> Option<Judged> {
    let mut who: Vec<_> = evidence
        .series("irq_time")
        .iter()
        .map(|one| {
            let percent = one.also.get("cpu_percent").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
            let device = format!("{} {}", word(&one.key, "kind"), word(&one.key, "name"));
            Who { device, ..part(percent, "% of one CPU") }
        })
        .collect();
    sort(&mut who);
    let by_vector: f64 = who.iter().map(|one| one.value).sum::<f64>() / 100.0;
    let by_kernel = evidence.cpu().interrupts / evidence.seconds();
    let used = by_vector.max(by_kernel);
    let summary = "Interrupts take a large part of the CPUs.".into();
    let blamed = evidence.busiest();
    let vectors = who.iter().take(2).map(|one| Number::new(&one.device, one.value, "% of one CPU"));
    let numbers = vectors.chain([Number::new("interrupts", used * 100.0, "% of one CPU")]).collect();
    Some(Judged {
        impact: over(used, 0.2, f64::from(evidence.cpus.max(1)) * 0.6)?,
        confidence: 0.8,
        summary,
        evidence: numbers,
        // Interrupts belong to nobody; whoever is busiest is likely to cause them.
        who: who.into_iter().take(1).chain(blamed).collect(),
        next: Next::probe("net_traffic", json!({}), json!({})),
    })
}

/// A control group has used up its quota and is held.
fn throttling(evidence: &Evidence) -> Option<Judged> {
    let mut who: Vec<_> = evidence
        .cgroups()
        .filter(|(_, group)| group.throttled > 0)
        .map(|(path, group)| {
            let held = group.throttled as f64 / group.periods.max(group.throttled) as f64;
            Who { cgroup: path.to_owned(), ..part(held * 100.0, "% of its periods held") }
        })
        .collect();
    sort(&mut who);
    let worst = who.first()?.clone();
    let (_, group) = evidence.cgroups().find(|(path, _)| *path == worst.cgroup)?;
    let held = group.throttled_us as f64 / 1e6 / evidence.seconds();
    let mut blamed = vec![worst.clone()];
    blamed.extend(members(evidence, &worst.cgroup));
    Some(Judged {
        impact: over(worst.value / 100.0, 0.05, 0.5)?.min(over(held, 0.02, 0.3)?),
        confidence: 0.95,
        summary: "A control group uses up its CPU quota and is held until the next period.".into(),
        evidence: vec![Number::new("periods_held", worst.value, "%"), Number::new("held", held, "CPUs on average")],
        who: blamed,
        next: Next::probe("runq_latency", json!({}), json!({ "by": "pid" })),
    })
}

/// The busiest processes of a control group.
pub(super) fn members(evidence: &Evidence, cgroup: &str) -> Vec<Who> {
    let inside = |pid: u32| evidence.cgroup_of(pid).is_some_and(|paths| paths.iter().any(|path| path == cgroup));
    let all = evidence.processes();
    let rows = all.iter().filter(|change| inside(change.pid)).take(2);
    rows.map(|change| {
        let percent = change.cpu / evidence.seconds() * 100.0;
        evidence.who(change.pid, percent, "% of one CPU")
    })
    .collect()
}
