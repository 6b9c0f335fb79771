//! All executions of a server: starts them, finds them by id, caps how many run, and lets old ones go.

mod kept;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    audit::{self, Audit, AuditError, Trail},
    bpftrace::{Bpftrace, Category, MAP_KEYS, ScriptError, policy::Policy, sandbox},
    execution::{
        Execution, Identity,
        probe::{ProbeSource, STORE_BYTES, Subject},
        script::{self, ScriptSource},
    },
    kernel::{
        attached::{Attached, Transport, possible_cpus},
        discovery::{self, Access},
        filter::{Filter, FilterError},
        hook,
        loader::{self, Kernel, LoadError},
        privilege, shed,
    },
    principal::{Caller, Principal, Who},
    probes::{self, Context, Entry, OptionError},
    report::{Kind, Row, Status},
    scripts,
    suggest::nearest,
    text::quoted,
};

/// What bounds the executions of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// How many may run at once.
    pub running: usize,
    /// How many of one principal may run at once. Whoever started this process is alone and has all places.
    pub running_each: usize,
    /// How many that have ended are kept.
    pub kept: usize,
    /// How long one that has ended is kept.
    pub keep: Duration,
    /// Memory of events kept by all of them, in bytes.
    pub bytes: usize,
    /// The longest run.
    pub longest: Duration,
    /// What one of them may cost, in percent of one CPU; `None` for no bound.
    pub budget: Option<f64>,
    /// Which scripts may run.
    pub scripts: Policy,
    /// The command of bpftrace; `None`: `bpftrace` on the `PATH`.
    pub bpftrace: Option<Vec<String>>,
    /// The folder of the history: there results are kept beyond this process, if it is there and may be written.
    pub history: Option<PathBuf>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            running: 8,
            running_each: leaving_room(8),
            kept: 64,
            keep: Duration::from_hours(1),
            bytes: 64 << 20,
            longest: Duration::from_hours(24),
            budget: None,
            scripts: Policy::default(),
            bpftrace: None,
            history: None,
        }
    }
}

/// The places of one principal where the operator has not set them: three quarters, so that others find one.
pub fn leaving_room(running: usize) -> usize {
    (running * 3 / 4).max(1)
}

/// How long it is counted how often a hook fires at which a script prints.
const RATE_TIME: Duration = Duration::from_millis(100);

/// What is to be run natively.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeRequest {
    /// The probe's name.
    pub probe: String,
    /// Its options.
    pub options: Map<String, Value>,
    /// Which threads it looks at.
    pub filter: Filter,
    /// How long, in seconds.
    pub seconds: f64,
    /// Who asks.
    pub by: Caller,
}

/// What is to be run by bpftrace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScriptRequest {
    /// The program text.
    pub program: String,
    /// How it is called in results: the script's name and its process, if it is one of the library.
    pub options: Row,
    /// How long, in seconds, from when it has attached.
    pub seconds: f64,
    /// Who asks.
    pub by: Caller,
}

/// Why something was not started, found or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such probe.
    #[error("there is no probe `{name}`; list_probes shows all")]
    UnknownProbe {
        /// As given.
        name: String,
        /// The nearest known name.
        did_you_mean: Option<String>,
    },
    /// No such option of this probe.
    #[error("probe {probe} takes no option `{name}`; it takes {known}")]
    UnknownOption {
        /// The probe.
        probe: &'static str,
        /// As given.
        name: String,
        /// All it takes.
        known: String,
        /// The nearest known name.
        did_you_mean: Option<String>,
    },
    /// The options do not do.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The filter does not do.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The length does not do.
    #[error("seconds must be more than 0 and at most {longest}, not {given}")]
    Seconds {
        /// As given.
        given: f64,
        /// The longest.
        longest: f64,
    },
    /// Too many run.
    #[error("{running} executions are running, which is the limit: stop one (list_executions, stop_execution) or wait")]
    Busy {
        /// How many.
        running: usize,
    },
    /// Too many of others run.
    #[error("{running} executions are running, those of others among them, which is the limit: wait and try again")]
    Full {
        /// How many.
        running: usize,
    },
    /// The kernel cannot run it.
    #[error("{probe} cannot run on this kernel: {reason}")]
    Unsupported {
        /// The probe.
        probe: &'static str,
        /// Why.
        reason: String,
    },
    /// It could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The script does not do, or bpftrace does not.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// It cannot be recorded.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// No thread for it.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// No such execution.
    #[error("there is no execution `{0}`; list_executions shows those there are")]
    UnknownId(String),
    /// It has been let go.
    #[error(
        "execution `{0}` has expired: results are kept for some time and up to a number (`bpf_info` says how long and how many); run it again"
    )]
    Expired(String),
}

