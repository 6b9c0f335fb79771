//! What is recorded: one table. Pure.
//!
//! Times are sums of nanoseconds unless they say otherwise, and names end in their unit; a name without one counts things.

use super::tick::{Kind, Metric};

/// The value of label `pid` of the row that sums up all processes beyond those that have rows of their own.
pub const OTHERS: &str = "others";

/// What the kernel counts by itself, in files under /proc: never shed.
pub const PROC: &str = "proc";
/// Time on CPUs and context switches.
pub const CPU: &str = "cpu";
/// Waiting for a CPU.
pub const RUNQ: &str = "runq";
/// Block devices.
pub const BLOCK: &str = "block";
/// TCP connections.
pub const TCP: &str = "tcp";
/// Network devices.
pub const NETWORK: &str = "network";
/// Processes that begin and end.
pub const PROCESSES: &str = "processes";
/// Memory.
pub const MEMORY: &str = "memory";
/// Interrupts.
pub const INTERRUPTS: &str = "interrupts";
/// Pressure.
pub const PRESSURE: &str = "pressure";
/// Locks of the kernel.
pub const LOCKS: &str = "locks";
/// System calls.
pub const SYSCALLS: &str = "syscalls";

/// What is recorded and shed together, in the order of [`METRICS`].
pub const GROUPS: &[&str] =
    &[PROC, CPU, RUNQ, BLOCK, TCP, NETWORK, PROCESSES, MEMORY, INTERRUPTS, PRESSURE, LOCKS, SYSCALLS];

const NONE: &[&str] = &[];

