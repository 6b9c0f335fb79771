//! What this kernel, this process and this bpftrace can do, and for each thing missing how to get it.
//!
//! Ways to attach are found by a real load and attach of an empty program: feature probes lie on some kernels (a load
//! of type "tracing" may be refused while BTF tracepoints, which are of that type, load). What worked is remembered for
//! the life of the process, what failed is tried again at the next call.

mod attach;
mod bpftrace;
mod config;
mod explain;
mod features;
mod machine;
mod probes;
mod problems;
mod raw;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use schemars::JsonSchema;
use serde::Serialize;

pub(super) use self::attach::FUNCTIONS;
pub use self::text::text;
use super::{
    loader::Kernel,
    privilege::{self, Held, Process},
};
use crate::{
    bpftrace::{
        launcher,
        policy::Policy,
        sandbox::{self, Part},
    },
    executions::Limits,
    memory,
    recorder::status as recorder,
};

/// What is to be found out.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether bpftrace is asked too, which takes half a second the first time.
    pub bpftrace: bool,
    /// The command of bpftrace, where it is not `bpftrace` on the `PATH`.
    pub bpftrace_command: Option<Vec<String>>,
    /// The bounds in force.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { bpftrace: true, bpftrace_command: None, limits: Limits::default() }
    }
}

impl Options {
    fn command(&self) -> Option<&[String]> {
        self.bpftrace_command.as_deref().or(self.limits.bpftrace.as_deref())
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Info {
    /// Version of mcptrace
    pub mcptrace: String,
    /// Whether at least one native probe runs here
    pub native_works: bool,
    /// Release of the running kernel
    pub kernel: String,
    /// Its architecture
    pub arch: String,
    /// Size of a page, in bytes
    pub page_size: u64,
    /// Processors
    pub cpus: Cpus,
    /// The kernel's description of its own types
    pub btf: Btf,
    /// What is missing or in the way, the worst first
    pub problems: Vec<Problem>,
    /// Native probes
    pub probes: Vec<ProbeSupport>,
    /// Ways to attach a program
    pub attach_types: Vec<Check>,
    /// Kinds of maps
    pub map_types: Vec<Check>,
    /// Functions that programs call
    pub helpers: Vec<Check>,
    /// Whether the kernel measures the run time of programs for us, which tells what tracing costs
    pub run_time_statistics: Check,
    /// What this process may do
    pub process: Process,
    /// Where tracepoints are described
    pub tracefs: Place,
    /// Where control groups (version 2) are
    pub cgroup2: Place,
    /// What the kernel's security settings are
    pub security: Security,
    /// Where the options that the kernel was built with were read
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub config_source: Option<String>,
    /// Options that the kernel was built with, those that matter here: y, m, n or a value
    pub config: BTreeMap<String, String>,
    /// The bpftrace of this system
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BpftraceSupport")]
    pub bpftrace: Option<BpftraceSupport>,
    /// Which scripts may run, and in which box
    pub scripts: Scripts,
    /// What is recorded all the time; left out if nobody records
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "recorder::Status")]
    pub recorder: Option<recorder::Status>,
    /// Bounds on executions
    pub limits: Bounds,
}

impl Info {
    /// Whether at least one native probe runs here.
    pub fn native_works(&self) -> bool {
        self.native_works
    }
}

/// Which scripts may run, and what they are kept from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Scripts {
    /// What the operator allows
    pub policy: Policy,
    /// The process that builds the box and starts bpftrace, where this one is a server that has one
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub launcher: Option<u32>,
    /// Capabilities that this takes: those of the launcher, or of this process where there is none
    pub capabilities: Vec<Held>,
    /// The parts of the box that they run in
    #[serde(rename = "box")]
    pub parts: Vec<Part>,
}

/// Processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cpus {
    /// That run
    pub online: u32,
    /// That there may ever be; per-CPU maps have a value for each
    pub possible: u32,
}

/// The kernel's description of its own types.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Btf {
    /// Whether it is there and can be read
    pub present: bool,
    /// Where it is looked for
    pub path: String,
    /// Its size, in bytes
    pub size_bytes: u64,
    /// Why it cannot be used
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
}

/// One thing that works or does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Check {
    /// What
    pub name: String,
    /// What it is good for
    pub purpose: String,
    /// Whether it works; left out where it could not be tested
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub works: Option<bool>,
    /// Why not
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
    /// What to do about it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remedy: Option<String>,
}

impl Check {
    fn works(name: &str, purpose: &str) -> Self {
        Self { name: name.to_owned(), purpose: purpose.to_owned(), works: Some(true), ..Self::default() }
    }

    fn fails(name: &str, purpose: &str, why: Why) -> Self {
        Self { works: Some(false), reason: Some(why.reason), remedy: why.remedy, ..Self::works(name, purpose) }
    }

    fn untested(name: &str, purpose: &str, why: Why) -> Self {
        Self { works: None, ..Self::fails(name, purpose, why) }
    }
}

/// Why something does not work, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Why {
    reason: String,
    remedy: Option<String>,
}

impl Why {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: None }
    }

    fn with_remedy(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: Some(remedy.into()) }
    }
}

