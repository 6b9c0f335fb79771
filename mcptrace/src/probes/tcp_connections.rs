//! Connections of TCP: how connects are answered, how long accepts and connections take.

use aya::maps::MapError;
use mcptrace_wire::{Histogram as Kept, NO_DURATION, SIDE_CLIENT, SIDE_SERVER, TcpEvent, TcpStep};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    options::Transport,
    parse, places, plain, plan_of,
    sockets::{end_fields, insert_ends},
    syscall_counts::{syscall_globals, words},
};
use crate::{
    clock::Clock,
    distribution::{Distribution, RELATIVE_ERROR},
    errno,
    kernel::{
        arch::syscall_pair,
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row},
    text::comm,
};

/// Buffer for events: 16,384 records.
const EVENT_BYTES: u32 = 2 << 20;

/// What happens to a connection, by its number.
const STEPS: [(TcpStep, &str); 4] = [
    (TcpStep::Connected, "connect"),
    (TcpStep::Refused, "connect_failed"),
    (TcpStep::Accepted, "accept"),
    (TcpStep::Closed, "close"),
];

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct TcpConnections;

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only what failed
    pub failed_only: bool,
    /// Only with this port on either side
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16", range(min = 1))]
    pub port: Option<u16>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for TcpConnections {
    const NAME: &'static str = "tcp_connections";
    const SUMMARY: &'static str =
        "Who connects to whom over TCP, how long do connects and connections take, which fail?";
    const CATEGORY: &'static str = "network";
    const DETAILS: &'static str = "A histogram per step, and an event for each. connect: from SYN sent to the connection's establishment, \
        about a round trip. connect_failed: from SYN sent to the refusal (ECONNREFUSED), time-out (ETIMEDOUT) or the program's giving up (no \
        errno). accept: how long an established connection waited in the listener's queue until a program took it; long means a slow or busy \
        server. close: the life of the connection, with payload bytes both ways, smoothed round-trip time and segments sent again; time-wait \
        is not part of it. pid and comm are those of the thread that connected or accepted, whoever closes. side is client or server. A \
        connection that began before tracing has events but no duration (dropped as start_missing), and no pid when it closes. Not seen: \
        accepts by io_uring and by 32-bit socketcall (their connections have no pid), MPTCP as a whole (its subflows are). With filters on \
        threads, connections of unknown owner are left out.";
    const NEXT: &'static [&'static str] = &[
        "connect slow or failing: tcp_retransmits, packet_drops",
        "accept slow: runq_latency and offcpu_stacks with the server's filter.pid",
        "many short connections from one process: net_traffic, and whether it could keep them open",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"tcp_connections","options":{"port":443},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/tcp_connections.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("changed", "inet_sock_set_state"), Attach::tracepoint("accepted", "sys_exit")];
    const NEEDS: &'static [&'static str] = &[
        "TASK_COMM",
        "SK_FAMILY",
        "SK_STATE",
        "SK_PROTOCOL",
        "SK_LOCAL_V4",
        "SK_REMOTE_V4",
        "SK_LOCAL_PORT",
        "SK_REMOTE_PORT",
        "SK_FLAGS",
        "SK_ERROR",
        "INET_LOCAL_PORT",
        "TCP_BYTES_SENT",
        "TCP_BYTES_RETRANSMITTED",
        "TCP_BYTES_RECEIVED",
        "TCP_SRTT",
        "TCP_RETRANSMITS",
        "SOCKET_SK",
        "TASK_FILES",
        "FILES_TABLE",
        "TABLE_FILES",
        "TABLE_LENGTH",
        "FILE_PRIVATE",
        "TASK_COMPAT_WORD",
    ];
    const COUNTS: &'static str = "changed";
    const COST_NS: f64 = 1_200.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        plan.globals.push(("ACCEPTS", words(["accept", "accept4"].map(syscall_pair).as_flattened())));
        plan.globals.push(("FAILED_ONLY", u32::from(options.failed_only).to_ne_bytes().to_vec()));
        plan.globals.push(("PORT", u32::from(options.port.unwrap_or(0)).to_ne_bytes().to_vec()));
        if options.failed_only {
            plan.attach.retain(|hook| hook.program != "accepted");
        }
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(&maps.per_cpu("STEPS")?))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("duration", "ns")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = vec![Field::new("time", ""), Field::new("event", ""), Field::new("duration_ns", "ns")];
        fields.extend(plain(&["pid", "comm", "uid"]));
        fields.extend(plain(&places::FIELDS));
        fields.extend(plain(&["side"]));
        fields.extend(end_fields());
        fields.extend(
            [("sent_bytes", "bytes"), ("received_bytes", "bytes"), ("rtt_us", "us"), ("retransmits", "segments")]
                .map(|(name, unit)| Field::new(name, unit)),
        );
        fields.push(Field::new("errno", ""));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse_event(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (event, name) = parse_event(record)?;
        let mut row = Row::new();
        row.insert("time".into(), clock.utc(event.time_ns).into());
        row.insert("event".into(), name.into());
        if event.duration_ns != NO_DURATION {
            row.insert("duration_ns".into(), event.duration_ns.into());
        }
        if event.pid != 0 {
            row.insert("pid".into(), event.pid.into());
            row.insert("comm".into(), comm(&event.comm).into());
            row.insert("uid".into(), event.uid.into());
            places::insert(&mut row, event.cgroup, event.pid);
        }
        match event.side {
            SIDE_CLIENT => _ = row.insert("side".into(), "client".into()),
            SIDE_SERVER => _ = row.insert("side".into(), "server".into()),
            _ => {}
        }
        insert_ends(&mut row, &event.ends);
        if event.step == TcpStep::Closed as u32 {
            row.insert("sent_bytes".into(), event.sent_bytes.into());
            row.insert("received_bytes".into(), event.received_bytes.into());
        }
        if event.step != TcpStep::Refused as u32 {
            row.insert("rtt_us".into(), event.srtt_us.into());
        }
        row.insert("retransmits".into(), event.retransmits.into());
        if event.error != 0 {
            row.insert("errno".into(), errno::name(event.error as i32).into());
        }
        Some(row)
    }
}

fn parse_event(record: &[u8]) -> Option<(TcpEvent, &'static str)> {
    let (event, _) = parse::<TcpEvent>(record)?;
    let (_, name) = STEPS.iter().find(|(step, _)| *step as u32 == event.step)?;
    Some((event, name))
}

/// A series per step: each has its own histogram on every CPU.
fn found(steps: &[Vec<Kept>]) -> Found {
    let mut series = Vec::new();
    for (step, name) in STEPS {
        let mut all = Distribution::default();
        for kept in steps.get(step as usize).into_iter().flatten() {
            all.add(kept);
        }
        if all.count() > 0 {
            series.push(all.series(Row::from_iter([("event".to_owned(), name.into())])));
        }
    }
    let delivered = series.iter().map(|one| one.count).sum();
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["event".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_as_the_kernel_side_does_and_those_without_values_are_left_out() {
        for (index, (step, _)) in STEPS.iter().enumerate() {
            assert_eq!(*step as usize, index);
        }
        let mut steps = vec![vec![Kept::EMPTY; 2]; STEPS.len()];
        (steps[1][0].buckets[7], steps[1][1].buckets[9]) = (2, 3);
        let found = found(&steps);
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((found.delivered, histogram.series.len()), (5, 1));
        assert_eq!(histogram.series[0].key["event"], "connect_failed");
    }
}
