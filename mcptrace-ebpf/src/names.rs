//! Who an event counts for, and the names and control groups of processes.
//!
//! A thread's name is its own; that of a process is its first thread's. A process has the name of its parent until it executes a
//! program, so rows of processes have the name that was last seen and not the one at their first event. So it is with its control group:
//! what starts a service or a container moves into its group and then executes its program.

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task, bpf_probe_read_kernel_str},
    },
    macros::map,
    maps::LruHashMap,
};

use crate::{
    COMM_LEN, Comm, GroupBy, GroupKey, Process, comm_of_cgroup,
    kernel::{
        TASK_LEADER, current_cgroup, current_comm, process_passes, read_kernel, task_cgroup, task_comm, task_tgid,
        task_tid,
    },
};

/// What results are grouped by, a [`GroupBy`].
#[unsafe(no_mangle)]
static GROUP_BY: Global<u32> = Global::new(GroupBy::All as u32);

/// The names that processes have taken since tracing began, with their control groups then. Made with one entry unless rows are of
/// processes.
#[map]
static NAMES: LruHashMap<u32, Process> = LruHashMap::with_max_entries(1, 0);

/// Whether results are grouped.
#[inline(always)]
pub fn is_grouped() -> bool {
    GROUP_BY.load() != GroupBy::All as u32
}

/// The group of the current thread.
#[inline(always)]
pub fn current_group() -> GroupKey {
    let by = GROUP_BY.load();
    let pid = if by == GroupBy::Pid as u32 { (bpf_get_current_pid_tgid() >> 32) as u32 } else { 0 };
    let comm = if by == GroupBy::Comm as u32 {
        current_comm()
    } else if by == GroupBy::Container as u32 {
        comm_of_cgroup(current_cgroup())
    } else {
        [0; COMM_LEN]
    };
    GroupKey { pid, zero: 0, comm }
}

/// The group of a task.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_group(task: *const u8) -> GroupKey {
    let by = GROUP_BY.load();
    // SAFETY: the caller's promise.
    unsafe {
        let pid = if by == GroupBy::Pid as u32 { task_tgid(task) } else { 0 };
        let comm = if by == GroupBy::Comm as u32 {
            task_comm(task)
        } else if by == GroupBy::Container as u32 {
            comm_of_cgroup(task_cgroup(task))
        } else {
            [0; COMM_LEN]
        };
        GroupKey { pid, zero: 0, comm }
    }
}

/// The current thread's process, for a new row: what it is called later is in `NAMES`.
#[inline(always)]
pub fn current_process() -> Process {
    // SAFETY: the helper gives the current task.
    Process { cgroup: current_cgroup(), comm: unsafe { process_comm(bpf_get_current_task() as *const u8) } }
}

/// The process of a task.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn process(task: *const u8) -> Process {
    // SAFETY: the caller's promise; a failed read gives zeros.
    unsafe { Process { cgroup: task_cgroup(task), comm: process_comm(task) } }
}

#[inline(always)]
unsafe fn process_comm(task: *const u8) -> Comm {
    // SAFETY: the callers pass a task; a failed read gives zeros.
    unsafe { task_comm(read_kernel(task.wrapping_add(TASK_LEADER.load() as usize))) }
}

/// Keeps the name that a process takes, and where it is then.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`; `name` points to the new name.
#[inline(always)]
pub unsafe fn renamed(task: *const u8, name: *const u8) {
    let mut comm: Comm = [0; COMM_LEN];
    // SAFETY: the caller's promise; the helper writes at most so many bytes, the last of them a NUL.
    unsafe {
        let pid = task_tgid(task);
        if task_tid(task) != pid || !process_passes(task) {
            return;
        }
        bpf_probe_read_kernel_str((&raw mut comm).cast(), COMM_LEN as u32, name.cast());
        let _ = NAMES.insert(pid, Process { cgroup: task_cgroup(task), comm }, 0);
    }
}

/// Adds the program that keeps the names of processes. User space attaches it only where rows are of processes.
#[macro_export]
macro_rules! names_processes {
    () => {
        #[aya_ebpf::macros::btf_tracepoint(function = "task_rename")]
        fn renamed(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            // SAFETY: the arguments of task_rename are the task, whose name is still the old one, and the new name
            // (include/trace/events/task.h).
            unsafe { $crate::names::renamed(ctx.arg(0), ctx.arg(1)) };
            0
        }
    };
}
