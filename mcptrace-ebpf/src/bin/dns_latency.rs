//! Times look-ups of names by the C library: a histogram per function and outcome, and each look-up as an event.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_user_str},
    macros::{map, uprobe, uretprobe},
    maps::{Array, LruHashMap, PerfEventByteArray, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use mcptrace_ebpf::{
    Counter, Header, Histogram, LOOKUPS, Lookup, LookupBy, LookupStart, NAME_MAX, PATH_UNREADABLE, Record,
    WIRE_VERSION,
    function::{argument, result, stack_at_entry, stack_of_return},
    kernel::{count_shared, current_cgroup, current_comm, current_passes, duration_passes, now, record_shared, send},
};

/// Look-ups at least this long are sent as events, in nanoseconds.
#[unsafe(no_mangle)]
static SLOWER_THAN_NS: Global<u64> = Global::new(0);

/// The outermost look-up of each thread: functions of the C library call each other. Those that never return make room in time.
#[map]
static STARTS: LruHashMap<u32, LookupStart> = LruHashMap::with_max_entries(10_240, 0);
/// Histograms by function, those that found nothing from [`LOOKUPS`] on.
#[map]
static HISTOGRAMS: Array<Histogram> = Array::with_max_entries(2 * LOOKUPS, 0);
/// Look-ups.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Look-ups, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[uprobe]
fn getaddrinfo(ctx: ProbeContext) -> u32 {
    begin(&ctx, LookupBy::Getaddrinfo);
    0
}

#[uprobe]
fn gethostbyname(ctx: ProbeContext) -> u32 {
    begin(&ctx, LookupBy::Gethostbyname);
    0
}

#[uprobe]
fn gethostbyname2(ctx: ProbeContext) -> u32 {
    begin(&ctx, LookupBy::Gethostbyname2);
    0
}

#[uprobe]
fn gethostbyname_r(ctx: ProbeContext) -> u32 {
    begin(&ctx, LookupBy::GethostbynameR);
    0
}

#[uprobe]
fn gethostbyname2_r(ctx: ProbeContext) -> u32 {
    begin(&ctx, LookupBy::Gethostbyname2R);
    0
}

/// The return of all of them.
#[uretprobe]
fn returns(ctx: RetProbeContext) -> u32 {
    if !current_passes() {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let tid = pid_tgid as u32;
    let Some(start) = under_way(tid) else {
        count_shared(Counter::Seen);
        count_shared(Counter::StartMissing);
        return 0;
    };
    // Of a function that was called by the one that is timed.
    if start.stack != stack_of_return(&ctx) {
        return 0;
    }
    let _ = STARTS.remove(tid);
    let now = now();
    let latency = now.saturating_sub(start.time_ns);
    if !duration_passes(latency) {
        return 0;
    }
    count_shared(Counter::Seen);
    let result = result(&ctx);
    if latency >= SLOWER_THAN_NS.load() {
        send_lookup(&ctx, &start, pid_tgid, now, result);
    }
    add_to_histogram(start.function as u32, result, latency);
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

/// What is under way in a thread.
#[inline(always)]
fn under_way(tid: u32) -> Option<LookupStart> {
    // Not `get`: a reference in an option is copied in ways that old verifiers refuse.
    // SAFETY: a pointer into the map's value, which only this thread writes.
    STARTS.get_ptr(tid).map(|start| unsafe { core::ptr::read_volatile(start) })
}

#[inline(always)]
fn begin(ctx: &ProbeContext, function: LookupBy) {
    if !current_passes() {
        return;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    let stack = stack_at_entry(ctx);
    // One that was left without a return (longjmp, a cancelled thread) lies at or below this call, and is forgotten.
    if let Some(outer) = under_way(tid)
        && outer.stack > stack
    {
        return;
    }
    let start = LookupStart { time_ns: now(), stack, name: argument(ctx, 0), function: function as u64 };
    let _ = STARTS.insert(tid, start, 0);
}

#[inline(always)]
fn add_to_histogram(function: u32, result: u64, latency: u64) {
    let index = if failed(function, result) { LOOKUPS + function } else { function };
    if let Some(histogram) = HISTOGRAMS.get_ptr_mut(index) {
        // SAFETY: a pointer into the map's value.
        unsafe { record_shared(histogram, latency) };
    }
}

/// `gethostbyname` and `gethostbyname2` return a pointer, all others a number that is 0 if all went well (netdb.h).
#[inline(always)]
fn failed(function: u32, result: u64) -> bool {
    let pointer = function == LookupBy::Gethostbyname as u32 || function == LookupBy::Gethostbyname2 as u32;
    if pointer { result == 0 } else { result as u32 != 0 }
}

/// The record and the name behind it. Less than the 512 bytes of the stack: programs at functions have no per-CPU scratch space.
#[repr(C)]
struct Named {
    lookup: Lookup,
    name: [u8; NAME_MAX],
}

#[inline(always)]
fn send_lookup(ctx: &RetProbeContext, start: &LookupStart, pid_tgid: u64, time_ns: u64, result: u64) {
    // SAFETY: all zeros are a record.
    let mut named: Named = unsafe { core::mem::zeroed() };
    // SAFETY: the helper checks the address and writes at most so many bytes. The name is read now, because the look-up has read it too.
    let read =
        unsafe { bpf_probe_read_user_str((&raw mut named.name).cast(), NAME_MAX as u32, start.name as *const _) };
    let bytes = if read > 0 { (read as u32 - 1) & (NAME_MAX as u32 - 1) } else { 0 };
    let size = size_of::<Lookup>() as u32 + bytes;
    named.lookup = Lookup {
        header: Header { size: size as u16, version: WIRE_VERSION, kind: Lookup::KIND },
        function: start.function as u32,
        time_ns,
        cgroup: current_cgroup(),
        latency_ns: time_ns.saturating_sub(start.time_ns),
        result,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        comm: current_comm(),
        name_len: if read > 0 { bytes } else { PATH_UNREADABLE },
        zero: 0,
    };
    count_shared(Counter::SideSeen);
    // SAFETY: the record is on the stack, and the mask bounds its size.
    if !unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const named).cast(), size) } {
        count_shared(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
