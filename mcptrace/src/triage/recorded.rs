//! The same judgement out of what the recorder kept of the last minute. Pure but for reading.
//!
//! Thresholds are those of the rules that look live. What stood out in the minute and is not in its last seconds is over. What the recorder
//! does not keep (names, signals, locks of programs, throttled groups) is named in the answer. Of system calls, locks and some others it
//! does not know whose doing they are: for those that stand out, [`Draft::unnamed`], a short look with the probes of the same rules says it.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use serde_json::{Value, json};

use super::{
    Focus, Number, Source, Triage, answer,
    evidence::{Evidence, about, number, part, sort, word},
    finding::{Finding, Judged, Kind, Next, Who},
    lately::{self, Lately},
    rank,
    rules::{RULES, held_up, is_short, ms, near_limit, over},
    system,
};
use crate::recorder::{
    history::{
        HistoryError,
        past::{self, Past},
    },
    metrics,
};

/// How far back it is looked, in seconds.
const SECONDS: i64 = 60;
/// What is not in these last seconds is over. System calls are looked at once in ten: of them twice that.
const PRESENT: i64 = 10;
const PRESENT_CALLS: i64 = 20;
/// How long it is looked whose doing something is, in seconds, and for how many findings at most.
pub const NAMING_SECONDS: f64 = 2.0;
const MOST_UNNAMED: usize = 3;
/// How sure a finding is of which nobody is named, of what it would be.
const UNNAMED: f64 = 0.7;

/// What the recorder's last minute gives, before it is known who is behind all of it.
#[derive(Clone, Debug)]
pub struct Draft {
    found: Vec<Finding>,
    rest: Triage,
}

/// A minute, and its last seconds as far as they were recorded.
#[derive(Clone, Debug)]
pub struct Pasts {
    /// The minute.
    pub minute: Past,
    /// Its last seconds.
    pub present: Option<Past>,
    /// More of them, for what is not looked at all the time.
    pub present_calls: Option<Past>,
}

/// What the history in a folder gives at present. Whatever keeps it from answering is no reason not to look live.
pub fn now(folder: &Path, focus: Option<Focus>) -> Option<Draft> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let mut draft = draft(folder, focus, since.as_secs() as i64).unwrap_or_else(|error| {
        tracing::debug!(%error, "the recorder has no answer");
        None
    })?;
    draft.look_at_limits(focus);
    Some(draft)
}

/// The answer out of the history in a folder; `None` if nobody records there at present.
pub fn look(folder: &Path, focus: Option<Focus>, now: i64) -> Result<Option<Triage>, HistoryError> {
    Ok(draft(folder, focus, now)?.map(Draft::answer))
}

fn draft(folder: &Path, focus: Option<Focus>, now: i64) -> Result<Option<Draft>, HistoryError> {
    let Some(minute) = past::lately(folder, SECONDS, now)? else { return Ok(None) };
    let present = past::lately(folder, PRESENT, now)?;
    let pasts = Pasts { minute, present, present_calls: past::lately(folder, PRESENT_CALLS, now)? };
    Ok(Some(judge(&pasts, focus, lately::look(folder))))
}

/// What a minute gives, beside what has changed.
pub fn judge(pasts: &Pasts, focus: Option<Focus>, lately: Lately) -> Draft {
    let rules = KINDS.iter().filter(|(kind, ..)| is_wanted(*kind, focus));
    let found = rules.filter_map(|(kind, metric, rule)| one(pasts, *kind, metric, *rule)).collect();
    let mut notes = vec![UNSEEN.to_owned()];
    notes.extend(not_judged(&pasts.minute, focus));
    notes.extend(focus.map(super::only));
    let window = pasts.minute.window.clone().unwrap_or_default();
    let looked_at = numbers(&pasts.minute);
    Draft { found, rest: Triage { looked_at, lately, source: Source::Recorder, window, notes, ..Triage::default() } }
}

/// What cannot have been found because it was not recorded.
fn not_judged(past: &Past, focus: Option<Focus>) -> Option<String> {
    let needs = |group: &str| {
        let of = |metric| metrics::metric(metric).is_some_and(|metric| metric.group == group);
        KINDS.iter().any(|(kind, metric, _)| is_wanted(*kind, focus) && of(metric))
    };
    let lacking: Vec<_> = past.lacking.iter().copied().filter(|group| needs(group)).collect();
    let all = lacking.join(", ");
    (!lacking.is_empty())
        .then(|| format!("not recorded in that minute and so not judged: {all}; give seconds to look live"))
}

fn is_wanted(kind: Kind, focus: Option<Focus>) -> bool {
    RULES.iter().any(|rule| rule.kind == kind && focus.is_none_or(|one| one == rule.focus))
}

