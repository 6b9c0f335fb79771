//! Disks: durability asked for too often, devices that are full of requests or slow.

use serde_json::json;

use super::{Rule, ms, over};
use crate::triage::{
    Focus, Number,
    evidence::{Evidence, about, part, sort, word},
    finding::{Judged, Kind, Next, Who},
};

pub(super) const FSYNC_STORM: Rule =
    Rule { kind: Kind::FsyncStorm, focus: Focus::Disk, probes: &["fs_sync"], judge: fsync_storm };
pub(super) const SATURATION: Rule =
    Rule { kind: Kind::DiskSaturation, focus: Focus::Disk, probes: &["block_latency"], judge: saturation };
pub(super) const LATENCY: Rule =
    Rule { kind: Kind::DiskLatency, focus: Focus::Disk, probes: &["block_latency"], judge: latency };

/// Programs ask for durability all the time.
fn fsync_storm(evidence: &Evidence) -> Option<Judged> {
    let series = evidence.series("fs_sync");
    let calls: u64 = series.iter().map(|one| one.count).sum();
    let waited: f64 = series.iter().map(|one| one.mean * one.count as f64 / 1e9).sum::<f64>() / evidence.seconds();
    let rate = evidence.per_second(calls);
    let who = evidence.by_process("fs_sync", "pid", "calls/s", |_| true);
    let slowest = series.iter().map(|one| one.p99).max().unwrap_or(0);
    Some(Judged {
        impact: over(rate, 20.0, 1000.0)?.min(over(waited, 0.1, 1.0)?),
        confidence: 0.9,
        summary: "A program asks for its data to be durable again and again, and waits for it.".into(),
        evidence: vec![
            Number::new("syncs", rate, "calls/s"),
            Number::new("waited", waited * 100.0, "% of one thread's time"),
            Number::new("sync_p99", ms(slowest), "ms"),
        ],
        next: Next::probe("fs_sync", about(&who), json!({})),
        who,
    })
}

/// Who moves most bytes to and from disks.
fn movers(evidence: &Evidence) -> Vec<Who> {
    let mut who: Vec<_> = evidence
        .processes()
        .iter()
        .filter(|change| change.disk_bytes > 0)
        .map(|change| {
            let rate = change.disk_bytes as f64 / 1_048_576.0 / evidence.seconds();
            evidence.who(change.pid, rate, "MiB/s of disk")
        })
        .collect();
    sort(&mut who);
    who
}

/// A device has requests under way nearly all the time, and more wait.
fn saturation(evidence: &Evidence) -> Option<Judged> {
    let busy = |disk: &crate::triage::system::Disk| (disk.busy_ms as f64 / 1000.0 / evidence.seconds()).min(1.0);
    let (name, disk) = evidence.disks().max_by(|a, b| busy(&a.1).total_cmp(&busy(&b.1)))?;
    let depth = disk.queued_ms as f64 / 1000.0 / evidence.seconds();
    let stalled = evidence.stalled(|one| one.io_us);
    let impact = over(busy(&disk), 0.8, 0.98)?;
    // Busy with one request at a time is what a program that waits for each looks like: somebody has to be held up.
    let held = over(stalled.unwrap_or(1.0), 0.2, 0.8)?;
    let mut who = vec![Who { device: name.to_owned(), ..part(busy(&disk) * 100.0, "% of the time busy") }];
    who.extend(movers(evidence));
    Some(Judged {
        impact: impact.min(held),
        confidence: 0.85,
        summary: "A disk is busy all the time and programs wait for it.".into(),
        evidence: vec![
            Number::new("busy", busy(&disk) * 100.0, "%"),
            Number::new("under_way", depth, "requests on average"),
            Number::new("requests", evidence.per_second(disk.requests), "1/s"),
            Number::new("moved", disk.bytes as f64 / 1_048_576.0 / evidence.seconds(), "MiB/s"),
            Number::new("time_with_io_stalls", stalled.unwrap_or(0.0) * 100.0, "%"),
        ],
        next: Next::probe("file_io", about(&who[1..]), json!({})),
        who,
    })
}

/// Requests take long.
fn latency(evidence: &Evidence) -> Option<Judged> {
    let service = evidence.series("block_latency").iter().filter(|one| word(&one.key, "phase") == "service");
    let worst = service.filter(|one| one.count >= 20).max_by_key(|one| one.p99)?;
    let stalled = evidence.stalled(|one| one.io_us).unwrap_or(0.0);
    let errors = worst.also.get("errors").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
    let device = word(&worst.key, "device").to_owned();
    let mut who = vec![Who { device, ..part(ms(worst.p99), "ms (p99)") }];
    who.extend(movers(evidence));
    Some(Judged {
        impact: over(ms(worst.p99), 30.0, 1000.0)?.min(0.3 + stalled),
        confidence: 0.8,
        summary: "Requests to a disk take long.".into(),
        evidence: vec![
            Number::new("service_p99", ms(worst.p99), "ms"),
            Number::new("service_p50", ms(worst.p50), "ms"),
            Number::new("requests", evidence.per_second(worst.count), "1/s"),
            Number::new("errors", errors, "requests"),
        ],
        next: Next::probe("block_latency", json!({}), json!({})),
        who,
    })
}
