//! Gathers what the rules look at: two readings of the system, and between them a bounded set of probes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};

use super::{
    Focus,
    evidence::Evidence,
    finding::Kind,
    rules::{RULES, Rule},
    system::System,
};
use crate::{
    clock,
    execution::Page,
    executions::{Executions, Limits, ProbeRequest},
    kernel::{attached::possible_cpus, loader},
    principal::Principal,
    report::Window,
};

/// Shortest and longest time that is looked at, in seconds.
pub const SECONDS: std::ops::RangeInclusive<f64> = 1.0..=45.0;

/// What is usual.
pub const USUAL: f64 = 10.0;

/// How much longer than wanted probes may run if nobody ends them.
const SPARE: f64 = 30.0;
/// What is read of each probe's report.
const PAGE: Page = Page { from: 0, event: 0, limit: 2_000, max_bytes: 8 << 20 };

/// How each probe is run.
const OPTIONS: &[(&str, &str)] = &[
    ("runq_latency", r#"{"by":"pid"}"#),
    ("syscall_errors", r#"{"by":"pid"}"#),
    ("kernel_locks", r#"{"stacks":true}"#),
    ("memory_reclaim", r#"{"slower_than_us":0}"#),
    ("tcp_connections", r#"{"failed_only":true}"#),
];

/// Probes at work between two readings. Dropped, it stops them.
#[derive(Debug)]
pub struct Gathering {
    focus: Option<Focus>,
    before: System,
    started: SystemTime,
    executions: Executions,
    running: BTreeMap<&'static str, String>,
    notes: Vec<String>,
}

impl Gathering {
    /// Starts the probes and reads the system for the first time. What cannot run is left out, with a note.
    pub fn start(focus: Option<Focus>, seconds: f64) -> Self {
        let mut gathering = Self::begin(&probes(|rule| focus.is_none_or(|focus| focus == rule.focus)), seconds);
        gathering.notes.extend(focus.map(super::only));
        Self { focus, ..gathering }
    }

    /// The same for a few kinds of trouble only, of which the recorder does not know whose doing they are.
    pub fn of(kinds: &[Kind], seconds: f64) -> Self {
        Self::begin(&probes(|rule| kinds.contains(&rule.kind)), seconds)
    }

    fn begin(probes: &BTreeSet<&'static str>, seconds: f64) -> Self {
        let executions = Executions::new(Limits {
            running: RULES.len(),
            running_each: RULES.len(),
            kept: RULES.len(),
            bytes: 128 << 20,
            ..Limits::default()
        });
        let (mut running, mut notes) = (BTreeMap::new(), Vec::new());
        if let Some(lack) = loader::lack_of_privilege() {
            notes.push(format!("only /proc was looked at, no probe ran: {lack}"));
        } else {
            for probe in probes.iter().copied() {
                match executions.start_probe(&request(probe, seconds)) {
                    Ok(execution) => _ = running.insert(probe, execution.identity.id.clone()),
                    Err(refusal) => notes.push(format!("{probe} did not run: {refusal}")),
                }
            }
        }
        Self { focus: None, before: System::read(), started: SystemTime::now(), executions, running, notes }
    }

    /// Reads the system again and ends the probes.
    pub fn finish(mut self) -> (Evidence, Window) {
        let (after, ended) = (System::read(), SystemTime::now());
        let running = std::mem::take(&mut self.running);
        let executions: Vec<_> = running
            .into_iter()
            .filter_map(|(probe, id)| Some((probe, self.executions.get(&Principal::default(), &id).ok()?)))
            .collect();
        // First the one that would see the others detach: they queue for locks of the kernel then.
        for (_, execution) in executions.iter().filter(|(probe, _)| *probe == "kernel_locks") {
            execution.stop_and_wait();
        }
        for (_, execution) in &executions {
            execution.stop();
        }
        let mut found = BTreeMap::new();
        for (probe, execution) in executions {
            execution.wait(Duration::from_secs(10));
            let envelope = execution.envelope(&PAGE);
            if let Some(error) = &envelope.error {
                self.notes.push(format!("{probe} failed: {error}"));
                continue;
            }
            if envelope.loss.dropped_total() > envelope.loss.seen.unwrap_or(0) / 100 {
                self.notes.push(format!("{probe} lost {} events", envelope.loss.dropped_total()));
            }
            found.insert(probe, envelope);
        }
        let seconds = after.at.duration_since(self.before.at).as_secs_f64();
        let window = Window {
            start: clock::utc(self.started),
            end: Some(clock::utc(ended)),
            seconds: (seconds * 1000.0).round() / 1000.0,
        };
        let cpus = std::thread::available_parallelism().map_or(possible_cpus(), |cpus| cpus.get() as u32);
        let evidence = Evidence {
            before: self.before,
            after,
            cpus,
            found,
            focus: self.focus,
            own: std::process::id(),
            notes: self.notes,
        };
        (evidence, window)
    }

    /// Events that the probes have counted so far.
    pub fn seen(&self) -> u64 {
        let loss = |id: &String| Some(self.executions.get(&Principal::default(), id).ok()?.loss().seen.unwrap_or(0));
        self.running.values().filter_map(loss).sum()
    }
}

/// The probes of some rules, each once.
fn probes(wanted: impl Fn(&Rule) -> bool) -> BTreeSet<&'static str> {
    RULES.iter().filter(|rule| wanted(rule)).flat_map(|rule| rule.probes.iter().copied()).collect()
}

fn request(probe: &str, seconds: f64) -> ProbeRequest {
    ProbeRequest {
        probe: probe.to_owned(),
        options: options(probe),
        seconds: seconds + SPARE,
        ..ProbeRequest::default()
    }
}

fn options(probe: &str) -> Map<String, Value> {
    let text = OPTIONS.iter().find(|(name, _)| *name == probe).map_or("{}", |(_, options)| options);
    serde_json::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_probes_that_are_run() {
        let all = probes(|_| true);
        for (probe, text) in OPTIONS {
            assert!(all.contains(probe), "{probe}");
            let options: Map<String, Value> = serde_json::from_str(text).unwrap();
            let known = crate::probes::find(probe).unwrap().option_names();
            assert!(options.keys().all(|name| known.contains(name)), "{probe}");
        }
        assert!(probes(|rule| rule.focus == Focus::Disk).len() < all.len());
    }
}
