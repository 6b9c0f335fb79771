//! Sends an event for every process that ends.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Exit, Header, Record, WIRE_VERSION,
    actor::current_actor,
    kernel::{TASK_LEADER, count, current_passes, duration_passes, load, now, read_kernel, send, task_comm},
    process::{Ended, exit_status, is_last_thread, start_time},
};

#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_THREAD_NODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_UTIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_STIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_RUNTIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_THREADS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_UTIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_STIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_RUNTIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_MAXRSS: Global<u32> = Global::new(0);

/// Threads whose times are added up: those that have not been let go of when the last one ends.
const MOST_THREADS: u32 = 64;

/// Processes whose end was seen.
#[map]
static ENDED: Ended = Ended::with_max_entries(1024, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "sched_process_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct task_struct *p, and from 6.16 on bool group_dead (include/trace/events/sched.h). The task is the running one.
    let task: *const u8 = ctx.arg(0);
    // SAFETY: BTF pointers to task_struct and signal_struct.
    unsafe {
        let signal: *const u8 = load(task, TASK_SIGNAL.load());
        let leader: *const u8 = load(task, TASK_LEADER.load());
        if !is_last_thread(&ctx, &ENDED, signal, leader) || !current_passes() {
            return 0;
        }
        let time_ns = now();
        let lifetime_ns = time_ns.wrapping_sub(start_time(leader));
        if !duration_passes(lifetime_ns) {
            return 0;
        }
        count(Counter::Seen);
        let [user_ns, system_ns, cpu_ns] = times(signal);
        let exit = Exit {
            header: Header { size: size_of::<Exit>() as u16, version: WIRE_VERSION, kind: Exit::KIND },
            status: exit_status(signal, leader),
            time_ns,
            actor: current_actor(),
            lifetime_ns,
            user_ns,
            system_ns,
            cpu_ns,
            max_rss_pages: field(signal, SIGNAL_MAXRSS.load()),
            comm: task_comm(leader),
        };
        if !send(&ctx, &EVENTS, &EVENTS_PERF, (&raw const exit).cast(), size_of::<Exit>() as u32) {
            count(Counter::BufferFull);
        }
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
unsafe fn field<T>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller passes a kernel structure; a failed read gives zeros.
    unsafe { read_kernel(base.wrapping_add(offset as usize)) }
}

/// User, system and CPU time: of the threads that are gone, which the process keeps, and of those that are left.
#[inline(always)]
unsafe fn times(signal: *const u8) -> [u64; 3] {
    // SAFETY: the caller passes a signal_struct; `thread_head` is a list of `task_struct.thread_node`.
    unsafe {
        let mut user: u64 = field(signal, SIGNAL_UTIME.load());
        let mut system: u64 = field(signal, SIGNAL_STIME.load());
        let mut cpu: u64 = field(signal, SIGNAL_RUNTIME.load());
        let head = signal.wrapping_add(SIGNAL_THREADS.load() as usize);
        let mut node: *const u8 = read_kernel(head);
        for _ in 0..MOST_THREADS {
            if node == head || node.is_null() {
                break;
            }
            let task = node.wrapping_sub(TASK_THREAD_NODE.load() as usize);
            user += field::<u64>(task, TASK_UTIME.load());
            system += field::<u64>(task, TASK_STIME.load());
            cpu += field::<u64>(task, TASK_RUNTIME.load());
            node = read_kernel(node);
        }
        [user, system, cpu]
    }
}

mcptrace_ebpf::object!();