impl Refusal {
    /// The nearest known name, where there is one.
    pub fn did_you_mean(&self) -> Option<&str> {
        match self {
            Self::UnknownProbe { did_you_mean, .. } | Self::UnknownOption { did_you_mean, .. } => {
                did_you_mean.as_deref()
            }
            Self::Option(error) => error.did_you_mean.as_deref(),
            Self::Script(error) => error.did_you_mean.first().map(String::as_str),
            _ => None,
        }
    }

    /// One word for the kind of refusal, for programs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::UnknownProbe { .. } => "unknown_probe",
            Self::UnknownOption { .. } => "unknown_option",
            Self::Option(_) => "invalid_option",
            Self::Filter(_) => "invalid_filter",
            Self::Seconds { .. } => "invalid_seconds",
            Self::Busy { .. } | Self::Full { .. } => "busy",
            Self::Unsupported { .. } | Self::Load(LoadError::Btf(_)) => "unsupported",
            Self::Load(LoadError::Permission { .. }) => "permission",
            Self::Script(error) => script_category(error.category),
            Self::Audit(_) => "audit",
            Self::Load(_) | Self::Thread(_) => "internal",
            Self::UnknownId(_) => "unknown_execution",
            Self::Expired(_) => "expired_execution",
        }
    }
}

/// A line of the list of executions.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, schemars::JsonSchema)]
pub struct Summary {
    /// Its id.
    pub execution_id: String,
    /// Probe or script.
    pub kind: Kind,
    /// The probe; empty for scripts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub probe: String,
    /// The library script, if it is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub script: String,
    /// How far it is.
    pub status: Status,
    /// When it began, UTC.
    pub started: String,
    /// How long it has run, in seconds.
    pub seconds: f64,
    /// How long it is to run, in seconds.
    pub planned_seconds: f64,
}

/// All executions.
#[derive(Default)]
pub struct Executions {
    limits: Limits,
    audit: Arc<Audit>,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    by_id: HashMap<String, Arc<Execution>>,
    /// Ids in the order of starting.
    order: VecDeque<String>,
    /// Ids of those that were let go, so that the error can say so, and whose they were.
    expired: VecDeque<(String, Principal)>,
    /// Places taken by those about to start: by whom.
    starting: Vec<Who>,
    /// Connections that are open.
    open: HashSet<u64>,
    connections: u64,
}

/// Why executions of a connection are stopped.
const LEFT: &str = "its client has left";
/// Ids of expired executions that are remembered.
const REMEMBERED: usize = 1024;

impl Executions {
    /// No executions yet, and no record of those to come.
    pub fn new(limits: Limits) -> Self {
        Self::audited(limits, Arc::default())
    }

    /// No executions yet. Those to come are recorded.
    pub fn audited(limits: Limits, audit: Arc<Audit>) -> Self {
        Self { limits, audit, all: Mutex::default() }
    }

    /// Where it is recorded what is started.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Starts a native probe; returns when it is attached.
    pub fn start_probe(&self, request: &ProbeRequest) -> Result<Arc<Execution>, Refusal> {
        let what = audit::probe(&request.probe, &request.options, &row(&request.filter));
        self.recorded(&request.by, what, |trail| self.attach(request, trail))
    }

    /// Checks a script against the policy, compiles it and starts it; returns when bpftrace has been started, which attaches a moment later.
    pub fn start_script(&self, request: &ScriptRequest) -> Result<Arc<Execution>, Refusal> {
        let what = audit::script(&request.options, &request.program);
        self.recorded(&request.by, what, |trail| self.spawn(request, trail))
    }

    /// Refusals are recorded here, starts where nothing has been done yet and nothing more is checked that needs no doing.
    fn recorded<T>(
        &self,
        by: &Caller,
        what: Value,
        start: impl FnOnce(&Trail) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let trail = self.trail(&by.principal, what);
        start(&trail).inspect_err(|refusal| trail.refused(refusal.category(), &refusal.to_string()))
    }

