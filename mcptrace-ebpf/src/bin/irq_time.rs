//! Times the handlers of hardware interrupts and the vectors of soft ones.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::generated::bpf_probe_read_kernel_str,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Histogram, IRQ_NAME, IRQ_VECTORS, IrqStats, SOFTIRQS,
    kernel::{count_shared, current_passes, duration_passes, load, now, record, record_shared},
};

#[unsafe(no_mangle)]
static IRQACTION_NAME: Global<u32> = Global::new(0);

/// When the hardware interrupt of this CPU began, the soft one, and the one of the CPU's own.
#[map]
static STARTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);
const HARD: u32 = 0;
const SOFT: u32 = 1;
const VECTOR: u32 = 2;
/// Runs of each handler, by the address of its `struct irqaction`: a line may have several.
#[map]
static HARDIRQS: HashMap<u64, IrqStats> = HashMap::with_max_entries(512, 0);
/// Runs of each vector.
#[map]
static SOFT_VECTORS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(SOFTIRQS, 0);
/// Runs of each vector of the CPU's own, in the order of the programs below.
#[map]
static VECTORS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(IRQ_VECTORS, 0);
/// A new handler, all zeros: too large for the stack.
#[map]
static EMPTY: PerCpuArray<IrqStats> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "irq_handler_entry")]
fn hard_entry(_ctx: BtfTracePointContext) -> i32 {
    begin(HARD);
    0
}

#[btf_tracepoint(function = "irq_handler_exit")]
fn hard_exit(ctx: BtfTracePointContext) -> i32 {
    // Prototype: int irq, struct irqaction *action, int ret (include/trace/events/irq.h).
    let Some(ran) = end(HARD) else { return 0 };
    // SAFETY: a BTF pointer to irqaction.
    match unsafe { handler(ctx.arg(0), ctx.arg(1)) } {
        // SAFETY: a pointer into the map's value.
        Some(handler) => unsafe { record_shared(&raw mut (*handler).time, ran) },
        None => count_shared(Counter::MapFull),
    }
    0
}

#[btf_tracepoint(function = "softirq_entry")]
fn soft_entry(_ctx: BtfTracePointContext) -> i32 {
    begin(SOFT);
    0
}

#[btf_tracepoint(function = "softirq_exit")]
fn soft_exit(ctx: BtfTracePointContext) -> i32 {
    // Prototype: unsigned int vec_nr (include/trace/events/irq.h).
    if let Some(ran) = end(SOFT) {
        keep(&SOFT_VECTORS, ctx.arg(0), ran);
    }
    0
}

// Each has one argument, the vector's number (arch/x86/include/asm/trace/irq_vectors.h): the program knows which it is.
macro_rules! vectors {
    ($($index:literal: $begin:ident $entry:literal, $end:ident $exit:literal;)*) => {$(
        #[btf_tracepoint(function = $entry)]
        fn $begin(_ctx: BtfTracePointContext) -> i32 {
            begin(VECTOR);
            0
        }

        #[btf_tracepoint(function = $exit)]
        fn $end(_ctx: BtfTracePointContext) -> i32 {
            if let Some(ran) = end(VECTOR) {
                keep(&VECTORS, $index, ran);
            }
            0
        }
    )*};
}

vectors! {
    0: timer_begins "local_timer_entry", timer_ends "local_timer_exit";
    1: reschedule_begins "reschedule_entry", reschedule_ends "reschedule_exit";
    2: call_begins "call_function_entry", call_ends "call_function_exit";
    3: single_call_begins "call_function_single_entry", single_call_ends "call_function_single_exit";
    4: work_begins "irq_work_entry", work_ends "irq_work_exit";
}

mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn begin(kind: u32) {
    if let Some(start) = STARTS.get_ptr_mut(kind) {
        // SAFETY: a pointer into this CPU's value of the map. Interrupts of one kind do not nest.
        unsafe { *start = now() };
    }
}

#[inline(always)]
fn keep(histograms: &PerCpuArray<Histogram>, index: u32, ran: u64) {
    match histograms.get_ptr_mut(index) {
        // SAFETY: a pointer into this CPU's value of the map; interrupts of one kind do not nest.
        Some(histogram) => unsafe { record(histogram, ran) },
        None => count_shared(Counter::MapFull),
    }
}

/// How long it ran, if that counts.
#[inline(always)]
fn end(kind: u32) -> Option<u64> {
    let start = STARTS.get_ptr_mut(kind)?;
    // SAFETY: as above.
    let began = unsafe { core::mem::replace(&mut *start, 0) };
    if !current_passes() {
        return None;
    }
    if began == 0 {
        count_shared(Counter::Seen);
        count_shared(Counter::StartMissing);
        return None;
    }
    let ran = now().wrapping_sub(began);
    if !duration_passes(ran) {
        return None;
    }
    count_shared(Counter::Seen);
    Some(ran)
}

#[inline(always)]
unsafe fn handler(irq: u64, action: *const u8) -> Option<*mut IrqStats> {
    let key = action as u64;
    if let Some(handler) = HARDIRQS.get_ptr_mut(key) {
        return Some(handler);
    }
    let empty = EMPTY.get_ptr_mut(0)?;
    // SAFETY: a pointer into this CPU's value of the map; the caller passes an irqaction.
    unsafe {
        (*empty).irq = irq & 0xffff_ffff;
        (*empty).name = [0; IRQ_NAME];
        let name: *const u8 = load(action, IRQACTION_NAME.load());
        bpf_probe_read_kernel_str((&raw mut (*empty).name).cast(), IRQ_NAME as u32, name.cast());
        // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
        let empty: &IrqStats = &*empty;
        let _ = HARDIRQS.insert(key, empty, 1);
    }
    HARDIRQS.get_ptr_mut(key)
}

mcptrace_ebpf::object!();
