//! What the kernel counts by itself, read before and after: /proc and the control groups' files. Costs no tracing.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use procfs::{Current as _, CurrentSI as _};

use crate::text;

/// Control groups looked at, at most.
const MOST_CGROUPS: usize = 4_096;
/// Processes looked at, at most.
const MOST_PROCESSES: usize = 16_384;
/// A limit of memory above this is none (cgroup v1 writes a page-aligned i64::MAX).
const NO_LIMIT: u64 = 1 << 60;

/// What was read at one moment. What cannot be read is absent.
#[derive(Clone, Debug)]
pub struct System {
    /// When.
    pub at: Instant,
    /// CPU time of all CPUs.
    pub cpu: CpuTimes,
    /// Processes and threads made since boot.
    pub forks: u64,
    /// Context switches since boot.
    pub switches: u64,
    /// Time in which somebody was stalled, in microseconds since boot, by resource.
    pub pressure: Option<Pressure>,
    /// Memory that programs can still get, and all there is, in bytes.
    pub memory: Option<(u64, u64)>,
    /// /proc/vmstat.
    pub vm: HashMap<String, i64>,
    /// Disks by name; partitions and empty devices left out.
    pub disks: HashMap<String, Disk>,
    /// TCP segments sent by this network namespace since boot.
    pub tcp_segments_sent: u64,
    /// Processes by pid and start time.
    pub processes: HashMap<(u32, u64), Process>,
    /// Control groups by path.
    pub cgroups: HashMap<String, Cgroup>,
}

/// CPU time in seconds since boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTimes {
    /// In programs and the kernel on their behalf.
    pub busy: f64,
    /// Of `busy`, in the kernel.
    pub system: f64,
    /// In interrupts, hard and soft.
    pub interrupts: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
    /// All, idle included.
    pub all: f64,
}

/// See `Documentation/accounting/psi.rst`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    /// CPU: some tasks wait.
    pub cpu_us: u64,
    /// Memory: some tasks wait.
    pub memory_us: u64,
    /// Memory: all tasks wait.
    pub memory_full_us: u64,
    /// I/O: some tasks wait.
    pub io_us: u64,
    /// I/O: all tasks wait.
    pub io_full_us: u64,
}

/// One disk (Documentation/admin-guide/iostats.rst).
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// Reads and writes completed.
    pub requests: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Time in which anything was under way, in milliseconds.
    pub busy_ms: u64,
    /// Time weighted with what was under way, in milliseconds.
    pub queued_ms: u64,
}

/// One process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Command name.
    pub comm: String,
    /// CPU time in seconds.
    pub cpu: f64,
    /// Threads.
    pub threads: u64,
    /// Bytes read from and written to disks; absent where that is not ours to know.
    pub disk_bytes: Option<u64>,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Its control groups, one for each hierarchy; the root is left out.
    pub cgroups: Vec<String>,
}

/// One control group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cgroup {
    /// Periods with a quota, and those in which it was used up.
    pub periods: u64,
    /// See `periods`.
    pub throttled: u64,
    /// Time for which it was held, summed over CPUs, in microseconds.
    pub throttled_us: u64,
    /// Memory used, in bytes.
    pub memory: u64,
    /// Of this, caches that can go at once: files that were not used lately.
    pub cache: u64,
    /// Its limit, in bytes; 0 for none.
    pub memory_limit: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
}

impl System {
    /// Reads it all; takes some milliseconds, and more with many processes.
    pub fn read() -> Self {
        let kernel = procfs::KernelStats::current().ok();
        let total = kernel.as_ref().map(|kernel| &kernel.total);
        let memory = procfs::Meminfo::current().ok();
        Self {
            at: Instant::now(),
            cpu: total.map_or_else(CpuTimes::default, CpuTimes::of),
            forks: kernel.as_ref().map_or(0, |kernel| kernel.processes),
            switches: kernel.as_ref().map_or(0, |kernel| kernel.ctxt),
            pressure: pressure(),
            memory: memory.and_then(|memory| Some((memory.mem_available?, memory.mem_total))),
            vm: procfs::vmstat().unwrap_or_default(),
            disks: disks(),
            tcp_segments_sent: procfs::net::snmp().map_or(0, |snmp| snmp.tcp_out_segs),
            processes: processes(),
            cgroups: cgroups(),
        }
    }

    /// The change of a counter of /proc/vmstat since an earlier reading.
    pub fn vm_change(&self, earlier: &Self, name: &str) -> u64 {
        let of = |system: &Self| system.vm.get(name).copied().unwrap_or(0);
        of(self).saturating_sub(of(earlier)).max(0).unsigned_abs()
    }
}

impl CpuTimes {
    fn of(ticks: &procfs::CpuTime) -> Self {
        let second = procfs::ticks_per_second() as f64;
        let seconds = |ticks: u64| ticks as f64 / second;
        let interrupts = seconds(ticks.irq.unwrap_or(0) + ticks.softirq.unwrap_or(0));
        let (system, steal) = (seconds(ticks.system), seconds(ticks.steal.unwrap_or(0)));
        let busy = seconds(ticks.user + ticks.nice) + system + interrupts;
        Self { busy, system, interrupts, steal, all: busy + steal + seconds(ticks.idle + ticks.iowait.unwrap_or(0)) }
    }

    /// What has been added since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: f64, then: f64| (now - then).max(0.0);
        Self {
            busy: less(self.busy, earlier.busy),
            system: less(self.system, earlier.system),
            interrupts: less(self.interrupts, earlier.interrupts),
            steal: less(self.steal, earlier.steal),
            all: less(self.all, earlier.all),
        }
    }
}

