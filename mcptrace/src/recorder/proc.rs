//! What the kernel says in files under /proc: counters since boot, of which ticks have the difference, and levels.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use super::kept::Samples;

/// The files. Each stays open: reading from the start gives new values.
const FILES: [&str; 11] = [
    "/proc/stat",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/vmstat",
    "/proc/diskstats",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
];

/// The most of a file that is read: /proc/stat has a number for each interrupt.
const LONGEST: usize = 256 << 10;

/// Reads the files and remembers the counters.
#[derive(Debug)]
pub(super) struct Proc {
    files: Vec<Option<File>>,
    buffer: Vec<u8>,
    counters: HashMap<String, u64>,
    clock_ticks: u64,
    started: bool,
}

impl Proc {
    /// Opens what there is.
    pub(super) fn open() -> Self {
        Self {
            files: FILES.iter().map(|path| File::open(path).ok()).collect(),
            buffer: vec![0; 16 << 10],
            counters: HashMap::new(),
            clock_ticks: rustix::param::clock_ticks_per_second().max(1),
            started: false,
        }
    }

    /// Whether the kernel tells about pressure (`CONFIG_PSI`, and not `psi=0`).
    pub(super) fn has_pressure(&self) -> bool {
        self.files.last().is_some_and(Option::is_some)
    }

    /// Samples of all files. The first call only remembers the counters: it has levels alone.
    pub(super) fn read(&mut self, samples: &mut Samples) {
        for (index, path) in FILES.into_iter().enumerate() {
            let Some(text) = self.text(index) else { continue };
            let mut found = Found { counters: &mut self.counters, samples, started: self.started };
            match path {
                "/proc/stat" => stat(&text, 1_000_000_000 / self.clock_ticks, &mut found),
                "/proc/loadavg" => loadavg(&text, &mut found),
                "/proc/meminfo" => meminfo(&text, &mut found),
                "/proc/vmstat" => vmstat(&text, &mut found),
                "/proc/diskstats" => diskstats(&text, &mut found),
                "/proc/net/dev" => devices(&text, &mut found),
                "/proc/net/snmp" | "/proc/net/netstat" => snmp(&text, &mut found),
                path => pressure(&text, path.rsplit('/').next().unwrap_or_default(), &mut found),
            }
        }
        self.started = true;
    }

    fn text(&mut self, index: usize) -> Option<String> {
        let file = self.files[index].as_ref()?;
        let mut length = 0;
        loop {
            if length == self.buffer.len() {
                if length >= LONGEST {
                    break;
                }
                self.buffer.resize(length * 2, 0);
            }
            match file.read_at(&mut self.buffer[length..], length as u64) {
                Ok(0) => break,
                Ok(more) => length += more,
                // Pressure is off although its files are there.
                Err(_) => return None,
            }
        }
        Some(String::from_utf8_lossy(&self.buffer[..length]).into_owned())
    }
}

/// Where values go.
struct Found<'a> {
    counters: &'a mut HashMap<String, u64>,
    samples: &'a mut Samples,
    started: bool,
}

impl Found<'_> {
    /// A counter since boot, of which the growth is a sample. One that begins again or has just appeared has none.
    fn counter<const N: usize>(&mut self, name: &'static str, labels: [&str; N], value: u64) {
        let key = format!("{name}\0{}", labels.join("\0"));
        let before = self.counters.insert(key, value);
        let grown = before.map(|before| value.saturating_sub(before));
        if let Some(grown) = grown.filter(|_| self.started) {
            self.samples.sum(name, labels.map(str::to_owned), grown);
        }
    }

    fn level<const N: usize>(&mut self, name: &'static str, labels: [&str; N], level: f64) {
        self.samples.gauge(name, labels.map(str::to_owned), level);
    }
}

/// The order of the numbers of a `cpu` line (proc_stat(5)); `guest` times are in `user` and `nice` as well.
const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

fn stat(text: &str, tick_ns: u64, found: &mut Found<'_>) {
    let mut cpus = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next().unwrap_or_default() {
            "cpu" => {
                for (mode, ticks) in MODES.iter().zip(words) {
                    found.counter("cpu_mode_ns", [mode], ticks.parse::<u64>().unwrap_or(0) * tick_ns);
                }
            }
            "procs_running" => found.level("threads_runnable", [], number(words.next())),
            "procs_blocked" => found.level("threads_blocked", [], number(words.next())),
            cpu if cpu.starts_with("cpu") => cpus += 1,
            _ => {}
        }
    }
    found.level("cpus_online", [], f64::from(cpus));
}

fn loadavg(text: &str, found: &mut Found<'_>) {
    let mut words = text.split_ascii_whitespace();
    found.level("load_1m", [], number(words.next()));
    let threads = words.nth(2).and_then(|word| word.split('/').nth(1));
    found.level("threads", [], number(threads));
}

