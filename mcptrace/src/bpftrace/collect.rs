//! What a running script has written so far, within fixed bounds: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde_json::Value;

use super::child::MAP_KEYS;
use super::record::{self, HelperError, Node, Record};
use super::reports::{Print, map_report, shown};
use super::text::{escape, head, map_lines};
use super::{Cut, Limits};
use crate::report::{Events, Field, NamedReport, Report, Row};

/// How many different unknown types, and how many places of helper errors, are told apart.
const KINDS: usize = 32;
/// The report of what was printed.
pub(crate) const PRINTED: &str = "output";
/// How many maps are told apart: more than bpftrace 0.17 lets a program of 64 KB have.
const MAPS: usize = 4096;

/// Takes in the standard output of `bpftrace -f json`, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Collector {
    limits: Limits,
    /// The beginning of a record whose line end has not come yet.
    pending: Vec<u8>,
    /// The rest of this record is thrown away, because it is too long.
    skipping: bool,
    text: TextLines,
    events: Vec<Row>,
    events_bytes: usize,
    events_total: u64,
    prints: VecDeque<(String, usize, Print)>,
    print_bytes: usize,
    print_counts: HashMap<String, PrintCount>,
    refused_prints: u64,
    helper_errors: BTreeMap<HelperError, u64>,
    helper_errors_total: u64,
    unknown: BTreeMap<String, u64>,
    not_json: u64,
    lost: u64,
    attached: Option<u64>,
    long_records: u64,
}

/// How often a map was printed, and how many of these prints are still held.
#[derive(Debug, Default)]
struct PrintCount {
    seen: u64,
    held: u64,
}

