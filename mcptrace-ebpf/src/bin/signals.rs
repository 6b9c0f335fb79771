//! Sends an event for every signal that is generated.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Header, Record, Signal, WIRE_VERSION,
    actor::{current_actor, task_actor},
    kernel::{count, current_passes, now, read_kernel, send, task_passes},
};

/// Only this signal; 0 for all.
#[unsafe(no_mangle)]
static ONLY_SIGNAL: Global<i32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGINFO_CODE: Global<u32> = Global::new(0);

/// `si_code` of what a process sends with kill(2), and of what the kernel sends (include/uapi/asm-generic/siginfo.h).
const SI_USER: i32 = 0;
const SI_KERNEL: i32 = 0x80;
const SI_TIMER: i32 = -2;

/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "signal_generate")]
fn generate(ctx: BtfTracePointContext) -> i32 {
    // Prototype: int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result
    // (include/trace/events/signal.h).
    let signal: i32 = ctx.arg(0);
    if ONLY_SIGNAL.load() != 0 && signal != ONLY_SIGNAL.load() {
        return 0;
    }
    let code = code(ctx.arg(1));
    let task: *const u8 = ctx.arg(2);
    // A timer fires in whatever thread is running: it is not the sender.
    let has_sender = code != SI_KERNEL && code != SI_TIMER;
    // SAFETY: a BTF pointer to task_struct.
    if !(has_sender && current_passes() || unsafe { task_passes(task) }) {
        return 0;
    }
    count(Counter::Seen);
    let record = Signal {
        header: Header { size: size_of::<Signal>() as u16, version: WIRE_VERSION, kind: Signal::KIND },
        signal,
        time_ns: now(),
        sender: current_actor(),
        // SAFETY: as above.
        target: unsafe { task_actor(task) },
        code,
        result: ctx.arg(4),
        group: ctx.arg(3),
        zero: 0,
    };
    // SAFETY: the record is on the stack.
    if !unsafe { send(&ctx, &EVENTS, &EVENTS_PERF, (&raw const record).cast(), size_of::<Signal>() as u32) } {
        count(Counter::BufferFull);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

/// `SEND_SIG_NOINFO` is 0 and means a user, `SEND_SIG_PRIV` is 1 and means the kernel (include/linux/sched/signal.h).
#[inline(always)]
fn code(info: *const u8) -> i32 {
    match info as u64 {
        0 => SI_USER,
        1 => SI_KERNEL,
        // SAFETY: the helper checks the address.
        _ => unsafe { read_kernel(info.wrapping_add(SIGINFO_CODE.load() as usize)) },
    }
}

mcptrace_ebpf::object!();
