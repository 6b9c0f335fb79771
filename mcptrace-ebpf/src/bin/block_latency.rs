//! Times block requests: from creation to issue (queue) and from issue to completion (service), by device and operation.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    BlockKey, BlockStats, Counter, Pending, REQUEST_SLOTS, diagnose,
    kernel::{add, address, count, current_passes, duration_passes, load, now, record_shared},
    request_slot,
};

/// Offsets in `struct request` and what hangs on it.
#[unsafe(no_mangle)]
static REQUEST_START: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REQUEST_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REQUEST_BYTES: Global<u32> = Global::new(0);
/// `request.q`, then `request_queue.disk` (5.15 and later); or `request.rq_disk` with [`QUEUE_DISK`] as `u32::MAX`.
#[unsafe(no_mangle)]
static REQUEST_QUEUE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static QUEUE_DISK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DISK_MAJOR: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DISK_MINOR: Global<u32> = Global::new(0);
/// Which argument of `block_rq_issue` and `block_rq_insert` is the request: 0, but 1 before 5.11 (commit a54895fa057c).
#[unsafe(no_mangle)]
static REQUEST_ARGUMENT: Global<u32> = Global::new(0);
/// Whether filters are in force: then only requests that [`queued`] let pass are followed.
#[unsafe(no_mangle)]
static FILTERED: Global<u32> = Global::new(0);

/// `REQ_OP_FLUSH` (include/linux/blk_types.h).
const REQ_OP_FLUSH: u32 = 2;

/// Requests under way, by a slot each: the time of issue, 0 before it.
#[map]
static SLOTS: Array<Pending> = Array::with_max_entries(REQUEST_SLOTS, 0);
/// Those whose slot was another's.
#[map]
static ISSUED: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);
/// What is known of each device and operation.
#[map]
static STATS: HashMap<BlockKey, BlockStats> = HashMap::with_max_entries(256, 0);
/// A new entry, all zeros: too large for the stack.
#[map]
static EMPTY: PerCpuArray<BlockStats> = PerCpuArray::with_max_entries(1, 0);

/// A request is made, in the context of the thread that wants it (6.5 and later). Only attached when filters are in force.
#[btf_tracepoint(function = "block_io_start")]
fn queued(ctx: BtfTracePointContext) -> i32 {
    remember_if_passes(ctx.arg(0));
    0
}

/// A request is put in the scheduler's queue. Stands in for [`queued`] on older kernels.
#[btf_tracepoint(function = "block_rq_insert")]
fn inserted(ctx: BtfTracePointContext) -> i32 {
    remember_if_passes(request(&ctx));
    0
}

#[btf_tracepoint(function = "block_rq_issue")]
fn issued(ctx: BtfTracePointContext) -> i32 {
    let request = address(request(&ctx));
    let now = now();
    if FILTERED.load() == 0 {
        // Without room its completion finds no start and is counted then.
        remember(request, now);
    } else if let Some(issue) = remembered(request) {
        // SAFETY: a pointer into the map's value.
        unsafe { *issue = now };
    }
    0
}

