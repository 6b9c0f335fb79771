//! What TCP has to send again, and which connections are reset.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{TcpTrouble, TroubleCell, TroubleEvent, TroubleKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    options::Transport,
    parse, plan_of,
    sockets::{address, end_fields, insert_ends, state_name},
};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
};

/// Buffer for events: 16,384 records.
const EVENT_BYTES: u32 = 1 << 20;

/// What happens, by its number.
const TROUBLES: [(TcpTrouble, &str); 4] = [
    (TcpTrouble::Retransmit, "retransmit"),
    (TcpTrouble::SynackRetransmit, "synack_retransmit"),
    (TcpTrouble::ResetSent, "reset_sent"),
    (TcpTrouble::ResetReceived, "reset_received"),
];

/// The probe.
#[derive(Clone, Debug)]
pub struct TcpRetransmits {
    /// Names of `enum sk_rst_reason`, where this kernel tells why it resets.
    reasons: BTreeMap<u32, String>,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Also list single events
    pub events: bool,
    /// Only with this port on either side
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16", range(min = 1))]
    pub port: Option<u16>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for TcpRetransmits {
    const NAME: &'static str = "tcp_retransmits";
    const SUMMARY: &'static str = "Which peers does TCP have to send to again, and which connections are reset?";
    const CATEGORY: &'static str = "network";
    const DETAILS: &'static str = "Rows by event, peer and state of the connection. retransmit is data sent again (a SYN in SYN_SENT: the \
        peer does not answer at all), synack_retransmit an answer to a SYN sent again (NEW_SYN_RECV: the peer's last word of the handshake does \
        not arrive), reset_sent and reset_received are connections broken off; state NONE is a reset for a packet that belongs to no connection \
        (a port where nobody listens). segments are those sent again: TCP sends several in one piece, and counts them so (TcpRetransSegs of \
        nstat, retransmits of tcp_connections). reason says why a reset was sent, on kernels from 6.10. options.events lists each with its \
        ports. All of this happens in interrupts and timers, not in the thread that owns the connection, so filters on threads are refused; \
        options.port narrows it.";
    const NEXT: &'static [&'static str] = &[
        "retransmits to one peer: its path or itself loses packets; to many: this host's network; packet_drops shows what is lost here",
        "reset_sent in state NONE: something connects to a closed port; tcp_connections with options.failed_only at the peer",
        "SYN_SENT: a firewall that drops, or a host that is down",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"tcp_retransmits","options":{"events":true},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/tcp_retransmits.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("retransmitted", "tcp_retransmit_skb"),
        Attach::tracepoint("answered_again", "tcp_retransmit_synack"),
        Attach::tracepoint("reset_sent", "tcp_send_reset"),
        Attach::tracepoint("reset_received", "tcp_receive_reset"),
    ];
    // The offsets of IPv6 are left out: a kernel without it has no such socket.
    const NEEDS: &'static [&'static str] = &[
        "SK_FAMILY",
        "SK_STATE",
        "SK_PROTOCOL",
        "SK_LOCAL_V4",
        "SK_REMOTE_V4",
        "SK_LOCAL_PORT",
        "SK_REMOTE_PORT",
        "SKB_CB",
        "TCP_CB_SEGMENTS",
    ];
    const COUNTS: &'static str = "retransmitted";
    const COST_NS: f64 = 170.0;
    const HAS_DURATION: bool = false;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        if context.filter.on_threads {
            return Err(OptionError::new(
                "filter: tcp_retransmits happens in interrupts and timers, which belong to no thread; use options.port, or \
                 tcp_connections, which counts segments sent again by connection and process",
            ));
        }
        let mut plan = plan_of::<Self>(context);
        plan.globals.push(("PORT", u32::from(options.port.unwrap_or(0)).to_ne_bytes().to_vec()));
        if options.events {
            plan.globals.push(("SEND_EVENTS", 1_u32.to_ne_bytes().to_vec()));
            plan.event_bytes = EVENT_BYTES;
        }
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { reasons: context.layout.enumerators("sk_rst_reason") }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(maps.hash("COUNTS")?, &self.reasons))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("count", "events"), Field::new("segments", "segments")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = ["time", "event", "state", "reason"].map(|name| Field::new(name, "")).to_vec();
        fields.push(Field::new("segments", "segments"));
        fields.extend(end_fields());
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<TroubleEvent>(record).is_some()
    }

    fn named_row(&self, record: &[u8], clock: &Clock) -> Option<Row> {
        let (event, _) = parse::<TroubleEvent>(record)?;
        let mut row = Row::new();
        row.insert("time".into(), clock.utc(event.time_ns).into());
        row.insert("event".into(), trouble_name(event.trouble).into());
        row.insert("state".into(), state_name(event.state).into());
        insert_reason(&mut row, event.trouble, event.reason, &self.reasons);
        insert_segments(&mut row, event.trouble, event.segments);
        insert_ends(&mut row, &event.ends);
        Some(row)
    }
}

