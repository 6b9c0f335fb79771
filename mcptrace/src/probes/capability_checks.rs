//! What privilege is used and refused.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{CapabilityCheck, CapabilityCount, CapabilityKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, actor,
    options::{By, Transport},
    parse, places, plain, plan_of, put,
};
use crate::{
    capabilities::name,
    clock::Clock,
    errno,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
    text::comm,
};

/// Capabilities and commands that are told apart: 40 bytes each.
const MOST_KEYS: u32 = 8192;
/// Buffer for events: 32,000.
const EVENT_BYTES: u32 = 2 << 20;

/// Came with 6.14.
const TRACEPOINT: &str = "cap_capable";

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct CapabilityChecks {
    by: By,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only what failed
    pub failed_only: bool,
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
    /// Also list single events
    pub events: bool,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for CapabilityChecks {
    const NAME: &'static str = "capability_checks";
    const SUMMARY: &'static str = "Which capabilities are used and refused, and by whom?";
    const CATEGORY: &'static str = "security";
    const DETAILS: &'static str = "A row for each capability and command (with by = pid: and process): how many checks found it and how many did not. \
        Not every check matters: the kernel asks for some (CAP_SYS_ADMIN while memory is reserved, CAP_SYS_RESOURCE, CAP_DAC_*) only to \
        choose its way, and a refusal then fails nothing; a refusal next to an EPERM or EACCES in syscall_errors does. One action may check \
        a capability several times. What is never granted here need not be held by a service. Before 6.14, which brought the tracepoint, it attaches to the function cap_capable: there the kernel must have ftrace.";
    const NEXT: &'static [&'static str] = &[
        "what failed for it: syscall_errors with filter.pid",
        "what was done with it: privileged_actions",
        "when, and by which process: options.by = pid, options.events",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"capability_checks","options":{"failed_only":true},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/capability_checks.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("check", TRACEPOINT),
        // Called by pointer, so never inlined.
        Attach::kernel_return("checked", "cap_capable").alternative(),
    ];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "check";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 100.0;
    const GROUPS: &'static [By] = &[By::Total, By::Pid];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        if !context.layout.has_tracepoint(TRACEPOINT) {
            plan.counts = "checked";
        }
        plan.globals.push(("FAILED_ONLY", u32::from(options.failed_only).to_ne_bytes().to_vec()));
        plan.globals.push(("BY_PROCESS", u32::from(options.by == By::Pid).to_ne_bytes().to_vec()));
        plan.map_entries.push(("CHECKS", MOST_KEYS));
        plan.places = options.by == By::Pid;
        if options.events {
            plan.globals.push(("SEND", 1_u32.to_ne_bytes().to_vec()));
            plan.event_bytes = EVENT_BYTES;
        }
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { by: options.by }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let checks: BTreeMap<CapabilityKey, CapabilityCount> = maps.hash("CHECKS")?;
        let delivered = checks.values().map(|count| count.granted + count.refused).sum();
        Ok(Found { report: Some(Report::Table(table(&checks, self.by))), delivered, notes: Vec::new() })
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("checks", "checks"), Field::new("granted", "checks"), Field::new("refused", "checks")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "capability", "result"]);
        fields.extend(plain(&actor::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<CapabilityCheck>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (check, _) = parse::<CapabilityCheck>(record)?;
        let result =
            if check.result == 0 { "granted".to_owned() } else { errno::name(check.result.wrapping_neg() as i32) };
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(check.time_ns));
        put(&mut row, "capability", name(check.capability));
        put(&mut row, "result", result);
        actor::insert(&mut row, &check.actor);
        Some(row)
    }
}

fn table(checks: &BTreeMap<CapabilityKey, CapabilityCount>, by: By) -> Table {
    let mut checks: Vec<_> = checks.iter().filter(|(_, count)| count.granted + count.refused > 0).collect();
    checks.sort_by_key(|(_, count)| std::cmp::Reverse(count.granted + count.refused));
    let rows: Vec<Row> = checks.into_iter().map(|(key, count)| row(key, *count, by)).collect();
    let mut key = vec!["capability".to_owned(), "comm".to_owned()];
    if by == By::Pid {
        key.push("pid".to_owned());
        key.extend(places::FIELDS.map(str::to_owned));
    }
    Table { key, columns: CapabilityChecks::fields(), rows_total: rows.len() as u64, rows, others: None }
}

fn row(key: &CapabilityKey, count: CapabilityCount, by: By) -> Row {
    let mut row = Row::new();
    put(&mut row, "capability", name(key.capability));
    put(&mut row, "comm", comm(&key.comm));
    if by == By::Pid {
        put(&mut row, "pid", key.pid);
        places::insert(&mut row, count.cgroup, key.pid);
    }
    put(&mut row, "checks", count.granted + count.refused);
    put(&mut row, "granted", count.granted);
    put(&mut row, "refused", count.refused);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_checked_comes_first() {
        let key = |capability| CapabilityKey { capability, pid: 0, comm: [0; 16] };
        let checks = BTreeMap::from([
            (key(1), CapabilityCount { granted: 1, refused: 0, cgroup: 0 }),
            (key(21), CapabilityCount { granted: 2, refused: 3, cgroup: 0 }),
        ]);
        let table = table(&checks, By::Total);
        assert_eq!((&table.rows[0]["capability"], &table.rows[0]["checks"]), (&"CAP_SYS_ADMIN".into(), &5.into()));
    }
}
