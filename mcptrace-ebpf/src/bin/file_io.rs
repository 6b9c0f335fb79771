//! Times reads and writes of files, and adds up what they move, by file.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, FileId, FileIo, FileIoKey, GroupKey, START_SLOTS, Walk,
    file::{S_IFBLK, S_IFREG, file_type, id, inode, open_file, walk},
    kernel::{add, count, current_passes, duration_passes, now, record_shared, since, start, take_start},
    names::{current_group, current_process},
    syscall::{Classes, class, entered, first_argument, has_error, returning},
};

/// Which calls read and which write.
#[unsafe(no_mangle)]
static IO_CALLS: Classes = Global::new([0; 1024]);

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): entries are large and most runs see few files.
const NO_PREALLOC: u32 = 1;

/// When each thread entered its call.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// Reads and writes of each file.
#[map]
static FILES: HashMap<FileIoKey, FileIo> = HashMap::with_max_entries(8192, NO_PREALLOC);
/// The path of each file, found at its first read or write.
#[map]
static PATHS: HashMap<FileId, Walk> = HashMap::with_max_entries(8192, NO_PREALLOC);
/// A new entry, all zeros but for the process: too large for the stack.
#[map]
static EMPTY: PerCpuArray<FileIo> = PerCpuArray::with_max_entries(1, 0);
/// Where each CPU puts a path together.
#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sys_enter")]
fn enter(ctx: BtfTracePointContext) -> i32 {
    if class(&IO_CALLS, entered(&ctx)) != 0 && current_passes() {
        start(&STARTS, bpf_get_current_pid_tgid() as u32, now());
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let syscall = returning(&ctx);
    let operation = class(&IO_CALLS, syscall);
    if operation == 0 {
        return 0;
    }
    // 0 stands for no start, which is no time of one.
    let begin = take_start(&STARTS, bpf_get_current_pid_tgid() as u32).unwrap_or(0);
    if begin == 0 && !current_passes() {
        return 0;
    }
    let file = open_file(first_argument(&ctx, syscall) as u32);
    let inode = inode(file);
    if !matches!(file_type(inode), S_IFREG | S_IFBLK) {
        return 0;
    }
    if begin == 0 {
        count(Counter::Seen);
        count(Counter::StartMissing);
        return 0;
    }
    let latency = since(begin, now());
    if duration_passes(latency) {
        count(Counter::Seen);
        let GroupKey { pid, comm, .. } = current_group();
        finish(&ctx, file, FileIoKey { file: id(inode), operation: operation.into(), pid, comm }, latency);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn finish(ctx: &BtfTracePointContext, file: u64, key: FileIoKey, latency: u64) {
    let Some(cell) = cell(file, key) else {
        count(Counter::MapFull);
        return;
    };
    let result: i64 = ctx.arg(1);
    // SAFETY: a pointer into the map's value.
    unsafe {
        record_shared(&raw mut (*cell).latency, latency);
        if has_error(ctx) {
            add(&raw mut (*cell).errors, 1);
        } else if result > 0 {
            add(&raw mut (*cell).bytes, result as u64);
        }
    }
}

#[inline(always)]
fn cell(file: u64, key: FileIoKey) -> Option<*mut FileIo> {
    if let Some(cell) = FILES.get_ptr_mut(key) {
        return Some(cell);
    }
    remember_path(file, &key.file);
    let empty = EMPTY.get_ptr_mut(0)?;
    // SAFETY: a pointer into this CPU's value of the map, of which only the process is ever written.
    let empty: &FileIo = unsafe {
        (*empty).process = current_process();
        &*empty
    };
    // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
    let _ = FILES.insert(key, empty, 1);
    FILES.get_ptr_mut(key)
}

/// Without room for the path the file is shown by its number.
#[inline(always)]
fn remember_path(file: u64, id: &FileId) {
    if PATHS.get_ptr(id).is_some() {
        return;
    }
    let Some(scratch) = WALK.get_ptr_mut(0) else { return };
    // SAFETY: a pointer into this CPU's value of the map, which one program alone writes.
    let found: &Walk = unsafe {
        walk(file, scratch);
        &*scratch
    };
    let _ = PATHS.insert(id, found, 0);
}

mcptrace_ebpf::object!();