impl Collector {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            pending: Vec::new(),
            skipping: false,
            text: TextLines::new(limits),
            events: Vec::new(),
            events_bytes: 0,
            events_total: 0,
            prints: VecDeque::new(),
            print_bytes: 0,
            print_counts: HashMap::new(),
            refused_prints: 0,
            helper_errors: BTreeMap::new(),
            helper_errors_total: 0,
            unknown: BTreeMap::new(),
            not_json: 0,
            lost: 0,
            attached: None,
            long_records: 0,
        }
    }

    /// Takes in the next bytes, wherever they begin and end.
    pub(crate) fn feed(&mut self, mut chunk: &[u8]) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = chunk.split_at(end);
            chunk = &rest[1..];
            if self.skipping {
                self.skipping = false;
            } else if self.pending.is_empty() && line.len() <= self.limits.record_bytes {
                self.record(line);
            } else if self.keep(line) {
                let line = std::mem::take(&mut self.pending);
                self.record(&line);
            } else {
                self.skipping = false;
            }
        }
        if !self.skipping {
            self.keep(chunk);
        }
    }

    /// Takes in a last line without line end. Only for output that has ended.
    pub(crate) fn finish(&mut self) {
        let line = std::mem::take(&mut self.pending);
        self.record(&line);
        self.text.end_line();
    }

    /// Adds to the pending record; false when it is now too long and given up.
    fn keep(&mut self, part: &[u8]) -> bool {
        if self.pending.len() + part.len() <= self.limits.record_bytes {
            self.pending.extend_from_slice(part);
            return true;
        }
        let beginning = std::mem::take(&mut self.pending);
        let beginning = if beginning.is_empty() { part } else { &beginning };
        self.text.push_whole(&String::from_utf8_lossy(&beginning[..beginning.len().min(self.limits.line_bytes)]));
        self.long_records += 1;
        self.skipping = true;
        false
    }

    fn record(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match record::parse(line) {
            Some(Record::Attached(probes)) => self.attach(probes),
            Some(Record::Text { kind, text }) => self.text(&kind, &text),
            Some(Record::Map { name, kind, body }) => self.map(name, line.len(), kind, body),
            Some(Record::HelperError(error)) => self.helper_error(error),
            Some(Record::Lost(events)) => self.lost = self.lost.saturating_add(events),
            Some(Record::Unknown(kind)) => {
                count_bounded(&mut self.unknown, escape(head(&kind, 64)));
                self.text.push_whole(&String::from_utf8_lossy(line));
            }
            None => {
                self.not_json += 1;
                self.text.push_whole(&String::from_utf8_lossy(line));
            }
        }
    }

    /// The line that bpftrace prints without `-f json`.
    fn attach(&mut self, probes: u64) {
        self.attached = Some(probes);
        self.text.push_whole(&format!("Attaching {probes} probe{}...", if probes == 1 { "" } else { "s" }));
    }

    fn text(&mut self, kind: &str, text: &str) {
        self.text.push(text);
        self.events_total += 1;
        if self.events.len() >= self.limits.lines || self.events_bytes >= self.limits.bytes {
            return;
        }
        let text = shown(text.strip_suffix('\n').unwrap_or(text));
        let text = head(&text, self.limits.line_bytes);
        self.events_bytes += text.len();
        let field = |name: &str, value: &str| (name.to_owned(), Value::String(value.to_owned()));
        self.events.push(Row::from_iter([field("type", kind), field("text", text)]));
    }

    fn map(&mut self, name: String, bytes: usize, kind: record::MapKind, body: Node) {
        for line in map_lines(&escape(&name), kind, &body) {
            self.text.push_whole(&line);
        }
        if self.print_counts.len() >= MAPS && !self.print_counts.contains_key(&name) {
            self.refused_prints += 1;
            return;
        }
        let count = self.print_counts.entry(name.clone()).or_default();
        count.seen += 1;
        count.held += 1;
        let print = Print { number: count.seen, kind, body };
        self.print_bytes += bytes;
        self.prints.push_back((name, bytes, print));
        while self.print_bytes > self.limits.map_bytes && self.prints.len() > 1 {
            self.drop_print();
        }
    }

    /// Lets go of the oldest print that a later one of the same map replaces, or else of the oldest.
    fn drop_print(&mut self) {
        let replaced = self.prints.iter().position(|(name, _, _)| self.print_counts[name].held > 1);
        if let Some((name, bytes, _)) = self.prints.remove(replaced.unwrap_or(0)) {
            self.print_bytes -= bytes;
            self.print_counts.entry(name).or_default().held -= 1;
        }
    }

    fn helper_error(&mut self, error: HelperError) {
        self.helper_errors_total += 1;
        count_bounded(&mut self.helper_errors, error);
    }

    pub(crate) fn attached(&self) -> Option<u64> {
        self.attached
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// How many events and map prints there were: zero means that the script has said nothing.
    pub(crate) fn records(&self) -> u64 {
        self.events_total + self.print_counts.values().map(|count| count.seen).sum::<u64>()
    }

    pub(crate) fn lines_total(&self) -> u64 {
        self.text.total()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.text.shown()
    }

    pub(crate) fn cut(&self) -> Cut {
        Cut {
            lines: self.text.total() - self.text.lines.len() as u64 - u64::from(self.text.shows_open()),
            long_lines: self.text.long,
            long_records: self.long_records,
            events: self.events_total - self.events.len() as u64,
            prints: self.print_counts.values().map(|count| count.seen - count.held).sum::<u64>() + self.refused_prints,
        }
    }

    /// What was printed as one report of events, then one report per map in the order of their last print.
    pub(crate) fn reports(&self) -> Vec<NamedReport> {
        let events = (self.events_total > 0).then(|| self.events());
        events.into_iter().chain(self.maps()).collect()
    }

    fn events(&self) -> NamedReport {
        let fields = vec![Field::new("type", ""), Field::new("text", "")];
        let events = Events { fields, rows: self.events.clone(), rows_total: self.events_total, rows_evicted: 0 };
        NamedReport { name: PRINTED.into(), report: Report::Events(events) }
    }

    fn maps(&self) -> Vec<NamedReport> {
        let mut by_name: HashMap<&str, Vec<&Print>> = HashMap::new();
        for (name, _, print) in &self.prints {
            by_name.entry(name).or_default().push(print);
        }
        let mut maps = Vec::new();
        for (name, _, _) in &self.prints {
            let Some(prints) = by_name.remove(name.as_str()) else { continue };
            let report = map_report(&prints, self.print_counts[name].seen > 1, self.limits.lines);
            maps.push(NamedReport { name: escape(name), report });
        }
        maps
    }

    /// Whether events were on the way through bpftrace's buffers.
    pub(crate) fn had_events(&self) -> bool {
        self.events_total + self.helper_errors_total > 0
    }

    /// Says which maps have no room left: the failed updates are counted too, but not those in bpftrace's last moment.
    fn full_maps(&self) -> Option<String> {
        let full = |print: &Print| matches!(&print.body, Node::Pairs(pairs) if pairs.len() as u64 >= MAP_KEYS);
        let names: BTreeSet<String> =
            self.prints.iter().filter(|(_, _, print)| full(print)).map(|(name, _, _)| escape(name)).collect();
        let names: Vec<String> = names.into_iter().collect();
        let list = names.join(", ");
        (!names.is_empty()).then(|| format!("full with {MAP_KEYS} keys, so later keys may be missing: {list}"))
    }

    /// What a reader must know to not misread the rest.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.prints.iter().any(|(_, _, print)| print.kind == record::MapKind::Hist) {
            notes.push(
                "histograms hold bpftrace's buckets: min, max and percentiles are bucket edges, the mean is taken from bucket \
                 middles, and relative_error says how far off they can be"
                    .into(),
            );
        }
        notes.extend(self.helper_errors.iter().map(|(error, count)| helper_note(error, *count)));
        let told: u64 = self.helper_errors.values().sum();
        if told < self.helper_errors_total {
            notes.push(format!("{} more BPF helper calls failed at other places", self.helper_errors_total - told));
        }
        if self.lost > 0 {
            notes.push(format!("bpftrace lost {} events because they came faster than they could be read", self.lost));
        }
        notes.extend(self.full_maps());
        for (kind, count) in &self.unknown {
            notes.push(format!("{count} records of a type that is not known here are kept as raw lines: {kind}"));
        }
        if self.not_json > 0 {
            notes.push(format!("{} lines are not JSON and are kept as raw lines", self.not_json));
        }
        notes
    }
}

