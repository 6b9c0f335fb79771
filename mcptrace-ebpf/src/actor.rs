//! Who does something: for records of rare events. Everything is copied by helpers, so that a task may come from anywhere.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_get_current_task},
};

use crate::{
    Actor,
    kernel::{TASK_PID, TASK_TGID, current_cgroup, current_comm, read_kernel, task_cgroup, task_comm, task_uid},
};

#[unsafe(no_mangle)]
static TASK_REAL_PARENT: Global<u32> = Global::new(0);

/// The running thread.
#[inline(always)]
pub fn current_actor() -> Actor {
    let ids = bpf_get_current_pid_tgid();
    // SAFETY: the helper gives the current task.
    let parent = unsafe { parent(bpf_get_current_task() as *const u8) };
    Actor {
        cgroup: current_cgroup(),
        pid: (ids >> 32) as u32,
        tid: ids as u32,
        uid: bpf_get_current_uid_gid() as u32,
        // SAFETY: a task.
        ppid: unsafe { tgid(parent) },
        comm: current_comm(),
    }
}

/// Any thread.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_actor(task: *const u8) -> Actor {
    // SAFETY: the caller's promise; a failed read gives zeros.
    unsafe {
        Actor {
            cgroup: task_cgroup(task),
            pid: tgid(task),
            tid: read_kernel(task.wrapping_add(TASK_PID.load() as usize)),
            uid: task_uid(task),
            ppid: tgid(parent(task)),
            comm: task_comm(task),
        }
    }
}

/// The process that made a task, or that took it over.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn parent(task: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe { read_kernel(task.wrapping_add(TASK_REAL_PARENT.load() as usize)) }
}

/// The process that a task is a thread of.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn tgid(task: *const u8) -> u32 {
    // SAFETY: the callers pass tasks.
    unsafe { read_kernel(task.wrapping_add(TASK_TGID.load() as usize)) }
}
