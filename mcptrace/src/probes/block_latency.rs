//! How long block devices take.

use std::{collections::BTreeMap, fs};

use aya::maps::MapError;
use mcptrace_wire::{BlockKey, BlockStats, Histogram as Kept};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Found, OptionError, Probe, plan_of};
use crate::{
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Series},
};

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct BlockLatency;

/// Options of the probe: none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

impl Probe for BlockLatency {
    const NAME: &'static str = "block_latency";
    const SUMMARY: &'static str = "How long do block devices take, in the queue and in service, and do they fail?";
    const CATEGORY: &'static str = "disk";
    const DETAILS: &'static str = "Two histograms per device and operation: phase queue is the time from the making of a request to its \
        issue to the driver (scheduler, plugging, limits), phase service from issue to completion (driver and device). errors and bytes \
        stand with the service series. Requests already issued when tracing began are dropped as start_missing; those still under way at \
        the end are not in the report. Filters on threads look at the thread that makes the request: buffered writes are made by kernel \
        workers, not by the program that wrote. A flush stands by itself; the statistics of /proc/diskstats count it among the writes too.";
    const NEXT: &'static [&'static str] = &[
        "queue long, service short: too many requests at once, or an I/O limit of a control group",
        "service long: the device itself; compare reads with writes",
        "a program waits for it: syscall_latency with options.syscall = fsync, read or write",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"block_latency","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/block_latency.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("issued", "block_rq_issue"), Attach::tracepoint("completed", "block_rq_complete")];
    const NEEDS: &'static [&'static str] = &[
        "REQUEST_START",
        "REQUEST_FLAGS",
        "REQUEST_BYTES",
        "REQUEST_QUEUE",
        "QUEUE_DISK",
        "DISK_MAJOR",
        "DISK_MINOR",
        "REQUEST_ARGUMENT",
    ];
    const COUNTS: &'static str = "completed";
    const COST_NS: f64 = 330.0;
    type Options = Options;

    fn plan(_options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        if context.filter.on_threads {
            plan.globals.push(("FILTERED", 1_u32.to_ne_bytes().to_vec()));
            plan.attach.splice(0..0, MAKER.iter().cloned());
        }
        Ok((Self, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(&maps.hash("STATS")?, device_name))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("latency", "ns"), Field::new("errors", "requests"), Field::new("bytes", "bytes")]
    }
}

/// The hook that sees who makes a request: `block_io_start` came with 6.5 (commit 5a80bd075f3b).
const MAKER: &[Attach] =
    &[Attach::tracepoint("queued", "block_io_start"), Attach::tracepoint("inserted", "block_rq_insert").alternative()];

fn found(stats: &BTreeMap<BlockKey, BlockStats>, name: impl Fn(u32, u32) -> String) -> Found {
    let mut series = Vec::new();
    let mut delivered = 0;
    for (key, stats) in stats {
        let device = name(key.major, key.minor);
        let mut service = one(&stats.service, &device, key.operation, "service");
        service.also.insert("errors".into(), stats.errors.into());
        service.also.insert("bytes".into(), stats.bytes.into());
        delivered += service.count;
        series.push(service);
        series.push(one(&stats.queue, &device, key.operation, "queue"));
    }
    series.sort_by_key(|one| std::cmp::Reverse(one.count));
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["device".into(), "operation".into(), "phase".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() }
}

fn one(kept: &Kept, device: &str, operation: u32, phase: &str) -> Series {
    let mut all = Distribution::default();
    all.add(kept);
    let key = [("device", device.into()), ("operation", operation_name(operation).into()), ("phase", phase.into())];
    all.series(key.map(|(name, value): (&str, serde_json::Value)| (name.to_owned(), value)).into_iter().collect())
}

/// `REQ_OP_*` (include/linux/blk_types.h, 6.18); the numbers up to 3, and 9, have been the same since 4.8.
fn operation_name(operation: u32) -> String {
    match operation {
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

/// The device's name, from its link in sysfs; its numbers where it has gone.
pub(crate) fn device_name(major: u32, minor: u32) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| format!("{major}:{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_and_service_are_apart_and_a_request_counts_once() {
        let mut service = Kept::EMPTY;
        service.buckets[100] = 7;
        let mut queue = Kept::EMPTY;
        queue.buckets[20] = 7;
        let key = BlockKey { major: 254, minor: 0, operation: 1, zero: 0 };
        let stats = BTreeMap::from([(key, BlockStats { queue, service, errors: 2, bytes: 4096 })]);
        let found = found(&stats, |major, minor| format!("disk{major}_{minor}"));
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((found.delivered, histogram.series.len()), (7, 2));
        let service = histogram.series.iter().find(|one| one.key["phase"] == "service").unwrap();
        assert_eq!((&service.key["device"], &service.key["operation"]), (&"disk254_0".into(), &"write".into()));
        assert_eq!((&service.also["errors"], &service.also["bytes"]), (&2.into(), &4096.into()));
    }
}