    /// The records of what is about to be started.
    pub fn trail(&self, by: &Principal, what: Value) -> Trail {
        self.audit.trail(by, &new_id(), what)
    }

    fn attach(&self, request: &ProbeRequest, trail: &Trail) -> Result<Arc<Execution>, Refusal> {
        let entry = find(&request.probe)?;
        check_options(entry, &request.options)?;
        let length = self.length(request.seconds)?;
        if request.filter.min_duration_us.is_some() && !entry.has_duration {
            return Err(FilterError::NoDuration(entry.name).into());
        }
        let filter = request.filter.resolve()?;
        let place = self.take_place(&request.by.principal.who)?;
        trail.starts(self.bounds_of_probe(request.seconds))?;
        let kernel = Kernel::get()?;
        supported(entry, kernel)?;
        let transport = if has_ring_buffers() { Transport::Ring } else { Transport::Perf };
        let context = Context { layout: &kernel.layout, filter: &filter, cpus: possible_cpus(), transport };
        let prepared = (entry.prepare)(&request.options, &context)?;
        let attached = Attached::new(kernel, &prepared.plan)?;
        let identity = Identity {
            id: trail.id().to_owned(),
            kind: Kind::Probe,
            probe: entry.name.to_owned(),
            filter: row(&request.filter),
            options: prepared.options.clone(),
            by: request.by.clone(),
        };
        let filtered = filter.on_threads || request.filter.min_duration_us.is_some();
        let subject = Subject { pid: request.filter.pid, tid: request.filter.tid };
        let source = ProbeSource::new(attached, prepared, filtered, subject, entry.cost_ns);
        let source = Box::new(source.within(self.limits.budget));
        Ok(place.fill(Execution::spawn(identity, source, length, trail.clone(), self.keeps())?))
    }

    fn spawn(&self, request: &ScriptRequest, trail: &Trail) -> Result<Arc<Execution>, Refusal> {
        let length = self.length(request.seconds)?;
        self.limits.scripts.admit(&request.program)?;
        let place = self.take_place(&request.by.principal.who)?;
        trail.starts(self.bounds_of_script(request.seconds))?;
        let bpftrace = Bpftrace::served(self.limits.bpftrace.as_deref())?;
        as_root(&bpftrace)?;
        self.limits.scripts.check(&bpftrace, &request.program, RATE_TIME)?;
        bpftrace.compile(&request.program)?;
        attachable(&request.program)?;
        let identity = Identity {
            id: trail.id().to_owned(),
            kind: Kind::Script,
            probe: String::new(),
            filter: Row::new(),
            options: request.options.clone(),
            by: request.by.clone(),
        };
        let source = Box::new(ScriptSource::new(bpftrace, request.program.clone()).within(self.limits.budget));
        Ok(place.fill(Execution::spawn(identity, source, length, trail.clone(), self.keeps())?))
    }

    /// The execution of an id. One that the principal may not see is as unknown as one that never was.
    pub fn get(&self, by: &Principal, id: &str) -> Result<Arc<Execution>, Refusal> {
        let mut all = self.all();
        expire(&mut all, &self.limits);
        if let Some(execution) = all.by_id.get(id).filter(|execution| by.sees(&execution.identity.by.principal)) {
            return Ok(Arc::clone(execution));
        }
        let known = all.expired.iter().any(|(expired, owner)| expired == id && by.sees(owner));
        drop(all);
        if let Some(execution) = self.limits.history.as_ref().and_then(|folder| kept::find(folder, by, id)) {
            return Ok(execution);
        }
        Err(if known { Refusal::Expired(quoted(id)) } else { Refusal::UnknownId(quoted(id)) })
    }

    /// The same for a tool: that it is somebody else's is answered to nobody, but recorded.
    pub fn get_for(&self, by: &Principal, id: &str, tool: &str) -> Result<Arc<Execution>, Refusal> {
        self.get(by, id).inspect_err(|_| {
            if let Some(owner) = self.owner(id).filter(|owner| !by.sees(owner)) {
                self.audit.withheld(by, tool, id, &owner);
            }
        })
    }

