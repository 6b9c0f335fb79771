//! The wire format: everything the kernel side and user space say to each other, on one page.
//!
//! Both sides compile this file, so a record cannot mean two things. It is a package of its own because user space must not link
//! what kernel programs are built on: aya-ebpf defines `memcpy`, `memmove` and `memset` without their return values, and a program
//! that links them calls them in place of libc's.

#![no_std]

mod files;
mod functions;
mod net;
mod privileges;
mod processes;
mod recorder;
mod stack;
mod time;

pub use files::*;
pub use functions::*;
pub use net::*;
pub use privileges::*;
pub use processes::*;
pub use recorder::*;
pub use stack::*;
pub use time::*;

/// Version of the wire format. A record of another version is counted as malformed, never decoded.
pub const WIRE_VERSION: u8 = 1;

/// `TASK_COMM_LEN` of the kernel (include/linux/sched.h): a command name with its final NUL.
pub const COMM_LEN: usize = 16;

/// A command name as the kernel keeps it, padded with NULs.
pub type Comm = [u8; COMM_LEN];

/// Filter bits, in the global `FILTERS`: the process must be `FILTER_PID`.
pub const BY_PID: u32 = 1;
/// The thread must be `FILTER_TID`.
pub const BY_TID: u32 = 2;
/// The user must be `FILTER_UID`.
pub const BY_UID: u32 = 4;
/// The command name must be `FILTER_COMM`.
pub const BY_COMM: u32 = 8;
/// The thread must be in `FILTER_CGROUP` or below.
pub const BY_CGROUP: u32 = 16;
/// The process must be in the map `FOLLOWED`; takes the place of [`BY_PID`].
pub const BY_FOLLOWED: u32 = 32;

/// Starts every record that travels through a ring or perf buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// Bytes of the whole record, this header included. Perf buffers pad, so the buffer may hold more.
    pub size: u16,
    /// [`WIRE_VERSION`].
    pub version: u8,
    /// [`Record::KIND`].
    pub kind: u8,
}

/// A record that travels through a ring or perf buffer: a fixed part, possibly followed by bytes of varying length.
///
/// # Safety
///
/// Implementors are `repr(C)`, start with a [`Header`], have no padding, and are valid for every bit pattern.
pub unsafe trait Record: Copy {
    /// Tells the records of one probe apart.
    const KIND: u8;
}

/// One `open`, `openat`, `openat2` or `creat`, followed by `path_len` bytes of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Open {
    /// Size, version, kind.
    pub header: Header,
    /// The file descriptor, or a negated errno.
    pub result: i32,
    /// `CLOCK_MONOTONIC` when the call returned, in nanoseconds.
    pub time_ns: u64,
    /// Id of the thread's control group in the version 2 hierarchy.
    pub cgroup: u64,
    /// From entry to return, in nanoseconds.
    pub latency_ns: u64,
    /// Flags of the call, `O_*`.
    pub flags: u64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Directory the path is relative to: `AT_FDCWD` (-100) or a file descriptor.
    pub dirfd: i32,
    /// Command name of the thread.
    pub comm: Comm,
    /// System call, an index as of [`syscall_index`].
    pub syscall: u32,
    /// Bytes of path that follow, without a final NUL; [`PATH_UNREADABLE`] if it could not be read.
    pub path_len: u32,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for Open {
    const KIND: u8 = 1;
}

/// The longest path a record carries: `PATH_MAX` (include/uapi/linux/limits.h) with its NUL.
pub const PATH_MAX: usize = 4096;

/// Stands in [`Open::path_len`] when the pointer that the caller passed could not be read.
pub const PATH_UNREADABLE: u32 = u32::MAX;

/// A system call that took longer than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SlowSyscall {
    /// Size, version, kind.
    pub header: Header,
    /// System call, an index as of [`syscall_index`].
    pub syscall: u32,
    /// `CLOCK_MONOTONIC` when the call returned, in nanoseconds.
    pub time_ns: u64,
    /// Id of the thread's control group in the version 2 hierarchy.
    pub cgroup: u64,
    /// From entry to return, in nanoseconds.
    pub latency_ns: u64,
    /// What it returned.
    pub result: i64,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// Command name of the thread.
    pub comm: Comm,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for SlowSyscall {
    const KIND: u8 = 2;
}

/// Where every record has its time, in bytes.
const TIME_OFFSET: usize = 8;

/// The time of a record of any kind; 0 if it is too short to have one.
pub fn time_of(record: &[u8]) -> u64 {
    word(record, TIME_OFFSET)
}

/// Where a record that says in which control group its process is has the group's id, in bytes. An [`Actor`] begins with it.
pub(crate) const CGROUP_OFFSET: usize = 16;

/// The control group of a record that has one; 0 if it is too short.
pub fn cgroup_of(record: &[u8]) -> u64 {
    word(record, CGROUP_OFFSET)
}

