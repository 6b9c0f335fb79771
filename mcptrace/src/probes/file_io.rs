//! Which files are read and written, how much and how fast.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{FILE_READ, FILE_WRITE, FileId, FileIo as Kept, FileIoKey, SYSCALLS, Walk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    names::{self, Names, Who},
    options::By,
    paths::{self, FILES},
    plan_of,
    syscall_counts::syscall_globals,
};
use crate::{
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        arch::syscall_pair,
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row, Table},
};

/// Calls that read from a descriptor.
const READS: &[&str] = &["read", "pread64", "readv", "preadv", "preadv2"];
/// Calls that write to a descriptor.
const WRITES: &[&str] = &["write", "pwrite64", "writev", "pwritev", "pwritev2"];

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct FileIo {
    by: By,
    histogram: bool,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
    /// Distributions instead of a table
    pub histogram: bool,
}

/// Reads or writes of one file.
#[derive(Clone, Debug, Default)]
struct Group {
    latency: Distribution,
    bytes: u64,
    errors: u64,
}

/// File, operation, and group.
type Key = (FileId, u32, Who);

impl Probe for FileIo {
    const NAME: &'static str = "file_io";
    const SUMMARY: &'static str = "Which files are read and written, how much, how often and how fast?";
    const CATEGORY: &'static str = "files";
    const DETAILS: &'static str = "Rows by file and operation: bytes moved, calls, errors, and how long the calls took (p50, p99 within 6.25 %; \
        maximum exact), most bytes first. read is read, pread64, readv, preadv and preadv2; write likewise. Regular files and block devices \
        only. Time is what the thread waits: a read out of the page cache takes microseconds, from a disk more; a buffered write is done when \
        the page cache has it, see fs_sync for when it is durable. path_from says how sure the path is: dentry (the kernel's own names when the \
        file was first seen, from the root of the outermost mount), dentry_partial (too deep: its end), inode (no room for a path). With \
        options.histogram the whole distributions. Not seen: memory-mapped files (page_cache), sendfile, copy_file_range, io_uring, \
        kernel threads.";
    const NEXT: &'static [&'static str] = &[
        "slow reads of one file: page_cache (does it miss?), then block_latency",
        "slow writes: fs_sync, block_latency",
        "many small calls: syscall_latency with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"file_io","options":{"by":"comm"},"seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/file_io.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("enter", "sys_enter"), Attach::tracepoint("exit", "sys_exit")];
    const NEEDS: &'static [&'static str] = FILES;
    const COUNTS: &'static str = "exit";
    const COST_NS: f64 = 520.0;
    const GROUPS: &'static [By] = &[By::Total, By::Pid, By::Comm, By::Container];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        plan.globals.push(("IO_CALLS", classes(&[(READS, FILE_READ), (WRITES, FILE_WRITE)])));
        names::group(&mut plan, options.by);
        Ok((Self { by: options.by, histogram: options.histogram }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(self.found(&maps.hash("FILES")?, &maps.hash("PATHS")?, &Names::read(maps)?))
    }

    fn fields() -> Vec<Field> {
        let columns = [("bytes", "bytes"), ("calls", "calls"), ("errors", "calls")];
        let times = ["mean_ns", "p50_ns", "p99_ns", "max_ns"].map(|name| (name, "ns"));
        columns.into_iter().chain(times).map(|(name, unit)| Field::new(name, unit)).collect()
    }
}

/// A table of classes by system call, 32-bit ones as well.
pub(super) fn classes(calls: &[(&[&str], u8)]) -> Vec<u8> {
    let mut classes = vec![0; SYSCALLS as usize];
    for (names, class) in calls {
        for index in names.iter().flat_map(|name| syscall_pair(name)) {
            // An architecture that lacks a call has an index beyond the table.
            if let Some(entry) = classes.get_mut(index as usize) {
                *entry = *class;
            }
        }
    }
    classes
}

impl FileIo {
    fn found(self, files: &BTreeMap<FileIoKey, Kept>, paths: &BTreeMap<FileId, Walk>, names: &Names) -> Found {
        let mut groups: Vec<_> = self.grouped(files, names).into_iter().collect();
        groups.sort_by_key(|(_, group)| (std::cmp::Reverse(group.bytes), std::cmp::Reverse(group.latency.count())));
        let delivered = groups.iter().map(|(_, group)| group.latency.count()).sum();
        let report = if self.histogram { self.histogram(&groups, paths) } else { self.table(&groups, paths) };
        Found { report: Some(report), delivered, notes: Vec::new() }
    }

    fn grouped(self, files: &BTreeMap<FileIoKey, Kept>, names: &Names) -> BTreeMap<Key, Group> {
        let mut groups: BTreeMap<Key, Group> = BTreeMap::new();
        for (key, kept) in files {
            let who = names.group(self.by, key.pid, &key.comm, &kept.process);
            let group = groups.entry((key.file, key.operation, who)).or_default();
            group.latency.add(&kept.latency);
            group.bytes += kept.bytes;
            group.errors += kept.errors;
        }
        groups
    }

