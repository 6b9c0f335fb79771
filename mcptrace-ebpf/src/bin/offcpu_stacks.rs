//! Times how long threads sleep, by the stack with which they went to sleep.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, LEAST_STACK, START_SLOTS, StackKey, WAIT_UNASKED, WaitSlot,
    kernel::{count, count_cause, duration_passes, load, now, since, task_passes, task_tgid, task_tid},
    stack::{begin_wait, end_wait, weigh},
};

/// Offset of `task_struct.__state` (5.14 and later) or `.state`.
#[unsafe(no_mangle)]
static TASK_STATE: Global<u32> = Global::new(0);
/// Which bits of the state are asked for, and which must not be set.
#[unsafe(no_mangle)]
static STATES: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static STATES_NOT: Global<u32> = Global::new(0);

/// Since when threads sleep, and where.
#[map]
static WAITS: Array<WaitSlot> = Array::with_max_entries(START_SLOTS, 0);

#[btf_tracepoint(function = "sched_switch")]
fn switch(ctx: BtfTracePointContext) -> i32 {
    // Prototype: bool preempt, task_struct *prev, task_struct *next, and from 5.18 on unsigned int prev_state
    // (include/trace/events/sched.h); the state is read from the task, as in runq_latency.
    let now = now();
    let (preempted, prev, next): (u64, *const u8, *const u8) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: BTF pointers to task_struct.
    unsafe {
        let tid = task_tid(prev);
        if tid != 0 && task_passes(prev) {
            let stack = if preempted & 1 == 0 && is_asked_for(prev) { stack(&ctx) } else { WAIT_UNASKED };
            begin_wait(&WAITS, tid, now, stack);
        }
        switched_in(next, now);
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
fn wakeup_new(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the first argument is a BTF pointer to task_struct (include/trace/events/sched.h).
    begin_wait(&WAITS, unsafe { task_tid(ctx.arg(0)) }, 0, WAIT_UNASKED);
    0
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();

#[inline(always)]
unsafe fn is_asked_for(task: *const u8) -> bool {
    // SAFETY: the caller passes a BTF pointer to task_struct.
    let state: u32 = unsafe { load(task, TASK_STATE.load()) };
    state & STATES.load() != 0 && state & STATES_NOT.load() == 0
}

#[inline(always)]
fn stack(ctx: &BtfTracePointContext) -> u64 {
    match capture(ctx) {
        Ok(key) => key.id,
        Err(lost) => lost as u64,
    }
}

#[inline(always)]
unsafe fn switched_in(next: *const u8, now: u64) {
    // SAFETY: the caller passes a BTF pointer to task_struct.
    let (tid, passes) = unsafe { (task_tid(next), task_passes(next)) };
    // The idle thread waits for nothing.
    if tid == 0 || !passes {
        return;
    }
    let Some((begin, stack)) = end_wait(&WAITS, tid) else {
        count(Counter::Seen);
        count(Counter::StartMissing);
        return;
    };
    let slept = since(begin, now);
    if stack == WAIT_UNASKED || !duration_passes(slept) {
        return;
    }
    count(Counter::Seen);
    if stack < LEAST_STACK {
        count_cause(stack);
        return;
    }
    // SAFETY: as above.
    let key = StackKey { id: stack, pid: unsafe { task_tgid(next) }, zero: 0 };
    if let Err(lost) = weigh(&key, slept) {
        count(lost);
    }
}

mcptrace_ebpf::object!();