    /// Whose an execution is, or was.
    fn owner(&self, id: &str) -> Option<Principal> {
        let all = self.all();
        let there = all.by_id.get(id).map(|execution| execution.identity.by.principal.clone());
        let gone = || all.expired.iter().find(|(expired, _)| expired == id).map(|(_, owner)| owner.clone());
        let found = there.or_else(gone);
        drop(all);
        found.or_else(|| kept::owner(self.limits.history.as_ref()?, id))
    }

    /// All executions that the principal may see, the latest first.
    pub fn list(&self, by: &Principal) -> Vec<Arc<Execution>> {
        let mut all = self.all();
        expire(&mut all, &self.limits);
        let seen = all.order.iter().rev().filter_map(|id| all.by_id.get(id));
        seen.filter(|execution| by.sees(&execution.identity.by.principal)).cloned().collect()
    }

    /// Results that were kept and are no longer in memory, that the principal may see, the latest first.
    pub fn kept(&self, by: &Principal) -> Vec<Summary> {
        let Some(folder) = &self.limits.history else { return Vec::new() };
        let mut kept = kept::list(folder, by);
        let all = self.all();
        kept.retain(|one| !all.by_id.contains_key(&one.execution_id));
        kept
    }

    /// Opens a connection: what is started through it is stopped when it is dropped.
    pub fn connect(self: &Arc<Self>) -> Connection {
        let mut all = self.all();
        all.connections += 1;
        let id = all.connections;
        all.open.insert(id);
        Connection { id, executions: Arc::clone(self) }
    }

    /// Stops everything and waits until nothing is attached.
    pub fn stop_all(&self) {
        let all: Vec<_> = self.all().by_id.values().cloned().collect();
        for execution in &all {
            execution.stop_for(&Principal::cli(), "the process ends");
        }
        for execution in &all {
            execution.wait(Duration::from_secs(10));
        }
        self.audit.finish();
    }

    /// What follows the end of an execution.
    fn keeps(&self) -> impl FnOnce(&Execution) + Send + 'static {
        let folder = self.limits.history.clone();
        move |execution| folder.iter().for_each(|folder| kept::keep(folder, execution))
    }

    /// What bounds a probe's run, for its record; options and filter are recorded as what is run.
    fn bounds_of_probe(&self, seconds: f64) -> Value {
        json!({ "seconds": seconds, "events_bytes": STORE_BYTES, "cpu_percent": self.limits.budget })
    }

    /// The same of a script. Of a command that the operator has set nobody knows here whether it gets a box.
    fn bounds_of_script(&self, seconds: f64) -> Value {
        let memory = if self.limits.bpftrace.is_none() { sandbox::memory() } else { None };
        let bounds = script::LIMITS;
        json!({
            "seconds": seconds,
            "lines": bounds.lines,
            "output_bytes": bounds.bytes,
            "map_bytes": bounds.map_bytes,
            "map_keys": MAP_KEYS,
            "memory_bytes": memory,
            "cpu_percent": self.limits.budget,
        })
    }

    fn length(&self, seconds: f64) -> Result<Duration, Refusal> {
        let longest = self.limits.longest.as_secs_f64();
        let valid = seconds.is_finite() && seconds > 0.0 && seconds <= longest;
        if valid { Ok(Duration::from_secs_f64(seconds)) } else { Err(Refusal::Seconds { given: seconds, longest }) }
    }

    fn take_place(&self, who: &Who) -> Result<Place<'_>, Refusal> {
        let mut all = self.all();
        let (running, own) = (all.running(|_| true), all.running(|one| one == who));
        let most = if *who == Who::Process { self.limits.running } else { self.limits.running_each };
        if own >= most.min(self.limits.running) {
            return Err(Refusal::Busy { running: own });
        }
        if running >= self.limits.running {
            return Err(Refusal::Full { running });
        }
        all.starting.push(who.clone());
        Ok(Place { executions: self, who: Some(who.clone()) })
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Executions {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl fmt::Debug for Executions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Executions").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl All {
    /// How many run or are about to, of those whose owner is asked for.
    fn running(&self, wanted: impl Fn(&Who) -> bool) -> usize {
        let starting = self.starting.iter().filter(|who| wanted(who)).count();
        let runs = |one: &&Arc<Execution>| wanted(owner(one)) && one.status() == Status::Running;
        starting + self.by_id.values().filter(runs).count()
    }

    fn leave_place(&mut self, who: &Who) {
        if let Some(at) = self.starting.iter().position(|one| one == who) {
            self.starting.swap_remove(at);
        }
    }

    /// Lets an execution go and remembers that there was one.
    fn let_go(&mut self, id: &str) {
        self.order.retain(|one| one != id);
        let Some(execution) = self.by_id.remove(id) else { return };
        self.expired.push_back((id.to_owned(), execution.identity.by.principal.clone()));
        let surplus = self.expired.len().saturating_sub(REMEMBERED);
        self.expired.drain(..surplus);
    }

    /// Of those that have ended: the oldest of whoever holds most, so that nobody pushes out what belongs to others.
    fn first_to_go(&self, weight: impl Fn(&Execution) -> usize) -> Option<String> {
        let ended: Vec<_> =
            self.order.iter().filter_map(|id| self.by_id.get(id)).filter(|one| one.ended_at().is_some()).collect();
        let mut held: HashMap<&Who, usize> = HashMap::new();
        for execution in &ended {
            *held.entry(owner(execution)).or_default() += weight(execution);
        }
        // Among equals the one whose oldest is older.
        let most = held.values().max().filter(|most| **most > 0)?;
        ended.iter().find(|one| held.get(owner(one)) == Some(most)).map(|one| one.identity.id.clone())
    }
}

