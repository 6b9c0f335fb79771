//! What is compared: for each probe a workload, and the same question asked of other tools.

use anyhow::{Context as _, Result};
use mcptrace::{executions::ProbeRequest, kernel::filter::Filter};
use serde_json::Map;

use crate::{variant::Variant, workload::Workload};

/// A probe and what it is compared with.
#[derive(Debug)]
pub(crate) struct Case {
    /// The probe.
    pub(crate) probe: &'static str,
    /// What gives it events.
    pub(crate) workload: Workload,
    /// Its options, as JSON; empty for none.
    options: &'static str,
    /// Whether the probe looks at this process alone, as it may have to.
    own: bool,
    /// The same question as a bpftrace script; empty if there is none that could.
    script: &'static str,
    /// The same question as a program of libbpf-tools and its arguments; empty if there is none.
    tool: &'static [&'static str],
    /// What its added cost may be at most, as a ratio to that of another variant.
    pub(crate) targets: &'static [(Variant, f64)],
    /// Where the questions differ.
    pub(crate) remark: &'static str,
}

/// In what is given to tools these stand for this program and this process.
const PROGRAM: &str = "{program}";
const PROCESS: &str = "{process}";

impl Case {
    /// What the probe is asked for, as the server would be.
    pub(crate) fn request(&self, seconds: f64) -> Result<ProbeRequest> {
        let options =
            if self.options.is_empty() { Ok(Map::new()) } else { serde_json::from_str(&filled(self.options)?) };
        let filter = Filter { pid: self.own.then(std::process::id), ..Filter::default() };
        let probe = self.probe.to_owned();
        Ok(ProbeRequest { probe, seconds, filter, options: options?, ..ProbeRequest::default() })
    }

    /// bpftrace with its script; `None` if there is none.
    pub(crate) fn bpftrace(&self) -> Result<Option<Vec<String>>> {
        if self.script.is_empty() {
            return Ok(None);
        }
        let words = ["bpftrace", "-q", "-e"].map(str::to_owned);
        Ok(Some(words.into_iter().chain([filled(self.script)?]).collect()))
    }

    /// The program of libbpf-tools with its arguments; `None` if there is none.
    pub(crate) fn tool(&self) -> Result<Option<Vec<String>>> {
        if self.tool.is_empty() {
            Ok(None)
        } else {
            self.tool.iter().map(|word| filled(word)).collect::<Result<_>>().map(Some)
        }
    }

    /// What the program of libbpf-tools is called; empty if there is none.
    pub(crate) fn tool_name(&self) -> String {
        self.tool.iter().filter(|word| !word.contains('{')).copied().collect::<Vec<_>>().join(" ")
    }
}

fn filled(text: &str) -> Result<String> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("the path of this program is no text")?;
    Ok(text.replace(PROGRAM, program).replace(PROCESS, &std::process::id().to_string()))
}

