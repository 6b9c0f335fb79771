//! What probes of stacks share: sizes, and how weighted stacks become a report.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use mcptrace_wire::{StackKey, StackWeight};

use super::Found;
use crate::{
    kernel::{
        attached::Plan,
        hook::Attach,
        stacks::{Named, NamedStack},
    },
    report::{FrameWeight, Report, Stack, Stacks},
};

/// Stacks that the kernel side tells apart.
pub const MOST_STACKS: u32 = 32_768;
/// Buffer for new stacks.
const BUFFER_BYTES: u32 = 4 << 20;
/// Stacks and frames that a report keeps; the folded text has all.
const MOST_SHOWN: usize = 1000;
/// Bytes of folded text.
const MOST_FOLDED: usize = 16 << 20;
/// The share of weight without a name, in percent, from which on readers are told why.
const MUCH_UNKNOWN: f64 = 10.0;
/// What stands for the lightest stacks where the folded text would be too long.
const REST: &str = "[other stacks]";

/// What tells which files processes run. Attached last: it helps with names and is not part of what a probe finds.
const EXECUTED: Attach = Attach::tracepoint("executed", "sched_process_exec").optional();

/// Sizes of what the kernel side keeps, and the hook that all probes of stacks have.
pub fn prepare(plan: &mut Plan) {
    plan.attach.push(EXECUTED);
    plan.event_bytes = BUFFER_BYTES;
    plan.map_entries.push(("STACKS", MOST_STACKS));
}

/// What of a weight is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// How many events.
    Samples,
    /// The sum of their durations.
    Ns,
    /// The sum of their sizes.
    Bytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Ns => "ns",
            Self::Bytes => "bytes",
        }
    }

    fn of(self, weight: StackWeight) -> u64 {
        if self == Self::Samples { weight.count } else { weight.sum }
    }
}

/// Command and functions.
type Place = (String, Vec<Arc<str>>);

/// One line of folded text before it is a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// The command.
    pub comm: String,
    /// Functions, outermost first.
    pub frames: Vec<Arc<str>>,
    /// Its weight.
    pub value: u64,
    /// How much of that has an innermost function without a name.
    pub unknown: u64,
}

/// A report of stacks out of their weights and names.
pub fn found(weights: &BTreeMap<StackKey, StackWeight>, named: Named, unit: Unit) -> Found {
    let nameless = NamedStack { unknown: true, ..NamedStack::default() };
    let used = weights.iter().filter(|(_, weight)| weight.count > 0);
    let stacks = used.map(|(key, weight)| {
        let stack = named.stacks.get(key).unwrap_or(&nameless);
        (stack.comm.clone(), marked(stack), stack.unknown, unit.of(*weight))
    });
    let report = report(stacks, unit.name());
    let delivered = weights.values().map(|weight| weight.count).sum();
    let notes = named.notes.into_iter().chain(unknown_note(&report)).collect();
    Found { report: Some(Report::Stacks(report)), delivered, notes }
}

/// Why much of it has no name, and where there is one.
pub fn unknown_note(stacks: &Stacks) -> Option<String> {
    (stacks.unknown_percent > MUCH_UNKNOWN).then(|| {
        format!(
            "{} % of the {} are of code without names: of a stripped file (shown as [file]; a build with its symbol table has them), of one \
             that was no longer found when names were looked up, deleted or in the root of a container that had ended (shown as [gone]; \
             trace it while it runs), or made at run time by a JIT (shown as [unknown]; the profiler of its own runtime has them)",
            stacks.unknown_percent, stacks.unit
        )
    })
}

/// The functions of a stack; those of the kernel end in `_[k]`, as is usual in folded text.
pub fn marked(stack: &NamedStack) -> Vec<Arc<str>> {
    let user = stack.frames.len() - stack.kernel;
    let mark = |(index, frame): (usize, &Arc<str>)| {
        if index < user { frame.clone() } else { Arc::from(format!("{frame}_[k]")) }
    };
    stack.frames.iter().enumerate().map(mark).collect()
}

/// A report out of command, functions (outermost first), whether the innermost has no name, and weight.
pub fn report(stacks: impl Iterator<Item = (String, Vec<Arc<str>>, bool, u64)>, unit: &str) -> Stacks {
    let mut merged: HashMap<Place, (u64, u64)> = HashMap::new();
    for (comm, frames, unknown, value) in stacks {
        let sums = merged.entry((comm, frames)).or_default();
        sums.0 += value;
        sums.1 += if unknown { value } else { 0 };
    }
    let mut all: Vec<_> =
        merged.into_iter().map(|((comm, frames), (value, unknown))| Folded { comm, frames, value, unknown }).collect();
    all.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| (&a.comm, &a.frames).cmp(&(&b.comm, &b.frames))));
    let frames = weigh_frames(&all);
    Stacks {
        unit: unit.to_owned(),
        total: all.iter().map(|one| one.value).sum(),
        unknown_percent: unknown_percent(&all),
        frames_total: frames.len() as u64,
        frames: frames.into_iter().take(MOST_SHOWN).collect(),
        stacks_total: all.len() as u64,
        stacks: all.iter().take(MOST_SHOWN).map(shown).collect(),
        folded_uri: String::new(),
        flamegraph_uri: String::new(),
        folded: folded(&all).into(),
    }
}

