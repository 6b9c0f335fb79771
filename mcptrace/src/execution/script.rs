//! An execution of a bpftrace script.

use std::{
    any::Any,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Control, Page, Snapshot, Source, governor::Governor};
use crate::{
    bpftrace::{Bpftrace, Cut, End, Limits, Session, Snapshot as Found, View},
    kernel::{cost::OthersSample, processes::cpu_time},
    report::{Loss, Overhead},
};

/// How long bpftrace may take from its start until it has attached.
const ATTACH_TIME: Duration = Duration::from_secs(20);
/// How often it is asked whether it has attached.
const LOOK: Duration = Duration::from_millis(50);
/// How long what its programs cost is sampled, and when for the first time after it has attached.
const SAMPLE: Duration = Duration::from_millis(50);
const FIRST_SAMPLE: Duration = Duration::from_millis(500);
/// Lines of output and bytes of maps that an execution keeps.
pub const LIMITS: Limits = Limits {
    seconds: 60,
    lines: 10_000,
    line_bytes: 4096,
    bytes: 2 << 20,
    record_bytes: 4 << 20,
    map_bytes: 4 << 20,
    grace: Duration::from_secs(5),
};

/// A script at work.
pub struct ScriptSource {
    bpftrace: Bpftrace,
    program: String,
    view: Mutex<Option<View>>,
    last: Mutex<Option<Found>>,
    cost: Mutex<Cost>,
}

/// What it costs: its programs, and bpftrace itself.
#[derive(Default)]
struct Cost {
    governor: Governor,
    /// In percent of one CPU, when it was last measured.
    percent: Option<f64>,
    /// Why what its programs cost was not measured, if it was not.
    unmeasured: Option<String>,
}

impl Cost {
    /// Takes what its programs cost, or why nobody knows, and what bpftrace itself does, in percent of one CPU. True if it must end.
    fn take(&mut self, programs: Result<f64, String>, own: f64) -> bool {
        let programs = programs.map_err(|reason| self.unmeasured = Some(reason)).unwrap_or(0.0);
        self.percent = Some(programs + own);
        self.governor.judge(programs + own)
    }

    /// What a reader of the result must know of it.
    fn notes(&self) -> impl Iterator<Item = String> {
        let unmeasured = self.unmeasured.as_ref().map(|reason| {
            format!("what the script's programs cost in the kernel could not be measured ({reason}): `overhead` and the budget count no more than bpftrace's own CPU time")
        });
        self.governor.note().into_iter().chain(unmeasured)
    }
}

impl ScriptSource {
    /// A script that has been compiled once, to be spawned on the execution's thread.
    pub fn new(bpftrace: Bpftrace, program: String) -> Self {
        Self { bpftrace, program, view: Mutex::default(), last: Mutex::default(), cost: Mutex::default() }
    }

    /// With a bound on what it may cost, in percent of one CPU.
    #[must_use]
    pub fn within(self, budget: Option<f64>) -> Self {
        lock(&self.cost).governor = Governor::new(budget);
        self
    }

    /// What bpftrace printed, as text: lines from one on, how many there are, and whether it has failed.
    pub fn found(&self) -> Option<Found> {
        let last = lock(&self.last).clone();
        last.or_else(|| lock(&self.view).as_ref().map(View::snapshot))
    }

    /// Runs until the time is up, counted from when bpftrace has attached.
    fn collect(&self, session: &mut Session, control: &Control) {
        let stop = || control.is_stopped();
        let attach_until = Instant::now() + ATTACH_TIME;
        loop {
            let end = session.wait(Instant::now() + LOOK, &stop);
            let attached = session.view().progress().attached.is_some();
            if end != End::Deadline || Instant::now() > attach_until {
                return;
            }
            if attached {
                break;
            }
        }
        self.watch(session, control, Instant::now() + control.length());
    }

