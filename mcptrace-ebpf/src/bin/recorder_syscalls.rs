//! Counts and times all system calls for the recorder, which attaches it for a part of the time.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id},
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Histogram, START_SLOTS, SYSCALLS, SyscallCount,
    kernel::{add, now, record_shared, since, start, take_start},
    syscall::{Return, has_error, is_childs_return, returned, returning},
};

/// How many copies there are, a power of two; CPU n writes copy n modulo this.
#[unsafe(no_mangle)]
static COPIES: Global<u32> = Global::new(1);

/// When each thread entered its call. User space clears it before the programs are attached.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, BPF_F_MMAPABLE);
/// Calls and errors by copy and index of the call. User space sets the number of entries of this and the next.
#[map]
static COUNTS: Array<SyscallCount> = Array::with_max_entries(SYSCALLS, BPF_F_MMAPABLE);
/// How long they took.
#[map]
static TIMES: Array<Histogram> = Array::with_max_entries(SYSCALLS, 0);

#[btf_tracepoint(function = "sys_enter")]
fn enter(_ctx: BtfTracePointContext) -> i32 {
    start(&STARTS, bpf_get_current_pid_tgid() as u32, now());
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let index = returning(&ctx);
    // 0 stands for no start: the verifier of 5.10 refuses to keep the unwritten word of an `Option` that is none.
    let began = take_start(&STARTS, bpf_get_current_pid_tgid() as u32).unwrap_or(0);
    if is_childs_return(&ctx, index) {
        return 0;
    }
    // SAFETY: the helper takes nothing.
    let copy = unsafe { bpf_get_smp_processor_id() } & (COPIES.load() - 1);
    let slot = copy * SYSCALLS + index;
    if let Some(counted) = COUNTS.get_ptr_mut(slot) {
        // SAFETY: a pointer into the map's value.
        unsafe {
            add(&raw mut (*counted).calls, 1);
            if has_error(&ctx) && matches!(returned(&ctx), Return::Error) {
                add(&raw mut (*counted).errors, 1);
            }
        }
    }
    if began != 0
        && let Some(histogram) = TIMES.get_ptr_mut(slot)
    {
        // SAFETY: as above.
        unsafe { record_shared(histogram, since(began, now())) };
    }
    0
}

mcptrace_ebpf::object!();
