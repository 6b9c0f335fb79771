//! The end of a process: which thread is its last, and with what status it ends.

use aya_ebpf::{Global, maps::LruHashMap, programs::BtfTracePointContext};

use crate::kernel::read_kernel;

/// Whether the tracepoint says that the thread is the last of its process (6.16); else the count of living threads does.
#[unsafe(no_mangle)]
static EXIT_TELLS_LAST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_START_TIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_EXIT_CODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_EXIT_CODE: Global<u32> = Global::new(0);

/// `SIGNAL_GROUP_EXIT` (include/linux/sched/signal.h).
const SIGNAL_GROUP_EXIT: u32 = 4;

/// Processes that have ended, where the last two threads of one may both find no other alive.
pub type Ended = LruHashMap<[u64; 2], u8>;

/// Whether the thread that `sched_process_exit` tells of is the last of its process. Says so once for each process.
///
/// # Safety
///
/// `signal` and `leader` point to the `struct signal_struct` and the first `struct task_struct` of its process.
#[inline(always)]
pub unsafe fn is_last_thread(ctx: &BtfTracePointContext, ended: &Ended, signal: *const u8, leader: *const u8) -> bool {
    if EXIT_TELLS_LAST.load() != 0 {
        return ctx.arg::<u64>(1) & 0xff != 0;
    }
    // SAFETY: the caller's promise; a failed read gives zeros, here and below.
    if unsafe { field::<u32>(signal, SIGNAL_LIVE.load()) } != 0 {
        return false;
    }
    // The address alone can be used again: by a process that starts later. BPF_NOEXIST is 1.
    // SAFETY: as above.
    let key = [leader as u64, unsafe { start_time(leader) }];
    ended.insert(key, 1_u8, 1).is_ok()
}

/// When a thread was made, on the kernel's `CLOCK_MONOTONIC`.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn start_time(task: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { field(task, TASK_START_TIME.load()) }
}

/// What the parent gets from wait(2), as `wait_task_zombie` has it (kernel/exit.c).
///
/// # Safety
///
/// As for [`is_last_thread`].
#[inline(always)]
pub unsafe fn exit_status(signal: *const u8, leader: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        if field::<u32>(signal, SIGNAL_FLAGS.load()) & SIGNAL_GROUP_EXIT != 0 {
            field(signal, SIGNAL_EXIT_CODE.load())
        } else {
            field(leader, TASK_EXIT_CODE.load())
        }
    }
}

#[inline(always)]
unsafe fn field<T>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller passes a kernel structure; a failed read gives zeros.
    unsafe { read_kernel(base.wrapping_add(offset as usize)) }
}