    fn key_fields(self) -> Vec<String> {
        let file = ["path", "path_from", "operation"].map(str::to_owned);
        file.into_iter().chain(names::key_fields(self.by)).collect()
    }

    fn table(self, groups: &[(Key, Group)], paths: &BTreeMap<FileId, Walk>) -> Report {
        let rows: Vec<Row> = groups.iter().map(|(key, group)| row(key, group, paths)).collect();
        let rows_total = rows.len() as u64;
        Report::Table(Table { key: self.key_fields(), columns: Self::fields(), rows, rows_total, others: None })
    }

    fn histogram(self, groups: &[(Key, Group)], paths: &BTreeMap<FileId, Walk>) -> Report {
        let one = |(key, group): &(Key, Group)| {
            let mut series = group.latency.series(key_row(key, paths));
            series.also.insert("bytes".into(), group.bytes.into());
            series.also.insert("errors".into(), group.errors.into());
            series
        };
        let series: Vec<_> = groups.iter().map(one).collect();
        Report::Histogram(Histogram {
            unit: "ns".into(),
            key: self.key_fields(),
            relative_error: RELATIVE_ERROR,
            series_total: series.len() as u64,
            series,
            others: None,
        })
    }
}

fn key_row((file, operation, who): &Key, paths: &BTreeMap<FileId, Walk>) -> Row {
    let mut row = Row::new();
    paths::insert(&mut row, *file, paths.get(file));
    row.insert("operation".into(), if *operation == u32::from(FILE_READ) { "read" } else { "write" }.into());
    who.insert(&mut row);
    row
}

fn row(key: &Key, group: &Group, paths: &BTreeMap<FileId, Walk>) -> Row {
    let mut row = key_row(key, paths);
    let all = group.latency.series(Row::new());
    row.insert("bytes".into(), group.bytes.into());
    row.insert("calls".into(), all.count.into());
    row.insert("errors".into(), group.errors.into());
    row.insert("mean_ns".into(), (all.mean.round() as u64).into());
    row.insert("p50_ns".into(), all.p50.into());
    row.insert("p99_ns".into(), all.p99.into());
    row.insert("max_ns".into(), all.max.into());
    row
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::{Histogram as Buckets, Process, WALK_COMPLETE};

    use super::*;

    fn files() -> (BTreeMap<FileIoKey, Kept>, BTreeMap<FileId, Walk>) {
        let mut latency = Buckets::EMPTY;
        (latency.buckets[50], latency.sum, latency.max) = (7, 700, 100);
        let kept = Kept {
            latency,
            bytes: 4096,
            errors: 1,
            process: Process { cgroup: 0, comm: *b"cp\0\0\0\0\0\0\0\0\0\0\0\0\0\0" },
        };
        let file = FileId { inode: 12, device: 1, zero: 0 };
        let mut walk = Walk::EMPTY;
        walk.names[..4].copy_from_slice(b"f\0d\0");
        (walk.len, walk.flags) = (4, WALK_COMPLETE);
        let key = |pid, comm| FileIoKey { file, operation: 1, pid, comm };
        let (none, worker) = ([0; 16], *b"worker\0\0\0\0\0\0\0\0\0\0");
        (BTreeMap::from([(key(3, none), kept), (key(0, worker), kept)]), BTreeMap::from([(file, walk)]))
    }

    #[test]
    fn rows_of_processes_have_their_last_name_and_rows_of_commands_that_of_the_key() {
        let (files, paths) = files();
        let names = Names::of(&[(3, *b"mv\0\0\0\0\0\0\0\0\0\0\0\0\0\0")]);
        let rows = |by| match (FileIo { by, histogram: false }).found(&files, &paths, &names) {
            Found { report: Some(Report::Table(table)), delivered: 14, .. } => table.rows,
            other => panic!("{other:?}"),
        };
        let all = rows(By::Total);
        assert_eq!((all.len(), &all[0]["bytes"], &all[0]["calls"]), (1, &8192.into(), &14.into()));
        assert_eq!((&all[0]["path"], &all[0]["operation"]), (&"/d/f".into(), &"read".into()));
        let named = |by, comm: &str| rows(by).iter().filter(|row| row["comm"] == comm).count();
        assert_eq!((named(By::Pid, "mv"), named(By::Comm, "worker")), (1, 1));
    }

    #[test]
    fn distributions_carry_bytes_and_errors() {
        let (mut files, paths) = files();
        files.retain(|key, _| key.pid == 0);
        let found = (FileIo { by: By::Total, histogram: true }).found(&files, &paths, &Names::default());
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!((histogram.series.len(), histogram.series[0].count), (1, 7));
        assert_eq!(
            (&histogram.series[0].also["bytes"], &histogram.series[0].also["errors"]),
            (&4096.into(), &1.into())
        );
    }

    #[test]
    fn every_call_has_its_class() {
        let classes = classes(&[(READS, FILE_READ), (WRITES, FILE_WRITE)]);
        let class = |name| classes[syscall_pair(name)[0] as usize];
        assert_eq!((class("pread64"), class("writev"), class("openat")), (FILE_READ, FILE_WRITE, 0));
        assert_eq!(classes.len(), SYSCALLS as usize);
    }
}
