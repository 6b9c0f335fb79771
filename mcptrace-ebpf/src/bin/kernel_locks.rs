//! Times how long threads wait for locks of the kernel, by the kind of lock and the stack.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, LOCK_IS_MUTEX, LOCK_SPINS, LockKey, LockSlot, START_SLOTS, Waits,
    kernel::{add_wait, count, current_passes, duration_passes, now},
};

/// What each thread waits for.
#[map]
static THREADS: Array<LockSlot> = Array::with_max_entries(START_SLOTS, 0);
/// What each CPU spins for: a thread that sleeps for one lock can be interrupted by code that spins for another.
#[map]
static CPUS: PerCpuArray<LockSlot> = PerCpuArray::with_max_entries(1, 0);
/// Waits by kind of lock and stack.
#[map]
static LOCKS: HashMap<LockKey, Waits> = HashMap::with_max_entries(1, 0);

#[btf_tracepoint(function = "contention_begin")]
fn begin(ctx: BtfTracePointContext) -> i32 {
    // Prototype: void *lock, unsigned int flags (include/trace/events/lock.h, 5.19 and later).
    if !current_passes() {
        return 0;
    }
    let (lock, flags): (u64, u32) = (ctx.arg(0), ctx.arg(1));
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = (if spins(flags) { CPUS.get_ptr_mut(0) } else { thread(tid) }) else { return 0 };
    // SAFETY: a pointer into the map's value.
    unsafe {
        // A mutex that was spun for and is now slept for is one wait.
        if (*slot).lock != lock || (*slot).tid != tid {
            *slot = LockSlot { lock, start: now(), tid, flags };
        }
    }
    0
}

#[btf_tracepoint(function = "contention_end")]
fn end(ctx: BtfTracePointContext) -> i32 {
    // Prototype: void *lock, int ret.
    if !current_passes() {
        return 0;
    }
    let lock: u64 = ctx.arg(0);
    let tid = bpf_get_current_pid_tgid() as u32;
    let now = now();
    let Some((start, flags)) = take(CPUS.get_ptr_mut(0), lock, tid).or_else(|| take(thread(tid), lock, tid)) else {
        count(Counter::Seen);
        count(Counter::StartMissing);
        return 0;
    };
    let ns = now.wrapping_sub(start);
    if !duration_passes(ns) {
        return 0;
    }
    count(Counter::Seen);
    // Here and not at the beginning: it is the same stack, and short waits go without.
    let waited = capture(&ctx).and_then(|stack| add(&LockKey { stack: stack.id, flags, pid: stack.pid }, ns));
    if let Err(lost) = waited {
        count(lost);
    }
    0
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn spins(flags: u32) -> bool {
    flags & (LOCK_SPINS | LOCK_IS_MUTEX) == LOCK_SPINS
}

#[inline(always)]
fn thread(tid: u32) -> Option<*mut LockSlot> {
    THREADS.get_ptr_mut(tid & (START_SLOTS - 1))
}

#[inline(always)]
fn take(slot: Option<*mut LockSlot>, lock: u64, tid: u32) -> Option<(u64, u32)> {
    let slot = slot?;
    // SAFETY: a pointer into a map's value.
    unsafe {
        if (*slot).lock != lock || (*slot).tid != tid {
            return None;
        }
        (*slot).lock = 0;
        Some(((*slot).start, (*slot).flags))
    }
}

#[inline(always)]
fn add(key: &LockKey, ns: u64) -> Result<(), Counter> {
    let waits = LOCKS.get_ptr_mut(key).or_else(|| {
        // Another CPU may be first (BPF_NOEXIST is 1): then its entry is used.
        let nothing = Waits { count: 0, total_ns: 0, max_ns: 0 };
        let _ = LOCKS.insert(key, nothing, 1);
        LOCKS.get_ptr_mut(key)
    });
    let Some(waits) = waits else { return Err(Counter::MapFull) };
    // SAFETY: a pointer into the map's value.
    unsafe { add_wait(waits, ns) };
    Ok(())
}

mcptrace_ebpf::object!();