fn pressure() -> Option<Pressure> {
    let cpu = procfs::CpuPressure::current().ok()?;
    let memory = procfs::MemoryPressure::current().ok()?;
    let io = procfs::IoPressure::current().ok()?;
    Some(Pressure {
        cpu_us: cpu.some.total,
        memory_us: memory.some.total,
        memory_full_us: memory.full.total,
        io_us: io.some.total,
        io_full_us: io.full.total,
    })
}

fn disks() -> HashMap<String, Disk> {
    let all = procfs::diskstats().unwrap_or_default();
    let whole = |name: &str| Path::new("/sys/block").join(name).exists() && !name.starts_with("zram");
    let used = all.into_iter().filter(|disk| disk.reads + disk.writes > 0 && whole(&disk.name));
    let row = |disk: procfs::DiskStat| {
        let counts = Disk {
            requests: disk.reads + disk.writes,
            bytes: (disk.sectors_read + disk.sectors_written) * 512,
            busy_ms: disk.time_in_progress,
            queued_ms: disk.weighted_time_in_progress,
        };
        (disk.name, counts)
    };
    used.map(row).collect()
}

fn processes() -> HashMap<(u32, u64), Process> {
    let Ok(all) = procfs::process::all_processes() else { return HashMap::new() };
    all.flatten().take(MOST_PROCESSES).filter_map(|process| one_process(&process)).collect()
}

fn one_process(process: &procfs::process::Process) -> Option<((u32, u64), Process)> {
    let stat = process.stat().ok()?;
    let disk_bytes = process.io().ok().map(|io| io.read_bytes + io.write_bytes);
    let found = Process {
        comm: text::comm(stat.comm.as_bytes()),
        cpu: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        threads: stat.num_threads.unsigned_abs(),
        disk_bytes,
        resident: stat.rss * procfs::page_size(),
        cgroups: cgroups_of(stat.pid),
    };
    Some(((stat.pid.unsigned_abs(), stat.starttime), found))
}

/// Whether a process is there.
pub(super) fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// The lines of /proc/PID/cgroup end in the path (man 7 cgroups).
fn cgroups_of(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut paths: Vec<_> = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(str::to_owned).collect();
    paths.retain(|path| path != "/");
    paths.dedup();
    paths
}

/// Reads the groups of version 2 and, where those controllers are there, of version 1.
pub(super) fn cgroups() -> HashMap<String, Cgroup> {
    let mut found = HashMap::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory"] {
        let root = Path::new(root);
        if root.join("cgroup.procs").exists() {
            walk(root, &mut found);
        }
    }
    found
}

fn walk(root: &Path, found: &mut HashMap<String, Cgroup>) {
    let mut waiting: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        if found.len() >= MOST_CGROUPS {
            return;
        }
        let path = folder.strip_prefix(root).map_or_else(|_| String::new(), |rest| rest.to_string_lossy().into_owned());
        if !path.is_empty() {
            found.entry(format!("/{path}")).or_default().read(&folder);
        }
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(folders.map(|entry| entry.path()));
    }
}

impl Cgroup {
    /// The part of its limit that it uses, from 0 to 1; 0 if it has none.
    pub fn used(&self) -> f64 {
        if self.memory_limit > 0 { self.memory as f64 / self.memory_limit as f64 } else { 0.0 }
    }

    /// The same without what can go at once.
    pub fn needed(&self) -> f64 {
        Self { memory: self.memory.saturating_sub(self.cache), ..*self }.used()
    }

    /// Adds what the files of a group say; those of the other version are elsewhere or not there.
    fn read(&mut self, folder: &Path) {
        let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let number = |name: &str| file(name).trim().parse::<u64>().unwrap_or(0);
        let cpu = file("cpu.stat");
        self.periods = self.periods.max(keyed(&cpu, "nr_periods"));
        self.throttled = self.throttled.max(keyed(&cpu, "nr_throttled"));
        let throttled = keyed(&cpu, "throttled_usec").max(keyed(&cpu, "throttled_time") / 1000);
        self.throttled_us = self.throttled_us.max(throttled);
        let stat = file("memory.stat");
        self.cache = self.cache.max(keyed(&stat, "inactive_file")).max(keyed(&stat, "total_inactive_file"));
        self.memory = self.memory.max(number("memory.current")).max(number("memory.usage_in_bytes"));
        let limit = number("memory.max").max(number("memory.limit_in_bytes"));
        self.memory_limit = if limit >= NO_LIMIT { self.memory_limit } else { self.memory_limit.max(limit) };
        let hits = keyed(&file("memory.events"), "max").max(number("memory.failcnt"));
        self.limit_hits = self.limit_hits.max(hits);
    }
}

/// The number of a key in lines of `key number`; 0 if it is not there.
fn keyed(text: &str, key: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, number)| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_numbers() {
        let text = "nr_periods 12\nnr_throttled 3\nthrottled_usec 4567\n";
        assert_eq!((keyed(text, "nr_periods"), keyed(text, "throttled_usec"), keyed(text, "nr")), (12, 4567, 0));
    }

    #[test]
    fn this_machine_has_time_and_this_process() {
        let system = System::read();
        assert!(system.cpu.all >= system.cpu.busy && system.cpu.busy > 0.0, "{:?}", system.cpu);
        let own = system.processes.iter().find(|((pid, _), _)| *pid == std::process::id()).unwrap().1;
        assert!(own.threads >= 1 && own.resident > 0, "{own:?}");
        assert!(system.memory.is_some_and(|(available, all)| available <= all));
    }
}
