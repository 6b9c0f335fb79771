//! Network: loss, refusals, names.

use serde_json::json;

use super::{Rule, ms, over};
use crate::{
    report::Row,
    triage::{
        Focus, Number,
        evidence::{Evidence, about, number, part, sort, word},
        finding::{Judged, Kind, Next, Who},
    },
};

pub(super) const RETRANSMITS: Rule =
    Rule { kind: Kind::TcpRetransmits, focus: Focus::Network, probes: &["tcp_retransmits"], judge: retransmits };
pub(super) const REFUSED: Rule =
    Rule { kind: Kind::ConnectionRefused, focus: Focus::Network, probes: &["tcp_connections"], judge: refused };
pub(super) const DROPS: Rule =
    Rule { kind: Kind::PacketDrops, focus: Focus::Network, probes: &["packet_drops"], judge: drops };
pub(super) const NAMES: Rule =
    Rule { kind: Kind::DnsSlow, focus: Focus::Network, probes: &["dns_latency"], judge: names };

/// TCP has to send again.
fn retransmits(evidence: &Evidence) -> Option<Judged> {
    let again = |row: &&Row| matches!(word(row, "event"), "retransmit" | "synack_retransmit");
    let rows: Vec<_> = evidence.rows("tcp_retransmits").iter().filter(again).collect();
    let count: u64 = rows.iter().map(|row| number(row, "segments")).sum();
    let rate = evidence.per_second(count);
    let sent = evidence.after.tcp_segments_sent.saturating_sub(evidence.before.tcp_segments_sent);
    let mut who: Vec<_> = rows
        .iter()
        .map(|row| Who {
            peer: word(row, "remote").into(),
            ..part(evidence.per_second(number(row, "segments")), "segments again/s")
        })
        .collect();
    sort(&mut who);
    let share = if sent > 0 { count as f64 / sent as f64 } else { 0.0 };
    Some(Judged {
        impact: over(rate, 2.0, 100.0)?.min(over(count as f64, 5.0, 50.0)?),
        confidence: if share > 0.01 { 0.9 } else { 0.75 },
        summary: "TCP sends segments again: the path to a peer, or the peer, loses packets.".into(),
        evidence: vec![
            Number::new("segments_again", rate, "1/s"),
            Number::new("of_segments_sent_here", share.min(1.0) * 100.0, "%"),
        ],
        who,
        next: Next::probe("tcp_retransmits", json!({}), json!({ "events": true })),
    })
}

/// Connects are refused or time out.
fn refused(evidence: &Evidence) -> Option<Judged> {
    let rate = evidence.per_second(evidence.seen("tcp_connections"));
    let events = evidence.events("tcp_connections");
    let refusals = events.iter().filter(|row| word(row, "errno") == "ECONNREFUSED").count();
    let mut who = evidence.by_process("tcp_connections", "pid", "failed connects/s", |_| true);
    who.truncate(2);
    let mut peers: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    for row in events {
        *peers.entry(format!("{}:{}", word(row, "remote"), number(row, "remote_port"))).or_default() += 1;
    }
    let peer = peers.into_iter().max_by_key(|(_, count)| *count);
    who.extend(peer.map(|(peer, count)| Who {
        peer,
        ..part(evidence.per_second(count) * evidence.scale("tcp_connections"), "failed connects/s")
    }));
    Some(Judged {
        impact: over(rate, 2.0, 200.0)?,
        confidence: 0.9,
        summary: "Connections fail again and again: nobody listens there, or the answer is no.".into(),
        evidence: vec![
            Number::new("failed_connects", rate, "1/s"),
            Number::new("refused", refusals as f64 / events.len().max(1) as f64 * 100.0, "% of those looked at"),
        ],
        next: Next::probe("tcp_connections", about(&who), json!({ "failed_only": true })),
        who,
    })
}

/// Reasons for which packets are dropped on a healthy machine as well.
const ORDINARY: [&str; 9] = [
    "TCP_OLD_DATA",
    "TCP_OLD_ACK",
    "OTHERHOST",
    "TCP_OFOMERGE",
    "NO_SOCKET",
    "CONSUMED",
    "PACKET_SOCK_ERROR",
    "DUP_FRAG",
    "NOT_SPECIFIED",
];

/// The kernel drops packets that somebody wanted.
fn drops(evidence: &Evidence) -> Option<Judged> {
    let wanted = |row: &&Row| !ORDINARY.contains(&word(row, "reason"));
    let rows: Vec<_> = evidence.rows("packet_drops").iter().filter(wanted).collect();
    let packets: u64 = rows.iter().map(|row| number(row, "packets")).sum();
    let rate = evidence.per_second(packets);
    let mut who: Vec<_> = rows
        .iter()
        .map(|row| Who {
            device: format!("{} in {}", word(row, "reason"), word(row, "location")),
            ..part(evidence.per_second(number(row, "packets")), "packets/s")
        })
        .collect();
    sort(&mut who);
    Some(Judged {
        impact: over(rate, 5.0, 2000.0)?,
        confidence: 0.7,
        summary: "The kernel drops packets.".into(),
        evidence: vec![Number::new("dropped", rate, "packets/s")],
        who,
        next: Next::probe("packet_drops", json!({}), json!({})),
    })
}

/// Names are resolved slowly, or not at all.
fn names(evidence: &Evidence) -> Option<Judged> {
    let series = evidence.series("dns_latency");
    let calls: u64 = series.iter().map(|one| one.count).sum();
    let mean = series.iter().map(|one| one.mean * one.count as f64).sum::<f64>() / calls.max(1) as f64 / 1e6;
    let slowest = series.iter().map(|one| one.max).max()?;
    let who = evidence.by_process("dns_latency", "pid", "look-ups/s", |_| true);
    Some(Judged {
        impact: over(mean, 200.0, 5000.0)?,
        confidence: 0.85,
        summary: "Names take long to be resolved.".into(),
        evidence: vec![
            Number::new("mean", mean, "ms"),
            Number::new("longest", ms(slowest), "ms"),
            Number::new("look_ups", evidence.per_second(calls), "1/s"),
        ],
        next: Next::probe("dns_latency", about(&who), json!({})),
        who,
    })
}