#[btf_tracepoint(function = "block_rq_complete")]
fn completed(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct request *rq, int or blk_status_t error, unsigned int nr_bytes (include/trace/events/block.h).
    let (rq, error, bytes): (*const u8, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let (error, bytes) = (error & 0xff, bytes & 0xffff_ffff);
    // A request may complete in parts; the last one leaves nothing (block/blk-mq.c, blk_update_request). Errors end it at once.
    // SAFETY: the first argument is a BTF pointer to struct request.
    let left = u64::from(unsafe { load::<u32>(rq, REQUEST_BYTES.load()) });
    if left > bytes {
        return 0;
    }
    let key = address(rq);
    let entry = remembered(key);
    // 0 stands for no issue, which is no time of one. An `Option` would be a word that is not written when there is none, and the
    // verifier of 5.10 refuses to load such a word even where nobody looks at it.
    // SAFETY: a pointer into the map's value, read at once.
    let issue = entry.map_or(0, |issue| unsafe { *issue });
    if entry.is_some() {
        if !leave_slot(key) {
            let _ = ISSUED.remove(key);
        }
    } else if FILTERED.load() != 0 {
        return 0;
    }
    // A flush that a write asks for is issued in another request's place and ends without bytes (block/blk-flush.c): no request of
    // its own.
    if bytes == 0 && issue == 0 && operation(rq) != REQ_OP_FLUSH {
        return 0;
    }
    if issue == 0 {
        diagnose!(&ctx, "request {:x} has no start", key);
        count(Counter::Seen);
        count(Counter::StartMissing);
    } else {
        finish(rq, issue, now(), error, bytes);
    }
    0
}

mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn request(ctx: &BtfTracePointContext) -> *const u8 {
    if REQUEST_ARGUMENT.load() == 0 { ctx.arg(0) } else { ctx.arg(1) }
}

#[inline(always)]
fn remember_if_passes(request: *const u8) {
    let request = address(request);
    if !current_passes() {
        // What an earlier request left behind that was merged into another and never completed.
        leave_slot(request);
        let _ = ISSUED.remove(request);
    } else if !remember(request, 0) {
        count(Counter::FollowFull);
    }
}

/// Remembers a request; false if there is no room. Of two that take one free slot on two CPUs in the same moment, the later one stays.
#[inline(always)]
fn remember(request: u64, start: u64) -> bool {
    if let Some(slot) = SLOTS.get_ptr_mut(request_slot(request)) {
        // SAFETY: a pointer into the map's value.
        let key = unsafe { (*slot).key };
        if key == 0 || key == request {
            // SAFETY: as above.
            unsafe { *slot = Pending { key: request, start } };
            return true;
        }
    }
    ISSUED.insert(request, start, 0).is_ok()
}

/// The time of issue of a request that is remembered.
#[inline(always)]
fn remembered(request: u64) -> Option<*mut u64> {
    match own_slot(request) {
        // SAFETY: a pointer into the map's value.
        Some(slot) => Some(unsafe { &raw mut (*slot).start }),
        None => ISSUED.get_ptr_mut(request),
    }
}

/// Frees the slot of a request; false if it is in none.
#[inline(always)]
fn leave_slot(request: u64) -> bool {
    let slot = own_slot(request);
    if let Some(slot) = slot {
        // SAFETY: a pointer into the map's value.
        unsafe { (*slot).key = 0 };
    }
    slot.is_some()
}

/// The slot of a request, if the request is in it.
#[inline(always)]
fn own_slot(request: u64) -> Option<*mut Pending> {
    // SAFETY: a pointer into the map's value.
    SLOTS.get_ptr_mut(request_slot(request)).filter(|slot| unsafe { (**slot).key } == request)
}

#[inline(always)]
fn finish(rq: *const u8, issue: u64, now: u64, error: u64, bytes: u64) {
    let service = now.wrapping_sub(issue);
    // SAFETY: the first argument of block_rq_complete is a BTF pointer to struct request. The start is 0 where the queue keeps
    // no time (iostats off), and may come from a clock read earlier for a whole plug.
    let created: u64 = unsafe { load(rq, REQUEST_START.load()) };
    let queue = if created == 0 || created > issue { 0 } else { issue - created };
    if !duration_passes(queue + service) {
        return;
    }
    count(Counter::Seen);
    let Some(stats) = stats(rq) else {
        count(Counter::MapFull);
        return;
    };
    // SAFETY: a pointer into the map's value.
    unsafe {
        record_shared(&raw mut (*stats).queue, queue);
        record_shared(&raw mut (*stats).service, service);
        add(&raw mut (*stats).bytes, bytes);
        if error != 0 {
            add(&raw mut (*stats).errors, 1);
        }
    }
}

#[inline(always)]
fn stats(rq: *const u8) -> Option<*mut BlockStats> {
    let key = block_key(rq);
    if let Some(stats) = STATS.get_ptr_mut(key) {
        return Some(stats);
    }
    let empty = EMPTY.get_ptr_mut(0)?;
    // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
    // SAFETY: a pointer into the map's value, which nobody writes.
    let empty: &BlockStats = unsafe { &*empty };
    let _ = STATS.insert(key, empty, 1);
    STATS.get_ptr_mut(key)
}

/// The operation of a request: `REQ_OP_MASK` of cmd_flags, the low 8 bits (include/linux/blk_types.h).
#[inline(always)]
fn operation(rq: *const u8) -> u32 {
    // SAFETY: the callers pass a BTF pointer to struct request.
    unsafe { load::<u32>(rq, REQUEST_FLAGS.load()) & 0xff }
}

#[inline(always)]
fn block_key(rq: *const u8) -> BlockKey {
    let operation = operation(rq);
    // SAFETY: `rq` is a BTF pointer to struct request, and members of pointer type are BTF pointers again.
    let disk = unsafe {
        let next: *const u8 = load(rq, REQUEST_QUEUE.load());
        if QUEUE_DISK.load() == u32::MAX { next } else { load::<*const u8>(next, QUEUE_DISK.load()) }
    };
    // A queue without a disk (a tape, a passthrough device) shows as 0:0.
    if disk.is_null() {
        return BlockKey { operation, ..BlockKey::default() };
    }
    // SAFETY: as above.
    let (major, minor) = unsafe { (load(disk, DISK_MAJOR.load()), load(disk, DISK_MINOR.load())) };
    BlockKey { major, minor, operation, zero: 0 }
}

mcptrace_ebpf::object!();
