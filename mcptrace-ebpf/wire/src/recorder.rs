//! What the recorder keeps in the kernel: maps that user space has mapped into its memory and reads once a second.
//!
//! Everything that adds up is there twice, in two banks. Programs write the bank that [`Control::epoch`] says; user space turns that over
//! once a second and then reads and clears the other one, which nobody writes any more. So a second's numbers are complete in themselves,
//! extremes included, and nothing is lost between reading and clearing.

use crate::{Actor, Comm, Header, Histogram, Record, STALLS, TIME_OFFSET};

/// What user space tells the recorder's programs.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Its lowest bit is the bank that programs write.
    pub epoch: u64,
    /// Whether waiting for a CPU is timed.
    pub runq: u64,
    /// Fills a cache line, which nobody writes while programs read it.
    pub zero: [u64; 6],
}

/// What a CPU is doing. Only programs of that CPU write it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CpuNow {
    /// The process that it runs and since when, as of [`running`]; 0 for none.
    pub running: u64,
    /// The thread that it runs; 0 for none.
    pub tid: u64,
    /// What the scheduler had charged that thread when it began to run (`sched_entity.sum_exec_runtime`), in nanoseconds.
    pub runtime: u64,
    /// When its hardware interrupt began.
    pub hard_start: u64,
    /// When its soft interrupt began.
    pub soft_start: u64,
    /// Fills a cache line.
    pub zero: [u64; 3],
}

/// Bits of [`CpuNow::running`] that hold the time, in nanoseconds: 73 minutes.
pub const RUNNING_TIME_BITS: u32 = 42;
/// Masks the time.
pub const RUNNING_TIME_MASK: u64 = (1 << RUNNING_TIME_BITS) - 1;

/// A process and the time since which it runs, in one word: process ids are at most 2^22 (`PID_MAX_LIMIT`, include/linux/threads.h).
#[inline(always)]
pub const fn running(tgid: u32, now: u64) -> u64 {
    (tgid as u64) << RUNNING_TIME_BITS | now & RUNNING_TIME_MASK
}

/// The process of [`CpuNow::running`].
#[inline(always)]
pub const fn running_process(word: u64) -> u32 {
    (word >> RUNNING_TIME_BITS) as u32
}

/// How long it has been running, in nanoseconds.
#[inline(always)]
pub const fn running_for(word: u64, now: u64) -> u64 {
    now.wrapping_sub(word) & RUNNING_TIME_MASK
}

/// How often something was, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// Nanoseconds.
    pub ns: u64,
}

/// What one CPU adds up and nobody else writes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CpuBank {
    /// Waits for a CPU.
    pub runq: Histogram,
    /// Threads that left the CPU because they wait or end.
    pub voluntary: u64,
    /// Threads that left it while they could have gone on.
    pub involuntary: u64,
    /// Threads of which it is not known since when they waited.
    pub unknown_waits: u64,
    /// Time on the CPU of processes for which there was no room.
    pub unnamed_ns: u64,
    /// Soft interrupts by vector.
    pub soft: [Tally; 16],
}

/// Processes that each CPU tells apart without looking into a hash map.
pub const PROCESS_SLOTS: u32 = 256;

/// Time on one CPU of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessSlot {
    /// Nanoseconds.
    pub ns: u64,
    /// Id of its control group in the version 2 hierarchy.
    pub cgroup: u64,
    /// Process (thread group); 0 if the slot is free.
    pub tgid: u32,
    /// Always 0.
    pub zero: u32,
    /// Command name of its first thread.
    pub comm: Comm,
}

/// The key of what a [`ProcessSlot`] held before another process took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SpillKey {
    /// Process.
    pub tgid: u32,
    /// The bank.
    pub bank: u32,
}

