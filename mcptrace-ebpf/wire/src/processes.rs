//! Records about processes: who acts, starts, ends, signals and out-of-memory kills.

use crate::{CGROUP_OFFSET, Comm, Header, Record, TIME_OFFSET};

/// A thread that does something or has it done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Actor {
    /// Id of its control group in the version 2 hierarchy.
    pub cgroup: u64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Its parent process.
    pub ppid: u32,
    /// Command name of the thread.
    pub comm: Comm,
}

/// A program that a process has become, followed by `filename_len` bytes of its path, `arguments_len` of its arguments and
/// `directory_len` of its working directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Exec {
    /// Size, version, kind.
    pub header: Header,
    /// Bytes of path that follow, without a final NUL.
    pub filename_len: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The process, under its new name.
    pub actor: Actor,
    /// Command name of its parent.
    pub parent_comm: Comm,
    /// Bytes of arguments that follow, each with its NUL.
    pub arguments_len: u32,
    /// Bytes of arguments that there are.
    pub arguments_total: u32,
    /// Bytes of the names of the working directory that follow, from it up, each with its NUL.
    pub directory_len: u32,
    /// `WALK_*` bits of it.
    pub directory_flags: u32,
    /// The parent of its parent and so on, up to the first process; then zeros.
    pub ancestors: [Ancestor; EXEC_ANCESTORS],
}

/// A process above another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ancestor {
    /// Process (thread group) in the initial pid namespace; 0 is none.
    pub pid: u32,
    /// Command name of its thread that made the one below.
    pub comm: Comm,
}

/// How many processes above its parent an [`Exec`] names.
pub const EXEC_ANCESTORS: usize = 6;

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for Exec {
    const KIND: u8 = 20;
}

/// The longest path of a program that an [`Exec`] carries, with its NUL; a power of two.
pub const EXEC_PATH_MAX: usize = 512;
/// The most bytes of arguments that an [`Exec`] carries; a power of two.
pub const EXEC_ARGUMENTS_MAX: usize = 2048;

/// A process whose last thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Exit {
    /// Size, version, kind.
    pub header: Header,
    /// As wait(2) gives it: code, signal, core.
    pub status: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The last thread; its process is what ends.
    pub actor: Actor,
    /// Since the process was made, in nanoseconds.
    pub lifetime_ns: u64,
    /// Sampled time in user mode of all its threads, in nanoseconds.
    pub user_ns: u64,
    /// Sampled time in kernel mode of all its threads, in nanoseconds.
    pub system_ns: u64,
    /// Time on CPUs of all its threads up to the last tick or switch, in nanoseconds.
    pub cpu_ns: u64,
    /// The most memory it has had at once, in pages.
    pub max_rss_pages: u64,
    /// Command name of the process (its first thread).
    pub comm: Comm,
}

// SAFETY: as for `Exec`.
unsafe impl Record for Exit {
    const KIND: u8 = 21;
}

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Signal {
    /// Size, version, kind.
    pub header: Header,
    /// Its number.
    pub signal: i32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The running thread. It is the sender unless the kernel or a timer is.
    pub sender: Actor,
    /// Whom it is for.
    pub target: Actor,
    /// `si_code` (include/uapi/asm-generic/siginfo.h).
    pub code: i32,
    /// `TRACE_SIGNAL_*` (include/trace/events/signal.h).
    pub result: i32,
    /// Whether it is for the whole process.
    pub group: u32,
    /// Always 0.
    pub zero: u32,
}

// SAFETY: as for `Exec`.
unsafe impl Record for Signal {
    const KIND: u8 = 22;
}

/// A process that the kernel chose to kill for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OomKill {
    /// Size, version, kind.
    pub header: Header,
    /// `oom_score_adj` of the victim.
    pub score_adjustment: i32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The thread that wanted memory.
    pub trigger: Actor,
    /// Who is killed. Only its process is known where [`Self::detailed`] is 0.
    pub victim: Actor,
    /// Pages of files, anonymous memory, swap and shared memory (the order of `MM_*COUNTERS`, include/linux/mm_types_task.h).
    pub pages: [u64; 4],
    /// Address space, in pages.
    pub virtual_pages: u64,
    /// Whether the kernel told more than the process id.
    pub detailed: u64,
    /// Memory charged to the victim's control group or one above, the one with the least room below its limit, in pages.
    pub group_pages: u64,
    /// Its limit, in pages; 0 where none is known.
    pub group_limit: u64,
}

// SAFETY: as for `Exec`.
unsafe impl Record for OomKill {
    const KIND: u8 = 23;
}

const _: () = assert!(size_of::<Actor>() == 40 && core::mem::offset_of!(Actor, cgroup) == 0);
const _: () = assert!(core::mem::offset_of!(Exec, actor) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(Exit, actor) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(Signal, sender) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(OomKill, trigger) == CGROUP_OFFSET);
const _: () =
    assert!(size_of::<Exec>() == 88 + EXEC_ANCESTORS * 20 && core::mem::offset_of!(Exec, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<Exit>() == 112 && core::mem::offset_of!(Exit, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<Signal>() == 112 && core::mem::offset_of!(Signal, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<OomKill>() == 160 && core::mem::offset_of!(OomKill, time_ns) == TIME_OFFSET);
