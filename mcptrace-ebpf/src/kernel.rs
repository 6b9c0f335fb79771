//! What kernel programs share: filters, counters, start times, histograms, sending of records.
//!
//! Everything that user space decides is a read-only global. The verifier knows its value when it loads the program and drops
//! the branches that cannot be taken, so a filter that is not set costs nothing.

use core::{
    ffi::c_void,
    mem::{self, MaybeUninit},
    ptr,
};

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_CURRENT_CPU, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_ns,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task, bpf_get_current_task_btf,
            bpf_perf_event_output, bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_ringbuf_output,
        },
    },
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerfEventByteArray, RingBuf},
};

use crate::{
    BUCKETS, BY_CGROUP, BY_COMM, BY_FOLLOWED, BY_PID, BY_TID, BY_UID, COMM_LEN, COUNTERS as COUNTERS_LEN, Comm,
    Counter, Histogram, START_TIME_MASK, Waits, bucket_of, comm_of_words, start_slot,
};

/// Filters in force, `FILTER_*` bits. Zero: everything passes.
#[unsafe(no_mangle)]
static FILTERS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILTER_PID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILTER_TID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILTER_UID: Global<u32> = Global::new(0);
/// The command name as two words.
#[unsafe(no_mangle)]
static FILTER_COMM: Global<[u64; 2]> = Global::new([0; 2]);
/// Id of the control group, and its depth below the root: threads of its descendants pass as well.
#[unsafe(no_mangle)]
static FILTER_CGROUP: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static FILTER_CGROUP_LEVEL: Global<u32> = Global::new(0);
/// Values below this are not counted, in nanoseconds.
#[unsafe(no_mangle)]
static FILTER_MIN_NS: Global<u64> = Global::new(0);

/// Offsets in `struct task_struct` and what hangs on it, from the running kernel's BTF.
#[unsafe(no_mangle)]
pub(crate) static TASK_PID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: Global<u32> = Global::new(0);
/// `group_leader`: the first thread of the process.
#[unsafe(no_mangle)]
pub static TASK_LEADER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_COMM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CRED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CRED_UID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CGROUPS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CSS_SET_DFL_CGRP: Global<u32> = Global::new(0);
/// `cgroup.ancestors` (an array of pointers, 6.1 and later) or `cgroup.ancestor_ids` (an array of ids).
#[unsafe(no_mangle)]
static CGROUP_ANCESTORS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_ANCESTORS_ARE_IDS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_LEVEL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static CGROUP_KN: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static KN_ID: Global<u32> = Global::new(0);
/// Where the flag of a 32-bit system call is: `task_struct.thread_info.status` on x86, `.flags` on aarch64.
#[unsafe(no_mangle)]
static TASK_COMPAT_WORD: Global<u32> = Global::new(0);
/// `TS_COMPAT` (arch/x86/include/asm/thread_info.h) or `1 << TIF_32BIT` (arch/arm64/include/asm/thread_info.h); 0 where 32-bit
/// programs cannot run.
#[unsafe(no_mangle)]
static COMPAT_MASK: Global<u32> = Global::new(0);
/// Whether the kernel has `bpf_get_current_task_btf` (5.11).
#[unsafe(no_mangle)]
static HAS_TASK_BTF: Global<u32> = Global::new(1);

/// Counts what the programs see and lose, by [`Counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_LEN, 0);

/// Processes to follow, by thread group id.
#[map]
static FOLLOWED: HashMap<u32, u8> = HashMap::with_max_entries(10_240, 0);

/// Adds one to a counter.
///
/// The counter is this CPU's own and the kernel does not run a tracing program twice at once on a CPU, so plain arithmetic
/// is exact as long as one program only counts under one [`Counter`].
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is into the map's value, which outlives the program's run.
        unsafe { *value += 1 };
    }
}

/// Adds one to the counter of a number, if it is one by which stacks are lost.
#[inline(always)]
pub fn count_cause(cause: u64) {
    count(if cause == Counter::BufferFull as u64 {
        Counter::BufferFull
    } else if cause == Counter::MapFull as u64 {
        Counter::MapFull
    } else {
        Counter::StackBusy
    });
}

/// Adds one to a counter that several programs of an object count under, one of which may interrupt another, or from a program at a
/// function of user space. The kernel may run another thread on this CPU in the midst of such a program (bpf_prog_run_array_uprobe,
/// include/linux/bpf.h, 6.0 and later), so plain arithmetic would lose counts; for the same reason these programs have no per-CPU
/// scratch space.
#[inline(always)]
pub fn count_shared(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: as in `count`.
        unsafe { add(value, 1) };
    }
}