/// What a rule finds: at present with the numbers of the present, which may be higher than those of the minute; else what is over.
fn one(pasts: &Pasts, kind: Kind, metric: &str, rule: Rule) -> Option<Finding> {
    let is_of_calls = metrics::metric(metric).is_some_and(|metric| metric.group == metrics::SYSCALLS);
    let present = if is_of_calls { &pasts.present_calls } else { &pasts.present };
    let in_minute = || rule(&pasts.minute).map(|judged| Finding::new(kind, judged));
    let Some(present) = present.as_ref().filter(|present| present.has(metric)) else { return in_minute() };
    match rule(present) {
        Some(judged) => Some(Finding::new(kind, judged)),
        None => in_minute().map(|finding| Finding { over: true, ..finding }),
    }
}

impl Draft {
    /// What stands out, goes on, and has nobody's name: kinds of which a short look at the rules' probes may tell more.
    pub fn unnamed(&self) -> Vec<Kind> {
        let ranked = rank::ranked(self.found.clone());
        let wanted = ranked.iter().filter(|one| !one.over && one.impact >= WORTH_A_LOOK && is_unnamed(one));
        wanted.map(|one| one.kind).take(MOST_UNNAMED).collect()
    }

    /// Takes over whose doing it is from a short look at some kinds.
    pub fn name(&mut self, kinds: &[Kind], evidence: &Evidence) {
        for finding in self.found.iter_mut().filter(|one| kinds.contains(&one.kind) && is_unnamed(one)) {
            let rule = RULES.iter().find(|rule| rule.kind == finding.kind);
            let Some(live) = rule.and_then(|rule| rule.judge(evidence)) else { continue };
            if live.pids().next().is_some() {
                let Finding { summary, who, next, confidence, .. } = live;
                (finding.summary, finding.who, finding.next) = (summary, who, next);
                finding.confidence = finding.confidence.max(confidence);
            }
        }
        let probes: Vec<_> = evidence.found.keys().copied().collect();
        let probes = if probes.is_empty() { "/proc".to_owned() } else { probes.join(", ") };
        let seconds = (evidence.seconds() * 10.0).round() / 10.0;
        self.note(&format!("who is behind what the recorder cannot name was looked for live: {seconds} s, {probes}"));
        self.rest.notes.extend(evidence.notes.iter().cloned());
    }

    /// Says something about the answer.
    pub fn note(&mut self, note: &str) {
        self.rest.notes.push(note.to_owned());
    }

    /// The answer. What nobody is named for is less sure, and its next call names somebody.
    pub fn answer(mut self) -> Triage {
        for finding in &mut self.found {
            if is_unnamed(finding) {
                finding.confidence = (finding.confidence * UNNAMED * 100.0).round() / 100.0;
            }
            finding.ask_about_the_living(|who| who.pid.is_some_and(system::lives));
        }
        answer(self.found, self.rest)
    }

    /// The recorder does not keep how full control groups are; their files say how they are now.
    fn look_at_limits(&mut self, focus: Option<Focus>) {
        if !is_wanted(Kind::MemoryLimit, focus) || self.found.iter().any(|one| one.kind == Kind::MemoryLimit) {
            return;
        }
        let groups = system::cgroups();
        let judged = near_limit(groups.iter().map(|(path, group)| (path.as_str(), *group)), |_| Vec::new());
        self.found.extend(judged.map(|judged| Finding::new(Kind::MemoryLimit, judged)));
    }
}

/// From this impact on it is looked whose doing something is.
const WORTH_A_LOOK: f64 = 0.3;

fn is_unnamed(finding: &Finding) -> bool {
    finding.kind.has_process() && finding.pids().next().is_none()
}

const UNSEEN: &str =
    "the recorder does not see slow names, signals, locks of programs and throttled groups: give seconds to look live";

/// What the recorder can tell.
type Rule = fn(&Past) -> Option<Judged>;

/// Each with the metric that it cannot do without.
const KINDS: &[(Kind, &str, Rule)] = &[
    (Kind::CpuSaturation, "cpu_mode_ns", saturation),
    (Kind::RunqDelay, "runq_latency_ns", runq_delay),
    (Kind::RunawayProcess, "cpu_process_ns", runaway),
    (Kind::CpuSteal, "cpu_mode_ns", steal),
    (Kind::IrqLoad, "interrupt_ns", interrupts),
    (Kind::MemoryReclaim, "reclaim_stall_ns", reclaim),
    (Kind::MemoryLimit, "reclaim_stall_ns", limit),
    (Kind::Oom, "oom_kills", oom),
    (Kind::FsyncStorm, "syscall_ns", fsync_storm),
    (Kind::DiskSaturation, "block_busy_ns", disk_saturation),
    (Kind::DiskLatency, "block_service_ns", disk_latency),
    (Kind::KernelLockContention, "lock_wait_ns", kernel_locks),
    (Kind::TcpRetransmits, "tcp_retransmits", retransmits),
    (Kind::ConnectionRefused, "tcp_connect_failures", refused),
    (Kind::PacketDrops, "net_dropped", drops),
    (Kind::ExecStorm, "process_execs", exec_storm),
    (Kind::SyscallFailures, "syscall_errors", failures),
];

