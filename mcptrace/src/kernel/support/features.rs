//! Kinds of maps and the functions that programs call, each tried.

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, Stats, enable_stats, is_helper_supported, is_map_supported},
};
use libbpf_sys as sys;

use super::{
    Check, Why,
    explain::{Facts, Failure, Needs},
    once, raw,
};

use Caller::{Probe, Sleeper, Tracepoint};

/// Something to be tried: what it is, its name, what it is good for, and the kernel version that brought it.
struct Row<T> {
    what: T,
    name: &'static str,
    purpose: &'static str,
    since: (u32, u32),
}

const fn row<T: Copy>(what: T, name: &'static str, purpose: &'static str, since: (u32, u32)) -> Row<T> {
    Row { what, name, purpose, since }
}

const MAPS: &[Row<MapType>] = &[
    row(MapType::RingBuf, "ringbuf", "events through one buffer for all CPUs; else perf buffers are used", (5, 8)),
    row(MapType::PerfEventArray, "perf_event_array", "events through a buffer per CPU", (4, 3)),
    row(MapType::Array, "array", "counts by number", (3, 19)),
    row(MapType::PerCpuArray, "percpu_array", "counts by number without contention", (4, 6)),
    row(MapType::Hash, "hash", "counts by any key", (3, 19)),
    row(MapType::PerCpuHash, "percpu_hash", "counts by any key without contention", (4, 6)),
    row(MapType::LruHash, "lru_hash", "counts by any key, the oldest forgotten", (4, 10)),
    row(MapType::StackTrace, "stack_trace", "stacks by number", (4, 6)),
    row(MapType::TaskStorage, "task_storage", "memory that belongs to a thread", (5, 11)),
];

/// How a helper is tried.
#[derive(Clone, Copy)]
enum Caller {
    /// In a raw tracepoint program, which may call what a BTF tracepoint program may.
    Tracepoint,
    /// In a kprobe or uprobe program.
    Probe,
    /// In a uprobe program that may sleep.
    Sleeper,
}

const HELPERS: &[Row<(BpfHelper, Caller)>] = &[
    row((BpfHelper::BPF_FUNC_ktime_get_ns, Tracepoint), "ktime_get_ns", "latencies", (4, 1)),
    row(
        (BpfHelper::BPF_FUNC_ktime_get_boot_ns, Tracepoint),
        "ktime_get_boot_ns",
        "times that go on in suspend",
        (5, 8),
    ),
    row(
        (BpfHelper::BPF_FUNC_ktime_get_coarse_ns, Tracepoint),
        "ktime_get_coarse_ns",
        "cheap times; most kernels keep it from tracing programs",
        (5, 11),
    ),
    row((BpfHelper::BPF_FUNC_get_current_task, Tracepoint), "get_current_task", "who runs", (4, 8)),
    row(
        (BpfHelper::BPF_FUNC_get_current_task_btf, Tracepoint),
        "get_current_task_btf",
        "who runs, with types: cheaper filters",
        (5, 11),
    ),
    row((BpfHelper::BPF_FUNC_get_current_comm, Tracepoint), "get_current_comm", "command names", (4, 2)),
    row((BpfHelper::BPF_FUNC_get_current_cgroup_id, Tracepoint), "get_current_cgroup_id", "control groups", (4, 18)),
    row(
        (BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id, Tracepoint),
        "get_current_ancestor_cgroup_id",
        "filters by control group with all below it",
        (5, 15),
    ),
    row(
        (BpfHelper::BPF_FUNC_probe_read_kernel, Tracepoint),
        "probe_read_kernel",
        "kernel memory; refused by lockdown confidentiality",
        (5, 5),
    ),
    row(
        (BpfHelper::BPF_FUNC_probe_read_user_str, Tracepoint),
        "probe_read_user_str",
        "paths and arguments of programs",
        (5, 5),
    ),
    row((BpfHelper::BPF_FUNC_ringbuf_output, Tracepoint), "ringbuf_output", "events through the ring buffer", (5, 8)),
    row(
        (BpfHelper::BPF_FUNC_perf_event_output, Tracepoint),
        "perf_event_output",
        "events through perf buffers",
        (4, 4),
    ),
    row((BpfHelper::BPF_FUNC_get_stackid, Tracepoint), "get_stackid", "stacks", (4, 6)),
    row(
        (BpfHelper::BPF_FUNC_task_storage_get, Tracepoint),
        "task_storage_get",
        "memory that belongs to a thread",
        (5, 11),
    ),
    row((BpfHelper::BPF_FUNC_loop, Tracepoint), "loop", "long loops", (5, 17)),
    row(
        (BpfHelper::BPF_FUNC_get_attach_cookie, Probe),
        "get_attach_cookie",
        "which of many places a program runs at",
        (5, 15),
    ),
    row((BpfHelper::BPF_FUNC_get_func_ip, Probe), "get_func_ip", "the function that a program runs at", (5, 15)),
    row(
        (BpfHelper::BPF_FUNC_copy_from_user, Sleeper),
        "copy_from_user",
        "memory of programs that is swapped out",
        (6, 0),
    ),
];

