//! Times how long runnable threads wait for a CPU.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, GroupKey, Histogram, NamedHistogram, START_SLOTS,
    kernel::{
        count, duration_passes, load, now, record, record_shared, since, start, take_start, task_passes, task_tid,
    },
    names::{is_grouped, process, task_group},
};

/// Offset of `task_struct.__state` (5.14 and later) or `.state`.
#[unsafe(no_mangle)]
static TASK_STATE: Global<u32> = Global::new(0);

/// When each thread became runnable.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// The histogram of each CPU; of everything that has no group of its own, when grouped.
#[map]
static BY_CPU: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(1, 0);
/// The histograms of groups. Made with one entry unless grouped.
#[map]
static GROUPS: HashMap<GroupKey, NamedHistogram> = HashMap::with_max_entries(1, 0);
/// A new group, all zeros: too large for the stack.
#[map]
static EMPTY: PerCpuArray<NamedHistogram> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_wakeup")]
fn wakeup(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the first argument is a BTF pointer to task_struct (include/trace/events/sched.h).
    unsafe { runnable(ctx.arg(0)) };
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
fn wakeup_new(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as for sched_wakeup.
    unsafe { runnable(ctx.arg(0)) };
    0
}

#[btf_tracepoint(function = "sched_switch")]
fn switch(ctx: BtfTracePointContext) -> i32 {
    // Prototype: bool preempt, task_struct *prev, task_struct *next, and from 5.18 on unsigned int prev_state
    // (include/trace/events/sched.h; added by commit fa2c3254d7cf). The state is read from the task, which all kernels allow:
    // in this tracepoint it has not changed since.
    let now = now();
    let (preempted, prev, next): (u64, *const u8, *const u8) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: BTF pointers to task_struct.
    unsafe {
        let tid = task_tid(prev);
        // TASK_RUNNING is 0 (include/linux/sched.h). A preempted thread is runnable whatever its state says.
        let is_runnable = preempted & 1 != 0 || load::<u32>(prev, TASK_STATE.load()) == 0;
        if tid != 0 && is_runnable && task_passes(prev) {
            start(&STARTS, tid, now);
        }
        switched_in(next, now);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
unsafe fn runnable(task: *const u8) {
    // SAFETY: the caller passes a BTF pointer to task_struct.
    unsafe {
        if task_passes(task) {
            start(&STARTS, task_tid(task), now());
        }
    }
}

#[inline(always)]
unsafe fn switched_in(next: *const u8, now: u64) {
    // SAFETY: the caller passes a BTF pointer to task_struct.
    let tid = unsafe { task_tid(next) };
    // The idle thread waits for nothing.
    if tid == 0 {
        return;
    }
    let Some(begin) = take_start(&STARTS, tid) else {
        // SAFETY: as above.
        if unsafe { task_passes(next) } {
            count(Counter::Seen);
            count(Counter::StartMissing);
        }
        return;
    };
    let waited = since(begin, now);
    if !duration_passes(waited) {
        return;
    }
    count(Counter::Seen);
    // SAFETY: as above.
    if is_grouped() && unsafe { recorded_in_group(next, waited) } {
        return;
    }
    if let Some(histogram) = BY_CPU.get_ptr_mut(0) {
        // SAFETY: a pointer into this CPU's value of the map, which one program alone writes.
        unsafe { record(histogram, waited) };
    }
}

/// Adds to the histogram of the task's group; false if there is no room for another group.
#[inline(always)]
unsafe fn recorded_in_group(task: *const u8, waited: u64) -> bool {
    // SAFETY: the caller passes a BTF pointer to task_struct.
    let key = unsafe { task_group(task) };
    // SAFETY: as above.
    let Some(group) = (unsafe { group(&key, task) }) else { return false };
    // SAFETY: a pointer into the map's value.
    unsafe { record_shared(&raw mut (*group).histogram, waited) };
    true
}

#[inline(always)]
unsafe fn group(key: &GroupKey, task: *const u8) -> Option<*mut NamedHistogram> {
    if let Some(group) = GROUPS.get_ptr_mut(key) {
        return Some(group);
    }
    let empty = EMPTY.get_ptr_mut(0)?;
    // SAFETY: pointers into map values; the caller passes a task. Only the process of an empty group is ever written.
    unsafe {
        (*empty).process = process(task);
        // Another CPU may have been first (BPF_NOEXIST is 1): then its group is used.
        let empty: &NamedHistogram = &*empty;
        let _ = GROUPS.insert(key, empty, 1);
    }
    GROUPS.get_ptr_mut(key)
}

mcptrace_ebpf::object!();
