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
    /// Its options, as JSON; empty for none.
    pub(crate) options: &'static str,
    /// The same question as a bpftrace script; empty if there is none that could.
    pub(crate) script: &'static str,
    /// The same question as a program of libbpf-tools and its arguments; empty if there is none.
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
        options: "",
        script: "tracepoint:raw_syscalls:sys_enter { @calls[args->id] = count(); }
            tracepoint:raw_syscalls:sys_exit /args->ret < 0 && args->ret >= -4095/ { @errors[args->id] = count(); }",
        tool: &["syscount"],
        targets: &[(Variant::Empty, 1.2), (Variant::Tool, 0.65)],
        remark: "syscount attaches one program, at return, and counts no errors; mcptrace and bpftrace count calls at entry and errors at return, with two.",
    },
    Case {
        probe: "syscall_latency",
        workload: Workload::Getppid,
        options: "",
        script: "tracepoint:raw_syscalls:sys_enter { @start[tid] = nsecs; }
            tracepoint:raw_syscalls:sys_exit /@start[tid]/ { @ns[args->id] = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["syscount", "-L"],
        targets: &[(Variant::Tool, 0.6)],
        remark: "syscount -L keeps a sum of latencies, bpftrace a histogram of powers of two, mcptrace one with an error of 6.25 %.",
    },
    Case {
        probe: "file_opens",
        workload: Workload::OpenClose,
        options: "",
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
        options: "",
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
        options: "",
        script: "tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @queued[args->pid] = nsecs; }
            tracepoint:sched:sched_switch {
                if (args->prev_state == 0) { @queued[args->prev_pid] = nsecs; }
                if (@queued[args->next_pid]) { @ns = hist(nsecs - @queued[args->next_pid]); delete(@queued[args->next_pid]); }
            }",
        tool: &["runqlat"],
        targets: &[(Variant::Tool, 0.6)],
        remark: "An event is a switch to the other thread and back: two waits.",
    },
    Case {
        probe: "cpu_profile",
        workload: Workload::Compute,
        options: "",
        script: "profile:hz:99 { @[kstack, ustack, comm] = count(); }",
        tool: &[],
        targets: &[],
        remark: "All sample 99 times a second and CPU; an event is a millisecond of computing, so a tenth of a sample.",
    },
    Case {
        probe: "offcpu_stacks",
        workload: Workload::PingPong,
        options: "",
        script: "tracepoint:sched:sched_switch { @start[args->prev_pid] = nsecs; if (@start[args->next_pid]) { @ns[args->next_pid, kstack, ustack] = sum(nsecs - @start[args->next_pid]); delete(@start[args->next_pid]); } }",
        tool: &["offcputime"],
        targets: &[],
        remark: "Two waits to an event. The stacks of bpftrace are those of the thread that leaves the CPU, which is not the one that waited: it has no way to keep a stack.",
    },
    Case {
        probe: "wakeup_chains",
        workload: Workload::PingPong,
        options: "",
        script: "tracepoint:sched:sched_wakeup { @[args->comm, kstack, ustack, comm] = count(); }",
        tool: &["wakeuptime"],
        targets: &[],
        remark: "Two wakeups to an event.",
    },
    Case {
        probe: "cpu_slices",
        workload: Workload::PingPong,
        options: "",
        script: "tracepoint:sched:sched_switch { if (@start[args->next_pid] == 0) { @start[args->next_pid] = nsecs; } if (@start[args->prev_pid]) { @ns = hist(nsecs - @start[args->prev_pid]); delete(@start[args->prev_pid]); } @switches = count(); } tracepoint:sched:sched_migrate_task { @migrations = count(); }",
        tool: &["cpudist"],
        targets: &[],
        remark: "Two slices to an event. cpudist does not count migrations.",
    },
    Case {
        probe: "irq_time",
        workload: Workload::Datagram,
        options: "",
        script: "tracepoint:irq:softirq_entry { @start[cpu] = nsecs; } tracepoint:irq:softirq_exit /@start[cpu]/ { @ns[args->vec] = hist(nsecs - @start[cpu]); delete(@start[cpu]); } tracepoint:irq:irq_handler_entry { @irq[cpu] = nsecs; } tracepoint:irq:irq_handler_exit /@irq[cpu]/ { @irq_ns[args->irq] = hist(nsecs - @irq[cpu]); delete(@irq[cpu]); }",
        tool: &["softirqs", "-d"],
        targets: &[],
        remark: "A soft interrupt to an event. softirqs looks at soft interrupts alone.",
    },
    Case {
        probe: "syscall_errors",
        workload: Workload::FailingCall,
        options: "",
        script: "tracepoint:raw_syscalls:sys_exit /args->ret < 0 && args->ret >= -4095/ { @[args->id, args->ret, pid, comm] = count(); }",
        tool: &["syscount", "-x", "-P"],
        targets: &[],
        remark: "syscount tells processes apart and not errors.",
    },
    Case {
        probe: "process_exec",
        workload: Workload::Spawn,
        options: "",
        script: "tracepoint:syscalls:sys_enter_execve { join(args->argv); } tracepoint:sched:sched_process_exec { printf(\"%d %s %s\\n\", pid, comm, str(args->filename)); }",
        tool: &["execsnoop"],
        targets: &[],
        remark: "The start of a program takes long and varies by more than any of them adds.",
    },
    Case {
        probe: "process_exit",
        workload: Workload::Spawn,
        options: "",
        script: "tracepoint:sched:sched_process_exit { printf(\"%d %d %s %d\\n\", pid, tid, comm, nsecs); }",
        tool: &["exitsnoop"],
        targets: &[],
        remark: "The same.",
    },
    Case {
        probe: "signals",
        workload: Workload::Signal,
        options: "",
        script: "tracepoint:signal:signal_generate { printf(\"%d %s %d %d %d\\n\", pid, comm, args->sig, args->pid, args->result); }",
        tool: &["sigsnoop"],
        targets: &[],
        remark: "sigsnoop looks at the system calls that send signals.",
    },
    Case {
        probe: "file_io",
        workload: Workload::CachedRead,
        options: "",
        script: "tracepoint:syscalls:sys_enter_pread64, tracepoint:syscalls:sys_enter_read, tracepoint:syscalls:sys_enter_write, tracepoint:syscalls:sys_enter_pwrite64 { @start[tid] = nsecs; @fd[tid] = args->fd; } tracepoint:syscalls:sys_exit_pread64, tracepoint:syscalls:sys_exit_read, tracepoint:syscalls:sys_exit_write, tracepoint:syscalls:sys_exit_pwrite64 /@start[tid]/ { @bytes[pid, @fd[tid]] = sum(args->ret); @ns = hist(nsecs - @start[tid]); delete(@start[tid]); delete(@fd[tid]); }",
        tool: &["filetop"],
        targets: &[],
        remark: "The script knows descriptors, not files.",
    },
    Case {
        probe: "fs_sync",
        workload: Workload::Sync,
        options: "",
        script: "tracepoint:syscalls:sys_enter_fsync, tracepoint:syscalls:sys_enter_fdatasync { @start[tid] = nsecs; } tracepoint:syscalls:sys_exit_fsync, tracepoint:syscalls:sys_exit_fdatasync /@start[tid]/ { @ns[pid, comm] = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &[],
        targets: &[],
        remark: "The script knows processes, not files.",
    },
    Case {
        probe: "page_cache",
        workload: Workload::CachedRead,
        options: "",
        script: "tracepoint:filemap:mm_filemap_get_pages { @hits[pid, comm] = count(); } tracepoint:filemap:mm_filemap_add_to_page_cache { @misses[pid, comm] = count(); } tracepoint:writeback:writeback_dirty_folio { @dirtied[pid, comm] = count(); }",
        tool: &["cachestat"],
        targets: &[],
        remark: "cachestat does not tell processes apart.",
    },
    Case {
        probe: "page_faults",
        workload: Workload::TouchPage,
        options: "",
        script: "tracepoint:exceptions:page_fault_user { @[pid, comm] = count(); }",
        tool: &[],
        targets: &[],
        remark: "The script does not tell minor from major.",
    },
    Case {
        probe: "heap_growth",
        workload: Workload::Allocate,
        options: "",
        script: "",
        tool: &[],
        targets: &[],
        remark: "Tracing every allocation costs two breakpoints each: restrict it to a process, and sample.",
    },
    Case {
        probe: "tcp_connections",
        workload: Workload::Connect,
        options: "",
        script: "tracepoint:sock:inet_sock_set_state { printf(\"%d %s %d %d %d %s %s\\n\", pid, comm, args->oldstate, args->newstate, args->dport, ntop(args->family, args->saddr), ntop(args->family, args->daddr)); }",
        tool: &["tcplife"],
        targets: &[],
        remark: "tcplife tells of lives, not of connects; the script of every change of state.",
    },
    Case {
        probe: "packet_drops",
        workload: Workload::RefusedDatagram,
        options: "",
        script: "tracepoint:skb:kfree_skb { @[args->reason, args->location] = count(); }",
        tool: &[],
        targets: &[],
        remark: "libbpf-tools have no such program.",
    },
    Case {
        probe: "net_traffic",
        workload: Workload::Datagram,
        options: "",
        script: "tracepoint:sock:sock_send_length, tracepoint:sock:sock_recv_length { @[pid, comm, args->family] = sum(args->ret); }",
        tool: &["tcptop"],
        targets: &[],
        remark: "A datagram sent and received to an event. tcptop looks at TCP alone.",
    },
    Case {
        probe: "dns_latency",
        workload: Workload::LookUp,
        options: "",
        script: "uprobe:/lib/x86_64-linux-gnu/libc.so.6:getaddrinfo { @start[tid] = nsecs; } uretprobe:/lib/x86_64-linux-gnu/libc.so.6:getaddrinfo /@start[tid]/ { printf(\"%d %s %d\\n\", pid, comm, nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["gethostlatency"],
        targets: &[],
        remark: "Two breakpoints to a look-up, which are most of what any of them costs.",
    },
    Case {
        probe: "kernel_locks",
        workload: Workload::Lock,
        options: "",
        script: "tracepoint:lock:contention_begin { @start[tid] = nsecs; } tracepoint:lock:contention_end /@start[tid]/ { @ns = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["klockstat"],
        targets: &[],
        remark: "Not every write finds the lock taken.",
    },
    Case {
        probe: "futex_waits",
        workload: Workload::Futex,
        options: "",
        script: "tracepoint:syscalls:sys_enter_futex { @start[tid] = nsecs; } tracepoint:syscalls:sys_exit_futex /@start[tid]/ { @ns[pid, comm] = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &[],
        targets: &[],
        remark: "libbpf-tools of this version have no futexctn.",
    },
    Case {
        probe: "function_latency",
        workload: Workload::Function,
        options: "",
        script: "",
        tool: &[],
        targets: &[],
        remark: "Two breakpoints to a call.",
    },
    Case {
        probe: "capability_checks",
        workload: Workload::Capability,
        options: "",
        script: "tracepoint:capability:cap_capable { @[pid, comm, args->cap, args->ret] = count(); }",
        tool: &["capable"],
        targets: &[],
        remark: "capable wants kprobes.",
    },
    Case {
        probe: "privileged_actions",
        workload: Workload::SetUser,
        options: "",
        script: "tracepoint:syscalls:sys_enter_setuid { @uid[tid] = args->uid; } tracepoint:syscalls:sys_exit_setuid { printf(\"%d %s %d %d\\n\", pid, comm, @uid[tid], args->ret); delete(@uid[tid]); }",
        tool: &[],
        targets: &[],
        remark: "The script looks at setuid alone.",
    },
];

/// Probes of events that no loop can make, and why.
#[cfg(test)]
const UNMEASURED: &[(&str, &str)] = &[
    ("memory_reclaim", "the machine would have to run out of memory all the time"),
    ("oom_kills", "the same"),
    ("tcp_retransmits", "packets are lost at their own pace"),
    ("usdt_events", "a trap as those of `function_latency`, one to an event"),
    ("bpf_programs", "it attaches nothing"),
];

/// The cases of some probes; all of them if none is named.
pub(crate) fn chosen(probes: &[String]) -> Result<Vec<&'static Case>> {
    if probes.is_empty() {
        return Ok(CASES.iter().filter(|case| mcptrace::probes::find(case.probe).is_some()).collect());
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
        let excused = |name: &str| UNMEASURED.iter().any(|(probe, why)| *probe == name && !why.is_empty());
        for entry in mcptrace::probes::PROBES {
            let measured = CASES.iter().any(|case| case.probe == entry.name);
            assert!(measured != excused(entry.name), "{} has no benchmark and no excuse, or both", entry.name);
        }
    }

    #[test]
    fn an_unknown_probe_is_named_with_those_there_are() {
        let error = chosen(&["file_open".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`file_open`") && error.contains("file_opens"), "{error}");
    }
}
