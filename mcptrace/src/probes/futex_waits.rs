//! Waits for futexes: locks, condition variables and joins of user space.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::FutexCell;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks,
    names::{self, Names},
    options::{By, Side},
    plan_of,
    stacks::{self, MOST_STACKS, Unit},
    syscall_counts::{syscall_globals, words},
};
use crate::{
    kernel::{
        arch::syscall_pair,
        attached::{Maps, Plan},
        hook::Attach,
        stacks::Stacks,
    },
    report::{Field, Report, Row, Table},
};

/// The probe.
#[derive(Debug)]
pub struct FutexWaits {
    stacks: Stacks,
    by_stack: bool,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whole stacks instead of a table
    pub stacks: bool,
}

impl Probe for FutexWaits {
    const NAME: &'static str = "futex_waits";
    const SUMMARY: &'static str = "Which processes wait for locks of user space, and how long?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Calls of futex that wait (FUTEX_WAIT and kin, futex_wait, futex_waitv), by process: mutexes, condition \
        variables, semaphores, joins and idle thread pools all end up here. A mutex that is free needs no call and is not seen. timed_out: \
        ended by its own time, usually a timer; not_needed: the value had changed before the wait began, a sign of contention. Waits that \
        are longer than the tracing are not in the report, and those that began before are dropped as start_missing. options.stacks shows \
        where in the program they wait, by frame pointers.";
    const NEXT: &'static [&'static str] = &[
        "where in the program: futex_waits with filter.pid and options.stacks",
        "who lets them go on: wakeup_chains with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"futex_waits","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/futex_waits.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("exit", "sys_exit"), Attach::tracepoint("enter", "sys_enter")];
    const NEEDS: &'static [&'static str] = &["TASK_COMPAT_WORD", "TASK_COMM", "TASK_LEADER"];
    const COUNTS: &'static str = "exit";
    const COST_NS: f64 = 830.0;
    const STACKS: WithStacks = WithStacks::IfAsked;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        plan.globals.push(("FUTEX", words(&syscall_pair("futex"))));
        plan.globals.push(("FUTEX_WAITERS", words(&["futex_waitv", "futex_wait"].map(|name| syscall_pair(name)[0]))));
        plan.globals.push(("BY_STACK", u32::from(options.stacks).to_ne_bytes().to_vec()));
        if options.stacks {
            stacks::prepare(&mut plan);
            // In the kernel all of them are in the same few functions of futex.
            plan.globals.push(Side::User.global());
        } else {
            plan.map_entries.push(("FUTEXES", MOST_STACKS));
            names::name_processes(&mut plan);
        }
        Ok((Self { stacks: Stacks::new(context.filter.pid), by_stack: options.stacks }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        if self.by_stack {
            return Ok(stacks::found(&maps.hash("STACKS")?, self.stacks.named(), Unit::Ns));
        }
        Ok(found(&maps.hash("FUTEXES")?, &Names::read(maps)?))
    }

    fn fields() -> Vec<Field> {
        vec![
            Field::new("total_ns", "ns"),
            Field::new("waits", "waits"),
            Field::new("max_ns", "ns"),
            Field::new("timed_out", "waits"),
            Field::new("not_needed", "waits"),
        ]
    }

    fn take(&self, record: &[u8]) -> bool {
        self.stacks.take(record)
    }

    fn bytes(&self) -> usize {
        self.stacks.bytes()
    }
}

fn found(cells: &BTreeMap<u32, FutexCell>, names: &Names) -> Found {
    let mut cells: Vec<_> = cells.iter().collect();
    cells.sort_by_key(|(pid, cell)| (std::cmp::Reverse(cell.waits.total_ns), **pid));
    let table = Table {
        key: names::key_fields(By::Pid),
        columns: FutexWaits::fields(),
        rows_total: cells.len() as u64,
        rows: cells.iter().map(|(pid, cell)| row(**pid, cell, names)).collect(),
        others: None,
    };
    let delivered = cells.iter().map(|(_, cell)| cell.waits.count).sum();
    Found { report: Some(Report::Table(table)), delivered, notes: Vec::new() }
}

fn row(pid: u32, cell: &FutexCell, names: &Names) -> Row {
    let FutexCell { waits, timed_out, not_needed, .. } = *cell;
    let numbers = [
        ("total_ns", waits.total_ns),
        ("waits", waits.count),
        ("max_ns", waits.max_ns),
        ("timed_out", timed_out),
        ("not_needed", not_needed),
    ];
    let mut row = names.process(pid, &cell.process).row();
    row.extend(numbers.map(|(name, number)| (name.to_owned(), number.into())));
    row
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::{Process, Waits};

    use super::*;

    #[test]
    fn the_longest_total_comes_first() {
        let cell = |count, total_ns| FutexCell {
            waits: Waits { count, total_ns, max_ns: 5 },
            timed_out: 1,
            not_needed: 2,
            process: Process { cgroup: 0, comm: *b"app\0\0\0\0\0\0\0\0\0\0\0\0\0" },
        };
        let found = found(&BTreeMap::from([(1, cell(3, 30)), (2, cell(4, 40))]), &Names::default());
        assert_eq!(found.delivered, 7);
        let Some(Report::Table(table)) = found.report else { panic!() };
        let expected = serde_json::json!({"pid": 2, "comm": "app", "total_ns": 40, "waits": 4, "max_ns": 5, "timed_out": 1, "not_needed": 2});
        assert_eq!(serde_json::to_value(&table.rows[0]).unwrap(), expected);
    }
}
