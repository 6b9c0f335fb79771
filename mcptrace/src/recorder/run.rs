//! The recorder at work: a thread that turns what the kernel adds up into a [`Tick`] every second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use super::{
    governor::{Action, DUTY_TICKS, Governor, Measured},
    kept::{Kept, Samples},
    metrics,
    proc::{IrqNames, Proc},
    programs::{self, GROUPS, Programs, monotonic_ns},
    sink::Sink,
    status::{GroupStatus, Status},
    syscalls::Syscalls,
    tick::{Coverage, Event, Tick},
};
use crate::{
    kernel::{
        cost::Sample,
        loader::{Kernel, LoadError, lack_of_privilege},
    },
    report::Row,
    signals,
    text::{clipped, comm},
};
use mcptrace_wire::{Count, ProcessEvent, ProcessEventKind};

/// How long a tick is.
const SECOND: Duration = Duration::from_secs(1);
/// How often costs are measured, in ticks, and in which of them: not in one that looks at system calls.
const MEASURE_TICKS: u64 = 5;
const MEASURE_AT: u64 = 3;
/// For how long.
const MEASURE: Duration = Duration::from_millis(50);
/// Events of one tick; those of processes that began or ended beyond these are counted as lost.
const MOST_EVENTS: usize = 200;
/// Bytes of a reason that every tick carries; the verifier is verbose.
const LONGEST_REASON: usize = 200;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The share of all CPU time that recording may take, for example 0.01.
    pub budget: f64,
    /// Whether system calls are looked at.
    pub syscalls: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { budget: 0.01, syscalls: true }
    }
}

/// A recorder at work. Dropping it ends it.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: Mutex<bool>,
    stopped: Condvar,
    status: Mutex<Status>,
}

