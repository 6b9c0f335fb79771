//! Who sends and receives how much over the network.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{TrafficCell, TrafficKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    names::{self, Names, Who},
    options::By,
    plan_of,
    sockets::{address, protocol_name},
};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
};

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct NetTraffic {
    by: By,
}

/// Options of the probe.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
    /// Only with this port on either side
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16", range(min = 1))]
    pub port: Option<u16>,
}

/// By process: the question is who.
impl Default for Options {
    fn default() -> Self {
        Self { by: By::Pid, port: None }
    }
}

/// What a row is of: the group, and with whom it talks.
type Key = (Who, TrafficKey);

impl Probe for NetTraffic {
    const NAME: &'static str = "net_traffic";
    const SUMMARY: &'static str = "Who sends and receives how much over the network, and with whom?";
    const CATEGORY: &'static str = "network";
    const DETAILS: &'static str = "Payload that programs give to and take from TCP, UDP and other IP sockets, by process (of one command together with \
        options.by = comm, of one container or unit with container, of all with total), protocol, peer and port. sends and receives are calls that moved it: of UDP one is a datagram, of TCP it may be many packets or a \
        part of one; segments sent again and headers are not in it. port is the lower of both ports, as a rule that of the service; port_of says \
        whose it is. A UDP socket that is not connected shows no peer (0.0.0.0 or ::). What a program peeks at counts when it is taken. Not seen: \
        unix sockets, kernel-internal users, splice and zero-copy out of a TCP socket, calls that fail. Needs 6.4.";
    const NEXT: &'static [&'static str] = &[
        "a peer that should not be there: tcp_connections with filter.pid, to see when it connects",
        "to whom a socket without a peer sends: the script datagram_peers",
        "less than expected: tcp_retransmits, packet_drops",
        "many calls for few bytes: syscall_latency with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"net_traffic","options":{"by":"comm"},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/net_traffic.o");
    const HOOKS: &'static [Attach] = &[
        // Both since 6.4 (commit 6e6eda44b939).
        Attach::tracepoint("sent", "sock_send_length"),
        Attach::tracepoint("received", "sock_recv_length"),
    ];
    const NEEDS: &'static [&'static str] = &[
        "SK_FAMILY",
        "SK_PROTOCOL",
        "SK_LOCAL_V4",
        "SK_REMOTE_V4",
        "SK_LOCAL_PORT",
        "SK_REMOTE_PORT",
        "INET_LOCAL_PORT",
        "TASK_COMM",
        "TASK_LEADER",
    ];
    const COUNTS: &'static str = "sent";
    const COST_NS: f64 = 150.0;
    const HAS_DURATION: bool = false;
    const GROUPS: &'static [By] = &[By::Total, By::Pid, By::Comm, By::Container];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.push(("PORT", u32::from(options.port.unwrap_or(0)).to_ne_bytes().to_vec()));
        names::group(&mut plan, options.by);
        Ok((Self { by: options.by }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(&maps.hash("TRAFFIC")?, &Names::read(maps)?, self.by))
    }

    fn fields() -> Vec<Field> {
        let columns = [("sent_bytes", "bytes"), ("received_bytes", "bytes"), ("sends", "calls"), ("receives", "calls")];
        columns.map(|(name, unit)| Field::new(name, unit)).to_vec()
    }
}

fn found(cells: &BTreeMap<TrafficKey, TrafficCell>, names: &Names, by: By) -> Found {
    let delivered = cells.values().map(|cell| cell.sends + cell.receives).sum();
    let mut groups: Vec<_> = grouped(cells, names, by).into_iter().collect();
    groups.sort_by_key(|(_, cell)| std::cmp::Reverse(cell.sent_bytes + cell.received_bytes));
    let rows: Vec<Row> = groups.iter().map(|(key, cell)| row(key, cell)).collect();
    let mut key = names::key_fields(by);
    key.extend(["protocol", "peer", "port", "port_of"].map(str::to_owned));
    let table = Table { key, columns: NetTraffic::fields(), rows_total: rows.len() as u64, rows, others: None };
    let is_nameless = |key: &TrafficKey| key.remote == [0; 4];
    let note = "a UDP socket that is not connected shows no peer (0.0.0.0 or ::): the script datagram_peers tells to whom it sends";
    let notes = cells.keys().any(is_nameless).then(|| note.to_owned()).into_iter().collect();
    Found { report: Some(Report::Table(table)), delivered, notes }
}

