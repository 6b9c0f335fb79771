//! Times how long threads run at a stretch, and counts how they leave their CPU.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, GroupKey, Slices,
    kernel::{add, count, duration_passes, load, now, record, record_shared, task_passes, task_tid},
    names::{is_grouped, process, task_group},
};

/// Offset of `task_struct.__state` (5.14 and later) or `.state`.
#[unsafe(no_mangle)]
static TASK_STATE: Global<u32> = Global::new(0);

/// When each CPU began to run its thread, and which.
#[map]
static RUNNING: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);
/// The slices of each CPU; of everything that has no group of its own, when grouped.
#[map]
static BY_CPU: PerCpuArray<Slices> = PerCpuArray::with_max_entries(1, 0);
/// The slices of groups. Made with one entry unless grouped.
#[map]
static GROUPS: HashMap<GroupKey, Slices> = HashMap::with_max_entries(1, 0);
/// A new group, all zeros: too large for the stack.
#[map]
static EMPTY: PerCpuArray<Slices> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_switch")]
fn switch(ctx: BtfTracePointContext) -> i32 {
    // Prototype: bool preempt, task_struct *prev, task_struct *next, and from 5.18 on unsigned int prev_state
    // (include/trace/events/sched.h). The state is read from the task, which all kernels allow: it has not changed since.
    let now = now();
    let (preempted, prev, next): (u64, *const u8, *const u8) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let Some(running) = RUNNING.get_ptr_mut(0) else { return 0 };
    // SAFETY: a pointer into this CPU's value of the map; BTF pointers to task_struct.
    unsafe {
        let [since, tid] = *running;
        *running = [now, u64::from(task_tid(next))];
        let left = task_tid(prev);
        // The idle thread runs when nobody does.
        if left == 0 || !task_passes(prev) {
            return 0;
        }
        if tid != u64::from(left) {
            count(Counter::Seen);
            count(Counter::StartMissing);
            return 0;
        }
        let ran = now.wrapping_sub(since);
        if !duration_passes(ran) {
            return 0;
        }
        count(Counter::Seen);
        // TASK_RUNNING is 0 (include/linux/sched.h). A preempted thread could go on, whatever its state says.
        let voluntary = preempted & 1 == 0 && load::<u32>(prev, TASK_STATE.load()) != 0;
        ended(prev, ran, voluntary);
    }
    0
}

#[btf_tracepoint(function = "sched_migrate_task")]
fn migrate(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct task_struct *p, int dest_cpu (include/trace/events/sched.h).
    let task: *const u8 = ctx.arg(0);
    // SAFETY: a BTF pointer to task_struct.
    unsafe {
        if !task_passes(task) {
            return 0;
        }
        if let Some(group) = group_of(task) {
            add(&raw mut (*group).migrations, 1);
        } else if let Some(slices) = BY_CPU.get_ptr_mut(0) {
            (*slices).migrations += 1;
        }
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

/// Counts a slice that has ended.
#[inline(always)]
unsafe fn ended(task: *const u8, ran: u64, voluntary: bool) {
    // SAFETY: the caller passes a task; pointers into values of maps, one of them this CPU's own.
    unsafe {
        if let Some(group) = group_of(task) {
            record_shared(&raw mut (*group).on_cpu, ran);
            add(if voluntary { &raw mut (*group).voluntary } else { &raw mut (*group).involuntary }, 1);
        } else if let Some(slices) = BY_CPU.get_ptr_mut(0) {
            record(&raw mut (*slices).on_cpu, ran);
            if voluntary {
                (*slices).voluntary += 1;
            } else {
                (*slices).involuntary += 1;
            }
        }
    }
}

/// The group of a task; none if they are not grouped or there is no room for another.
#[inline(always)]
unsafe fn group_of(task: *const u8) -> Option<*mut Slices> {
    if !is_grouped() {
        return None;
    }
    // SAFETY: the caller passes a task; only the process of an empty group is ever written.
    unsafe {
        let key = task_group(task);
        if let Some(group) = GROUPS.get_ptr_mut(key) {
            return Some(group);
        }
        let empty = EMPTY.get_ptr_mut(0)?;
        (*empty).process = process(task);
        // Another CPU may have been first (BPF_NOEXIST is 1): then its group is used.
        let empty: &Slices = &*empty;
        let _ = GROUPS.insert(key, empty, 1);
        GROUPS.get_ptr_mut(key)
    }
}

mcptrace_ebpf::object!();
