//! What the kernel added up between two ticks, and the samples that it makes. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use mcptrace_wire::{BlockStats, Count, CpuBank, DeviceKey, Histogram, ProcessSlot, STALLS, SharedBank, Tally};

use super::{
    metrics::{OTHERS, metric},
    tick::{Sample, Value},
};
use crate::{distribution::Distribution, signals, text::comm};

/// Processes that have rows of their own, by the time they used.
const MOST_PROCESSES: usize = 20;

/// Time of one process on all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessTime {
    pub(super) ns: u64,
    pub(super) comm: String,
    pub(super) cgroup: u64,
    pub(super) cgroup_path: Option<String>,
}

/// All that the kernel added up between two ticks.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) runq: Distribution,
    pub(super) voluntary: u64,
    pub(super) involuntary: u64,
    pub(super) unnamed_ns: u64,
    pub(super) soft: [Tally; 16],
    pub(super) hard: BTreeMap<u32, Tally>,
    pub(super) processes: HashMap<u32, ProcessTime>,
    pub(super) devices: Vec<(DeviceKey, Box<BlockStats>)>,
    pub(super) shared: Option<Box<SharedBank>>,
}

impl Kept {
    /// Adds what a CPU kept.
    pub(super) fn add_cpu(&mut self, bank: &CpuBank) {
        self.runq.add(&bank.runq);
        self.voluntary += bank.voluntary;
        self.involuntary += bank.involuntary;
        self.unnamed_ns += bank.unnamed_ns;
        for (sum, tally) in self.soft.iter_mut().zip(&bank.soft) {
            sum.count += tally.count;
            sum.ns += tally.ns;
        }
    }

    /// Adds a process on one CPU.
    pub(super) fn add_process(&mut self, slot: &ProcessSlot) {
        let process = self.process(slot.tgid);
        process.ns += slot.ns;
        process.cgroup = slot.cgroup;
        if process.comm.is_empty() {
            process.comm = comm(&slot.comm);
        }
    }

    /// A process's row.
    pub(super) fn process(&mut self, tgid: u32) -> &mut ProcessTime {
        self.processes.entry(tgid).or_default()
    }

    /// Takes what all CPUs share.
    pub(super) fn set_shared(&mut self, bank: &SharedBank) {
        self.shared = Some(Box::new(*bank));
    }

    /// A count of what all CPUs share.
    pub(super) fn count(&self, what: Count) -> u64 {
        self.shared.as_ref().and_then(|shared| shared.counts.get(what as usize)).copied().unwrap_or(0)
    }

    /// Switches, processes and waits for a CPU. `name` completes a row that is shown.
    pub(super) fn cpu(&mut self, samples: &mut Samples, name: impl Fn(&mut ProcessTime, u32)) {
        samples.sum("context_switches", ["voluntary"], self.voluntary);
        samples.sum("context_switches", ["involuntary"], self.involuntary);
        let mut processes: Vec<_> = self.processes.iter_mut().filter(|(_, time)| time.ns > 0).collect();
        processes.sort_unstable_by_key(|(pid, time)| (std::cmp::Reverse(time.ns), **pid));
        let rest = processes.split_off(processes.len().min(MOST_PROCESSES));
        for (pid, time) in processes {
            name(time, *pid);
            let cgroup = time.cgroup_path.clone().unwrap_or_default();
            samples.sum("cpu_process_ns", [pid.to_string(), time.comm.clone(), cgroup], time.ns);
        }
        let others = rest.iter().map(|(_, time)| time.ns).sum::<u64>() + self.unnamed_ns;
        if others > 0 {
            samples.sum("cpu_process_ns", [OTHERS, "", ""], others);
        }
    }

    /// Waits for a CPU.
    pub(super) fn runq(&mut self, samples: &mut Samples) {
        samples.distribution("runq_latency_ns", [""; 0], std::mem::take(&mut self.runq));
    }

    /// Block requests. `name` gives the name of a device by its numbers.
    pub(super) fn block(&self, samples: &mut Samples, name: impl Fn(u32, u32) -> String) {
        for (key, stats) in &self.devices {
            let labels = || [name(key.major, key.minor), operation(key.operation)];
            let service = distribution(&stats.service);
            samples.sum("block_requests", labels(), service.count());
            samples.sum("block_bytes", labels(), stats.bytes);
            samples.sum("block_errors", labels(), stats.errors);
            samples.distribution("block_queue_ns", labels(), distribution(&stats.queue));
            samples.distribution("block_service_ns", labels(), service);
        }
    }