fn shown(one: &Folded) -> Stack {
    Stack { frames: one.frames.iter().map(ToString::to_string).collect(), value: one.value, comm: one.comm.clone() }
}

/// Of the weight, not of the frames: a name for main does not say where the time goes.
fn unknown_percent(all: &[Folded]) -> f64 {
    let sum = |of: fn(&Folded) -> u64| all.iter().map(|one| of(one) as f64).sum::<f64>();
    let (unknown, total) = (sum(|one| one.unknown), sum(|one| one.value));
    if total == 0.0 { 0.0 } else { (unknown / total * 1000.0).round() / 10.0 }
}

/// Functions by what they weigh themselves, then by what is below them. A function that calls itself counts once a stack.
fn weigh_frames(all: &[Folded]) -> Vec<FrameWeight> {
    let mut weights: HashMap<&str, (u64, u64)> = HashMap::new();
    for one in all {
        let mut seen: Vec<&str> = one.frames.iter().map(AsRef::as_ref).collect();
        if let Some(last) = seen.last() {
            weights.entry(last).or_default().0 += one.value;
        }
        seen.sort_unstable();
        seen.dedup();
        for frame in seen {
            weights.entry(frame).or_default().1 += one.value;
        }
    }
    let mut frames: Vec<_> = weights
        .into_iter()
        .map(|(frame, (self_weight, total))| FrameWeight { frame: frame.to_owned(), self_weight, total })
        .collect();
    frames.sort_by(|a, b| (b.self_weight, b.total, &a.frame).cmp(&(a.self_weight, a.total, &b.frame)));
    frames
}

/// One line a stack, heaviest first: command and functions with semicolons between, a blank, the weight.
fn folded(all: &[Folded]) -> String {
    let mut text = String::new();
    let mut rest = 0;
    for one in all {
        if text.len() > MOST_FOLDED {
            rest += one.value;
            continue;
        }
        text.push_str(&escaped(if one.comm.is_empty() { "[unknown]" } else { &one.comm }));
        for frame in &one.frames {
            text.push(';');
            text.push_str(&escaped(frame));
        }
        let _ = writeln!(text, " {}", one.value);
    }
    if rest > 0 {
        let _ = writeln!(text, "{REST} {rest}");
    }
    text
}

fn escaped(name: &str) -> String {
    name.replace(';', ":").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> StackKey {
        StackKey { id, pid: 7, zero: 0 }
    }

    fn stack(comm: &str, frames: &[&str], kernel: usize) -> NamedStack {
        let unknown = frames.last() == Some(&"[unknown]");
        NamedStack { comm: comm.into(), frames: frames.iter().map(|frame| (*frame).into()).collect(), kernel, unknown }
    }

    fn weight(count: u64, sum: u64) -> StackWeight {
        StackWeight { count, sum }
    }

    #[test]
    fn stacks_of_one_name_are_one_and_nothing_is_lost() {
        let stacks = [
            (key(2), stack("a", &["main", "work", "do_read"], 1)),
            (key(3), stack("a", &["main", "work", "do_read"], 1)),
            (key(4), stack("b", &["main", "[unknown]"], 0)),
        ];
        let weights = BTreeMap::from([
            (key(2), weight(3, 0)),
            (key(3), weight(4, 0)),
            (key(4), weight(13, 0)),
            (key(5), weight(2, 0)),
            (key(6), weight(0, 0)),
        ]);
        let found = found(&weights, Named { stacks: stacks.into(), notes: Vec::new() }, Unit::Samples);
        assert_eq!(found.delivered, 22);
        let Some(Report::Stacks(stacks)) = found.report else { panic!() };
        assert_eq!(&*stacks.folded, "b;main;[unknown] 13\na;main;work;do_read_[k] 7\n[unknown] 2\n");
        assert_eq!((stacks.total, stacks.stacks_total, stacks.frames_total), (22, 3, 4));
        // 13 of b and 2 of a stack that was not kept, of 22.
        assert!((stacks.unknown_percent - 68.2).abs() < 1e-9, "{}", stacks.unknown_percent);
        assert!(found.notes.iter().any(|note| note.starts_with("68.2 % of the samples")), "{:?}", found.notes);
        let main = stacks.frames.iter().find(|frame| frame.frame == "main").unwrap();
        assert_eq!((main.self_weight, main.total), (0, 20));
        assert_eq!(stacks.frames[0].frame, "[unknown]");
    }

    #[test]
    fn a_stack_is_unknown_only_if_its_innermost_function_is() {
        let frames = |names: [&str; 3]| names.map(Arc::from).to_vec();
        let stacks = [
            ("a".to_owned(), frames(["[unknown]", "[unknown]", "f"]), false, 90),
            ("a".to_owned(), frames(["main", "work", "[unknown]"]), true, 10),
        ];
        let report = report(stacks.into_iter(), "ns");
        assert!((report.unknown_percent - 10.0).abs() < 1e-9, "{}", report.unknown_percent);
        assert_eq!(unknown_note(&report), None, "a little is always unknown");
    }

    #[test]
    fn a_function_that_calls_itself_counts_once() {
        let frames: Vec<Arc<str>> = ["f", "f", "g", "f"].map(Arc::from).into();
        let report = report([("a".into(), frames, false, 5)].into_iter(), "ns");
        let f = report.frames.iter().find(|frame| frame.frame == "f").unwrap();
        assert_eq!((f.self_weight, f.total), (5, 5));
    }
}