fn word(record: &[u8], offset: usize) -> u64 {
    let bytes = record.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

const _: () = assert!(core::mem::offset_of!(Open, time_ns) == TIME_OFFSET);
const _: () = assert!(core::mem::offset_of!(Open, cgroup) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(SlowSyscall, cgroup) == CGROUP_OFFSET);
const _: () = assert!(core::mem::offset_of!(SlowSyscall, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<Header>() == 4);
const _: () = assert!(size_of::<Open>() == 80);
const _: () = assert!(size_of::<SlowSyscall>() == 64);

/// Where a kernel program counts: an index into the per-CPU array `COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Events that passed the filters.
    Seen = 0,
    /// The ring or perf buffer was full.
    BufferFull = 1,
    /// The start was not recorded: it was before the probe attached, or another thread took its slot.
    StartMissing = 2,
    /// A hash map had no room for another key.
    MapFull = 3,
    /// Events beside the main report that passed (slow system calls).
    SideSeen = 4,
    /// Events beside the main report for which the buffer was full.
    SideBufferFull = 5,
    /// Processes that could not be followed because the table of followed processes was full.
    FollowFull = 6,
    /// The memory in which a stack is put together was in use by what this event interrupted.
    StackBusy = 7,
}

/// How many entries `COUNTERS` has.
pub const COUNTERS: u32 = 16;

/// Sub-buckets per power of two, as a power of two: 8 sub-buckets, so that a bucket's middle is at most 6.25 % off.
pub const SUB_BUCKET_BITS: u32 = 3;

/// Values from two to the power of this on share the last bucket: 2^40 ns are 18 minutes.
pub const MAX_VALUE_BITS: u32 = 40;

/// Buckets of a [`Histogram`]: 8 for values below 8, then 8 for each power of two up to 2^40, and one for all above.
pub const BUCKETS: usize = 8 + ((MAX_VALUE_BITS - SUB_BUCKET_BITS) as usize) * 8 + 1;

/// A log-linear histogram as kernel programs keep it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Histogram {
    /// Values per bucket, see [`bucket_of`].
    pub buckets: [u64; BUCKETS],
    /// Sum of all values.
    pub sum: u64,
    /// One more than the smallest value; 0 before the first.
    pub min_plus_1: u64,
    /// The largest value.
    pub max: u64,
}

impl Histogram {
    /// A histogram without values.
    pub const EMPTY: Self = Self { buckets: [0; BUCKETS], sum: 0, min_plus_1: 0, max: 0 };
}

/// The bucket of a value.
#[inline(always)]
pub const fn bucket_of(value: u64) -> usize {
    if value < 1 << SUB_BUCKET_BITS {
        return value as usize;
    }
    if value >= 1 << MAX_VALUE_BITS {
        return BUCKETS - 1;
    }
    let power = log2(value);
    let sub = (value >> (power - SUB_BUCKET_BITS)) & ((1 << SUB_BUCKET_BITS) - 1);
    (((power - SUB_BUCKET_BITS + 1) << SUB_BUCKET_BITS) as usize) + sub as usize
}

/// The smallest value of a bucket.
pub const fn bucket_low(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 1 << SUB_BUCKET_BITS {
        return bucket;
    }
    let power = (bucket >> SUB_BUCKET_BITS) as u32 + SUB_BUCKET_BITS - 1;
    let sub = bucket & ((1 << SUB_BUCKET_BITS) - 1);
    (1 << power) + (sub << (power - SUB_BUCKET_BITS))
}

/// The smallest value above a bucket.
pub const fn bucket_high(bucket: usize) -> u64 {
    if bucket + 1 >= BUCKETS { u64::MAX } else { bucket_low(bucket + 1) }
}

/// The position of the highest bit that is set. By halving, because BPF has no instruction that counts leading zeros and
/// LLVM's replacement for it is long.
#[inline(always)]
const fn log2(mut value: u64) -> u32 {
    let mut power = 0;
    let mut step = 32;
    while step > 0 {
        if value >> step != 0 {
            value >>= step;
            power += step;
        }
        step /= 2;
    }
    power
}

/// System calls of the native table have their number as index.
pub const NATIVE_SYSCALLS: u32 = 512;

/// Indexes of system calls in per-call arrays: native ones, 32-bit ones from [`NATIVE_SYSCALLS`] on, and the last for numbers
/// that no table has.
pub const SYSCALLS: u32 = 1024;

/// The index of all numbers that no table has (and of the x32 ABI, whose numbers carry bit 30).
pub const UNKNOWN_SYSCALL: u32 = SYSCALLS - 1;

