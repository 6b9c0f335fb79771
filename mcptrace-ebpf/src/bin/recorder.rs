//! What is always on: one program for each hook, which serves all aggregates on it. System calls are in `recorder_syscalls`.
//!
//! The hot hooks look into arrays alone; hash maps are for block requests, connects, and processes that share a slot.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id},
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Actor, BlockStats, Control, Count, CpuBank, CpuNow, DeviceKey, ERRNOS, Header, IPPROTO_TCP, IRQS, LOCK_IS_MUTEX,
    LOCK_SPINS, PROCESS_SLOTS, Pending, ProcessEvent, ProcessEventKind, ProcessSlot, REQUEST_SLOTS, Record, STALLS,
    START_SLOTS, START_TIME_BITS, START_TIME_MASK, SharedBank, SpillKey, Stall, Tally, WIRE_VERSION,
    actor::{current_actor, task_actor},
    kernel::{
        TASK_LEADER, add, address, forgotten, load, now, read_kernel, record, record_shared, send, since, start,
        take_start, task_cgroup, task_comm, task_tgid, task_tid,
    },
    lock_kind,
    process::{Ended, exit_status, is_last_thread, start_time},
    request_slot, running,
    socket::protocol,
    tcp_state::{CLOSE, ESTABLISHED, SYN_RECV, SYN_SENT},
};

/// Offset of `task_struct.__state` (5.14 and later) or `.state`.
#[unsafe(no_mangle)]
static TASK_STATE: Global<u32> = Global::new(0);
/// `task_struct.se.sum_exec_runtime`.
#[unsafe(no_mangle)]
static TASK_RUNTIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
/// As in `block_latency`.
#[unsafe(no_mangle)]
static REQUEST_START: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REQUEST_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REQUEST_BYTES: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REQUEST_QUEUE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static QUEUE_DISK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DISK_MAJOR: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DISK_MINOR: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REQUEST_ARGUMENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_ERROR: Global<u32> = Global::new(0);
/// Whether `mark_victim` passes the victim's task; older ones pass its id alone.
#[unsafe(no_mangle)]
static VICTIM_IS_TASK: Global<u32> = Global::new(0);

/// `REQ_OP_FLUSH` (include/linux/blk_types.h).
const REQ_OP_FLUSH: u32 = 2;
/// `BPF_F_MMAPABLE` as aya's definition of a map has its flags.
const MAPPED: u32 = BPF_F_MMAPABLE;

/// What user space wants.
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, MAPPED);
/// What each CPU is doing. User space sets the number of entries to that of possible CPUs.
#[map]
static CPUS: Array<CpuNow> = Array::with_max_entries(1, MAPPED);
/// The two banks of each CPU.
#[map]
static BANKS: Array<CpuBank> = Array::with_max_entries(2, MAPPED);
/// The slots of processes of each bank of each CPU.
#[map]
static PROCESSES: Array<ProcessSlot> = Array::with_max_entries(2 * PROCESS_SLOTS, MAPPED);
/// Processes that lost their slot to another.
#[map]
static SPILLED: HashMap<SpillKey, ProcessSlot> = HashMap::with_max_entries(16_384, 0);
/// The two banks that all CPUs share.
#[map]
static SHARED: Array<SharedBank> = Array::with_max_entries(2, MAPPED);
/// Hardware interrupts by number, of both banks.
#[map]
static HARD: Array<Tally> = Array::with_max_entries(2 * IRQS, MAPPED);
/// When each thread became runnable.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(START_SLOTS, MAPPED);
/// When each thread began to be stalled by each [`Stall`].
#[map]
static STALLED: Array<u64> = Array::with_max_entries(STALLS * START_SLOTS, 0);
/// When each thread began to wait for a lock and each CPU to spin for one. The highest byte of the start is the kind of the lock.
#[map]
static SLEEPING: Array<Pending> = Array::with_max_entries(START_SLOTS, 0);
#[map]
static SPINNING: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);
/// Block requests that were issued.
#[map]
static ISSUED: Array<Pending> = Array::with_max_entries(REQUEST_SLOTS, 0);
/// Block requests by device and operation, of both banks.
#[map]
static DEVICES: HashMap<DeviceKey, BlockStats> = HashMap::with_max_entries(512, 0);
/// A new entry, all zeros: too large for the stack.
#[map]
static EMPTY: PerCpuArray<BlockStats> = PerCpuArray::with_max_entries(1, 0);
/// Connects by the address of their socket: when they began.
#[map]
static CONNECTS: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);
/// Processes whose end was seen.
#[map]
static ENDED: Ended = Ended::with_max_entries(1024, 0);
/// Processes that began and ended.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

