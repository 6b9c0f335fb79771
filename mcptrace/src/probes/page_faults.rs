//! Page faults and growth of memory by process.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{FaultCell, FaultKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks,
    names::{self, Names},
    options::By,
    plan_of, put,
    stacks::{self, Unit},
};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
        stacks::Stacks,
    },
    report::{Field, Report, Row, Table},
};

/// Processes that are told apart: 64 bytes each.
const MOST_PROCESSES: u32 = 16_384;

/// The probe.
#[derive(Debug)]
pub struct PageFaults {
    stacks: Stacks,
    by_stack: bool,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whole stacks instead of a table
    pub stacks: bool,
}

impl Probe for PageFaults {
    const NAME: &'static str = "page_faults";
    const SUMMARY: &'static str = "Which processes fault pages in, minor and major, and whose memory grows?";
    const CATEGORY: &'static str = "memory";
    const DETAILS: &'static str = "A row for each process that faulted, as the kernel itself counts (perf's minor-faults and major-faults). minor: \
        the page was new, or in memory already. major: the thread waited for a disk. Faults of the kernel on behalf of a process (a copy to \
        its buffer) count for it. resident_bytes is its memory at its last fault, growth_bytes the change since its first one here: what it \
        frees after its last fault is not seen, so peak_bytes, the most at any fault, is of one that grew and shrank; nor is growth by huge pages beyond the fault that made them. A count that several CPUs keep may \
        be off by some hundred KB. options.stacks shows instead where in the program they happen, a sample for each fault, by frame \
        pointers: where memory is first touched is where it grows.";
    const NEXT: &'static [&'static str] = &[
        "major faults: block_latency for the disk, page_cache for what is missed",
        "growth: options.stacks with filter.pid for the stacks that touch new memory, heap_growth for those that allocate it",
        "the machine runs short: memory_reclaim, oom_kills",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"page_faults","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/page_faults.o");
    const HOOKS: &'static [Attach] = &[Attach::page_faults("minor", false), Attach::page_faults("major", true)];
    const NEEDS: &'static [&'static str] = &["TASK_MM", "MM_RSS", "MM_RSS_STRIDE", "TASK_COMM", "TASK_LEADER"];
    const COUNTS: &'static str = "minor";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 290.0;
    const STACKS: WithStacks = WithStacks::IfAsked;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.push(("BY_STACK", u32::from(options.stacks).to_ne_bytes().to_vec()));
        if options.stacks {
            stacks::prepare(&mut plan);
        } else {
            plan.map_entries.push(("FAULTS", MOST_PROCESSES));
            names::name_processes(&mut plan);
        }
        Ok((Self { stacks: Stacks::new(context.filter.pid), by_stack: options.stacks }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        if self.by_stack {
            return Ok(stacks::found(&maps.hash("STACKS")?, self.stacks.named(), Unit::Samples));
        }
        let cells: BTreeMap<FaultKey, FaultCell> = maps.hash("FAULTS")?;
        let delivered = cells.values().map(|cell| cell.minor + cell.major).sum();
        Ok(Found { report: Some(Report::Table(table(&cells, &Names::read(maps)?))), delivered, notes: Vec::new() })
    }

    fn fields() -> Vec<Field> {
        vec![
            Field::new("faults", "faults"),
            Field::new("minor", "faults"),
            Field::new("major", "faults"),
            Field::new("growth_bytes", "bytes"),
            Field::new("resident_bytes", "bytes"),
            Field::new("peak_bytes", "bytes"),
        ]
    }

    fn take(&self, record: &[u8]) -> bool {
        self.stacks.take(record)
    }

    fn bytes(&self) -> usize {
        self.stacks.bytes()
    }
}

fn table(cells: &BTreeMap<FaultKey, FaultCell>, names: &Names) -> Table {
    let mut cells: Vec<_> = cells.iter().filter(|(_, cell)| cell.minor + cell.major > 0).collect();
    cells.sort_by_key(|(_, cell)| std::cmp::Reverse(cell.minor + cell.major));
    let rows: Vec<Row> = cells.into_iter().map(|(key, cell)| row(*key, cell, names)).collect();
    Table {
        key: names::key_fields(By::Pid),
        columns: PageFaults::fields(),
        rows_total: rows.len() as u64,
        rows,
        others: None,
    }
}

fn row(key: FaultKey, cell: &FaultCell, names: &Names) -> Row {
    let page = rustix::param::page_size() as i64;
    let growth = cell.last_pages.wrapping_sub(cell.first_pages) as i64;
    let mut row = names.process(key.pid, &cell.process).row();
    put(&mut row, "faults", cell.minor + cell.major);
    put(&mut row, "minor", cell.minor);
    put(&mut row, "major", cell.major);
    put(&mut row, "growth_bytes", growth * page);
    put(&mut row, "resident_bytes", (cell.last_pages as i64).max(0) * page);
    put(&mut row, "peak_bytes", (cell.most_pages as i64).max(0) * page);
    row
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::Process;

    use super::*;

    #[test]
    fn memory_may_shrink() {
        let process = Process::default();
        let cell = FaultCell { minor: 5, major: 2, first_pages: 10, last_pages: 7, most_pages: 12, process };
        let row = row(FaultKey { pid: 3, zero: 0 }, &cell, &Names::default());
        let page = rustix::param::page_size() as i64;
        assert_eq!((&row["faults"], &row["growth_bytes"]), (&7.into(), &(-3 * page).into()));
        assert_eq!((&row["resident_bytes"], &row["peak_bytes"]), (&(7 * page).into(), &(12 * page).into()));
    }
}
