//! Who signals whom.

use aya::maps::MapError;
use mcptrace_wire::{Actor, Signal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Found, OptionError, Probe, actor, options::Transport, parse, plain, plan_of, put};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Row},
    signals,
    text::{comm, quoted},
};

/// Buffer for events: 9,000.
const EVENT_BYTES: u32 = 1 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct Signals;

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only this signal, by name (SIGTERM)
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub signal: Option<String>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for Signals {
    const NAME: &'static str = "signals";
    const SUMMARY: &'static str = "Who sends which signal to whom, and what came of it?";
    const CATEGORY: &'static str = "processes";
    const DETAILS: &'static str = "One event for each signal generated, before its handler runs. origin: user (kill, tgkill, sigqueue), kernel \
        (faults, a child's end, the terminal, out of memory), timer. sender_* is the running thread; it is absent where the kernel or a \
        timer sent the signal while some thread happened to run. For SIGCHLD it is the child, for a fault (SIGSEGV) the thread itself. \
        target_tid is a thread of its process; with group true any thread may take it. result: delivered, ignored (by the target's choice), \
        already_pending (merged with one that waits), or lost for want of memory. Filters pass a signal whose sender or target passes.";
    const NEXT: &'static [&'static str] = &[
        "SIGKILL from the kernel: oom_kills",
        "what became of the target: process_exit",
        "SIGCHLD in numbers: process_exec and process_exit show what is started and ends",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"signals","options":{"signal":"SIGTERM"},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/signals.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("generate", "signal_generate")];
    const NEEDS: &'static [&'static str] =
        &["TASK_COMM", "TASK_TGID", "TASK_PID", "TASK_REAL_PARENT", "TASK_CRED", "CRED_UID", "SIGINFO_CODE"];
    const COUNTS: &'static str = "generate";
    const COST_NS: f64 = 660.0;
    const HAS_DURATION: bool = false;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        if let Some(name) = &options.signal {
            let unknown = || OptionError {
                message: format!("options.signal: there is no signal `{}`", quoted(name)),
                did_you_mean: signals::nearest_to(name),
            };
            let signal = signals::number(name).ok_or_else(unknown)?;
            plan.globals.push(("ONLY_SIGNAL", signal.to_ne_bytes().to_vec()));
        }
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(Found::default())
    }

    fn fields() -> Vec<Field> {
        Self::event_fields()
    }

    fn event_fields() -> Vec<Field> {
        plain(&[
            "time",
            "signal",
            "origin",
            "result",
            "group",
            "sender_pid",
            "sender_tid",
            "sender_comm",
            "sender_uid",
            "sender_container",
            "sender_unit",
            "target_pid",
            "target_tid",
            "target_comm",
            "target_uid",
            "target_container",
            "target_unit",
        ])
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<Signal>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (signal, _) = parse::<Signal>(record)?;
        let (origin, has_sender) = origin(signal.code);
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(signal.time_ns));
        put(&mut row, "signal", signals::name(signal.signal));
        put(&mut row, "origin", origin);
        put(&mut row, "result", result(signal.result));
        put(&mut row, "group", signal.group != 0);
        if has_sender {
            insert(&mut row, "sender", &signal.sender);
        }
        insert(&mut row, "target", &signal.target);
        Some(row)
    }
}

fn insert(row: &mut Row, role: &str, thread: &Actor) {
    put(row, &format!("{role}_pid"), thread.pid);
    put(row, &format!("{role}_tid"), thread.tid);
    put(row, &format!("{role}_comm"), comm(&thread.comm));
    put(row, &format!("{role}_uid"), thread.uid);
    actor::place(thread).insert_as(row, &format!("{role}_"));
}

/// Where a signal comes from, by its `si_code` (include/uapi/asm-generic/siginfo.h), and whether the running thread is its sender.
fn origin(code: i32) -> (&'static str, bool) {
    match code {
        // SI_USER, SI_QUEUE, SI_MESGQ, SI_ASYNCIO, SI_SIGIO, SI_TKILL.
        0 | -1 | -6 => ("user", true),
        -2 => ("timer", false),
        0x80 => ("kernel", false),
        _ => ("kernel", true),
    }
}

/// `TRACE_SIGNAL_*` (include/trace/events/signal.h).
fn result(result: i32) -> &'static str {
    match result {
        0 => "delivered",
        1 => "ignored",
        2 => "already_pending",
        3 => "lost",
        4 => "delivered_without_info",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_and_the_kernel_have_no_sender() {
        assert_eq!(origin(0), ("user", true));
        assert_eq!(origin(-6), ("user", true));
        assert_eq!(origin(-2), ("timer", false));
        assert_eq!(origin(0x80), ("kernel", false));
        assert_eq!(origin(1), ("kernel", true), "CLD_EXITED, SEGV_MAPERR: the thread itself made it happen");
    }
}
