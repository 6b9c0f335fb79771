//! Which system calls fail, with which errno, for whom.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{ErrorCount, ErrorKey, FailedCall};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, actor,
    options::{self, By, Transport},
    parse, places, plain, plan_of, put,
    syscall_counts::syscall_globals,
};
use crate::{
    clock::Clock,
    errno,
    kernel::{
        arch::syscall_name,
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
    text::comm,
};

/// Calls, errnos and commands that are told apart: 40 bytes each.
const MOST_KEYS: u32 = 16_384;
/// Buffer for events: 24,000.
const EVENT_BYTES: u32 = 2 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct SyscallErrors {
    by: By,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only this system call, by name (openat, i386:open)
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub syscall: Option<String>,
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
    /// Also list single events
    pub events: bool,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for SyscallErrors {
    const NAME: &'static str = "syscall_errors";
    const SUMMARY: &'static str = "Which system calls fail, with which errno, and for whom?";
    const CATEGORY: &'static str = "syscalls";
    const DETAILS: &'static str = "A row for each call, errno and command (with by = pid: and process). Many errors are a program's normal way: \
        ENOENT of a search path, EAGAIN of a socket that does not block, ECHILD, ETIMEDOUT of futex. EACCES, EPERM, EMFILE, ENOSPC, ENOMEM, \
        EIO and ECONNREFUSED seldom are. errno `interrupted`: a signal came while the call waited; the kernel then restarts it or gives \
        EINTR. With events each failure is listed as well, with the first three arguments as numbers. Not seen: errors of io_uring, and what \
        a library fails at without a system call.";
    const NEXT: &'static [&'static str] = &[
        "ENOENT or EACCES of opens: file_opens with options.failed_only shows the paths",
        "EPERM or EACCES: capability_checks with options.failed_only",
        "which process of a command: options.by = pid; when, and with what arguments: options.events",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"syscall_errors","options":{"by":"pid"},"seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/syscall_errors.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("exit", "sys_exit")];
    const NEEDS: &'static [&'static str] = &["TASK_COMPAT_WORD", "TASK_COMM"];
    const COUNTS: &'static str = "exit";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 130.0;
    const GROUPS: &'static [By] = &[By::Total, By::Pid];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        plan.globals.push(("BY_PROCESS", u32::from(options.by == By::Pid).to_ne_bytes().to_vec()));
        plan.map_entries.push(("ERRORS", MOST_KEYS));
        plan.places = options.by == By::Pid;
        if let Some(name) = &options.syscall {
            plan.globals.push(("ONLY", options::syscall(name)?.to_ne_bytes().to_vec()));
        }
        if options.events {
            plan.globals.push(("SEND", 1_u32.to_ne_bytes().to_vec()));
            plan.event_bytes = EVENT_BYTES;
        }
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { by: options.by }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let errors: BTreeMap<ErrorKey, ErrorCount> = maps.hash("ERRORS")?;
        let delivered = errors.values().map(|one| one.count).sum();
        Ok(Found { report: Some(Report::Table(table(&errors, self.by))), delivered, notes: Vec::new() })
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("errors", "calls")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "syscall", "errno", "arguments"]);
        fields.extend(plain(&actor::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<FailedCall>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (failed, _) = parse::<FailedCall>(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(failed.time_ns));
        put(&mut row, "syscall", syscall_name(failed.syscall));
        put(&mut row, "errno", errno_name(failed.errno));
        put(&mut row, "arguments", failed.arguments.map(|argument| format!("{argument:#x}")).to_vec());
        actor::insert(&mut row, &failed.actor);
        Some(row)
    }
}

/// `ERESTARTSYS`, `ERESTARTNOINTR`, `ERESTARTNOHAND` and `ERESTART_RESTARTBLOCK` (include/linux/errno.h) ask for a restart. Other codes
/// from 512 on are errors that some driver or file system gives to programs as they are, such as 524, `ENOTSUPP`.
fn errno_name(errno: u32) -> String {
    if matches!(errno, 512 | 513 | 514 | 516) { "interrupted".to_owned() } else { errno::name(errno as i32) }
}

fn table(errors: &BTreeMap<ErrorKey, ErrorCount>, by: By) -> Table {
    // The several codes that ask for a restart are one row.
    let mut merged: BTreeMap<Key, ErrorCount> = BTreeMap::new();
    for (key, one) in errors {
        let all = merged.entry((key.syscall, errno_name(key.errno), key.pid, comm(&key.comm))).or_default();
        *all = ErrorCount { count: all.count + one.count, cgroup: one.cgroup };
    }
    let mut merged: Vec<_> = merged.into_iter().filter(|(_, all)| all.count > 0).collect();
    merged.sort_by_key(|(_, all)| std::cmp::Reverse(all.count));
    let rows: Vec<Row> = merged.into_iter().map(|(key, all)| row(key, all, by)).collect();
    let mut key = vec!["syscall".to_owned(), "errno".to_owned(), "comm".to_owned()];
    if by == By::Pid {
        key.push("pid".to_owned());
        key.extend(places::FIELDS.map(str::to_owned));
    }
    Table { key, columns: SyscallErrors::fields(), rows_total: rows.len() as u64, rows, others: None }
}

/// What a row is of: call, errno, process, command.
type Key = (u32, String, u32, String);

fn row((syscall, errno, pid, comm): Key, all: ErrorCount, by: By) -> Row {
    let mut row = Row::new();
    put(&mut row, "syscall", syscall_name(syscall));
    put(&mut row, "errno", errno);
    put(&mut row, "comm", comm);
    if by == By::Pid {
        put(&mut row, "pid", pid);
        places::insert(&mut row, all.cgroup, pid);
    }
    put(&mut row, "errors", all.count);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_ask_for_a_restart_are_one_row() {
        let key = |errno, pid| ErrorKey { syscall: 0, errno, pid, zero: 0, comm: *b"worker\0\0\0\0\0\0\0\0\0\0" };
        let count = |count| ErrorCount { count, cgroup: 0 };
        let errors = BTreeMap::from([(key(2, 0), count(5)), (key(512, 0), count(3)), (key(514, 0), count(4))]);
        let table = table(&errors, By::Total);
        assert_eq!(table.rows.len(), 2);
        assert_eq!((&table.rows[0]["errno"], &table.rows[0]["errors"]), (&"interrupted".into(), &7.into()));
        assert_eq!((&table.rows[1]["errno"], table.rows[1].get("pid")), (&"ENOENT".into(), None));
    }

    #[test]
    fn other_codes_of_the_kernels_own_are_errors() {
        for errno in [515, 517, 524] {
            assert_ne!(errno_name(errno), "interrupted", "{errno}");
        }
    }
}