/// Whether any filter on threads is in force.
#[inline(always)]
pub fn is_filtered() -> bool {
    FILTERS.load() != 0
}

/// Whether the current thread passes the filters.
#[inline(always)]
pub fn current_passes() -> bool {
    let filters = FILTERS.load();
    if filters == 0 {
        return true;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if !ids_pass(filters, pid, tid) {
        return false;
    }
    if filters & BY_UID != 0 && bpf_get_current_uid_gid() as u32 != FILTER_UID.load() {
        return false;
    }
    if filters & BY_COMM != 0 && !comm_passes(current_comm()) {
        return false;
    }
    // Not bpf_get_current_ancestor_cgroup_id: kernels before 5.15 do not offer it to tracing programs.
    // SAFETY: the helper returns the current task.
    filters & BY_CGROUP == 0 || unsafe { task_in_cgroup(bpf_get_current_task() as *const u8) }
}

/// Whether a task passes the filters.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_passes(task: *const u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { passes(task, FILTERS.load()) }
}

/// Whether a task's process passes the filters, whatever the names and numbers of its threads.
///
/// # Safety
///
/// As for [`task_passes`].
#[inline(always)]
pub unsafe fn process_passes(task: *const u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { passes(task, FILTERS.load() & !(BY_TID | BY_COMM)) }
}

#[inline(always)]
unsafe fn passes(task: *const u8, filters: u32) -> bool {
    if filters == 0 {
        return true;
    }
    // SAFETY: the caller's promise; the offsets are those of this kernel.
    unsafe {
        if !ids_pass(filters, load(task, TASK_TGID.load()), load(task, TASK_PID.load())) {
            return false;
        }
        if filters & BY_UID != 0 && task_uid(task) != FILTER_UID.load() {
            return false;
        }
        if filters & BY_COMM != 0 && !comm_passes(task_comm(task)) {
            return false;
        }
        filters & BY_CGROUP == 0 || task_in_cgroup(task)
    }
}

/// Whether a duration is long enough to be counted.
#[inline(always)]
pub fn duration_passes(ns: u64) -> bool {
    ns >= FILTER_MIN_NS.load()
}

#[inline(always)]
fn ids_pass(filters: u32, pid: u32, tid: u32) -> bool {
    if filters & BY_TID != 0 && tid != FILTER_TID.load() {
        return false;
    }
    if filters & BY_PID != 0 && pid != FILTER_PID.load() {
        return false;
    }
    // SAFETY: the map's values are never freed while the program runs; only presence matters.
    filters & BY_FOLLOWED == 0 || unsafe { FOLLOWED.get(pid) }.is_some()
}

#[inline(always)]
fn comm_passes(comm: Comm) -> bool {
    let [low, high] = FILTER_COMM.load();
    // SAFETY: both are 16 bytes of integers.
    let [a, b] = unsafe { mem::transmute::<Comm, [u64; 2]>(comm) };
    a == low && b == high
}

/// The user id of a task.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_uid(task: *const u8) -> u32 {
    // SAFETY: the caller passes a task; a failed read gives zeros, and the probe's support check has proven the offsets.
    unsafe {
        let cred: *const u8 = read_kernel(task.wrapping_add(TASK_CRED.load() as usize));
        read_kernel(cred.wrapping_add(CRED_UID.load() as usize))
    }
}

/// The id of the current thread's control group in the version 2 hierarchy.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_current_cgroup_id() }
}

/// The id of a task's control group in the version 2 hierarchy; 0 in a kernel without control groups.
///
/// # Safety
///
/// `task` points to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_cgroup(task: *const u8) -> u64 {
    if TASK_CGROUPS.load() == 0 {
        return 0;
    }
    // SAFETY: as in `task_uid`.
    unsafe {
        let set: *const u8 = read_kernel(task.wrapping_add(TASK_CGROUPS.load() as usize));
        let cgroup: *const u8 = read_kernel(set.wrapping_add(CSS_SET_DFL_CGRP.load() as usize));
        let node: *const u8 = read_kernel(cgroup.wrapping_add(CGROUP_KN.load() as usize));
        read_kernel(node.wrapping_add(KN_ID.load() as usize))
    }
}

