//! How long runnable threads wait for a CPU.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{GroupKey, Histogram as Kept, NamedHistogram};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    names::{self, Names, Who},
    options::By,
    plan_of,
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
pub struct RunqLatency {
    by: By,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
}

impl Probe for RunqLatency {
    const NAME: &'static str = "runq_latency";
    const SUMMARY: &'static str = "How long do runnable threads wait for a CPU?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Time from the moment a thread becomes runnable (woken, created, or taken off its CPU while it could have \
        gone on) to the moment it runs. On an idle machine a few microseconds; milliseconds mean more runnable threads than CPUs, or a \
        control group out of its quota. A thread that was already waiting when tracing began is dropped as start_missing. Filters look at \
        the thread that waits.";
    const NEXT: &'static [&'static str] = &[
        "long waits: runq_latency with options.by = comm, to see who waits",
        "short waits and a slow program all the same: syscall_latency with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"runq_latency","options":{"by":"comm"},"seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/runq_latency.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("wakeup", "sched_wakeup"),
        Attach::tracepoint("wakeup_new", "sched_wakeup_new"),
        Attach::tracepoint("switch", "sched_switch"),
    ];
    const NEEDS: &'static [&'static str] = &["TASK_PID", "TASK_TGID", "TASK_COMM", "TASK_LEADER", "TASK_STATE"];
    const COUNTS: &'static str = "switch";
    const COST_NS: f64 = 250.0;
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
        let cpus: Vec<Kept> = maps.per_cpu("BY_CPU")?.into_iter().next().unwrap_or_default();
        let groups = if names::is_grouped(self.by) { maps.hash("GROUPS")? } else { BTreeMap::new() };
        Ok(found(self.by, &cpus, &groups, &Names::read(maps)?))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("wait", "ns")]
    }
}

fn found(by: By, cpus: &[Kept], groups: &BTreeMap<GroupKey, NamedHistogram>, names: &Names) -> Found {
    let all = sum(cpus);
    let mut notes = Vec::new();
    let mut series = match by {
        By::Total => (all.count() > 0).then(|| all.series(Row::new())).into_iter().collect(),
        By::Cpu => by_cpu(cpus),
        By::Pid | By::Comm | By::Container => by_group(by, groups, names),
    };
    let grouped: u64 = series.iter().map(|one| one.count).sum();
    let ungrouped = names::is_grouped(by).then_some(&all).filter(|all| all.count() > 0);
    if let Some(all) = ungrouped {
        notes.push(format!(
            "{} waits are of groups beyond the first {MOST_GROUPS}; they stand in `others` together.",
            all.count()
        ));
    }
    series.sort_by_key(|one| std::cmp::Reverse(one.count));
    let histogram = Histogram {
        unit: "ns".into(),
        key: names::key_fields(by),
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: ungrouped.map(|all| Box::new((&all.series(Row::new())).into())),
    };
    let delivered = grouped + ungrouped.map_or(0, Distribution::count);
    Found { report: Some(Report::Histogram(histogram)), delivered, notes }
}

fn sum(cpus: &[Kept]) -> Distribution {
    let mut all = Distribution::default();
    for cpu in cpus {
        all.add(cpu);
    }
    all
}

fn by_cpu(cpus: &[Kept]) -> Vec<Series> {
    let of_cpu = |(cpu, kept): (usize, &Kept)| {
        let all = sum(std::slice::from_ref(kept));
        (all.count() > 0).then(|| all.series(Row::from_iter([("cpu".to_owned(), cpu.into())])))
    };
    cpus.iter().enumerate().filter_map(of_cpu).collect()
}

fn by_group(by: By, groups: &BTreeMap<GroupKey, NamedHistogram>, names: &Names) -> Vec<Series> {
    let mut sums: BTreeMap<Who, Distribution> = BTreeMap::new();
    for (key, group) in groups {
        sums.entry(names.group(by, key.pid, &key.comm, &group.process)).or_default().add(&group.histogram);
    }
    sums.into_iter().map(|(who, sum)| sum.series(who.row())).collect()
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::Process;

    use super::*;

    fn kept(bucket: usize, count: u64) -> Kept {
        let mut kept = Kept::EMPTY;
        kept.buckets[bucket] = count;
        kept
    }

    #[test]
    fn cpus_are_one_series_in_total_and_several_by_cpu() {
        let cpus = [kept(3, 2), Kept::EMPTY, kept(4, 5)];
        let total = found(By::Total, &cpus, &BTreeMap::new(), &Names::default());
        assert_eq!(total.delivered, 7);
        let Some(Report::Histogram(by_cpu)) = found(By::Cpu, &cpus, &BTreeMap::new(), &Names::default()).report else {
            panic!()
        };
        assert_eq!(by_cpu.series.len(), 2, "a CPU where nobody waited has no series");
        assert_eq!(by_cpu.series[0].key["cpu"], 2);
    }

    #[test]
    fn groups_that_found_no_room_are_counted_in_others() {
        let key = GroupKey { pid: 0, zero: 0, comm: *b"worker\0\0\0\0\0\0\0\0\0\0" };
        let groups = BTreeMap::from([(key, NamedHistogram { histogram: kept(5, 3), process: Process::default() })]);
        let found = found(By::Comm, &[kept(3, 4)], &groups, &Names::default());
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!(found.delivered, 7);
        assert_eq!(histogram.series[0].key["comm"], "worker");
        assert_eq!(histogram.others.unwrap().count, 4);
        assert!(found.notes[0].starts_with("4 waits"));
    }
}