/// Everything that is recorded.
pub const METRICS: &[Metric] = &[
    sum(
        PROC,
        "cpu_mode_ns",
        "ns",
        &["mode"],
        "Time of all CPUs by what they did: user, nice, system, idle, iowait, irq, softirq, steal (/proc/stat, in steps of 10 ms)",
    ),
    gauge(PROC, "cpus_online", "CPUs", NONE, "CPUs that are online"),
    gauge(PROC, "threads_runnable", "threads", NONE, "Threads that run or are runnable at the moment"),
    gauge(PROC, "threads_blocked", "threads", NONE, "Threads that wait for I/O at the moment (/proc/stat)"),
    gauge(PROC, "threads", "threads", NONE, "Threads of all processes (/proc/loadavg)"),
    gauge(
        PROC,
        "load_1m",
        "threads",
        NONE,
        "Threads that run, are runnable or wait in the kernel, averaged over a minute (/proc/loadavg)",
    ),
    gauge(PROC, "memory_total_bytes", "bytes", NONE, "Memory of the machine (/proc/meminfo, as the rows that follow)"),
    gauge(PROC, "memory_available_bytes", "bytes", NONE, "Memory that programs can have without swapping"),
    gauge(PROC, "memory_cached_bytes", "bytes", NONE, "Memory of the page cache"),
    gauge(
        PROC,
        "memory_dirty_bytes",
        "bytes",
        NONE,
        "Memory that has to be written back to disk, and is being written",
    ),
    gauge(PROC, "swap_used_bytes", "bytes", NONE, "Swap in use"),
    sum(PROC, "swap_pages", "pages", &["direction"], "Pages swapped in or out (/proc/vmstat)"),
    sum(PROC, "page_faults", "faults", &["kind"], "Page faults: minor, or major (they waited for I/O) (/proc/vmstat)"),
    sum(
        PROC,
        "block_busy_ns",
        "ns",
        &["device"],
        "Time in which a device had a request under way (/proc/diskstats, in steps of 1 ms)",
    ),
    gauge(PROC, "block_in_flight", "requests", &["device"], "Requests under way (/proc/diskstats)"),
    sum(
        PROC,
        "tcp_segments_sent",
        "segments",
        NONE,
        "Segments sent, in the network namespace of the recorder (/proc/net/snmp)",
    ),
    sum(
        PROC,
        "tcp_listen_drops",
        "connections",
        NONE,
        "Connections dropped because a listener's queue was full, in the network namespace of the recorder (/proc/net/netstat)",
    ),
    sum(
        CPU,
        "cpu_process_ns",
        "ns",
        &["pid", "comm", "cgroup"],
        "Time on a CPU, by process; those that used least stand together as pid `others`",
    ),
    sum(
        CPU,
        "context_switches",
        "switches",
        &["kind"],
        "Threads that left their CPU: voluntary (they wait or end) or involuntary (they could have gone on)",
    ),
    distribution(RUNQ, "runq_latency_ns", "ns", NONE, "From when a thread becomes runnable to when it runs"),
    distribution(
        BLOCK,
        "block_queue_ns",
        "ns",
        &["device", "operation"],
        "From the making of a block request to its issue to the driver",
    ),
    distribution(
        BLOCK,
        "block_service_ns",
        "ns",
        &["device", "operation"],
        "From the issue of a block request to its completion",
    ),
    sum(BLOCK, "block_requests", "requests", &["device", "operation"], "Block requests that completed"),
    sum(BLOCK, "block_bytes", "bytes", &["device", "operation"], "Bytes of block requests that completed"),
    sum(BLOCK, "block_errors", "requests", &["device", "operation"], "Block requests that completed with an error"),
    sum(TCP, "tcp_connects", "connections", NONE, "Connects that began"),
    sum(TCP, "tcp_connected", "connections", NONE, "Connects that succeeded"),
    sum(
        TCP,
        "tcp_connect_failures",
        "connections",
        &["error"],
        "Connects that failed, by errno; ABORTED if the program gave up",
    ),
    sum(TCP, "tcp_accepts", "connections", NONE, "Connections from outside that were established"),
    distribution(TCP, "tcp_connect_ns", "ns", NONE, "From the beginning of a connect to its success"),
    sum(TCP, "tcp_retransmits", "segments", NONE, "Segments sent again"),
    sum(TCP, "tcp_resets", "resets", &["direction"], "Resets sent or received"),
    sum(
        NETWORK,
        "net_bytes",
        "bytes",
        &["device", "direction"],
        "Bytes of network devices in the network namespace of the recorder (/proc/net/dev)",
    ),
    sum(NETWORK, "net_packets", "packets", &["device", "direction"], "Packets of these devices"),
    sum(NETWORK, "net_dropped", "packets", &["device", "direction"], "Packets that these devices dropped"),
    sum(NETWORK, "net_errors", "packets", &["device", "direction"], "Packets that these devices lost to errors"),
    sum(PROCESSES, "process_forks", "processes", NONE, "Processes that were made (not threads)"),
    sum(PROCESSES, "thread_starts", "threads", NONE, "Threads that were made in a process that was there"),
    sum(PROCESSES, "process_execs", "processes", NONE, "Programs that were started by exec"),
    sum(
        PROCESSES,
        "process_exits",
        "processes",
        &["outcome"],
        "Processes that ended: success (status 0), failure (another status) or signal",
    ),
    sum(PROCESSES, "fatal_signals", "processes", &["signal"], "Processes that a signal killed"),
    distribution(
        MEMORY,
        "reclaim_stall_ns",
        "ns",
        &["kind"],
        "How long threads were stalled to reclaim memory (direct: for the machine; cgroup: for their control group's limit) or to compact it",
    ),
    sum(MEMORY, "oom_kills", "processes", NONE, "Processes that the kernel killed for want of memory"),
    sum(
        INTERRUPTS,
        "interrupts",
        "interrupts",
        &["kind", "name"],
        "Handlers that ran: kind hard by name and number (of devices: neither each CPU's timer nor calls between CPUs), kind soft by vector \
            (NET_RX, TIMER...)",
    ),
    sum(INTERRUPTS, "interrupt_ns", "ns", &["kind", "name"], "Time in these handlers"),
    sum(
        PRESSURE,
        "pressure_some_ns",
        "ns",
        &["resource"],
        "Time in which at least one thread was stalled for want of cpu, memory or io (/proc/pressure)",
    ),
    sum(PRESSURE, "pressure_full_ns", "ns", &["resource"], "Time in which all threads that had work were stalled so"),
    distribution(
        LOCKS,
        "lock_wait_ns",
        "ns",
        &["kind"],
        "How long threads waited for a contended lock of the kernel, by kind of lock",
    ),
    distribution(
        SYSCALLS,
        "syscall_ns",
        "ns",
        &["syscall"],
        "From entry to return of a system call; those longer than the time looked at are missing",
    ),
    sum(SYSCALLS, "syscalls", "calls", &["syscall"], "System calls that returned"),
    sum(SYSCALLS, "syscall_errors", "calls", &["syscall"], "System calls that returned an errno"),
];

/// A metric by its name.
pub fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

const fn sum(
    group: &'static str,
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, unit, kind: Kind::Sum, group, labels, help }
}

const fn gauge(
    group: &'static str,
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, unit, kind: Kind::Gauge, group, labels, help }
}

const fn distribution(
    group: &'static str,
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, unit, kind: Kind::Distribution, group, labels, help }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            for unit in ["ns", "bytes"] {
                assert_eq!(metric.unit == unit, metric.name.ends_with(unit), "{}", metric.name);
            }
        }
    }

    #[test]
    fn groups_are_those_of_the_table_in_its_order() {
        let mut groups: Vec<_> = METRICS.iter().map(|metric| metric.group).collect();
        groups.dedup();
        assert_eq!(groups, GROUPS);
    }
}
