//! What was measured, as Markdown. Each part stands between two comments, so that it can be replaced by itself.

use std::fmt;

use crate::{
    cases::Case,
    flood::Flood,
    growth,
    machine::Machine,
    memory::{self, Memory},
    rounds::{Added, Cost, Costs, Plan},
    server,
    startup::{self, PeerStart, Startup},
    statistics::InPrograms,
    variant::Variant,
};

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    pub(crate) costs: Option<Vec<Costs>>,
    pub(crate) startup: Option<Startup>,
    pub(crate) memory: Option<Memory>,
    pub(crate) flood: Option<Flood>,
    pub(crate) server: Option<Vec<server::Row>>,
    pub(crate) growth: Option<Vec<growth::Row>>,
}

type Text<'a> = fmt::Formatter<'a>;

impl Document {
    /// With nothing in it yet.
    pub(crate) fn new(plan: Plan) -> Self {
        let machine = Machine::default();
        Self { machine, plan, costs: None, startup: None, memory: None, flood: None, server: None, growth: None }
    }

    fn machine(&self, text: &mut Text<'_>) -> fmt::Result {
        let Machine { cpu, cores, is_virtual, kernel, date, bpftrace, libbpf_tools, load } = &self.machine;
        let kind = if *is_virtual { "virtual machine" } else { "machine" };
        writeln!(
            text,
            "Measured on a {kind} with {cores} × {cpu}, Linux {kernel}, on {date}; bpftrace {bpftrace}, libbpf-tools {libbpf_tools}; load \
             average at the end {load}.\n"
        )?;
        if cfg!(debug_assertions) {
            writeln!(
                text,
                "**Of a debug build**: what runs in the kernel is the same, what mcptrace does in user space is slower.\n"
            )?;
        }
        if self.plan.quick {
            writeln!(text, "**A quick run: it shows that the benchmark works, not what things cost.**\n")?;
        }
        Ok(())
    }