fn owner(execution: &Execution) -> &Who {
    &execution.identity.by.principal.who
}

/// An open connection of a client. When it is dropped, what was started through it is stopped, also what is only about to start.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    executions: Arc<Executions>,
}

impl Connection {
    /// Its number, for [`Caller`].
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut all = self.executions.all();
        all.open.remove(&self.id);
        let own = all.by_id.values().filter(|one| one.identity.by.connection == Some(self.id));
        own.for_each(|execution| execution.stop_for(&execution.identity.by.principal, LEFT));
    }
}

/// A place among those that may run, taken while an execution starts.
struct Place<'a> {
    executions: &'a Executions,
    /// By whom, until it is given back.
    who: Option<Who>,
}

impl Place<'_> {
    fn fill(mut self, execution: Arc<Execution>) -> Arc<Execution> {
        let mut all = self.executions.all();
        all.order.push_back(execution.identity.id.clone());
        all.by_id.insert(execution.identity.id.clone(), Arc::clone(&execution));
        // From here on it counts as one that runs, so its place is given back under the same lock.
        self.who.take().iter().for_each(|who| all.leave_place(who));
        // Its client has left while it was starting.
        if execution.identity.by.connection.is_some_and(|connection| !all.open.contains(&connection)) {
            execution.stop_for(&execution.identity.by.principal, LEFT);
        }
        expire(&mut all, &self.executions.limits);
        drop(all);
        execution
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(who) = self.who.take() {
            self.executions.all().leave_place(&who);
        }
    }
}

fn script_category(category: Category) -> &'static str {
    match category {
        Category::Syntax => "syntax",
        Category::UnknownProbe => "unknown_probe",
        Category::UnknownFunction => "unknown_function",
        Category::UnknownName => "unknown_name",
        Category::Type => "type",
        Category::UnsupportedProbeType => "unsupported",
        Category::Permission => "permission",
        Category::Policy => "policy",
        Category::Unsafe => "refused",
        Category::BadInput => "invalid_program",
        Category::Missing => "missing_bpftrace",
        Category::Timeout => "timeout",
        Category::Other => "script",
    }
}

/// A line about an execution.
pub fn summary(execution: &Execution) -> Summary {
    Summary {
        execution_id: execution.identity.id.clone(),
        kind: execution.identity.kind,
        probe: execution.identity.probe.clone(),
        script: script_name(&execution.identity.options),
        status: execution.status(),
        started: execution.started(),
        seconds: (execution.seconds() * 1000.0).round() / 1000.0,
        planned_seconds: execution.planned_seconds(),
    }
}

fn script_name(options: &Row) -> String {
    options.get("script").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The probe of a name, or the nearest.
pub fn find(name: &str) -> Result<&'static Entry, Refusal> {
    let nearest = || nearest(name, probes::PROBES.iter().map(|entry| entry.name)).map(str::to_owned);
    probes::find(name).ok_or_else(|| Refusal::UnknownProbe { name: quoted(name), did_you_mean: nearest() })
}

