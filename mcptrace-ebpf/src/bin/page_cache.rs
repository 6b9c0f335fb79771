//! Counts pages that reads and faults find in the page cache or not, and pages that come in or become dirty, by process or command.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{HashMap, LruHashMap},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    CacheCell, Counter, GroupKey,
    kernel::{add, count_shared, current_passes, load},
    names::{current_group, current_process},
};

/// Offsets in `struct folio`, or `struct page` before 5.16, and what hangs on it.
#[unsafe(no_mangle)]
static FOLIO_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FOLIO_MAPPING: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FOLIO_INDEX: Global<u32> = Global::new(0);
/// A byte with the order of a large folio; [`NONE`] where the kernel keeps it elsewhere: then every folio counts as a page.
#[unsafe(no_mangle)]
static FOLIO_ORDER: Global<u32> = Global::new(NONE);
/// `1 << PG_head`: marks a large folio.
#[unsafe(no_mangle)]
static FOLIO_LARGE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MAPPING_HOST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_SIZE: Global<u32> = Global::new(0);
/// The logarithm of the page size.
#[unsafe(no_mangle)]
static PAGE_SHIFT: Global<u32> = Global::new(12);

const NONE: u32 = u32::MAX;

/// What a thread is about, to tell whether what it asks for was there.
#[derive(Clone, Copy)]
#[repr(C)]
struct Thread {
    /// The file that pages were brought in of since its last look-up, the first and last of them, and how many.
    added_of: u64,
    first: u64,
    last: u64,
    added: u64,
    /// The last look-up of a read: a long one is several look-ups with the same end.
    read_of: u64,
    read_from: u64,
    read_to: u64,
    /// The file of the fault it is in, and the page while that has not come.
    fault_of: u64,
    fault_at: u64,
}

/// No page.
const NOWHERE: u64 = u64::MAX;

const IDLE: Thread = Thread {
    added_of: 0,
    first: 0,
    last: 0,
    added: 0,
    read_of: 0,
    read_from: 0,
    read_to: 0,
    fault_of: 0,
    fault_at: NOWHERE,
};

/// Threads, the longest idle of which are forgotten.
#[map]
static THREADS: LruHashMap<u32, Thread> = LruHashMap::with_max_entries(16_384, 0);
/// What each process or command had.
#[map]
static GROUPS: HashMap<GroupKey, CacheCell> = HashMap::with_max_entries(10_240, 0);

