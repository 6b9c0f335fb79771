//! The ten investigations.

use super::{
    Argument::{Comm, Container, MaybePid, Pid},
    Plan, Step, What,
};

const fn probe(name: &'static str, arguments: &'static str, read: &'static str) -> Step {
    Step { call: What::Probe(name), arguments, narrowed: true, of_one: false, with_children: false, read }
}

const fn script(name: &'static str, read: &'static str) -> Step {
    Step {
        call: What::Script(name),
        arguments: r#"{"timeout":5}"#,
        narrowed: true,
        of_one: false,
        with_children: false,
        read,
    }
}

/// A probe of what a process starts: with the process alone it would see that one's own.
const fn children(name: &'static str, read: &'static str) -> Step {
    Step { with_children: true, ..probe(name, NONE, read) }
}

const fn tool(name: &'static str, arguments: &'static str, read: &'static str) -> Step {
    Step { call: What::Tool(name), arguments, narrowed: false, of_one: false, with_children: false, read }
}

impl Step {
    /// Of the whole host, whatever the investigation is about.
    const fn of_all(mut self) -> Self {
        self.narrowed = false;
        self
    }

    /// Of one process only: left out where none is given.
    const fn of_one(mut self) -> Self {
        self.of_one = true;
        self
    }
}

const NONE: &str = "{}";
const BY_COMM: &str = r#"{"options":{"by":"comm"}}"#;
const BY_PID: &str = r#"{"options":{"by":"pid"}}"#;
const BY_CONTAINER: &str = r#"{"options":{"by":"container"}}"#;