/// Numbers of interrupts that are told apart; those above share the last.
pub const IRQS: u32 = 1024;
/// Kinds of locks, see [`lock_kind`].
pub const LOCK_KINDS: usize = 9;
/// Numbers of errors that are told apart; those above share the last (`ENOTSUPP` and its kin do not reach programs).
pub const ERRNOS: usize = 256;

/// What happens rarely enough that all CPUs write it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SharedBank {
    /// Stalls, by [`crate::Stall`].
    pub stalls: [Histogram; STALLS as usize],
    /// Connects that succeeded.
    pub connect: Histogram,
    /// Waits for locks, by kind.
    pub locks: [Histogram; LOCK_KINDS],
    /// Counts, by [`Count`].
    pub counts: [u64; COUNTS],
    /// Connects that failed, by errno; 0 if the program gave up.
    pub connect_errors: [u64; ERRNOS],
    /// Processes that ended with a signal, by its number.
    pub killed: [u64; 128],
}

/// An index into [`SharedBank::counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Processes that were made.
    Forks = 0,
    /// Threads that were made.
    Threads = 1,
    /// Programs that were started.
    Execs = 2,
    /// Processes that ended with status 0.
    Successes = 3,
    /// Processes that ended with another status.
    Failures = 4,
    /// Processes killed for want of memory.
    OomKills = 5,
    /// Connects that began.
    Connects = 6,
    /// Connects that succeeded.
    Connected = 7,
    /// Connections from outside.
    Accepts = 8,
    /// Segments sent again.
    Retransmits = 9,
    /// Resets sent.
    ResetsSent = 10,
    /// Resets received.
    ResetsReceived = 11,
    /// Block requests of which it is not known when they were issued.
    UntimedRequests = 12,
    /// Block requests that found no room in the table of devices.
    LostRequests = 13,
    /// Connects that could not be timed.
    UntimedConnects = 14,
    /// Program starts that found no room in the buffer of events.
    LostExecs = 15,
    /// Process ends that found none.
    LostExits = 16,
    /// Out-of-memory kills that found none.
    LostOomKills = 17,
}

/// How many counts there are, rounded up.
pub const COUNTS: usize = 24;

/// The kind of a lock by the flags of `contention_begin` (`LCB_F_*`, include/trace/events/lock.h): spin, read, write, rt, percpu, mutex.
/// 0 spin lock, 1 and 2 rw lock for reading and writing, 3 and 4 the same with sleeping (rwsem), 5 rt lock, 6 percpu rwsem, 7 mutex,
/// 8 semaphore, which has no flag (and the mutex of 5.19, which has none yet).
#[inline(always)]
pub const fn lock_kind(flags: u32) -> usize {
    const SPIN: u32 = 1;
    const READ: u32 = 1 << 1;
    const WRITE: u32 = 1 << 2;
    const RT: u32 = 1 << 3;
    const PERCPU: u32 = 1 << 4;
    const MUTEX: u32 = 1 << 5;
    if flags & MUTEX != 0 {
        return 7;
    }
    if flags & PERCPU != 0 {
        return 6;
    }
    if flags & RT != 0 {
        return 5;
    }
    let first = if flags & SPIN != 0 { 1 } else { 3 };
    match flags & (READ | WRITE) {
        READ => first,
        WRITE => first + 1,
        _ if flags & SPIN != 0 => 0,
        _ => 8,
    }
}

/// What is being waited for or was issued, in a table without collisions being resolved: who comes later wins.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Pending {
    /// Address of the request, or of the lock.
    pub key: u64,
    /// When it began.
    pub start: u64,
}

/// Bits of the index of a block request that is under way.
pub const REQUEST_SLOT_BITS: u32 = 14;
/// Block requests that can be under way and timed.
pub const REQUEST_SLOTS: u32 = 1 << REQUEST_SLOT_BITS;