/// `-7` is E2BIG: the map is full. `-2` is ENOENT: a key to delete was not there, which loses nothing.
fn helper_note(error: &HelperError, count: u64) -> String {
    let HelperError { helper, code, line, column } = error;
    let helper = escape(head(helper, 64));
    let meaning = match (helper.as_str(), code) {
        ("map_update_elem", -7) => ": the map is full, and what had no room is missing from it",
        ("map_delete_elem", -2) => ": the key was not there",
        _ => "",
    };
    format!("{helper} failed {count} times with {code} at line {line}, column {column} of the script{meaning}")
}

/// Counts by key, up to [`KINDS`] of them.
fn count_bounded<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    if counts.len() < KINDS || counts.contains_key(&key) {
        *counts.entry(key).or_default() += 1;
    }
}

/// Text cut into lines: the first ones are kept, all are counted.
#[derive(Debug)]
struct TextLines {
    limits: Limits,
    lines: Vec<String>,
    bytes: usize,
    /// The last line, while its end has not come.
    open: Option<OpenLine>,
    complete: u64,
    long: u64,
}

#[derive(Debug, Default)]
struct OpenLine {
    text: String,
    cut: u64,
}

impl TextLines {
    fn new(limits: Limits) -> Self {
        Self { limits, lines: Vec::new(), bytes: 0, open: None, complete: 0, long: 0 }
    }