/// Time of processes, switches, and waits for a CPU.
#[btf_tracepoint(function = "sched_switch")]
fn switch(ctx: BtfTracePointContext) -> i32 {
    // Prototype: bool preempt, task_struct *prev, task_struct *next, and from 5.18 on unsigned int prev_state
    // (include/trace/events/sched.h). The state is read from the task, which all kernels allow: it has not changed since.
    let now = now();
    let (preempted, prev, next): (u64, *const u8, *const u8) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let Some(control) = CONTROL.get_ptr(0) else { return 0 };
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: pointers into values of maps, those of this CPU; BTF pointers to task_struct.
    unsafe {
        let (epoch, times_runq) = (epoch(control), ptr::read_volatile(&raw const (*control).runq) != 0);
        let index = cpu * 2 + epoch;
        let (Some(cpu), Some(bank)) = (CPUS.get_ptr_mut(cpu), BANKS.get_ptr_mut(index)) else { return 0 };
        let (left, came) = (task_tid(prev), task_tid(next));
        // A program that the kernel skipped leaves another thread behind.
        let ran = if (*cpu).tid == u64::from(left) { runtime(prev).wrapping_sub((*cpu).runtime) } else { 0 };
        (*cpu).tid = u64::from(came);
        (*cpu).runtime = runtime(next);
        // The idle thread is process 0, for which nothing is kept.
        let is = if came == 0 { 0 } else { running(task_tgid(next), now) };
        ptr::write_volatile(&raw mut (*cpu).running, is);
        if left != 0 {
            let can_go_on = preempted & 1 != 0 || load::<u32>(prev, TASK_STATE.load()) == 0;
            if can_go_on {
                (*bank).involuntary += 1;
            } else {
                (*bank).voluntary += 1;
            }
            if times_runq && can_go_on {
                start(&STARTS, left, now);
            }
            charge(index, prev, ran);
        }
        if times_runq && came != 0 {
            match take_start(&STARTS, came) {
                Some(began) => record(&raw mut (*bank).runq, since(began, now)),
                None => (*bank).unknown_waits += 1,
            }
        }
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup")]
fn wakeup(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the first argument is a BTF pointer to task_struct (include/trace/events/sched.h).
    start(&STARTS, unsafe { task_tid(ctx.arg(0)) }, now());
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
fn wakeup_new(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as for sched_wakeup.
    start(&STARTS, unsafe { task_tid(ctx.arg(0)) }, now());
    0
}

/// What the scheduler has charged a thread so far, in nanoseconds. It is up to date in `sched_switch`, and not the time between two switches:
/// what the host or an interrupt took is not in it, and what a thread that wakes on an idle CPU takes to get there may be.
#[inline(always)]
unsafe fn runtime(task: *const u8) -> u64 {
    // SAFETY: the caller passes a BTF pointer to task_struct.
    unsafe { load(task, TASK_RUNTIME.load()) }
}

/// Adds what a thread has run to its process.
#[inline(always)]
unsafe fn charge(bank: u32, task: *const u8, ran: u64) {
    if ran == 0 {
        return;
    }
    // SAFETY: the caller passes a task.
    let tgid = unsafe { task_tgid(task) };
    let Some(slot) = PROCESSES.get_ptr_mut(bank * PROCESS_SLOTS + (tgid & (PROCESS_SLOTS - 1))) else { return };
    // SAFETY: a pointer into the map's value, which only this CPU writes.
    unsafe {
        if (*slot).tgid != tgid {
            claim(slot, task, bank & 1);
        }
        (*slot).ns += ran;
    }
}

/// Makes a slot that of a task's process; what another process has in it goes to the hash map.
#[inline(always)]
unsafe fn claim(slot: *mut ProcessSlot, task: *const u8, bank: u32) {
    // SAFETY: the callers pass a pointer into a map's value and a task.
    unsafe {
        if (*slot).tgid != 0 {
            spill(&*slot, bank);
        }
        let leader: *const u8 = load(task, TASK_LEADER.load());
        *slot =
            ProcessSlot { ns: 0, cgroup: task_cgroup(task), tgid: task_tgid(task), zero: 0, comm: task_comm(leader) };
    }
}

#[inline(always)]
fn spill(slot: &ProcessSlot, bank: u32) {
    let key = SpillKey { tgid: slot.tgid, bank };
    // Another CPU may be first with this process (BPF_NOEXIST is 1): then its entry is used.
    if SPILLED.get_ptr_mut(key).is_none() && SPILLED.insert(key, slot, 1).is_ok() {
        return;
    }
    if let Some(spilled) = SPILLED.get_ptr_mut(key) {
        // SAFETY: a pointer into the map's value.
        unsafe { add(&raw mut (*spilled).ns, slot.ns) };
    } else {
        // SAFETY: the helper takes nothing.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        if let Some(bank) = BANKS.get_ptr_mut(cpu * 2 + bank) {
            // SAFETY: a pointer into this CPU's value.
            unsafe { (*bank).unnamed_ns += slot.ns };
        }
    }
}

#[btf_tracepoint(function = "irq_handler_entry")]
fn hard_entry(_ctx: BtfTracePointContext) -> i32 {
    if let Some(cpu) = this_cpu() {
        // SAFETY: a pointer into this CPU's value. Interrupts of one kind do not nest.
        unsafe { (*cpu).hard_start = now() };
    }
    0
}

#[btf_tracepoint(function = "irq_handler_exit")]
fn hard_exit(ctx: BtfTracePointContext) -> i32 {
    // Prototype: int irq, struct irqaction *action, int ret (include/trace/events/irq.h).
    let irq: u32 = ctx.arg(0);
    let Some(cpu) = this_cpu() else { return 0 };
    // SAFETY: a pointer into this CPU's value.
    let began = unsafe { ptr::replace(&raw mut (*cpu).hard_start, 0) };
    if began == 0 {
        return 0;
    }
    let index = if irq < IRQS { irq } else { IRQS - 1 };
    if let Some(tally) = HARD.get_ptr_mut(current_bank() * IRQS + index) {
        // SAFETY: a pointer into the map's value.
        unsafe {
            add(&raw mut (*tally).count, 1);
            add(&raw mut (*tally).ns, now().wrapping_sub(began));
        }
    }
    0
}

#[btf_tracepoint(function = "softirq_entry")]
fn soft_entry(_ctx: BtfTracePointContext) -> i32 {
    if let Some(cpu) = this_cpu() {
        // SAFETY: as for hardware interrupts.
        unsafe { (*cpu).soft_start = now() };
    }
    0
}

#[btf_tracepoint(function = "softirq_exit")]
fn soft_exit(ctx: BtfTracePointContext) -> i32 {
    // Prototype: unsigned int vec_nr.
    let vector = forgotten(ctx.arg::<u32>(0) as usize);
    // SAFETY: the helper takes nothing.
    let number = unsafe { bpf_get_smp_processor_id() };
    let (Some(cpu), Some(bank)) = (CPUS.get_ptr_mut(number), BANKS.get_ptr_mut(number * 2 + current_bank())) else {
        return 0;
    };
    // SAFETY: pointers into this CPU's values; of the tallies only this program writes.
    unsafe {
        let began = ptr::replace(&raw mut (*cpu).soft_start, 0);
        if began != 0 && vector < 16 {
            let tally = &raw mut (*bank).soft[vector];
            (*tally).count += 1;
            (*tally).ns += now().wrapping_sub(began);
        }
    }
    0
}

#[btf_tracepoint(function = "block_rq_issue")]
fn issued(ctx: BtfTracePointContext) -> i32 {
    let request = address(request(&ctx));
    if let Some(slot) = ISSUED.get_ptr_mut(request_slot(request)) {
        // SAFETY: a pointer into the map's value. Of two requests in one slot the earlier is not timed.
        unsafe { *slot = Pending { key: request, start: now() } };
    }
    0
}

#[btf_tracepoint(function = "block_rq_complete")]
fn completed(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct request *rq, int or blk_status_t error, unsigned int nr_bytes (include/trace/events/block.h).
    let (rq, error, bytes): (*const u8, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let (error, bytes) = (error & 0xff, bytes & 0xffff_ffff);
    // A request may complete in parts; the last one leaves nothing (block/blk-mq.c, blk_update_request).
    // SAFETY: the first argument is a BTF pointer to struct request.
    let is_part = u64::from(unsafe { load::<u32>(rq, REQUEST_BYTES.load()) }) > bytes;
    let began = if is_part { 0 } else { take_issue(address(rq)) };
    // A flush that a write asks for is issued in another request's place and ends without bytes (block/blk-flush.c).
    if bytes == 0 && began == 0 && operation(rq) != REQ_OP_FLUSH {
        return 0;
    }
    let Some(stats) = device(rq) else {
        count(Count::LostRequests);
        return 0;
    };
    // SAFETY: a pointer into the map's value.
    unsafe {
        add(&raw mut (*stats).bytes, bytes);
        if is_part {
            return 0;
        }
        if error != 0 {
            add(&raw mut (*stats).errors, 1);
        }
        if began == 0 {
            count(Count::UntimedRequests);
            return 0;
        }
        let created: u64 = load(rq, REQUEST_START.load());
        // 0 where the queue keeps no time; it may come from a clock read earlier for a whole plug.
        let queued = if created == 0 || created > began { 0 } else { began - created };
        record_shared(&raw mut (*stats).queue, queued);
        record_shared(&raw mut (*stats).service, now().wrapping_sub(began));
    }
    0
}

/// When a request was issued; 0 if that is not known.
#[inline(always)]
fn take_issue(request: u64) -> u64 {
    let Some(slot) = ISSUED.get_ptr_mut(request_slot(request)) else { return 0 };
    // SAFETY: a pointer into the map's value.
    unsafe {
        if (*slot).key != request {
            return 0;
        }
        (*slot).key = 0;
        (*slot).start
    }
}

/// Prototype: const struct sock *sk, const int oldstate, const int newstate (include/trace/events/sock.h).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tcp_state(ctx: BtfTracePointContext) -> i32 {
    let (sk, old, new): (*const u8, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: the first argument is a socket.
    if unsafe { protocol(sk) } != IPPROTO_TCP {
        return 0;
    }
    match (old, new) {
        (_, SYN_SENT) => {
            count(Count::Connects);
            if CONNECTS.insert(sk as u64, now(), 0).is_err() {
                count(Count::UntimedConnects);
            }
        }
        (SYN_SENT, ESTABLISHED) => {
            count(Count::Connected);
            connected(sk as u64);
        }
        (SYN_RECV, ESTABLISHED) => count(Count::Accepts),
        (SYN_SENT, CLOSE) => {
            let _ = CONNECTS.remove(sk as u64);
            connect_failed(sk);
        }
        _ => {}
    }
    0
}

#[inline(always)]
fn connected(sk: u64) {
    let Some(entry) = CONNECTS.get_ptr(sk) else { return };
    // SAFETY: a pointer into the map's value.
    let began = unsafe { *entry };
    let _ = CONNECTS.remove(sk);
    if let Some(bank) = SHARED.get_ptr_mut(current_bank()) {
        // SAFETY: as above.
        unsafe { record_shared(&raw mut (*bank).connect, now().wrapping_sub(began)) };
    }
}

#[inline(always)]
fn connect_failed(sk: *const u8) {
    // SAFETY: the helper checks the address.
    let error: u32 = unsafe { read_kernel(sk.wrapping_add(SK_ERROR.load() as usize)) };
    let error = forgotten(error as usize);
    let Some(bank) = SHARED.get_ptr_mut(current_bank()) else { return };
    // SAFETY: a pointer into the map's value.
    unsafe { add(&raw mut (*bank).connect_errors[if error < ERRNOS { error } else { ERRNOS - 1 }], 1) };
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn retransmitted(_ctx: BtfTracePointContext) -> i32 {
    count(Count::Retransmits);
    0
}

#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn answered_again(_ctx: BtfTracePointContext) -> i32 {
    count(Count::Retransmits);
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_sent(_ctx: BtfTracePointContext) -> i32 {
    count(Count::ResetsSent);
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
fn reset_received(_ctx: BtfTracePointContext) -> i32 {
    count(Count::ResetsReceived);
    0
}

/// Prototype: struct task_struct *parent, struct task_struct *child (include/trace/events/sched.h).
#[btf_tracepoint(function = "sched_process_fork")]
fn forked(ctx: BtfTracePointContext) -> i32 {
    let child: *const u8 = ctx.arg(1);
    // SAFETY: a BTF pointer to task_struct.
    let is_process = unsafe { task_tid(child) == task_tgid(child) };
    count(if is_process { Count::Forks } else { Count::Threads });
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
fn executed(ctx: BtfTracePointContext) -> i32 {
    count(Count::Execs);
    if !send_event(&ctx, ProcessEventKind::Exec, current_actor(), 0, 0) {
        count(Count::LostExecs);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
fn ended(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct task_struct *p, and from 6.16 on bool group_dead. The task is the running one.
    let task: *const u8 = ctx.arg(0);
    // SAFETY: BTF pointers to task_struct and signal_struct.
    unsafe {
        let signal: *const u8 = load(task, TASK_SIGNAL.load());
        let leader: *const u8 = load(task, TASK_LEADER.load());
        if !is_last_thread(&ctx, &ENDED, signal, leader) {
            return 0;
        }
        let status = exit_status(signal, leader);
        count_end(status);
        let mut actor = current_actor();
        actor.comm = task_comm(leader);
        if !send_event(&ctx, ProcessEventKind::Exit, actor, start_time(leader), status) {
            count(Count::LostExits);
        }
    }
    0
}

/// The low 7 bits are the signal that killed it, the next byte what it gave to exit(2) (wait(2)).
#[inline(always)]
fn count_end(status: u32) {
    let signal = forgotten((status & 0x7f) as usize);
    if signal == 0 {
        count(if status == 0 { Count::Successes } else { Count::Failures });
    } else if let Some(bank) = SHARED.get_ptr_mut(current_bank()).filter(|_| signal < 128) {
        // SAFETY: a pointer into the map's value.
        unsafe { add(&raw mut (*bank).killed[signal], 1) };
    }
}

#[btf_tracepoint(function = "mark_victim")]
fn victim(ctx: BtfTracePointContext) -> i32 {
    // Prototype: struct task_struct *task, uid_t uid; int pid in older kernels (include/trace/events/oom.h).
    count(Count::OomKills);
    let actor = if VICTIM_IS_TASK.load() != 0 {
        // SAFETY: a BTF pointer to task_struct.
        unsafe { task_actor(ctx.arg(0)) }
    } else {
        Actor { pid: ctx.arg(0), ..Actor::default() }
    };
    if !send_event(&ctx, ProcessEventKind::OomKill, actor, 0, 0) {
        count(Count::LostOomKills);
    }
    0
}

/// Sends an event; false if there is no room. A process that began at 0 has no lifetime.
#[inline(always)]
fn send_event(ctx: &BtfTracePointContext, what: ProcessEventKind, actor: Actor, began: u64, status: u32) -> bool {
    let time_ns = now();
    let event = ProcessEvent {
        header: Header { size: size_of::<ProcessEvent>() as u16, version: WIRE_VERSION, kind: ProcessEvent::KIND },
        what: what as u32,
        time_ns,
        actor,
        lifetime_ns: if began == 0 { 0 } else { time_ns.wrapping_sub(began) },
        status,
        zero: 0,
    };
    // SAFETY: the record is on the stack and its size is a constant.
    unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const event).cast(), size_of::<ProcessEvent>() as u32) }
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn direct_begin(_ctx: BtfTracePointContext) -> i32 {
    stalled(Stall::Direct)
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn direct_end(_ctx: BtfTracePointContext) -> i32 {
    goes_on(Stall::Direct)
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn cgroup_begin(_ctx: BtfTracePointContext) -> i32 {
    stalled(Stall::Cgroup)
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn cgroup_end(_ctx: BtfTracePointContext) -> i32 {
    goes_on(Stall::Cgroup)
}

#[btf_tracepoint(function = "mm_compaction_begin")]
fn compaction_begin(_ctx: BtfTracePointContext) -> i32 {
    stalled(Stall::Compaction)
}

#[btf_tracepoint(function = "mm_compaction_end")]
fn compaction_end(_ctx: BtfTracePointContext) -> i32 {
    goes_on(Stall::Compaction)
}

#[inline(always)]
fn stalled(stall: Stall) -> i32 {
    let slot = stall as u32 * START_SLOTS + (bpf_get_current_pid_tgid() as u32 & (START_SLOTS - 1));
    if let Some(start) = STALLED.get_ptr_mut(slot) {
        // SAFETY: a pointer into the map's value.
        unsafe { *start = now() };
    }
    0
}

#[inline(always)]
fn goes_on(stall: Stall) -> i32 {
    let slot = stall as u32 * START_SLOTS + (bpf_get_current_pid_tgid() as u32 & (START_SLOTS - 1));
    let (Some(start), Some(bank)) = (STALLED.get_ptr_mut(slot), SHARED.get_ptr_mut(current_bank())) else { return 0 };
    // SAFETY: pointers into the maps' values.
    unsafe {
        let began = ptr::replace(start, 0);
        if began != 0 {
            record_shared(&raw mut (*bank).stalls[stall as usize], now().wrapping_sub(began));
        }
    }
    0
}

#[btf_tracepoint(function = "contention_begin")]
fn lock_wanted(ctx: BtfTracePointContext) -> i32 {
    // Prototype: void *lock, unsigned int flags (include/trace/events/lock.h, 5.19 and later).
    let (lock, flags): (u64, u32) = (ctx.arg(0), ctx.arg(1));
    let spins = flags & (LOCK_SPINS | LOCK_IS_MUTEX) == LOCK_SPINS;
    let Some(slot) = (if spins { SPINNING.get_ptr_mut(0) } else { sleeper() }) else { return 0 };
    // SAFETY: a pointer into the map's value.
    unsafe {
        // A mutex that was spun for and is now slept for is one wait.
        if (*slot).key != lock {
            let kind = (lock_kind(flags) as u64) << START_TIME_BITS;
            *slot = Pending { key: lock, start: kind | now() & START_TIME_MASK };
        }
    }
    0
}

#[btf_tracepoint(function = "contention_end")]
fn lock_taken(ctx: BtfTracePointContext) -> i32 {
    // Prototype: void *lock, int ret.
    let lock: u64 = ctx.arg(0);
    let word = match take_wait(SPINNING.get_ptr_mut(0), lock) {
        0 => take_wait(sleeper(), lock),
        word => word,
    };
    if word == 0 {
        return 0;
    }
    let kind = forgotten((word >> START_TIME_BITS) as usize);
    let Some(bank) = SHARED.get_ptr_mut(current_bank()) else { return 0 };
    // SAFETY: a pointer into the map's value.
    unsafe {
        if kind < mcptrace_ebpf::LOCK_KINDS {
            record_shared(&raw mut (*bank).locks[kind], since(word & START_TIME_MASK, now()));
        }
    }
    0
}

#[inline(always)]
fn sleeper() -> Option<*mut Pending> {
    SLEEPING.get_ptr_mut(bpf_get_current_pid_tgid() as u32 & (START_SLOTS - 1))
}

/// The start of a wait for a lock, and the lock's kind; 0 if it is not that which is waited for.
#[inline(always)]
fn take_wait(slot: Option<*mut Pending>, lock: u64) -> u64 {
    let Some(slot) = slot else { return 0 };
    // SAFETY: a pointer into the map's value.
    unsafe {
        if (*slot).key != lock {
            return 0;
        }
        (*slot).key = 0;
        (*slot).start
    }
}

/// The bank that programs write.
#[inline(always)]
unsafe fn epoch(control: *const Control) -> u32 {
    // SAFETY: the caller passes a pointer into the map's value. Volatile because user space writes it.
    unsafe { ptr::read_volatile(&raw const (*control).epoch) as u32 & 1 }
}

#[inline(always)]
fn current_bank() -> u32 {
    // SAFETY: a pointer into the map's value.
    CONTROL.get_ptr(0).map_or(0, |control| unsafe { epoch(control) })
}

#[inline(always)]
fn this_cpu() -> Option<*mut CpuNow> {
    // SAFETY: the helper takes nothing.
    CPUS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

#[inline(always)]
fn count(what: Count) {
    if let Some(bank) = SHARED.get_ptr_mut(current_bank()) {
        // SAFETY: a pointer into the map's value.
        unsafe { add(&raw mut (*bank).counts[what as usize], 1) };
    }
}

#[inline(always)]
fn request(ctx: &BtfTracePointContext) -> *const u8 {
    if REQUEST_ARGUMENT.load() == 0 { ctx.arg(0) } else { ctx.arg(1) }
}

/// The operation of a request: `REQ_OP_MASK` of cmd_flags, the low 8 bits (include/linux/blk_types.h).
#[inline(always)]
fn operation(rq: *const u8) -> u32 {
    // SAFETY: the callers pass a BTF pointer to struct request.
    unsafe { load::<u32>(rq, REQUEST_FLAGS.load()) & 0xff }
}

#[inline(always)]
fn device(rq: *const u8) -> Option<*mut BlockStats> {
    let key = device_key(rq);
    if let Some(stats) = DEVICES.get_ptr_mut(key) {
        return Some(stats);
    }
    let empty = EMPTY.get_ptr_mut(0)?;
    // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
    // SAFETY: a pointer into the map's value, which nobody writes.
    let empty: &BlockStats = unsafe { &*empty };
    let _ = DEVICES.insert(key, empty, 1);
    DEVICES.get_ptr_mut(key)
}

#[inline(always)]
fn device_key(rq: *const u8) -> DeviceKey {
    let (operation, bank) = (operation(rq), current_bank());
    // SAFETY: `rq` is a BTF pointer to struct request, and members of pointer type are BTF pointers again.
    let disk = unsafe {
        let next: *const u8 = load(rq, REQUEST_QUEUE.load());
        if QUEUE_DISK.load() == u32::MAX { next } else { load::<*const u8>(next, QUEUE_DISK.load()) }
    };
    // A queue without a disk (a tape, a passthrough device) shows as 0:0.
    if disk.is_null() {
        return DeviceKey { operation, bank, ..DeviceKey::default() };
    }
    // SAFETY: as above.
    let (major, minor) = unsafe { (load(disk, DISK_MAJOR.load()), load(disk, DISK_MINOR.load())) };
    DeviceKey { major, minor, operation, bank }
}

mcptrace_ebpf::object!();
