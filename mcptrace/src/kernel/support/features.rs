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

const MAPS: &[(MapType, &str, &str, (u32, u32))] = &[
    (MapType::RingBuf, "ringbuf", "events through one buffer for all CPUs; without it perf buffers are used", (5, 8)),
    (MapType::PerfEventArray, "perf_event_array", "events through a buffer per CPU", (4, 3)),
    (MapType::Array, "array", "counts by number", (3, 19)),
    (MapType::PerCpuArray, "percpu_array", "counts by number without contention", (4, 6)),
    (MapType::Hash, "hash", "counts by any key", (3, 19)),
    (MapType::PerCpuHash, "percpu_hash", "counts by any key without contention", (4, 6)),
    (MapType::LruHash, "lru_hash", "counts by any key, the oldest forgotten", (4, 10)),
    (MapType::StackTrace, "stack_trace", "stacks by number", (4, 6)),
    (MapType::TaskStorage, "task_storage", "memory that belongs to a thread", (5, 11)),
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

const HELPERS: &[(BpfHelper, &str, Caller, &str, (u32, u32))] = &[
    (BpfHelper::BPF_FUNC_ktime_get_ns, "ktime_get_ns", Caller::Tracepoint, "latencies", (4, 1)),
    (
        BpfHelper::BPF_FUNC_ktime_get_boot_ns,
        "ktime_get_boot_ns",
        Caller::Tracepoint,
        "times that go on in suspend",
        (5, 8),
    ),
    (
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "ktime_get_coarse_ns",
        Caller::Tracepoint,
        "cheap times; not for tracing in most kernels",
        (5, 11),
    ),
    (BpfHelper::BPF_FUNC_get_current_task, "get_current_task", Caller::Tracepoint, "who runs", (4, 8)),
    (
        BpfHelper::BPF_FUNC_get_current_task_btf,
        "get_current_task_btf",
        Caller::Tracepoint,
        "who runs, with types: cheaper filters",
        (5, 11),
    ),
    (BpfHelper::BPF_FUNC_get_current_comm, "get_current_comm", Caller::Tracepoint, "command names", (4, 2)),
    (BpfHelper::BPF_FUNC_get_current_cgroup_id, "get_current_cgroup_id", Caller::Tracepoint, "control groups", (4, 18)),
    (
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
        "get_current_ancestor_cgroup_id",
        Caller::Tracepoint,
        "filters by control group with all below it",
        (5, 6),
    ),
    (
        BpfHelper::BPF_FUNC_probe_read_kernel,
        "probe_read_kernel",
        Caller::Tracepoint,
        "kernel memory; refused by lockdown confidentiality",
        (5, 5),
    ),
    (
        BpfHelper::BPF_FUNC_probe_read_user_str,
        "probe_read_user_str",
        Caller::Tracepoint,
        "paths and arguments of programs",
        (5, 5),
    ),
    (
        BpfHelper::BPF_FUNC_ringbuf_output,
        "ringbuf_output",
        Caller::Tracepoint,
        "events through the ring buffer",
        (5, 8),
    ),
    (
        BpfHelper::BPF_FUNC_perf_event_output,
        "perf_event_output",
        Caller::Tracepoint,
        "events through perf buffers",
        (4, 4),
    ),
    (BpfHelper::BPF_FUNC_get_stackid, "get_stackid", Caller::Tracepoint, "stacks", (4, 6)),
    (
        BpfHelper::BPF_FUNC_task_storage_get,
        "task_storage_get",
        Caller::Tracepoint,
        "memory that belongs to a thread",
        (5, 11),
    ),
    (BpfHelper::BPF_FUNC_loop, "loop", Caller::Tracepoint, "long loops", (5, 17)),
    (
        BpfHelper::BPF_FUNC_get_attach_cookie,
        "get_attach_cookie",
        Caller::Probe,
        "which of many places a program runs at",
        (5, 15),
    ),
    (BpfHelper::BPF_FUNC_get_func_ip, "get_func_ip", Caller::Probe, "the function that a program runs at", (5, 15)),
    (
        BpfHelper::BPF_FUNC_copy_from_user,
        "copy_from_user",
        Caller::Sleeper,
        "memory of programs that is swapped out",
        (5, 10),
    ),
];

/// Kinds of maps.
pub(super) fn maps(facts: &Facts) -> Vec<Check> {
    let check = |(kind, name, purpose, since): &(MapType, &str, &str, (u32, u32))| {
        let test = || match is_map_supported(*kind) {
            Ok(true) => Ok(()),
            Ok(false) => Err(None),
            Err(error) => Err(Some(Failure::of(&error))),
        };
        check(name, "map", purpose, *since, facts, test)
    };
    MAPS.iter().map(check).collect()
}

/// Functions that programs call.
pub(super) fn helpers(facts: &Facts) -> Vec<Check> {
    let check = |(helper, name, caller, purpose, since): &(BpfHelper, &str, Caller, &str, (u32, u32))| {
        check(name, "helper", purpose, *since, facts, || has_helper(*helper, *caller))
    };
    HELPERS.iter().map(check).collect()
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
fn check(
    name: &str,
    kind: &str,
    purpose: &str,
    since: (u32, u32),
    facts: &Facts,
    test: impl FnOnce() -> Result<(), Option<Failure>>,
) -> Check {
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

fn has_helper(helper: BpfHelper, caller: Caller) -> Result<(), Option<Failure>> {
    let kind = match caller {
        Caller::Tracepoint => ProgramType::RawTracePoint,
        Caller::Probe => ProgramType::KProbe,
        Caller::Sleeper => return has_sleeping_helper(helper),
    };
    match is_helper_supported(kind, helper) {
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

/// What the verifier says of a helper that the program may not call; the words changed in 6.11.
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
