//! Counts system calls that fail, by call, errno and who called.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, ErrorCount, ErrorKey, FailedCall, Header, Record, WIRE_VERSION,
    actor::current_actor,
    kernel::{add, count, current_cgroup, current_comm, current_passes, now, send},
    syscall::{Return, call_arguments, has_error, returned, returning},
};

/// Only this call, by index; `u32::MAX` for all.
#[unsafe(no_mangle)]
static ONLY: Global<u32> = Global::new(u32::MAX);
/// Whether processes are told apart.
#[unsafe(no_mangle)]
static BY_PROCESS: Global<u32> = Global::new(0);
/// Whether each error is an event as well.
#[unsafe(no_mangle)]
static SEND: Global<u32> = Global::new(0);

/// How often each has come.
#[map]
static ERRORS: HashMap<ErrorKey, ErrorCount> = HashMap::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    // The common case makes no call, so that nothing is saved and restored around one.
    if has_error(&ctx) { exit_with_error(ctx.as_ptr()) } else { 0 }
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(never)]
fn exit_with_error(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    if matches!(returned(&ctx), Return::Success) {
        return 0;
    }
    let syscall = returning(&ctx);
    if ONLY.load() != u32::MAX && syscall != ONLY.load() || !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    let errno = ctx.arg::<i64>(1).wrapping_neg() as u32;
    let pid = if BY_PROCESS.load() == 0 { 0 } else { (bpf_get_current_pid_tgid() >> 32) as u32 };
    let key = ErrorKey { syscall, errno, pid, zero: 0, comm: current_comm() };
    if !counted(&key) {
        count(Counter::MapFull);
    }
    if SEND.load() != 0 {
        send_error(&ctx, syscall, errno);
    }
    0
}

/// Counts an error; false if the map has no room for it.
#[inline(always)]
fn counted(key: &ErrorKey) -> bool {
    // One look-up is most of what this costs: a second one only for a key that is new.
    let value = ERRORS.get_ptr_mut(key).or_else(|| {
        // Another CPU may have been first (BPF_NOEXIST is 1): then there is one to add to all the same.
        let none = ErrorCount { count: 0, cgroup: current_cgroup() };
        let _ = ERRORS.insert(key, none, 1);
        ERRORS.get_ptr_mut(key)
    });
    let Some(value) = value else { return false };
    // SAFETY: a pointer into the map's value.
    unsafe { add(&raw mut (*value).count, 1) };
    true
}

#[inline(always)]
fn send_error(ctx: &BtfTracePointContext, syscall: u32, errno: u32) {
    let failed = FailedCall {
        header: Header { size: size_of::<FailedCall>() as u16, version: WIRE_VERSION, kind: FailedCall::KIND },
        syscall,
        time_ns: now(),
        actor: current_actor(),
        errno,
        zero: 0,
        arguments: call_arguments(ctx, syscall),
    };
    count(Counter::SideSeen);
    // SAFETY: the record is on the stack.
    if !unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const failed).cast(), size_of::<FailedCall>() as u32) } {
        count(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