    /// TCP connections.
    pub(super) fn tcp(&self, samples: &mut Samples) {
        for (name, count) in [
            ("tcp_connects", Count::Connects),
            ("tcp_connected", Count::Connected),
            ("tcp_accepts", Count::Accepts),
            ("tcp_retransmits", Count::Retransmits),
        ] {
            samples.sum(name, [""; 0], self.count(count));
        }
        samples.sum("tcp_resets", ["sent"], self.count(Count::ResetsSent));
        samples.sum("tcp_resets", ["received"], self.count(Count::ResetsReceived));
        let Some(shared) = &self.shared else { return };
        samples.distribution("tcp_connect_ns", [""; 0], distribution(&shared.connect));
        for (errno, failures) in shared.connect_errors.iter().enumerate().filter(|(_, failures)| **failures > 0) {
            let error = if errno == 0 { "ABORTED".to_owned() } else { crate::errno::name(errno as i32) };
            samples.sum("tcp_connect_failures", [error], *failures);
        }
    }

    /// Processes that began and ended.
    pub(super) fn processes(&self, samples: &mut Samples) {
        for (name, count) in
            [("process_forks", Count::Forks), ("thread_starts", Count::Threads), ("process_execs", Count::Execs)]
        {
            samples.sum(name, [""; 0], self.count(count));
        }
        let killed = self.shared.as_ref().map_or(&[][..], |shared| &shared.killed);
        samples.sum("process_exits", ["success"], self.count(Count::Successes));
        samples.sum("process_exits", ["failure"], self.count(Count::Failures));
        samples.sum("process_exits", ["signal"], killed.iter().sum());
        for (signal, count) in killed.iter().enumerate().filter(|(_, count)| **count > 0) {
            samples.sum("fatal_signals", [signals::name(signal as i32)], *count);
        }
    }

    /// Stalls for want of memory, and kills.
    pub(super) fn memory(&self, samples: &mut Samples) {
        samples.sum("oom_kills", [""; 0], self.count(Count::OomKills));
        let Some(shared) = &self.shared else { return };
        for (name, stall) in STALL_NAMES.iter().zip(&shared.stalls) {
            samples.some("reclaim_stall_ns", [*name], distribution(stall));
        }
    }

    /// Interrupts. `name` gives the name of a hardware interrupt by its number.
    pub(super) fn interrupts(&self, samples: &mut Samples, mut name: impl FnMut(u32) -> String) {
        for (irq, tally) in &self.hard {
            samples.tally("hard", name(*irq), *tally);
        }
        for (vector, tally) in self.soft.iter().enumerate().filter(|(_, tally)| tally.count > 0) {
            samples.tally("soft", soft_name(vector), *tally);
        }
    }

    /// Waits for locks of the kernel.
    pub(super) fn locks(&self, samples: &mut Samples) {
        let Some(shared) = &self.shared else { return };
        for (name, lock) in LOCK_NAMES.iter().zip(&shared.locks) {
            samples.some("lock_wait_ns", [*name], distribution(lock));
        }
    }
}

/// By [`mcptrace_wire::Stall`].
const STALL_NAMES: [&str; STALLS as usize] = ["direct", "cgroup", "compaction"];
/// By [`mcptrace_wire::lock_kind`].
const LOCK_NAMES: [&str; mcptrace_wire::LOCK_KINDS] = [
    "spinlock",
    "rwlock_read",
    "rwlock_write",
    "rwsem_read",
    "rwsem_write",
    "rt_mutex",
    "percpu_rwsem",
    "mutex",
    "semaphore",
];
/// Names of vectors (`softirq_to_name`, kernel/softirq.c).
const SOFT_NAMES: [&str; 10] =
    ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"];

fn soft_name(vector: usize) -> String {
    SOFT_NAMES.get(vector).map_or_else(|| format!("softirq_{vector}"), |name| (*name).to_owned())
}

