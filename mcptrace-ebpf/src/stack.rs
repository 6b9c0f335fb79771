//! Call stacks. The frames of a stack travel once, when it is first seen; from then on it is a hash of them, with weights in a map.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_USER_BUILD_ID, BPF_F_USER_STACK},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_stack, bpf_probe_read_kernel_str},
    },
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerfEventByteArray, RingBuf},
};

use crate::{
    Counter, EXECUTED_PATH, Executed, Header, KERNEL_FRAMES, KERNEL_SIDE, LEAST_STACK, NewStack, Record as _,
    START_TIME_MASK, StackKey, StackWeight, USER_FRAMES, USER_SIDE, UserFrame, WAIT_UNASKED, WIRE_VERSION, WaitSlot,
    kernel::{add, current_comm, current_passes, load, now, send},
    start_slot,
};

/// Which sides are captured, [`KERNEL_SIDE`] and [`USER_SIDE`].
#[unsafe(no_mangle)]
static STACK_SIDES: Global<u32> = Global::new(KERNEL_SIDE | USER_SIDE);

/// Whether processes are told apart. Without, a stack belongs to whoever had it.
#[unsafe(no_mangle)]
static STACK_BY_PROCESS: Global<u32> = Global::new(1);

/// The stacks that user space knows, and their weights.
#[map]
pub static STACKS: HashMap<StackKey, StackWeight> = HashMap::with_max_entries(1, 0);
/// Where a stack is put together; a second one for what interrupts the first.
#[map]
static STACK_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

/// Where new stacks go: the ring buffer, and what takes its place on kernels without.
pub type Buffers<'a> = (&'a RingBuf, &'a PerfEventByteArray);

/// Declares the buffers of an object that sends nothing but stacks, and `capture`, which sends to them.
#[macro_export]
macro_rules! sends_stacks {
    () => {
        #[aya_ebpf::macros::map]
        static EVENTS: aya_ebpf::maps::RingBuf = aya_ebpf::maps::RingBuf::with_byte_size(4096, 0);
        #[aya_ebpf::macros::map]
        static EVENTS_PERF: aya_ebpf::maps::PerfEventByteArray = aya_ebpf::maps::PerfEventByteArray::new(0);

        #[inline(always)]
        fn capture<C: aya_ebpf::EbpfContext>(context: &C) -> Result<$crate::StackKey, $crate::Counter> {
            $crate::stack::capture(context, (&EVENTS, &EVENTS_PERF))
        }

        #[unsafe(no_mangle)]
        static BPRM_FILENAME: aya_ebpf::Global<u32> = aya_ebpf::Global::new(0);

        #[aya_ebpf::macros::btf_tracepoint(function = "sched_process_exec")]
        fn executed(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            // SAFETY: the arguments of sched_process_exec are the task, its old id and the struct linux_binprm
            // (include/trace/events/sched.h).
            unsafe { $crate::stack::send_executed(&ctx, (&EVENTS, &EVENTS_PERF), ctx.arg(2), BPRM_FILENAME.load()) };
            0
        }
    };
}

#[repr(C)]
struct Scratch {
    /// How many are at it.
    users: u64,
    user: [u64; USER_FRAMES],
    record: StackRecord,
}

#[repr(C)]
struct StackRecord {
    head: NewStack,
    kernel: [u64; KERNEL_FRAMES],
    user: [UserFrame; USER_FRAMES],
}

/// The stack of the current thread: sends its frames if it is new. An error is the cause by which the event is lost.
#[inline(always)]
pub fn capture<C: EbpfContext>(context: &C, buffers: Buffers<'_>) -> Result<StackKey, Counter> {
    let scratch = claim()?;
    // SAFETY: the pointer is into the map's value and claimed by this run alone.
    let outcome = unsafe { capture_in(context, buffers, scratch) };
    release(scratch);
    outcome
}