/// Prototype: struct address_space *mapping, pgoff_t index, pgoff_t last_index (include/trace/events/filemap.h, as all here). At the end
/// of a look-up: what was not there has been added by then.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
fn looked_up(ctx: BtfTracePointContext) -> i32 {
    let Some(cell) = cell() else { return 0 };
    let (mapping, index, to): (*const u8, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let Some(thread) = thread() else { return 0 };
    // A read asks for what its buffer could hold, the file may be shorter.
    // SAFETY: the first argument is a BTF pointer to struct address_space, whose host is an inode.
    let size: u64 = unsafe { load(load(mapping, MAPPING_HOST.load()), INODE_SIZE.load()) };
    let pages = size.wrapping_add((1 << PAGE_SHIFT.load()) - 1) >> PAGE_SHIFT.load();
    let end = if to + 1 < pages { to + 1 } else { pages };
    let file = mapping as u64;
    // SAFETY: pointers into the maps' values; a thread is only at one place at once.
    unsafe {
        let continued = (*thread).read_of == file && (*thread).read_to == to && index > (*thread).read_from;
        (*thread).read_of = file;
        (*thread).read_from = index;
        (*thread).read_to = to;
        if !continued && end > index {
            add(&raw mut (*cell).read, end - index);
        }
        add(&raw mut (*cell).read_missed, missed(thread, file, index, end));
        (*thread).added = 0;
        (*thread).fault_of = 0;
    }
    0
}

/// How many of the pages asked for were brought in just now.
#[inline(always)]
unsafe fn missed(thread: *const Thread, file: u64, index: u64, end: u64) -> u64 {
    // SAFETY: the caller passes a pointer into the map's value.
    let Thread { added_of, first, last, added, .. } = unsafe { *thread };
    if added == 0 || added_of != file {
        return 0;
    }
    let from = if first > index { first } else { index };
    let to = if last + 1 < end { last + 1 } else { end };
    let common = to.saturating_sub(from);
    if common < added { common } else { added }
}

/// Prototype: struct address_space *mapping, pgoff_t index. At the start of a fault.
#[btf_tracepoint(function = "mm_filemap_fault")]
fn faulted(ctx: BtfTracePointContext) -> i32 {
    let Some(cell) = cell() else { return 0 };
    // SAFETY: pointers into the maps' values.
    unsafe { add(&raw mut (*cell).faulted, 1) };
    let Some(thread) = thread() else { return 0 };
    // SAFETY: as above.
    unsafe {
        (*thread).fault_of = ctx.arg(0);
        (*thread).fault_at = ctx.arg(1);
    }
    0
}

/// Prototype: struct folio *folio, before 5.16 struct page *page.
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
fn added(ctx: BtfTracePointContext) -> i32 {
    let Some(cell) = cell() else { return 0 };
    let folio: *const u8 = ctx.arg(0);
    let pages = pages_of(folio);
    // SAFETY: the argument is a BTF pointer; pointers into the maps' values.
    let (file, first): (u64, u64) = unsafe {
        add(&raw mut (*cell).added, pages);
        (load(folio, FOLIO_MAPPING.load()), load(folio, FOLIO_INDEX.load()))
    };
    let Some(thread) = thread() else { return 0 };
    // SAFETY: as above.
    unsafe {
        if (*thread).fault_of == file {
            let at = (*thread).fault_at;
            if at != NOWHERE && at >= first && at - first < pages {
                add(&raw mut (*cell).fault_missed, 1);
                (*thread).fault_at = NOWHERE;
            }
        } else {
            remember(thread, file, first, pages);
        }
    }
    0
}

#[inline(always)]
unsafe fn remember(thread: *mut Thread, file: u64, first: u64, pages: u64) {
    let last = first + pages - 1;
    // SAFETY: the caller passes a pointer into the map's value.
    unsafe {
        if (*thread).added == 0 || (*thread).added_of != file {
            (*thread).added_of = file;
            (*thread).first = first;
            (*thread).last = last;
            (*thread).added = pages;
            return;
        }
        if first < (*thread).first {
            (*thread).first = first;
        }
        if last > (*thread).last {
            (*thread).last = last;
        }
        (*thread).added += pages;
    }
}

/// Prototype: struct folio *folio, struct address_space *mapping (include/trace/events/writeback.h); `writeback_dirty_page` with a struct
/// page before 5.18. What was added just before was for a write.
#[btf_tracepoint(function = "writeback_dirty_folio")]
fn dirtied(ctx: BtfTracePointContext) -> i32 {
    let Some(cell) = cell() else { return 0 };
    // SAFETY: a pointer into the map's value.
    unsafe { add(&raw mut (*cell).dirtied, pages_of(ctx.arg(0))) };
    if let Some(thread) = THREADS.get_ptr_mut(bpf_get_current_pid_tgid() as u32) {
        // SAFETY: as above.
        unsafe {
            (*thread).added = 0;
            (*thread).fault_of = 0;
        }
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

/// How many pages a folio has.
#[inline(always)]
fn pages_of(folio: *const u8) -> u64 {
    // SAFETY: the callers pass a BTF pointer to a folio or page.
    unsafe {
        if FOLIO_ORDER.load() == NONE || load::<u64>(folio, FOLIO_FLAGS.load()) & u64::from(FOLIO_LARGE.load()) == 0 {
            return 1;
        }
        1 << (load::<u8>(folio, FOLIO_ORDER.load()) & 31)
    }
}

/// Counts an event of the current thread and gives its group's place; `None` if it does not pass the filters.
#[inline(always)]
fn cell() -> Option<*mut CacheCell> {
    if !current_passes() {
        return None;
    }
    count_shared(Counter::Seen);
    let group = current_group();
    // A look-up is most of what this costs: a second one only for a group that is new.
    let cell = GROUPS.get_ptr_mut(group).or_else(|| {
        let process = current_process();
        let empty = CacheCell {
            events: 0,
            read: 0,
            read_missed: 0,
            faulted: 0,
            fault_missed: 0,
            added: 0,
            dirtied: 0,
            process,
        };
        // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
        let _ = GROUPS.insert(group, empty, 1);
        GROUPS.get_ptr_mut(group)
    });
    let Some(cell) = cell else {
        count_shared(Counter::MapFull);
        return None;
    };
    // SAFETY: a pointer into the map's value.
    unsafe { add(&raw mut (*cell).events, 1) };
    Some(cell)
}

#[inline(always)]
fn thread() -> Option<*mut Thread> {
    let tid = bpf_get_current_pid_tgid() as u32;
    THREADS.get_ptr_mut(tid).or_else(|| {
        let _ = THREADS.insert(tid, IDLE, 1);
        THREADS.get_ptr_mut(tid)
    })
}

mcptrace_ebpf::object!();