/// Metrics that are amounts of nanoseconds become shares of the time.
const SECOND: f64 = 1e9;

fn all(_: &[String]) -> bool {
    true
}

/// The part of CPU time that some modes took, from 0 to 1.
fn cpu_share(past: &Past, modes: &[&str]) -> f64 {
    let whole = past.rate("cpu_mode_ns", all);
    if whole > 0.0 { past.rate("cpu_mode_ns", |labels| modes.contains(&&*labels[0])) / whole } else { 0.0 }
}

fn cpu_used(past: &Past) -> f64 {
    if past.has("cpu_mode_ns") { 1.0 - cpu_share(past, &["idle", "iowait"]) } else { 0.0 }
}

/// The part of the time in which somebody was stalled by a resource.
fn stalled(past: &Past, resource: &str) -> Option<f64> {
    past.has("pressure_some_ns").then(|| past.rate("pressure_some_ns", |labels| labels[0] == resource) / SECOND)
}

/// Processes by their CPU time, in percent of one CPU.
fn busiest(past: &Past, least: f64) -> Vec<Who> {
    let process = |(labels, rate): (&[String], f64)| {
        let pid = labels[0].parse().ok()?;
        let percent = part(rate / SECOND * 100.0, "% of one CPU");
        Some(Who { pid: Some(pid), comm: labels[1].clone(), cgroup: labels[2].clone(), ..percent })
    };
    let mut who: Vec<_> = past.rates("cpu_process_ns").filter_map(process).filter(|one| one.value >= least).collect();
    sort(&mut who);
    who.truncate(3);
    who
}

fn cpus(past: &Past) -> f64 {
    past.levels("cpus_online").map(|(_, level)| level.greatest).fold(1.0, f64::max)
}

/// How much was waited, in threads on average: all series together of which the labels are wanted.
fn waiting(past: &Past, metric: &str, wanted: impl Fn(&[String]) -> bool) -> f64 {
    let series = past.distributions(metric).filter(|(labels, ..)| wanted(labels));
    series.map(|(_, values, seconds)| values.sum as f64 / SECOND / seconds).sum()
}

/// How often it was waited, a second: all series together of which the labels are wanted.
fn often(past: &Past, metric: &str, wanted: impl Fn(&[String]) -> bool) -> f64 {
    let series = past.distributions(metric).filter(|(labels, ..)| wanted(labels));
    series.map(|(_, values, seconds)| values.count as f64 / seconds).sum()
}

fn saturation(past: &Past) -> Option<Judged> {
    let used = cpu_used(past);
    if used < super::rules::USED_UP {
        return None;
    }
    let waited = waiting(past, "runq_latency_ns", all);
    let stalled = stalled(past, "cpu").unwrap_or_else(|| waited.min(1.0));
    let who = busiest(past, 5.0);
    Some(Judged {
        impact: over(stalled, 0.2, 0.9)?,
        confidence: 0.9,
        summary: "All CPUs are busy and runnable threads wait for them: more work than CPUs.".into(),
        evidence: vec![
            Number::new("cpu_used", used * 100.0, "%"),
            Number::new("time_with_threads_waiting", stalled * 100.0, "%"),
            Number::new("threads_waiting", waited, "threads on average"),
        ],
        next: Next::probe("cpu_profile", about(&who), json!({})),
        who,
    })
}

fn runq_delay(past: &Past) -> Option<Judged> {
    let (_, values, _) = past.distributions("runq_latency_ns").next()?;
    let p99 = ms(values.whole().percentile(0.99));
    let waited = waiting(past, "runq_latency_ns", all);
    Some(Judged {
        impact: over(p99, 10.0, 200.0)?.min(over(waited, 0.1, 2.0)?),
        confidence: 0.7,
        summary: "Runnable threads wait long until they get a CPU.".into(),
        evidence: vec![
            Number::new("wait_p99", p99, "ms"),
            Number::new("threads_waiting", waited, "threads on average"),
        ],
        next: Next::probe("runq_latency", json!({}), json!({ "by": "pid" })),
        who: Vec::new(),
    })
}

fn runaway(past: &Past) -> Option<Judged> {
    let who = busiest(past, 85.0);
    let first = who.first()?.value;
    let share = (first / 100.0 / cpus(past)).min(1.0);
    Some(Judged {
        impact: 0.3 + 0.3 * share,
        confidence: 0.5 + 0.3 * share,
        summary: "A process computes without pause.".into(),
        evidence: vec![
            Number::new("cpu_of_process", first, "% of one CPU"),
            Number::new("share_of_machine", share * 100.0, "%"),
        ],
        next: Next::probe("cpu_profile", about(&who), json!({})),
        who,
    })
}

