//! Triage: a ranked answer to "what is wrong with this machine".
//!
//! [`gather`] looks at the kernel's own statistics and, where the process may, at a bounded set of native probes, for some seconds.
//! [`rules`] make findings of that, each on its own, and [`rank`] puts causes before what follows from them. Where somebody records,
//! [`recorded`] judges the last minute at once instead, unless the caller says how long to look. Only `gather` and `system` touch the system.

pub mod evidence;
pub mod finding;
pub mod gather;
pub mod lately;
pub mod rank;
pub mod recorded;
pub mod rules;
pub mod system;
mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{evidence::Evidence, finding::Finding, lately::Lately};
use crate::report::Window;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum Focus {
    /// CPUs, run queues, interrupts, limits of control groups.
    Cpu,
    /// Reclaim, limits, kills.
    Memory,
    /// Block devices and durability.
    Disk,
    /// TCP, drops, names.
    Network,
    /// Locks of programs and of the kernel.
    Locks,
    /// Starts, signals, failing system calls.
    Processes,
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It was looked while the caller waited.
    #[default]
    Live,
    /// What the recorder has kept.
    Recorder,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Triage {
    /// `recorder` (the last minute, as recorded) or `live`.
    #[serde(default)]
    pub source: Source,
    /// What stands out, the likeliest cause first; empty if nothing does.
    pub findings: Vec<Finding>,
    /// The numbers that were looked at, whether they stand out or not.
    pub looked_at: Vec<Number>,
    /// What has changed since an hour ago, if somebody records.
    #[serde(default)]
    pub lately: Lately,
    /// When.
    pub window: Window,
    /// What was not looked at, and what a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How many findings have no room; a note says it.
    #[serde(skip)]
    left_out: usize,
}

/// A number with its name and unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Number {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its unit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

impl Number {
    /// A number, rounded to what a reader can use.
    pub fn new(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value: rounded(value), unit: unit.into() }
    }
}

/// How many findings an answer has at most.
const MOST_FINDINGS: usize = 8;
/// An answer as JSON at most, in bytes; as text as well.
pub const MOST_BYTES: usize = 4096;
/// Of a reply, the structure at most.
const STRUCTURE_BYTES: usize = 2700;
/// What a reply has around both.
const FRAME_BYTES: usize = 160;

/// The answer that the evidence gives, beside what was recorded lately.
pub fn judge(evidence: &Evidence, window: Window, lately: Lately) -> Triage {
    let wanted = rules::RULES.iter().filter(|rule| evidence.focus.is_none_or(|focus| focus == rule.focus));
    let mut found: Vec<_> = wanted.filter_map(|rule| rule.judge(evidence)).collect();
    for finding in &mut found {
        finding.ask_about_the_living(|who| who.pid.is_some_and(|pid| evidence.is_there(pid)));
    }
    let (looked_at, notes) = (evidence.numbers(), evidence.notes.clone());
    answer(found, Triage { looked_at, lately, window, notes, ..Triage::default() })
}

/// Ranks findings and makes the answer of them.
fn answer(found: Vec<Finding>, rest: Triage) -> Triage {
    let triage = Triage { findings: rank::ranked(found), ..rest };
    fit(triage, MOST_BYTES)
}

/// The answer as a reply whose text and structure have four kilobytes together: the text says what stands out and what to do next, the
/// structure has the numbers.
pub fn reply(triage: Triage) -> (String, Triage) {
    let triage = fit(triage, STRUCTURE_BYTES);
    let text = text::brief(&triage, MOST_BYTES - FRAME_BYTES - size(&triage));
    (text, triage)
}

/// Leaves out what is missed least until an answer has room, and says so.
fn fit(mut triage: Triage, bytes: usize) -> Triage {
    let all = triage.findings.len();
    triage.findings.truncate(MOST_FINDINGS);
    while size(&triage) + LEFT_OUT > bytes && shortened(&mut triage) {}
    triage.left_out += all - triage.findings.len();
    triage.notes.retain(|note| !note.ends_with(LESSER));
    if triage.left_out > 0 {
        triage.notes.push(format!("{}{LESSER}", triage.left_out));
    }
    triage
}

/// The end of the note that says how many findings have no room.
const LESSER: &str = " lesser findings are left out";

