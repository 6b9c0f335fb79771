//! What is compared: for each probe a workload, and the same question asked of other tools.

use anyhow::{Context as _, Result};

use crate::{variant::Variant, workload::Workload};

/// A probe and what it is compared with.
#[derive(Debug)]
pub(crate) struct Case {
    /// The probe.
    pub(crate) probe: &'static str,
    /// What gives it events.
    pub(crate) workload: Workload,
    /// The same question as a bpftrace script.
    pub(crate) script: &'static str,
    /// The same question as a program of libbpf-tools and its arguments.
    pub(crate) tool: &'static [&'static str],
    /// What its added cost may be at most, as a ratio to that of another variant.
    pub(crate) targets: &'static [(Variant, f64)],
    /// Where the questions differ.
    pub(crate) remark: &'static str,
}

/// Every probe, in the order of the catalogue.
pub(crate) const CASES: &[Case] = &[
    Case {
        probe: "syscall_counts",
        workload: Workload::Getppid,
        script: "tracepoint:raw_syscalls:sys_enter { @calls[args->id] = count(); }
            tracepoint:raw_syscalls:sys_exit /args->ret < 0 && args->ret >= -4095/ { @errors[args->id] = count(); }",
        tool: &["syscount"],
        targets: &[(Variant::Empty, 1.2), (Variant::Tool, 0.65)],
        remark: "syscount attaches one program, at return, and counts no errors; mcptrace and bpftrace count calls at entry and errors at return, with two.",
    },
    Case {
        probe: "syscall_latency",
        workload: Workload::Getppid,
        script: "tracepoint:raw_syscalls:sys_enter { @start[tid] = nsecs; }
            tracepoint:raw_syscalls:sys_exit /@start[tid]/ { @ns[args->id] = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["syscount", "-L"],
        targets: &[(Variant::Tool, 0.6)],
        remark: "syscount -L keeps a sum of latencies, bpftrace a histogram of powers of two, mcptrace one with an error of 6.25 %.",
    },
    Case {
        probe: "file_opens",
        workload: Workload::OpenClose,
        script: "tracepoint:syscalls:sys_enter_creat { @path[tid] = args->pathname; @start[tid] = nsecs; }
            tracepoint:syscalls:sys_enter_open, tracepoint:syscalls:sys_enter_openat, tracepoint:syscalls:sys_enter_openat2 {
                @path[tid] = args->filename; @start[tid] = nsecs;
            }
            tracepoint:syscalls:sys_exit_open, tracepoint:syscalls:sys_exit_creat, tracepoint:syscalls:sys_exit_openat,
            tracepoint:syscalls:sys_exit_openat2 /@start[tid]/ {
                printf(\"%d %d %s %d %d %d %s\\n\", pid, tid, comm, uid, args->ret, nsecs - @start[tid], str(@path[tid]));
                delete(@path[tid]); delete(@start[tid]);
            }",
        tool: &["opensnoop"],
        targets: &[(Variant::Tool, 0.15)],
        remark: "All write an event per open; what the others print goes to /dev/null.",
    },
    Case {
        probe: "block_latency",
        workload: Workload::DirectRead,
        script: "tracepoint:block:block_rq_issue { @start[args->dev, args->sector] = nsecs; }
            tracepoint:block:block_rq_complete /@start[args->dev, args->sector]/ {
                @ns[args->dev, args->rwbs] = hist(nsecs - @start[args->dev, args->sector]);
                delete(@start[args->dev, args->sector]);
            }",
        tool: &["biolatency", "-D", "-F"],
        targets: &[],
        remark: "The others time service only; mcptrace times queue and service. The device's own jitter is far above all of them.",
    },
    Case {
        probe: "runq_latency",
        workload: Workload::PingPong,
        script: "tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @queued[args->pid] = nsecs; }
            tracepoint:sched:sched_switch {
                if (args->prev_state == 0) { @queued[args->prev_pid] = nsecs; }
                if (@queued[args->next_pid]) { @ns = hist(nsecs - @queued[args->next_pid]); delete(@queued[args->next_pid]); }
            }",
        tool: &["runqlat"],
        targets: &[(Variant::Tool, 0.6)],
        remark: "An event is a switch to the other thread and back: two waits.",
    },
];

/// The cases of some probes; all of them if none is named.
pub(crate) fn chosen(probes: &[String]) -> Result<Vec<&'static Case>> {
    if probes.is_empty() {
        return Ok(CASES.iter().collect());
    }
    probes.iter().map(|probe| find(probe)).collect()
}

fn find(probe: &str) -> Result<&'static Case> {
    let known = || CASES.iter().map(|case| case.probe).collect::<Vec<_>>().join(", ");
    let found = CASES.iter().find(|case| case.probe == probe);
    found.with_context(|| format!("there is no benchmark of `{probe}`; there are {}", known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_has_a_benchmark() {
        let probes: Vec<_> = mcptrace::probes::PROBES.iter().map(|entry| entry.name).collect();
        assert_eq!(CASES.iter().map(|case| case.probe).collect::<Vec<_>>(), probes);
    }

    #[test]
    fn an_unknown_probe_is_named_with_those_there_are() {
        let error = chosen(&["file_open".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`file_open`") && error.contains("file_opens"), "{error}");
    }
}
