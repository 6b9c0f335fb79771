//! What is said about failed calls and about privilege.

use crate::{Actor, CGROUP_OFFSET, Comm, Header, Record, TIME_OFFSET};

/// What failed calls are counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ErrorKey {
    /// System call, an index as of [`crate::syscall_index`].
    pub syscall: u32,
    /// Positive errno, or one of the kernel's codes that ask for a restart.
    pub errno: u32,
    /// Process; 0 where processes are not told apart.
    pub pid: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
    /// Command name of the thread.
    pub comm: Comm,
}

/// Errors of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// Id of the control group of the process at the first, in the version 2 hierarchy.
    pub cgroup: u64,
}

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FailedCall {
    /// Size, version, kind.
    pub header: Header,
    /// System call, an index as of [`crate::syscall_index`].
    pub syscall: u32,
    /// `CLOCK_MONOTONIC` at return, in nanoseconds.
    pub time_ns: u64,
    /// Who called.
    pub actor: Actor,
    /// Positive errno.
    pub errno: u32,
    /// Always 0.
    pub zero: u32,
    /// The first three arguments.
    pub arguments: [u64; 3],
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for FailedCall {
    const KIND: u8 = 24;
}

/// What checks of capabilities are counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct CapabilityKey {
    /// `CAP_*` (include/uapi/linux/capability.h).
    pub capability: u32,
    /// Process; 0 where processes are not told apart.
    pub pid: u32,
    /// Command name of the thread.
    pub comm: Comm,
}

/// Checks of one capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CapabilityCount {
    /// Checks that found it.
    pub granted: u64,
    /// Checks that did not.
    pub refused: u64,
    /// As of [`ErrorCount`].
    pub cgroup: u64,
}

/// A check of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CapabilityCheck {
    /// Size, version, kind.
    pub header: Header,
    /// `CAP_*` (include/uapi/linux/capability.h).
    pub capability: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// Whose.
    pub actor: Actor,
    /// 0 or a negated errno.
    pub result: i64,
}

// SAFETY: as for `FailedCall`.
unsafe impl Record for CapabilityCheck {
    const KIND: u8 = 25;
}

/// Bytes of each string that a [`PrivilegedCall`] carries, with its NUL.
pub const PRIVILEGED_STRING: usize = 128;

/// A system call that needs or changes privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PrivilegedCall {
    /// Size, version, kind.
    pub header: Header,
    /// System call, an index as of [`crate::syscall_index`].
    pub syscall: u32,
    /// `CLOCK_MONOTONIC` at return, in nanoseconds.
    pub time_ns: u64,
    /// Who called, as it is after the call.
    pub actor: Actor,
    /// What it returned.
    pub result: i64,
    /// The first four arguments.
    pub arguments: [u64; 4],
    /// Flags of a clone, or modes of a clock that is steered, wherever they stand.
    pub flags: u64,
    /// Which of the arguments are in `strings`, a bit each.
    pub strings_read: u64,
    /// Arguments that are strings, by position.
    pub strings: [[u8; PRIVILEGED_STRING]; 4],
}

// SAFETY: as for `FailedCall`.
unsafe impl Record for PrivilegedCall {
    const KIND: u8 = 26;
}

const _: () = assert!(core::mem::offset_of!(FailedCall, actor) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(CapabilityCheck, actor) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(PrivilegedCall, actor) == CGROUP_OFFSET);
const _: () = assert!(size_of::<FailedCall>() == 88 && core::mem::offset_of!(FailedCall, time_ns) == TIME_OFFSET);
const _: () =
    assert!(size_of::<CapabilityCheck>() == 64 && core::mem::offset_of!(CapabilityCheck, time_ns) == TIME_OFFSET);
const _: () =
    assert!(size_of::<PrivilegedCall>() == 624 && core::mem::offset_of!(PrivilegedCall, time_ns) == TIME_OFFSET);

#[cfg(feature = "user")]
mod user {
    use super::{CapabilityCount, CapabilityKey, ErrorCount, ErrorKey};

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for ErrorKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ErrorCount {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CapabilityKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CapabilityCount {}
}