    /// A part, if it was measured.
    fn part<T>(
        &self,
        text: &mut Text<'_>,
        (name, title): (&str, &str),
        part: Option<&T>,
        write: impl Fn(&mut Text<'_>, &T) -> fmt::Result,
    ) -> fmt::Result {
        let Some(part) = part else { return Ok(()) };
        writeln!(text, "<!-- part: {name} -->\n## {title}\n")?;
        self.machine(text)?;
        write(text, part)?;
        writeln!(text, "<!-- end of part -->\n")
    }
}

impl fmt::Display for Document {
    fn fmt(&self, text: &mut Text<'_>) -> fmt::Result {
        let Self { costs, startup, memory, flood, server, growth, .. } = self;
        self.part(text, ("costs", "Added to an event"), costs.as_ref(), |text, costs| {
            write_costs(text, costs, &self.plan)
        })?;
        self.part(text, ("startup", "Start-up"), startup.as_ref(), write_startup)?;
        self.part(text, ("memory", "Resident memory"), memory.as_ref(), write_memory)?;
        self.part(text, ("flood", "Events a second"), flood.as_ref(), write_flood)?;
        self.part(text, ("server", "Many calls at once"), server.as_ref(), |text, rows| write_server(text, rows))?;
        self.part(text, ("growth", "What grows"), growth.as_ref(), |text, rows| write_growth(text, rows))
    }
}

fn write_costs(text: &mut Text<'_>, all: &[Costs], plan: &Plan) -> fmt::Result {
    write_added(text, all, plan)?;
    write_in_programs(text, all)?;
    write_of_event(text, all)?;
    write_cheapest(text, all)?;
    write_targets(text, all)?;
    all.iter().try_for_each(|costs| write_remark(text, costs))?;
    writeln!(text)
}

/// What everything adds to an event of the loop.
fn write_added(text: &mut Text<'_>, all: &[Costs], Plan { rounds, length, .. }: &Plan) -> fmt::Result {
    writeln!(
        text,
        "Nanoseconds added to one event of the workload, over no tracing. {rounds} rounds, each with every variant once, in an order that \
         rotates; a measurement lasts {} ms and counts by its fastest slice (a quarter of a millisecond, or 5 ms of opens). The first \
         number compares the fastest rounds, the one in brackets is the median over the rounds of the difference to no tracing in the \
         same round. With a ~ it does not stand out of what the rounds differ by among themselves. Verdicts go by the median: a tool may \
         be lucky once, with where its hash table puts a key.\n",
        length.as_millis()
    )?;
    writeln!(text, "| probe | event | no tracing | empty programs | mcptrace | bpftrace | libbpf-tools |")?;
    writeln!(text, "|---|---|--:|--:|--:|--:|--:|")?;
    for costs in all {
        let [empty, mcptrace, bpftrace, tool] = TRACED.map(|variant| cell(costs, variant));
        let Case { probe, workload, .. } = costs.case;
        let (event, untraced) = (workload.event(), costs.untraced());
        let name = tool_words(costs.case);
        writeln!(
            text,
            "| `{probe}` | {event} | {untraced:.0} | {empty} | **{mcptrace}** | {bpftrace} | {tool}{name} |"
        )?;
    }
    writeln!(text)
}

const TRACED: [Variant; 4] = [Variant::Empty, Variant::Mcptrace, Variant::Bpftrace, Variant::Tool];

fn tool_words(case: &Case) -> String {
    let name = case.tool_name();
    if name.is_empty() { name } else { format!(" `{name}`") }
}

fn write_in_programs(text: &mut Text<'_>, all: &[Costs]) -> fmt::Result {
    writeln!(text, "### In the programs\n")?;
    writeln!(
        text,
        "Nanoseconds that the programs of each took for one event of the workload, by the kernel's own statistics (`bpf_stats_enabled`), and \
         in brackets how often they ran. Less precise than the loop where that is quiet, because the statistics themselves take some 75 ns \
         a run and what leads to a program is not in it, and the only thing to go by where an event takes long and varies.\n"
    )?;
    writeln!(text, "| probe | empty programs | mcptrace | bpftrace | libbpf-tools |\n|---|--:|--:|--:|--:|")?;
    for costs in all {
        let cell = |variant| match costs.in_programs.get(&variant) {
            Some(InPrograms { ns, runs, .. }) => format!("{ns:.0} ({runs:.1})"),
            None => "-".to_owned(),
        };
        let [empty, mcptrace, bpftrace, tool] = TRACED.map(cell);
        writeln!(text, "| `{}` | {empty} | **{mcptrace}** | {bpftrace} | {tool} |", costs.case.probe)?;
    }
    writeln!(text)
}

/// The table that `describe_probe`'s numbers are held against.
fn write_of_event(text: &mut Text<'_>, all: &[Costs]) -> fmt::Result {
    writeln!(text, "{EVENT_TITLE}\n")?;
    writeln!(
        text,
        "Nanoseconds for each event that the probe sees, with no filter: what `describe_probe` says within a factor of {DRIFT} (a test holds \
         it against this table). By the loop: what the first table says, shared out among the events seen. By the statistics, where the \
         loop varies too much: what the second one says; there the statistics' own time stands for that of the hook.\n"
    )?;
    writeln!(text, "| probe | ns | by |\n|---|--:|---|")?;
    for costs in all {
        match costs.of_event() {
            Some(cost) => writeln!(text, "| `{}` | {:.0} | {} |", costs.case.probe, cost.ns, by(cost))?,
            None => writeln!(text, "| `{}` | not known | |", costs.case.probe)?,
        }
    }
    writeln!(text)
}

const EVENT_TITLE: &str = "### Cost of an event";

/// How far what a probe says of itself may be from what was measured.
const DRIFT: f64 = 1.5;

fn by(cost: Cost) -> &'static str {
    if cost.by_loop { "loop" } else { "statistics" }
}

