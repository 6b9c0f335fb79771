//! What the rules look at: two readings of the system and the reports of probes. Pure.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{
    Focus, Number,
    finding::Who,
    system::{Cgroup, CpuTimes, Disk, Process, System},
};
use crate::report::{Envelope, Report, Row, Series, Stack};

/// What the rules look at.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Before.
    pub before: System,
    /// After.
    pub after: System,
    /// CPUs.
    pub cpus: u32,
    /// What probes found, by name. A probe that did not run is absent.
    pub found: BTreeMap<&'static str, Envelope>,
    /// The only area that was looked at, if it was not all of them.
    pub focus: Option<Focus>,
    /// Processes that are not to be blamed: this one.
    pub own: u32,
    /// What was not looked at.
    pub notes: Vec<String>,
}

/// A process and what it did between the readings.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// Process.
    pub pid: u32,
    /// What it is now.
    pub process: &'a Process,
    /// CPU seconds.
    pub cpu: f64,
    /// Bytes from and to disks.
    pub disk_bytes: u64,
}

impl Evidence {
    /// How long between the readings, in seconds.
    pub fn seconds(&self) -> f64 {
        self.after.at.duration_since(self.before.at).as_secs_f64().max(0.001)
    }

    /// CPU time between the readings.
    pub fn cpu(&self) -> CpuTimes {
        self.after.cpu.since(&self.before.cpu)
    }

    /// Share of CPU time that was used, from 0 to 1.
    pub fn cpu_used(&self) -> f64 {
        let cpu = self.cpu();
        if cpu.all > 0.0 { (cpu.busy + cpu.steal) / cpu.all } else { 0.0 }
    }

    /// Share of time in which somebody was stalled by a resource, from 0 to 1; `None` if the kernel does not say.
    pub fn stalled(&self, of: impl Fn(&super::system::Pressure) -> u64) -> Option<f64> {
        let (before, after) = (self.before.pressure.as_ref()?, self.after.pressure.as_ref()?);
        Some((of(after).saturating_sub(of(before)) as f64 / 1e6 / self.seconds()).min(1.0))
    }

