//! The answer as text: for people at a shell, and (in brief) for assistants, beside its structure. At most 4 KB.

use std::fmt::Write as _;

use super::{
    MOST_BYTES, Number, Source, Triage,
    finding::{Finding, Who},
    lately::{Change, Lately},
};
use crate::{
    report::text::{
        measured,
        units::{decimal, plain, seconds},
    },
    text::clipped,
};

/// For people at a shell.
pub(super) fn triage(triage: &Triage) -> String {
    let mut text = head(triage);
    for finding in &triage.findings {
        text.push_str("\n\n");
        text.push_str(&one(finding));
    }
    let _ = write!(text, "\n\nlooked at: {}", numbers(&triage.looked_at));
    text.push_str(&changed(&triage.lately));
    for note in &triage.notes {
        let _ = write!(text, "\nnote: {}", plain(note, 200));
    }
    clipped(text, MOST_BYTES)
}

/// What stands out and what to do next, in so many bytes of JSON.
pub(super) fn brief(triage: &Triage, bytes: usize) -> String {
    let mut text = head(triage);
    for finding in &triage.findings {
        let _ = write!(text, "\n{}", title(finding));
        for one in finding.who.iter().take(1) {
            let _ = write!(text, "\n   {}", someone(one));
        }
        let _ = write!(text, "\n   next: {} {}", finding.next.tool, finding.next.arguments);
    }
    text.push_str("\nThe numbers are in the structured content.");
    for note in &triage.notes {
        let _ = write!(text, "\nnote: {}", plain(note, 200));
    }
    let mut most = bytes;
    loop {
        let cut = clipped(text.clone(), most);
        let excess = serde_json::json!(cut).to_string().len().saturating_sub(bytes);
        if excess == 0 || most == 0 {
            return cut;
        }
        most = most.saturating_sub(excess);
    }
}

fn changed(lately: &Lately) -> String {
    let Lately { compared_with, changed, lack } = lately;
    if compared_with.is_empty() {
        return if lack.is_empty() { String::new() } else { format!("\nnote: {}", plain(lack, 200)) };
    }
    if changed.is_empty() {
        return format!("\nrecorder: nothing has doubled or halved since {compared_with}");
    }
    let one = |one: &Change| {
        let Change { metric, labels, measure, before, now, unit } = one;
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", plain(labels, 80)) };
        let [before, now] = [before, now].map(|value| measured(&serde_json::json!(value), unit));
        format!("\n   {metric}{labels} {measure} {before} -> {now}")
    };
    format!("\nrecorder, last minute against {compared_with}:{}", changed.iter().map(one).collect::<String>())
}

fn head(triage: &Triage) -> String {
    let length = seconds(triage.window.seconds);
    let length = match triage.source {
        Source::Live => length,
        Source::Recorder => format!("the last {length} as recorded"),
    };
    match triage.findings.len() {
        0 => format!("Nothing stands out in {length}."),
        1 => format!("One thing stands out in {length}:"),
        more => format!("{more} things stand out in {length}, the likeliest cause first:"),
    }
}

fn title(finding: &Finding) -> String {
    let Finding { rank, severity, summary, because_of, confidence, over, .. } = finding;
    let kind = name(finding.kind);
    let sure = decimal((confidence * 100.0).round());
    let over = if *over { ", over by now" } else { "" };
    let mut text = format!("{rank}. {kind} ({}, {sure} % sure{over}): {summary}", severity.as_str());
    if !because_of.is_empty() {
        let causes: Vec<_> = because_of.iter().map(|kind| name(*kind)).collect();
        let _ = write!(text, "\n   likely because of: {}", causes.join(", "));
    }
    text
}

fn one(finding: &Finding) -> String {
    let Finding { evidence, who, next, .. } = finding;
    let mut text = title(finding);
    let _ = write!(text, "\n   {}", numbers(evidence));
    for one in who {
        let _ = write!(text, "\n   {}", someone(one));
    }
    let _ = write!(text, "\n   next: {}", next.at_a_shell());
    text
}

fn name(kind: super::finding::Kind) -> String {
    serde_json::to_value(kind).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

fn someone(who: &Who) -> String {
    let Who { pid, comm, cgroup, device, peer, value, unit } = who;
    let pid = pid.map(|pid| format!("pid {pid}"));
    let named = [("", comm), ("cgroup ", cgroup), ("", device), ("peer ", peer)];
    let named =
        named.iter().filter(|(_, name)| !name.is_empty()).map(|(what, name)| format!("{what}{}", plain(name, 80)));
    let who = pid.into_iter().chain(named).collect::<Vec<_>>().join(" ");
    format!("{who}: {} {}", decimal(*value), plain(unit, 40))
}

fn numbers(numbers: &[Number]) -> String {
    let number = |one: &Number| {
        format!("{} {}{}{}", one.name, decimal(one.value), if one.unit.is_empty() { "" } else { " " }, one.unit)
    };
    numbers.iter().map(number).collect::<Vec<_>>().join(", ")
}