    /// Adds text as a stream: a line ends where the text says.
    fn push(&mut self, text: &str) {
        for part in text.split_inclusive('\n') {
            let (line, ends) = part.strip_suffix('\n').map_or((part, false), |line| (line, true));
            self.extend(line);
            if ends {
                self.end_line();
            }
        }
    }

    /// Adds a line of its own; one that is still open ends before it.
    fn push_whole(&mut self, line: &str) {
        self.end_line();
        self.extend(line);
        self.end_line();
    }

    fn extend(&mut self, text: &str) {
        let full = self.full();
        let open = self.open.get_or_insert_default();
        if full {
            return;
        }
        let kept = head(text, self.limits.line_bytes.saturating_sub(open.text.len()));
        open.text.push_str(kept);
        open.cut += (text.len() - kept.len()) as u64;
    }

    fn end_line(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.complete += 1;
        if !self.full() {
            self.long += u64::from(open.cut > 0);
            let line = open.shown();
            self.bytes += line.len();
            self.lines.push(line);
        }
    }

    fn full(&self) -> bool {
        self.lines.len() >= self.limits.lines || self.bytes >= self.limits.bytes
    }

    fn total(&self) -> u64 {
        self.complete + u64::from(self.open.is_some())
    }

    fn shows_open(&self) -> bool {
        self.open.is_some() && !self.full()
    }

    fn shown(&self) -> Vec<String> {
        let open = self.open.as_ref().filter(|_| !self.full()).map(OpenLine::shown);
        self.lines.iter().cloned().chain(open).collect()
    }
}

impl OpenLine {
    fn shown(&self) -> String {
        let text = escape(&self.text);
        if self.cut == 0 { text } else { format!("{text} [{} bytes cut]", self.cut) }
    }
}