fn steal(past: &Past) -> Option<Judged> {
    let share = cpu_share(past, &["steal"]);
    Some(Judged {
        impact: over(share, 0.1, 0.5)?,
        confidence: 0.9,
        summary: "The hypervisor gives CPU time of this machine to others.".into(),
        evidence: vec![Number::new("steal", share * 100.0, "% of CPU time")],
        who: Vec::new(),
        next: Next::probe("runq_latency", json!({}), json!({ "by": "cpu" })),
    })
}

fn interrupts(past: &Past) -> Option<Judged> {
    let used = past.rate("interrupt_ns", all) / SECOND;
    let handler = |(labels, rate): (&[String], f64)| {
        let device = format!("{} {}", labels[0], labels[1]);
        Who { device, ..part(rate / SECOND * 100.0, "% of one CPU") }
    };
    let mut who: Vec<_> = past.rates("interrupt_ns").map(handler).collect();
    sort(&mut who);
    who.truncate(1);
    // Interrupts belong to nobody; whoever is busiest is likely to cause them.
    who.extend(busiest(past, 5.0));
    Some(Judged {
        impact: over(used, 0.2, cpus(past) * 0.6)?,
        confidence: 0.8,
        summary: "Interrupts take a large part of the CPUs.".into(),
        evidence: vec![Number::new("interrupts", used * 100.0, "% of one CPU")],
        who,
        next: Next::probe("irq_time", json!({}), json!({})),
    })
}

fn reclaim(past: &Past) -> Option<Judged> {
    let direct = waiting(past, "reclaim_stall_ns", |labels| labels[0] == "direct");
    let pressure = stalled(past, "memory").unwrap_or(0.0);
    let (available, swapped) = (available(past), past.rate("swap_pages", all));
    let of_machine = if is_short(available, swapped) { pressure } else { 0.0 };
    Some(Judged {
        impact: over(direct.max(of_machine), 0.02, 0.5)?,
        confidence: 0.85,
        summary: "The machine is short of memory: programs stall while they reclaim it.".into(),
        evidence: vec![
            Number::new("stalled_in_reclaim", direct * 100.0, "% of one thread's time"),
            Number::new("time_with_memory_stalls", pressure * 100.0, "%"),
            Number::new("available", available * 100.0, "%"),
            Number::new("swapped", swapped, "pages/s"),
        ],
        who: Vec::new(),
        next: Next::probe("memory_reclaim", json!({}), json!({})),
    })
}

/// The part of memory that programs can still have, from 0 to 1; 1 if it was not recorded.
fn available(past: &Past) -> f64 {
    let level = |metric: &str| past.levels(metric).map(|(_, level)| level.average).sum::<f64>();
    if past.has("memory_available_bytes") {
        level("memory_available_bytes") / level("memory_total_bytes").max(1.0)
    } else {
        1.0
    }
}

fn limit(past: &Past) -> Option<Judged> {
    let of_groups = |labels: &[String]| labels[0] == "cgroup";
    let stalled = waiting(past, "reclaim_stall_ns", of_groups);
    let stalls = often(past, "reclaim_stall_ns", of_groups);
    Some(Judged {
        impact: held_up(stalls, stalled)?,
        confidence: 0.8,
        summary: "A control group is at its memory limit: its programs stall while they reclaim memory.".into(),
        evidence: vec![
            Number::new("stalls", stalls, "1/s"),
            Number::new("stalled_in_reclaim", stalled * 100.0, "% of one thread's time"),
        ],
        who: Vec::new(),
        next: Next::probe("memory_reclaim", json!({}), json!({})),
    })
}

fn oom(past: &Past) -> Option<Judged> {
    let rate = past.rate("oom_kills", all);
    if rate == 0.0 {
        return None;
    }
    let kills = rate * past.window.as_ref().map_or(0.0, |window| window.seconds);
    let killed = past.events.iter().filter(|(kind, _)| kind == "oom_kill").map(|(_, row)| {
        let pid = Some(number(row, "pid") as u32).filter(|pid| *pid > 0);
        Who { pid, comm: word(row, "comm").into(), cgroup: word(row, "cgroup").into(), ..part(1.0, "times killed") }
    });
    Some(Judged {
        impact: 0.9,
        confidence: 0.95,
        summary: "The kernel kills processes because memory has run out.".into(),
        evidence: vec![Number::new("kills", kills.round(), "processes")],
        who: killed.collect(),
        next: Next::probe("oom_kills", json!({}), Value::Null),
    })
}

/// System calls that make data durable.
const SYNCS: [&str; 5] = ["fsync", "fdatasync", "msync", "sync_file_range", "syncfs"];