fn grouped(cells: &BTreeMap<TrafficKey, TrafficCell>, names: &Names, by: By) -> BTreeMap<Key, TrafficCell> {
    let mut groups: BTreeMap<Key, TrafficCell> = BTreeMap::new();
    for (key, cell) in cells {
        let who = names.group(by, key.pid, &key.comm, &cell.process);
        // The group is in it by its name: several control groups may be one container.
        let peer = TrafficKey { pid: 0, comm: [0; 16], ..*key };
        let group = groups.entry((who, peer)).or_default();
        group.sent_bytes += cell.sent_bytes;
        group.received_bytes += cell.received_bytes;
        group.sends += cell.sends;
        group.receives += cell.receives;
    }
    groups
}

fn row((who, key): &Key, cell: &TrafficCell) -> Row {
    let mut row = Row::new();
    who.insert(&mut row);
    row.insert("protocol".into(), protocol_name(key.protocol).into());
    row.insert("peer".into(), address(key.remote, key.family).into());
    row.insert("port".into(), key.port.into());
    row.insert("port_of".into(), if key.port_is_local != 0 { "local" } else { "peer" }.into());
    row.insert("sent_bytes".into(), cell.sent_bytes.into());
    row.insert("received_bytes".into(), cell.received_bytes.into());
    row.insert("sends".into(), cell.sends.into());
    row.insert("receives".into(), cell.receives.into());
    row
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::Process;

    use super::*;

    const CURL: [u8; 16] = *b"curl\0\0\0\0\0\0\0\0\0\0\0\0";

    fn key(pid: u32, comm: [u8; 16]) -> TrafficKey {
        let remote = [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0];
        TrafficKey { remote, pid, port: 443, family: 2, protocol: 6, port_is_local: 0, zero: 0, comm }
    }

    fn found_of(keys: &[TrafficKey], by: By) -> Found {
        let cell = TrafficCell {
            sent_bytes: 10,
            received_bytes: 20,
            sends: 1,
            receives: 2,
            process: Process { cgroup: 0, comm: CURL },
        };
        found(&keys.iter().map(|key| (*key, cell)).collect(), &Names::of(&[(8, *b"wget\0\0\0\0\0\0\0\0\0\0\0\0")]), by)
    }

    #[test]
    fn rows_of_processes_have_their_last_name_and_rows_of_commands_that_of_the_key() {
        let table = |keys: &[TrafficKey], by| match found_of(keys, by) {
            Found { report: Some(Report::Table(table)), .. } => table,
            other => panic!("{other:?}"),
        };
        let by_comm = table(&[key(0, CURL)], By::Comm);
        assert_eq!((by_comm.rows.len(), &by_comm.rows[0]["received_bytes"]), (1, &20.into()));
        assert_eq!((&by_comm.rows[0]["peer"], &by_comm.rows[0]["port_of"]), (&"10.0.0.1".into(), &"peer".into()));
        assert_eq!((by_comm.rows[0].get("pid"), &by_comm.key[0]), (None, &"comm".to_owned()));
        let processes = [key(7, [0; 16]), key(8, [0; 16])];
        let rows = table(&processes, By::Pid).rows;
        assert_eq!((rows.len(), &rows[0]["comm"], &rows[1]["comm"]), (2, &"curl".into(), &"wget".into()));
        let of_all = table(&[key(0, [0; 16])], By::Total);
        assert_eq!((of_all.rows[0].get("pid"), &of_all.key[0]), (None, &"protocol".to_owned()));
        assert_eq!(Options::default().by, By::Pid, "who, unless asked for something else");
    }

    #[test]
    fn a_socket_without_a_peer_has_a_note() {
        let nameless = TrafficKey { remote: [0; 4], port: 53, protocol: 17, port_is_local: 1, ..key(7, [0; 16]) };
        let notes = |key| found_of(&[key], By::Pid).notes.len();
        assert_eq!((notes(key(7, [0; 16])), notes(nameless)), (0, 1));
    }
}
