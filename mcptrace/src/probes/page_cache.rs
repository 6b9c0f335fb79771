//! Whether reads find their pages in memory, and who dirties pages.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{CacheCell, GroupKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    names::{self, Names, Who},
    options::By,
    plan_of,
};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
};

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct PageCache {
    by: By,
    /// Whether this kernel tells what reads look for.
    looks_up: bool,
    /// Whether this kernel tells of faults.
    faults: bool,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What results are grouped by, beyond what the probe always tells apart
    pub by: By,
}

impl Probe for PageCache {
    const NAME: &'static str = "page_cache";
    const SUMMARY: &'static str = "Do reads find their data in memory, who misses, and who dirties pages?";
    const CATEGORY: &'static str = "memory";
    const DETAILS: &'static str = "Pages (4 KB as a rule) in all, or by process, command or container with options.by. read_pages are pages that reads asked \
        for, read_missed_pages those of them that were not there and had to be brought in while the read waited, hit_percent the rest. \
        A page that read-ahead has brought in before is a hit: a sequential read of a cold file hits nearly always, and added_pages shows what \
        came from the disk. faults are page faults on mapped files that the kernel could not settle by mapping what is around (so the hits \
        among them are few), fault_misses those whose page had to come in. added_pages come in for reads, read-ahead and new parts of files; \
        dirtied_pages are clean pages that were written to. Filters look at the thread that runs: read-ahead counts for who reads, \
        writing back for nobody. A thread that maps and reads the same file, or whose look-up has gaps, may have misses counted a few off. \
        Kernels without mm_filemap_get_pages (before 6.12) tell only added and dirtied.";
    const NEXT: &'static [&'static str] = &[
        "low hit_percent of one process: file_io with filter.pid, to see the files",
        "misses everywhere: memory is short; then block_latency for what they cost",
        "much dirtied: fs_sync, block_latency of writes",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"page_cache","options":{"by":"pid"},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/page_cache.o");
    const HOOKS: &'static [Attach] = &[
        Attach::tracepoint("added", "mm_filemap_add_to_page_cache"),
        // The page became a folio in 5.18.
        Attach::tracepoint("dirtied", "writeback_dirty_folio"),
        Attach::tracepoint("dirtied", "writeback_dirty_page").alternative(),
        Attach::tracepoint("looked_up", "mm_filemap_get_pages").optional(),
        Attach::tracepoint("faulted", "mm_filemap_fault").optional(),
    ];
    const NEEDS: &'static [&'static str] = &[
        "FOLIO_FLAGS",
        "FOLIO_MAPPING",
        "FOLIO_INDEX",
        "FOLIO_LARGE",
        "MAPPING_HOST",
        "INODE_SIZE",
        "TASK_COMM",
        "TASK_LEADER",
    ];
    const COUNTS: &'static str = "added";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 120.0;
    const GROUPS: &'static [By] = &[By::Total, By::Pid, By::Comm, By::Container];
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        let shift = rustix::param::page_size().trailing_zeros();
        plan.globals.push(("PAGE_SHIFT", shift.to_ne_bytes().to_vec()));
        names::group(&mut plan, options.by);
        let looks_up = context.layout.has_tracepoint("mm_filemap_get_pages");
        let faults = context.layout.has_tracepoint("mm_filemap_fault");
        Ok((Self { by: options.by, looks_up, faults }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(self.found(&maps.hash("GROUPS")?, &Names::read(maps)?))
    }

    fn fields() -> Vec<Field> {
        columns(true, true)
    }
}

fn columns(looks_up: bool, faults: bool) -> Vec<Field> {
    let mut columns = Vec::new();
    if looks_up {
        columns.extend([("read_pages", "pages"), ("read_missed_pages", "pages"), ("hit_percent", "percent")]);
    }
    columns.extend([("added_pages", "pages"), ("dirtied_pages", "pages")]);
    if faults {
        columns.extend([("faults", "faults"), ("fault_misses", "faults")]);
    }
    columns.into_iter().map(|(name, unit)| Field::new(name, unit)).collect()
}

impl PageCache {
    fn found(self, cells: &BTreeMap<GroupKey, CacheCell>, names: &Names) -> Found {
        let mut groups: Vec<_> = self.grouped(cells, names).into_iter().collect();
        groups.sort_by_key(|(_, cell)| std::cmp::Reverse(cell.read + cell.added + cell.dirtied + cell.faulted));
        let delivered = groups.iter().map(|(_, cell)| cell.events).sum();
        let mut notes = self.notes();
        notes.extend(groups.iter().filter(|_| self.looks_up).max_by_key(|(_, cell)| ahead(cell)).and_then(note_ahead));
        let rows: Vec<Row> = groups.iter().map(|(key, cell)| self.row(key, cell)).collect();
        let table = Table {
            key: names::key_fields(self.by),
            columns: columns(self.looks_up, self.faults),
            rows_total: rows.len() as u64,
            rows,
            others: None,
        };
        Found { report: Some(Report::Table(table)), delivered, notes }
    }