fn meminfo(text: &str, found: &mut Found<'_>) {
    let kb = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        number(line.and_then(|line| line.split_ascii_whitespace().next())) * 1024.0
    };
    found.level("memory_total_bytes", [], kb("MemTotal"));
    found.level("memory_available_bytes", [], kb("MemAvailable"));
    found.level("memory_cached_bytes", [], kb("Cached") + kb("Buffers"));
    found.level("memory_dirty_bytes", [], kb("Dirty") + kb("Writeback"));
    found.level("swap_used_bytes", [], kb("SwapTotal") - kb("SwapFree"));
}

fn vmstat(text: &str, found: &mut Found<'_>) {
    let mut all = 0;
    for line in text.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        let value = value.parse().unwrap_or(0);
        match name {
            "pswpin" => found.counter("swap_pages", ["in"], value),
            "pswpout" => found.counter("swap_pages", ["out"], value),
            "pgfault" => all = value,
            // It stands behind pgfault, which counts major faults as well.
            "pgmajfault" => {
                found.counter("page_faults", ["major"], value);
                found.counter("page_faults", ["minor"], all.saturating_sub(value));
            }
            _ => {}
        }
    }
}

/// Whole devices only: partitions are in them, and loop and ram devices that were never used say nothing.
fn diskstats(text: &str, found: &mut Found<'_>) {
    for line in text.lines() {
        // Documentation/admin-guide/iostats.rst: numbers, name, then 9 is I/Os in progress and 10 the milliseconds with any.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(name), Some(in_flight), Some(busy_ms)) = (words.get(2), words.get(11), words.get(12)) else {
            continue;
        };
        let unused = [3, 7].iter().all(|index| words.get(*index) == Some(&"0"));
        if unused || is_partition(name) {
            continue;
        }
        found.level("block_in_flight", [name], number(Some(in_flight)));
        found.counter("block_busy_ns", [name], busy_ms.parse::<u64>().unwrap_or(0) * 1_000_000);
    }
}

fn is_partition(name: &str) -> bool {
    fs::exists(format!("/sys/class/block/{name}/partition")).unwrap_or(false)
}

fn devices(text: &str, found: &mut Found<'_>) {
    for line in text.lines() {
        let Some((name, counts)) = line.split_once(':') else { continue };
        let name = name.trim();
        let counts: Vec<u64> = counts.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        // A device that never carried a packet says nothing.
        if counts.len() < 16 || counts[1] == 0 && counts[9] == 0 {
            continue;
        }
        // Eight numbers for each direction: bytes, packets, errs, drop (proc_pid_net(5)).
        for (direction, counts) in [("received", &counts[..8]), ("sent", &counts[8..])] {
            for (metric, value) in ["net_bytes", "net_packets", "net_errors", "net_dropped"].into_iter().zip(counts) {
                found.counter(metric, [name, direction], *value);
            }
        }
    }
}

/// Lines in pairs: names, then values.
fn snmp(text: &str, found: &mut Found<'_>) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        for (name, value) in pair[0].split_ascii_whitespace().zip(pair[1].split_ascii_whitespace()) {
            let value = value.parse().unwrap_or(0);
            match (pair[0].split(':').next(), name) {
                (Some("Tcp"), "OutSegs") => found.counter("tcp_segments_sent", [], value),
                (Some("TcpExt"), "ListenDrops") => found.counter("tcp_listen_drops", [], value),
                _ => {}
            }
        }
    }
}

/// Documentation/accounting/psi.rst: totals are in microseconds.
fn pressure(text: &str, resource: &str, found: &mut Found<'_>) {
    for line in text.lines() {
        let total = line.rsplit_once("total=").and_then(|(_, total)| total.trim().parse::<u64>().ok()).unwrap_or(0);
        let metric = if line.starts_with("full") { "pressure_full_ns" } else { "pressure_some_ns" };
        found.counter(metric, [resource], total * 1000);
    }
}