#[inline(always)]
unsafe fn task_in_cgroup(task: *const u8) -> bool {
    let level = FILTER_CGROUP_LEVEL.load();
    // SAFETY: as in `task_uid`.
    unsafe {
        let set: *const u8 = read_kernel(task.wrapping_add(TASK_CGROUPS.load() as usize));
        let cgroup: *const u8 = read_kernel(set.wrapping_add(CSS_SET_DFL_CGRP.load() as usize));
        let depth: u32 = read_kernel(cgroup.wrapping_add(CGROUP_LEVEL.load() as usize));
        if depth < level {
            return false;
        }
        let entry = cgroup.wrapping_add(CGROUP_ANCESTORS.load() as usize + level as usize * 8);
        if CGROUP_ANCESTORS_ARE_IDS.load() != 0 {
            return read_kernel::<u64>(entry) == FILTER_CGROUP.load();
        }
        let ancestor: *const u8 = read_kernel(entry);
        let node: *const u8 = read_kernel(ancestor.wrapping_add(CGROUP_KN.load() as usize));
        read_kernel::<u64>(node.wrapping_add(KN_ID.load() as usize)) == FILTER_CGROUP.load()
    }
}

/// Follows a fork: a child of a followed process is followed as well.
///
/// # Safety
///
/// Both are trusted BTF pointers to `struct task_struct`.
#[inline(always)]
pub unsafe fn follow_fork(parent: *const u8, child: *const u8) {
    // SAFETY: the caller's promise.
    let (parent, child): (u32, u32) = unsafe { (load(parent, TASK_TGID.load()), load(child, TASK_TGID.load())) };
    // SAFETY: only presence matters.
    if parent == child || unsafe { FOLLOWED.get(parent) }.is_none() {
        return;
    }
    if FOLLOWED.insert(child, 1, 0).is_err() {
        count(Counter::FollowFull);
    }
}

/// Stops following a process that is gone: its place is for another, and its number may be given to a stranger.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`.
#[inline(always)]
pub unsafe fn forget(task: *const u8) {
    // SAFETY: the caller's promise.
    let (pid, leader): (u32, *const u8) = unsafe { (load(task, TASK_TGID.load()), load(task, TASK_LEADER.load())) };
    // The first thread goes last. One that another thread took the place of by executing a program has lost its rank (de_thread,
    // fs/exec.c).
    if leader == task {
        let _ = FOLLOWED.remove(pid);
    }
}

/// The thread id of a task.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_tid(task: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { load(task, TASK_PID.load()) }
}

/// The process (thread group) id of a task.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_tgid(task: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { load(task, TASK_TGID.load()) }
}

/// The command name of a task.
///
/// # Safety
///
/// `task` is a trusted BTF pointer to a `struct task_struct`.
#[inline(always)]
pub unsafe fn task_comm(task: *const u8) -> Comm {
    let mut comm: Comm = [0; COMM_LEN];
    // As a string: before 5.17 the end of a longer name that the task had before may stand behind the NUL (`__set_task_comm`, fs/exec.c).
    // SAFETY: the caller's promise; the helper writes at most so many bytes.
    unsafe {
        let name = task.wrapping_add(TASK_COMM.load() as usize);
        bpf_probe_read_kernel_str((&raw mut comm).cast::<c_void>(), COMM_LEN as u32, name.cast::<c_void>());
    }
    comm
}

/// The command name of the current thread, all zeros behind its NUL. Loads cost a quarter of what the helper does.
#[inline(always)]
pub fn current_comm() -> Comm {
    let mut words = MaybeUninit::<[u64; 2]>::uninit();
    // SAFETY: the offset is that of this kernel. The helper fills all of it, with zeros if it fails.
    let words = unsafe {
        if let Some(task) = current_task() {
            [load(task, TASK_COMM.load()), load(task, TASK_COMM.load() + 8)]
        } else {
            bpf_get_current_comm(words.as_mut_ptr().cast::<c_void>(), COMM_LEN as u32);
            words.assume_init()
        }
    };
    comm_of_words(words)
}

/// The current thread as a BTF pointer to its `struct task_struct`; `None` in kernels that only have its address.
#[inline(always)]
pub fn current_task() -> Option<*const u8> {
    // SAFETY: the helper takes nothing.
    (HAS_TASK_BTF.load() != 0).then(|| unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const())
}