/// The index of a system call by its number.
#[inline(always)]
pub const fn syscall_index(number: u32, compat: bool) -> u32 {
    if number >= NATIVE_SYSCALLS {
        UNKNOWN_SYSCALL
    } else if compat {
        let index = NATIVE_SYSCALLS + number;
        if index >= UNKNOWN_SYSCALL { UNKNOWN_SYSCALL } else { index }
    } else {
        number
    }
}

/// Calls, errors and interrupted calls of one system call and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SyscallCell {
    /// Calls, counted at entry.
    pub calls: u64,
    /// Returns with an errno.
    pub errors: u64,
    /// Returns that a signal interrupted: the kernel restarts them or gives `EINTR`, which is decided later.
    pub interrupted: u64,
    /// The process when the first call was seen.
    pub process: Process,
}

/// The key of a [`SyscallCell`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SyscallKey {
    /// As of [`GroupKey`].
    pub pid: u32,
    /// System call, an index as of [`syscall_index`].
    pub syscall: u32,
    /// As of [`GroupKey`].
    pub comm: Comm,
}

/// What threads are grouped by, in the global `GROUP_BY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GroupBy {
    /// All in one, per CPU underneath.
    All = 0,
    /// By thread group.
    Pid = 1,
    /// By command name of the thread.
    Comm = 2,
    /// By control group.
    Container = 3,
}

/// What is known of a process: for groups of threads, when the first of them is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// Id of its control group in the version 2 hierarchy; 0 in a kernel without them.
    pub cgroup: u64,
    /// Its command name: that of its first thread.
    pub comm: Comm,
}

/// The longest path of a control group that is kept, with its NUL. A path within the hierarchy of a container in a pod of a cluster in a
/// container is 310 bytes long.
pub const GROUP_PATH_MAX: usize = 384;

/// The path of a control group.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GroupPath {
    /// Ended by a NUL.
    pub path: [u8; GROUP_PATH_MAX],
}

/// A control group in the place of a command name, where groups are by control group.
#[inline(always)]
pub const fn comm_of_cgroup(cgroup: u64) -> Comm {
    // SAFETY: both are 16 bytes of integers.
    unsafe { core::mem::transmute::<[u64; 2], Comm>([cgroup, 0]) }
}

/// The inverse of [`comm_of_cgroup`].
pub fn cgroup_of_comm(comm: &Comm) -> u64 {
    word(comm, 0)
}

/// A command name out of its two words, with zeros behind its NUL: before 5.17 the end of a longer name that the thread had before may
/// stand there (`__set_task_comm`, fs/exec.c).
#[inline(always)]
pub const fn comm_of_words([low, high]: [u64; 2]) -> Comm {
    let end = nuls(low);
    let high = if end == 0 { before(high, nuls(high)) } else { 0 };
    // SAFETY: both are 16 bytes of integers.
    unsafe { core::mem::transmute::<[u64; 2], Comm>([before(low, end), high]) }
}

/// The highest bit of the first byte that is NUL, with others above it or not.
#[inline(always)]
const fn nuls(word: u64) -> u64 {
    word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080
}

/// The bytes before the first NUL.
#[inline(always)]
const fn before(word: u64, nuls: u64) -> u64 {
    word & ((nuls & nuls.wrapping_neg()) >> 7).wrapping_sub(1)
}

/// A group of threads: those of a process, those of one command name, or those of a control group (`pid` 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct GroupKey {
    /// Thread group, 0 unless grouped by process.
    pub pid: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
    /// Command name, or [`comm_of_cgroup`]; zeros when grouped by process.
    pub comm: Comm,
}

/// A histogram with the process as it was when the histogram was created.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NamedHistogram {
    /// The values.
    pub histogram: Histogram,
    /// The process at the first value.
    pub process: Process,
}

/// A device and an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct BlockKey {
    /// `gendisk.major`.
    pub major: u32,
    /// `gendisk.first_minor`.
    pub minor: u32,
    /// `REQ_OP_*` (include/linux/blk_types.h).
    pub operation: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
}

/// What is known of one device and operation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BlockStats {
    /// From the creation of the request to its issue to the driver.
    pub queue: Histogram,
    /// From issue to completion.
    pub service: Histogram,
    /// Requests that completed with an error.
    pub errors: u64,
    /// Bytes that completed.
    pub bytes: u64,
}

/// The index of a thread's slot and the tag that tells threads of one slot apart.
///
/// A slot is one word, written and read at once: 8 bits of tag above 56 bits of time (2.2 years). Slots are
/// [`START_SLOTS`] and thread ids at most 2^22 (`PID_MAX_LIMIT`, include/linux/threads.h), so the 6 remaining bits of
/// the id are all in the tag, and no two threads are mistaken for each other.
#[inline(always)]
pub const fn start_slot(tid: u32) -> (u32, u64) {
    (tid & (START_SLOTS - 1), ((tid >> START_SLOT_BITS) as u64 & 0x7f | 0x80) << START_TIME_BITS)
}