fn write_cheapest(text: &mut Text<'_>, all: &[Costs]) -> fmt::Result {
    let ratios: Vec<_> = all.iter().filter_map(|costs| Some((costs.case, costs.to_cheapest_peer()?))).collect();
    let within = |most: f64| ratios.iter().filter(|(_, (_, ratio))| ratio.ns <= most).count();
    writeln!(text, "### Against the cheapest peer\n")?;
    writeln!(
        text,
        "What mcptrace adds, divided by what the cheapest other tool adds that can be asked the same here. Of {} such questions it adds a \
         third or less in {}, half or less in {}, less in {}.\n",
        ratios.len(),
        within(1.0 / 3.0),
        within(0.5),
        within(1.0)
    )?;
    writeln!(text, "| probe | peer | ratio | by | |\n|---|---|--:|---|---|")?;
    for (case, (peer, ratio)) in ratios {
        let peer = peer.name(case);
        writeln!(text, "| `{}` | {peer} | {:.2} | {} | {} |", case.probe, ratio.ns, by(ratio), standing(ratio.ns))?;
    }
    writeln!(text)
}

fn standing(ratio: f64) -> &'static str {
    match ratio {
        ratio if ratio <= 1.0 / 3.0 => "a third or less",
        ratio if ratio <= 0.5 => "half or less",
        ratio if ratio < 1.0 => "less",
        _ => "**more**",
    }
}

fn write_targets(text: &mut Text<'_>, all: &[Costs]) -> fmt::Result {
    writeln!(text, "### Ratios\n")?;
    writeln!(text, "What mcptrace adds, divided by what the other adds; below 1 mcptrace is cheaper.\n")?;
    writeln!(text, "| probe | to | fastest round | median | target | |")?;
    writeln!(text, "|---|---|--:|--:|--:|---|")?;
    for costs in all {
        for variant in [Variant::Empty, Variant::Bpftrace, Variant::Tool] {
            write_ratio(text, costs, variant)?;
        }
    }
    writeln!(text)
}

fn write_remark(text: &mut Text<'_>, Costs { case, failures, disturbed, seen_per_event, .. }: &Costs) -> fmt::Result {
    write!(text, "- `{}`: {} The probe saw at least {seen_per_event:.2} events", case.probe, case.remark)?;
    writeln!(text, " to one of the workload.{}{}", disturbed_words(*disturbed), failure_words(failures))
}

fn cell(costs: &Costs, variant: Variant) -> String {
    let Some(added @ Added { min, median, .. }) = costs.added(variant) else {
        return if variant.is_there(costs.case) { "does not run" } else { "-" }.to_owned();
    };
    format!("{}{min:.0} ({median:.0})", if added.is_clear() { "" } else { "~" })
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
    writeln!(
        text,
        "Milliseconds from the call (or the start of the process) until all programs are attached: the median of {runs} calls half a second \
         apart in a warm process, and of one start of the others. The first native call of a process, which reads the kernel's types, took \
         {first_ms:.0} ms (`{first_probe}`).\n"
    )?;
    writeln!(text, "| probe | mcptrace | bpftrace | libbpf-tools | target {} |", startup::TARGET_MS)?;
    writeln!(text, "|---|--:|--:|--:|---|")?;
    for startup::Row { case, mcptrace_ms, bpftrace, tool } in rows {
        let verdict = met(*mcptrace_ms <= startup::TARGET_MS);
        let (bpftrace, tool) = (start_words(*bpftrace), start_words(*tool));
        writeln!(text, "| `{}` | **{mcptrace_ms:.1}** | {bpftrace} | {tool} | {verdict} |", case.probe)?;
    }
    writeln!(text)?;
    write_peers_memory(text, rows)
}

fn start_words(start: Option<PeerStart>) -> String {
    start.map_or_else(|| "does not run".to_owned(), |start| format!("{:.0}", start.ms))
}

fn write_peers_memory(text: &mut Text<'_>, rows: &[startup::Row]) -> fmt::Result {
    let most = |of: fn(&startup::Row) -> Option<PeerStart>| {
        rows.iter().filter_map(of).map(|start| start.resident_bytes).max().unwrap_or_default()
    };
    let (bpftrace, tool) = (megabytes(most(|row| row.bpftrace)), megabytes(most(|row| row.tool)));
    writeln!(
        text,
        "Resident once attached, at most: bpftrace {bpftrace:.1} MB, a program of libbpf-tools {tool:.1} MB.\n"
    )
}

