//! What it costs to make data durable.

use aya::maps::MapError;
use mcptrace_wire::{Histogram as Kept, SyncCall, SyncEvent};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    file_io::classes,
    options::Transport,
    parse,
    paths::{self, FILES},
    places, plain, plan_of,
    syscall_counts::syscall_globals,
};
use crate::{
    clock::Clock,
    distribution::{Distribution, RELATIVE_ERROR},
    errno,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row},
    text::comm,
};

/// Buffer for events: some 6,000 of usual paths.
const EVENT_BYTES: u32 = 1 << 20;

/// The calls by name, as their numbers have them from 1 on.
const CALLS: [(SyncCall, &str); 6] = [
    (SyncCall::Fsync, "fsync"),
    (SyncCall::Fdatasync, "fdatasync"),
    (SyncCall::SyncFileRange, "sync_file_range"),
    (SyncCall::Syncfs, "syncfs"),
    (SyncCall::Sync, "sync"),
    (SyncCall::Msync, "msync"),
];

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct FsSync;

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only what failed
    pub failed_only: bool,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for FsSync {
    const NAME: &'static str = "fs_sync";
    const SUMMARY: &'static str = "Who waits for data to become durable, for which file, and how long?";
    const CATEGORY: &'static str = "files";
    const DETAILS: &'static str = "A histogram per call (fsync, fdatasync, sync_file_range, syncfs, sync, msync) and an event for each with its \
        file, process and errno. Time is what the caller waits: writing out what is dirty, the file system's journal, and the device's cache \
        flush. sync and msync name no file; of syncfs it is any file of the file system. path_from as in file_io. Not seen: files opened with \
        O_SYNC or O_DSYNC, whose writes wait themselves (file_io), io_uring, and the kernel's own writing back.";
    const NEXT: &'static [&'static str] = &[
        "slow: block_latency, its flushes and writes",
        "often, by one process: whether it could sync less often or in groups",
        "fsync of one file slow while others write much: file_io with options.by = pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"fs_sync","filter":{"min_duration_us":1000},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/fs_sync.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("enter", "sys_enter"), Attach::tracepoint("exit", "sys_exit")];
    const NEEDS: &'static [&'static str] = FILES;
    const COUNTS: &'static str = "exit";
    const COST_NS: f64 = 1_400.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        let calls = CALLS.map(|(call, name)| ([name], call as u8));
        let calls: Vec<(&[&str], u8)> = calls.iter().map(|(names, class)| (names.as_slice(), *class)).collect();
        plan.globals.push(("SYNC_CALLS", classes(&calls)));
        plan.globals.push(("FAILED_ONLY", u32::from(options.failed_only).to_ne_bytes().to_vec()));
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(found(&maps.per_cpu("LATENCIES")?, &maps.per_cpu("ERRORS")?))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("latency", "ns"), Field::new("errors", "calls")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = vec![Field::new("time", ""), Field::new("call", ""), Field::new("latency_ns", "ns")];
        fields.extend(plain(&["path", "path_from", "pid", "tid", "comm"]));
        fields.extend(plain(&places::FIELDS));
        fields.extend(plain(&["errno"]));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse_event(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (event, path) = parse_event(record)?;
        let mut row = Row::new();
        row.insert("time".into(), clock.utc(event.time_ns).into());
        row.insert("call".into(), call_name(event.call)?.into());
        row.insert("latency_ns".into(), event.latency_ns.into());
        if let Some((path, from)) = path {
            row.insert("path".into(), path.into());
            row.insert("path_from".into(), from.into());
        } else if event.file.inode != 0 {
            paths::insert(&mut row, event.file, None);
        }
        row.insert("pid".into(), event.pid.into());
        row.insert("tid".into(), event.tid.into());
        row.insert("comm".into(), comm(&event.comm).into());
        places::insert(&mut row, event.cgroup, event.pid);
        if event.result < 0 {
            row.insert("errno".into(), errno::name(event.result.wrapping_neg()).into());
        }
        Some(row)
    }
}

fn call_name(call: u32) -> Option<&'static str> {
    CALLS.iter().find(|(known, _)| *known as u32 == call).map(|(_, name)| *name)
}

/// A record and its path: behind the fixed part stand the length of the names, the flags of the walk, and the names.
fn parse_event(record: &[u8]) -> Option<(SyncEvent, Option<(String, &'static str)>)> {
    let (event, rest) = parse::<SyncEvent>(record)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (flags, names) = rest.split_first_chunk::<4>()?;
    call_name(event.call)?;
    let fits = u32::from_ne_bytes(*len) as usize == names.len();
    fits.then(|| (event, paths::of_names(names, u32::from_ne_bytes(*flags))))
}

fn found(latencies: &[Vec<Kept>], errors: &[Vec<u64>]) -> Found {
    let mut series = Vec::new();
    for (call, name) in CALLS {
        let mut all = Distribution::default();
        for kept in latencies.get(call as usize).into_iter().flatten() {
            all.add(kept);
        }
        if all.count() == 0 {
            continue;
        }
        let mut one = all.series(Row::from_iter([("call".to_owned(), name.into())]));
        let failed: u64 = errors.get(call as usize).into_iter().flatten().sum();
        one.also.insert("errors".into(), failed.into());
        series.push(one);
    }
    series.sort_by_key(|one| std::cmp::Reverse(one.count));
    let delivered = series.iter().map(|one| one.count).sum();
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["call".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::SYNC_CALLS;

    use super::*;

    #[test]
    fn calls_are_numbered_as_the_kernel_side_does() {
        assert_eq!(CALLS.len() + 1, SYNC_CALLS as usize);
        for (index, (call, name)) in CALLS.iter().enumerate() {
            assert_eq!((*call as usize, call_name(index as u32 + 1)), (index + 1, Some(*name)));
        }
    }

    #[test]
    fn failures_stand_with_their_call() {
        let mut latencies = vec![vec![Kept::EMPTY; 2]; SYNC_CALLS as usize];
        (latencies[2][0].buckets[9], latencies[2][1].buckets[9]) = (2, 3);
        let mut errors = vec![vec![0, 0]; SYNC_CALLS as usize];
        errors[2] = vec![1, 1];
        let found = found(&latencies, &errors);
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((found.delivered, histogram.series.len()), (5, 1));
        assert_eq!(
            (&histogram.series[0].key["call"], &histogram.series[0].also["errors"]),
            (&"fdatasync".into(), &2.into())
        );
    }
}
