//! What is said about functions of user space.

use crate::{Comm, Header, Record, TIME_OFFSET};

/// A call of a function under way. The stack pointer at its entry tells calls of one thread apart, also where a function calls itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct CallKey {
    /// Stack pointer at entry.
    pub stack: u64,
    /// Thread.
    pub tid: u32,
    /// Index of the function.
    pub function: u32,
}

/// A look-up of a name under way in a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LookupStart {
    /// When it began.
    pub time_ns: u64,
    /// Stack pointer at entry.
    pub stack: u64,
    /// Where the name is in the program's memory.
    pub name: u64,
    /// A [`LookupBy`].
    pub function: u64,
}

/// The function that looks a name up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LookupBy {
    /// `getaddrinfo`.
    Getaddrinfo = 0,
    /// `gethostbyname`.
    Gethostbyname = 1,
    /// `gethostbyname2`.
    Gethostbyname2 = 2,
    /// `gethostbyname_r`.
    GethostbynameR = 3,
    /// `gethostbyname2_r`.
    Gethostbyname2R = 4,
}

/// How many functions look names up.
pub const LOOKUPS: u32 = 5;

/// The longest name that a record carries, with its NUL: one of the DNS has at most 253 bytes (RFC 1035).
pub const NAME_MAX: usize = 256;

/// One look-up of a name, followed by `name_len` bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Lookup {
    /// Size, version, kind.
    pub header: Header,
    /// A [`LookupBy`].
    pub function: u32,
    /// `CLOCK_MONOTONIC` when the call returned, in nanoseconds.
    pub time_ns: u64,
    /// From entry to return, in nanoseconds.
    pub latency_ns: u64,
    /// What it returned.
    pub result: u64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// Command name of the thread.
    pub comm: Comm,
    /// Bytes of the name that follow, without a final NUL; [`crate::PATH_UNREADABLE`] if it could not be read.
    pub name_len: u32,
    /// Always 0: records have no padding.
    pub zero: u32,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for Lookup {
    const KIND: u8 = 40;
}

const _: () = assert!(core::mem::offset_of!(Lookup, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<Lookup>() == 64);
const _: () = assert!(size_of::<CallKey>() == 16);

/// A call of a function that took longer than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SlowCall {
    /// Size, version, kind.
    pub header: Header,
    /// Index of the function.
    pub function: u32,
    /// `CLOCK_MONOTONIC` when the call returned, in nanoseconds.
    pub time_ns: u64,
    /// From entry to return, in nanoseconds.
    pub latency_ns: u64,
    /// The register of the result: of no meaning where the function returns nothing.
    pub result: u64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// Command name of the thread.
    pub comm: Comm,
}

// SAFETY: as above.
unsafe impl Record for SlowCall {
    const KIND: u8 = 41;
}

const _: () = assert!(core::mem::offset_of!(SlowCall, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<SlowCall>() == 56);
