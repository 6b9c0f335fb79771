//! Files: what the probes of reads, writes and syncs say.

use crate::{CGROUP_OFFSET, Comm, Header, Histogram, Process, Record};

/// A file, wherever it is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FileId {
    /// `inode.i_ino`.
    pub inode: u64,
    /// `super_block.s_dev`: major in the upper 12 bits, minor in the lower 20 (include/linux/kdev_t.h).
    pub device: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
}

/// Bytes for the names of a [`Walk`]: the longest name (255) with its NUL fits behind [`WALK_LIMIT`].
pub const WALK_BYTES: usize = 1024;
/// A walk that has taken so many bytes takes no further name.
pub const WALK_LIMIT: u32 = 768;
/// Names and mounts that a walk passes at most.
pub const WALK_STEPS: u32 = 32;

/// The walk arrived at the root.
pub const WALK_COMPLETE: u32 = 1;
/// The file has no name any more.
pub const WALK_DELETED: u32 = 2;
/// The file is not in a tree (a memfd, a pipe): its only name is what it was given.
pub const WALK_DETACHED: u32 = 4;

/// A path as a walk up the kernel's dentries found it: names from the file up, each ended by a NUL.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Walk {
    /// Bytes of names.
    pub len: u32,
    /// `WALK_*` bits.
    pub flags: u32,
    /// The names.
    pub names: [u8; WALK_BYTES],
}

impl Walk {
    /// No name yet.
    pub const EMPTY: Self = Self { len: 0, flags: 0, names: [0; WALK_BYTES] };
}

/// Reads and writes are kept by this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FileIoKey {
    /// Which file.
    pub file: FileId,
    /// [`FILE_READ`] or [`FILE_WRITE`].
    pub operation: u32,
    /// As of [`GroupKey`](crate::GroupKey).
    pub pid: u32,
    /// As of [`GroupKey`](crate::GroupKey).
    pub comm: Comm,
}

/// Class of system calls that read.
pub const FILE_READ: u8 = 1;
/// Class of system calls that write.
pub const FILE_WRITE: u8 = 2;

/// Reads or writes of one file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileIo {
    /// How long the calls took.
    pub latency: Histogram,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Calls that failed.
    pub errors: u64,
    /// The process at the first of it.
    pub process: Process,
}

/// How a system call that makes data durable finds its file; classes of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SyncCall {
    /// No call of this kind.
    None = 0,
    /// `fsync(fd)`.
    Fsync = 1,
    /// `fdatasync(fd)`.
    Fdatasync = 2,
    /// `sync_file_range(fd, …)`.
    SyncFileRange = 3,
    /// `syncfs(fd)`.
    Syncfs = 4,
    /// `sync()`: no file.
    Sync = 5,
    /// `msync(address, …)`: no file that is told.
    Msync = 6,
}

/// How many [`SyncCall`]s there are.
pub const SYNC_CALLS: u32 = 7;

/// One call that makes data durable, followed by a [`Walk`], as many of its names as it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SyncEvent {
    /// Size, version, kind.
    pub header: Header,
    /// A [`SyncCall`].
    pub call: u32,
    /// `CLOCK_MONOTONIC` when the call returned, in nanoseconds.
    pub time_ns: u64,
    /// Id of the thread's control group in the version 2 hierarchy.
    pub cgroup: u64,
    /// From entry to return, in nanoseconds.
    pub latency_ns: u64,
    /// What it returned.
    pub result: i32,
    /// Process (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// Always 0.
    pub zero: u32,
    /// Command name of the thread.
    pub comm: Comm,
    /// Which file; zeros where there is none.
    pub file: FileId,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for SyncEvent {
    const KIND: u8 = 32;
}

/// What a process had of the page cache, in pages but for `events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CacheCell {
    /// Events that went into this.
    pub events: u64,
    /// Pages that reads asked for.
    pub read: u64,
    /// Of these, pages that had to be brought in.
    pub read_missed: u64,
    /// Page faults on files.
    pub faulted: u64,
    /// Of these, those whose page had to be brought in.
    pub fault_missed: u64,
    /// Pages that came into the cache: misses, read-ahead and new pages of writes.
    pub added: u64,
    /// Pages that became dirty.
    pub dirtied: u64,
    /// The process at the first event.
    pub process: Process,
}

const _: () = assert!(core::mem::offset_of!(SyncEvent, time_ns) == crate::TIME_OFFSET);
const _: () = assert!(size_of::<FileId>() == 16);
const _: () = assert!(size_of::<FileIoKey>() == 40);
const _: () = assert!(core::mem::offset_of!(SyncEvent, cgroup) == CGROUP_OFFSET);
const _: () = assert!(size_of::<SyncEvent>() == 80);

#[cfg(feature = "user")]
mod user {
    use super::{CacheCell, FileId, FileIo, FileIoKey, Walk};

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for FileId {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FileIoKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FileIo {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Walk {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CacheCell {}
}