/// Room for the note that something is left out.
const LEFT_OUT: usize = 64;

fn size(triage: &Triage) -> usize {
    serde_json::to_vec(triage).map_or(0, |text| text.len())
}

/// Leaves out what is missed least; false if nothing is left of that.
fn shortened(triage: &mut Triage) -> bool {
    if triage.lately.changed.len() > 2 {
        return triage.lately.changed.pop().is_some();
    }
    if triage.findings.len() > 4 {
        return triage.findings.pop().is_some();
    }
    if let Some(finding) = triage.findings.iter_mut().rev().find(|finding| finding.who.len() > 1) {
        return finding.who.pop().is_some();
    }
    if triage.notes.len() > 3 {
        return triage.notes.pop().is_some();
    }
    if triage.lately.changed.pop().is_some() || triage.looked_at.len() > 8 && triage.looked_at.pop().is_some() {
        return true;
    }
    triage.findings.len() > 1 && triage.findings.pop().is_some()
}

/// Says that there was more to look at.
fn only(focus: Focus) -> String {
    format!("only {} was looked at", serde_json::json!(focus).as_str().unwrap_or_default())
}

/// The answer as a person reads it.
pub fn text(triage: &Triage) -> String {
    text::triage(triage)
}

/// Three significant digits below 1,000, whole numbers above.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = (2 - value.abs().log10().floor() as i32).max(0);
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_four_kilobytes_at_most_and_says_what_is_left_out() {
        use finding::{Judged, Next, Who};
        let who = |pid| Who { pid: Some(pid), comm: "x".repeat(15), cgroup: "/c".repeat(100), ..Who::default() };
        let one = |rule: &rules::Rule| {
            let evidence =
                (0..5).map(|n| Number::new(&"n".repeat(20), f64::from(n) + 0.5, "threads on average")).collect();
            let next = Next::probe("runq_latency", serde_json::json!({ "pid": 7 }), serde_json::json!({ "by": "pid" }));
            let summary = "Something is wrong, and it takes a sentence to say what.".to_owned();
            let who = vec![who(1), who(2), who(3)];
            Finding::new(rule.kind, Judged { impact: 0.9, confidence: 0.9, summary, evidence, who, next })
        };
        let changed = vec![
            lately::Change {
                metric: "m".repeat(30),
                labels: "l".repeat(200),
                measure: "per_second".into(),
                before: 1.0,
                now: 1e9,
                unit: "ns".into(),
            };
            5
        ];
        let lately = Lately { compared_with: "an hour ago".into(), changed, lack: String::new() };
        let notes = vec!["x did not run: ".repeat(13); 15];
        let looked_at = vec![Number::new("context_switches", 12_345.6, "1/s"); 25];
        let found = rules::RULES.iter().map(one).collect();
        let answer = answer(found, Triage { looked_at, lately, notes, ..Triage::default() });
        assert!(size(&answer) <= MOST_BYTES && text(&answer).len() <= MOST_BYTES, "{}", size(&answer));
        assert!(answer.findings.len() >= 2 && answer.looked_at.len() >= 8, "{answer:?}");
        assert!(answer.notes.iter().any(|note| note.contains("lesser findings are left out")), "{answer:?}");
        let (text, structure) = reply(answer);
        let both = serde_json::to_string(&text).unwrap().len() + size(&structure);
        assert!(both + FRAME_BYTES <= MOST_BYTES, "{both}");
        assert!(text.contains("1. ") && text.contains("next: ") && text.len() > 500, "{text}");
        let shown = structure.findings.len();
        let left_out = format!("{} lesser findings are left out", rules::RULES.len() - shown);
        assert_eq!(structure.notes.iter().filter(|note| note.ends_with(LESSER)).collect::<Vec<_>>(), [&left_out]);
    }

    #[test]
    fn numbers_are_rounded_to_three_digits() {
        for (given, rounded_to) in
            [(0.0, 0.0), (0.012_345, 0.0123), (1.2345, 1.23), (999.6, 1000.0), (123_456.7, 123_457.0)]
        {
            assert!((rounded(given) - rounded_to).abs() < 1e-9, "{given}: {}", rounded(given));
        }
    }
}
