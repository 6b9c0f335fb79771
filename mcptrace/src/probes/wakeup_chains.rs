//! Who wakes the waiter.

use std::{collections::BTreeMap, sync::Arc};

use aya::maps::MapError;
use mcptrace_wire::{StackKey, StackWeight, WakeKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks, plan_of,
    stacks::{self, MOST_STACKS},
};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
        stacks::{Named, NamedStack, Stacks},
    },
    report::{Field, Report},
};

/// The probe.
#[derive(Debug)]
pub struct WakeupChains {
    stacks: Stacks,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {}

impl Probe for WakeupChains {
    const NAME: &'static str = "wakeup_chains";
    const SUMMARY: &'static str = "Who wakes threads that wait, and what did they wait for?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Time from the moment a thread goes to sleep to the moment it is woken, summed by its stack and the stack of \
        whoever wakes it. A stack reads from the waiter's outermost function inwards, then `-- woken by COMMAND`, then the waker's functions \
        from the innermost outwards. Wakeups by an interrupt (timers, devices) have `interrupt` for a waker. Filters look at the thread that \
        waits. Sleeps that began before tracing are dropped as start_missing. User stacks are found by frame pointers.";
    const NEXT: &'static [&'static str] = &[
        "the waker itself waits: wakeup_chains with filter.comm = its command",
        "the waker is slow because it computes: cpu_profile with filter.comm; because it gets no CPU: runq_latency with filter.comm",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"wakeup_chains","filter":{"pid":1234},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/wakeup_chains.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("wakeup_new", "sched_wakeup_new"),
        Attach::tracepoint("waking", "sched_waking"),
        Attach::tracepoint("switch", "sched_switch"),
    ];
    const NEEDS: &'static [&'static str] = &["TASK_PID", "TASK_TGID", "TASK_COMM", "TASK_STATE"];
    const COUNTS: &'static str = "waking";
    const COST_NS: f64 = 6_000.0;
    const STACKS: WithStacks = WithStacks::Always;
    type Options = Options;

    fn plan(_options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        stacks::prepare(&mut plan);
        plan.map_entries.push(("WAKES", MOST_STACKS));
        Ok((Self { stacks: Stacks::new(context.filter.pid) }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(&maps.hash("WAKES")?, self.stacks.named()))
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

fn found(wakes: &BTreeMap<WakeKey, StackWeight>, named: Named) -> Found {
    let nameless = NamedStack { unknown: true, ..NamedStack::default() };
    let stack = |id, pid| named.stacks.get(&StackKey { id, pid, zero: 0 }).unwrap_or(&nameless);
    let chains = wakes.iter().map(|(key, weight)| {
        let (waiter, waker) = (stack(key.waiter, key.waiter_pid), stack(key.waker, key.waker_pid));
        let (comm, mut above) = waker_of(waker);
        above.reverse();
        let mut frames = stacks::marked(waiter);
        frames.push(format!("-- woken by {comm}").into());
        frames.append(&mut above);
        (waiter.comm.clone(), frames, waiter.unknown || waker.unknown, weight.sum)
    });
    let report = stacks::report(chains, "ns");
    let delivered = wakes.values().map(|weight| weight.count).sum();
    let notes = named.notes.into_iter().chain(stacks::unknown_note(&report)).collect();
    Found { report: Some(Report::Stacks(report)), delivered, notes }
}

/// The command that wakes and its functions, outermost first; of an interrupt, what is inside it: what it interrupts has no part in it.
fn waker_of(waker: &NamedStack) -> (&str, Vec<Arc<str>>) {
    let frames = stacks::marked(waker);
    match waker.frames.iter().rposition(|frame| is_interrupt(frame)) {
        Some(entry) => ("interrupt", frames[entry..].to_vec()),
        None => (if waker.comm.is_empty() { "[unknown]" } else { &waker.comm }, frames),
    }
}

/// Where the kernel enters an interrupt: arch/x86/include/asm/idtentry.h, arch/arm64/kernel/entry-common.c.
fn is_interrupt(frame: &str) -> bool {
    frame.starts_with("asm_sysvec_")
        || frame.starts_with("asm_common_interrupt")
        || frame == "el1_interrupt"
        || frame == "el0_interrupt"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(comm: &str, frames: &[&str], kernel: usize) -> NamedStack {
        NamedStack {
            comm: comm.into(),
            frames: frames.iter().map(|frame| (*frame).into()).collect(),
            kernel,
            unknown: false,
        }
    }

    fn folded(waker: NamedStack) -> String {
        let key = |id, pid| StackKey { id, pid, zero: 0 };
        let stacks = [(key(20, 1), stack("waits", &["main", "schedule"], 1)), (key(21, 2), waker)];
        let wakes = BTreeMap::from([(
            WakeKey { waiter: 20, waker: 21, waiter_pid: 1, waker_pid: 2 },
            StackWeight { count: 3, sum: 70 },
        )]);
        let found = found(&wakes, Named { stacks: stacks.into(), notes: Vec::new() });
        assert_eq!(found.delivered, 3);
        let Some(Report::Stacks(stacks)) = found.report else { panic!() };
        stacks.folded.to_string()
    }

    #[test]
    fn the_waker_stands_upside_down_behind_the_waiter() {
        let folded = folded(stack("wakes", &["start", "send", "wake"], 1));
        assert_eq!(folded, "waits;main;schedule_[k];-- woken by wakes;wake_[k];send;start 70\n");
    }

    #[test]
    fn who_is_interrupted_wakes_nobody() {
        let folded = folded(stack("innocent", &["start", "asm_sysvec_apic_timer_interrupt", "hrtimer_wakeup"], 2));
        assert!(
            folded.contains(";-- woken by interrupt;hrtimer_wakeup_[k];asm_sysvec_apic_timer_interrupt_[k] 70"),
            "{folded}"
        );
    }
}