impl Recorder {
    /// Begins to record.
    pub fn start(options: Options, sink: Box<dyn Sink>) -> Result<Self, LoadError> {
        if let Some(lack) = lack_of_privilege() {
            return Err(lack);
        }
        let kernel = Kernel::get()?;
        let shared = Arc::new(Shared::default());
        let mut work = Work::new(kernel, options, sink, Arc::clone(&shared))?;
        let spawned = thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            work.run();
            work.sink.close();
        });
        let what = "thread of the recorder";
        let thread = spawned.map_err(|error| LoadError::Buffer { what, reason: error.to_string() })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What it does at present.
    pub fn status(&self) -> Status {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it: the last tick is shorter than a second, and everything is detached.
    pub fn stop(mut self) -> Status {
        self.end();
        self.status()
    }

    fn end(&mut self) {
        *self.shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    /// Waits until then; true if the recorder is to end.
    fn wait(&self, until: Instant) -> bool {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if *stop || left.is_zero() {
                return *stop;
            }
            stop = self.stopped.wait_timeout(stop, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What the thread works with.
struct Work {
    shared: Arc<Shared>,
    options: Options,
    sink: Box<dyn Sink>,
    programs: Programs,
    syscalls: Option<Result<Syscalls, String>>,
    unsupported: BTreeMap<&'static str, String>,
    proc: Proc,
    irqs: IrqNames,
    governor: Governor,
    measured: Measured,
    is_measured: bool,
    /// Something was measured in this tick.
    is_fresh: bool,
    /// The last measurement alone was over the budget, or what ran since says that another would be: the next tick is measured as well,
    /// so that little time goes by over it.
    is_urgent: bool,
    /// Switches of the tick that was measured last.
    switches: u64,
    /// What system calls would cost all the time, at the last three looks.
    syscalls_always: [f64; 3],
    /// Costs of groups at the last three measurements.
    measurements: [BTreeMap<&'static str, f64>; 3],
    cpus: f64,
    own: (Instant, Duration),
    /// For how long system calls were looked at in this tick.
    looked: Duration,
    turned: Instant,
    ticks: u64,
    error: Option<String>,
    since_ns: u64,
}

impl Work {
    fn new(
        kernel: &'static Kernel,
        options: Options,
        sink: Box<dyn Sink>,
        shared: Arc<Shared>,
    ) -> Result<Self, LoadError> {
        let syscalls = options.syscalls.then(|| Syscalls::load(kernel).map_err(|error| error.to_string()));
        let mut work = Self {
            shared,
            options,
            sink,
            programs: Programs::load(kernel)?,
            syscalls,
            unsupported: BTreeMap::new(),
            proc: Proc::open(),
            irqs: IrqNames::default(),
            governor: Governor::new(options.budget),
            measured: Measured::default(),
            is_measured: false,
            is_fresh: false,
            is_urgent: false,
            switches: 0,
            syscalls_always: [0.0; 3],
            measurements: Default::default(),
            cpus: 1.0,
            own: (Instant::now(), own_time()),
            looked: Duration::ZERO,
            turned: Instant::now(),
            ticks: 0,
            error: None,
            since_ns: unix_ns(),
        };
        if let Some(Err(reason)) = &work.syscalls {
            work.unsupported.insert(metrics::SYSCALLS, reason.clone());
        }
        if !work.proc.has_pressure() {
            work.unsupported.insert(metrics::PRESSURE, "this kernel has no pressure information (PSI)".to_owned());
        }
        for group in GROUPS {
            work.attach(group.name);
        }
        work.begin();
        work.publish(0);
        Ok(work)
    }

    /// What happened before the first tick is in none.
    fn begin(&mut self) {
        self.programs.turn();
        self.proc.read(&mut Samples::default());
        self.programs.read();
        self.programs.events();
        self.turned = Instant::now();
    }

    fn attach(&mut self, group: &'static str) {
        if let Err(reason) = self.programs.attach(group) {
            tracing::warn!(group, %reason, "not recorded");
            self.unsupported.insert(group, reason);
        }
    }

    fn run(&mut self) {
        // The clock is that of the thread, and this is another one than that which has loaded the programs.
        self.own = (Instant::now(), own_time());
        let mut next = Instant::now() + SECOND;
        loop {
            let stop = self.during(next);
            self.tick(stop);
            if stop {
                return;
            }
            // After a pause of the whole machine there is nothing to catch up with.
            next = (next + SECOND).max(Instant::now() + SECOND / 2);
        }
    }

    /// What is done while a second passes; true if the recorder is to end.
    fn during(&mut self, next: Instant) -> bool {
        self.looked = Duration::ZERO;
        if self.ticks.is_multiple_of(DUTY_TICKS) {
            self.look_at_syscalls();
        }
        self.is_fresh = false;
        if self.is_urgent || self.ticks % MEASURE_TICKS == MEASURE_AT {
            self.measure();
        }
        self.shared.wait(next)
    }

    fn look_at_syscalls(&mut self) {
        let window = Duration::from_millis(self.governor.duty_ms());
        let Some(Ok(syscalls)) = &mut self.syscalls else { return };
        if window.is_zero() {
            return;
        }
        if let Err(error) = syscalls.attach() {
            self.unsupported.insert(metrics::SYSCALLS, error.to_string());
            self.syscalls = None;
            return;
        }
        let began = Instant::now();
        let sample = Sample::begin(syscalls.programs());
        let stopped = self.shared.wait(began + window.min(MEASURE));
        let cost = sample.filter(|_| !stopped).and_then(|sample| sample.end_each(syscalls.programs()));
        self.shared.wait(began + window);
        self.looked = began.elapsed();
        syscalls.detach();
        if let Some((window, each)) = cost {
            let ns: f64 = each.iter().map(|(ns, _)| ns).sum();
            let share = ns / (window.as_nanos() as f64 * self.cpus);
            if self.measured.syscalls_always.is_none() {
                self.syscalls_always = [share; 3];
            }
            self.syscalls_always.rotate_left(1);
            self.syscalls_always[2] = share;
            self.measured.syscalls_always = Some(middle(self.syscalls_always));
        }
    }

    fn measure(&mut self) {
        self.cpus = aya::util::online_cpus().map_or(1.0, |cpus| cpus.len().max(1) as f64);
        let sample = Sample::begin(self.programs.attached());
        if self.shared.wait(Instant::now() + MEASURE) {
            return;
        }
        let cost = sample.and_then(|sample| sample.end_each(self.programs.attached()));
        let (before, own) = (self.own, own_time());
        self.own = (Instant::now(), own);
        self.measured.seconds = before.0.elapsed().as_secs_f64();
        self.measured.own = own.saturating_sub(before.1).as_secs_f64() / (self.measured.seconds * self.cpus);
        self.is_measured = cost.is_some();
        self.is_fresh = true;
        let Some((window, each)) = cost else { return };
        let mut groups: BTreeMap<&'static str, f64> = BTreeMap::new();
        for (program, (ns, _)) in self.programs.attached().iter().zip(each) {
            let share = ns / (window.as_nanos() as f64 * self.cpus);
            *groups.entry(programs::group_of(program.name)).or_default() += share;
        }
        self.is_urgent = self.governor.is_over(self.measured.own, groups.values().sum());
        self.measurements.rotate_left(1);
        self.measurements[2] = groups;
        let of = |group| self.measurements.each_ref().map(|groups| groups.get(group).copied().unwrap_or(0.0));
        self.measured.groups = GROUPS.iter().map(|group| (group.name, middle(of(group.name)))).collect();
    }

    /// Ends a tick.
    fn tick(&mut self, stop: bool) {
        let (tick, at_ns) = self.collect();
        match self.sink.keep(&tick) {
            Ok(()) => self.error = None,
            Err(error) => {
                if self.error.is_none() {
                    tracing::warn!(%error, "a second of recording could not be kept");
                }
                self.error = Some(error);
            }
        }
        if self.is_fresh && !stop {
            self.govern();
        }
        self.ticks += 1;
        self.publish(at_ns);
    }

    /// What a burst of switches costs is not waited for until it is time to measure.
    fn weigh(&mut self, switches: u64) {
        if self.is_fresh {
            self.switches = switches;
            return;
        }
        let times = switches as f64 / self.switches.max(1) as f64;
        self.is_urgent = self.governor.would_be_over(&self.measured, times);
    }

    fn govern(&mut self) {
        for action in self.governor.decide(&self.measured) {
            match action {
                Action::Shed(group) => {
                    let cost_percent = self.governor.cost() * 100.0;
                    tracing::warn!(group, cost_percent, "over budget: no longer recorded");
                    self.programs.detach(group);
                }
                Action::Restore(group) => {
                    tracing::info!(group, "recorded again");
                    self.attach(group);
                }
            }
        }
    }

    fn collect(&mut self) -> (Tick, u64) {
        self.programs.turn();
        let (turned, at_ns, monotonic) = (Instant::now(), unix_ns(), monotonic_ns());
        let span = turned - std::mem::replace(&mut self.turned, turned);
        let mut samples = Samples::default();
        // Between the turn and the reading, so that programs under way at the turn have ended.
        self.proc.read(&mut samples);
        let mut kept = self.programs.read();
        self.sample(&mut kept, &mut samples);
        self.weigh(kept.voluntary + kept.involuntary);
        let (events, events_lost) = events(&self.programs.events(), &kept, at_ns.wrapping_sub(monotonic));
        let coverage = metrics::GROUPS.iter().map(|group| self.coverage(group, span)).collect();
        let tick = Tick { at_ns, span_ns: span.as_nanos() as u64, samples: samples.0, events, events_lost, coverage };
        (tick, at_ns)
    }

    fn sample(&mut self, kept: &mut Kept, samples: &mut Samples) {
        let on = |group| self.programs.is_on(group);
        if on(metrics::CPU) {
            kept.cpu(samples, programs::named);
            if on(metrics::RUNQ) {
                kept.runq(samples);
            }
        }
        if on(metrics::BLOCK) {
            kept.block(samples, crate::probes::block_latency::device_name);
        }
        if on(metrics::TCP) {
            kept.tcp(samples);
        }
        if on(metrics::PROCESSES) {
            kept.processes(samples);
        }
        if on(metrics::MEMORY) {
            kept.memory(samples);
        }
        if on(metrics::INTERRUPTS) {
            kept.interrupts(samples, |irq| self.irqs.name(irq));
        }
        if on(metrics::LOCKS) {
            kept.locks(samples);
        }
        if let (Some(Ok(syscalls)), false) = (&mut self.syscalls, self.looked.is_zero()) {
            syscalls.read(samples);
        }
    }

    fn coverage(&self, group: &'static str, span: Duration) -> Coverage {
        let (share, why) = match self.state(group) {
            ("on", _) => (1.0, None),
            ("duty_cycle", _) => {
                ((self.looked.as_secs_f64() / span.as_secs_f64().max(1e-9)).min(1.0), Some("duty_cycle".into()))
            }
            ("unsupported", why) => (0.0, why.map(|why| clipped(format!("unsupported: {why}"), LONGEST_REASON).into())),
            (state, _) => (0.0, Some(state.into())),
        };
        Coverage { group, share, why }
    }

    /// A group's state, and why it is not recorded.
    fn state(&self, group: &str) -> (&'static str, Option<String>) {
        let needs_cpu = group == metrics::RUNQ && !self.programs.is_on(metrics::CPU);
        if let Some(reason) = self.unsupported.get(group) {
            ("unsupported", Some(reason.clone()))
        } else if group == metrics::SYSCALLS && !self.options.syscalls {
            ("off", None)
        } else if self.governor.has_shed(group)
            || needs_cpu
            || group == metrics::SYSCALLS && self.governor.duty_ms() == 0
        {
            ("shed", Some("it would cost more than the budget".to_owned()))
        } else if group == metrics::SYSCALLS {
            ("duty_cycle", None)
        } else {
            ("on", None)
        }
    }

    fn publish(&self, at_ns: u64) {
        let group = |name: &'static str| {
            let (state, why) = self.state(name);
            let cost_percent = percent(self.measured.groups.get(name).copied().unwrap_or(0.0));
            GroupStatus { name: name.into(), state: state.into(), cost_percent, why }
        };
        let trouble = self.sink.trouble();
        let status = Status {
            since_ns: self.since_ns,
            last_ns: at_ns,
            ticks: self.ticks,
            budget_percent: percent(self.governor.budget()),
            cost_percent: percent(self.governor.cost()),
            cost_process_percent: percent(self.measured.own),
            cost_is_measured: self.is_measured,
            syscalls_ms_of_10_s: if self.options.syscalls { self.governor.duty_ms() } else { 0 },
            groups: metrics::GROUPS.iter().map(|name| group(name)).collect(),
            sink: self.sink.describe(),
            error: trouble.as_ref().map(|trouble| trouble.message.clone()).or_else(|| self.error.clone()),
            stopped_by: trouble.as_ref().map(|trouble| trouble.reason.into()),
            stopped_ns: trouble.as_ref().map(|trouble| trouble.since_ns),
        };
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// The middle of three measurements: a virtual CPU that its host takes away in the midst of a program makes one of them far too large.
fn middle(mut costs: [f64; 3]) -> f64 {
    costs.sort_by(f64::total_cmp);
    costs[1]
}

/// A share as percent with three digits.
fn percent(share: f64) -> f64 {
    (share * 1e5).round() / 1e3
}

/// Events as rows. What is rare and bad comes first where there is no room for all.
fn events(records: &[ProcessEvent], kept: &Kept, origin_ns: u64) -> (Vec<Event>, Vec<(&'static str, u64)>) {
    let mut all: Vec<Event> = records.iter().flat_map(|record| rows(record, origin_ns)).collect();
    let mut lost: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (kind, count) in
        [("process_exec", Count::LostExecs), ("process_exit", Count::LostExits), ("oom_kill", Count::LostOomKills)]
    {
        lost.insert(kind, kept.count(count));
    }
    if all.len() > MOST_EVENTS {
        all.sort_by_key(|event| matches!(event.kind, "process_exec" | "process_exit"));
        for event in all.drain(MOST_EVENTS..) {
            *lost.entry(event.kind).or_default() += 1;
        }
        all.sort_by_key(|event| event.at_ns);
    }
    (all, lost.into_iter().filter(|(_, count)| *count > 0).collect())
}

/// A record as one event, or two if a signal killed the process.
fn rows(record: &ProcessEvent, origin_ns: u64) -> Vec<Event> {
    let at_ns = origin_ns.wrapping_add(record.time_ns);
    let mut fields = Row::new();
    let mut put = |name: &str, value: serde_json::Value| _ = fields.insert(name.to_owned(), value);
    put("pid", record.actor.pid.into());
    put("ppid", record.actor.ppid.into());
    put("uid", record.actor.uid.into());
    put("comm", comm(&record.actor.comm).into());
    if let Some(path) = crate::kernel::cgroups::path(record.actor.cgroup) {
        put("cgroup", path.into());
    }
    if record.what == ProcessEventKind::Exec as u32 {
        return vec![Event { at_ns, kind: "process_exec", fields }];
    }
    if record.what == ProcessEventKind::OomKill as u32 {
        return vec![Event { at_ns, kind: "oom_kill", fields }];
    }
    put("lifetime_ns", record.lifetime_ns.into());
    // wait(2): the low 7 bits are the signal, bit 7 a core dump, the next byte the code.
    let signal = record.status & 0x7f;
    if signal == 0 {
        put("code", (record.status >> 8 & 0xff).into());
        return vec![Event { at_ns, kind: "process_exit", fields }];
    }
    put("signal", signals::name(signal as i32).into());
    put("core_dump", (record.status & 0x80 != 0).into());
    let exit = Event { at_ns, kind: "process_exit", fields: fields.clone() };
    vec![exit, Event { at_ns, kind: "fatal_signal", fields }]
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// CPU time of this thread, which reads, keeps and measures: what the rest of the process does for clients is no cost of recording.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::{Actor, Header};

    use super::*;

    fn record(what: ProcessEventKind, pid: u32, status: u32) -> ProcessEvent {
        let actor = Actor { pid, ..Actor::default() };
        let header = Header { size: 0, version: 0, kind: 0 };
        ProcessEvent { header, what: what as u32, time_ns: u64::from(pid), actor, lifetime_ns: 7, status, zero: 0 }
    }

    #[test]
    fn one_wild_measurement_changes_nothing() {
        assert!((middle([0.001, 0.17, 0.002]) - 0.002).abs() < 1e-9);
    }

    #[test]
    fn a_killed_process_is_an_end_and_a_fatal_signal() {
        let (events, lost) = events(&[record(ProcessEventKind::Exit, 5, 0x8b)], &Kept::default(), 1000);
        assert_eq!(events.iter().map(|event| event.kind).collect::<Vec<_>>(), ["process_exit", "fatal_signal"]);
        assert_eq!((&events[1].fields["signal"], &events[1].fields["core_dump"]), (&"SIGSEGV".into(), &true.into()));
        assert_eq!((events[0].at_ns, lost.len()), (1005, 0));
    }

    #[test]
    fn of_too_many_events_the_rare_ones_are_kept_and_the_rest_counted() {
        let mut records: Vec<_> = (0..500).map(|pid| record(ProcessEventKind::Exec, pid, 0)).collect();
        records.push(record(ProcessEventKind::OomKill, 500, 0));
        let (events, lost) = events(&records, &Kept::default(), 0);
        assert_eq!((events.len(), events.last().unwrap().kind), (MOST_EVENTS, "oom_kill"));
        assert_eq!(lost, [("process_exec", 301)]);
        assert!(events.is_sorted_by_key(|event| event.at_ns));
    }
}
