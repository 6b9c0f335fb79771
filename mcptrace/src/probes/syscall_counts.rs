//! Which system calls are made, how often, and how many fail.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{SyscallCell, SyscallKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    names::{self, Names, Who},
    options::By,
    plan_of,
};
use crate::{
    kernel::{
        arch::{ARCH, syscall_name},
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
};

/// Processes and calls that are told apart when grouped: 80 bytes each.
const MOST_CELLS: u32 = 16_384;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct SyscallCounts {
    by: By,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
}

/// Calls of one name, and of one process or command when grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Count {
    calls: u64,
    errors: u64,
    interrupted: u64,
}

/// What a row is of: call and group.
type Key = (u32, Who);

impl Probe for SyscallCounts {
    const NAME: &'static str = "syscall_counts";
    const SUMMARY: &'static str = "Which system calls are made, how often, and how many fail?";
    const CATEGORY: &'static str = "syscalls";
    const DETAILS: &'static str = "calls are counted when they are entered, errors when they return with an errno, so a call that never \
        returns (exit) counts. interrupted: a signal came while the call waited; the kernel then restarts it or gives EINTR, which it \
        decides after this count. 32-bit calls have rows of their own (i386:NAME). A call under way when tracing ends has been counted \
        and its error not. A call that seccomp refuses \
        has an error and was never entered. Not seen: what io_uring does without system calls, and vDSO calls (clock_gettime).";
    const NEXT: &'static [&'static str] = &[
        "one call stands out: syscall_latency with options.syscall",
        "many errors of open, openat: file_opens with options.failed_only",
        "whose calls: options.by = comm, pid or container",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"syscall_counts","options":{"by":"comm"},"seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/syscall_counts.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("exit", "sys_exit"), Attach::tracepoint("enter", "sys_enter")];
    const NEEDS: &'static [&'static str] = &["TASK_COMPAT_WORD", "TASK_COMM", "TASK_LEADER"];
    const COUNTS: &'static str = "enter";
    const COST_NS: f64 = 130.0;
    const HAS_DURATION: bool = false;
    const GROUPS: &'static [By] = &[By::Total, By::Pid, By::Comm, By::Container];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        let plain = options.by == By::Total && !context.filter.on_threads;
        plan.globals.push(("PLAIN", u32::from(plain).to_ne_bytes().to_vec()));
        names::group(&mut plan, options.by);
        if options.by != By::Total {
            plan.map_entries.push(("CELLS", MOST_CELLS));
        }
        Ok((Self { by: options.by }, plan))
    }

    fn report(&self, maps: &Maps<'_>, seconds: f64) -> Result<Found, MapError> {
        let counts = match self.by {
            By::Total => totals(&maps.per_cpu("CALLS")?, &maps.per_cpu("ERRORS")?, &maps.per_cpu("INTERRUPTED")?),
            by => grouped(maps.hash("CELLS")?, &Names::read(maps)?, by),
        };
        let delivered = counts.values().map(|count| count.calls).sum();
        Ok(Found { report: Some(Report::Table(table(counts, self.by, seconds))), delivered, notes: Vec::new() })
    }

    fn fields() -> Vec<Field> {
        vec![
            Field::new("calls", "calls"),
            Field::new("errors", "calls"),
            Field::new("interrupted", "calls"),
            Field::new("rate", "calls/s"),
        ]
    }
}

/// What every probe of system calls sets: where this architecture keeps them.
pub(crate) fn syscall_globals() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("REGS_SYSCALL", ARCH.regs_syscall.to_ne_bytes().to_vec()),
        ("REGS_ARGUMENTS", words(&ARCH.regs_arguments)),
        ("REGS_COMPAT_ARGUMENTS", words(&ARCH.regs_compat_arguments)),
        ("REGS_NATIVE_MARK", words(&ARCH.regs_native_mark)),
        ("COMPAT_MASK", ARCH.compat_mask.to_ne_bytes().to_vec()),
        ("RT_SIGRETURN", crate::kernel::arch::syscall_pair("rt_sigreturn")[0].to_ne_bytes().to_vec()),
    ]
}

