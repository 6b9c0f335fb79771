//! Times how long threads wait for futexes, by process and by stack.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, FutexCell, START_SLOTS, Waits,
    kernel::{add as add_atomic, add_wait, count, current_passes, duration_passes, now, since, start, take_start},
    names::current_process,
    stack::weigh,
    syscall::{call_arguments, entered, returning},
};

/// Indexes of `futex`, native and 32-bit; and of calls that always wait: `futex_waitv`, `futex_wait`.
#[unsafe(no_mangle)]
static FUTEX: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
#[unsafe(no_mangle)]
static FUTEX_WAITERS: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
/// Whether waits are weighed by stack as well.
#[unsafe(no_mangle)]
static BY_STACK: Global<u32> = Global::new(0);

/// `FUTEX_WAIT`, `FUTEX_LOCK_PI`, `FUTEX_WAIT_BITSET`, `FUTEX_WAIT_REQUEUE_PI`, `FUTEX_LOCK_PI2` (include/uapi/linux/futex.h), as bits.
const WAITS: u64 = 1 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13;
/// `FUTEX_CMD_MASK`.
const COMMAND: u64 = 0x7f;
/// `EAGAIN` and `ETIMEDOUT`.
const EAGAIN: i64 = -11;
const ETIMEDOUT: i64 = -110;

/// When each thread began to wait.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// Waits by process.
#[map]
static FUTEXES: HashMap<u32, FutexCell> = HashMap::with_max_entries(1, 0);

#[btf_tracepoint(function = "sys_enter")]
fn enter(ctx: BtfTracePointContext) -> i32 {
    let index = entered(&ctx);
    if waits(&ctx, index) && current_passes() {
        start(&STARTS, bpf_get_current_pid_tgid() as u32, now());
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let index = returning(&ctx);
    if !waits(&ctx, index) || !current_passes() {
        return 0;
    }
    let now = now();
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(begin) = take_start(&STARTS, pid_tgid as u32) else {
        count(Counter::Seen);
        count(Counter::StartMissing);
        return 0;
    };
    let ns = since(begin, now);
    if !duration_passes(ns) {
        return 0;
    }
    count(Counter::Seen);
    if let Err(lost) = waited(&ctx, (pid_tgid >> 32) as u32, ns) {
        count(lost);
    }
    0
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn waits(ctx: &BtfTracePointContext, index: u32) -> bool {
    let waiters = FUTEX_WAITERS.load();
    if index == waiters[0] || index == waiters[1] {
        return true;
    }
    let futex = FUTEX.load();
    if index != futex[0] && index != futex[1] {
        return false;
    }
    let command = call_arguments(ctx, index)[1] & COMMAND;
    command < 16 && WAITS >> command & 1 != 0
}

/// Adds a wait to its process, and to its stack.
#[inline(always)]
fn waited(ctx: &BtfTracePointContext, pid: u32, ns: u64) -> Result<(), Counter> {
    if BY_STACK.load() != 0 {
        return capture(ctx).and_then(|key| weigh(&key, ns));
    }
    let Some(cell) = cell(pid) else { return Err(Counter::MapFull) };
    let result: i64 = ctx.arg(1);
    // SAFETY: a pointer into the map's value.
    unsafe {
        add_wait(&raw mut (*cell).waits, ns);
        if result == ETIMEDOUT {
            add_atomic(&raw mut (*cell).timed_out, 1);
        }
        if result == EAGAIN {
            add_atomic(&raw mut (*cell).not_needed, 1);
        }
    }
    Ok(())
}

#[inline(always)]
fn cell(pid: u32) -> Option<*mut FutexCell> {
    if let Some(cell) = FUTEXES.get_ptr_mut(pid) {
        return Some(cell);
    }
    let process = current_process();
    let waits = Waits { count: 0, total_ns: 0, max_ns: 0 };
    // Another CPU may be first (BPF_NOEXIST is 1): then its entry is used.
    let _ = FUTEXES.insert(pid, FutexCell { waits, timed_out: 0, not_needed: 0, process }, 1);
    FUTEXES.get_ptr_mut(pid)
}

mcptrace_ebpf::object!();
