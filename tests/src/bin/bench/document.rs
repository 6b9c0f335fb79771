//! What was measured, as Markdown.

use std::fmt;

use crate::{
    cases::Case,
    flood::Flood,
    machine::Machine,
    memory::{self, Memory},
    rounds::{Added, Costs, Plan},
    startup::{self, PeerStart, Startup},
    variant::Variant,
};

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    pub(crate) costs: Vec<Costs>,
    pub(crate) startup: Option<Startup>,
    pub(crate) memory: Option<Memory>,
    pub(crate) flood: Option<Flood>,
}

type Text<'a> = fmt::Formatter<'a>;

impl fmt::Display for Document {
    fn fmt(&self, text: &mut Text<'_>) -> fmt::Result {
        self.machine(text)?;
        self.added(text)?;
        self.targets(text)?;
        self.remarks(text)?;
        if let Some(startup) = &self.startup {
            write_startup(text, startup)?;
            write_memory(text, self.memory.as_ref(), startup)?;
        }
        self.flood.iter().try_for_each(|flood| write_flood(text, flood))
    }
}

impl Document {
    fn machine(&self, text: &mut Text<'_>) -> fmt::Result {
        let Machine { cpu, cores, is_virtual, kernel, date, bpftrace, libbpf_tools, load } = &self.machine;
        let kind = if *is_virtual { "virtual machine" } else { "machine" };
        writeln!(text, "## Machine\n")?;
        writeln!(
            text,
            "{kind} with {cores} × {cpu}, Linux {kernel}, on {date}; bpftrace {bpftrace}, libbpf-tools {libbpf_tools}."
        )?;
        writeln!(text, "Load average after the measurements: {load}.\n")?;
        if self.plan.quick {
            writeln!(text, "**A quick run: it shows that the benchmark works, not what things cost.**\n")?;
        }
        Ok(())
    }

    /// What everything adds to an event.
    fn added(&self, text: &mut Text<'_>) -> fmt::Result {
        let Plan { rounds, length, .. } = self.plan;
        writeln!(text, "## Added to an event\n")?;
        writeln!(
            text,
            "Nanoseconds added to one event of the workload, over no tracing. {rounds} rounds, each with every variant once, in an order that \
             rotates; a measurement lasts {} ms and counts by its fastest slice (a quarter of a millisecond, or 5 ms of opens). The first \
             number compares the fastest rounds, the one in brackets is the median over the rounds of the difference to no tracing in the \
             same round. Verdicts go by the median: a tool may be lucky once, with where its hash table puts a key.\n",
            length.as_millis()
        )?;
        writeln!(text, "| probe | event | no tracing | empty programs | mcptrace | bpftrace | libbpf-tools |")?;
        writeln!(text, "|---|---|--:|--:|--:|--:|--:|")?;
        for costs in &self.costs {
            let [empty, mcptrace, bpftrace, tool] =
                [Variant::Empty, Variant::Mcptrace, Variant::Bpftrace, Variant::Tool]
                    .map(|variant| cell(costs, variant));
            let Case { probe, workload, tool: words, .. } = costs.case;
            writeln!(
                text,
                "| `{probe}` | {} | {:.0} | {empty} | **{mcptrace}** | {bpftrace} | {tool}{} |",
                workload.event(),
                costs.untraced(),
                if words.is_empty() { String::new() } else { format!(" `{}`", words.join(" ")) }
            )?;
        }
        writeln!(text)
    }

    fn targets(&self, text: &mut Text<'_>) -> fmt::Result {
        writeln!(text, "## Ratios\n")?;
        writeln!(text, "What mcptrace adds, divided by what the other adds; below 1 mcptrace is cheaper.\n")?;
        writeln!(text, "| probe | to | fastest round | median | target | |")?;
        writeln!(text, "|---|---|--:|--:|--:|---|")?;
        for costs in &self.costs {
            for variant in [Variant::Empty, Variant::Bpftrace, Variant::Tool] {
                write_ratio(text, costs, variant)?;
            }
        }
        writeln!(text)
    }

    fn remarks(&self, text: &mut Text<'_>) -> fmt::Result {
        for Costs { case, failures, disturbed, seen_per_event, .. } in &self.costs {
            write!(text, "- `{}`: {} The probe saw at least {seen_per_event:.2} events", case.probe, case.remark)?;
            writeln!(text, " to one of the workload.{}{}", disturbed_words(*disturbed), failure_words(failures))?;
        }
        writeln!(text)
    }
}

fn cell(costs: &Costs, variant: Variant) -> String {
    let Some(Added { min, median }) = costs.added(variant) else {
        return if variant.is_there(costs.case) { "does not run" } else { "-" }.to_owned();
    };
    format!("{min:.0} ({median:.0})")
}

fn write_ratio(text: &mut Text<'_>, costs: &Costs, variant: Variant) -> fmt::Result {
    let case = costs.case;
    let (Some(ours), Some(theirs)) = (costs.added(Variant::Mcptrace), costs.added(variant)) else { return Ok(()) };
    let target = case.targets.iter().find(|(to, _)| *to == variant).map(|(_, target)| *target);
    let (least, median) = (ratio(ours.min, theirs.min), ratio(ours.median, theirs.median));
    let (target, verdict) = target.map_or_else(Default::default, |most| (format!("≤ {most}"), verdict(median, most)));
    let [least, median] = [least, median].map(ratio_words);
    writeln!(text, "| `{}` | {} | {least} | {median} | {target} | {verdict} |", case.probe, variant.name(case))
}

/// `None` where one of the two is not above the noise.
fn ratio(ours: f64, theirs: f64) -> Option<f64> {
    (ours > 0.0 && theirs > 0.0).then(|| ours / theirs)
}