fn trouble_name(trouble: u32) -> &'static str {
    TROUBLES.iter().find(|(known, _)| *known as u32 == trouble).map_or("unknown", |(_, name)| name)
}

fn found(counts: BTreeMap<TroubleKey, TroubleCell>, reasons: &BTreeMap<u32, String>) -> Found {
    let delivered = counts.values().map(|cell| cell.count).sum();
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, cell)| std::cmp::Reverse(cell.count));
    let rows: Vec<Row> = counts.iter().map(|(key, cell)| row(key, *cell, reasons)).collect();
    let table = Table {
        key: ["event", "remote", "state", "reason"].map(str::to_owned).to_vec(),
        columns: TcpRetransmits::fields(),
        rows_total: rows.len() as u64,
        rows,
        others: None,
    };
    Found { report: Some(Report::Table(table)), delivered, notes: Vec::new() }
}

fn row(key: &TroubleKey, cell: TroubleCell, reasons: &BTreeMap<u32, String>) -> Row {
    let mut row = Row::new();
    row.insert("event".into(), trouble_name(key.trouble).into());
    row.insert("remote".into(), address(key.remote, key.family as u16).into());
    row.insert("state".into(), state_name(key.state).into());
    insert_reason(&mut row, key.trouble, key.reason, reasons);
    row.insert("count".into(), cell.count.into());
    insert_segments(&mut row, key.trouble, cell.segments);
    row
}

/// Of resets nothing is sent again.
fn insert_segments(row: &mut Row, trouble: u32, segments: u64) {
    if trouble == TcpTrouble::Retransmit as u32 || trouble == TcpTrouble::SynackRetransmit as u32 {
        row.insert("segments".into(), segments.into());
    }
}

/// Only resets that this host sent have a reason.
fn insert_reason(row: &mut Row, trouble: u32, reason: u32, reasons: &BTreeMap<u32, String>) {
    if trouble == TcpTrouble::ResetSent as u32 && !reasons.is_empty() {
        row.insert("reason".into(), reason_name(reason, reasons).into());
    }
}

fn reason_name(reason: u32, reasons: &BTreeMap<u32, String>) -> String {
    let name = reasons.get(&reason).map(|name| name.trim_start_matches("SK_RST_REASON_").to_owned());
    name.unwrap_or_else(|| format!("REASON_{reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_numbered_as_the_kernel_side_does() {
        for (index, (trouble, name)) in TROUBLES.iter().enumerate() {
            assert_eq!((*trouble as usize, trouble_name(index as u32)), (index, *name));
        }
    }

    #[test]
    fn only_resets_that_were_sent_have_a_reason_and_only_where_the_kernel_tells() {
        let loopback = [u32::from_ne_bytes([127, 0, 0, 1]), 0, 0, 0];
        let key = TroubleKey { remote: loopback, trouble: 2, state: 0, reason: 3, family: 2 };
        let reasons = BTreeMap::from([(3, "SK_RST_REASON_NO_SOCKET".to_owned())]);
        let cell = TroubleCell { count: 7, segments: 9 };
        let known = row(&key, cell, &reasons);
        assert_eq!(
            (&known["reason"], &known["state"], &known["remote"]),
            (&"NO_SOCKET".into(), &"NONE".into(), &"127.0.0.1".into())
        );
        assert_eq!(row(&key, cell, &BTreeMap::new()).get("reason"), None);
        assert_eq!(row(&TroubleKey { trouble: 0, ..key }, cell, &reasons).get("reason"), None);
        assert_eq!(
            (row(&TroubleKey { trouble: 0, ..key }, cell, &reasons)["segments"].as_u64(), known.get("segments")),
            (Some(9), None)
        );
        assert_eq!(row(&TroubleKey { reason: 99, ..key }, cell, &reasons)["reason"], "REASON_99");
    }
}
