//! What is said about functions of user space.

use crate::{CGROUP_OFFSET, Comm, Header, Record, TIME_OFFSET};

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
    /// Id of the thread's control group in the version 2 hierarchy.
    pub cgroup: u64,
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
const _: () = assert!(core::mem::offset_of!(Lookup, cgroup) == CGROUP_OFFSET);
const _: () = assert!(size_of::<Lookup>() == 72);
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
    /// Id of the thread's control group in the version 2 hierarchy.
    pub cgroup: u64,
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
const _: () = assert!(core::mem::offset_of!(SlowCall, cgroup) == CGROUP_OFFSET);
const _: () = assert!(size_of::<SlowCall>() == 64);

/// Arguments of a USDT probe, at most (`STAP_PROBE12`, sys/sdt.h).
pub const USDT_ARGUMENTS: usize = 12;

/// Arguments that are followed to a text, at most.
pub const USDT_TEXTS: usize = 2;

/// Bytes of such a text, with the zero at its end.
pub const USDT_TEXT_MAX: usize = 64;

/// How an argument of a USDT probe is found: `(register & base_mask) + ((index & index_mask) << shift) + number` is its value, or
/// where it lies in memory. Masks instead of flags: each branch would double what the verifier has to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UsdtArgument {
    /// The constant, or what is added to the address.
    pub number: i64,
    /// All ones if there is a register.
    pub base_mask: u64,
    /// All ones if there is an index register.
    pub index_mask: u64,
    /// Offset of the register in `struct pt_regs`.
    pub register: u16,
    /// Offset of the index register.
    pub index: u16,
    /// The index register is shifted left by so many bits.
    pub shift: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Whether it lies in memory.
    pub in_memory: u8,
    /// 1 if it is nowhere that can be read here.
    pub unknown: u8,
}

/// A place of a USDT probe in the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UsdtPlace {
    /// Its arguments; the rest is `unknown`.
    pub arguments: [UsdtArgument; USDT_ARGUMENTS],
}

/// A USDT probe that was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Usdt {
    /// Size, version, kind.
    pub header: Header,
    /// Index of the place.
    pub place: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// Id of the thread's control group in the version 2 hierarchy.
    pub cgroup: u64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// Command name of the thread.
    pub comm: Comm,
    /// The arguments, not yet cut to their sizes.
    pub arguments: [u64; USDT_ARGUMENTS],
    /// A bit for each argument that could not be read.
    pub unread: u64,
}

// SAFETY: as above.
unsafe impl Record for Usdt {
    const KIND: u8 = 42;
}

const _: () = assert!(core::mem::offset_of!(Usdt, time_ns) == TIME_OFFSET);
const _: () = assert!(core::mem::offset_of!(Usdt, cgroup) == CGROUP_OFFSET);
const _: () = assert!(size_of::<Usdt>() == 152);
/// Texts that arguments point to, behind [`Usdt`] where they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UsdtTexts {
    /// Bytes of each with the zero at its end; 0 where it could not be read.
    pub lengths: [u64; USDT_TEXTS],
    /// The texts.
    pub bytes: [[u8; USDT_TEXT_MAX]; USDT_TEXTS],
}

const _: () = assert!(size_of::<UsdtTexts>() == 144);
const _: () = assert!(size_of::<UsdtPlace>() == 32 * USDT_ARGUMENTS);