fn fsync_storm(past: &Past) -> Option<Judged> {
    let is_sync = |labels: &[String]| SYNCS.contains(&&*labels[0]);
    let rate = past.rate("syscalls", is_sync);
    let waited = waiting(past, "syscall_ns", is_sync);
    Some(Judged {
        impact: over(rate, 20.0, 1000.0)?.min(over(waited, 0.1, 1.0)?),
        confidence: 0.75,
        summary: "A program asks for its data to be durable again and again, and waits for it.".into(),
        evidence: vec![
            Number::new("syncs", rate, "calls/s"),
            Number::new("waited", waited * 100.0, "% of one thread's time"),
        ],
        who: Vec::new(),
        next: Next::probe("fs_sync", json!({}), json!({})),
    })
}

/// A device and how busy it was, from 0 to 1.
fn busiest_disk(past: &Past) -> Option<(&str, f64)> {
    let disks = past.rates("block_busy_ns").map(|(labels, rate)| (&*labels[0], (rate / SECOND).min(1.0)));
    disks.max_by(|a, b| a.1.total_cmp(&b.1))
}

fn disk_saturation(past: &Past) -> Option<Judged> {
    let (name, busy) = busiest_disk(past)?;
    let held = stalled(past, "io").unwrap_or(1.0);
    let of_device = |labels: &[String]| labels[0] == name;
    let depth = past.levels("block_in_flight").find(|(labels, _)| of_device(labels)).map_or(0.0, |one| one.1.average);
    Some(Judged {
        // Busy with one request at a time is what a program that waits for each looks like: somebody has to be held up.
        impact: over(busy, 0.8, 0.98)?.min(over(held, 0.2, 0.8)?),
        confidence: 0.85,
        summary: "A disk is busy all the time and programs wait for it.".into(),
        evidence: vec![
            Number::new("busy", busy * 100.0, "%"),
            Number::new("under_way", depth, "requests on average"),
            Number::new("requests", past.rate("block_requests", of_device), "1/s"),
            Number::new("moved", past.rate("block_bytes", of_device) / 1_048_576.0, "MiB/s"),
            Number::new("time_with_io_stalls", held * 100.0, "%"),
        ],
        who: vec![Who { device: name.to_owned(), ..part(busy * 100.0, "% of the time busy") }],
        next: Next::probe("file_io", json!({}), json!({ "by": "pid" })),
    })
}

fn disk_latency(past: &Past) -> Option<Judged> {
    let enough = past.distributions("block_service_ns").filter(|(_, values, _)| values.count >= 20);
    let timed = enough.map(|(labels, values, seconds)| (labels, values.whole(), values.count as f64 / seconds));
    let (labels, values, rate) = timed.max_by_key(|(_, values, _)| values.percentile(0.99))?;
    let p99 = ms(values.percentile(0.99));
    let of_both = |other: &[String]| other == labels;
    Some(Judged {
        impact: over(p99, 30.0, 1000.0)?.min(0.3 + stalled(past, "io").unwrap_or(0.0)),
        confidence: 0.8,
        summary: "Requests to a disk take long.".into(),
        evidence: vec![
            Number::new("service_p99", p99, "ms"),
            Number::new("service_p50", ms(values.percentile(0.5)), "ms"),
            Number::new("requests", rate, "1/s"),
            Number::new("errors", past.rate("block_errors", of_both), "1/s"),
        ],
        who: vec![Who { device: labels.join(" "), ..part(p99, "ms (p99)") }],
        next: Next::probe("file_io", json!({}), json!({ "by": "pid" })),
    })
}

fn kernel_locks(past: &Past) -> Option<Judged> {
    let waited = waiting(past, "lock_wait_ns", all);
    let mut who: Vec<_> = past
        .distributions("lock_wait_ns")
        .map(|(labels, values, seconds)| {
            let threads = values.sum as f64 / SECOND / seconds;
            Who { device: labels[0].clone(), ..part(threads, "threads waiting on average") }
        })
        .collect();
    sort(&mut who);
    Some(Judged {
        impact: over(waited, 0.3, 4.0)?,
        confidence: 0.8,
        summary: "Threads wait for locks of the kernel.".into(),
        evidence: vec![Number::new("threads_waiting", waited, "threads on average")],
        who,
        next: Next::probe("kernel_locks", json!({}), json!({ "stacks": true })),
    })
}

fn retransmits(past: &Past) -> Option<Judged> {
    let rate = past.rate("tcp_retransmits", all);
    let sent = past.rate("tcp_segments_sent", all);
    let share = if sent > 0.0 { (rate / sent).min(1.0) } else { 0.0 };
    Some(Judged {
        impact: over(rate, 2.0, 100.0)?,
        confidence: if share > 0.01 { 0.9 } else { 0.75 },
        summary: "TCP sends segments again: the path to a peer, or the peer, loses packets.".into(),
        evidence: vec![
            Number::new("segments_again", rate, "1/s"),
            Number::new("of_segments_sent_here", share * 100.0, "%"),
        ],
        who: Vec::new(),
        next: Next::probe("tcp_retransmits", json!({}), json!({ "events": true })),
    })
}

