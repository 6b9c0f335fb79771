//! Sends an event for every program that a process becomes.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr;

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user},
    macros::{btf_tracepoint, map},
    maps::{PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Ancestor, COMM_LEN, Counter, EXEC_ANCESTORS, EXEC_ARGUMENTS_MAX, EXEC_PATH_MAX, Exec, Header, Record, WALK_BYTES,
    WIRE_VERSION, Walk,
    actor::{current_actor, parent, tgid},
    file::walk_directory,
    kernel::{count, current_passes, load, now, read_kernel, send, task_comm},
};

#[unsafe(no_mangle)]
static BPRM_FILENAME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_MM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MM_ARG_START: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MM_ARG_END: Global<u32> = Global::new(0);

/// Where each CPU puts a record together: it does not fit on the stack.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[repr(C)]
struct Scratch {
    exec: Exec,
    /// The path, right behind it the arguments, and behind them the working directory.
    text: [u8; TEXT + WALK_BYTES],
    directory: Walk,
}

/// A power of two above what path and arguments need, as a bound that the verifier can follow.
const TEXT: usize = 4096;
const _: () = assert!(EXEC_PATH_MAX + EXEC_ARGUMENTS_MAX <= TEXT);

#[btf_tracepoint(function = "sched_process_exec")]
fn exec(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm (include/trace/events/sched.h). The task is the
    // running one, already with its new name and memory.
    if !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    let task: *const u8 = ctx.arg(0);
    // SAFETY: a pointer into this CPU's value of the map, and BTF pointers as the prototype has them.
    let sent = unsafe {
        let filename_len = read_filename(scratch, ctx.arg(2));
        let (arguments_len, arguments_total) = read_arguments(scratch, task, filename_len);
        let directory_len = read_directory(scratch, filename_len + arguments_len);
        let text_len = (filename_len + arguments_len + directory_len) & (TEXT as u32 - 1);
        let size = size_of::<Exec>() as u32 + text_len;
        let exec = Exec {
            header: Header { size: size as u16, version: WIRE_VERSION, kind: Exec::KIND },
            filename_len,
            time_ns: now(),
            actor: current_actor(),
            parent_comm: task_comm(parent(task)),
            arguments_len,
            arguments_total,
            directory_len,
            directory_flags: (*scratch).directory.flags,
            ancestors: [Ancestor { pid: 0, comm: [0; COMM_LEN] }; EXEC_ANCESTORS],
        };
        ptr::write(&raw mut (*scratch).exec, exec);
        write_ancestors((&raw mut (*scratch).exec.ancestors).cast(), parent(parent(task)));
        send(&ctx, &EVENTS, &EVENTS_PERF, scratch.cast_const().cast(), size)
    };
    if !sent {
        count(Counter::BufferFull);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

/// Reads the path as it was given to exec; gives its length without the NUL.
#[inline(always)]
unsafe fn read_filename(scratch: *mut Scratch, bprm: *const u8) -> u32 {
    // SAFETY: the caller passes a BTF pointer to struct linux_binprm; the helper writes at most so many bytes.
    let read = unsafe {
        let filename: *const u8 = load(bprm, BPRM_FILENAME.load());
        bpf_probe_read_kernel_str((&raw mut (*scratch).text).cast(), EXEC_PATH_MAX as u32, filename.cast())
    };
    if read > 0 { (read as u32 - 1) & (EXEC_PATH_MAX as u32 - 1) } else { 0 }
}

/// Reads the arguments from the new stack; gives how many bytes were read and how many there are.
#[inline(always)]
unsafe fn read_arguments(scratch: *mut Scratch, task: *const u8, behind: u32) -> (u32, u32) {
    const LONGEST: u32 = EXEC_ARGUMENTS_MAX as u32 - 1;
    // SAFETY: the caller passes the current task, whose memory this is; the bounds are such that the verifier sees them.
    unsafe {
        let mm: *const u8 = read_kernel(task.wrapping_add(TASK_MM.load() as usize));
        let start: u64 = read_kernel(mm.wrapping_add(MM_ARG_START.load() as usize));
        let end: u64 = read_kernel(mm.wrapping_add(MM_ARG_END.load() as usize));
        let total = end.wrapping_sub(start) as u32;
        let wanted = if total > LONGEST { LONGEST } else { total } & LONGEST;
        let target = (&raw mut (*scratch).text).cast::<u8>().add((behind & (EXEC_PATH_MAX as u32 - 1)) as usize);
        let failed = bpf_probe_read_user(target.cast(), wanted, start as *const _) != 0;
        (if failed { 0 } else { wanted }, total)
    }
}

/// Writes a task and those above it. Above the first process is the idle task, number 0, its own parent.
#[inline(always)]
unsafe fn write_ancestors(ancestors: *mut Ancestor, mut task: *const u8) {
    for place in 0..EXEC_ANCESTORS {
        // SAFETY: the caller passes room for so many; a failed read gives zeros.
        unsafe {
            ptr::write(ancestors.add(place), Ancestor { pid: tgid(task), comm: task_comm(task) });
            task = parent(task);
        }
    }
}

/// Finds the working directory and puts its names behind the rest; gives their length.
#[inline(always)]
unsafe fn read_directory(scratch: *mut Scratch, behind: u32) -> u32 {
    // SAFETY: the caller passes the map's value, and the bounds are such that the verifier sees them.
    unsafe {
        walk_directory(&raw mut (*scratch).directory);
        let length = ptr::read_volatile(&raw const (*scratch).directory.len) & (WALK_BYTES as u32 - 1);
        let target = (&raw mut (*scratch).text).cast::<u8>().add((behind & (TEXT as u32 - 1)) as usize);
        let names = (&raw const (*scratch).directory.names).cast();
        if bpf_probe_read_kernel(target.cast(), length, names) == 0 { length } else { 0 }
    }
}

mcptrace_ebpf::object!();