    /// Waits to the end and measures meanwhile what it costs; if that is too much, the end comes early.
    fn watch(&self, session: &mut Session, control: &Control, end: Instant) {
        let stop = || control.is_stopped();
        let mut next = Instant::now() + FIRST_SAMPLE;
        let mut last = (Instant::now(), cpu_time(session.process_id()));
        while session.wait(next.min(end), &stop) == End::Deadline && Instant::now() < end {
            let sample = OthersSample::begin(session.process_id());
            if session.wait((Instant::now() + SAMPLE).min(end), &stop) != End::Deadline {
                return;
            }
            let programs = sample.map(OthersSample::end);
            let now = (Instant::now(), cpu_time(session.process_id()));
            let own = now.1.zip(last.1).map_or(0.0, |(now, last)| now.saturating_sub(last).as_secs_f64());
            let own = own / (now.0 - last.0).as_secs_f64().max(1e-3) * 100.0;
            last = now;
            let mut cost = lock(&self.cost);
            if cost.take(programs, own) {
                control.end_for_cost(cost.governor.note().as_deref());
                return;
            }
            next = Instant::now() + cost.governor.pause();
        }
    }

    fn overhead(&self) -> Option<Overhead> {
        let percent = lock(&self.cost).percent?;
        let cpu_percent = (percent * 1000.0).round() / 1000.0;
        Some(Overhead { ns_per_event: None, cpu_percent, method: "measured".into() })
    }
}

impl Source for ScriptSource {
    fn run(&self, control: &Control) -> Result<(), String> {
        let limits = Limits { seconds: control.length().as_secs().max(1), ..LIMITS };
        let mut session = self.bpftrace.spawn(&self.program, limits).map_err(|error| error.to_string())?;
        *lock(&self.view) = Some(session.view());
        self.collect(&mut session, control);
        let found = session.end();
        let outcome = found.error.as_ref().map_or(Ok(()), |error| Err(error.to_string()));
        *lock(&self.last) = Some(found);
        *lock(&self.view) = None;
        outcome
    }

    fn snapshot(&self, _seconds: f64, _page: &Page) -> Snapshot {
        let Some(found) = self.found() else { return Snapshot::default() };
        let loss = loss(&found);
        let Found { reports, cut, warnings, mut notes, .. } = found;
        notes.extend(lock(&self.cost).notes());
        notes.extend(warnings.into_iter().map(|warning| format!("bpftrace: {warning}")));
        notes.extend(cut_note(cut));
        Snapshot { reports, loss, notes, overhead: self.overhead(), ..Snapshot::default() }
    }

    fn loss(&self) -> Loss {
        self.found().map(|found| loss(&found)).unwrap_or_default()
    }

    fn bytes(&self) -> usize {
        let last = lock(&self.last);
        last.as_ref().map_or(0, |found| found.lines.iter().map(String::len).sum())
    }

    /// The session is on the thread's stack: unwinding has killed and reaped it.
    fn release(&self) {
        *lock(&self.view) = None;
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A script's events cannot be counted from outside; what bpftrace says it lost can.
fn loss(found: &Found) -> Loss {
    let mut loss = Loss::default();
    if found.lost_events > 0 {
        loss.dropped.insert("buffer_full".into(), found.lost_events);
    }
    loss
}

fn cut_note(cut: Cut) -> Option<String> {
    let Cut { lines, long_lines, long_records, events, prints } = cut;
    let parts = [
        (lines, "lines after the limit"),
        (long_lines, "lines cut short"),
        (long_records, "records too long to read"),
        (events, "events after the limit"),
        (prints, "earlier prints of maps"),
    ];
    let said: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    (!said.is_empty()).then(|| format!("left out to keep the result bounded: {}", said.join(", ")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_cannot_be_kept_is_said() {
        let mut cost = Cost { governor: Governor::new(Some(5.0)), ..Cost::default() };
        assert!(!cost.take(Ok(3.0), 1.0));
        assert_eq!((cost.percent, cost.notes().count()), (Some(4.0), 0));
        assert!(!cost.take(Err("not permitted".into()), 1.0));
        let notes: Vec<String> = cost.notes().collect();
        assert!(notes.len() == 1 && notes[0].contains("not permitted") && notes[0].contains("budget"), "{notes:?}");
        // bpftrace's own time is bounded all the same.
        assert!(!cost.take(Err("not permitted".into()), 9.0) && !cost.take(Err(String::new()), 9.0));
        assert!(cost.take(Err(String::new()), 9.0));
    }
}
