//! Where and why the kernel drops packets.

use std::collections::{BTreeMap, HashMap};

use aya::maps::MapError;
use mcptrace_wire::{DropCell, DropKey, NO_IP_PROTOCOL};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Found, OptionError, Probe, plan_of, sockets::protocol_name};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
        symbols::{self, Question},
    },
    report::{Field, Report, Row, Table},
};

/// The probe.
#[derive(Clone, Debug)]
pub struct PacketDrops {
    /// Names of `enum skb_drop_reason`; empty before 5.17.
    reasons: BTreeMap<u32, String>,
    filtered: bool,
}

/// Options of the probe: none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

impl Probe for PacketDrops {
    const NAME: &'static str = "packet_drops";
    const SUMMARY: &'static str = "Where and why does the kernel drop packets?";
    const CATEGORY: &'static str = "network";
    const DETAILS: &'static str = "Rows by reason, place in the kernel (its function) and protocol. reason is the kernel's own name \
        without SKB_DROP_REASON_ (5.17 and later, ever more precise since): NO_SOCKET is a port where nobody listens, NETFILTER_DROP a firewall \
        rule, SOCKET_RCVBUFF a program that does not read fast enough, TCP_* and IP_* what the protocol does not want. NOT_SPECIFIED has only its \
        place. Some drops are ordinary: TCP_OLD_DATA, OTHERHOST, TCP_OFOMERGE, a raw socket's filter. bytes are of IP packets with their headers, wherever they were dropped; of others what was left of them. \
        ip_protocol is the first header after IPv6's. Not seen: what hardware, drivers' own rings and XDP drop. Filters on threads look at the \
        thread that was running at that moment, which is the sender on loopback, and anybody when packets come from outside.";
    const NEXT: &'static [&'static str] = &[
        "NETFILTER_DROP: the counters of nft list ruleset or iptables -nvL",
        "SOCKET_RCVBUFF: net_traffic and runq_latency of the receiver",
        "TCP reasons: tcp_retransmits, which shows the peer",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"packet_drops","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/packet_drops.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("dropped", "kfree_skb")];
    const NEEDS: &'static [&'static str] = &["SKB_HEAD", "SKB_DATA", "SKB_LEN", "SKB_PROTOCOL", "SKB_NETWORK"];
    const COUNTS: &'static str = "dropped";
    const COST_NS: f64 = 160.0;
    const HAS_DURATION: bool = false;
    type Options = Options;

    fn plan(_options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let told = context.layout.global("HAS_DROP_REASON") == Ok(1);
        let reasons = if told { context.layout.enumerators("skb_drop_reason") } else { BTreeMap::new() };
        Ok((Self { reasons, filtered: context.filter.on_threads }, plan_of::<Self>(context)))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let drops: BTreeMap<DropKey, DropCell> = maps.hash("DROPS")?;
        let places: Vec<u64> = drops.keys().map(|key| key.location).collect();
        let names = if places.is_empty() {
            symbols::Names::default()
        } else {
            symbols::ask(Question { kernel: places, ..Question::default() })
        };
        let mut found = found(&drops, &self.reasons, &names.kernel);
        found.notes.extend(names.notes);
        if self.reasons.is_empty() {
            found.notes.push("this kernel does not tell why it drops (before 5.17): only where".into());
        }
        if self.filtered {
            found.notes.push(
                "filters looked at the thread that was running when a packet was dropped, which may have nothing to do with it".into(),
            );
        }
        Ok(found)
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("packets", "packets"), Field::new("bytes", "bytes")]
    }
}

/// What a row is of: reason, place, protocol, and that within IP.
type Key = (Option<String>, String, String, Option<String>);

fn found(drops: &BTreeMap<DropKey, DropCell>, reasons: &BTreeMap<u32, String>, places: &HashMap<u64, String>) -> Found {
    // Several places of one function are one row.
    let mut groups: BTreeMap<Key, DropCell> = BTreeMap::new();
    for (key, cell) in drops {
        let group = groups.entry(group(key, reasons, places)).or_default();
        group.packets += cell.packets;
        group.bytes += cell.bytes;
    }
    let delivered = groups.values().map(|cell| cell.packets).sum();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, cell)| std::cmp::Reverse(cell.packets));
    let rows: Vec<Row> = groups.into_iter().map(|(key, cell)| row(key, cell)).collect();
    let mut key = ["location", "protocol", "ip_protocol"].map(str::to_owned).to_vec();
    if !reasons.is_empty() {
        key.insert(0, "reason".into());
    }
    let table = Table { key, columns: PacketDrops::fields(), rows_total: rows.len() as u64, rows, others: None };
    Found { report: Some(Report::Table(table)), delivered, notes: Vec::new() }
}

