//! Sends an event for every system call that changes or needs privilege.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    macros::{btf_tracepoint, map},
    maps::{PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Header, PRIVILEGED_STRING, PrivilegedCall, Record, SYSCALLS, WIRE_VERSION,
    actor::current_actor,
    kernel::{count, current_passes, now, send},
    syscall::{call_arguments, fourth_argument, has_error, is_childs_return, returning},
};

/// Whether only failures are sent.
#[unsafe(no_mangle)]
static FAILED_ONLY: Global<u32> = Global::new(0);
/// Whether the single steps of ptrace and bpf are sent, which a debugger or tracer makes by the thousand.
#[unsafe(no_mangle)]
static STEPS: Global<u32> = Global::new(0);
/// Indexes of the two, native and 32-bit.
#[unsafe(no_mangle)]
static PTRACE: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
#[unsafe(no_mangle)]
static BPF: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
/// A bit for each call, by index.
#[unsafe(no_mangle)]
static WANTED: Global<[u64; WORDS]> = Global::new([0; WORDS]);
/// For each of the first four arguments a bit for each call in which it is a string.
#[unsafe(no_mangle)]
static STRINGS: Global<[u64; 4 * WORDS]> = Global::new([0; 4 * WORDS]);
/// Indexes of clone and clone3, native and 32-bit: wanted if they make namespaces.
#[unsafe(no_mangle)]
static CLONE: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
#[unsafe(no_mangle)]
static CLONE3: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
/// Indexes of the calls that steer a clock, or only read how it is: native, 32-bit, and 32-bit with wide times.
#[unsafe(no_mangle)]
static ADJTIMEX: Global<[u32; 2]> = Global::new([u32::MAX; 2]);
#[unsafe(no_mangle)]
static CLOCK_ADJTIME: Global<[u32; 3]> = Global::new([u32::MAX; 3]);

/// Words of a bit for each call.
const WORDS: usize = SYSCALLS as usize / 64;
/// `CLONE_NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`, `NEWNET` (include/uapi/linux/sched.h).
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// `CLONE_NEWTIME`, which clone cannot take: the bit is in the number of its signal.
const NEW_TIME: u64 = 0x80;
/// `ADJ_ADJTIME` and `ADJ_OFFSET_READONLY` (include/uapi/linux/timex.h).
const ADJTIME: u32 = 0x8000;
const ADJTIME_READS: u32 = 0x2000;

/// `PTRACE_TRACEME`, `ATTACH` and `SEIZE` (include/uapi/linux/ptrace.h): the requests that begin tracing.
const PTRACE_BEGINS: [u64; 3] = [0, 16, 0x4206];
/// Commands of bpf that read or change elements of a map, list, or ask about what one has (`enum bpf_cmd`, include/uapi/linux/bpf.h), as bits:
/// 1 to 4 and 21, 24 to 27 (elements), 11, 12, 23 and 31 (the next id), 15, 16 and 20 (information).
const BPF_STEPS: u64 = 0x1e | 1 << 21 | 0xf << 24 | 3 << 11 | 1 << 23 | 1 << 31 | 3 << 15 | 1 << 20;

/// Where each CPU puts a record together: it does not fit on the stack.
#[map]
static SCRATCH: PerCpuArray<PrivilegedCall> = PerCpuArray::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "sys_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let index = returning(&ctx);
    if !is_set(&WANTED, 0, index) {
        return 0;
    }
    exit_wanted(ctx.as_ptr())
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(never)]
fn exit_wanted(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    let index = returning(&ctx);
    if FAILED_ONLY.load() != 0 && !has_error(&ctx) || is_childs_return(&ctx, index) || !current_passes() {
        return 0;
    }
    let [first, second, third] = call_arguments(&ctx, index);
    if STEPS.load() == 0 && is_step(index, first) {
        return 0;
    }
    let flags = clone_flags(index, first).or_else(|| clock_modes(index, first, second));
    if flags == Some(0) {
        return 0;
    }
    count(Counter::Seen);
    let Some(call) = SCRATCH.get_ptr_mut(0) else { return 0 };
    let arguments = [first, second, third, fourth_argument(&ctx, index)];
    // SAFETY: a pointer into this CPU's value of the map, which one program alone writes.
    let sent = unsafe {
        ptr::write(
            &raw mut (*call).header,
            Header { size: SIZE as u16, version: WIRE_VERSION, kind: PrivilegedCall::KIND },
        );
        ptr::write(&raw mut (*call).syscall, index);
        ptr::write(&raw mut (*call).time_ns, now());
        ptr::write(&raw mut (*call).actor, current_actor());
        ptr::write(&raw mut (*call).result, ctx.arg(1));
        ptr::write(&raw mut (*call).arguments, arguments);
        ptr::write(&raw mut (*call).flags, flags.unwrap_or(0));
        let mut read = read_string(call, index, 0, first);
        read |= read_string(call, index, 1, second);
        read |= read_string(call, index, 2, third);
        read |= read_string(call, index, 3, arguments[3]);
        ptr::write(&raw mut (*call).strings_read, read);
        send(&ctx, &EVENTS, &EVENTS_PERF, call.cast_const().cast(), SIZE)
    };
    if !sent {
        count(Counter::BufferFull);
    }
    0
}

