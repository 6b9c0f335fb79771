//! Sends an event for every open, openat, openat2 and creat that returns.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr;

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Header, Open, PATH_MAX, PATH_UNREADABLE, Record, START_SLOTS, WIRE_VERSION, diagnose,
    kernel::{
        count, current_cgroup, current_comm, current_passes, duration_passes, now, send, since, start, take_start,
    },
    syscall::{OpenCall, OpenSyscalls, entered, open_call, returning},
};

/// Whether only failed opens are sent.
#[unsafe(no_mangle)]
static FAILED_ONLY: Global<u32> = Global::new(0);
/// How many bytes of [`PREFIX`] a path must start with.
#[unsafe(no_mangle)]
static PREFIX_LEN: Global<u32> = Global::new(0);
/// What a path must start with, as words.
#[unsafe(no_mangle)]
static PREFIX: Global<[u64; PREFIX_WORDS]> = Global::new([0; PREFIX_WORDS]);
/// Masks the bytes of each word of a path that count.
#[unsafe(no_mangle)]
static PREFIX_MASK: Global<[u64; PREFIX_WORDS]> = Global::new([0; PREFIX_WORDS]);
/// Indexes of the four calls, native and 32-bit.
#[unsafe(no_mangle)]
static OPENS: Global<OpenSyscalls> = Global::new(OpenSyscalls::NONE);

/// Longest prefix, in words of eight bytes.
const PREFIX_WORDS: usize = 16;

/// When each thread entered its call.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, 0);
/// Where each CPU puts a record together: it does not fit on the stack.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

/// A record and the path that follows it.
#[repr(C)]
struct Scratch {
    open: Open,
    /// Words, because the prefix is compared by words.
    path: [u64; PATH_MAX / 8],
}

#[btf_tracepoint(function = "sys_enter")]
fn enter(ctx: BtfTracePointContext) -> i32 {
    if OPENS.load().contains(entered(&ctx)) && current_passes() {
        start(&STARTS, bpf_get_current_pid_tgid() as u32, now());
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let syscall = returning(&ctx);
    let opens = OPENS.load();
    if !opens.contains(syscall) {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let time_ns = now();
    let begin = take_start(&STARTS, pid_tgid as u32);
    let result = ctx.arg::<i64>(1) as i32;
    if begin.is_none() && !current_passes() || FAILED_ONLY.load() != 0 && result >= 0 {
        return 0;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    let call = open_call(&ctx, &opens, syscall);
    // SAFETY: a pointer into this CPU's value of the map, which one program alone writes.
    let path_len = unsafe { read_path(scratch, call.path) };
    // SAFETY: as above.
    if PREFIX_LEN.load() != 0 && !unsafe { prefix_passes(scratch, path_len) } {
        return 0;
    }
    let Some(begin) = begin else {
        diagnose!(&ctx, "open of thread {} has no start", pid_tgid as u32);
        count(Counter::Seen);
        count(Counter::StartMissing);
        return 0;
    };
    let latency_ns = since(begin, time_ns);
    if !duration_passes(latency_ns) {
        return 0;
    }
    count(Counter::Seen);
    let carried = if path_len == PATH_UNREADABLE { 0 } else { path_len };
    // Bounds that the verifier can follow; `read_path` gives at most PATH_MAX - 1.
    let carried = carried & (PATH_MAX as u32 - 1);
    let size = size_of::<Open>() as u32 + carried;
    let open = Open {
        header: Header { size: size as u16, version: WIRE_VERSION, kind: Open::KIND },
        result,
        time_ns,
        cgroup: current_cgroup(),
        latency_ns,
        flags: read_flags(&call),
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        uid: bpf_get_current_uid_gid() as u32,
        dirfd: call.dirfd,
        comm: current_comm(),
        syscall,
        path_len,
    };
    // SAFETY: the record is in the map's value and `size` is at most the size of a `Scratch`.
    let sent = unsafe {
        ptr::write(&raw mut (*scratch).open, open);
        send(&ctx, &EVENTS, &EVENTS_PERF, scratch.cast_const().cast(), size)
    };
    if !sent {
        diagnose!(&ctx, "no room for {} bytes", size);
        count(Counter::BufferFull);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

/// Reads the path that the caller passed, at return, when its page is in memory for certain. Gives its length without the NUL.
#[inline(always)]
unsafe fn read_path(scratch: *mut Scratch, path: u64) -> u32 {
    // SAFETY: the helper writes at most PATH_MAX bytes into the scratch.
    let read = unsafe { bpf_probe_read_user_str((&raw mut (*scratch).path).cast(), PATH_MAX as u32, path as *const _) };
    if read > 0 { read as u32 - 1 } else { PATH_UNREADABLE }
}

/// Whether the path in the scratch starts with the prefix.
#[inline(always)]
unsafe fn prefix_passes(scratch: *mut Scratch, path_len: u32) -> bool {
    if path_len == PATH_UNREADABLE || path_len < PREFIX_LEN.load() {
        return false;
    }
    let (prefix, mask) = (PREFIX.load(), PREFIX_MASK.load());
    // SAFETY: a pointer into the map's value, whose path is longer than the prefix can be.
    let path = unsafe { (&raw const (*scratch).path).cast::<u64>() };
    for word in 0..PREFIX_WORDS {
        // SAFETY: as above.
        if (unsafe { ptr::read(path.add(word)) } ^ prefix[word]) & mask[word] != 0 {
            return false;
        }
    }
    true
}

/// The flags: an argument, or the first member of `struct open_how` (include/uapi/linux/openat2.h).
#[inline(always)]
fn read_flags(call: &OpenCall) -> u64 {
    if !call.flags_in_memory {
        return call.flags & 0xffff_ffff;
    }
    let mut flags = 0_u64;
    // SAFETY: the helper checks the address and writes eight bytes.
    unsafe { bpf_probe_read_user((&raw mut flags).cast(), 8, call.flags as *const _) };
    flags
}

mcptrace_ebpf::object!();