/// What a case is made of that it does not write.
const CASE: Case = Case {
    probe: "",
    workload: Workload::Getppid,
    options: "",
    own: false,
    script: "",
    tool: &[],
    targets: &[],
    remark: "",
};

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
        ..CASE
    },
    Case {
        probe: "syscall_latency",
        workload: Workload::Getppid,
        script: "tracepoint:raw_syscalls:sys_enter { @start[tid] = nsecs; }
            tracepoint:raw_syscalls:sys_exit /@start[tid]/ { @ns[args->id] = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["syscount", "-L"],
        targets: &[(Variant::Tool, 0.6)],
        remark: "syscount -L keeps a sum of latencies, bpftrace a histogram of powers of two, mcptrace one with an error of 6.25 %.",
        ..CASE
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
        ..CASE
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
        remark: "The others time service only; mcptrace times queue and service. The device's own jitter is far above all of them.",
        ..CASE
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
        ..CASE
    },
    Case {
        probe: "cpu_profile",
        workload: Workload::Compute,
        script: "profile:hz:99 { @[kstack, ustack, comm] = count(); }",
        remark: "All sample 99 times a second and CPU; an event is a millisecond of computing, so a tenth of a sample.",
        ..CASE
    },
    Case {
        probe: "offcpu_stacks",
        workload: Workload::PingPong,
        script: "tracepoint:sched:sched_switch { @start[args->prev_pid] = nsecs; if (@start[args->next_pid]) { @ns[args->next_pid, kstack, ustack] = sum(nsecs - @start[args->next_pid]); delete(@start[args->next_pid]); } }",
        tool: &["offcputime"],
        remark: "Two waits to an event. The stacks of bpftrace are those of the thread that leaves the CPU, which is not the one that waited: it has no way to keep a stack.",
        ..CASE
    },
    Case {
        probe: "wakeup_chains",
        workload: Workload::PingPong,
        script: "tracepoint:sched:sched_switch /args->prev_state/ { @since[args->prev_pid] = nsecs; @kernel[args->prev_pid] = kstack; @user[args->prev_pid] = ustack; }
            tracepoint:sched:sched_waking /@since[args->pid]/ { @ns[@kernel[args->pid], @user[args->pid], args->comm, kstack, ustack, comm] = sum(nsecs - @since[args->pid]); delete(@since[args->pid]); }",
        tool: &["wakeuptime"],
        remark: "Two wakeups to an event. wakeuptime takes the stack of the waker alone, and only that of the kernel's code.",
        ..CASE
    },
    Case {
        probe: "cpu_slices",
        workload: Workload::PingPong,
        script: "tracepoint:sched:sched_switch { if (@start[args->next_pid] == 0) { @start[args->next_pid] = nsecs; } if (@start[args->prev_pid]) { @ns = hist(nsecs - @start[args->prev_pid]); delete(@start[args->prev_pid]); } @switches = count(); } tracepoint:sched:sched_migrate_task { @migrations = count(); }",
        tool: &["cpudist"],
        remark: "Two slices to an event. cpudist does not count migrations.",
        ..CASE
    },
    Case {
        probe: "irq_time",
        workload: Workload::Datagram,
        script: "tracepoint:irq:softirq_entry { @start[cpu] = nsecs; } tracepoint:irq:softirq_exit /@start[cpu]/ { @ns[args->vec] = hist(nsecs - @start[cpu]); delete(@start[cpu]); } tracepoint:irq:irq_handler_entry { @irq[cpu] = nsecs; } tracepoint:irq:irq_handler_exit /@irq[cpu]/ { @irq_ns[args->irq] = hist(nsecs - @irq[cpu]); delete(@irq[cpu]); }",
        tool: &["softirqs", "-d"],
        remark: "A soft interrupt to an event. softirqs looks at soft interrupts alone.",
        ..CASE
    },
    Case {
        probe: "syscall_errors",
        workload: Workload::FailingCall,
        script: "tracepoint:raw_syscalls:sys_exit /args->ret < 0 && args->ret >= -4095/ { @[args->id, args->ret, pid, comm] = count(); }",
        tool: &["syscount", "-x", "-P"],
        remark: "syscount tells processes apart and not errors.",
        ..CASE
    },
    Case {
        probe: "process_exec",
        workload: Workload::Spawn,
        script: "tracepoint:syscalls:sys_enter_execve { join(args->argv); } tracepoint:sched:sched_process_exec { printf(\"%d %s %s\\n\", pid, comm, str(args->filename)); }",
        tool: &["execsnoop"],
        remark: "The start of a program takes long and varies by more than any of them adds.",
        ..CASE
    },
    Case {
        probe: "process_exit",
        workload: Workload::Spawn,
        script: "tracepoint:sched:sched_process_exit { printf(\"%d %d %s %d\\n\", pid, tid, comm, nsecs); }",
        tool: &["exitsnoop"],
        remark: "The same.",
        ..CASE
    },
    Case {
        probe: "signals",
        workload: Workload::Signal,
        script: "tracepoint:signal:signal_generate { printf(\"%d %s %d %d %d\\n\", pid, comm, args->sig, args->pid, args->result); }",
        tool: &["sigsnoop"],
        remark: "sigsnoop looks at the system calls that send signals.",
        ..CASE
    },
    Case {
        probe: "file_io",
        workload: Workload::CachedRead,
        script: "tracepoint:syscalls:sys_enter_pread64, tracepoint:syscalls:sys_enter_read, tracepoint:syscalls:sys_enter_write, tracepoint:syscalls:sys_enter_pwrite64 { @start[tid] = nsecs; @fd[tid] = args->fd; } tracepoint:syscalls:sys_exit_pread64, tracepoint:syscalls:sys_exit_read, tracepoint:syscalls:sys_exit_write, tracepoint:syscalls:sys_exit_pwrite64 /@start[tid]/ { @bytes[pid, @fd[tid]] = sum(args->ret); @ns = hist(nsecs - @start[tid]); delete(@start[tid]); delete(@fd[tid]); }",
        tool: &["filetop"],
        remark: "The script knows descriptors, not files.",
        ..CASE
    },
    Case {
        probe: "fs_sync",
        workload: Workload::Sync,
        script: "tracepoint:syscalls:sys_enter_fsync, tracepoint:syscalls:sys_enter_fdatasync { @start[tid] = nsecs; @fd[tid] = args->fd; }
            tracepoint:syscalls:sys_exit_fsync, tracepoint:syscalls:sys_exit_fdatasync /@start[tid]/ {
                $ns = nsecs - @start[tid]; @ns = hist($ns);
                printf(\"%d %s %d %d %d\\n\", pid, comm, @fd[tid], args->ret, $ns);
                delete(@start[tid]); delete(@fd[tid]); }",
        remark: "The script prints the descriptor and not the file: its bpftrace finds no path in this kernel's struct file.",
        ..CASE
    },
    Case {
        probe: "page_cache",
        workload: Workload::CachedRead,
        script: "tracepoint:filemap:mm_filemap_get_pages { @hits[pid, comm] = count(); } tracepoint:filemap:mm_filemap_add_to_page_cache { @misses[pid, comm] = count(); } tracepoint:writeback:writeback_dirty_folio { @dirtied[pid, comm] = count(); }",
        tool: &["cachestat"],
        remark: "cachestat does not tell processes apart.",
        ..CASE
    },
    Case {
        probe: "page_faults",
        workload: Workload::TouchPage,
        script: "software:minor-faults:1 { @minor[pid, comm] = count(); } software:major-faults:1 { @major[pid, comm] = count(); }",
        remark: "The script does not look at the process's memory.",
        ..CASE
    },
    Case {
        probe: "heap_growth",
        workload: Workload::Allocate,
        own: true,
        script: "uprobe:/lib/x86_64-linux-gnu/libc.so.6:malloc /pid == {process}/ { @size[tid] = arg0; }
            uretprobe:/lib/x86_64-linux-gnu/libc.so.6:malloc /pid == {process} && @size[tid]/ {
                @blocks[retval] = @size[tid]; @[ustack] = sum(@size[tid]); delete(@size[tid]);
            }
            uprobe:/lib/x86_64-linux-gnu/libc.so.6:free /pid == {process}/ { delete(@blocks[arg0]); }",
        remark: "Three breakpoints to an event: into malloc, out of it, into free. The script never subtracts what is freed.",
        ..CASE
    },
    Case {
        probe: "tcp_connections",
        workload: Workload::Connect,
        script: "tracepoint:sock:inet_sock_set_state { printf(\"%d %s %d %d %d %s %s\\n\", pid, comm, args->oldstate, args->newstate, args->dport, ntop(args->family, args->saddr), ntop(args->family, args->daddr)); }",
        tool: &["tcplife"],
        remark: "tcplife tells of lives, not of connects; the script of every change of state.",
        ..CASE
    },
    Case {
        probe: "packet_drops",
        workload: Workload::RefusedDatagram,
        script: "tracepoint:skb:kfree_skb { @[args->reason, args->location, args->protocol] = count(); @bytes[args->reason, args->location, args->protocol] = sum(((struct sk_buff *)args->skbaddr)->len); }",
        remark: "libbpf-tools have no such program.",
        ..CASE
    },
    Case {
        probe: "net_traffic",
        workload: Workload::Datagram,
        script: "tracepoint:sock:sock_send_length, tracepoint:sock:sock_recv_length { @[pid, comm, args->family] = sum(args->ret); }",
        tool: &["tcptop"],
        remark: "A datagram sent and received to an event. tcptop looks at TCP alone.",
        ..CASE
    },
    Case {
        probe: "dns_latency",
        workload: Workload::LookUp,
        script: "uprobe:/lib/x86_64-linux-gnu/libc.so.6:getaddrinfo { @start[tid] = nsecs; } uretprobe:/lib/x86_64-linux-gnu/libc.so.6:getaddrinfo /@start[tid]/ { printf(\"%d %s %d\\n\", pid, comm, nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["gethostlatency"],
        remark: "Two breakpoints to a look-up, which are most of what any of them costs.",
        ..CASE
    },
    Case {
        probe: "kernel_locks",
        workload: Workload::Lock,
        script: "tracepoint:lock:contention_begin { @start[tid] = nsecs; } tracepoint:lock:contention_end /@start[tid]/ { @ns = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["klockstat"],
        remark: "Not every write finds the lock taken.",
        ..CASE
    },
    Case {
        probe: "futex_waits",
        workload: Workload::Futex,
        script: "tracepoint:syscalls:sys_enter_futex { @start[tid] = nsecs; } tracepoint:syscalls:sys_exit_futex /@start[tid]/ { @ns[pid, comm] = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        remark: "Two waits to an event. libbpf-tools of this version have no futexctn.",
        ..CASE
    },
    Case {
        probe: "function_latency",
        workload: Workload::Function,
        options: r#"{"binary": "{program}", "function": "mcptrace_bench_function"}"#,
        script: "uprobe:{program}:mcptrace_bench_function { @start[tid] = nsecs; }
            uretprobe:{program}:mcptrace_bench_function /@start[tid]/ { @ns = hist(nsecs - @start[tid]); delete(@start[tid]); }",
        tool: &["funclatency", "{program}:mcptrace_bench_function"],
        remark: "Two breakpoints to a call, which are most of what any of them costs.",
        ..CASE
    },
    Case {
        probe: "capability_checks",
        workload: Workload::Capability,
        script: "tracepoint:capability:cap_capable { @[pid, comm, args->cap, args->ret] = count(); }",
        tool: &["capable"],
        remark: "capable wants kprobes.",
        ..CASE
    },
    Case {
        probe: "privileged_actions",
        workload: Workload::SetUser,
        script: "tracepoint:syscalls:sys_enter_setuid { @uid[tid] = args->uid; } tracepoint:syscalls:sys_exit_setuid { printf(\"%d %s %d %d\\n\", pid, comm, @uid[tid], args->ret); delete(@uid[tid]); }",
        remark: "The script looks at setuid alone.",
        ..CASE
    },
    Case {
        probe: "usdt_events",
        workload: Workload::Usdt,
        options: r#"{"binary": "{program}", "usdt": "mcptrace_bench:tick"}"#,
        script: "usdt:{program}:mcptrace_bench:tick { printf(\"%d %s %d\\n\", pid, comm, arg0); }",
        remark: "One breakpoint to an event, which is most of what either costs.",
        ..CASE
    },
    Case {
        probe: "tcp_retransmits",
        workload: Workload::RefusedConnect,
        script: "tracepoint:tcp:tcp_retransmit_skb { @again[args->dport, args->state] = count(); }
            tracepoint:tcp:tcp_send_reset { @sent[args->state, args->reason] = count(); }
            tracepoint:tcp:tcp_receive_reset { @received[args->dport, args->sport] = count(); }",
        remark: "An event is a reset sent and received: repeated segments come at their own pace. tcpretrans is not among libbpf-tools.",
        ..CASE
    },
    Case {
        probe: "memory_reclaim",
        workload: Workload::Reclaim,
        script: "tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin { @start[tid] = nsecs; }
            tracepoint:vmscan:mm_vmscan_memcg_reclaim_end /@start[tid]/ {
                @ns = hist(nsecs - @start[tid]); @pages = sum(args->nr_reclaimed); delete(@start[tid]);
            }",
        remark: "drsnoop looks at the whole machine's shortage alone, not at that of a control group.",
        ..CASE
    },
    Case {
        probe: "oom_kills",
        workload: Workload::Victim,
        script: "tracepoint:oom:mark_victim { printf(\"%d %s\\n\", args->pid, comm); }",
        remark: "oomkill wants kprobes. To kill a process takes longer and varies by more than either adds.",
        ..CASE
    },
];

/// Probes of events that no loop can make, and why.
#[cfg(test)]
pub(crate) const UNMEASURED: &[(&str, &str)] = &[("bpf_programs", "it attaches nothing")];

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
