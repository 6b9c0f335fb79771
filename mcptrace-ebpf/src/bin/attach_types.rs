//! An empty program for every way to attach: shows by a real load and attach what a kernel can do, and is the floor that
//! benchmarks measure from. Not a probe.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    macros::{
        btf_tracepoint, fentry, fexit, kprobe, kretprobe, lsm, perf_event, raw_tracepoint, tracepoint, uprobe,
        uretprobe,
    },
    programs::{
        BtfTracePointContext, FEntryContext, FExitContext, LsmContext, PerfEventContext, ProbeContext,
        RawTracePointContext, RetProbeContext, TracePointContext,
    },
};

#[btf_tracepoint(function = "sched_process_exit")]
fn empty_tp_btf(_: BtfTracePointContext) -> i32 {
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn empty_raw_tp(_: RawTracePointContext) -> i32 {
    0
}

#[tracepoint(category = "sched", name = "sched_process_exit")]
fn empty_tracepoint(_: TracePointContext) -> u32 {
    0
}

#[perf_event]
fn empty_perf_event(_: PerfEventContext) -> u32 {
    0
}

#[kprobe]
fn empty_kprobe(_: ProbeContext) -> u32 {
    0
}

#[kretprobe]
fn empty_kretprobe(_: RetProbeContext) -> u32 {
    0
}

#[uprobe]
fn empty_uprobe(_: ProbeContext) -> u32 {
    0
}

#[uretprobe]
fn empty_uretprobe(_: RetProbeContext) -> u32 {
    0
}

#[fentry(function = "do_exit")]
fn empty_fentry(_: FEntryContext) -> i32 {
    0
}

#[fexit(function = "do_exit")]
fn empty_fexit(_: FExitContext) -> i32 {
    0
}

#[lsm(hook = "task_free")]
fn empty_lsm(_: LsmContext) -> i32 {
    0
}

/// Where the program of an iterator starts; aya-ebpf has no macro for it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn empty_iter(_: *mut core::ffi::c_void) -> i32 {
    0
}

mcptrace_ebpf::object!();