/// `REQ_OP_*` (include/linux/blk_types.h, 6.18).
fn operation(number: u32) -> String {
    match number {
        0 => "read".into(),
        1 => "write".into(),
        2 => "flush".into(),
        3 => "discard".into(),
        5 => "secure_erase".into(),
        9 => "write_zeroes".into(),
        34 => "driver_in".into(),
        35 => "driver_out".into(),
        number => format!("op_{number}"),
    }
}

pub(super) fn distribution(kept: &Histogram) -> Distribution {
    let mut all = Distribution::default();
    all.add(kept);
    all
}

/// Collects samples.
#[derive(Debug, Default)]
pub(super) struct Samples(pub(super) Vec<Sample>);

impl Samples {
    /// An amount.
    pub(super) fn sum<L: Into<Cow<'static, str>>, const N: usize>(&mut self, name: &str, labels: [L; N], sum: u64) {
        self.push(name, labels, Value::Sum(sum));
    }

    /// A level.
    pub(super) fn gauge<L: Into<Cow<'static, str>>, const N: usize>(&mut self, name: &str, labels: [L; N], level: f64) {
        self.push(name, labels, Value::Gauge(level));
    }

    /// A distribution.
    pub(super) fn distribution<L: Into<Cow<'static, str>>, const N: usize>(
        &mut self,
        name: &str,
        labels: [L; N],
        all: Distribution,
    ) {
        self.push(name, labels, Value::Distribution(Box::new(all)));
    }

    /// A distribution, if it has values.
    fn some<const N: usize>(&mut self, name: &str, labels: [&'static str; N], all: Distribution) {
        if all.count() > 0 {
            self.distribution(name, labels, all);
        }
    }

    fn tally(&mut self, kind: &'static str, name: String, tally: Tally) {
        self.sum("interrupts", [kind.to_owned(), name.clone()], tally.count);
        self.sum("interrupt_ns", [kind.to_owned(), name], tally.ns);
    }

    fn push<L: Into<Cow<'static, str>>, const N: usize>(&mut self, name: &str, labels: [L; N], value: Value) {
        let Some(metric) = metric(name) else {
            debug_assert!(false, "no metric {name}");
            return;
        };
        debug_assert_eq!(metric.labels.len(), N, "labels of {name}");
        self.0.push(Sample { metric, labels: labels.map(Into::into).into(), value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(samples: &Samples, name: &str) -> Vec<(String, u64)> {
        let of = samples.0.iter().filter(|sample| sample.metric.name == name);
        of.map(|sample| {
            let Value::Sum(sum) = sample.value else { panic!("{name} is no sum") };
            (sample.labels.join(" "), sum)
        })
        .collect()
    }

    fn slot(tgid: u32, ns: u64, name: &[u8]) -> ProcessSlot {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name);
        ProcessSlot { ns, cgroup: 0, tgid, zero: 0, comm }
    }

    #[test]
    fn those_that_use_most_have_rows_and_the_rest_is_summed_up() {
        let mut kept = Kept { unnamed_ns: 5, ..Kept::default() };
        for pid in 1..=30 {
            kept.add_process(&slot(pid, u64::from(pid) * 100, b"worker"));
        }
        kept.add_process(&slot(30, 7, b"worker"));
        let mut samples = Samples::default();
        kept.cpu(&mut samples, |time, _| time.cgroup_path = Some("/a".into()));
        let rows = values(&samples, "cpu_process_ns");
        assert_eq!(rows.len(), MOST_PROCESSES + 1);
        assert_eq!(rows[0], ("30 worker /a".to_owned(), 3007));
        assert_eq!(rows.last().unwrap(), &("others  ".to_owned(), (1..=10).sum::<u64>() * 100 + 5));
    }

    #[test]
    fn interrupts_have_names() {
        let mut kept = Kept::default();
        kept.soft[3] = Tally { count: 2, ns: 30 };
        kept.hard.insert(42, Tally { count: 7, ns: 70 });
        let mut samples = Samples::default();
        kept.interrupts(&mut samples, |irq| format!("disk {irq}"));
        assert_eq!(values(&samples, "interrupts"), [("hard disk 42".to_owned(), 7), ("soft NET_RX".to_owned(), 2)]);
        assert_eq!(values(&samples, "interrupt_ns"), [("hard disk 42".to_owned(), 70), ("soft NET_RX".to_owned(), 30)]);
    }

    fn times(values: &[u64]) -> Histogram {
        let mut times = Histogram::EMPTY;
        for value in values {
            times.buckets[mcptrace_wire::bucket_of(*value)] += 1;
            times.sum += value;
            times.max = times.max.max(*value);
            times.min_plus_1 = if times.min_plus_1 == 0 { value + 1 } else { times.min_plus_1.min(value + 1) };
        }
        times
    }

    /// Label, number of values and their sum.
    fn distributions(samples: &Samples, name: &str) -> Vec<(String, u64, u64)> {
        let of = samples.0.iter().filter(|sample| sample.metric.name == name);
        of.map(|sample| {
            let Value::Distribution(all) = &sample.value else { panic!("{name} is no distribution") };
            (sample.labels.join(" "), all.count(), all.extent().0)
        })
        .collect()
    }

    /// A bank in which each number is another one.
    fn shared() -> SharedBank {
        SharedBank {
            stalls: std::array::from_fn(|kind| times(&vec![1000; kind + 1])),
            connect: times(&[50, 60]),
            locks: std::array::from_fn(|kind| times(&vec![10; kind + 1])),
            counts: std::array::from_fn(|count| 100 + count as u64),
            connect_errors: std::array::from_fn(|errno| {
                [(0, 2), (111, 5)].iter().find(|(of, _)| *of == errno).map_or(0, |(_, n)| *n)
            }),
            killed: std::array::from_fn(|signal| {
                [(9, 3), (11, 4)].iter().find(|(of, _)| *of == signal).map_or(0, |(_, n)| *n)
            }),
        }
    }

    fn of_shared(take: impl Fn(&Kept, &mut Samples)) -> Samples {
        let mut kept = Kept::default();
        kept.set_shared(&shared());
        let mut samples = Samples::default();
        take(&kept, &mut samples);
        samples
    }

    fn sums(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
        pairs.iter().map(|(label, sum)| ((*label).to_owned(), *sum)).collect()
    }

    #[test]
    fn what_cpus_kept_adds_up() {
        let bank = |factor: u64| CpuBank {
            runq: times(&[100 * factor]),
            voluntary: 2 * factor,
            involuntary: 3 * factor,
            unknown_waits: 0,
            unnamed_ns: 5 * factor,
            soft: [Tally { count: 7 * factor, ns: 11 * factor }; 16],
        };
        let mut kept = Kept::default();
        kept.add_cpu(&bank(1));
        kept.add_cpu(&bank(10));
        assert_eq!((kept.voluntary, kept.involuntary, kept.unnamed_ns), (22, 33, 55));
        assert_eq!(kept.soft, [Tally { count: 77, ns: 121 }; 16]);
        let mut samples = Samples::default();
        kept.cpu(&mut samples, |_, _| ());
        kept.runq(&mut samples);
        assert_eq!(values(&samples, "context_switches"), sums(&[("voluntary", 22), ("involuntary", 33)]));
        assert_eq!(values(&samples, "cpu_process_ns"), sums(&[("others  ", 55)]));
        assert_eq!(distributions(&samples, "runq_latency_ns"), [(String::new(), 2, 1100)]);
    }

    #[test]
    fn who_has_used_no_time_has_no_row_and_nothing_left_over_has_none_either() {
        let mut kept = Kept::default();
        kept.add_process(&slot(7, 0, b"idle"));
        kept.add_process(&slot(8, 1, b"first"));
        kept.add_process(&ProcessSlot { cgroup: 9, ..slot(8, 1, b"second") });
        assert_eq!(kept.processes[&8].cgroup, 9);
        let mut samples = Samples::default();
        kept.cpu(&mut samples, |_, _| ());
        assert_eq!(values(&samples, "cpu_process_ns"), sums(&[("8 first ", 2)]));
    }

    #[test]
    fn counts_of_all_cpus_stand_under_their_names() {
        let tcp = of_shared(Kept::tcp);
        for (name, count) in
            [("tcp_connects", 106), ("tcp_connected", 107), ("tcp_accepts", 108), ("tcp_retransmits", 109)]
        {
            assert_eq!(values(&tcp, name), sums(&[("", count)]), "{name}");
        }
        assert_eq!(values(&tcp, "tcp_resets"), sums(&[("sent", 110), ("received", 111)]));
        assert_eq!(distributions(&tcp, "tcp_connect_ns"), [(String::new(), 2, 110)]);
        assert_eq!(values(&tcp, "tcp_connect_failures"), sums(&[("ABORTED", 2), ("ECONNREFUSED", 5)]));

        let processes = of_shared(Kept::processes);
        for (name, count) in [("process_forks", 100), ("thread_starts", 101), ("process_execs", 102)] {
            assert_eq!(values(&processes, name), sums(&[("", count)]), "{name}");
        }
        assert_eq!(values(&processes, "process_exits"), sums(&[("success", 103), ("failure", 104), ("signal", 7)]));
        assert_eq!(values(&processes, "fatal_signals"), sums(&[("SIGKILL", 3), ("SIGSEGV", 4)]));
    }

    #[test]
    fn stalls_and_locks_stand_under_their_kinds() {
        let memory = of_shared(Kept::memory);
        assert_eq!(values(&memory, "oom_kills"), sums(&[("", 105)]));
        let stalls = [("direct", 1, 1000), ("cgroup", 2, 2000), ("compaction", 3, 3000)];
        assert_eq!(distributions(&memory, "reclaim_stall_ns"), stalls.map(|(kind, n, ns)| (kind.to_owned(), n, ns)));
        let locks = distributions(&of_shared(Kept::locks), "lock_wait_ns");
        assert_eq!(locks.len(), mcptrace_wire::LOCK_KINDS);
        for (flags, name) in
            [(1, "spinlock"), (0b11, "rwlock_read"), (1 << 3, "rt_mutex"), (1 << 5, "mutex"), (0, "semaphore")]
        {
            let kind = mcptrace_wire::lock_kind(flags) as u64 + 1;
            assert!(locks.contains(&(name.to_owned(), kind, 10 * kind)), "{name}: {locks:?}");
        }
    }

    #[test]
    fn without_a_bank_of_all_cpus_counts_are_zero_and_kinds_are_absent() {
        let mut samples = Samples::default();
        let kept = Kept::default();
        kept.memory(&mut samples);
        kept.locks(&mut samples);
        kept.tcp(&mut samples);
        assert_eq!(values(&samples, "oom_kills"), sums(&[("", 0)]));
        assert!(
            distributions(&samples, "lock_wait_ns").is_empty() && distributions(&samples, "tcp_connect_ns").is_empty()
        );
    }

    #[test]
    fn a_kind_of_which_there_was_none_has_no_row() {
        let mut kept = Kept::default();
        let mut bank = shared();
        bank.stalls[1] = Histogram::EMPTY;
        bank.locks.fill(Histogram::EMPTY);
        kept.set_shared(&bank);
        let mut samples = Samples::default();
        kept.memory(&mut samples);
        kept.locks(&mut samples);
        let stalls: Vec<_> = distributions(&samples, "reclaim_stall_ns").into_iter().map(|(kind, ..)| kind).collect();
        assert_eq!(stalls, ["direct", "compaction"]);
        assert_eq!(distributions(&samples, "lock_wait_ns"), []);
    }

    #[test]
    fn requests_are_told_apart_by_device_and_operation() {
        let stats = BlockStats { queue: times(&[5]), service: times(&[7, 8]), errors: 1, bytes: 4096 };
        let device = |operation| (DeviceKey { major: 8, minor: 16, operation, bank: 0 }, Box::new(stats));
        let kept = Kept { devices: [1, 0, 3, 99].map(device).into(), ..Kept::default() };
        let mut samples = Samples::default();
        kept.block(&mut samples, |major, minor| format!("{major}:{minor}"));
        let of = |sum| sums(&["8:16 write", "8:16 read", "8:16 discard", "8:16 op_99"].map(|label| (label, sum)));
        assert_eq!(values(&samples, "block_requests"), of(2));
        assert_eq!(values(&samples, "block_bytes"), of(4096));
        assert_eq!(values(&samples, "block_errors"), of(1));
        assert_eq!(distributions(&samples, "block_queue_ns")[0], ("8:16 write".to_owned(), 1, 5));
        assert_eq!(distributions(&samples, "block_service_ns")[1], ("8:16 read".to_owned(), 2, 15));
    }
}