/// The slot of a block request.
///
/// Requests stand in tables at an even stride, which a single multiplication maps to few places; two with the upper bits folded down
/// between them spread any stride like chance (the construction of MurmurHash3's finalizer, public domain, with odd constants of its own).
#[inline(always)]
pub const fn request_slot(request: u64) -> u32 {
    let once = request.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let folded = once ^ once >> 32;
    (folded.wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - REQUEST_SLOT_BITS)) as u32
}

/// A device, an operation and the bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DeviceKey {
    /// `gendisk.major`.
    pub major: u32,
    /// `gendisk.first_minor`.
    pub minor: u32,
    /// `REQ_OP_*` (include/linux/blk_types.h).
    pub operation: u32,
    /// The bank.
    pub bank: u32,
}

/// Calls of one system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SyscallCount {
    /// Calls that returned.
    pub calls: u64,
    /// Calls that returned an errno.
    pub errors: u64,
}

/// A process that began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEvent {
    /// Size, version, kind.
    pub header: Header,
    /// A [`ProcessEventKind`].
    pub what: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The process.
    pub actor: Actor,
    /// Since it was made, in nanoseconds; 0 when it begins.
    pub lifetime_ns: u64,
    /// As wait(2) gives it; 0 unless it ended.
    pub status: u32,
    /// Always 0.
    pub zero: u32,
}

/// What happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProcessEventKind {
    /// It started a program.
    Exec = 0,
    /// It ended.
    Exit = 1,
    /// The kernel kills it for want of memory.
    OomKill = 2,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for ProcessEvent {
    const KIND: u8 = 60;
}

const _: () = assert!(size_of::<ProcessEvent>() == 72 && core::mem::offset_of!(ProcessEvent, time_ns) == TIME_OFFSET);
const _: () = assert!(size_of::<Control>() == 64 && size_of::<CpuNow>() == 64);
const _: () = assert!(size_of::<ProcessSlot>() == 40 && size_of::<DeviceKey>() == 16);

#[cfg(feature = "user")]
mod user {
    use super::{DeviceKey, ProcessSlot, SpillKey};

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for ProcessSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SpillKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DeviceKey {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_time_fit_into_one_word() {
        let most = (1 << 22) - 1;
        let word = running(most, 7 << RUNNING_TIME_BITS | 0x63);
        assert_eq!((running_process(word), running_for(word, 100)), (most, 1));
        assert_eq!(running_for(running(1, RUNNING_TIME_MASK), RUNNING_TIME_MASK + 11), 11, "the time wraps");
        assert_eq!(running_process(running(0, u64::MAX)), 0);
    }

    #[test]
    fn locks_have_kinds() {
        // As the call sites combine them (kernel/locking).
        let known = [(1, 0), (1 | 2, 1), (1 | 4, 2), (2, 3), (4, 4), (8, 5), (16 | 2, 6), (32, 7), (32 | 1, 7), (0, 8)];
        for (flags, kind) in known {
            assert_eq!(lock_kind(flags), kind, "{flags}");
        }
    }

    /// How many of 1,024 requests at a stride share their slot with an earlier one.
    fn collisions(first: u64, stride: u64) -> usize {
        let mut used = [false; REQUEST_SLOTS as usize];
        (0..1024).filter(|n| core::mem::replace(&mut used[request_slot(first + n * stride) as usize], true)).count()
    }

    #[test]
    fn requests_are_spread_over_the_slots_whatever_their_stride() {
        // Thrown at random, 1,024 into 16,384 slots collide 31 times, with a standard deviation of 5.4.
        let (mut all, mut tables) = (0, 0);
        for first in [0xffff_8880_1234_0000_u64, 0xffff_9c1e_c07a_8000, 0xffff_0000_c5d0_2040] {
            for stride in (64..=4096).step_by(64) {
                let found = collisions(first, stride);
                assert!(found < 31 + 6 * 6, "{found} of 1,024 at a stride of {stride}");
                (all, tables) = (all + found, tables + 1);
            }
        }
        assert!(all < tables * 36, "{} in the mean", all / tables);
    }
}
