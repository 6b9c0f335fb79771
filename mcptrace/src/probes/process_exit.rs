//! What ends, how, and after how long.

use aya::maps::MapError;
use mcptrace_wire::Exit;

use super::{
    Context, Found, OptionError, Probe, actor, options::EventOptions, options::Transport, parse, plain, plan_of, put,
};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Row},
    signals,
    text::comm,
};

/// Buffer for events: 9,000.
const EVENT_BYTES: u32 = 1 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct ProcessExit;

impl Probe for ProcessExit {
    const NAME: &'static str = "process_exit";
    const SUMMARY: &'static str = "Which processes end, how, after how long, and what did they use?";
    const CATEGORY: &'static str = "processes";
    const DETAILS: &'static str = "One event for each process, when its last thread ends; the end of another thread is none. Either exit_code, \
        or signal (what killed it) with core if it dumped one: what its parent gets from wait(2). lifetime_ns is since the fork, an exec in \
        between does not count anew. cpu_ns is the time on CPUs of all its threads as the scheduler keeps it: what the last one ran \
        since the last tick or switch (at most 1 to 10 ms) is not in it yet, so a very short process shows 0. user_ns and system_ns divide \
        it in the proportion that the kernel sampled at its ticks. max_rss_bytes is the peak. \
        min_duration_us filters by lifetime. Kernel threads count as processes.";
    const NEXT: &'static [&'static str] = &[
        "killed by a signal: signals says who sent it; SIGKILL: oom_kills",
        "many short lives: process_exec says what they are and who starts them",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"process_exit","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/process_exit.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("exit", "sched_process_exit")];
    const NEEDS: &'static [&'static str] = &[
        "TASK_COMM",
        "TASK_TGID",
        "TASK_REAL_PARENT",
        "TASK_SIGNAL",
        "TASK_LEADER",
        "TASK_START_TIME",
        "TASK_EXIT_CODE",
        "TASK_THREAD_NODE",
        "TASK_UTIME",
        "TASK_STIME",
        "TASK_RUNTIME",
        "SIGNAL_LIVE",
        "SIGNAL_FLAGS",
        "SIGNAL_EXIT_CODE",
        "SIGNAL_THREADS",
        "SIGNAL_UTIME",
        "SIGNAL_STIME",
        "SIGNAL_RUNTIME",
        "SIGNAL_MAXRSS",
    ];
    const COUNTS: &'static str = "exit";
    const COST_NS: f64 = 1_400.0;
    type Options = EventOptions;

    fn plan(options: &EventOptions, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
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
        let mut fields = plain(&["time"]);
        fields.extend(plain(&actor::FIELDS));
        fields.extend(plain(&["exit_code", "signal", "core"]));
        fields.extend(["lifetime_ns", "cpu_ns", "user_ns", "system_ns"].map(|name| Field::new(name, "ns")));
        fields.push(Field::new("max_rss_bytes", "bytes"));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<Exit>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (exit, _) = parse::<Exit>(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(exit.time_ns));
        actor::insert(&mut row, &exit.actor);
        put(&mut row, "comm", comm(&exit.comm));
        insert_status(&mut row, exit.status);
        let (user, system) = divided(exit.user_ns, exit.system_ns, exit.cpu_ns);
        put(&mut row, "lifetime_ns", exit.lifetime_ns);
        put(&mut row, "cpu_ns", exit.cpu_ns);
        put(&mut row, "user_ns", user);
        put(&mut row, "system_ns", system);
        put(&mut row, "max_rss_bytes", exit.max_rss_pages.saturating_mul(rustix::param::page_size() as u64));
        Some(row)
    }
}

/// What wait(2) gives: a signal and a bit for a core, or a code above them.
fn insert_status(row: &mut Row, status: u32) {
    const CORE: u32 = 0x80;
    match status & 0x7f {
        0 => put(row, "exit_code", status >> 8 & 0xff),
        signal => {
            put(row, "signal", signals::name(signal as i32));
            put(row, "core", status & CORE != 0);
        }
    }
}

/// Exact CPU time, divided between user and kernel mode as it was sampled: what `cputime_adjust` does (kernel/sched/cputime.c).
fn divided(user: u64, system: u64, cpu: u64) -> (u64, u64) {
    let sampled = u128::from(user) + u128::from(system);
    if sampled == 0 {
        return (cpu, 0);
    }
    let system = (u128::from(cpu) * u128::from(system) / sampled) as u64;
    (cpu - system, system)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u32) -> Row {
        let mut row = Row::new();
        insert_status(&mut row, status);
        row
    }

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        assert_eq!(serde_json::json!(status(7 << 8)), serde_json::json!({"exit_code": 7}));
        assert_eq!(serde_json::json!(status(9)), serde_json::json!({"signal": "SIGKILL", "core": false}));
        assert_eq!(serde_json::json!(status(0x8b)), serde_json::json!({"signal": "SIGSEGV", "core": true}));
    }

    #[test]
    fn user_and_system_time_add_up_to_the_exact_one() {
        assert_eq!(divided(0, 0, 500), (500, 0));
        assert_eq!(divided(4_000_000, 0, 4_100_000), (4_100_000, 0));
        assert_eq!(divided(0, 8_000_000, 7_000_000), (0, 7_000_000));
        assert_eq!(divided(4_000_000, 12_000_000, 17_000_000), (4_250_000, 12_750_000));
        assert_eq!(divided(u64::MAX, u64::MAX, u64::MAX), (u64::MAX - u64::MAX / 2, u64::MAX / 2));
    }
}