/// Whether the current thread is in a 32-bit system call.
#[inline(always)]
pub fn in_compat_syscall() -> bool {
    let mask = COMPAT_MASK.load();
    if mask == 0 {
        return false;
    }
    let offset = TASK_COMPAT_WORD.load();
    // SAFETY: a task; the offset is that of this kernel.
    let word: u32 = unsafe {
        if let Some(task) = current_task() {
            load(task, offset)
        } else {
            read_kernel((bpf_get_current_task() as *const u8).wrapping_add(offset as usize))
        }
    };
    word & mask != 0
}

/// Loads a field of a structure behind a BTF pointer: the verifier makes this a plain load that cannot fault.
///
/// # Safety
///
/// `base` is a BTF pointer as the verifier knows them, and a `T` lies at `offset`.
#[inline(always)]
pub unsafe fn load<T>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller's promise. Volatile keeps LLVM from splitting or merging the load.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast::<T>()) }
}

/// Reads kernel memory through the helper; zeros where it cannot be read.
///
/// # Safety
///
/// A `T` may be any bits.
#[inline(always)]
pub unsafe fn read_kernel<T>(address: *const u8) -> T {
    // Not zeroed: from two words on that is a call of `memset`, which goes byte by byte.
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address and fills the value, with zeros if it fails.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast::<c_void>(), size_of::<T>() as u32, address.cast::<c_void>());
        value.assume_init()
    }
}

/// `CLOCK_MONOTONIC`, in nanoseconds. Costs 60 ns on the reference machine: once per event.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Remembers when something of a thread began.
#[inline(always)]
pub fn start(slots: &Array<u64>, tid: u32, now: u64) {
    let (slot, tag) = start_slot(tid);
    if let Some(value) = slots.get_ptr_mut(slot) {
        // SAFETY: a pointer into the map's value; one word, so it is never half written.
        unsafe { ptr::write_volatile(value, tag | now & START_TIME_MASK) };
    }
}

/// Takes the start of a thread out of its slot, if it is there.
#[inline(always)]
pub fn take_start(slots: &Array<u64>, tid: u32) -> Option<u64> {
    let (slot, tag) = start_slot(tid);
    let value = slots.get_ptr_mut(slot)?;
    // SAFETY: as in `start`.
    let word = unsafe { ptr::read_volatile(value) };
    if word & !START_TIME_MASK != tag {
        return None;
    }
    // SAFETY: as in `start`.
    unsafe { ptr::write_volatile(value, 0) };
    Some(word & START_TIME_MASK)
}

/// The time between a start and now, in nanoseconds.
#[inline(always)]
pub fn since(start: u64, now: u64) -> u64 {
    now.wrapping_sub(start) & START_TIME_MASK
}

/// Adds a value to a histogram that only this CPU writes.
///
/// # Safety
///
/// `histogram` points into a map's value.
#[inline(always)]
pub unsafe fn record(histogram: *mut Histogram, value: u64) {
    let bucket = forgotten(bucket_of(value));
    // SAFETY: the caller's promise; the verifier wants to see the bound.
    unsafe {
        if bucket < BUCKETS {
            (*histogram).buckets[bucket] += 1;
        }
        (*histogram).sum += value;
        extremes(histogram, value);
    }
}

/// Adds a value to a histogram that several CPUs write.
///
/// Counts and sum are atomic. The extremes are not: a lost update is mended by user space, which knows the outermost buckets.
///
/// # Safety
///
/// `histogram` points into a map's value.
#[inline(always)]
pub unsafe fn record_shared(histogram: *mut Histogram, value: u64) {
    let bucket = forgotten(bucket_of(value));
    // SAFETY: the caller's promise.
    unsafe {
        if bucket < BUCKETS {
            add(&raw mut (*histogram).buckets[bucket], 1);
        }
        add(&raw mut (*histogram).sum, value);
        extremes(histogram, value);
    }
}

/// A number of which the verifier has forgotten all that it believes.
///
/// The one of 5.10 follows branches that cannot be taken when a constant stands on their left, believes there that a value is both
/// large and small, and refuses the pointer that is computed from it. It forgets a number that is negated (check_alu_op,
/// kernel/bpf/verifier.c), and two negations change nothing.
#[inline(always)]
pub fn forgotten(number: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut number = number as u64;
        // In assembly, because LLVM knows what two negations are.
        // SAFETY: arithmetic on one register.
        unsafe { core::arch::asm!("{n} = -{n}", "{n} = -{n}", n = inout(reg) number) };
        number as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// A pointer as a number, of which the verifier does not know that it was one: it refuses to multiply pointers.
#[inline(always)]
pub fn address(pointer: *const u8) -> u64 {
    forgotten(pointer as usize) as u64
}

/// Adds atomically.
///
/// # Safety
///
/// `target` points into a map's value and is aligned.
#[inline(always)]
pub unsafe fn add(target: *mut u64, value: u64) {
    // Rust has no atomic arithmetic for BPF (its targets lack compare-and-swap before version 3 of the instruction set), but the
    // add alone, without its result, is an instruction that every kernel has.
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({target} + 0) += {value}", target = in(reg) target, value = in(reg) value);
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        *target += value;
    };
}

