//! Time in hardware and soft interrupts.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{Histogram as Kept, IRQ_VECTORS, IrqStats};

use super::{Context, Found, NoOptions, OptionError, Probe, plan_of, put};
use crate::{
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row, Series},
    text::comm,
};

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct IrqTime;

/// Names of vectors (`softirq_to_name`, kernel/softirq.c).
const SOFTIRQS: [&str; 10] =
    ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"];

/// Vectors of a CPU's own, in the order of the kernel side, by their tracepoints' names.
const VECTORS: [&str; IRQ_VECTORS as usize] =
    ["local_timer", "reschedule", "call_function", "call_function_single", "irq_work"];

impl Probe for IrqTime {
    const NAME: &'static str = "irq_time";
    const SUMMARY: &'static str = "How much time do hardware and soft interrupts take, and which?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "A histogram for each handler of a hardware interrupt (kind hard: the name in /proc/interrupts, and its irq) and \
        for each vector of soft interrupts (kind soft: NET_RX, TIMER, BLOCK, RCU, SCHED...); on x86 also for a CPU's own (kind vector: \
        local_timer, and reschedule, call_function and call_function_single by which CPUs call each other, irq_work). total_ns is the time \
        of all, cpu_percent the same of one CPU. A hardware interrupt that comes during a soft one is in the time of both. Filters look at \
        the thread that was interrupted: whose time it took. Not seen: NMIs, and on other architectures a CPU's own.";
    const NEXT: &'static [&'static str] = &[
        "NET_RX high: net_traffic, packet_drops",
        "BLOCK or a disk's interrupt: block_latency",
        "a thread suffers: runq_latency with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"irq_time","seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/irq_time.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("hard_entry", "irq_handler_entry"),
        Attach::tracepoint("hard_exit", "irq_handler_exit"),
        Attach::tracepoint("soft_entry", "softirq_entry"),
        Attach::tracepoint("soft_exit", "softirq_exit"),
        Attach::tracepoint("timer_begins", "local_timer_entry").optional(),
        Attach::tracepoint("timer_ends", "local_timer_exit").optional(),
        Attach::tracepoint("reschedule_begins", "reschedule_entry").optional(),
        Attach::tracepoint("reschedule_ends", "reschedule_exit").optional(),
        Attach::tracepoint("call_begins", "call_function_entry").optional(),
        Attach::tracepoint("call_ends", "call_function_exit").optional(),
        Attach::tracepoint("single_call_begins", "call_function_single_entry").optional(),
        Attach::tracepoint("single_call_ends", "call_function_single_exit").optional(),
        Attach::tracepoint("work_begins", "irq_work_entry").optional(),
        Attach::tracepoint("work_ends", "irq_work_exit").optional(),
    ];
    const NEEDS: &'static [&'static str] = &["IRQACTION_NAME"];
    const COUNTS: &'static str = "soft_exit";
    const COST_NS: f64 = 210.0;
    type Options = NoOptions;

    fn plan(_options: &NoOptions, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        Ok((Self, plan_of::<Self>(context)))
    }

    fn report(&self, maps: &Maps<'_>, seconds: f64) -> Result<Found, MapError> {
        let soft = [("soft", maps.per_cpu("SOFT_VECTORS")?), ("vector", maps.per_cpu("VECTORS")?)];
        Ok(found(&maps.hash("HARDIRQS")?, &soft, seconds))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("time", "ns"), Field::new("total_ns", "ns"), Field::new("cpu_percent", "% of one CPU")]
    }
}

fn found(hard: &BTreeMap<u64, IrqStats>, vectors: &[(&str, Vec<Vec<Kept>>)], seconds: f64) -> Found {
    let hard = hard.values().map(|irq| (key("hard", comm(&irq.name), Some(irq.irq)), std::slice::from_ref(&irq.time)));
    let vectors = vectors.iter().flat_map(|(kind, all)| all.iter().enumerate().map(|one| (*kind, one)));
    let vectors = vectors.map(|(kind, (vector, cpus))| (key(kind, vector_name(kind, vector), None), cpus.as_slice()));
    let all = hard.chain(vectors).map(|(key, kept)| (key, sum(kept))).filter(|(_, sum)| sum.count() > 0);
    let mut series: Vec<(u64, Series)> = all.map(|(key, sum)| series(key, &sum, seconds)).collect();
    series.sort_by_key(|(total_ns, _)| std::cmp::Reverse(*total_ns));
    let series: Vec<Series> = series.into_iter().map(|(_, series)| series).collect();
    let delivered = series.iter().map(|one| one.count).sum();
    let histogram = Histogram {
        unit: "ns".into(),
        key: ["kind", "name", "irq"].map(str::to_owned).to_vec(),
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() }
}

fn key(kind: &str, name: String, irq: Option<u64>) -> Row {
    let mut row = Row::new();
    put(&mut row, "kind", kind);
    put(&mut row, "name", name);
    if let Some(irq) = irq {
        put(&mut row, "irq", irq);
    }
    row
}

fn vector_name(kind: &str, vector: usize) -> String {
    let names: &[&str] = if kind == "soft" { &SOFTIRQS } else { &VECTORS };
    names.get(vector).map_or_else(|| format!("{kind}_{vector}"), |name| (*name).to_owned())
}

fn sum(all: &[Kept]) -> Distribution {
    let mut sum = Distribution::default();
    for one in all {
        sum.add(one);
    }
    sum
}

fn series(key: Row, sum: &Distribution, seconds: f64) -> (u64, Series) {
    let mut series = sum.series(key);
    let total_ns = (series.mean * series.count as f64).round() as u64;
    let percent = if seconds > 0.0 { total_ns as f64 / (seconds * 1e9) * 100.0 } else { 0.0 };
    put(&mut series.also, "total_ns", total_ns);
    put(&mut series.also, "cpu_percent", (percent * 1000.0).round() / 1000.0);
    (total_ns, series)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bucket: usize, count: u64, sum: u64) -> Kept {
        let mut kept = Kept::EMPTY;
        kept.buckets[bucket] = count;
        kept.sum = sum;
        kept
    }

    #[test]
    fn interrupts_have_names_and_the_most_expensive_comes_first() {
        let mut name = [0; 32];
        name[..3].copy_from_slice(b"nvm");
        let hard = BTreeMap::from([(0xffff, IrqStats { time: kept(9, 2, 18), irq: 42, name })]);
        let mut soft = vec![vec![Kept::EMPTY; 2]; 16];
        soft[3] = vec![kept(10, 3, 30), kept(12, 4, 48)];
        let timers = vec![vec![kept(3, 5, 15)]; 1];
        let found = found(&hard, &[("soft", soft), ("vector", timers)], 1.0);
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((found.delivered, histogram.series.len()), (14, 3));
        assert_eq!(serde_json::json!(histogram.series[0].key), serde_json::json!({"kind": "soft", "name": "NET_RX"}));
        assert_eq!(histogram.series[0].also["total_ns"], 78);
        assert_eq!(
            serde_json::json!(histogram.series[1].key),
            serde_json::json!({"kind": "hard", "name": "nvm", "irq": 42})
        );
        assert_eq!(
            serde_json::json!(histogram.series[2].key),
            serde_json::json!({"kind": "vector", "name": "local_timer"})
        );
    }
}