/// Adds an event to a stack's weight. An error is the cause by which it is lost.
#[inline(always)]
pub fn weigh(key: &StackKey, value: u64) -> Result<(), Counter> {
    let Some(weight) = STACKS.get_ptr_mut(key) else { return Err(Counter::MapFull) };
    // SAFETY: a pointer into the map's value.
    unsafe {
        add(&raw mut (*weight).count, 1);
        if value != 0 {
            add(&raw mut (*weight).sum, value);
        }
    }
    Ok(())
}

/// Tells user space what a process runs from now on, so that its file is known when it has ended. Nothing is counted: what is lost is a
/// name.
///
/// # Safety
///
/// `program` is a BTF pointer to a `struct linux_binprm`, and its path at `path`.
#[inline(always)]
pub unsafe fn send_executed<C: EbpfContext>(context: &C, (ring, perf): Buffers<'_>, program: *const u8, path: u32) {
    #[repr(C)]
    struct Record {
        head: Executed,
        path: [u8; EXECUTED_PATH],
    }
    if !current_passes() {
        return;
    }
    let mut record = Record {
        head: Executed {
            header: Header { size: size_of::<Record>() as u16, version: WIRE_VERSION, kind: Executed::KIND },
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            time_ns: now(),
        },
        path: [0; EXECUTED_PATH],
    };
    // SAFETY: the caller's promise; the helper writes at most so many bytes.
    unsafe {
        let path: *const u8 = load(program, path);
        bpf_probe_read_kernel_str((&raw mut record.path).cast(), EXECUTED_PATH as u32, path.cast());
        send(context, ring, perf, (&raw const record).cast(), size_of::<Record>() as u32);
    }
}

/// Remembers that a thread goes to sleep, and where.
#[inline(always)]
pub fn begin_wait(slots: &Array<WaitSlot>, tid: u32, now: u64, stack: u64) {
    let (slot, tag) = start_slot(tid);
    if let Some(slot) = slots.get_ptr_mut(slot) {
        // SAFETY: a pointer into the map's value. The time is written last: it tells whose the rest is.
        unsafe {
            ptr::write_volatile(&raw mut (*slot).stack, stack);
            ptr::write_volatile(&raw mut (*slot).start, tag | now & START_TIME_MASK);
        }
    }
}

/// Since when a thread sleeps, and where; `None` if nothing is known of it. From then on it is known not to sleep.
#[inline(always)]
pub fn end_wait(slots: &Array<WaitSlot>, tid: u32) -> Option<(u64, u64)> {
    let (slot, tag) = start_slot(tid);
    let slot = slots.get_ptr_mut(slot)?;
    // SAFETY: a pointer into the map's value.
    unsafe {
        let start = ptr::read_volatile(&raw const (*slot).start);
        let stack = ptr::read_volatile(&raw const (*slot).stack);
        ptr::write_volatile(&raw mut (*slot).stack, WAIT_UNASKED);
        if start & !START_TIME_MASK != tag {
            ptr::write_volatile(&raw mut (*slot).start, tag);
            return None;
        }
        Some((start & START_TIME_MASK, stack))
    }
}

/// Adds first and looks then: of two that do so at once at most one finds itself alone, without an atomic that tells (5.12).
#[inline(always)]
fn claim() -> Result<*mut Scratch, Counter> {
    if let Some(scratch) = claim_one(0) {
        return Ok(scratch);
    }
    claim_one(1).ok_or(Counter::StackBusy)
}

#[inline(always)]
fn claim_one(level: u32) -> Option<*mut Scratch> {
    let scratch = STACK_SCRATCH.get_ptr_mut(level)?;
    // SAFETY: a pointer into the map's value.
    unsafe {
        add(&raw mut (*scratch).users, 1);
        if ptr::read_volatile(&raw const (*scratch).users) == 1 {
            return Some(scratch);
        }
    }
    release(scratch);
    None
}

#[inline(always)]
fn release(scratch: *mut Scratch) {
    // SAFETY: a pointer into the map's value.
    unsafe { add(&raw mut (*scratch).users, u64::MAX) };
}

