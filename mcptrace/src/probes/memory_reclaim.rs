//! Stalls in reclaim of memory and in compaction.

use aya::maps::MapError;
use mcptrace_wire::{LongStall, STALLS, Stall, StallStats};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Found, OptionError, Probe, actor, options::Transport, parse, plain, plan_of, put};
use crate::{
    clock::Clock,
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row, Series},
};

/// Buffer for events: 14,000.
const EVENT_BYTES: u32 = 1 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct MemoryReclaim;

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Also list single events that took at least this long, in microseconds
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub slower_than_us: Option<u64>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for MemoryReclaim {
    const NAME: &'static str = "memory_reclaim";
    const SUMMARY: &'static str = "How long are threads stalled to reclaim or compact memory before they get any?";
    const CATEGORY: &'static str = "memory";
    const DETAILS: &'static str = "A histogram for each kind of stall. direct: the machine is short of memory and the thread that wants some reclaims \
        itself. cgroup: its memory control group is at a limit. compaction: a zone is compacted to get contiguous memory, by the thread \
        that wants it or by kcompactd in the background (comm tells in the events). pages is how many were reclaimed: long stalls with \
        few pages are the worst sign; compaction reclaims none. No series at all means no such stall. With slower_than_us (0 for all) the stalls are events as well. \
        Not seen: reclaim in the background by kswapd, which stalls nobody.";
    const NEXT: &'static [&'static str] = &[
        "cgroup: raise the limit of that group, or find what grows in it with page_faults",
        "direct: page_faults with the largest growth; oom_kills for what comes next",
        "pages written back to reclaim them: block_latency",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"memory_reclaim","options":{"slower_than_us":1000},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/memory_reclaim.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("direct_begin", "mm_vmscan_direct_reclaim_begin"),
        Attach::tracepoint("direct_end", "mm_vmscan_direct_reclaim_end"),
        Attach::tracepoint("cgroup_begin", "mm_vmscan_memcg_reclaim_begin").optional(),
        Attach::tracepoint("cgroup_end", "mm_vmscan_memcg_reclaim_end").optional(),
        Attach::tracepoint("compaction_begin", "mm_compaction_begin").optional(),
        Attach::tracepoint("compaction_end", "mm_compaction_end").optional(),
    ];
    const NEEDS: &'static [&'static str] = &["TASK_TGID", "TASK_COMM", "TASK_REAL_PARENT"];
    const COUNTS: &'static str = "direct_end";
    const COST_NS: f64 = 300.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        if let Some(us) = options.slower_than_us {
            plan.globals.push(("SLOWER_THAN_NS", us.saturating_mul(1000).to_ne_bytes().to_vec()));
            plan.event_bytes = EVENT_BYTES;
        }
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(&maps.per_cpu("STALL_STATS")?))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("stall", "ns"), Field::new("pages", "pages")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "stall"]);
        fields.extend([Field::new("latency_ns", "ns"), Field::new("pages", "pages")]);
        fields.extend(plain(&actor::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<LongStall>(record).is_some_and(|(long, _)| long.stall < STALLS)
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (long, _) = parse::<LongStall>(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(long.time_ns));
        put(&mut row, "stall", *NAMES.get(long.stall as usize)?);
        put(&mut row, "latency_ns", long.latency_ns);
        if long.stall != Stall::Compaction as u32 {
            put(&mut row, "pages", long.pages);
        }
        actor::insert(&mut row, &long.actor);
        Some(row)
    }
}

/// By [`mcptrace_wire::Stall`].
const NAMES: [&str; STALLS as usize] = ["direct", "cgroup", "compaction"];

fn found(kinds: &[Vec<StallStats>]) -> Found {
    let all = NAMES.iter().zip(kinds).map(|(name, cpus)| series(name, cpus));
    let mut series: Vec<Series> = all.filter(|series| series.count > 0).collect();
    series.sort_by_key(|one| std::cmp::Reverse(one.count));
    let delivered = series.iter().map(|one| one.count).sum();
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["stall".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() }
}

fn series(name: &str, cpus: &[StallStats]) -> Series {
    let mut time = Distribution::default();
    for cpu in cpus {
        time.add(&cpu.time);
    }
    let mut series = time.series(Row::from_iter([("stall".to_owned(), name.into())]));
    if name != "compaction" {
        put(&mut series.also, "pages", cpus.iter().map(|cpu| cpu.pages).sum::<u64>());
    }
    series
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::Histogram as Kept;

    use super::*;

    #[test]
    fn only_what_stalled_has_a_series_and_pages_add_up() {
        let of = |count, pages| {
            let mut time = Kept::EMPTY;
            time.buckets[7] = count;
            StallStats { time, pages }
        };
        let found = found(&[vec![of(0, 0); 2], vec![of(2, 32), of(3, 64)], vec![of(1, 0), of(0, 0)]]);
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((found.delivered, histogram.series.len()), (6, 2));
        assert_eq!(
            (&histogram.series[0].key["stall"], &histogram.series[0].also["pages"]),
            (&"cgroup".into(), &96.into())
        );
        assert!(histogram.series[1].also.is_empty());
    }
}