fn write_memory(text: &mut Text<'_>, Memory { before, after_one, after_all }: &Memory) -> fmt::Result {
    writeln!(text, "| process | MB | target | |\n|---|--:|--:|---|")?;
    write_resident(text, "mcptrace server, before the first native call", *before, memory::TARGET_BEFORE)?;
    write_resident(text, "mcptrace server, after the first native call", *after_one, memory::TARGET_AFTER)?;
    write_resident(text, "mcptrace server, after each probe has run twice", *after_all, memory::TARGET_AFTER)?;
    writeln!(text)
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
    writeln!(
        text,
        "`file_opens` through the ring buffer, two threads opening and closing a file flat out for {seconds:.1} s on all CPUs: {opens} opens, \
         {:.0} a second. Seen {seen}, delivered {delivered}, dropped {dropped}, missed {missed}.\n",
        *opens as f64 / seconds
    )
}

fn write_server(text: &mut Text<'_>, rows: &[server::Row]) -> fmt::Result {
    writeln!(
        text,
        "Milliseconds from a call to its answer, over stdio, for so many calls that are sent at once by one client. A server runs 8 \
         executions at once and refuses more: a refusal is an answer too. `run_probe`, `exec_program` and `triage` are asked to trace for \
         0.1, 1 and 1 seconds; `query_history` finds no history.\n"
    )?;
    writeln!(text, "| tool | calls | half within | 99 % within | all within | refused |\n|---|--:|--:|--:|--:|--:|")?;
    for server::Row { tool, calls, refused, half_ms, most_ms, all_ms } in rows {
        writeln!(text, "| `{tool}` | {calls} | {half_ms:.1} | {most_ms:.1} | {all_ms:.1} | {refused} |")?;
    }
    writeln!(text)
}

fn write_growth(text: &mut Text<'_>, rows: &[growth::Row]) -> fmt::Result {
    writeln!(text, "A server that keeps more and more, what it holds, and how long it takes to answer about it.\n")?;
    writeln!(text, "| kept | how many | resident MB | question | ms |\n|---|--:|--:|---|--:|")?;
    for growth::Row { what, count, resident_bytes, question, ms } in rows {
        let resident = megabytes(*resident_bytes);
        writeln!(text, "| {what} | {count} | {resident:.1} | `{question}` | {ms:.2} |")?;
    }
    writeln!(text)
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
        let (in_programs, failures) = (BTreeMap::new(), Vec::new());
        let costs = Costs { case: &CASES[0], timings, in_programs, failures, disturbed: 0, seen_per_event: 1.0 };
        Document { costs: Some(vec![costs]), ..Document::new(Plan::new(1, false)) }.to_string()
    }

    /// What the committed document says of a probe's event.
    fn documented() -> BTreeMap<String, f64> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/performance.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, table) = text.split_once(EVENT_TITLE).expect("docs/performance.md has the table of costs");
        let rows = table.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
        let row = |line: &str| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            Some((cells.next()?.trim_matches('`').to_owned(), cells.next()?.parse().ok()?))
        };
        rows.filter_map(row).collect()
    }

    #[test]
    fn what_a_probe_says_of_its_cost_is_what_was_measured() {
        let documented = documented();
        for entry in mcptrace::probes::PROBES {
            let Some(measured) = documented.get(entry.name) else {
                let excused = crate::cases::UNMEASURED.iter().any(|(probe, _)| *probe == entry.name);
                assert!(excused, "docs/performance.md has no cost of {}: run cargo xtask bench", entry.name);
                continue;
            };
            let ratio = entry.cost_ns / measured;
            assert!(
                (1.0 / DRIFT..=DRIFT).contains(&ratio),
                "{}: COST_NS says {}, docs/performance.md {measured}",
                entry.name,
                entry.cost_ns
            );
        }
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
