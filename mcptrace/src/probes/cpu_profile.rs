//! Where CPU time is spent.

use aya::maps::MapError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks,
    options::{Side, Transport},
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

/// Samples a second and CPU: not in step with what runs a hundred times a second.
const HERTZ: u32 = 99;
/// The most.
const MOST_HERTZ: u32 = 1000;

/// The probe.
#[derive(Debug)]
pub struct CpuProfile {
    stacks: Stacks,
}

/// Options of the probe.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Samples a second and CPU
    #[schemars(range(min = 1, max = MOST_HERTZ))]
    pub hertz: u32,
    /// Which part of a stack is kept
    pub side: Side,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Default for Options {
    fn default() -> Self {
        Self { hertz: HERTZ, side: Side::Both, transport: None }
    }
}

impl Probe for CpuProfile {
    const NAME: &'static str = "cpu_profile";
    const SUMMARY: &'static str = "Where is CPU time spent, by function?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Looks at every CPU so many times a second and takes the stack of what runs there, in the kernel and in \
        user space; idle CPUs are not counted. A function's share of samples is its share of CPU time: self is time in its own code, total \
        includes what it calls. A few hundred samples tell shares within some percent. User stacks are found by frame pointers: code \
        compiled without them shows its innermost function and then nothing or nonsense. Names come from symbol tables: inlined functions \
        count for the one they are in, stripped files show as [file], those gone with their process as [gone]; unknown_percent is the share of samples that are in code without a \
        name. Samples that fall into another tracing program are not taken.";
    const NEXT: &'static [&'static str] = &[
        "little CPU time and slow all the same: runq_latency, then syscall_latency with filter.pid",
        "much time in the kernel: syscall_counts with filter.pid and options.by = pid, to see what asks for it",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"cpu_profile","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/cpu_profile.o");
    const HOOKS: &'static [Attach] = &[Attach::clock("sample", HERTZ)];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "sample";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 2_600.0;
    const STACKS: WithStacks = WithStacks::Always;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let hertz = options.hertz;
        let mut plan = plan_of::<Self>(context);
        plan.attach = vec![Attach::clock("sample", hertz)];
        plan.transport = Transport::resolve(options.transport, plan.transport);
        stacks::prepare(&mut plan);
        plan.globals.push(options.side.global());
        Ok((Self { stacks: Stacks::new(context.filter.pid) }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(stacks::found(&maps.hash("STACKS")?, self.stacks.named(), Unit::Samples))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("value", "samples")]
    }

    fn take(&self, record: &[u8]) -> bool {
        self.stacks.take(record)
    }

    fn bytes(&self) -> usize {
        self.stacks.bytes()
    }
}
