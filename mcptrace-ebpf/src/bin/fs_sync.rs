//! Times the calls that make data durable, and names the file.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr;

use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, FileId, Header, Histogram, Record, START_SLOTS, SYNC_CALLS as CALLS, SyncCall, SyncEvent, WALK_BYTES,
    WIRE_VERSION, Walk,
    file::{id, inode, open_file, walk},
    kernel::{
        count, current_cgroup, current_comm, current_passes, duration_passes, now, record, send, since, start,
        take_start,
    },
    syscall::{Classes, class, entered, first_argument, has_error, returning},
};

/// Which calls make data durable, by [`SyncCall`].
#[unsafe(no_mangle)]
static SYNC_CALLS: Classes = Global::new([0; 1024]);
/// Whether only failed calls are counted.
#[unsafe(no_mangle)]
static FAILED_ONLY: Global<u32> = Global::new(0);

/// When each thread entered its call.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// How long each kind of call took.
#[map]
static LATENCIES: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(CALLS, 0);
/// How many of them failed.
#[map]
static ERRORS: PerCpuArray<u64> = PerCpuArray::with_max_entries(CALLS, 0);
/// Where each CPU puts a record together: it does not fit on the stack.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

/// A record and the path that follows it.
#[repr(C)]
struct Scratch {
    event: SyncEvent,
    walk: Walk,
}

#[btf_tracepoint(function = "sys_enter")]
fn enter(ctx: BtfTracePointContext) -> i32 {
    if class(&SYNC_CALLS, entered(&ctx)) != 0 && current_passes() {
        start(&STARTS, bpf_get_current_pid_tgid() as u32, now());
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let syscall = returning(&ctx);
    let call = class(&SYNC_CALLS, syscall);
    if call == 0 || FAILED_ONLY.load() != 0 && !has_error(&ctx) {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    // 0 stands for no start, which is no time of one.
    let begin = take_start(&STARTS, pid_tgid as u32).unwrap_or(0);
    if begin == 0 {
        if current_passes() {
            count(Counter::Seen);
            count(Counter::StartMissing);
        }
        return 0;
    }
    let time_ns = now();
    let latency_ns = since(begin, time_ns);
    if !duration_passes(latency_ns) {
        return 0;
    }
    count(Counter::Seen);
    keep(call.into(), latency_ns, has_error(&ctx));
    let has_file = call < SyncCall::Sync as u8;
    let file = if has_file { open_file(first_argument(&ctx, syscall) as u32) } else { 0 };
    let event = SyncEvent {
        header: Header { size: 0, version: WIRE_VERSION, kind: SyncEvent::KIND },
        call: call.into(),
        time_ns,
        cgroup: current_cgroup(),
        latency_ns,
        result: ctx.arg::<i64>(1) as i32,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        zero: 0,
        comm: current_comm(),
        file: if file == 0 { FileId { inode: 0, device: 0, zero: 0 } } else { id(inode(file)) },
    };
    send_event(&ctx, file, event);
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn keep(call: u32, latency_ns: u64, failed: bool) {
    if let Some(histogram) = LATENCIES.get_ptr_mut(call) {
        // SAFETY: a pointer into this CPU's value of the map, which one program alone writes.
        unsafe { record(histogram, latency_ns) };
    }
    if let Some(errors) = ERRORS.get_ptr_mut(call).filter(|_| failed) {
        // SAFETY: as above.
        unsafe { *errors += 1 };
    }
}

#[inline(always)]
fn send_event(ctx: &BtfTracePointContext, file: u64, mut event: SyncEvent) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    count(Counter::SideSeen);
    // SAFETY: a pointer into this CPU's value of the map, which one program alone writes; `size` is at most the size of a `Scratch`.
    let room = unsafe {
        let found = &raw mut (*scratch).walk;
        if file == 0 {
            (*found).len = 0;
            (*found).flags = 0;
        } else {
            walk(file, found);
        }
        // A bound that the verifier can follow.
        let names = ptr::read_volatile(&raw const (*found).len) & (WALK_BYTES as u32 - 1);
        let size = (size_of::<SyncEvent>() + core::mem::offset_of!(Walk, names)) as u32 + names;
        event.header.size = size as u16;
        ptr::write(&raw mut (*scratch).event, event);
        send(ctx, &EVENTS, &EVENTS_PERF, scratch.cast_const().cast(), size)
    };
    if !room {
        count(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