fn refused(past: &Past) -> Option<Judged> {
    let failed = past.rates("tcp_connect_failures").map(|(labels, rate)| Number::new(&labels[0], rate, "1/s"));
    let mut evidence: Vec<_> = failed.collect();
    evidence.sort_by(|a, b| b.value.total_cmp(&a.value));
    evidence.truncate(3);
    Some(Judged {
        impact: over(past.rate("tcp_connect_failures", all), 2.0, 200.0)?,
        confidence: 0.85,
        summary: "Connects fail again and again.".into(),
        evidence,
        who: Vec::new(),
        next: Next::probe("tcp_connections", json!({}), json!({ "failed_only": true })),
    })
}

fn drops(past: &Past) -> Option<Judged> {
    let device = |(labels, rate): (&[String], f64)| Who { device: labels.join(" "), ..part(rate, "packets/s") };
    let mut who: Vec<_> = past.rates("net_dropped").map(device).filter(|one| one.value > 0.0).collect();
    sort(&mut who);
    let (devices, listeners) = (past.rate("net_dropped", all), past.rate("tcp_listen_drops", all));
    Some(Judged {
        impact: over(devices + listeners, 5.0, 2000.0)?,
        confidence: 0.7,
        summary: "The kernel drops packets.".into(),
        evidence: vec![
            Number::new("dropped_by_devices", devices, "packets/s"),
            Number::new("dropped_by_full_listeners", listeners, "connections/s"),
        ],
        who,
        next: Next::probe("packet_drops", json!({}), json!({})),
    })
}

fn exec_storm(past: &Past) -> Option<Judged> {
    let execs = past.rate("process_execs", all);
    // Without threads, which many healthy programs make all the time.
    let forks = past.rate("process_forks", all);
    let worst = over(execs, 20.0, 400.0).into_iter().chain(over(forks, 60.0, 1500.0)).reduce(f64::max)?;
    let who = starters(past, execs);
    Some(Judged {
        impact: worst,
        confidence: 0.9,
        summary: "Processes are started at a high rate.".into(),
        evidence: vec![Number::new("execs", execs, "1/s"), Number::new("forks", forks, "1/s")],
        next: Next::probe("process_exec", json!({}), json!({})),
        who,
    })
}

/// Who starts programs: the parents of those that are kept one by one, with their part of all.
fn starters(past: &Past, execs: f64) -> Vec<Who> {
    let started: Vec<_> = past.events.iter().filter(|(kind, _)| kind == "process_exec").map(|(_, row)| row).collect();
    let mut parents: BTreeMap<u32, u64> = BTreeMap::new();
    for row in &started {
        *parents.entry(number(row, "ppid") as u32).or_default() += 1;
    }
    let processes: BTreeMap<u32, &str> =
        past.rates("cpu_process_ns").filter_map(|(labels, _)| Some((labels[0].parse().ok()?, &*labels[1]))).collect();
    let share = |count: u64| execs * count as f64 / started.len().max(1) as f64;
    let parent = |(pid, count): (u32, u64)| Who {
        pid: Some(pid),
        comm: processes.get(&pid).copied().unwrap_or_default().to_owned(),
        ..part(share(count), "starts/s")
    };
    let mut who: Vec<_> = parents.into_iter().filter(|(pid, _)| *pid > 0).map(parent).collect();
    sort(&mut who);
    who
}

/// System calls that a healthy program rarely sees fail; of others, errors may be how they say "not yet".
const SELDOM: [&str; 12] = [
    "open",
    "openat",
    "openat2",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "execve",
    "unlink",
];

fn failures(past: &Past) -> Option<Judged> {
    let failing = past.rates("syscall_errors").filter(|(labels, _)| SELDOM.contains(&&*labels[0]));
    let (labels, rate) = failing.max_by(|a, b| a.1.total_cmp(&b.1))?;
    let call = labels[0].clone();
    Some(Judged {
        impact: over(rate, 100.0, 20_000.0)?,
        confidence: 0.6,
        // The name is the kernel's own, not what a program chose.
        summary: format!("A system call fails again and again: {call}."),
        evidence: vec![Number::new("failed_calls", rate, "1/s")],
        who: Vec::new(),
        next: Next::probe("syscall_errors", json!({}), json!({ "syscall": call, "by": "pid" })),
    })
}

