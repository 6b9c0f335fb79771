//! Call stacks: a record for each new one, and how its weights are kept.

use crate::{Comm, Header, Process, Record};

/// Frames of a kernel stack that are kept.
pub const KERNEL_FRAMES: usize = 64;
/// Frames of a user stack that are kept: `PERF_MAX_STACK_DEPTH` (include/uapi/linux/perf_event.h), which the kernel does not pass.
pub const USER_FRAMES: usize = 127;

/// Which sides of a stack are captured, in the global `STACK_SIDES`.
pub const KERNEL_SIDE: u32 = 1;
/// See [`KERNEL_SIDE`].
pub const USER_SIDE: u32 = 2;

/// A frame of a user stack: `struct bpf_stack_build_id` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UserFrame {
    /// [`FRAME_IN_FILE`], [`FRAME_ADDRESS`], or 0 for no frame.
    pub status: i32,
    /// The build id of the file.
    pub build_id: [u8; 20],
    /// The offset in the file, or the address in the process.
    pub place: u64,
}

/// `BPF_STACK_BUILD_ID_VALID`: the frame has a build id and an offset.
pub const FRAME_IN_FILE: i32 = 1;
/// `BPF_STACK_BUILD_ID_IP`: the kernel found no build id; the frame is an address.
pub const FRAME_ADDRESS: i32 = 2;

/// A stack that was not seen before, followed by [`KERNEL_FRAMES`] addresses and `user_frames` times [`UserFrame`], innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NewStack {
    /// Size, version, kind.
    pub header: Header,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// See [`StackKey::id`].
    pub id: u64,
    /// Command name of the thread.
    pub comm: Comm,
    /// How many of the kernel's frames there are.
    pub kernel_frames: u32,
    /// How many frames of user space follow.
    pub user_frames: u32,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for NewStack {
    const KIND: u8 = 3;
}

/// A process that runs another program from now on, followed by its path as it was given to exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Executed {
    /// Size, version, kind.
    pub header: Header,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers only.
unsafe impl Record for Executed {
    const KIND: u8 = 4;
}

/// The longest path of an [`Executed`], in bytes, with its NUL.
pub const EXECUTED_PATH: usize = 256;

const _: () = assert!(size_of::<Executed>() == 16);
const _: () = assert!(size_of::<NewStack>() == 48);
const _: () = assert!(size_of::<UserFrame>() == 32);
const _: () = assert!(core::mem::offset_of!(NewStack, time_ns) == 8);

/// Names a stack of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct StackKey {
    /// A hash of its addresses.
    pub id: u64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
}

/// What a stack weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StackWeight {
    /// Events.
    pub count: u64,
    /// The sum of what they measure.
    pub sum: u64,
}

/// When a thread began to wait, and where. The time is tagged as [`crate::start_slot`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WaitSlot {
    /// Tagged time; 0: nothing.
    pub start: u64,
    /// [`StackKey::id`], [`WAIT_UNASKED`], or the [`crate::Counter`] by which the stack was lost.
    pub stack: u64,
}

/// Stands in [`WaitSlot::stack`] for a thread whose absence is not asked for.
pub const WAIT_UNASKED: u64 = 0;

/// Causes by which a stack can be lost stand in [`WaitSlot::stack`] by their number; the hash of a stack is never below this.
pub const LEAST_STACK: u64 = 16;

/// A wait and what ended it, in `wakeup_chains`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct WakeKey {
    /// [`StackKey::id`] of where the thread went to sleep.
    pub waiter: u64,
    /// [`StackKey::id`] of who woke it.
    pub waker: u64,
    /// Process that waited.
    pub waiter_pid: u32,
    /// Process that woke it.
    pub waker_pid: u32,
}

/// A lock that a thread, or a CPU, waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LockSlot {
    /// Address of the lock; 0: none.
    pub lock: u64,
    /// `CLOCK_MONOTONIC` when the wait began, in nanoseconds.
    pub start: u64,
    /// Thread id.
    pub tid: u32,
    /// `LCB_F_*` (include/trace/events/lock.h).
    pub flags: u32,
}

/// `LCB_F_SPIN`: it spins.
pub const LOCK_SPINS: u32 = 1;
/// `LCB_F_MUTEX`, which may spin first.
pub const LOCK_IS_MUTEX: u32 = 32;

/// A lock's kind and the stack by which it was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct LockKey {
    /// [`StackKey::id`].
    pub stack: u64,
    /// `LCB_F_*`.
    pub flags: u32,
    /// [`StackKey::pid`].
    pub pid: u32,
}

/// Waits: how many, how long together, and the longest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Waits {
    /// How many.
    pub count: u64,
    /// Together, in nanoseconds.
    pub total_ns: u64,
    /// The longest, in nanoseconds; of two that end at once one may be overlooked.
    pub max_ns: u64,
}

/// Futex waits of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FutexCell {
    /// All that ended.
    pub waits: Waits,
    /// Of these, ended by their time (`ETIMEDOUT`).
    pub timed_out: u64,
    /// Of these, not begun because the value had changed (`EAGAIN`).
    pub not_needed: u64,
    /// The process at the first.
    pub process: Process,
}

/// An allocation in progress, by thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeapSlot {
    /// What is asked for, in bytes.
    pub bytes: u64,
    /// Where `posix_memalign` puts the address; 0: it is returned.
    pub target: u64,
    /// The block that `realloc` was given and that is in account; 0: none.
    pub old: u64,
    /// What is known of it.
    pub old_block: HeapBlock,
    /// Thread id; 0: nothing in progress.
    pub tid: u32,
    /// Whether the allocation is looked at; of others only the old block is.
    pub sampled: u32,
}

/// An address in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct HeapKey {
    /// The address.
    pub address: u64,
    /// The process.
    pub pid: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
}

/// An allocation that was not freed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeapBlock {
    /// Its size, in bytes.
    pub bytes: u64,
    /// [`StackKey::id`].
    pub stack: u64,
}

/// As in the page above.
#[cfg(feature = "user")]
mod user {
    use super::{FutexCell, LockKey, StackKey, StackWeight, Waits, WakeKey};

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for StackKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StackWeight {}
    // SAFETY: as above.
    unsafe impl aya::Pod for WakeKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Waits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FutexCell {}
}
