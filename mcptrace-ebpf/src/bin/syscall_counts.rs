//! Counts system calls at entry and their errors at return, by number, or by process or command and number.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _, Global,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, GroupKey, NATIVE_SYSCALLS, SYSCALLS, SyscallCell, SyscallKey, diagnose,
    kernel::{add, count, current_passes},
    names::{current_group, current_process, is_grouped},
    syscall::{Return, entered, has_error, returned, returning, surely_native},
};

/// Whether nothing is filtered and nothing grouped.
#[unsafe(no_mangle)]
static PLAIN: Global<u32> = Global::new(0);

/// Calls, by index.
#[map]
static CALLS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SYSCALLS, 0);
/// Returns with an errno, by index.
#[map]
static ERRORS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SYSCALLS, 0);
/// Interrupted calls, by index.
#[map]
static INTERRUPTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(SYSCALLS, 0);
/// All three by group. Made with one entry unless asked for.
#[map]
static CELLS: HashMap<SyscallKey, SyscallCell> = HashMap::with_max_entries(1, 0);

#[btf_tracepoint(function = "sys_enter")]
fn enter(ctx: BtfTracePointContext) -> i32 {
    // The common case makes no call, so that nothing is saved and restored around one: everything else is in a subprogram.
    let number: u32 = ctx.arg(1);
    if PLAIN.load() != 0 && number < NATIVE_SYSCALLS && surely_native(&ctx) {
        count(Counter::Seen);
        increment(&CALLS, number);
        return 0;
    }
    enter_any(ctx.as_ptr())
}

#[inline(never)]
fn enter_any(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    if !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    let index = entered(&ctx);
    if !is_grouped() {
        increment(&CALLS, index);
    } else if !count_call(key(index)) {
        diagnose!(&ctx, "no room for another group: call {}", index);
        count(Counter::MapFull);
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    // As in `enter`: the common case makes no call.
    if has_error(&ctx) { exit_with_error(ctx.as_ptr()) } else { 0 }
}

#[inline(never)]
fn exit_with_error(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    let outcome = returned(&ctx);
    if matches!(outcome, Return::Success) || !current_passes() {
        return 0;
    }
    let index = returning(&ctx);
    let grouped = is_grouped();
    match outcome {
        Return::Success => {}
        Return::Error if grouped => in_cell(key(index), |cell| &raw mut cell.errors),
        Return::Error => increment(&ERRORS, index),
        Return::Interrupted if grouped => in_cell(key(index), |cell| &raw mut cell.interrupted),
        Return::Interrupted => increment(&INTERRUPTED, index),
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn increment(counts: &PerCpuArray<u64>, index: u32) {
    if let Some(value) = counts.get_ptr_mut(index) {
        // SAFETY: a pointer into this CPU's value of the map, which one program alone writes.
        unsafe { *value += 1 };
    }
}

#[inline(always)]
fn key(syscall: u32) -> SyscallKey {
    let GroupKey { pid, comm, .. } = current_group();
    SyscallKey { pid, syscall, comm }
}

/// Counts a call of a group; false if the map has no room for it.
#[inline(always)]
fn count_call(key: SyscallKey) -> bool {
    if let Some(cell) = CELLS.get_ptr_mut(key) {
        // SAFETY: a pointer into the map's value.
        unsafe { add(&raw mut (*cell).calls, 1) };
        return true;
    }
    let cell = SyscallCell { process: current_process(), ..SyscallCell::default() };
    // Another CPU may have been first (BPF_NOEXIST is 1): then there is a cell to add to all the same.
    let _ = CELLS.insert(key, cell, 1);
    CELLS.get_ptr_mut(key).is_some_and(|cell| {
        // SAFETY: a pointer into the map's value.
        unsafe { add(&raw mut (*cell).calls, 1) };
        true
    })
}

#[inline(always)]
fn in_cell(key: SyscallKey, field: impl Fn(&mut SyscallCell) -> *mut u64) {
    if let Some(cell) = CELLS.get_ptr_mut(key) {
        // SAFETY: a pointer into the map's value.
        unsafe { add(field(&mut *cell), 1) };
    }
}

mcptrace_ebpf::object!();
