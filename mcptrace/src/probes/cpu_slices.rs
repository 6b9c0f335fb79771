//! How long threads run at a stretch, how often they switch and migrate.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{GroupKey, Slices};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    names::{self, Names, Who},
    options::By,
    plan_of, put,
};
use crate::{
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row, Series},
};

/// Groups that are told apart: 2.5 KB each.
const MOST_GROUPS: u32 = 1024;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct CpuSlices {
    by: By,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
}

/// Slices of one group, of all CPUs.
#[derive(Clone, Debug, Default)]
struct Sum {
    on_cpu: Distribution,
    voluntary: u64,
    involuntary: u64,
    migrations: u64,
}

impl Probe for CpuSlices {
    const NAME: &'static str = "cpu_slices";
    const SUMMARY: &'static str = "How long do threads run at a stretch, and how often do they switch and migrate?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Time from when a thread gets a CPU to when it leaves it, interrupts in between included. count is the number \
        of slices; beside it voluntary (it had to wait, or ended), involuntary (it could have gone on: preempted or yielded) and migrations \
        (moved to another CPU). Many short voluntary slices: it waits for I/O, locks or messages. Many involuntary ones: more runnable threads \
        than CPUs. min_duration_us leaves out shorter slices, with their switches. A thread that runs when tracing begins is dropped as \
        start_missing, one that never leaves its CPU is not seen. By cpu, a migration counts for the CPU that decided it.";
    const NEXT: &'static [&'static str] = &[
        "involuntary switches: runq_latency shows the waits that follow",
        "short voluntary slices: syscall_latency, or offcpu_stacks for what they wait for",
        "whose: options.by = comm, pid or container",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"cpu_slices","options":{"by":"comm"},"seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/cpu_slices.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("switch", "sched_switch"), Attach::tracepoint("migrate", "sched_migrate_task")];
    const NEEDS: &'static [&'static str] = &["TASK_PID", "TASK_TGID", "TASK_COMM", "TASK_LEADER", "TASK_STATE"];
    const COUNTS: &'static str = "switch";
    const COST_NS: f64 = 150.0;
    const GROUPS: &'static [By] = &[By::Total, By::Pid, By::Comm, By::Cpu, By::Container];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        names::group(&mut plan, options.by);
        if names::is_grouped(options.by) {
            plan.map_entries.push(("GROUPS", MOST_GROUPS));
        }
        Ok((Self { by: options.by }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let cpus: Vec<Slices> = maps.per_cpu("BY_CPU")?.into_iter().next().unwrap_or_default();
        let groups = if names::is_grouped(self.by) { maps.hash("GROUPS")? } else { BTreeMap::new() };
        Ok(found(self.by, &cpus, &groups, &Names::read(maps)?))
    }

    fn fields() -> Vec<Field> {
        let switches = ["voluntary", "involuntary"].map(|name| Field::new(name, "switches"));
        let mut fields = vec![Field::new("on_cpu", "ns")];
        fields.extend(switches);
        fields.push(Field::new("migrations", "migrations"));
        fields
    }
}

fn found(by: By, cpus: &[Slices], groups: &BTreeMap<GroupKey, Slices>, names: &Names) -> Found {
    let rest = sum(cpus);
    let mut notes = Vec::new();
    let mut series = match by {
        By::Cpu => by_cpu(cpus),
        By::Pid | By::Comm | By::Container => by_group(by, groups, names),
        By::Total => vec![rest.series(Row::new())],
    };
    let mut delivered: u64 = series.iter().map(|one: &Series| one.count).sum();
    let ungrouped = names::is_grouped(by).then_some(&rest).filter(|rest| rest.on_cpu.count() > 0);
    if let Some(rest) = ungrouped {
        let count = rest.on_cpu.count();
        delivered += count;
        notes.push(format!(
            "{count} slices are of groups beyond the first {MOST_GROUPS}; they stand in `others` together."
        ));
    }
    series.sort_by_key(|one| std::cmp::Reverse(one.count));
    let histogram = Histogram {
        unit: "ns".into(),
        key: names::key_fields(by),
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: ungrouped.map(|rest| Box::new((&rest.series(Row::new())).into())),
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes }
}

fn sum(all: &[Slices]) -> Sum {
    let mut sum = Sum::default();
    for one in all {
        sum.add(one);
    }
    sum
}

impl Sum {
    fn add(&mut self, one: &Slices) {
        self.on_cpu.add(&one.on_cpu);
        self.voluntary += one.voluntary;
        self.involuntary += one.involuntary;
        self.migrations += one.migrations;
    }

    fn series(&self, key: Row) -> Series {
        let mut series = self.on_cpu.series(key);
        put(&mut series.also, "voluntary", self.voluntary);
        put(&mut series.also, "involuntary", self.involuntary);
        put(&mut series.also, "migrations", self.migrations);
        series
    }
}

fn by_cpu(cpus: &[Slices]) -> Vec<Series> {
    let of_cpu = |(cpu, slices): (usize, &Slices)| {
        let sum = sum(std::slice::from_ref(slices));
        let any = sum.on_cpu.count() + sum.migrations > 0;
        any.then(|| sum.series(Row::from_iter([("cpu".to_owned(), cpu.into())])))
    };
    cpus.iter().enumerate().filter_map(of_cpu).collect()
}

fn by_group(by: By, groups: &BTreeMap<GroupKey, Slices>, names: &Names) -> Vec<Series> {
    let mut sums: BTreeMap<Who, Sum> = BTreeMap::new();
    for (key, group) in groups {
        sums.entry(names.group(by, key.pid, &key.comm, &group.process)).or_default().add(group);
    }
    sums.into_iter().map(|(who, sum)| sum.series(who.row())).collect()
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::{Histogram as Kept, Process};

    use super::*;

    fn slices(bucket: usize, count: u64) -> Slices {
        let mut on_cpu = Kept::EMPTY;
        on_cpu.buckets[bucket] = count;
        let process = Process { cgroup: 0, comm: *b"worker\0\0\0\0\0\0\0\0\0\0" };
        Slices { on_cpu, voluntary: count - 1, involuntary: 1, migrations: 2, process }
    }

    #[test]
    fn cpus_add_up_in_total_and_stand_apart_by_cpu() {
        let cpus = [slices(3, 2), slices(4, 5)];
        let total = found(By::Total, &cpus, &BTreeMap::new(), &Names::default());
        let Some(Report::Histogram(histogram)) = total.report else { panic!() };
        assert_eq!((total.delivered, histogram.series.len()), (7, 1));
        let also = serde_json::json!({"voluntary": 5, "involuntary": 2, "migrations": 4});
        assert_eq!(serde_json::json!(histogram.series[0].also), also);
        let Some(Report::Histogram(by_cpu)) = found(By::Cpu, &cpus, &BTreeMap::new(), &Names::default()).report else {
            panic!()
        };
        assert_eq!((by_cpu.series.len(), &by_cpu.series[0].key["cpu"]), (2, &1.into()));
    }

    #[test]
    fn groups_that_found_no_room_are_counted_in_others() {
        let key = GroupKey { pid: 7, zero: 0, comm: [0; 16] };
        let found = found(By::Pid, &[slices(3, 4)], &BTreeMap::from([(key, slices(5, 3))]), &Names::default());
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((found.delivered, histogram.others.unwrap().count), (7, 4));
        assert_eq!((&histogram.series[0].key["pid"], &histogram.series[0].key["comm"]), (&7.into(), &"worker".into()));
    }
}
