//! What is said about time on CPUs, interrupts and memory.

use crate::{Actor, CGROUP_OFFSET, Header, Histogram, Process, Record, TIME_OFFSET};

/// How a CPU, process or command runs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Slices {
    /// From when a thread gets a CPU to when it leaves it.
    pub on_cpu: Histogram,
    /// It left because it waits or ends.
    pub voluntary: u64,
    /// It left while it could have gone on.
    pub involuntary: u64,
    /// It was moved to another CPU.
    pub migrations: u64,
    /// The process at the first of all.
    pub process: Process,
}

/// Bytes of the name of an interrupt handler.
pub const IRQ_NAME: usize = 32;

/// Runs of a handler of a hardware interrupt.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IrqStats {
    /// From entry to exit.
    pub time: Histogram,
    /// Interrupt number.
    pub irq: u64,
    /// `irqaction.name`, padded with NULs.
    pub name: [u8; IRQ_NAME],
}

/// Vectors of soft interrupts (`NR_SOFTIRQS`, include/linux/interrupt.h), rounded up.
pub const SOFTIRQS: u32 = 16;
/// Vectors of a CPU's own that are told apart: its timer and calls between CPUs.
pub const IRQ_VECTORS: u32 = 5;

/// What a thread is stalled by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stall {
    /// Reclaim because the machine is short of memory.
    Direct = 0,
    /// Reclaim because its memory control group is at a limit.
    Cgroup = 1,
    /// Compaction of a zone.
    Compaction = 2,
}

/// How many kinds of [`Stall`] there are.
pub const STALLS: u32 = 3;

/// Stalls of one kind.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StallStats {
    /// How long.
    pub time: Histogram,
    /// Pages that were reclaimed.
    pub pages: u64,
}

/// A stall that took longer than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LongStall {
    /// Size, version, kind.
    pub header: Header,
    /// A [`Stall`].
    pub stall: u32,
    /// `CLOCK_MONOTONIC` at the end, in nanoseconds.
    pub time_ns: u64,
    /// Who was stalled.
    pub actor: Actor,
    /// How long, in nanoseconds.
    pub latency_ns: u64,
    /// Pages that were reclaimed.
    pub pages: u64,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for LongStall {
    const KIND: u8 = 27;
}

/// What page faults are counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FaultKey {
    /// Process.
    pub pid: u32,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
}

/// Page faults of a process, and its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FaultCell {
    /// Faults that needed no I/O.
    pub minor: u64,
    /// Faults that waited for I/O.
    pub major: u64,
    /// Pages in memory at its first fault.
    pub first_pages: u64,
    /// Pages in memory at its last fault.
    pub last_pages: u64,
    /// The most pages in memory at any of its faults.
    pub most_pages: u64,
    /// The process at the first fault.
    pub process: Process,
}

const _: () = assert!(core::mem::offset_of!(LongStall, actor) == CGROUP_OFFSET);
const _: () = assert!(size_of::<LongStall>() == 72 && core::mem::offset_of!(LongStall, time_ns) == TIME_OFFSET);

#[cfg(feature = "user")]
mod user {
    use super::{FaultCell, FaultKey, IrqStats, Slices, StallStats};

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for Slices {}
    // SAFETY: as above.
    unsafe impl aya::Pod for IrqStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StallStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FaultKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FaultCell {}
}
