//! What threads wait for.

use aya::maps::MapError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks,
    options::Side,
    plan_of,
    stacks::{self, Unit},
};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
        stacks::Stacks,
    },
    report::Field,
};

/// The probe.
#[derive(Debug)]
pub struct OffcpuStacks {
    stacks: Stacks,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Which sleeps count
    pub state: State,
    /// Which part of a stack is kept
    pub side: Side,
}

/// Which sleeps count
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum State {
    /// All.
    #[default]
    Any,
    /// Those that a signal ends: timers, sockets, pipes, futexes.
    Interruptible,
    /// Those that no signal ends: disks, locks of the kernel.
    Uninterruptible,
}

impl State {
    /// Bits of the state of which one must be set, and of which none may be (include/linux/sched.h; the same since 4.2).
    fn bits(self) -> (u32, u32) {
        const INTERRUPTIBLE: u32 = 1;
        const UNINTERRUPTIBLE: u32 = 2;
        /// `TASK_NOLOAD`: workers of the kernel that wait for work.
        const NOLOAD: u32 = 0x400;
        match self {
            Self::Any => (u32::MAX, 0),
            Self::Interruptible => (INTERRUPTIBLE, 0),
            Self::Uninterruptible => (UNINTERRUPTIBLE, NOLOAD),
        }
    }
}

impl Probe for OffcpuStacks {
    const NAME: &'static str = "offcpu_stacks";
    const SUMMARY: &'static str = "What do threads wait for, and how long?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Time from the moment a thread goes to sleep to the moment it runs again, summed by the stack with which it \
        went to sleep; the wait for a CPU after the wakeup is part of it. Threads that are merely pushed off their CPU are not counted \
        (runq_latency times them). Idle threads of a server sleep all the time: narrow with filter.pid, options.state or \
        filter.min_duration_us. Sleeps that began before tracing are dropped as start_missing, those that have not ended with it are not \
        in the report. User stacks are found by frame pointers.";
    const NEXT: &'static [&'static str] = &[
        "who ends these waits: wakeup_chains with filter.pid",
        "waits in futex: futex_waits; in a lock of the kernel: kernel_locks; in block or disk functions: block_latency",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"offcpu_stacks","filter":{"min_duration_us":1000},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/offcpu_stacks.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("wakeup_new", "sched_wakeup_new"), Attach::tracepoint("switch", "sched_switch")];
    const NEEDS: &'static [&'static str] = &["TASK_PID", "TASK_TGID", "TASK_COMM", "TASK_STATE"];
    const COUNTS: &'static str = "switch";
    const COST_NS: f64 = 2_800.0;
    const STACKS: WithStacks = WithStacks::Always;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        stacks::prepare(&mut plan);
        let (states, not) = options.state.bits();
        plan.globals.push(("STATES", states.to_ne_bytes().to_vec()));
        plan.globals.push(("STATES_NOT", not.to_ne_bytes().to_vec()));
        plan.globals.push(options.side.global());
        Ok((Self { stacks: Stacks::new(context.filter.pid) }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(stacks::found(&maps.hash("STACKS")?, self.stacks.named(), Unit::Ns))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("value", "ns")]
    }

    fn take(&self, record: &[u8]) -> bool {
        self.stacks.take(record)
    }

    fn bytes(&self) -> usize {
        self.stacks.bytes()
    }
}