    /// What every process did that was there at the end, most CPU first; without this one.
    pub fn processes(&self) -> Vec<Change<'_>> {
        let none = Process::default();
        let mut all: Vec<_> = self
            .after
            .processes
            .iter()
            .filter(|((pid, _), _)| *pid != self.own)
            .map(|(key, process)| {
                let before = self.before.processes.get(key).unwrap_or(&none);
                let disk = process.disk_bytes.unwrap_or(0).saturating_sub(before.disk_bytes.unwrap_or(0));
                Change { pid: key.0, process, cpu: (process.cpu - before.cpu).max(0.0), disk_bytes: disk }
            })
            .collect();
        all.sort_by(|a, b| b.cpu.total_cmp(&a.cpu).then(a.pid.cmp(&b.pid)));
        all
    }

    /// Who used most CPU time, in percent of one CPU.
    pub fn busiest(&self) -> Vec<Who> {
        let percent = |change: &Change<'_>| change.cpu / self.seconds() * 100.0;
        let all = self.processes();
        let rows = all.iter().take_while(|change| percent(change) >= 5.0).take(3);
        rows.map(|change| self.who(change.pid, percent(change), "% of one CPU")).collect()
    }

    /// A process with its part in something.
    pub fn who(&self, pid: u32, value: f64, unit: &str) -> Who {
        let named = self.after.processes.iter().find(|((one, _), _)| *one == pid).map(|(_, process)| &process.comm);
        let comm = named.cloned().unwrap_or_default();
        Who { pid: Some(pid), comm, ..part(value, unit) }
    }

    /// Whether a process was there at the end.
    pub fn is_there(&self, pid: u32) -> bool {
        self.after.processes.keys().any(|(one, _)| *one == pid)
    }

    /// The control groups of a process, if it was there at the end.
    pub fn cgroup_of(&self, pid: u32) -> Option<&[String]> {
        self.after.processes.iter().find(|((one, _), _)| *one == pid).map(|(_, process)| process.cgroups.as_slice())
    }

    /// What each disk did, by name.
    pub fn disks(&self) -> impl Iterator<Item = (&str, Disk)> {
        let before = &self.before.disks;
        self.after.disks.iter().map(|(name, after)| {
            let earlier = before.get(name).copied().unwrap_or_default();
            let change = Disk {
                requests: after.requests.saturating_sub(earlier.requests),
                bytes: after.bytes.saturating_sub(earlier.bytes),
                busy_ms: after.busy_ms.saturating_sub(earlier.busy_ms),
                queued_ms: after.queued_ms.saturating_sub(earlier.queued_ms),
            };
            (name.as_str(), change)
        })
    }

    /// What happened to each control group: now, and what was added.
    pub fn cgroups(&self) -> impl Iterator<Item = (&str, Cgroup)> {
        let before = &self.before.cgroups;
        self.after.cgroups.iter().map(|(path, after)| {
            let earlier = before.get(path).copied().unwrap_or_default();
            let change = Cgroup {
                periods: after.periods.saturating_sub(earlier.periods),
                throttled: after.throttled.saturating_sub(earlier.throttled),
                throttled_us: after.throttled_us.saturating_sub(earlier.throttled_us),
                limit_hits: after.limit_hits.saturating_sub(earlier.limit_hits),
                ..*after
            };
            (path.as_str(), change)
        })
    }

    /// Rows of a table.
    pub fn rows(&self, probe: &str) -> &[Row] {
        match self.report(probe) {
            Some(Report::Table(table)) => &table.rows,
            _ => &[],
        }
    }

    /// Series of a histogram.
    pub fn series(&self, probe: &str) -> &[Series] {
        match self.report(probe) {
            Some(Report::Histogram(histogram)) => &histogram.series,
            _ => &[],
        }
    }

    /// Stacks.
    pub fn stacks(&self, probe: &str) -> &[Stack] {
        match self.report(probe) {
            Some(Report::Stacks(stacks)) => &stacks.stacks,
            _ => &[],
        }
    }

    /// Events, be they the main report or beside it.
    pub fn events(&self, probe: &str) -> &[Row] {
        let beside = self.found.get(probe).and_then(|envelope| envelope.events.as_ref());
        match self.report(probe).filter(|report| matches!(report, Report::Events(_))).or(beside) {
            Some(Report::Events(events)) => &events.rows,
            _ => &[],
        }
    }

    /// How many events a probe counted, shown or not; 0 if it did not run.
    pub fn seen(&self, probe: &str) -> u64 {
        self.found.get(probe).and_then(|envelope| envelope.loss.seen).unwrap_or(0)
    }

    /// How many events each of those that were kept stands for.
    pub fn scale(&self, probe: &str) -> f64 {
        let kept = self.events(probe).len().max(1) as f64;
        (self.seen(probe) as f64 / kept).max(1.0)
    }

    /// Groups events by a field of a process, with how many each has, scaled to all that were counted; most first.
    pub fn by_process(&self, probe: &str, field: &str, unit: &str, wanted: impl Fn(&Row) -> bool) -> Vec<Who> {
        let rows: Vec<_> = self.events(probe).iter().filter(|row| wanted(row)).collect();
        let scale = self.scale(probe);
        let mut counts: HashMap<u32, (u64, String)> = HashMap::new();
        let comm_field = if field == "ppid" { "parent_comm".to_owned() } else { field.replace("pid", "comm") };
        for row in rows {
            let pid = number(row, field) as u32;
            if pid == 0 || pid == self.own {
                continue;
            }
            let entry = counts.entry(pid).or_default();
            entry.0 += 1;
            word(row, &comm_field).clone_into(&mut entry.1);
        }
        let mut who: Vec<_> = counts
            .into_iter()
            .map(|(pid, (count, comm))| Who { pid: Some(pid), comm, ..part(self.per_second(count) * scale, unit) })
            .collect();
        sort(&mut who);
        who
    }

    /// The numbers that are always worth showing.
    pub fn numbers(&self) -> Vec<Number> {
        let cpu = self.cpu();
        let percent = |part: f64| if cpu.all > 0.0 { part / cpu.all * 100.0 } else { 0.0 };
        let mut numbers = vec![
            Number::new("seconds", self.seconds(), "s"),
            Number::new("cpus", self.cpus.into(), ""),
            Number::new("cpu_used", self.cpu_used() * 100.0, "%"),
            Number::new("cpu_interrupts", percent(cpu.interrupts), "%"),
            Number::new("cpu_steal", percent(cpu.steal), "%"),
            Number::new(
                "forks_and_threads",
                self.per_second(self.after.forks.saturating_sub(self.before.forks)),
                "1/s",
            ),
            Number::new(
                "context_switches",
                self.per_second(self.after.switches.saturating_sub(self.before.switches)),
                "1/s",
            ),
        ];
        let stalls = [
            ("cpu_stalled", self.stalled(|one| one.cpu_us)),
            ("memory_stalled", self.stalled(|one| one.memory_us)),
            ("io_stalled", self.stalled(|one| one.io_us)),
            ("io_stalled_all", self.stalled(|one| one.io_full_us)),
        ];
        numbers.extend(stalls.into_iter().filter_map(|(name, share)| Some(Number::new(name, share? * 100.0, "%"))));
        if let Some((available, all)) = self.after.memory {
            numbers.push(Number::new("memory_available", available as f64 / all.max(1) as f64 * 100.0, "%"));
        }
        let busiest = self.disks().map(|(_, disk)| disk.busy_ms as f64 / 10.0 / self.seconds()).fold(0.0, f64::max);
        numbers.push(Number::new("busiest_disk", busiest.min(100.0), "%"));
        for (name, probe) in [("runq_wait_p99", "runq_latency"), ("disk_p99", "block_latency")] {
            let worst = self.series(probe).iter().filter(|one| one.count >= 20).map(|one| one.p99).max();
            numbers.extend(worst.map(|ns| Number::new(name, ns as f64 / 1e6, "ms")));
        }
        let counted = ["process_exec", "signals", "syscall_errors", "fs_sync", "tcp_retransmits", "packet_drops"];
        let ran = counted.iter().filter(|probe| self.found.contains_key(**probe));
        numbers.extend(ran.map(|probe| Number::new(probe, self.per_second(self.seen(probe)), "1/s")));
        numbers
    }

    /// A count as a rate.
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds()
    }

    fn report(&self, probe: &str) -> Option<&Report> {
        self.found.get(probe)?.report.as_ref()
    }
}

/// Nobody, with a part in something.
pub fn part(value: f64, unit: &str) -> Who {
    let rounded = Number::new("", value, unit);
    Who { value: rounded.value, unit: rounded.unit, ..Who::default() }
}

/// Most first.
pub fn sort(who: &mut [Who]) {
    who.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.pid.cmp(&b.pid)));
}

/// A number of a row; 0 if it has none.
pub fn number(row: &Row, field: &str) -> u64 {
    row.get(field).and_then(Value::as_u64).unwrap_or(0)
}

/// A word of a row; empty if it has none.
pub fn word<'a>(row: &'a Row, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or("")
}

/// The filter of a call to make next about a process, if one is known.
pub fn about(who: &[Who]) -> Value {
    who.first().and_then(|one| one.pid).map_or_else(|| json!({}), |pid| json!({ "pid": pid }))
}
