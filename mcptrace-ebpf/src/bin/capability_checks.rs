//! Counts checks of capabilities, by capability, result and who was checked.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    EbpfContext, Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, fexit, map},
    maps::{HashMap, PerfEventByteArray, RingBuf},
    programs::{BtfTracePointContext, FExitContext},
};
use mcptrace_ebpf::{
    CapabilityCheck, CapabilityCount, CapabilityKey, Counter, Header, Record, WIRE_VERSION,
    actor::current_actor,
    kernel::{add, count, current_cgroup, current_comm, current_passes, now, send},
};

/// Whether only refusals count.
#[unsafe(no_mangle)]
static FAILED_ONLY: Global<u32> = Global::new(0);
/// Whether processes are told apart.
#[unsafe(no_mangle)]
static BY_PROCESS: Global<u32> = Global::new(0);
/// Whether each check is an event as well.
#[unsafe(no_mangle)]
static SEND: Global<u32> = Global::new(0);

/// How often each was checked.
#[map]
static CHECKS: HashMap<CapabilityKey, CapabilityCount> = HashMap::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "cap_capable")]
fn check(ctx: BtfTracePointContext) -> i32 {
    // Prototype: const struct cred *cred, struct user_namespace *target_ns, const struct user_namespace *capable_ns, int cap, int ret
    // (include/trace/events/capability.h, 6.14).
    see(&ctx, ctx.arg(3), ctx.arg(4))
}

/// Where there is no such tracepoint.
#[fexit(function = "cap_capable")]
fn checked(ctx: FExitContext) -> i32 {
    // const struct cred *cred, struct user_namespace *target_ns, int cap, unsigned int opts, and what it returns (security/commoncap.c).
    see(&ctx, ctx.arg(2), ctx.arg(4))
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn see<C: EbpfContext>(ctx: &C, capability: u32, result: i32) -> i32 {
    if FAILED_ONLY.load() != 0 && result == 0 || !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    let pid = if BY_PROCESS.load() == 0 { 0 } else { (bpf_get_current_pid_tgid() >> 32) as u32 };
    let key = CapabilityKey { capability, pid, comm: current_comm() };
    if !counted(&key, result) {
        count(Counter::MapFull);
    }
    if SEND.load() != 0 {
        send_check(ctx, capability, result);
    }
    0
}

/// Counts a check; false if the map has no room for it.
#[inline(always)]
fn counted(key: &CapabilityKey, result: i32) -> bool {
    let value = CHECKS.get_ptr_mut(key).or_else(|| {
        let none = CapabilityCount { granted: 0, refused: 0, cgroup: current_cgroup() };
        // Another CPU may have been first (BPF_NOEXIST is 1): then there is one to add to all the same.
        let _ = CHECKS.insert(key, none, 1);
        CHECKS.get_ptr_mut(key)
    });
    let Some(value) = value else { return false };
    // SAFETY: a pointer into the map's value.
    unsafe { add(if result == 0 { &raw mut (*value).granted } else { &raw mut (*value).refused }, 1) };
    true
}

#[inline(always)]
fn send_check<C: EbpfContext>(ctx: &C, capability: u32, result: i32) {
    let check = CapabilityCheck {
        header: Header {
            size: size_of::<CapabilityCheck>() as u16,
            version: WIRE_VERSION,
            kind: CapabilityCheck::KIND,
        },
        capability,
        time_ns: now(),
        actor: current_actor(),
        result: result.into(),
    };
    count(Counter::SideSeen);
    // SAFETY: the record is on the stack.
    if !unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const check).cast(), size_of::<CapabilityCheck>() as u32) } {
        count(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