/// Every investigation, in the order clients show them.
pub(super) const PLANS: &[Plan] = &[
    Plan {
        name: "slow_system",
        title: "Find out why this host is slow",
        description: "The whole host is slow and nobody knows why: CPU, disk, memory and network, one after the other",
        arguments: &[Container],
        steps: &[
            tool(
                "triage",
                r#"{"seconds":10}"#,
                "A ranked diagnosis; follow the `next` of its first finding instead of this plan if it is sure.",
            ),
            probe(
                "runq_latency",
                BY_COMM,
                "Threads that wait for a CPU: a p99 above some milliseconds for many commands means too little CPU.",
            ),
            probe("cpu_profile", NONE, "Where the CPU time goes: the frames with the largest `self` and `total`."),
            probe(
                "block_latency",
                NONE,
                "Disks: compare time in the queue with time in service; a long queue is overload, a long service a slow device.",
            ),
            probe("memory_reclaim", NONE, "Any row means that programs stopped to free memory themselves."),
            script("kswapd_activity", "Reclaim in the background: memory is short if it is awake for long."),
            probe("kernel_locks", NONE, "Contended kernel locks: large totals with few callers point at one workload."),
            probe("irq_time", NONE, "Time taken by interrupts; more than a tenth of a CPU is worth a look."),
            probe(
                "syscall_latency",
                NONE,
                "Which calls are slow where they should not be (read, fsync, openat, futex is waiting).",
            ),
            probe("tcp_retransmits", NONE, "Losses on the network, by peer.").of_all(),
        ],
        conclude: "Say which resource is short: CPU, disk, memory, network or a lock.",
    },
    Plan {
        name: "high_cpu",
        title: "Find out what uses the CPU",
        description: "CPU use is high, of the host or of one process: where the time goes and whether others suffer",
        arguments: &[MaybePid, Comm],
        steps: &[
            probe(
                "cpu_profile",
                NONE,
                "Functions by self and total time; much kernel time means system calls, faults or locks.",
            ),
            probe(
                "syscall_counts",
                BY_COMM,
                "A process with very many calls a second does small work in the kernel; many errors are a busy loop.",
            ),
            probe("runq_latency", NONE, "Whether there is too little CPU: how long runnable threads wait."),
            probe("cpu_slices", NONE, "Very short slices and many switches are threads that hand work to and fro."),
            probe("page_faults", NONE, "Many minor faults are memory that is mapped and thrown away again."),
            script("sleep_requests", "Many short sleeps are polling."),
            script("timer_functions", "Kernel timers that run long or often.").of_all(),
            probe("irq_time", NONE, "Interrupts are charged to whoever was running.").of_all(),
        ],
        conclude: "Name the process, the function or the system call, and whether the time is its own or the kernel's.",
    },
    Plan {
        name: "slow_disk",
        title: "Find out why the disk is slow",
        description: "Reads, writes or fsync take long: device, queue, file system or too many requests",
        arguments: &[MaybePid, Comm],
        steps: &[
            probe(
                "block_latency",
                NONE,
                "Queue and service time per device and kind: which of them is long, and are there errors?",
            )
            .of_all(),
            probe("fs_sync", NONE, "Who calls fsync, how often and how long: a storm of them makes everything wait."),
            probe("file_io", NONE, "Which files are read and written, with how many calls for how many bytes."),
            script(
                "disk_access_pattern",
                "Random or sequential, and how large: small random requests are what disks do worst.",
            ),
            probe("page_cache", NONE, "A low hit ratio turns reads into disk requests."),
            script("dirty_throttling", "Writers that the kernel slows down: more is written than the disk takes."),
            script("writeback_reasons", "Why dirty data is written back now."),
            script("journal_commits", "Commits of ext4's journal that hold up every fsync."),
            script("block_errors", "A failing device retries in silence before it reports."),
        ],
        conclude: "Say whether the device, the queue in front of it or the amount asked of it is the problem.",
    },
    Plan {
        name: "slow_requests",
        title: "Find out why requests of a process are slow",
        description: "One service answers slowly: does it compute, wait for CPU, disk, locks, names or another service?",
        arguments: &[Pid],
        steps: &[
            probe(
                "offcpu_stacks",
                NONE,
                "What its threads wait for, by stack: the largest totals that are not idle loops.",
            ),
            probe("cpu_profile", NONE, "What it computes when it does not wait."),
            probe("syscall_latency", NONE, "Its slowest calls; epoll_wait, futex and poll are waiting for work."),
            probe(
                "runq_latency",
                NONE,
                "Time that it could run and got no CPU: the fault of others, or of its CPU limit.",
            ),
            probe("futex_waits", NONE, "Waits for its own locks."),
            probe("fs_sync", NONE, "Waiting for the disk to confirm."),
            probe("dns_latency", NONE, "Look-ups of names before a request goes out."),
            probe("tcp_connections", NONE, "Connections that take long to come about, and to whom."),
            script("poll_timeouts", "Whether its event loop wakes for nothing or handles one event at a time."),
        ],
        conclude: "Divide the time of a request as far as you can: on CPU, waiting for CPU, disk, lock, name, peer.",
    },
    Plan {
        name: "memory_growth",
        title: "Find out what makes memory grow",
        description: "A process or the host uses more and more memory: a leak, a cache, mappings or the kernel itself",
        arguments: &[MaybePid],
        steps: &[
            probe("page_faults", NONE, "Which process touches new memory, and how fast it grows."),
            probe("heap_growth", NONE, "Allocations that were not freed, by stack; run it twice and compare.").of_one(),
            script("memory_mappings", "Address space taken and given back, by size: more mapped than unmapped grows."),
            script("fd_growth", "Descriptors that are opened and not closed hold memory too."),
            script("thread_starts", "Each thread has a stack."),
            probe(
                "page_cache",
                NONE,
                "Memory in the cache of files is given back when it is needed: growth there is no leak.",
            )
            .of_all(),
            script("slab_growth", "Kernel objects: a cache with many more allocations than frees."),
            probe("memory_reclaim", NONE, "Whether the growth hurts already.").of_all(),
            probe("oom_kills", NONE, "Whether the kernel has begun to kill.").of_all(),
        ],
        conclude: "Say whether it is the heap, mappings, files in cache or kernel memory, how fast it grows, and which code asks for it.",
    },
    Plan {
        name: "network_trouble",
        title: "Find out what is wrong with the network",
        description: "Connections fail, hang or are slow: names, connects, losses, drops or full queues",
        arguments: &[MaybePid, Comm],
        steps: &[
            probe(
                "tcp_connections",
                NONE,
                "Connects that fail or take long, by peer; refused and timed out are different things.",
            ),
            probe("dns_latency", NONE, "Names that resolve slowly or not at all."),
            probe("tcp_retransmits", NONE, "Losses and resets by peer and state; in SYN_SENT nobody answers.").of_all(),
            probe("packet_drops", NONE, "Where and why this kernel drops packets.").of_all(),
            probe("net_traffic", NONE, "Who sends and receives how much: is the line full?"),
            script(
                "tcp_round_trip",
                "Round-trip times and windows by port: far away, congested, or a receiver that does not read?",
            ),
            script("socket_overflows", "Packets thrown away because a program does not read."),
            script("napi_budget", "Whether one CPU is the limit of reception."),
            script("neighbour_changes", "Machines on the local network that do not answer."),
            script("route_failures", "Addresses without a route."),
        ],
        conclude: "Say on which side the fault is: this host, the path or the peer.",
    },
    Plan {
        name: "what_does_it_do",
        title: "Find out what a process is doing",
        description: "An unknown process: its system calls, files, network and children, without disturbing it",
        arguments: &[Pid],
        steps: &[
            probe(
                "syscall_counts",
                NONE,
                "The mix of calls says what kind of work it is: file, network, timers, memory; none at all is pure computing or sleep.",
            ),
            probe("file_opens", NONE, "The files that it opens, and which are missing."),
            probe("file_io", NONE, "The files that it reads and writes, and how much."),
            probe("tcp_connections", NONE, "Whom it talks to."),
            script("unix_connections", "Local services that it uses."),
            children("process_exec", "What it starts, and what those start."),
            probe("cpu_profile", NONE, "Which code runs."),
            probe("offcpu_stacks", NONE, "What it waits for."),
            script("syscall_stacks", "Which of its code makes the calls."),
        ],
        conclude: "Describe in a few sentences what the process does, how often, with which files and peers.",
    },
    Plan {
        name: "noisy_neighbour",
        title: "Find out who disturbs the others on this host",
        description: "Something on a shared host takes more than its part: by process and container, for CPU, disk, network, cache and locks",
        arguments: &[],
        steps: &[
            probe("runq_latency", BY_CONTAINER, "Which container or unit waits for CPUs: those are the victims."),
            probe("cpu_slices", BY_CONTAINER, "Who runs in the meantime: `count` times `mean` is the time on CPUs."),
            probe("syscall_counts", BY_PID, "Who keeps the kernel busy."),
            probe("block_latency", NONE, "Whether the disk is the shared thing that is short."),
            probe("file_io", BY_PID, "Who reads and writes most."),
            probe("fs_sync", NONE, "Who forces the disk to write for everybody."),
            probe("net_traffic", NONE, "Who uses the network."),
            script("page_allocations", "Who takes memory at the highest rate."),
            script("cross_cpu_calls", "Who interrupts other CPUs."),
            script("tlb_flushes", "Who makes others lose their address translations."),
        ],
        conclude: "Name who disturbs and who is disturbed, with the share of the resource for each.",
    },
    Plan {
        name: "what_changed",
        title: "Find out what changed on this host",
        description: "It worked before: what was started, ended, moved, changed or reconfigured, now and in the recent past",
        arguments: &[],
        steps: &[
            tool(
                "query_history",
                "{}",
                "What the recorder has: compare the time before the trouble with the time after.",
            ),
            tool("list_executions", "{}", "What was traced before, and with what result."),
            probe("process_exec", NONE, "What is being started: deployments, jobs, restart loops."),
            probe("process_exit", NONE, "What ends, and with which code or signal."),
            probe("privileged_actions", NONE, "Mounts, modules, new identities, namespaces."),
            script("cgroup_changes", "Services and containers that come and go."),
            script("file_removals", "Files replaced by renaming: configuration, binaries, rotated logs."),
            script("permission_changes", "Files that lose or gain rights."),
            script("scheduling_changes", "Priorities and CPUs that were set anew."),
            script("clock_changes", "A clock that jumped."),
        ],
        conclude: "List the changes in the order of time, and which of them can explain the trouble.",
    },
    Plan {
        name: "security_review",
        title: "Review what a process does with its privileges",
        description: "What a process opens, connects to, executes and is allowed to do; for review, not as proof of innocence",
        arguments: &[Pid],
        steps: &[
            probe("capability_checks", NONE, "Privileges that it uses, and those it was refused."),
            probe("privileged_actions", NONE, "Changes of identity, mounts, ptrace, modules, eBPF."),
            children("process_exec", "Programs that it starts."),
            probe("file_opens", NONE, "Files that it opens: keys, passwords, other programs' data, /proc of others."),
            probe("tcp_connections", NONE, "Where it connects to, and who connects to it."),
            script("socket_kinds", "Raw and packet sockets, and what it listens on."),
            script("unix_connections", "Local services that it talks to, such as a container engine."),
            script("writable_code", "Memory that can be written and executed."),
            script("memory_file_use", "Programs that exist in memory only."),
            script("permission_changes", "Rights that it gives to files."),
        ],
        conclude: "List what is beyond the purpose of this process, by severity; say for how long you looked, since what it did not do in that time is not known.",
    },
];