    fn notes(self) -> Vec<String> {
        let missing =
            |has: bool, hook, what| (!has).then(|| format!("{what} are unknown: this kernel has no tracepoint {hook}"));
        let notes = [
            missing(self.looks_up, "mm_filemap_get_pages", "what reads look for, and so hits and misses,"),
            missing(self.faults, "mm_filemap_fault", "page faults on files"),
        ];
        notes.into_iter().flatten().collect()
    }

    fn grouped(self, cells: &BTreeMap<GroupKey, CacheCell>, names: &Names) -> BTreeMap<Who, CacheCell> {
        let mut groups: BTreeMap<Who, CacheCell> = BTreeMap::new();
        for (key, cell) in cells {
            let group = groups.entry(names.group(self.by, key.pid, &key.comm, &cell.process)).or_default();
            group.events += cell.events;
            group.read += cell.read;
            group.read_missed += cell.read_missed;
            group.faulted += cell.faulted;
            group.fault_missed += cell.fault_missed;
            group.added += cell.added;
            group.dirtied += cell.dirtied;
        }
        groups
    }

    fn row(self, who: &Who, cell: &CacheCell) -> Row {
        let mut row = who.row();
        if self.looks_up {
            row.insert("read_pages".into(), cell.read.into());
            row.insert("read_missed_pages".into(), cell.read_missed.into());
            if cell.read > 0 {
                let hits = cell.read.saturating_sub(cell.read_missed) as f64 * 100.0 / cell.read as f64;
                row.insert("hit_percent".into(), ((hits * 10.0).round() / 10.0).into());
            }
        }
        row.insert("added_pages".into(), cell.added.into());
        row.insert("dirtied_pages".into(), cell.dirtied.into());
        if self.faults {
            row.insert("faults".into(), cell.faulted.into());
            row.insert("fault_misses".into(), cell.fault_missed.into());
        }
        row
    }
}

/// Pages that came from the disk before a read asked for them: what was added, but for what reads waited for and what was written.
fn ahead(cell: &CacheCell) -> u64 {
    cell.added.saturating_sub(cell.read_missed + cell.fault_missed + cell.dirtied).min(cell.read)
}

/// Says that hits are no proof of data in memory, where read-ahead made more than a tenth of them.
fn note_ahead((who, cell): &(Who, CacheCell)) -> Option<String> {
    let pages = ahead(cell);
    if pages * 10 < cell.read || pages == 0 {
        return None;
    }
    let who = who.in_words();
    Some(format!(
        "hit_percent says how seldom reads waited, not that the data was in memory: of {who}, read-ahead brought in some {pages} of the {} pages \
         read just before they were asked for",
        cell.read
    ))
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::Process;

    use super::*;

    const CAT: [u8; 16] = *b"cat\0\0\0\0\0\0\0\0\0\0\0\0\0";

    const CELL: CacheCell = CacheCell {
        events: 5,
        read: 200,
        read_missed: 50,
        faulted: 1,
        fault_missed: 1,
        added: 60,
        dirtied: 7,
        process: Process { cgroup: 0, comm: CAT },
    };

    fn rows(by: By, looks_up: bool) -> (Vec<Row>, Vec<String>) {
        let key = |pid, comm| GroupKey { pid, zero: 0, comm };
        let cells = BTreeMap::from([(key(3, [0; 16]), CELL), (key(0, CAT), CELL)]);
        match (PageCache { by, looks_up, faults: true }).found(&cells, &Names::default()) {
            Found { report: Some(Report::Table(table)), delivered: 10, notes } => (table.rows, notes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hits_are_what_was_not_missed() {
        let (all, notes) = rows(By::Total, true);
        assert_eq!((all.len(), &all[0]["hit_percent"], &all[0]["read_pages"]), (1, &75.0.into(), &400.into()));
        assert!(notes.is_empty());
        let named = |by| rows(by, true).0.iter().filter(|row| row["comm"] == "cat").count();
        assert_eq!((named(By::Pid), named(By::Comm)), (2, 1));
    }

    #[test]
    fn hits_that_read_ahead_made_are_said_to_be_so() {
        let note = |cell: CacheCell| note_ahead(&(Names::default().process(3, &CELL.process), cell));
        let cold = CacheCell { read: 1000, read_missed: 32, added: 1007, dirtied: 0, fault_missed: 0, ..CELL };
        let text = note(cold).unwrap();
        assert!(text.contains("of process 3, read-ahead brought in some 975 of the 1000 pages"), "{text}");
        assert_eq!(note(CacheCell { added: 32, ..cold }), None, "all that came in was waited for");
        assert_eq!(note(CacheCell { dirtied: 975, ..cold }), None, "what came in was written");
    }

    #[test]
    fn a_kernel_that_does_not_tell_says_so_instead_of_zero() {
        let (all, notes) = rows(By::Total, false);
        assert_eq!((all[0].get("hit_percent"), all[0].get("read_pages")), (None, None));
        assert_eq!(notes.len(), 1);
    }
}
