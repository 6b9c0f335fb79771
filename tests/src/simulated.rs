//! A recorder's ticks without a recorder: simulated seconds of known values.

use std::borrow::Cow;

use mcptrace::{
    distribution::Distribution,
    recorder::tick::{Coverage, Kind, Metric, Sample, Tick, Value},
};

/// A second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// When simulated time begins, a whole hour: 2026-01-02T03:00:00Z.
pub const START: i64 = 1_767_322_800;

/// Calls by process.
pub static CALLS: Metric = Metric {
    name: "test_calls",
    unit: "calls",
    kind: Kind::Sum,
    group: "cpu",
    labels: &["comm", "mode"],
    help: "Calls of a simulated process",
};
/// A level.
pub static LEVEL: Metric = Metric {
    name: "test_level",
    unit: "bytes",
    kind: Kind::Gauge,
    group: "cpu",
    labels: &["device"],
    help: "A simulated level",
};
/// Latencies.
pub static LATENCY: Metric = Metric {
    name: "test_latency_ns",
    unit: "ns",
    kind: Kind::Distribution,
    group: "cpu",
    labels: &["device"],
    help: "Simulated latencies",
};
/// What a duty cycle sees.
pub static SYSCALLS: Metric = Metric {
    name: "test_syscalls",
    unit: "calls",
    kind: Kind::Sum,
    group: "syscalls",
    labels: &["syscall"],
    help: "Simulated system calls",
};

/// A tick of a second that ends so many seconds after [`START`], with everything recorded.
pub fn tick(second: i64, samples: Vec<Sample>) -> Tick {
    let coverage = ["cpu", "syscalls"].map(|group| Coverage { group, share: 1.0, why: None });
    Tick {
        at_ns: (START + second) as u64 * SECOND,
        span_ns: SECOND,
        samples,
        events: Vec::new(),
        events_lost: Vec::new(),
        coverage: coverage.into(),
    }
}

/// A sample of a metric.
pub fn sample(metric: &'static Metric, labels: &[&str], value: Value) -> Sample {
    Sample { metric, labels: labels.iter().map(|label| Cow::Owned((*label).to_owned())).collect(), value }
}

/// So many calls of a process.
pub fn calls(comm: &str, mode: &str, calls: u64) -> Sample {
    sample(&CALLS, &[comm, mode], Value::Sum(calls))
}

/// A level of a device.
pub fn level(device: &str, value: f64) -> Sample {
    sample(&LEVEL, &[device], Value::Gauge(value))
}

/// Latencies of a device.
pub fn latencies(device: &str, values: &[u64]) -> Sample {
    sample(&LATENCY, &[device], Value::Distribution(Box::new(distribution(values))))
}

/// A distribution of values.
pub fn distribution(values: &[u64]) -> Distribution {
    let mut distribution = Distribution::default();
    for value in values {
        distribution.record(*value);
    }
    distribution
}
