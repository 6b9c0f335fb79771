//! Keeps account of what a program allocates and does not free, by stack.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_probe_read_user},
    macros::{map, uprobe, uretprobe},
    maps::{Array, HashMap},
    programs::{ProbeContext, RetProbeContext},
};
use mcptrace_ebpf::{
    Counter, HeapBlock, HeapKey, HeapSlot, START_SLOTS, StackKey, StackWeight,
    function::{argument, result},
    kernel::{add, count_shared, current_passes},
    stack::weigh,
};

/// One in so many allocations is looked at.
#[unsafe(no_mangle)]
static SAMPLE: Global<u32> = Global::new(1);

/// Allocations in progress, by thread.
#[map]
static STARTS: Array<HeapSlot> = Array::with_max_entries(START_SLOTS, 0);
/// What is allocated and not freed.
#[map]
static BLOCKS: HashMap<HeapKey, HeapBlock> = HashMap::with_max_entries(1, 0);
/// What was freed, by the stack that had allocated it.
#[map]
static FREED: HashMap<StackKey, StackWeight> = HashMap::with_max_entries(1, 0);

/// `malloc(size)`, `valloc`, `pvalloc`.
#[uprobe]
fn allocates_first(ctx: ProbeContext) -> u32 {
    begin(argument(&ctx, 0), 0);
    0
}

/// `aligned_alloc(alignment, size)`, `memalign`.
#[uprobe]
fn allocates_second(ctx: ProbeContext) -> u32 {
    begin(argument(&ctx, 1), 0);
    0
}

/// `calloc(count, size)`.
#[uprobe]
fn allocates_product(ctx: ProbeContext) -> u32 {
    begin(argument(&ctx, 0).wrapping_mul(argument(&ctx, 1)), 0);
    0
}

/// `posix_memalign(target, alignment, size)`.
#[uprobe]
fn allocates_into(ctx: ProbeContext) -> u32 {
    begin(argument(&ctx, 2), argument(&ctx, 0));
    0
}

/// `realloc(old, size)`: the old block is out of account until it returns, because its address may be given out again before.
#[uprobe]
fn reallocates(ctx: ProbeContext) -> u32 {
    let (address, bytes) = (argument(&ctx, 0), argument(&ctx, 1));
    let sampled = u32::from(current_passes() && is_sampled());
    let block = if address == 0 { None } else { take_block(address) };
    if block.is_none() && sampled == 0 {
        return 0;
    }
    let old = if block.is_some() { address } else { 0 };
    let old_block = block.unwrap_or(HeapBlock { bytes: 0, stack: 0 });
    remember(HeapSlot { bytes, target: 0, old, old_block, tid: bpf_get_current_pid_tgid() as u32, sampled });
    0
}

/// `free(address)`.
#[uprobe]
fn frees(ctx: ProbeContext) -> u32 {
    let address = argument(&ctx, 0);
    if address != 0 && current_passes() {
        freed(address);
    }
    0
}

/// The return of all that allocate.
#[uretprobe]
fn returns(ctx: RetProbeContext) -> u32 {
    let Some(slot) = take() else { return 0 };
    let HeapSlot { bytes, target, sampled, .. } = slot;
    let result = result(&ctx);
    let address = if target == 0 {
        result
    } else if result as u32 == 0 {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_user(target as *const u64) }.unwrap_or(0)
    } else {
        0
    };
    // A realloc to nothing frees; one that fails leaves the old block as it was.
    reallocated(&slot, address != 0 || bytes == 0);
    if address == 0 || sampled == 0 {
        return 0;
    }
    count_shared(Counter::Seen);
    if let Err(lost) = capture(&ctx).and_then(|key| allocated(address, bytes, &key)) {
        count_shared(lost);
    }
    0
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn begin(bytes: u64, target: u64) {
    if !current_passes() || !is_sampled() {
        return;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    remember(HeapSlot { bytes, target, old: 0, old_block: HeapBlock { bytes: 0, stack: 0 }, tid, sampled: 1 });
}

#[inline(always)]
fn remember(new: HeapSlot) {
    let Some(slot) = STARTS.get_ptr_mut(new.tid & (START_SLOTS - 1)) else { return };
    // SAFETY: a pointer into the map's value.
    unsafe {
        // A realloc that allocates by another of these functions does so to move.
        if (*slot).tid == new.tid {
            reallocated(&*slot, true);
        }
        *slot = new;
    }
}

#[inline(always)]
fn is_sampled() -> bool {
    let sample = SAMPLE.load();
    // SAFETY: the helper takes nothing.
    sample <= 1 || (u64::from(unsafe { bpf_get_prandom_u32() }) * u64::from(sample)) >> 32 == 0
}

/// What the thread allocates; only the innermost of functions that call each other finds it.
#[inline(always)]
fn take() -> Option<HeapSlot> {
    let tid = bpf_get_current_pid_tgid() as u32;
    let slot = STARTS.get_ptr_mut(tid & (START_SLOTS - 1))?;
    // SAFETY: a pointer into the map's value.
    unsafe {
        if (*slot).tid != tid {
            return None;
        }
        (*slot).tid = 0;
        Some(*slot)
    }
}

/// Books the end of a realloc's old block, or takes it into account again.
#[inline(always)]
fn reallocated(slot: &HeapSlot, is_freed: bool) {
    let HeapSlot { old, old_block, .. } = *slot;
    if old == 0 {
        return;
    }
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if is_freed {
        book(pid, old_block);
    } else {
        let _ = BLOCKS.insert(HeapKey { address: old, pid, zero: 0 }, old_block, 0);
    }
}

#[inline(always)]
fn allocated(address: u64, bytes: u64, key: &StackKey) -> Result<(), Counter> {
    // An address that is given out again was freed by a function that nobody looks at.
    freed(address);
    let block = HeapKey { address, pid: (bpf_get_current_pid_tgid() >> 32) as u32, zero: 0 };
    BLOCKS.insert(block, HeapBlock { bytes, stack: key.id }, 0).map_err(|_| Counter::MapFull)?;
    weigh(key, bytes)
}

#[inline(always)]
fn freed(address: u64) {
    if let Some(block) = take_block(address) {
        book((bpf_get_current_pid_tgid() >> 32) as u32, block);
    }
}

/// Takes a block out of account.
#[inline(always)]
fn take_block(address: u64) -> Option<HeapBlock> {
    let key = HeapKey { address, pid: (bpf_get_current_pid_tgid() >> 32) as u32, zero: 0 };
    // SAFETY: copied at once.
    let block = BLOCKS.get_ptr(key).map(|block| unsafe { *block })?;
    let _ = BLOCKS.remove(key);
    Some(block)
}

/// Books a block as freed.
#[inline(always)]
fn book(pid: u32, block: HeapBlock) {
    let key = StackKey { id: block.stack, pid, zero: 0 };
    let weight = FREED.get_ptr_mut(key).or_else(|| {
        // Another CPU may be first (BPF_NOEXIST is 1): then its entry is used. There are no more stacks than in STACKS.
        let nothing = StackWeight { count: 0, sum: 0 };
        let _ = FREED.insert(key, nothing, 1);
        FREED.get_ptr_mut(key)
    });
    let Some(weight) = weight else { return };
    // SAFETY: a pointer into the map's value.
    unsafe {
        add(&raw mut (*weight).count, 1);
        add(&raw mut (*weight).sum, block.bytes);
    }
}

mcptrace_ebpf::object!();