/// Kinds of maps.
pub(super) fn maps(facts: &Facts) -> Vec<Check> {
    MAPS.iter().map(|row| check(row, "map", facts, || has_map(row.what))).collect()
}

/// Functions that programs call.
pub(super) fn helpers(facts: &Facts) -> Vec<Check> {
    HELPERS.iter().map(|row| check(row, "helper", facts, || has_helper(row.what.0, row.what.1))).collect()
}

/// Run-time statistics, switched on for an instant.
pub(super) fn run_time_statistics(facts: &Facts) -> Check {
    let (name, purpose) = ("run_time_statistics", "what tracing costs, measured; without them it is estimated");
    match enable_stats(Stats::RunTime) {
        Ok(_) => Check::works(name, purpose),
        Err(error) => {
            let failure = Failure::of(&error);
            let needs = Needs { since: (5, 8), ..Needs::default() };
            let admin = failure.is(&[libc::EPERM]) && !facts.process.holds("CAP_SYS_ADMIN");
            let reason = "not permitted: this process lacks CAP_SYS_ADMIN";
            let lacking = || Why::with_remedy(reason, facts.process.grant(&["CAP_SYS_ADMIN"]));
            Check::fails(name, purpose, if admin { lacking() } else { facts.explain(&failure, &needs) })
        }
    }
}

/// `Err(None)`: the kernel has none. `Err(Some(…))`: it could not be asked, so nothing is known.
fn check<T>(row: &Row<T>, kind: &str, facts: &Facts, test: impl FnOnce() -> Result<(), Option<Failure>>) -> Check {
    let Row { name, purpose, since, .. } = *row;
    match once(&format!("{kind} {name}"), test) {
        Ok(()) => Check::works(name, purpose),
        Err(None) => Check::fails(name, purpose, lacking(since, facts)),
        Err(Some(failure)) => {
            let why = facts.explain(&failure, &Needs { since, ..Needs::default() });
            Check::untested(name, purpose, Why { reason: format!("not tested: {}", why.reason), ..why })
        }
    }
}

fn lacking(since: (u32, u32), facts: &Facts) -> Why {
    let (major, minor) = since;
    if facts.version < since {
        let reason = format!("it came with Linux {major}.{minor}; this is {}", facts.release);
        return Why::with_remedy(reason, format!("use Linux {major}.{minor} or later"));
    }
    Why::new("this kernel does not offer it to tracing programs")
}

fn has_map(kind: MapType) -> Result<(), Option<Failure>> {
    answer(is_map_supported(kind))
}

fn has_helper(helper: BpfHelper, caller: Caller) -> Result<(), Option<Failure>> {
    let kind = match caller {
        Tracepoint => ProgramType::RawTracePoint,
        Probe => ProgramType::KProbe,
        Sleeper => return has_sleeping_helper(helper),
    };
    answer(is_helper_supported(kind, helper))
}

fn answer<E: std::error::Error + 'static>(supported: Result<bool, E>) -> Result<(), Option<Failure>> {
    match supported {
        Ok(true) => Ok(()),
        Ok(false) => Err(None),
        Err(error) => Err(Some(Failure::of(&error))),
    }
}

/// aya's own test is of programs that may not sleep, to which these helpers are never offered.
fn has_sleeping_helper(helper: BpfHelper) -> Result<(), Option<Failure>> {
    let code = raw::call(helper as u32);
    let flags = sys::BPF_F_SLEEPABLE;
    match raw::load(&raw::Program { kind: sys::BPF_PROG_TYPE_KPROBE, attach: 0, flags, code: &code }) {
        Ok(_) => Ok(()),
        Err((_, words)) if refuses(&words) => Err(None),
        // It got as far as the arguments, which this program does not set.
        Err((_, words)) if !words.is_empty() => Ok(()),
        // Kernels whose probes may not sleep (before 6.0) refuse the flag.
        Err((error, _)) if error.raw_os_error() == Some(libc::EINVAL) => Err(None),
        Err((error, _)) => Err(Some(Failure::of(&error))),
    }
}

/// What the verifier says of a helper that the program may not call; the words differ from kernel to kernel.
fn refuses(words: &str) -> bool {
    const REFUSALS: &[&str] =
        &["unknown func", "invalid func", "cannot use helper", "Only fentry/fexit/fmod_ret", "can be sleepable"];
    REFUSALS.iter().any(|refusal| words.contains(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_verifiers_own_words_refuse_a_helper() {
        assert!(refuses("0: (85) call unknown#148\nunknown func bpf_copy_from_user#148\n"));
        assert!(refuses("0: (85)\nprogram of this type cannot use helper bpf_copy_from_user#148"));
        assert!(refuses("Only fentry/fexit/fmod_ret and lsm programs can be sleepable"));
        assert!(!refuses("0: (85) call bpf_copy_from_user#148\nR1 type=ctx expected=fp\n"));
    }

    #[test]
    fn a_feature_of_a_later_kernel_says_which() {
        let facts = Facts { version: (5, 10), release: "5.10.0".into(), ..Facts::default() };
        assert_eq!(lacking((5, 17), &facts).remedy.unwrap(), "use Linux 5.17 or later");
        assert!(lacking((4, 1), &facts).remedy.is_none());
    }
}
