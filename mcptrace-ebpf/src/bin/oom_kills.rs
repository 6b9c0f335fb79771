//! Sends an event for every process that the kernel kills for want of memory.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Actor, Counter, Header, OomKill, Record, WIRE_VERSION,
    actor::{current_actor, task_actor},
    kernel::{count, current_passes, now, read_kernel, send, task_passes},
    memory::pages,
};

/// Whether the tracepoint passes the victim's task; older ones pass its id alone.
#[unsafe(no_mangle)]
static VICTIM_IS_TASK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_MM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_OOM_ADJ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MM_TOTAL_VM: Global<u32> = Global::new(0);
/// Where a `struct css_set` has its memory control group; 0 in kernels without.
#[unsafe(no_mangle)]
static CSS_SET_MEMORY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CSS_SET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GROUP_MEMORY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MEMORY_USAGE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MEMORY_MAX: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MEMORY_PARENT: Global<u32> = Global::new(0);

/// Control groups above each other that are looked at.
const GROUPS: u32 = 16;

/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "mark_victim")]
fn victim(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct task_struct *task, uid_t uid; int pid in older kernels (include/trace/events/oom.h).
    let mut kill = OomKill {
        header: Header { size: size_of::<OomKill>() as u16, version: WIRE_VERSION, kind: OomKill::KIND },
        score_adjustment: 0,
        time_ns: now(),
        trigger: current_actor(),
        victim: Actor::default(),
        pages: [0; 4],
        virtual_pages: 0,
        detailed: 0,
        group_pages: 0,
        group_limit: 0,
    };
    if VICTIM_IS_TASK.load() != 0 {
        // SAFETY: a BTF pointer to task_struct.
        unsafe {
            if !task_passes(ctx.arg(0)) {
                return 0;
            }
            describe(&mut kill, ctx.arg(0));
        }
    } else {
        if !current_passes() {
            return 0;
        }
        kill.victim.pid = ctx.arg(0);
    }
    count(Counter::Seen);
    // SAFETY: the record is on the stack.
    if !unsafe { send(&ctx, &EVENTS, &EVENTS_PERF, (&raw const kill).cast(), size_of::<OomKill>() as u32) } {
        count(Counter::BufferFull);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
unsafe fn describe(kill: &mut OomKill, task: *const u8) {
    // SAFETY: the caller passes a task; a failed read gives zeros.
    unsafe {
        let signal: *const u8 = field(task, TASK_SIGNAL.load());
        let mm: *const u8 = field(task, TASK_MM.load());
        kill.score_adjustment = i32::from(field::<i16>(signal, SIGNAL_OOM_ADJ.load()));
        kill.victim = task_actor(task);
        kill.pages = pages(mm);
        kill.virtual_pages = field(mm, MM_TOTAL_VM.load());
        kill.detailed = 1;
        if CSS_SET_MEMORY.load() != 0 {
            (kill.group_pages, kill.group_limit) = tightest(task);
        }
    }
}

/// Usage and limit of the control group with the least room, of those that the task is in.
#[inline(always)]
unsafe fn tightest(task: *const u8) -> (u64, u64) {
    // SAFETY: the caller passes a task; a failed read gives zeros.
    unsafe {
        let css_set: *const u8 = field(task, TASK_CSS_SET.load());
        // A `struct mem_cgroup` begins with its `struct cgroup_subsys_state` (include/linux/memcontrol.h).
        let group: *const u8 = field(css_set, CSS_SET_MEMORY.load());
        let mut counter = group.wrapping_add(GROUP_MEMORY.load() as usize);
        let mut found = (0, 0);
        let mut least = i64::MAX;
        for _ in 0..GROUPS {
            let (usage, limit): (u64, u64) = (field(counter, MEMORY_USAGE.load()), field(counter, MEMORY_MAX.load()));
            let room = limit.wrapping_sub(usage) as i64;
            if room < least {
                least = room;
                found = (usage, limit);
            }
            counter = field(counter, MEMORY_PARENT.load());
            if counter.is_null() {
                break;
            }
        }
        found
    }
}

#[inline(always)]
unsafe fn field<T>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller passes a kernel structure.
    unsafe { read_kernel(base.wrapping_add(offset as usize)) }
}

mcptrace_ebpf::object!();
