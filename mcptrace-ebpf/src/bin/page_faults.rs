//! Counts minor and major page faults by process, and looks at its memory.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    macros::{map, perf_event},
    maps::HashMap,
    programs::PerfEventContext,
};
use mcptrace_ebpf::{
    Counter, FaultCell, FaultKey,
    kernel::{add, count, current_passes, current_task, load, read_kernel},
    memory::{pages, resident, resident_of_trusted},
    names::current_process,
    stack::weigh,
};

/// Whether faults are counted by stack instead.
#[unsafe(no_mangle)]
static BY_STACK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_MM: Global<u32> = Global::new(0);

/// Faults by process.
#[map]
static FAULTS: HashMap<FaultKey, FaultCell> = HashMap::with_max_entries(1, 0);

// The kernel counts a fault when it has been handled, with preemption off, and tells minor from major (mm_account_fault, mm/memory.c).
#[perf_event]
fn minor(ctx: PerfEventContext) -> u32 {
    fault(&ctx, |cell| &raw mut cell.minor)
}

#[perf_event]
fn major(ctx: PerfEventContext) -> u32 {
    fault(&ctx, |cell| &raw mut cell.major)
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn fault(ctx: &PerfEventContext, kind: impl Fn(&mut FaultCell) -> *mut u64) -> u32 {
    if !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    if BY_STACK.load() != 0 {
        if let Err(lost) = capture(ctx).and_then(|key| weigh(&key, 0)) {
            count(lost);
        }
        return 0;
    }
    let key = FaultKey { pid: (bpf_get_current_pid_tgid() >> 32) as u32, zero: 0 };
    let resident = resident_pages();
    let Some(cell) = cell(&key, resident) else {
        count(Counter::MapFull);
        return 0;
    };
    // SAFETY: a pointer into the map's value; the last of several threads wins.
    unsafe {
        (*cell).last_pages = resident;
        if resident > (*cell).most_pages {
            (*cell).most_pages = resident;
        }
        add(kind(&mut *cell), 1);
    }
    0
}

/// Of the current process.
#[inline(always)]
fn resident_pages() -> u64 {
    // SAFETY: a task either way; a failed read gives zeros.
    unsafe {
        let Some(task) = current_task() else {
            let task = bpf_get_current_task() as *const u8;
            return resident(pages(read_kernel(task.wrapping_add(TASK_MM.load() as usize))));
        };
        let mm: *const u8 = load(task, TASK_MM.load());
        if mm.is_null() { 0 } else { resident_of_trusted(mm) }
    }
}

#[inline(always)]
fn cell(key: &FaultKey, resident: u64) -> Option<*mut FaultCell> {
    if let Some(cell) = FAULTS.get_ptr_mut(key) {
        return Some(cell);
    }
    let process = current_process();
    let new =
        FaultCell { minor: 0, major: 0, first_pages: resident, last_pages: resident, most_pages: resident, process };
    // Another CPU may have been first (BPF_NOEXIST is 1): then there is a cell to add to all the same.
    let _ = FAULTS.insert(key, new, 1);
    FAULTS.get_ptr_mut(key)
}

mcptrace_ebpf::object!();
