//! Times calls of functions in programs and libraries: a histogram per function, and slow calls as events.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    EbpfContext, Global,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    macros::{map, uprobe, uretprobe},
    maps::{Array, LruHashMap, PerfEventByteArray, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use mcptrace_ebpf::{
    CallKey, Counter, Header, Histogram, Record, SlowCall, WIRE_VERSION, diagnose,
    function::{result, stack_at_entry, stack_of_return},
    kernel::{count_shared, current_cgroup, current_comm, current_passes, duration_passes, now, record_shared, send},
};

/// Whether programs know by a cookie which function they are at (5.15 and later). Without, there is one function.
#[unsafe(no_mangle)]
static HAS_COOKIE: Global<u32> = Global::new(0);
/// Calls at least this long are sent as events, in nanoseconds.
#[unsafe(no_mangle)]
static SLOWER_THAN_NS: Global<u64> = Global::new(u64::MAX);

/// When each call began. Calls that never return (longjmp, exceptions, exit) make room for others in time.
#[map]
static STARTS: LruHashMap<CallKey, u64> = LruHashMap::with_max_entries(1, 0);
/// A histogram for each function.
#[map]
static HISTOGRAMS: Array<Histogram> = Array::with_max_entries(1, 0);
/// Slow calls.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Slow calls, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[uprobe]
fn enter(ctx: ProbeContext) -> u32 {
    if !current_passes() {
        return 0;
    }
    let key = CallKey { stack: stack_at_entry(&ctx), tid: bpf_get_current_pid_tgid() as u32, function: function(&ctx) };
    let now = now();
    // A table of this kind makes room by itself; what it drops is missed at its return.
    let _ = STARTS.insert(key, now, 0);
    0
}

#[uretprobe]
fn returns(ctx: RetProbeContext) -> u32 {
    if !current_passes() {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let key = CallKey { stack: stack_of_return(&ctx), tid: pid_tgid as u32, function: function(&ctx) };
    // SAFETY: a pointer into the map's value, which only this thread writes.
    let begin = STARTS.get_ptr(key).map(|begin| unsafe { core::ptr::read_volatile(begin) });
    let Some(begin) = begin else {
        diagnose!(&ctx, "a call of function {} has no start", key.function);
        count_shared(Counter::Seen);
        count_shared(Counter::StartMissing);
        return 0;
    };
    let _ = STARTS.remove(key);
    let now = now();
    let latency = now.saturating_sub(begin);
    if !duration_passes(latency) {
        return 0;
    }
    count_shared(Counter::Seen);
    if latency >= SLOWER_THAN_NS.load() {
        send_slow(&ctx, key.function, pid_tgid, now, latency);
    }
    if let Some(histogram) = HISTOGRAMS.get_ptr_mut(key.function) {
        // SAFETY: a pointer into the map's value.
        unsafe { record_shared(histogram, latency) };
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn function<C: EbpfContext>(ctx: &C) -> u32 {
    if HAS_COOKIE.load() == 0 {
        return 0;
    }
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) as u32 }
}

#[inline(never)]
fn send_slow(ctx: &RetProbeContext, function: u32, pid_tgid: u64, time_ns: u64, latency_ns: u64) {
    let slow = SlowCall {
        header: Header { size: size_of::<SlowCall>() as u16, version: WIRE_VERSION, kind: SlowCall::KIND },
        function,
        time_ns,
        cgroup: current_cgroup(),
        latency_ns,
        result: result(ctx),
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        comm: current_comm(),
    };
    count_shared(Counter::SideSeen);
    // SAFETY: the record is on the stack and its size is a constant.
    let sent = unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const slow).cast(), size_of::<SlowCall>() as u32) };
    if !sent {
        count_shared(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