fn group(key: &DropKey, reasons: &BTreeMap<u32, String>, places: &HashMap<u64, String>) -> Key {
    let reason = (!reasons.is_empty()).then(|| reason_name(key.reason, reasons));
    let place = places.get(&key.location).cloned().unwrap_or_else(|| format!("{:#x}", key.location));
    let within = (key.protocol != NO_IP_PROTOCOL).then(|| protocol_name(key.protocol));
    (reason, place, ethertype_name(key.ethertype), within)
}

fn row((reason, place, protocol, within): Key, cell: DropCell) -> Row {
    let mut row = Row::new();
    if let Some(reason) = reason {
        row.insert("reason".into(), reason.into());
    }
    row.insert("location".into(), place.into());
    row.insert("protocol".into(), protocol.into());
    if let Some(within) = within {
        row.insert("ip_protocol".into(), within.into());
    }
    row.insert("packets".into(), cell.packets.into());
    row.insert("bytes".into(), cell.bytes.into());
    row
}

/// The upper half of a reason is a subsystem (`SKB_DROP_REASON_SUBSYS_SHIFT`, include/net/dropreason.h), whose own reasons are numbers
/// of its module.
fn reason_name(reason: u32, reasons: &BTreeMap<u32, String>) -> String {
    let name = reasons.get(&reason).map(|name| name.trim_start_matches("SKB_DROP_REASON_").to_owned());
    name.unwrap_or_else(|| format!("SUBSYSTEM_{}_REASON_{}", reason >> 16, reason & 0xffff))
}

/// `ETH_P_*` (include/uapi/linux/if_ether.h); 0 is a packet of a local protocol such as unix sockets or netlink.
fn ethertype_name(ethertype: u16) -> String {
    match ethertype {
        0 => "none".into(),
        0x0800 => "ipv4".into(),
        0x0806 => "arp".into(),
        0x8100 => "vlan".into(),
        0x86dd => "ipv6".into(),
        0x88cc => "lldp".into(),
        number => format!("{number:#06x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_their_names_and_a_kernel_without_them_has_no_such_column() {
        let key = DropKey { location: 0x10, reason: 3, ethertype: 0x0800, protocol: 17 };
        let cell = DropCell { packets: 7, bytes: 700 };
        // Two places of one function.
        let drops = BTreeMap::from([(key, cell), (DropKey { location: 0x20, ..key }, cell)]);
        let reasons = BTreeMap::from([(3, "SKB_DROP_REASON_NO_SOCKET".to_owned())]);
        let places = HashMap::from([(0x10, "udp_rcv".to_owned()), (0x20, "udp_rcv".to_owned())]);
        let Some(Report::Table(table)) = found(&drops, &reasons, &places).report else { panic!() };
        let row = &table.rows[0];
        assert_eq!((&row["reason"], &row["location"]), (&"NO_SOCKET".into(), &"udp_rcv".into()));
        assert_eq!((&row["protocol"], &row["ip_protocol"]), (&"ipv4".into(), &"udp".into()));
        assert_eq!((table.rows.len(), &row["packets"], &row["bytes"]), (1, &14.into(), &1400.into()));
        let without = found(&drops, &BTreeMap::new(), &HashMap::new());
        let Some(Report::Table(table)) = without.report else { panic!() };
        assert_eq!((table.rows[0].get("reason"), &table.rows[0]["location"]), (None, &"0x10".into()));
        assert!(!table.key.contains(&"reason".to_owned()));
        assert_eq!(without.delivered, 14);
    }

    #[test]
    fn a_modules_reason_shows_its_numbers() {
        assert_eq!(reason_name(0x2_0007, &BTreeMap::new()), "SUBSYSTEM_2_REASON_7");
    }
}