#[inline(always)]
unsafe fn capture_in<C: EbpfContext>(
    context: &C,
    buffers: Buffers<'_>,
    scratch: *mut Scratch,
) -> Result<StackKey, Counter> {
    let sides = STACK_SIDES.load();
    let (mut kernel_frames, mut user_frames) = (0, 0);
    // SAFETY: the caller's promise; the helper fills at most the size.
    unsafe {
        if sides & KERNEL_SIDE != 0 {
            kernel_frames = frames(context, (&raw mut (*scratch).record.kernel).cast(), KERNEL_FRAMES as u32 * 8, 0, 8);
        }
        if sides & USER_SIDE != 0 {
            let flags = u64::from(BPF_F_USER_STACK);
            user_frames = frames(context, (&raw mut (*scratch).user).cast(), USER_FRAMES as u32 * 8, flags, 8);
        }
        let kernel = hash((&raw const (*scratch).record.kernel).cast(), kernel_frames, KERNEL_FRAMES as u32, SEED);
        let id = hash((&raw const (*scratch).user).cast(), user_frames, USER_FRAMES as u32, kernel);
        let pid = if STACK_BY_PROCESS.load() == 0 { 0 } else { (bpf_get_current_pid_tgid() >> 32) as u32 };
        let key = StackKey { id: id | LEAST_STACK, pid, zero: 0 };
        if STACKS.get_ptr(key).is_some() {
            return Ok(key);
        }
        define(context, buffers, scratch, &key, kernel_frames)
    }
}

/// How many frames there are; none where there is no such stack, as of threads of the kernel.
#[inline(always)]
unsafe fn frames<C: EbpfContext>(context: &C, buffer: *mut c_void, size: u32, flags: u64, frame: u32) -> u32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bpf_get_stack(context.as_ptr(), buffer, size, flags) };
    if bytes < 0 { 0 } else { bytes as u32 / frame }
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of addresses: mixes each one in by a multiplication, whose high half the shift brings back (the constants are those of
/// splitmix64).
#[inline(always)]
unsafe fn hash(addresses: *const u64, count: u32, most: u32, seed: u64) -> u64 {
    let mut hash = seed;
    let mut index = 0;
    while index < most {
        if index >= count {
            break;
        }
        // SAFETY: the index is below the length of the array.
        hash ^= unsafe { ptr::read_volatile(addresses.add(index as usize)) };
        hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^= hash >> 29;
        index += 1;
    }
    hash
}

/// Sends the frames of a new stack, then makes it known: were it known first, another CPU could count on what is never sent.
#[inline(always)]
unsafe fn define<C: EbpfContext>(
    context: &C,
    (ring, perf): Buffers<'_>,
    scratch: *mut Scratch,
    key: &StackKey,
    kernel_frames: u32,
) -> Result<StackKey, Counter> {
    const FRAME: u32 = size_of::<UserFrame>() as u32;
    // SAFETY: the caller's promise; the size is bounded by that of the record.
    unsafe {
        let record = &raw mut (*scratch).record;
        let mut user_frames = 0;
        if STACK_SIDES.load() & USER_SIDE != 0 {
            let flags = u64::from(BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);
            user_frames = frames(context, (&raw mut (*record).user).cast(), USER_FRAMES as u32 * FRAME, flags, FRAME);
        }
        if user_frames > USER_FRAMES as u32 {
            user_frames = USER_FRAMES as u32;
        }
        let size = (size_of::<NewStack>() + KERNEL_FRAMES * 8) as u32 + user_frames * FRAME;
        (*record).head = NewStack {
            header: Header { size: size as u16, version: WIRE_VERSION, kind: NewStack::KIND },
            pid: key.pid,
            time_ns: now(),
            id: key.id,
            comm: if STACK_BY_PROCESS.load() == 0 { [0; 16] } else { current_comm() },
            kernel_frames,
            user_frames,
        };
        if !send(context, ring, perf, record.cast(), size) {
            return Err(Counter::BufferFull);
        }
    }
    // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
    let nothing = StackWeight { count: 0, sum: 0 };
    let _ = STACKS.insert(key, nothing, 1);
    if STACKS.get_ptr(key).is_none() { Err(Counter::MapFull) } else { Ok(*key) }
}