/// Why a probe cannot run here, as this process, if so. Cheap: nothing is loaded.
pub fn obstacle(entry: &Entry) -> Option<String> {
    if let Some(lack) = loader::lack_of_privilege() {
        return Some(lack.to_string());
    }
    match Kernel::get() {
        Ok(kernel) => supported(entry, kernel).err().map(|refusal| refusal.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Why a probe cannot run on this kernel, if so.
pub fn supported(entry: &Entry, kernel: &Kernel) -> Result<(), Refusal> {
    let missing_hook = hook::resolve(entry.hooks, &kernel.layout).err();
    let missing_offset = || entry.needs.iter().find_map(|need| kernel.layout.global(need).err());
    let missing = missing_hook.or_else(missing_offset);
    missing.map_or(Ok(()), |reason| Err(Refusal::Unsupported { probe: entry.name, reason }))
}

/// bpftrace runs as the root user only, and in a box it may not even say so.
fn as_root(bpftrace: &Bpftrace) -> Result<(), ScriptError> {
    if rustix::process::geteuid().is_root() || !bpftrace.is_own() || bpftrace.is_unboxed() {
        return Ok(());
    }
    let lacking = shed::lacks_for_scripts();
    let message = format!(
        "bpftrace only runs as the root user, and to start it as root in a box this process lacks {}",
        lacking.join(", ")
    );
    let names: Vec<&str> = lacking.iter().map(String::as_str).collect();
    let remedy = format!("run mcptrace as root, or: {}", privilege::process().grant(&names));
    Err(ScriptError::new(Category::Permission, message).with_remedy(remedy))
}

/// bpftrace compiles what this kernel cannot attach, and attaches a part of a script where it cannot attach the rest.
fn attachable(program: &str) -> Result<(), ScriptError> {
    let hooks = scripts::hooks(program);
    let access = Access { allow_mount: true, fentry_works: None };
    let missing = hooks.iter().find_map(|hook| Some((hook, discovery::obstacle([hook.as_str()], access)?)));
    let Some((hook, reason)) = missing else { return Ok(()) };
    let hook = crate::text::untrusted(hook.as_bytes(), 120);
    let error = ScriptError::new(Category::UnsupportedProbeType, format!("`{hook}` cannot attach here: {reason}"));
    Err(error.with_remedy("use a tracepoint or a native probe: list_probes shows what there is"))
}

fn check_options(entry: &Entry, options: &Map<String, Value>) -> Result<(), Refusal> {
    let known = entry.option_names();
    let Some(name) = options.keys().find(|name| !known.contains(name)) else { return Ok(()) };
    let did_you_mean = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(Refusal::UnknownOption { probe: entry.name, name: quoted(name), known, did_you_mean })
}

fn expire(all: &mut All, limits: &Limits) {
    let now = SystemTime::now();
    let is_old = |at: SystemTime| now.duration_since(at).unwrap_or_default() > limits.keep;
    let old = all.by_id.values().filter(|one| one.ended_at().is_some_and(is_old));
    let old: Vec<String> = old.map(|one| one.identity.id.clone()).collect();
    for id in &old {
        all.let_go(id);
    }
    while all.by_id.values().filter(|one| one.ended_at().is_some()).count() > limits.kept {
        let Some(id) = all.first_to_go(|_| 1) else { break };
        all.let_go(&id);
    }
    while all.by_id.values().map(|one| one.bytes()).sum::<usize>() > limits.bytes {
        let Some(id) = all.first_to_go(Execution::bytes) else { break };
        all.let_go(&id);
    }
}

fn row(filter: &Filter) -> Row {
    match serde_json::to_value(filter) {
        Ok(Value::Object(row)) => row,
        _ => Row::new(),
    }
}

fn has_ring_buffers() -> bool {
    static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *HAS.get_or_init(|| aya::sys::is_map_supported(aya::maps::MapType::RingBuf).unwrap_or(true))
}

/// An id that nobody can guess: 64 random bits.
fn new_id() -> String {
    let mut random = [0_u8; 8];
    // The kernel's generator does not fail for so few bytes once it is seeded, which it is before any user process runs.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    format!("exec_{:016x}", u64::from_ne_bytes(random))
}