/// Bits of a thread id that index its slot.
pub const START_SLOT_BITS: u32 = 16;
/// Slots for start times.
pub const START_SLOTS: u32 = 1 << START_SLOT_BITS;
/// Bits of a start slot that hold the time, in nanoseconds.
pub const START_TIME_BITS: u32 = 56;
/// Masks the time of a start slot.
pub const START_TIME_MASK: u64 = (1 << START_TIME_BITS) - 1;

/// User space reads these out of maps byte by byte: the orphan rule wants the promise to stand here.
#[cfg(feature = "user")]
mod user {
    use super::{
        BlockKey, BlockStats, GroupKey, GroupPath, Histogram, NamedHistogram, Process, SyscallCell, SyscallKey,
    };

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for Histogram {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SyscallCell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SyscallKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GroupKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NamedHistogram {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Process {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GroupPath {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BlockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BlockStats {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_gapless_and_a_value_lies_in_its_own() {
        for bucket in 0..BUCKETS - 1 {
            let (low, high) = (bucket_low(bucket), bucket_high(bucket));
            assert_eq!(bucket_of(low), bucket, "low {low}");
            assert_eq!(bucket_of(high - 1), bucket, "high {high}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_low(BUCKETS - 1), 1 << MAX_VALUE_BITS);
        assert_eq!(bucket_high(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn the_middle_of_a_bucket_is_at_most_a_sixteenth_off() {
        for bucket in 0..BUCKETS - 1 {
            let (low, high) = (bucket_low(bucket), bucket_high(bucket) - 1);
            let middle = u64::midpoint(low, high);
            for value in [low, high] {
                assert!(value.abs_diff(middle) * 16 <= value, "bucket {bucket}: {low}..={high}");
            }
        }
    }

    #[test]
    fn a_thread_is_never_taken_for_another_of_its_slot() {
        let (slot, tag) = start_slot(7);
        for high in 1..64 {
            let (other_slot, other_tag) = start_slot(7 + high * START_SLOTS);
            assert_eq!(slot, other_slot);
            assert_ne!(tag, other_tag);
        }
        assert_ne!(tag, 0, "an empty slot is nobody's");
    }

    #[test]
    fn a_control_group_is_the_same_behind_a_key_and_in_a_record() {
        assert_eq!(cgroup_of_comm(&comm_of_cgroup(0x1122_3344_5566_7788)), 0x1122_3344_5566_7788);
        let mut record = [0; 24];
        record[16] = 7;
        assert_eq!((cgroup_of(&record), cgroup_of(&record[..23])), (7_u64.to_le(), 0));
    }

    #[test]
    fn a_name_ends_with_its_nul_whatever_stands_behind() {
        for task in [
            *b"sh\0ttingd-kernel",
            *b"eightchr\0remains",
            *b"seven77\0remainde",
            *b"w\0\0\0\0\0\0\0remains\0",
            *b"\xffe\x80\x01\x7fgh\xc3\xa9jk\x80mno\0",
            *b"\x01\0\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01",
            [0; 16],
        ] {
            let end = task.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
            let mut name = [0; COMM_LEN];
            name[..end].copy_from_slice(&task[..end]);
            assert_eq!(comm_of_words([word(&task, 0), word(&task, 8)]), name, "{}", task.escape_ascii());
        }
    }

    #[test]
    fn a_start_slot_gives_back_the_time_and_whose_it_is() {
        let (slot, tag) = start_slot(3 + 5 * START_SLOTS);
        assert_eq!((slot, tag >> START_TIME_BITS), (3, 0x85));
        for time in [0, 1, 1 << (START_TIME_BITS - 1), (1 << START_TIME_BITS) - 1] {
            let word = tag | time;
            assert_eq!((word & START_TIME_MASK, word & !START_TIME_MASK), (time, tag));
        }
    }

    #[test]
    fn the_time_of_a_record_is_read_and_a_short_one_has_none() {
        let mut record = [0xff; 24];
        record[8..16].copy_from_slice(&77_u64.to_ne_bytes());
        assert_eq!(time_of(&record), 77);
        assert_eq!(time_of(&record[..16]), 77);
        assert_eq!(time_of(&record[..15]), 0);
        assert_eq!(time_of(&[]), 0);
    }

    #[test]
    fn native_and_32_bit_calls_of_one_number_are_apart() {
        assert_eq!(syscall_index(0, false), 0);
        assert_eq!(syscall_index(0, true), 512);
        assert_eq!(syscall_index(511, true), UNKNOWN_SYSCALL);
        assert_eq!(syscall_index(4_000_000, false), UNKNOWN_SYSCALL);
        assert_eq!(syscall_index(u32::MAX, true), UNKNOWN_SYSCALL);
        assert_eq!(syscall_index(0x4000_0001, false), UNKNOWN_SYSCALL);
    }
}