/// Takes in output of bpftrace within tight limits. For tests: none may be a panic, and what is kept is bounded.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_output(output: &[u8]) {
    let limits = Limits { lines: 50, bytes: 4096, record_bytes: 2048, map_bytes: 4096, ..Limits::default() };
    let mut collector = Collector::new(limits);
    collector.feed(output);
    collector.finish();
    let bytes: usize = collector.lines().iter().map(String::len).sum();
    assert!(collector.lines().len() <= 50 && bytes <= 64 << 10, "{bytes}");
    assert!(collector.reports().len() < 200);
    assert!(collector.notes().len() < 200);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(limits: Limits, output: &[u8]) -> Collector {
        let mut collector = Collector::new(limits);
        collector.feed(output);
        collector.finish();
        collector
    }

    #[test]
    fn no_output_is_a_panic_and_what_is_kept_of_it_is_bounded() {
        let corpus: &[&[u8]] = &[
            b"{\"type\": \"attached_probes\", \"data\": {\"probes\": 2}}\n\n{\"type\": \"map\", \"data\": {\"@a\": {\"x,1\": 3}}}\n",
            b"{\"type\": \"hist\", \"data\": {\"@h\": {\"k\": [{\"min\": 2, \"max\": 3, \"count\": 5}, {\"max\": -1, \"count\": 1}]}}}\n",
            b"{\"type\": \"stats\", \"data\": {\"@s\": {\"count\": 1, \"average\": 2, \"total\": 3}}}\n",
            b"{\"type\": \"printf\", \"data\": \"a\\u001b[31m\\n\"}\n{\"type\": \"lost_events\", \"data\": {\"events\": 7}}\n",
            b"{\"type\": \"helper_error\", \"data\": {\"msg\": \"E\", \"helper\": \"map_update_elem\", \"retcode\": -7, \"line\": 1, \"col\": 2}}\n",
        ];
        crate::fuzz::inputs(corpus, 10_000).for_each(|output| check_output(&output));
    }

    #[test]
    fn chunks_may_end_anywhere() {
        let output = include_bytes!("../../../tests/fixtures/bpftrace/types.jsonl");
        let whole = collect(Limits::default(), output);
        let mut pieces = Collector::new(Limits::default());
        for byte in output {
            pieces.feed(&[*byte]);
        }
        pieces.finish();
        assert_eq!(whole.lines(), pieces.lines());
        assert_eq!(whole.reports(), pieces.reports());
        assert!(whole.notes().iter().any(|note| note.contains("lost 7 events")), "{:?}", whole.notes());
    }

    #[test]
    fn text_without_line_end_joins_the_next() {
        let output = br#"{"type": "printf", "data": "a"}
{"type": "printf", "data": "b\nc"}
{"type": "map", "data": {"@x": 1}}
"#;
        let collector = collect(Limits::default(), output);
        assert_eq!(collector.lines(), ["ab", "c", "@x: 1"]);
        assert_eq!(collector.lines_total(), 3);
    }

    #[test]
    fn lines_over_the_limit_are_counted_and_maps_still_reported() {
        let limits = Limits { lines: 3, ..Limits::default() };
        let mut output = "{\"type\": \"printf\", \"data\": \"x\\n\"}\n".repeat(7);
        output += "{\"type\": \"map\", \"data\": {\"@x\": 23}}\n";
        let collector = collect(limits, output.as_bytes());
        assert_eq!((collector.lines().len(), collector.lines_total()), (3, 8));
        assert_eq!(collector.cut(), Cut { lines: 5, events: 4, ..Cut::default() });
        let Report::Table(table) = &collector.reports()[1].report else { panic!("no table") };
        assert_eq!(table.rows[0]["value"], 23);
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let limits = Limits { line_bytes: 4, ..Limits::default() };
        let collector = collect(limits, b"{\"type\": \"printf\", \"data\": \"abcdefg\\n\"}\n");
        assert_eq!(collector.lines(), ["abcd [3 bytes cut]"]);
        assert_eq!(collector.cut().long_lines, 1);
    }

    #[test]
    fn a_record_without_end_takes_no_memory() {
        let limits = Limits { record_bytes: 100, ..Limits::default() };
        let mut collector = Collector::new(limits);
        for _ in 0..1000 {
            collector.feed(&[b'x'; 64]);
        }
        assert!(collector.pending.capacity() <= 200);
        collector.feed(b"\n{\"type\": \"map\", \"data\": {\"@x\": 1}}\n");
        assert_eq!(collector.cut().long_records, 1);
        assert_eq!(collector.lines().last().unwrap(), "@x: 1");
    }

    #[test]
    fn old_prints_of_a_map_go_first() {
        let limits = Limits { map_bytes: 150, ..Limits::default() };
        let mut output = "{\"type\": \"map\", \"data\": {\"@once\": 1}}\n".to_owned();
        output += &"{\"type\": \"map\", \"data\": {\"@often\": 2}}\n".repeat(9);
        let collector = collect(limits, output.as_bytes());
        let names: Vec<String> = collector.reports().into_iter().map(|report| report.name).collect();
        assert_eq!(names, ["@once", "@often"]);
        assert_eq!(collector.cut().prints, 7);
    }

    #[test]
    fn what_is_not_json_is_kept_and_escaped() {
        let collector = collect(Limits::default(), b"oh \x1b[31m no \xff\n{\"type\": \"new\", \"data\": 1}\n");
        assert_eq!(collector.lines(), ["oh \\u{1b}[31m no \u{fffd}", "{\"type\": \"new\", \"data\": 1}"]);
        assert_eq!(collector.notes().len(), 2);
    }

    #[test]
    fn a_full_map_is_said() {
        let line = br#"{"type": "helper_error", "helper": "map_update_elem", "retcode": -7, "line": 1, "col": 46}
"#;
        let collector = collect(Limits::default(), &line.repeat(5));
        assert_eq!(collector.notes().len(), 1);
        assert!(collector.notes()[0].starts_with("map_update_elem failed 5 times with -7 at line 1, column 46"));
        assert!(collector.notes()[0].contains("full"));
    }
}