fn number(word: Option<&str>) -> f64 {
    word.and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Names of hardware interrupts, read again when one comes that is not known.
#[derive(Debug, Default)]
pub(super) struct IrqNames(HashMap<u32, String>);

impl IrqNames {
    /// The name of an interrupt's handlers with its number: `virtio0-input.0 25`.
    pub(super) fn name(&mut self, irq: u32) -> String {
        if !self.0.contains_key(&irq) {
            self.0.extend(irq_names(&fs::read_to_string("/proc/interrupts").unwrap_or_default()));
        }
        self.0.entry(irq).or_insert_with(|| irq.to_string()).clone()
    }
}

/// Lines of /proc/interrupts: number, a count for each CPU, then chip, hardware number and handlers.
fn irq_names(text: &str) -> HashMap<u32, String> {
    let cpus = text.lines().next().unwrap_or_default().split_ascii_whitespace().count();
    let named = |line: &str| {
        let (irq, rest) = line.split_once(':')?;
        let irq = irq.trim().parse().ok()?;
        let words: Vec<&str> = rest.split_ascii_whitespace().skip(cpus + 2).collect();
        // A level or edge mark may stand between number and handlers.
        let words = words.iter().filter(|word| !matches!(**word, "Edge" | "Level" | "edge" | "level"));
        let name = words.copied().collect::<Vec<_>>().join(" ");
        Some((irq, crate::text::untrusted(format!("{name} {irq}").trim().as_bytes(), 64)))
    };
    text.lines().skip(1).filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::tick::Value;

    fn twice(first: &str, second: &str, parse: impl Fn(&str, &mut Found<'_>)) -> Vec<(String, f64)> {
        let mut counters = HashMap::new();
        let mut samples = Samples::default();
        parse(first, &mut Found { counters: &mut counters, samples: &mut Samples::default(), started: false });
        parse(second, &mut Found { counters: &mut counters, samples: &mut samples, started: true });
        let text = |sample: &crate::recorder::tick::Sample| {
            let value = match &sample.value {
                Value::Sum(sum) => *sum as f64,
                Value::Gauge(level) => *level,
                Value::Distribution(_) => panic!(),
            };
            (
                [sample.metric.name]
                    .into_iter()
                    .chain(sample.labels.iter().map(AsRef::as_ref))
                    .collect::<Vec<_>>()
                    .join(" "),
                value,
            )
        };
        samples.0.iter().map(text).collect()
    }

    fn of(found: &[(String, f64)], name: &str) -> f64 {
        found.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no {name} in {found:?}")).1
    }

    #[test]
    fn what_is_read_is_in_no_group_that_is_shed_with_programs() {
        let mut samples = Samples::default();
        let mut proc = Proc::open();
        (0..2).for_each(|_| proc.read(&mut samples));
        assert!(samples.0.len() > 20, "{samples:?}");
        for sample in &samples.0 {
            let shed = crate::recorder::programs::GROUPS.iter().any(|group| group.name == sample.metric.group);
            assert!(!shed, "{} goes on while {} is said not to be recorded", sample.metric.name, sample.metric.group);
        }
    }

    #[test]
    fn times_of_cpus_are_what_grew() {
        let line = |user, idle| {
            format!("cpu  {user} 0 5 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\ncpu1 1 2 3\nprocs_running 3\nprocs_blocked 1\n")
        };
        let found = twice(&line(100, 1000), &line(107, 1093), |text, found| stat(text, 10_000_000, found));
        assert!(
            (of(&found, "cpu_mode_ns user") - 70e6).abs() < 0.5 && (of(&found, "cpu_mode_ns idle") - 930e6).abs() < 0.5
        );
        assert!((of(&found, "cpus_online") - 2.0).abs() < 0.1 && (of(&found, "threads_runnable") - 3.0).abs() < 0.1);
    }

    #[test]
    fn a_device_that_appears_or_begins_again_has_no_growth() {
        let line = |name: &str, bytes| format!("Inter-|\n {name}: {bytes} 2 0 1 0 0 0 0 50 5 0 0 0 0 0 0\n");
        let found = twice(&line("eth0", 1000), &(line("eth0", 10) + &line("eth1", 700)), devices);
        assert!(of(&found, "net_bytes eth0 received").abs() < 0.1);
        assert!(!found.iter().any(|(name, _)| name.contains("eth1")));
        let again = twice(&line("eth0", 1000), &line("eth0", 1790), devices);
        assert!((of(&again, "net_bytes eth0 received") - 790.0).abs() < 0.1);
    }

    #[test]
    fn pressure_is_the_growth_of_its_total() {
        let line = |some, full| {
            format!(
                "some avg10=1.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"
            )
        };
        let found = twice(&line(100, 10), &line(350, 12), |text, found| pressure(text, "io", found));
        assert!(
            (of(&found, "pressure_some_ns io") - 250e3).abs() < 0.5
                && (of(&found, "pressure_full_ns io") - 2e3).abs() < 0.5
        );
    }

    #[test]
    fn minor_faults_are_all_but_the_major_ones() {
        let text = |all, major| format!("pswpin 1\npgfault {all}\npgmajfault {major}\n");
        let found = twice(&text(1000, 10), &text(1103, 13), vmstat);
        assert!(
            (of(&found, "page_faults minor") - 100.0).abs() < 0.1
                && (of(&found, "page_faults major") - 3.0).abs() < 0.1
        );
    }

    #[test]
    fn counters_of_tcp_stand_below_their_names() {
        let text = |segments| format!("Tcp: RtoMin InSegs OutSegs\nTcp: 200 7 {segments}\n");
        assert!((of(&twice(&text(10), &text(41), snmp), "tcp_segments_sent") - 31.0).abs() < 0.1);
    }

    #[test]
    fn interrupts_are_named_by_their_handlers() {
        let text = "           CPU0       CPU1\n  4:        31          0   IO-APIC   4-edge      ttyS0\n 25:   7  8  PCI-MSI 49152-edge  virtio0-input.0\nNMI: 0 0 Non-maskable\n";
        let names = irq_names(text);
        assert_eq!((names[&4].as_str(), names[&25].as_str(), names.len()), ("ttyS0 4", "virtio0-input.0 25", 2));
    }
}