const SIZE: u32 = size_of::<PrivilegedCall>() as u32;

/// Whether the bit of a call is set in the table that begins at a word of a global.
#[inline(always)]
fn is_set<T>(global: &Global<T>, table: usize, index: u32) -> bool {
    let index = index & (SYSCALLS - 1);
    // A load at a computed place of the read-only data; the mask is the bound that the verifier wants.
    // SAFETY: the global has a word for each 64 calls behind the beginning of the table.
    let word =
        unsafe { ptr::read_volatile(ptr::from_ref(global).cast::<u64>().add(table * WORDS + (index >> 6) as usize)) };
    word >> (index & 63) & 1 != 0
}

/// Whether the call only goes on with what another one has begun.
#[inline(always)]
fn is_step(index: u32, request: u64) -> bool {
    let is = |pair: [u32; 2]| index == pair[0] || index == pair[1];
    if is(PTRACE.load()) {
        return !PTRACE_BEGINS.contains(&request);
    }
    // Both arguments are numbers of 32 bits; of larger commands there are none.
    is(BPF.load()) && request < 64 && BPF_STEPS >> request & 1 != 0
}

/// The flags that make namespaces, if the call is a clone.
#[inline(always)]
fn clone_flags(index: u32, first: u64) -> Option<u64> {
    let is = |pair: [u32; 2]| index == pair[0] || index == pair[1];
    if is(CLONE.load()) {
        return Some(first & NEW_NAMESPACES);
    }
    if !is(CLONE3.load()) {
        return None;
    }
    // The flags are the first member of struct clone_args (include/uapi/linux/sched.h).
    let mut flags = 0_u64;
    // SAFETY: the helper checks the address and writes eight bytes.
    unsafe { bpf_probe_read_user((&raw mut flags).cast(), 8, first as *const _) };
    Some(flags & (NEW_NAMESPACES | NEW_TIME))
}

/// What is changed, if the call steers a clock; 0 where it only reads, for which nobody needs privilege (timekeeping_validate_timex,
/// kernel/time/timekeeping.c).
#[inline(always)]
fn clock_modes(index: u32, first: u64, second: u64) -> Option<u64> {
    let timex = if ADJTIMEX.load().contains(&index) {
        first
    } else if CLOCK_ADJTIME.load().contains(&index) {
        second
    } else {
        return None;
    };
    // The modes are the first member of struct timex, of either size.
    let mut modes = 0_u32;
    // SAFETY: the helper checks the address and writes four bytes.
    unsafe { bpf_probe_read_user((&raw mut modes).cast(), 4, timex as *const _) };
    let reads = modes & ADJTIME != 0 && modes & ADJTIME_READS != 0;
    Some(if reads { 0 } else { modes.into() })
}

/// Reads an argument if it is a string in this call; gives its bit if it could be read.
#[inline(always)]
unsafe fn read_string(call: *mut PrivilegedCall, index: u32, place: usize, address: u64) -> u64 {
    if !is_set(&STRINGS, place, index) {
        return 0;
    }
    // SAFETY: the helper writes at most the size of the string.
    unsafe {
        let target = (&raw mut (*call).strings).cast::<u8>().add(place * PRIVILEGED_STRING);
        let read = bpf_probe_read_user_str(target.cast(), PRIVILEGED_STRING as u32, address as *const _);
        if read > 0 { 1 << place } else { 0 }
    }
}

mcptrace_ebpf::object!();
