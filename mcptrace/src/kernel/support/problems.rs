//! What is missing or in the way, the worst first. Pure.

use super::{Info, Problem, explain::Facts};

/// Finds what a person would want to change.
pub(super) fn find(info: &Info, facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let blocking = namespaces(facts).into_iter().chain(permission(info, facts)).chain(btf(info)).chain(probes(info));
    for found in blocking {
        push(&mut problems, found);
    }
    problems.extend(
        [tracefs(info), cgroup2(info), statistics(info), symbols(info, facts), bpftrace(info)].into_iter().flatten(),
    );
    problems.sort_by_key(|problem| !problem.blocking);
    problems
}

/// One remedy is told once.
fn push(problems: &mut Vec<Problem>, found: Problem) {
    if !problems.iter().any(|known| known.remedy == found.remedy) {
        problems.push(found);
    }
}

fn problem(what: impl Into<String>, remedy: impl Into<String>, blocking: bool) -> Problem {
    Problem { what: what.into(), remedy: remedy.into(), blocking }
}

fn permission(info: &Info, facts: &Facts) -> Option<Problem> {
    let missing = facts.process.missing_for_native();
    let what = format!("this process lacks {}, which native probes need", missing.join(" and "));
    (!missing.is_empty()).then(|| problem(what, facts.process.grant(&missing), !info.native_works))
}

fn btf(info: &Info) -> Option<Problem> {
    let reason = info.btf.reason.as_ref()?;
    let what = format!("the kernel does not describe its types ({reason}), which native probes need");
    Some(problem(what, "use a kernel with CONFIG_DEBUG_INFO_BTF; most distributions' have it", true))
}

/// Probes that do not run for a reason that was not told yet.
fn probes(info: &Info) -> Vec<Problem> {
    let failing = info.probes.iter().filter(|probe| !probe.available && info.btf.present && probe.remedy.is_none());
    let of = |probe: &super::ProbeSupport| {
        let what = format!("probe {} does not run here: {}", probe.name, probe.reason.as_deref().unwrap_or_default());
        problem(what, format!("use another probe, or another kernel, for {}", probe.name), !info.native_works)
    };
    failing.map(of).collect()
}

fn namespaces(facts: &Facts) -> Vec<Problem> {
    let process = &facts.process;
    let mut found = Vec::new();
    if process.in_user_namespace {
        let what = "this process is in a user namespace: its capabilities do not reach the kernel's tracing";
        found.push(problem(what, "run it in the initial user namespace, as root", true));
    }
    if process.in_pid_namespace {
        let what = "this process has a pid namespace of its own: pids in results and filters are the host's";
        found.push(problem(what, "docker run --pid=host, or hostPID: true in Kubernetes", false));
    }
    found
}

fn tracefs(info: &Info) -> Option<Problem> {
    let reason = info.tracefs.reason.as_ref()?;
    let remedy = info.tracefs.remedy.clone().unwrap_or_default();
    Some(problem(format!("{reason}; native probes work without it"), remedy, false))
}

fn cgroup2(info: &Info) -> Option<Problem> {
    let reason = info.cgroup2.reason.as_ref()?;
    Some(problem(reason.clone(), info.cgroup2.remedy.clone().unwrap_or_default(), false))
}

fn statistics(info: &Info) -> Option<Problem> {
    let check = &info.run_time_statistics;
    let reason = check.reason.as_ref()?;
    let what = format!(
        "the cost of probes can only be estimated and that of a script's programs not at all, so that the budget of executions bounds no more of a script than bpftrace's own CPU time: {reason}"
    );
    Some(problem(what, check.remedy.clone().unwrap_or_default(), false))
}

fn symbols(info: &Info, facts: &Facts) -> Option<Problem> {
    if info.security.kptr_restrict == Some(2) {
        let what = "kernel addresses are hidden from everybody (kptr_restrict 2): kernel stacks have no names";
        return Some(problem(what, "sudo sysctl kernel.kptr_restrict=1", false));
    }
    let what = "this process lacks CAP_SYSLOG: kernel stacks have no names";
    (!facts.process.holds("CAP_SYSLOG")).then(|| problem(what, facts.process.grant(&["CAP_SYSLOG"]), false))
}

fn bpftrace(info: &Info) -> Option<Problem> {
    let bpftrace = info.bpftrace.as_ref().filter(|bpftrace| !bpftrace.works)?;
    let reason = bpftrace.reason.as_deref().unwrap_or("it does not answer");
    let what = format!("scripts cannot run: {reason}; native probes work without bpftrace");
    let root = "run as root, or set bpftrace.command to one that does, such as \"sudo -n bpftrace\"";
    Some(problem(what, bpftrace.remedy.clone().unwrap_or_else(|| root.to_owned()), false))
}
