//! Times how long threads sleep until they are woken, by where they went to sleep and who woke them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, LEAST_STACK, START_SLOTS, StackWeight, WAIT_UNASKED, WaitSlot, WakeKey,
    kernel::{add, count, count_cause, duration_passes, load, now, since, task_passes, task_tgid, task_tid},
    stack::{begin_wait, end_wait},
};

/// Offset of `task_struct.__state` (5.14 and later) or `.state`.
#[unsafe(no_mangle)]
static TASK_STATE: Global<u32> = Global::new(0);

/// Since when threads sleep, and where.
#[map]
static WAITS: Array<WaitSlot> = Array::with_max_entries(START_SLOTS, 0);
/// Waits by both stacks.
#[map]
static WAKES: HashMap<WakeKey, StackWeight> = HashMap::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_switch")]
fn switch(ctx: BtfTracePointContext) -> i32 {
    // Prototype and state as in offcpu_stacks.
    let (preempted, prev): (u64, *const u8) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: a BTF pointer to task_struct.
    unsafe {
        let tid = task_tid(prev);
        if tid != 0 && task_passes(prev) {
            let sleeps = preempted & 1 == 0 && load::<u32>(prev, TASK_STATE.load()) != 0;
            let stack = if sleeps { capture(&ctx).map_or_else(|lost| lost as u64, |key| key.id) } else { WAIT_UNASKED };
            begin_wait(&WAITS, tid, now(), stack);
        }
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
fn wakeup_new(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the first argument is a BTF pointer to task_struct (include/trace/events/sched.h).
    begin_wait(&WAITS, unsafe { task_tid(ctx.arg(0)) }, 0, WAIT_UNASKED);
    0
}

#[btf_tracepoint(function = "sched_waking")]
fn waking(ctx: BtfTracePointContext) -> i32 {
    // Prototype: task_struct *p (include/trace/events/sched.h); called by whoever wakes it, unlike sched_wakeup.
    let task: *const u8 = ctx.arg(0);
    // SAFETY: a BTF pointer to task_struct.
    let (passes, tid, pid) = unsafe { (task_passes(task), task_tid(task), task_tgid(task)) };
    if !passes {
        return 0;
    }
    let Some((begin, waiter)) = end_wait(&WAITS, tid) else {
        count(Counter::Seen);
        count(Counter::StartMissing);
        return 0;
    };
    let slept = since(begin, now());
    if waiter == WAIT_UNASKED || !duration_passes(slept) {
        return 0;
    }
    count(Counter::Seen);
    if waiter < LEAST_STACK {
        count_cause(waiter);
        return 0;
    }
    let woken = capture(&ctx)
        .and_then(|waker| weigh(&WakeKey { waiter, waker: waker.id, waiter_pid: pid, waker_pid: waker.pid }, slept));
    if let Err(lost) = woken {
        count(lost);
    }
    0
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn weigh(key: &WakeKey, ns: u64) -> Result<(), Counter> {
    let weight = WAKES.get_ptr_mut(key).or_else(|| {
        // Another CPU may be first (BPF_NOEXIST is 1): then its entry is used.
        let nothing = StackWeight { count: 0, sum: 0 };
        let _ = WAKES.insert(key, nothing, 1);
        WAKES.get_ptr_mut(key)
    });
    let Some(weight) = weight else { return Err(Counter::MapFull) };
    // SAFETY: a pointer into the map's value.
    unsafe {
        add(&raw mut (*weight).count, 1);
        add(&raw mut (*weight).sum, ns);
    }
    Ok(())
}

mcptrace_ebpf::object!();