/// Whether a native probe runs here.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ProbeSupport {
    /// The probe
    pub name: String,
    /// Whether this kernel took its programs
    pub available: bool,
    /// Where it attaches
    pub hooks: Vec<String>,
    /// Why it cannot run
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
    /// What to do about it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remedy: Option<String>,
    /// What it adds to each event on the reference machine, in nanoseconds
    pub cost_ns: f64,
}

/// Where a file system is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Place {
    /// Its mount point
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub mounted_at: Option<String>,
    /// Whether this process can read it
    pub readable: bool,
    /// Why it cannot be used
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
    /// What to do about it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remedy: Option<String>,
}

/// The kernel's security settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Security {
    /// none, integrity or confidentiality; unknown where it cannot be read
    pub lockdown: String,
    /// How the state of lockdown is known, or why it is not
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lockdown_source: Option<String>,
    /// Security modules that are active, separated by commas; left out where it cannot be read
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub modules: Option<String>,
    /// 0: users without privilege may load eBPF programs; 1 and 2: they may not
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub unprivileged_bpf_disabled: Option<i64>,
    /// The higher, the less users without privilege may measure
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub perf_event_paranoid: Option<i64>,
    /// 0 or 1: kernel addresses are shown to those with `CAP_SYSLOG`; 2: to nobody
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub kptr_restrict: Option<i64>,
    /// Memory that this process may lock, in bytes; eBPF maps count before 5.11. Left out: without limit
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub memlock_bytes: Option<u64>,
}

/// What is missing or in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Problem {
    /// What
    pub what: String,
    /// What to do about it
    pub remedy: String,
    /// Whether native probes cannot run because of it
    pub blocking: bool,
}

/// The bpftrace of this system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BpftraceSupport {
    /// Whether there is one
    pub installed: bool,
    /// Whether it answers
    pub works: bool,
    /// Its version
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub version: Option<String>,
    /// The command that is run
    pub command: Vec<String>,
    /// What it says of itself and this kernel, by section. Where `attach_types` disagrees, believe that
    pub features: Vec<Feature>,
    /// The whole answer, as it is
    pub info: String,
    /// Why it does not work
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
    /// What to do about it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remedy: Option<String>,
}

/// Something that bpftrace says it has or has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Feature {
    /// The heading it stands under
    pub section: String,
    /// What
    pub name: String,
    /// yes, no, or a value
    pub value: String,
}

/// Bounds on executions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Bounds {
    /// How many may run at once
    pub running: usize,
    /// How many that have ended are kept
    pub kept: usize,
    /// How long one that has ended is kept, in seconds
    pub keep_seconds: u64,
    /// Memory of the events that are kept, in bytes
    pub memory_bytes: usize,
    /// The longest run, in seconds
    pub longest_seconds: u64,
}

/// Finds out. Takes some 0.1 s the first time and less later, and half a second more for bpftrace; needs no privilege,
/// only finds less without.
pub fn info(options: &Options) -> Info {
    let machine = machine::Machine::read();
    let kernel = Kernel::get();
    let kernel = kernel.as_ref().map(|kernel| *kernel);
    let facts = machine.facts(kernel.err().map(ToString::to_string));
    let attach_types = attach::check(kernel.ok(), &facts);
    let probes = probes::check(kernel, &facts, &attach_types);
    let mut info = Info {
        mcptrace: env!("CARGO_PKG_VERSION").to_owned(),
        native_works: probes.iter().any(|probe| probe.available),
        kernel: machine.release.clone(),
        arch: std::env::consts::ARCH.to_owned(),
        page_size: rustix::param::page_size() as u64,
        cpus: machine::cpus(),
        btf: machine.btf.clone(),
        problems: Vec::new(),
        attach_types,
        map_types: features::maps(&facts),
        helpers: features::helpers(&facts),
        run_time_statistics: features::run_time_statistics(&facts),
        process: facts.process.clone(),
        tracefs: machine.tracefs.clone(),
        cgroup2: machine.cgroup2.clone(),
        security: machine.security.clone(),
        config_source: machine.config.source.clone(),
        config: machine.config.facts(),
        bpftrace: options.bpftrace.then(|| bpftrace::check(options.command())),
        scripts: scripts(&options.limits),
        recorder: options.limits.history.as_deref().and_then(recorder::read),
        limits: bounds(&options.limits),
        probes,
    };
    info.problems = problems::find(&info, &facts);
    memory::release_free();
    info
}

fn scripts(limits: &Limits) -> Scripts {
    Scripts {
        policy: limits.scripts,
        launcher: launcher::process_id(),
        capabilities: launcher::capabilities(),
        parts: sandbox::in_force(),
    }
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        running: limits.running,
        kept: limits.kept,
        keep_seconds: limits.keep.as_secs(),
        memory_bytes: limits.bytes,
        longest_seconds: limits.longest.as_secs(),
    }
}

/// Runs a test unless it has passed before with the same capabilities.
fn once<E>(name: &str, test: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    static PASSED: Mutex<(u64, BTreeSet<String>)> = Mutex::new((0, BTreeSet::new()));
    let capabilities = privilege::effective();
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.0 != capabilities {
        *passed = (capabilities, BTreeSet::new());
    }
    if passed.1.contains(name) {
        return Ok(());
    }
    drop(passed);
    test()?;
    PASSED.lock().unwrap_or_else(PoisonError::into_inner).1.insert(name.to_owned());
    Ok(())
}
