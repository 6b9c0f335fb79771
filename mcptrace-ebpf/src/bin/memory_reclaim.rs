//! Times how long threads are stalled by reclaim of memory and by compaction.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Header, LongStall, Record, STALLS, START_SLOTS, Stall, StallStats, WIRE_VERSION,
    actor::current_actor,
    kernel::{count_shared, current_passes, duration_passes, now, record, send, since, start, take_start},
};

/// Stalls that take at least this long are events; `u64::MAX` for none.
#[unsafe(no_mangle)]
static SLOWER_THAN_NS: Global<u64> = Global::new(u64::MAX);

/// When each thread began to reclaim, for the machine and for its control group, and to compact.
#[map]
static DIRECT_STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
#[map]
static CGROUP_STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
#[map]
static COMPACTION_STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// What each kind of stall took.
#[map]
static STALL_STATS: PerCpuArray<StallStats> = PerCpuArray::with_max_entries(STALLS, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn direct_begin(_ctx: BtfTracePointContext) -> i32 {
    begin(&DIRECT_STARTS)
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn direct_end(ctx: BtfTracePointContext) -> i32 {
    // Prototype: unsigned long nr_reclaimed (include/trace/events/vmscan.h).
    end(&ctx, &DIRECT_STARTS, Stall::Direct, ctx.arg(0))
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn cgroup_begin(_ctx: BtfTracePointContext) -> i32 {
    begin(&CGROUP_STARTS)
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn cgroup_end(ctx: BtfTracePointContext) -> i32 {
    end(&ctx, &CGROUP_STARTS, Stall::Cgroup, ctx.arg(0))
}

#[btf_tracepoint(function = "mm_compaction_begin")]
fn compaction_begin(_ctx: BtfTracePointContext) -> i32 {
    begin(&COMPACTION_STARTS)
}

#[btf_tracepoint(function = "mm_compaction_end")]
fn compaction_end(ctx: BtfTracePointContext) -> i32 {
    end(&ctx, &COMPACTION_STARTS, Stall::Compaction, 0)
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn begin(starts: &Array<u64>) -> i32 {
    if current_passes() {
        start(starts, bpf_get_current_pid_tgid() as u32, now());
    }
    0
}

#[inline(always)]
fn end(ctx: &BtfTracePointContext, starts: &Array<u64>, stall: Stall, pages: u64) -> i32 {
    let time_ns = now();
    let Some(began) = take_start(starts, bpf_get_current_pid_tgid() as u32) else {
        if current_passes() {
            count_shared(Counter::Seen);
            count_shared(Counter::StartMissing);
        }
        return 0;
    };
    let latency_ns = since(began, time_ns);
    if !duration_passes(latency_ns) {
        return 0;
    }
    count_shared(Counter::Seen);
    if let Some(stats) = STALL_STATS.get_ptr_mut(stall as u32) {
        // SAFETY: a pointer into this CPU's value of the map; each kind has one program that writes it.
        unsafe {
            record(&raw mut (*stats).time, latency_ns);
            (*stats).pages += pages;
        }
    }
    if latency_ns >= SLOWER_THAN_NS.load() {
        let long = LongStall {
            header: Header { size: size_of::<LongStall>() as u16, version: WIRE_VERSION, kind: LongStall::KIND },
            stall: stall as u32,
            time_ns,
            actor: current_actor(),
            latency_ns,
            pages,
        };
        count_shared(Counter::SideSeen);
        // SAFETY: the record is on the stack.
        if !unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const long).cast(), size_of::<LongStall>() as u32) } {
            count_shared(Counter::SideBufferFull);
        }
    }
    0
}

mcptrace_ebpf::object!();
