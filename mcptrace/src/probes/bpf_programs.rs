//! What other eBPF programs run here, and what they cost.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use aya::maps::MapError;

use super::{Context, Found, NoOptions, OptionError, Probe, places::Place, plan_of, put};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        bpf::{self, AllUses, Holder, Program, Statistics, Uses},
        hook::Attach,
    },
    report::{Field, Report, Row, Table},
    text::{comm, untrusted},
};

/// Holders and places that a row names.
const MOST_NAMED: usize = 8;

/// The probe.
#[derive(Debug)]
pub struct BpfPrograms {
    before: BTreeMap<u32, Program>,
    /// On until the run has ended, or why they are not.
    statistics: Mutex<Option<Result<Statistics, String>>>,
}

impl Probe for BpfPrograms {
    const NAME: &'static str = "bpf_programs";
    const SUMMARY: &'static str = "Which eBPF programs are loaded, who holds them, and what do they cost?";
    const CATEGORY: &'static str = "system";
    const DETAILS: &'static str = "A row for each loaded eBPF program, this server's own included, with what it did while this ran: runs, the time \
        of one run and of all in percent of one CPU. The kernel's run-time statistics are on meanwhile for every program of the machine, \
        which costs each run about 80 ns more, and they leave out what it costs to enter a program. attached_to is known of links and of \
        events in descriptors; a program that is attached otherwise (tc, a pinned program of a cgroup) has none. holders are processes \
        with a descriptor of it, by pid, command, and container or unit; a program without any is pinned or held by its hook. A program that was unloaded meanwhile is counted in \
        a note. It takes no filter: it looks at programs, not at threads.";
    const NEXT: &'static [&'static str] =
        &["one is expensive: its holders tell whose it is", "who loads programs: privileged_actions, kind bpf"];
    const EXAMPLE: &'static str = r#"{"probe":"bpf_programs","seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/bpf_programs.o");
    const HOOKS: &'static [Attach] = &[];
    const NEEDS: &'static [&'static str] = &[];
    const COUNTS: &'static str = "";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 80.0;
    type Options = NoOptions;

    fn plan(_options: &NoOptions, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        if context.filter.on_threads {
            return Err(OptionError::new("bpf_programs looks at programs, not at threads: it takes no filter"));
        }
        let statistics = Mutex::new(Some(Statistics::on()));
        Ok((Self { before: bpf::programs(), statistics }, plan_of::<Self>(context)))
    }

    fn report(&self, _maps: &Maps<'_>, seconds: f64) -> Result<Found, MapError> {
        let after = bpf::programs();
        let uses = bpf::uses(&after);
        let mut found = found(&self.before, &after, &uses, seconds);
        if let Some(Err(reason)) = &*self.statistics.lock().unwrap_or_else(PoisonError::into_inner) {
            found.notes.push(format!(
                "this kernel keeps no run-time statistics for us, so runs and times are absent or stale: {reason}"
            ));
        }
        Ok(found)
    }

    fn fields() -> Vec<Field> {
        vec![
            Field::new("total_ns", "ns"),
            Field::new("cpu_percent", "% of one CPU"),
            Field::new("runs", "runs"),
            Field::new("ns_per_run", "ns"),
            Field::new("attached_to", ""),
            Field::new("holders", ""),
            Field::new("loaded_by_uid", ""),
        ]
    }

    fn ended(&self) {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn found(before: &BTreeMap<u32, Program>, after: &BTreeMap<u32, Program>, uses: &AllUses, seconds: f64) -> Found {
    let none = Uses::default();
    let mut all: Vec<_> = after.iter().map(|(id, program)| (*id, program, since(before.get(id), program))).collect();
    all.sort_by_key(|(id, _, (runs, time))| (std::cmp::Reverse((*time, *runs)), *id));
    let delivered = all.iter().map(|(_, _, (runs, _))| runs).sum();
    let rows: Vec<Row> = all
        .into_iter()
        .map(|(id, program, spent)| row(id, program, spent, uses.by_program.get(&id).unwrap_or(&none), seconds))
        .collect();
    let key = ["id", "kind", "name"].map(str::to_owned).to_vec();
    let table = Table { key, columns: BpfPrograms::fields(), rows_total: rows.len() as u64, rows, others: None };
    Found { report: Some(Report::Table(table)), delivered, notes: notes(before, after, uses) }
}

fn notes(before: &BTreeMap<u32, Program>, after: &BTreeMap<u32, Program>, uses: &AllUses) -> Vec<String> {
    let mut notes = Vec::new();
    let gone = before.keys().filter(|id| !after.contains_key(id)).count();
    if gone > 0 {
        notes.push(format!(
            "{gone} programs that were loaded when this began are not in the table: they were unloaded meanwhile"
        ));
    }
    if uses.incomplete {
        notes.push("there are more open files than are looked through: some holders and places are missing".to_owned());
    }
    notes
}

/// Runs and time of a program since the beginning; a new one has no past.
fn since(before: Option<&Program>, after: &Program) -> (u64, u64) {
    let (runs, time) = before.map_or((0, 0), |before| (before.runs, before.run_time_ns));
    (after.runs.saturating_sub(runs), after.run_time_ns.saturating_sub(time))
}

fn row(id: u32, program: &Program, (runs, time): (u64, u64), uses: &Uses, seconds: f64) -> Row {
    let percent = if seconds > 0.0 { time as f64 / (seconds * 1e9) * 100.0 } else { 0.0 };
    let mut row = Row::new();
    put(&mut row, "id", id);
    put(&mut row, "kind", program.kind.clone());
    put(&mut row, "name", program.name.clone());
    put(&mut row, "total_ns", time);
    put(&mut row, "cpu_percent", (percent * 1000.0).round() / 1000.0);
    put(&mut row, "runs", runs);
    if let Some(mean) = time.checked_div(runs) {
        put(&mut row, "ns_per_run", mean);
    }
    put(&mut row, "attached_to", named(uses.attached.iter().map(|place| untrusted(place.as_bytes(), 128))));
    put(&mut row, "holders", named(uses.holders.iter().map(holder)));
    put(&mut row, "loaded_by_uid", program.uid);
    row
}

/// A process as text: number, command, and container or unit.
fn holder((pid, holder): (&u32, &Holder)) -> String {
    let group = holder.group.as_deref().map(|path| format!(" ({})", Place::of_path(path)));
    format!("{pid} {}{}", comm(&holder.comm), group.unwrap_or_default())
}

/// The first few, and how many more there are.
fn named(words: impl ExactSizeIterator<Item = String>) -> String {
    let more = words.len().saturating_sub(MOST_NAMED);
    let mut words: Vec<String> = words.take(MOST_NAMED).collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_before_does_not_count_and_what_is_gone_is_said() {
        let program = |runs, run_time_ns| Program { runs, run_time_ns, name: "p".into(), ..Program::default() };
        let before = BTreeMap::from([(1, program(100, 10_000)), (2, program(5, 5)), (3, program(9, 9))]);
        let after = BTreeMap::from([(1, program(110, 12_000)), (3, program(9, 9)), (4, program(7, 80_000))]);
        let found = found(&before, &after, &AllUses::default(), 2.0);
        let Some(Report::Table(table)) = found.report else { panic!() };
        let ids: Vec<_> = table.rows.iter().map(|row| row["id"].as_u64().unwrap()).collect();
        assert_eq!((ids, found.delivered), (vec![4, 1, 3], 17));
        assert_eq!((&table.rows[1]["runs"], &table.rows[1]["ns_per_run"]), (&10.into(), &200.into()));
        assert_eq!((&table.rows[0]["cpu_percent"], table.rows[2].get("ns_per_run")), (&0.004.into(), None));
        assert!(found.notes[0].starts_with("1 programs"));
    }

    #[test]
    fn a_holder_is_named_with_its_container_or_unit() {
        let of =
            |group: Option<&str>| holder((&7, &Holder { comm: b"agent".to_vec(), group: group.map(str::to_owned) }));
        assert_eq!(of(None), "7 agent");
        assert_eq!(of(Some("/system.slice/agent.service")), "7 agent (agent.service)");
        assert_eq!(of(Some(&format!("/docker/{}", "4f2a99ab".repeat(8)))), "7 agent (container 4f2a99ab4f2a)");
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(named((1..=3).map(|n: u32| n.to_string()).collect::<Vec<_>>().into_iter()), "1, 2, 3");
        assert!(named((1..=30).map(|n: u32| n.to_string()).collect::<Vec<_>>().into_iter()).ends_with("8, 22 more"));
    }
}
