//! Times system calls from entry to return: a histogram per call, and slow ones as events.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id},
    macros::{btf_tracepoint, map},
    maps::{Array, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Header, Histogram, Record, START_SLOTS, SYSCALLS, SlowSyscall, WIRE_VERSION, diagnose,
    kernel::{
        count, current_cgroup, current_comm, current_passes, duration_passes, now, record, record_shared, send, since,
        start, take_start,
    },
    syscall::{entered, is_childs_return, returning},
};

/// The index of the only call to time, or [`SYSCALLS`] for all.
#[unsafe(no_mangle)]
static ONLY: Global<u32> = Global::new(SYSCALLS);
/// Calls at least this long are sent as events, in nanoseconds.
#[unsafe(no_mangle)]
static SLOWER_THAN_NS: Global<u64> = Global::new(u64::MAX);
/// How many copies of the histograms there are; CPU n writes copy n modulo this.
#[unsafe(no_mangle)]
static BANKS: Global<u32> = Global::new(1);
/// Whether every CPU has a copy of its own.
#[unsafe(no_mangle)]
static BANK_PER_CPU: Global<u32> = Global::new(0);

/// When each thread entered its call.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// Histograms by bank and index of the call. Banks instead of per-CPU maps: 1,024 histograms of 2.4 KB for each of 256 CPUs would
/// take 600 MB. User space sets the number of entries.
#[map]
static HISTOGRAMS: Array<Histogram> = Array::with_max_entries(SYSCALLS, 0);
/// Slow calls.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Slow calls, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "sys_enter")]
fn enter(ctx: BtfTracePointContext) -> i32 {
    let only = ONLY.load();
    if only != SYSCALLS && entered(&ctx) != only || !current_passes() {
        return 0;
    }
    start(&STARTS, bpf_get_current_pid_tgid() as u32, now());
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let index = returning(&ctx);
    let only = ONLY.load();
    if only != SYSCALLS && index != only {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let now = now();
    let begin = take_start(&STARTS, pid_tgid as u32);
    // Before the start is looked at: its slot may still hold that of a thread which had the same id and died in a call.
    if is_childs_return(&ctx, index) {
        return 0;
    }
    let Some(begin) = begin else {
        if current_passes() {
            diagnose!(&ctx, "call {} of thread {} has no start", index, pid_tgid as u32);
            count(Counter::Seen);
            count(Counter::StartMissing);
        }
        return 0;
    };
    let latency = since(begin, now);
    if !duration_passes(latency) {
        return 0;
    }
    count(Counter::Seen);
    if latency >= SLOWER_THAN_NS.load() {
        send_slow(&ctx, index, pid_tgid, now, latency);
    }
    add_to_histogram(index, latency);
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn add_to_histogram(index: u32, latency: u64) {
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let exclusive = BANK_PER_CPU.load() != 0;
    let bank = if exclusive { cpu } else { cpu.checked_rem(BANKS.load()).unwrap_or(0) };
    let Some(histogram) = HISTOGRAMS.get_ptr_mut(bank * SYSCALLS + index) else { return };
    // SAFETY: a pointer into the map's value; with a bank per CPU nobody else writes it.
    unsafe {
        if exclusive {
            record(histogram, latency);
        } else {
            record_shared(histogram, latency);
        }
    }
}

#[inline(always)]
fn send_slow(ctx: &BtfTracePointContext, syscall: u32, pid_tgid: u64, time_ns: u64, latency_ns: u64) {
    let slow = SlowSyscall {
        header: Header { size: size_of::<SlowSyscall>() as u16, version: WIRE_VERSION, kind: SlowSyscall::KIND },
        syscall,
        time_ns,
        cgroup: current_cgroup(),
        latency_ns,
        result: ctx.arg(1),
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        comm: current_comm(),
    };
    count(Counter::SideSeen);
    // SAFETY: the record is on the stack and its size is a constant.
    let sent = unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const slow).cast(), size_of::<SlowSyscall>() as u32) };
    if !sent {
        count(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
