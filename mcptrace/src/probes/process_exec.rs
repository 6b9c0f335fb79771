//! What is being started, and by whom.

use aya::maps::MapError;
use mcptrace_wire::{EXEC_PATH_MAX, Exec};

use super::{
    Context, Found, OptionError, Probe, actor, options::EventOptions, options::Transport, parse, paths, plain, plan_of,
    put,
};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Row},
    secrets::{Secret, masked},
    text::{comm, untrusted},
};

/// Buffer for events: 9,000 of 450 bytes.
const EVENT_BYTES: u32 = 4 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct ProcessExec;

impl Probe for ProcessExec {
    const NAME: &'static str = "process_exec";
    const SUMMARY: &'static str = "Which programs are started, by whom, and with what arguments?";
    const CATEGORY: &'static str = "processes";
    const DETAILS: &'static str = "One event for each successful exec. filename is what was passed to exec (relative to \
        cwd, the working directory, as far up as mounts go; for a script the script, not its interpreter). arguments are read from the new program's stack, at \
        most 2,047 bytes; arguments_bytes says how long they are where some are missing. They are masked: the program's own name and names \
        of options are shown, of everything else the length, until the operator sets MCPTRACE_REVEAL=arguments. comm is the new name; ancestors \
        are those above the parent, nearest first, up to six. \
        Not seen: an exec that fails (syscall_errors), and a fork without an exec.";
    const NEXT: &'static [&'static str] = &[
        "many short programs from one parent: process_exit shows how long each lives",
        "what one of them does: filter by its parent's pid with descendants in any other probe",
        "execs that fail: syscall_errors with options.syscall = execve",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"process_exec","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/process_exec.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("exec", "sched_process_exec")];
    const NEEDS: &'static [&'static str] = &[
        "TASK_COMM",
        "TASK_TGID",
        "TASK_REAL_PARENT",
        "TASK_MM",
        "MM_ARG_START",
        "MM_ARG_END",
        "BPRM_FILENAME",
        "TASK_FS",
        "FS_DENTRY",
        "FS_MOUNT",
        "DENTRY_PARENT",
        "DENTRY_NAME",
        "DENTRY_HASHED",
        "VFSMOUNT_ROOT",
        "MOUNT_VFSMOUNT",
        "MOUNT_PARENT",
        "MOUNT_POINT",
    ];
    const COUNTS: &'static str = "exec";
    const COST_NS: f64 = 4_300.0;
    const HAS_DURATION: bool = false;
    type Options = EventOptions;

    fn plan(options: &EventOptions, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let notes = if Secret::Arguments.is_revealed() { Vec::new() } else { vec![Secret::Arguments.note()] };
        Ok(Found { notes, ..Found::default() })
    }

    fn fields() -> Vec<Field> {
        Self::event_fields()
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time"]);
        fields.extend(plain(&actor::FIELDS));
        fields.extend(plain(&["parent_comm", "ancestors", "filename", "cwd", "arguments"]));
        fields.push(Field::new("arguments_bytes", "bytes"));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse_exec(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (exec, [filename, arguments, directory]) = parse_exec(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(exec.time_ns));
        actor::insert(&mut row, &exec.actor);
        put(&mut row, "parent_comm", comm(&exec.parent_comm));
        put(&mut row, "ancestors", ancestors(&exec));
        put(&mut row, "filename", untrusted(filename, EXEC_PATH_MAX));
        if let Some((path, _)) = paths::of_names(directory, exec.directory_flags) {
            put(&mut row, "cwd", path);
        }
        put(&mut row, "arguments", words(arguments, Secret::Arguments.is_revealed()));
        if arguments.len() < exec.arguments_total as usize {
            put(&mut row, "arguments_bytes", exec.arguments_total);
        }
        Some(row)
    }
}

/// A record, its path, its arguments and its working directory, if they are as long as the record says.
fn parse_exec(record: &[u8]) -> Option<(Exec, [&[u8]; 3])> {
    let (exec, text) = parse::<Exec>(record)?;
    let (filename, text) = text.split_at_checked(exec.filename_len as usize)?;
    let (arguments, directory) = text.split_at_checked(exec.arguments_len as usize)?;
    (directory.len() == exec.directory_len as usize).then_some((exec, [filename, arguments, directory]))
}

/// Who is above the parent, nearest first: number and name of each.
fn ancestors(exec: &Exec) -> Vec<String> {
    let known = exec.ancestors.iter().take_while(|one| one.pid != 0);
    known.map(|one| format!("{} {}", one.pid, comm(&one.comm))).collect()
}

/// The arguments one by one; masked but for the first unless revealed.
fn words(arguments: &[u8], revealed: bool) -> Vec<String> {
    let arguments = arguments.strip_suffix(&[0]).unwrap_or(arguments);
    let word = |(place, argument): (usize, &[u8])| {
        if place == 0 || revealed { untrusted(argument, 512) } else { masked(argument) }
    };
    if arguments.is_empty() {
        return Vec::new();
    }
    arguments.split(|byte| *byte == 0).enumerate().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_masked_unless_revealed() {
        let arguments = b"mysql\0-u\0root\0--password=hunter2\0";
        assert_eq!(words(arguments, true), ["mysql", "-u", "root", "--password=hunter2"]);
        assert_eq!(words(arguments, false), ["mysql", "-u", "<4 bytes>", "--password=<7 bytes>"]);
        assert_eq!(words(b"sh\0\0", false), ["sh", ""]);
        assert!(words(b"", false).is_empty());
    }
}