fn ratio_words(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "in the noise".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn verdict(ratio: Option<f64>, most: f64) -> &'static str {
    ratio.map_or("not known", |ratio| met(ratio <= most))
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "**not met**" }
}

fn disturbed_words(disturbed: u32) -> String {
    if disturbed == 0 {
        return String::new();
    }
    format!(" During {disturbed} measurements other tracing programs came or went.")
}

fn failure_words(failures: &[String]) -> String {
    if failures.is_empty() { String::new() } else { format!(" Did not run: {}.", failures.join("; ")) }
}

fn write_startup(text: &mut Text<'_>, startup: &Startup) -> fmt::Result {
    let Startup { first_ms, first_probe, runs, rows } = startup;
    writeln!(text, "## Start-up\n")?;
    writeln!(
        text,
        "Milliseconds from the call (or the start of the process) until all programs are attached: the median of {runs} calls a second \
         apart in a warm process, and of 3 starts of the others. The first native call of a process, which reads the kernel's types, took \
         {first_ms:.0} ms (`{first_probe}`).\n"
    )?;
    writeln!(text, "| probe | mcptrace | bpftrace | libbpf-tools | target {} |", startup::TARGET_MS)?;
    writeln!(text, "|---|--:|--:|--:|---|")?;
    for startup::Row { case, mcptrace_ms, bpftrace, tool } in rows {
        let verdict = met(*mcptrace_ms <= startup::TARGET_MS);
        let (bpftrace, tool) = (start_words(*bpftrace), start_words(*tool));
        writeln!(text, "| `{}` | **{mcptrace_ms:.1}** | {bpftrace} | {tool} | {verdict} |", case.probe)?;
    }
    writeln!(text)
}

fn start_words(start: Option<PeerStart>) -> String {
    start.map_or_else(|| "does not run".to_owned(), |start| format!("{:.0}", start.ms))
}

fn write_memory(text: &mut Text<'_>, memory: Option<&Memory>, startup: &Startup) -> fmt::Result {
    writeln!(text, "## Resident memory\n")?;
    writeln!(text, "| process | MB | target | |\n|---|--:|--:|---|")?;
    if let Some(Memory { before, after_one, after_all }) = memory {
        write_resident(text, "mcptrace server, before the first native call", *before, memory::TARGET_BEFORE)?;
        write_resident(text, "mcptrace server, after the first native call", *after_one, memory::TARGET_AFTER)?;
        write_resident(text, "mcptrace server, after each probe has run twice", *after_all, memory::TARGET_AFTER)?;
    }
    let most = |of: fn(&startup::Row) -> Option<PeerStart>| {
        startup.rows.iter().filter_map(of).map(|start| start.resident_bytes).max().unwrap_or_default()
    };
    writeln!(text, "| bpftrace, at most | {:.1} | | |", megabytes(most(|row| row.bpftrace)))?;
    writeln!(text, "| libbpf-tools, at most | {:.1} | | |\n", megabytes(most(|row| row.tool)))
}

fn write_resident(text: &mut Text<'_>, what: &str, bytes: u64, target: u64) -> fmt::Result {
    writeln!(text, "| {what} | {:.1} | ≤ {:.0} | {} |", megabytes(bytes), megabytes(target), met(bytes <= target))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn write_flood(text: &mut Text<'_>, flood: &Flood) -> fmt::Result {
    let Flood { seconds, opens, loss } = flood;
    let (seen, delivered) = (loss.seen.unwrap_or_default(), loss.delivered.unwrap_or_default());
    let missed = loss.missed.map_or_else(|| "unknown".to_owned(), |missed| missed.to_string());
    let dropped: Vec<_> = loss.dropped.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    let dropped = if dropped.is_empty() { "0".to_owned() } else { dropped.join(", ") };
    writeln!(text, "## Events a second\n")?;
    writeln!(
        text,
        "`file_opens` through the ring buffer, two threads opening and closing a file flat out for {seconds:.1} s on all CPUs: {opens} opens, \
         {:.0} a second. Seen {seen}, delivered {delivered}, dropped {dropped}, missed {missed}.\n",
        *opens as f64 / seconds
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{cases::CASES, workload::Timing};

    /// Rounds of `syscall_counts`: 100 ns untraced, and what each variant adds.
    fn document(added: [f64; 4]) -> String {
        let [empty, mcptrace, bpftrace, tool] = added;
        let added = [0.0, empty, mcptrace, bpftrace, tool];
        let timing = |added: f64| vec![Timing { fastest: 100.0 + added, events: 1 }];
        let timings: BTreeMap<_, _> = Variant::ALL.into_iter().zip(added.map(timing)).collect();
        let costs = Costs { case: &CASES[0], timings, failures: Vec::new(), disturbed: 0, seen_per_event: 1.0 };
        let (machine, plan) = (Machine::default(), Plan::new(1, false));
        Document { machine, plan, costs: vec![costs], startup: None, memory: None, flood: None }.to_string()
    }

    #[test]
    fn a_target_is_met_or_not() {
        let text = document([100.0, 110.0, 400.0, 160.0]);
        assert!(text.contains("| `syscall_counts` | empty programs | 1.10 | 1.10 | ≤ 1.2 | met |"), "{text}");
        assert!(text.contains("| `syscall_counts` | bpftrace | 0.28 | 0.28 |  |  |"), "{text}");
        assert!(text.contains("| `syscall_counts` | syscount | 0.69 | 0.69 | ≤ 0.65 | **not met** |"), "{text}");
    }

    #[test]
    fn a_ratio_to_nothing_is_not_a_target_met() {
        let text = document([-1.0, 110.0, 400.0, 200.0]);
        assert!(text.contains("| empty programs | in the noise | in the noise | ≤ 1.2 | not known |"), "{text}");
    }
}