/// The numbers that are always worth showing; those of groups that were not recorded are absent.
fn numbers(past: &Past) -> Vec<Number> {
    let seconds = past.window.as_ref().map_or(0.0, |window| window.seconds);
    let mut numbers = vec![Number::new("seconds", seconds, "s"), Number::new("cpus", cpus(past), "")];
    let mut put = |metric: &str, name: &str, value: f64, unit: &str| {
        if past.has(metric) {
            numbers.push(Number::new(name, value, unit));
        }
    };
    put("cpu_mode_ns", "cpu_used", cpu_used(past) * 100.0, "%");
    put("cpu_mode_ns", "cpu_interrupts", cpu_share(past, &["irq", "softirq"]) * 100.0, "%");
    put("cpu_mode_ns", "cpu_steal", cpu_share(past, &["steal"]) * 100.0, "%");
    for (resource, name) in [("cpu", "cpu_stalled"), ("memory", "memory_stalled"), ("io", "io_stalled")] {
        put("pressure_some_ns", name, stalled(past, resource).unwrap_or(0.0) * 100.0, "%");
    }
    put("memory_available_bytes", "memory_available", available(past) * 100.0, "%");
    put("block_busy_ns", "busiest_disk", busiest_disk(past).map_or(0.0, |disk| disk.1 * 100.0), "%");
    for (metric, name) in [("runq_latency_ns", "runq_wait_p99"), ("block_service_ns", "disk_p99")] {
        let enough = past.distributions(metric).filter(|(_, values, _)| values.count >= 20);
        let worst = enough.map(|(_, values, _)| values.whole().percentile(0.99)).max();
        put(metric, name, ms(worst.unwrap_or(0)), "ms");
    }
    for (metric, name) in [
        ("context_switches", "context_switches"),
        ("process_execs", "execs"),
        ("process_forks", "forks"),
        ("tcp_retransmits", "tcp_retransmits"),
        ("tcp_connect_failures", "failed_connects"),
        ("net_dropped", "packet_drops"),
        ("page_faults", "page_faults"),
    ] {
        put(metric, name, past.rate(metric, all), "1/s");
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        distribution::Distribution,
        recorder::store::body::{Cell, Level, Sparse},
    };

    type Series = (&'static str, &'static [&'static str], Cell);

    fn of(metric: &'static str, labels: &'static [&'static str], cell: Cell) -> Series {
        (metric, labels, cell)
    }

    /// A minute in which CPUs did nothing for a part of the time.
    fn minute(idle: u64, more: Vec<Series>) -> Triage {
        let mut series = vec![
            of("cpu_mode_ns", &["idle"], Cell::Sum(idle * 1_200_000_000)),
            of("cpu_mode_ns", &["user"], Cell::Sum((100 - idle) * 1_200_000_000)),
            of("cpus_online", &[], Cell::Gauge(Level::once(2.0))),
        ];
        series.extend(more);
        let minute = Past::of(60.0, &series);
        judge(&Pasts { minute, present: None, present_calls: None }, None, Lately::default()).answer()
    }

    fn seconds(seconds: u64) -> Cell {
        Cell::Sum(seconds * 1_000_000_000)
    }

    fn waits(times: u64, ns: u64) -> Cell {
        let mut all = Distribution::default();
        (0..times).for_each(|_| all.record(ns));
        Cell::Distribution(Box::new(Sparse::of(&all)))
    }

    fn kinds(triage: &Triage) -> Vec<Kind> {
        triage.findings.iter().map(|one| one.kind).collect()
    }

    #[test]
    fn a_calm_minute_is_nothing_to_tell_of() {
        let calm = minute(97, vec![of("cpu_process_ns", &["7", "calm", "/a"], seconds(1))]);
        assert!(calm.findings.is_empty(), "{calm:?}");
        assert!(calm.looked_at.iter().any(|one| one.name == "cpu_used" && (one.value - 3.0).abs() < 0.1));
        assert_eq!(calm.source, Source::Recorder);
    }

    #[test]
    fn who_uses_up_the_cpus_is_named_with_the_group() {
        let found = minute(
            1,
            vec![
                of("cpu_process_ns", &["7", "hog", "/a"], seconds(100)),
                of("cpu_process_ns", &["others", "", ""], seconds(18)),
                of("pressure_some_ns", &["cpu"], seconds(55)),
            ],
        );
        assert_eq!(kinds(&found), [Kind::CpuSaturation, Kind::RunawayProcess]);
        let who = &found.findings[0].who;
        assert_eq!((who.len(), who[0].pid, &*who[0].comm, &*who[0].cgroup), (1, Some(7), "hog", "/a"));
        assert_eq!(found.findings[1].because_of, [Kind::CpuSaturation]);
    }

    #[test]
    fn a_disk_that_is_busy_is_named_and_no_kill_for_memory_overlooked() {
        let disk = minute(
            80,
            vec![
                of("block_busy_ns", &["vda"], seconds(60)),
                of("pressure_some_ns", &["io"], seconds(50)),
                of("block_service_ns", &["vda", "read"], waits(600, 200_000_000)),
            ],
        );
        assert_eq!(kinds(&disk), [Kind::DiskSaturation, Kind::DiskLatency]);
        assert_eq!(disk.findings[0].who[0].device, "vda");
        assert_eq!(kinds(&minute(80, vec![of("oom_kills", &[], Cell::Sum(1))])), [Kind::Oom]);
        assert_eq!(
            kinds(&minute(80, vec![of("tcp_connect_failures", &["ECONNREFUSED"], Cell::Sum(6000))])),
            [Kind::ConnectionRefused]
        );
    }

    #[test]
    fn every_rule_of_a_minute_is_a_rule_that_looks_live() {
        for (kind, metric, _) in KINDS {
            assert!(RULES.iter().any(|rule| rule.kind == *kind), "{kind:?}");
            assert!(metrics::metric(metric).is_some(), "{metric}");
        }
    }

    /// A minute and its last ten seconds, of which each has failing opens and refused connects so often in a second.
    fn draft((opens, refused): (u64, u64), (present_opens, present_refused): (u64, u64)) -> Draft {
        let past = |seconds: u64, opens: u64, refused: u64| {
            Past::of(
                seconds as f64,
                &[
                    of("syscall_errors", &["openat"], Cell::Sum(opens * seconds)),
                    of("tcp_connect_failures", &["ECONNREFUSED"], Cell::Sum(refused * seconds)),
                ],
            )
        };
        let present = past(10, present_opens, present_refused);
        let minute = past(60, opens, refused);
        judge(&Pasts { minute, present_calls: Some(present.clone()), present: Some(present) }, None, Lately::default())
    }

    #[test]
    fn a_limit_that_is_hit_often_explains_the_disk_that_reads_again_what_it_took() {
        let found = minute(
            27,
            vec![
                of("reclaim_stall_ns", &["cgroup"], waits(923 * 60, 30_000)),
                of("block_busy_ns", &["vda"], seconds(50)),
                of("pressure_some_ns", &["io"], seconds(40)),
            ],
        );
        assert_eq!(kinds(&found), [Kind::MemoryLimit, Kind::DiskSaturation]);
        assert_eq!(found.findings[1].because_of, [Kind::MemoryLimit]);
        let rare = minute(97, vec![of("reclaim_stall_ns", &["cgroup"], waits(59, 30_000))]);
        assert!(rare.findings.is_empty(), "{rare:?}");
        let long = minute(97, vec![of("reclaim_stall_ns", &["cgroup"], waits(30, 500_000_000))]);
        assert_eq!(kinds(&long), [Kind::MemoryLimit]);
    }

    #[test]
    fn what_is_over_ranks_below_what_goes_on() {
        let triage = draft((5_000, 150), (5_000, 0)).answer();
        assert_eq!(kinds(&triage), [Kind::SyscallFailures, Kind::ConnectionRefused]);
        assert_eq!(triage.findings.iter().map(|one| one.over).collect::<Vec<_>>(), [false, true]);
        assert!(triage.findings.iter().all(|one| one.because_of.is_empty()), "{triage:?}");
    }

    #[test]
    fn what_has_just_begun_is_judged_by_its_present() {
        let late = draft((0, 30), (0, 180)).answer();
        assert!((late.findings[0].evidence[0].value - 180.0).abs() < 0.1, "{late:?}");
    }

    #[test]
    fn what_nobody_is_named_for_is_looked_into_and_less_sure() {
        let unnamed = draft((95_000, 0), (95_000, 0));
        assert_eq!(unnamed.unnamed(), [Kind::SyscallFailures]);
        let triage = unnamed.answer();
        assert!(triage.findings[0].confidence < 0.5, "{triage:?}");
        assert_eq!(triage.findings[0].next.arguments["options"]["by"], "pid");
        assert!(draft((95_000, 0), (0, 0)).unnamed().is_empty(), "it is over");
        assert!(draft((110, 0), (110, 0)).unnamed().is_empty(), "it does not stand out");
    }

    #[test]
    fn threads_are_no_storm_of_processes_and_compaction_is_no_want_of_memory() {
        let calm = minute(
            60,
            vec![
                of("process_execs", &[], Cell::Sum(7 * 60)),
                of("process_forks", &[], Cell::Sum(16 * 60)),
                of("thread_starts", &[], Cell::Sum(131 * 60)),
                of("reclaim_stall_ns", &["compaction"], waits(50, 10_000_000)),
                of("pressure_some_ns", &["memory"], seconds(4)),
                of("memory_available_bytes", &[], Cell::Gauge(Level::once(67.5))),
                of("memory_total_bytes", &[], Cell::Gauge(Level::once(100.0))),
            ],
        );
        assert!(calm.findings.is_empty(), "{calm:?}");
    }
}