/// Numbers as the bytes of an array.
pub(super) fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn totals(calls: &[Vec<u64>], errors: &[Vec<u64>], interrupted: &[Vec<u64>]) -> BTreeMap<Key, Count> {
    let sum = |values: &[Vec<u64>], index: usize| values.get(index).map_or(0, |cpus| cpus.iter().sum());
    let count =
        |index| Count { calls: sum(calls, index), errors: sum(errors, index), interrupted: sum(interrupted, index) };
    let all = (0..calls.len()).map(|index| ((index as u32, Who::default()), count(index)));
    all.filter(|(_, count)| *count != Count::default()).collect()
}

fn grouped(cells: BTreeMap<SyscallKey, SyscallCell>, names: &Names, by: By) -> BTreeMap<Key, Count> {
    let mut counts: BTreeMap<Key, Count> = BTreeMap::new();
    for (key, cell) in cells {
        let who = names.group(by, key.pid, &key.comm, &cell.process);
        let count = counts.entry((key.syscall, who)).or_default();
        count.calls += cell.calls;
        count.errors += cell.errors;
        count.interrupted += cell.interrupted;
    }
    counts
}

fn table(counts: BTreeMap<Key, Count>, by: By, seconds: f64) -> Table {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(count.calls));
    let rows: Vec<Row> = counts.into_iter().map(|(key, count)| row(key, &count, seconds)).collect();
    let mut key = names::key_fields(by);
    key.insert(0, "syscall".to_owned());
    Table { key, columns: SyscallCounts::fields(), rows_total: rows.len() as u64, rows, others: None }
}

fn row((syscall, who): Key, count: &Count, seconds: f64) -> Row {
    let mut row = Row::new();
    row.insert("syscall".into(), syscall_name(syscall).into());
    who.insert(&mut row);
    row.insert("calls".into(), count.calls.into());
    row.insert("errors".into(), count.errors.into());
    row.insert("interrupted".into(), count.interrupted.into());
    let rate = if seconds > 0.0 { count.calls as f64 / seconds } else { 0.0 };
    row.insert("rate".into(), ((rate * 10.0).round() / 10.0).into());
    row
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::Process;

    use super::*;

    #[test]
    fn calls_of_all_cpus_add_up_and_rows_are_sorted() {
        let mut calls = vec![vec![0, 0]; 3];
        (calls[0], calls[2]) = (vec![3, 4], vec![100, 1]);
        let errors = vec![vec![0, 0], vec![0, 0], vec![5, 6]];
        let table = table(totals(&calls, &errors, &[]), By::Total, 2.0);
        assert_eq!(table.rows.len(), 2);
        assert_eq!(table.rows[0]["calls"], 101);
        assert_eq!(table.rows[0]["errors"], 11);
        assert_eq!(table.rows[0]["rate"], 50.5);
        assert_eq!(table.rows[1]["syscall"], syscall_name(0));
    }

    #[test]
    fn rows_of_processes_have_their_last_name_and_rows_of_commands_that_of_the_key() {
        let (worker, shell) = (*b"worker\0\0\0\0\0\0\0\0\0\0", *b"bash\0\0\0\0\0\0\0\0\0\0\0\0");
        let cell = SyscallCell { calls: 2, errors: 1, interrupted: 0, process: Process { cgroup: 0, comm: shell } };
        let of = |pid, comm| BTreeMap::from([(SyscallKey { pid, syscall: 0, comm }, cell)]);
        let names = Names::of(&[(7, worker)]);
        let by_pid = table(grouped(of(7, [0; 16]), &names, By::Pid), By::Pid, 1.0);
        assert_eq!((&by_pid.rows[0]["pid"], &by_pid.rows[0]["comm"]), (&7.into(), &"worker".into()));
        let by_comm = table(grouped(of(0, worker), &Names::default(), By::Comm), By::Comm, 1.0);
        assert_eq!((by_comm.rows[0].get("pid"), &by_comm.rows[0]["comm"]), (None, &"worker".into()));
    }
}