#[inline(always)]
unsafe fn extremes(histogram: *mut Histogram, value: u64) {
    // SAFETY: the callers' promise.
    unsafe {
        if value > (*histogram).max {
            (*histogram).max = value;
        }
        let least = (*histogram).min_plus_1;
        if least == 0 || value < least - 1 {
            (*histogram).min_plus_1 = value + 1;
        }
    }
}

/// Adds a wait.
///
/// # Safety
///
/// `waits` points into a map's value.
#[inline(always)]
pub unsafe fn add_wait(waits: *mut Waits, ns: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        add(&raw mut (*waits).count, 1);
        add(&raw mut (*waits).total_ns, ns);
        if ns > (*waits).max_ns {
            (*waits).max_ns = ns;
        }
    }
}

/// Whether records go through the per-CPU perf buffers instead of the ring.
#[unsafe(no_mangle)]
static USE_PERF: Global<u32> = Global::new(0);
/// Sends a record, and tells whether there was room.
///
/// Nobody is woken: the reader looks every few milliseconds. A wakeup per record costs 455 to 1,090 ns on the reference machine.
///
/// # Safety
///
/// `record` points to `size` readable bytes on the stack or in a map's value, and the verifier knows a bound of `size`.
#[inline(always)]
pub unsafe fn send<C: EbpfContext>(
    context: &C,
    ring: &RingBuf,
    perf: &PerfEventByteArray,
    record: *const u8,
    size: u32,
) -> bool {
    let record = record.cast_mut().cast::<c_void>();
    // SAFETY: the caller's promise; maps are passed by their own address.
    unsafe {
        if USE_PERF.load() != 0 {
            let perf = ptr::from_ref(perf).cast_mut().cast::<c_void>();
            let flags = u64::from(BPF_F_CURRENT_CPU as u32);
            return bpf_perf_event_output(context.as_ptr(), perf, flags, record, u64::from(size)) == 0;
        }
        let ring = ptr::from_ref(ring).cast_mut().cast::<c_void>();
        bpf_ringbuf_output(ring, record, u64::from(size), u64::from(BPF_RB_NO_WAKEUP)) == 0
    }
}

/// Says something to the server's log, in objects built with `cargo xtask build-ebpf --log`; nothing at all in the committed ones.
/// Only where an event is lost or odd: it is for those who write probes, and costs more than most probes do.
#[macro_export]
macro_rules! diagnose {
    ($context:expr, $($message:tt)*) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($context, $($message)*);
    };
}

/// Makes a file of `src/bin` an eBPF object: licence and panic handler on BPF, an empty `main` elsewhere, so that every file
/// compiles on the host with the stable toolchain.
#[macro_export]
macro_rules! object {
    () => {
        #[cfg(target_arch = "bpf")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

        #[cfg(target_arch = "bpf")]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }

        #[cfg(not(target_arch = "bpf"))]
        fn main() {}
    };
}

/// Adds the programs that follow forks of the filtered process. User space attaches them only when `descendants` is asked for.
#[macro_export]
macro_rules! follows_forks {
    () => {
        #[aya_ebpf::macros::btf_tracepoint(function = "sched_process_fork")]
        fn follow(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            // SAFETY: the arguments of sched_process_fork are the parent's and the child's task_struct
            // (include/trace/events/sched.h).
            unsafe { $crate::kernel::follow_fork(ctx.arg(0), ctx.arg(1)) };
            0
        }

        // Not at sched_process_exit: programs at one tracepoint run in no certain order, and more events of the process follow, as when its
        // last thread leaves its CPU. Here nothing of it runs any more.
        #[aya_ebpf::macros::btf_tracepoint(function = "sched_process_free")]
        fn forget(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            // SAFETY: the argument of sched_process_free is a task_struct (include/trace/events/sched.h).
            unsafe { $crate::kernel::forget(ctx.arg(0)) };
            0
        }
    };
}
