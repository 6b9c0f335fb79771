//! The catalogue of native probes. Pure but for reading maps: a probe says what it needs, plans its programs, and turns what the
//! kernel kept into a report.
//!
//! A probe is one file here, one file of the same name in `mcptrace-ebpf/src/bin`, and a row in [`PROBES`].

mod actor;
pub mod block_latency;
pub mod bpf_programs;
pub mod capability_checks;
pub mod catalogue;
pub mod cpu_profile;
pub mod cpu_slices;
pub mod dns_latency;
pub mod file_io;
pub mod file_opens;
pub mod fs_sync;
pub mod function_latency;
mod functions;
pub mod futex_waits;
pub mod heap_growth;
pub mod irq_time;
pub mod kernel_locks;
pub mod memory_reclaim;
mod names;
pub mod net_traffic;
pub mod offcpu_stacks;
pub mod oom_kills;
pub mod options;
pub mod packet_drops;
pub mod page_cache;
pub mod page_faults;
pub mod paths;
pub(crate) mod places;
pub mod privileged_actions;
pub mod process_exec;
pub mod process_exit;
pub mod runq_latency;
pub mod signals;
pub mod sockets;
pub mod stacks;
pub mod syscall_counts;
pub mod syscall_errors;
pub mod syscall_latency;
pub mod tcp_connections;
pub mod tcp_retransmits;
pub mod usdt_events;
pub mod wakeup_chains;

use aya::maps::MapError;
use mcptrace_wire::{Header, Record, WIRE_VERSION};
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use self::options::{By, check_group, check_numbers};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan, Transport},
        filter::Resolved,
        hook::{self, Attach},
        layout::Layout,
    },
    report::{Field, Report, Row},
};

/// Every probe, in the order the catalogue shows them.
pub const PROBES: &[Entry] = &[
    Entry::of::<syscall_counts::SyscallCounts>(),
    Entry::of::<syscall_latency::SyscallLatency>(),
    Entry::of::<file_opens::FileOpens>(),
    Entry::of::<block_latency::BlockLatency>(),
    Entry::of::<runq_latency::RunqLatency>(),
    Entry::of::<cpu_profile::CpuProfile>(),
    Entry::of::<offcpu_stacks::OffcpuStacks>(),
    Entry::of::<wakeup_chains::WakeupChains>(),
    Entry::of::<kernel_locks::KernelLocks>(),
    Entry::of::<futex_waits::FutexWaits>(),
    Entry::of::<heap_growth::HeapGrowth>(),
    Entry::of::<tcp_connections::TcpConnections>(),
    Entry::of::<tcp_retransmits::TcpRetransmits>(),
    Entry::of::<packet_drops::PacketDrops>(),
    Entry::of::<net_traffic::NetTraffic>(),
    Entry::of::<file_io::FileIo>(),
    Entry::of::<fs_sync::FsSync>(),
    Entry::of::<page_cache::PageCache>(),
    Entry::of::<dns_latency::DnsLatency>(),
    Entry::of::<process_exec::ProcessExec>(),
    Entry::of::<process_exit::ProcessExit>(),
    Entry::of::<signals::Signals>(),
    Entry::of::<oom_kills::OomKills>(),
    Entry::of::<syscall_errors::SyscallErrors>(),
    Entry::of::<cpu_slices::CpuSlices>(),
    Entry::of::<irq_time::IrqTime>(),
    Entry::of::<memory_reclaim::MemoryReclaim>(),
    Entry::of::<page_faults::PageFaults>(),
    Entry::of::<capability_checks::CapabilityChecks>(),
    Entry::of::<privileged_actions::PrivilegedActions>(),
    Entry::of::<function_latency::FunctionLatency>(),
    Entry::of::<usdt_events::UsdtEvents>(),
    Entry::of::<bpf_programs::BpfPrograms>(),
];

/// The programs that follow forks of a filtered process, and let go of those that are gone; every object has them.
pub const FOLLOW: [Attach; 2] =
    [Attach::tracepoint("follow", "sched_process_fork"), Attach::tracepoint("forget", "sched_process_free")];

/// A native probe.
pub trait Probe: Sized + Send + Sync + 'static {
    /// Its name, and that of its kernel file.
    const NAME: &'static str;
    /// One sentence: the question it answers.
    const SUMMARY: &'static str;
    /// What part of the system it looks at.
    const CATEGORY: &'static str;
    /// What its numbers mean, and what it does not see.
    const DETAILS: &'static str;
    /// What to look at next, and when.
    const NEXT: &'static [&'static str];
    /// A call that shows it, as the arguments of `run_probe`.
    const EXAMPLE: &'static str;
    /// Its eBPF object.
    const OBJECT: &'static [u8];
    /// The hooks that it cannot do without.
    const HOOKS: &'static [Attach];
    /// The offsets that it cannot do without, by the names of their globals.
    const NEEDS: &'static [&'static str];
    /// Which of the hooks sees the events that are counted as seen; empty for a probe that has no programs of its own.
    const COUNTS: &'static str;
    /// What it adds to each event on the reference machine, in nanoseconds.
    const COST_NS: f64;
    /// Whether it measures durations, which `min_duration_us` can then filter by.
    const HAS_DURATION: bool = true;
    /// Whether its report is of stacks.
    const STACKS: WithStacks = WithStacks::Never;
    /// What results can be grouped by, where it has the option `by`.
    const GROUPS: &'static [By] = &[];
    /// Its options.
    type Options: DeserializeOwned + Serialize + JsonSchema + Default;

    /// Checks the options and says what to load and attach.
    fn plan(options: &Self::Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError>;

    /// What the kernel kept, as a report with all its rows.
    fn report(&self, maps: &Maps<'_>, seconds: f64) -> Result<Found, MapError>;

    /// The columns or fields of its report, with units.
    fn fields() -> Vec<Field>;

    /// The fields of its events, if it sends any.
    fn event_fields() -> Vec<Field> {
        Vec::new()
    }

    /// Lets go of what the probe itself holds in the kernel: collection has ended, and the last report has been made.
    fn ended(&self) {}

    /// Whether a record is well formed. Cheap: asked for every record, while rows are made only of those that are shown.
    fn accepts(_record: &[u8]) -> bool {
        false
    }

    /// Takes in a record that is part of the report and no event of its own, as the frames of a stack are; false if it is malformed.
    fn take(&self, _record: &[u8]) -> bool {
        false
    }

    /// Memory that it holds for what it took in, in bytes.
    fn bytes(&self) -> usize {
        0
    }

    /// An event as a row; `None` if the record is malformed.
    fn row(_record: &[u8], _clock: &Clock) -> Option<Row> {
        None
    }

    /// The same for events whose fields have names that only this run knows.
    fn named_row(&self, record: &[u8], clock: &Clock) -> Option<Row> {
        Self::row(record, clock)
    }
}

impl Entry {
    /// The fields of its events where they are others than those of its report.
    pub fn further_event_fields(&self) -> Vec<Field> {
        let events = (self.event_fields)();
        if events == (self.fields)() { Vec::new() } else { events }
    }
}

/// What a probe finds.
#[derive(Debug, Default)]
pub struct Found {
    /// The report; `None` if the events are all there is.
    pub report: Option<Report>,
    /// How many events are part of the report.
    pub delivered: u64,
    /// What a reader must know to not misread it.
    pub notes: Vec<String>,
}

/// What a plan may depend on.
#[derive(Debug)]
pub struct Context<'a> {
    /// Where this kernel keeps what programs read.
    pub layout: &'a Layout,
    /// The filters in force.
    pub filter: &'a Resolved,
    /// How many CPUs there may ever be.
    pub cpus: u32,
    /// How events travel, unless the options say otherwise.
    pub transport: Transport,
}

/// Why options cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionError {
    /// What is wrong, where, and what would be right.
    pub message: String,
    /// The nearest known name.
    pub did_you_mean: Option<String>,
}

impl OptionError {
    /// An error without a suggestion.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), did_you_mean: None }
    }
}

/// A [`Probe`] with its types erased, so that probes fit in one table.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// The question it answers.
    pub summary: &'static str,
    /// What part of the system it looks at.
    pub category: &'static str,
    /// What its numbers mean.
    pub details: &'static str,
    /// What to look at next.
    pub next: &'static [&'static str],
    /// A call that shows it.
    pub example: &'static str,
    /// Hooks that it cannot do without.
    pub hooks: &'static [Attach],
    /// Offsets that it cannot do without.
    pub needs: &'static [&'static str],
    /// What it adds to each event on the reference machine, in nanoseconds.
    pub cost_ns: f64,
    /// See [`Probe::HAS_DURATION`].
    pub has_duration: bool,
    /// See [`Probe::STACKS`].
    pub stacks: WithStacks,
    /// See [`Probe::GROUPS`].
    pub groups: &'static [By],
    /// Columns or fields of the report.
    pub fields: fn() -> Vec<Field>,
    /// Fields of the events.
    pub event_fields: fn() -> Vec<Field>,
    /// JSON schema of the options.
    pub schema: fn() -> Schema,
    /// Checks the options and makes a plan.
    pub prepare: fn(&Map<String, Value>, &Context<'_>) -> Result<Prepared, OptionError>,
    /// Whether a record is well formed, and its row.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) decodes: fn(&[u8], &Clock) -> (bool, Option<Row>),
    /// A plan with the default options, for trying whether a kernel takes the programs.
    pub trial: fn(&Context<'_>) -> Plan,
}

/// When a probe's report is of stacks, of which folded text and a flame graph can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithStacks {
    /// Whatever its options are.
    Always,
    /// With the option `stacks`.
    IfAsked,
    /// Its report has another shape.
    Never,
}

/// A probe ready to be loaded.
pub struct Prepared {
    /// What to load and attach.
    pub plan: Plan,
    /// The options with their defaults filled in.
    pub options: Row,
    /// What turns maps and records into a report.
    pub reader: Box<dyn Reader>,
}

/// The reading half of a [`Probe`], erased.
pub trait Reader: Send + Sync {
    /// See [`Probe::report`].
    fn report(&self, maps: &Maps<'_>, seconds: f64) -> Result<Found, MapError>;
    /// See [`Probe::ended`].
    fn ended(&self);
    /// See [`Probe::accepts`].
    fn accepts(&self, record: &[u8]) -> bool;
    /// See [`Probe::take`].
    fn take(&self, record: &[u8]) -> bool;
    /// See [`Probe::bytes`].
    fn bytes(&self) -> usize;
    /// See [`Probe::row`].
    fn row(&self, record: &[u8], clock: &Clock) -> Option<Row>;
    /// See [`Probe::event_fields`].
    fn event_fields(&self) -> Vec<Field>;
}

impl<P: Probe> Reader for P {
    fn report(&self, maps: &Maps<'_>, seconds: f64) -> Result<Found, MapError> {
        P::report(self, maps, seconds)
    }

    fn ended(&self) {
        P::ended(self);
    }

    fn accepts(&self, record: &[u8]) -> bool {
        P::accepts(record)
    }

    fn take(&self, record: &[u8]) -> bool {
        P::take(self, record)
    }

    fn bytes(&self) -> usize {
        P::bytes(self)
    }

    fn row(&self, record: &[u8], clock: &Clock) -> Option<Row> {
        self.named_row(record, clock)
    }

    fn event_fields(&self) -> Vec<Field> {
        P::event_fields()
    }
}

impl Entry {
    /// Whether the parts of a filter between its stars stand in the name, category and summary, in this order.
    pub fn is_about(&self, filter: &str) -> bool {
        let text = format!("{} {} {}", self.name, self.category, self.summary).to_lowercase();
        let mut rest = text.as_str();
        filter.to_lowercase().split('*').all(|part| {
            let found = rest.find(part);
            rest = found.map_or("", |at| &rest[at + part.len()..]);
            found.is_some()
        })
    }

    const fn of<P: Probe>() -> Self {
        Self {
            name: P::NAME,
            summary: P::SUMMARY,
            category: P::CATEGORY,
            details: P::DETAILS,
            next: P::NEXT,
            example: P::EXAMPLE,
            hooks: P::HOOKS,
            needs: P::NEEDS,
            cost_ns: P::COST_NS,
            has_duration: P::HAS_DURATION,
            stacks: P::STACKS,
            groups: P::GROUPS,
            fields: P::fields,
            event_fields: P::event_fields,
            schema: schema_of::<P>,
            prepare: prepare::<P>,
            #[cfg(any(test, feature = "fuzzing"))]
            decodes: |record, clock| (P::accepts(record), P::row(record, clock)),
            trial: trial::<P>,
        }
    }

    /// Where it attaches, in words.
    pub fn hook_names(&self) -> Vec<String> {
        hook::names(self.hooks)
    }

    /// The names of its options, in alphabetical order.
    pub fn option_names(&self) -> Vec<String> {
        let schema = (self.schema)();
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.into_iter().flat_map(Map::keys).cloned().collect()
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The probe of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    PROBES.iter().find(|entry| entry.name == name)
}

/// The fixed part of a record, and what follows it; `None` if its header is not that of such a record.
pub fn parse<R: Record>(record: &[u8]) -> Option<(R, &[u8])> {
    let header = read::<Header>(record)?;
    let size = usize::from(header.size);
    let fits =
        header.version == WIRE_VERSION && header.kind == R::KIND && size <= record.len() && size_of::<R>() <= size;
    fits.then(|| read::<R>(record)).flatten().map(|fixed| (fixed, &record[size_of::<R>()..size]))
}

fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, and both callers name types that are valid for every bit pattern.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn prepare<P: Probe>(options: &Map<String, Value>, context: &Context<'_>) -> Result<Prepared, OptionError> {
    let options: P::Options = options_of::<P>(options)?;
    let (probe, mut plan) = P::plan(&options, context)?;
    plan.globals.extend(context.filter.globals.iter().cloned());
    plan.places |= plan.event_bytes > 0 && places::are_in(&P::event_fields());
    if plan.places {
        places::watch(&mut plan, context.layout);
    }
    plan.follow = context.filter.follow;
    if plan.follow.is_some() {
        plan.attach.splice(0..0, FOLLOW);
    }
    let options = match serde_json::to_value(&options) {
        Ok(Value::Object(options)) => options,
        _ => Map::new(),
    };
    Ok(Prepared { plan, options, reader: Box::new(probe) })
}

/// The schema of a probe's options; of the groups only those that it can make.
fn schema_of<P: Probe>() -> Schema {
    let mut schema = schema_for!(P::Options);
    let groups = schema.pointer_mut("/properties/by/oneOf").and_then(Value::as_array_mut);
    if let Some(groups) = groups {
        groups.retain(|group| P::GROUPS.iter().any(|by| group["const"] == by.as_str()));
    }
    schema
}

/// Where an option has no default, what the catalogue says is tried.
fn trial<P: Probe>(context: &Context<'_>) -> Plan {
    P::plan(&P::Options::default(), context).map_or_else(|_| plan_of::<P>(context), |(_, plan)| plan)
}

fn options_of<P: Probe>(given: &Map<String, Value>) -> Result<P::Options, OptionError> {
    let parse = |given: Map<String, Value>| serde_json::from_value::<P::Options>(given.into());
    check_group(P::NAME, P::GROUPS, given)?;
    check_numbers(schema_for!(P::Options).get("properties"), given)?;
    parse(given.clone()).map_err(|error| {
        // serde does not say which one it was; every option has a default, so each can be tried alone.
        let alone = |(name, value): (&String, &Value)| {
            let error = parse(Map::from_iter([(name.clone(), value.clone())])).err()?;
            Some(format!("options.{name}: {error}"))
        };
        let message = given.iter().find_map(alone);
        OptionError::new(message.unwrap_or_else(|| format!("options of {}: {error}", P::NAME)))
    })
}

/// Options of a probe that has none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NoOptions {}

/// Puts a field into a row.
fn put(row: &mut Row, name: &str, value: impl Into<Value>) {
    row.insert(name.to_owned(), value.into());
}

/// Fields without units.
fn plain(names: &[&str]) -> Vec<Field> {
    names.iter().map(|name| Field::new(*name, "")).collect()
}

/// A plan with a probe's own hooks and nothing set.
fn plan_of<P: Probe>(context: &Context<'_>) -> Plan {
    Plan {
        probe: P::NAME,
        object: P::OBJECT,
        attach: P::HOOKS.to_vec(),
        counts: P::COUNTS,
        globals: Vec::new(),
        map_entries: Vec::new(),
        values: Vec::new(),
        event_bytes: 0,
        transport: context.transport,
        follow: None,
        places: false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_snake_case_and_summaries_are_sentences() {
        let names: BTreeSet<_> = PROBES.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), PROBES.len());
        for entry in PROBES {
            assert!(entry.name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'), "{}", entry.name);
            assert!(entry.summary.ends_with(['.', '?']) && entry.summary.len() <= 120, "{}", entry.summary);
            assert!(!entry.next.is_empty() && !entry.details.is_empty());
        }
    }

    /// Without this a filter that does nothing would be shown as one that was applied.
    #[test]
    fn only_kernel_files_that_compare_durations_take_min_duration() {
        for entry in PROBES {
            let path = format!("{}/../mcptrace-ebpf/src/bin/{}.rs", env!("CARGO_MANIFEST_DIR"), entry.name);
            let compares = std::fs::read_to_string(&path).unwrap().contains("duration_passes(");
            assert_eq!(compares, entry.has_duration, "{}: duration_passes and HAS_DURATION disagree", entry.name);
        }
    }

    #[test]
    fn stacks_are_the_only_report_without_columns_or_an_option() {
        for entry in PROBES {
            let fields = (entry.fields)();
            let is_always = matches!(&fields[..], [field] if field.name == "value");
            assert_eq!(is_always, entry.stacks == WithStacks::Always, "{}", entry.name);
            let is_asked = entry.option_names().iter().any(|name| name == "stacks");
            assert_eq!(is_asked, entry.stacks == WithStacks::IfAsked, "{}", entry.name);
        }
    }

    #[test]
    fn examples_are_calls_of_the_probe_with_known_options() {
        for entry in PROBES {
            let example: Value = serde_json::from_str(entry.example).unwrap();
            assert_eq!(example["probe"], entry.name);
            let known = entry.option_names();
            for option in example["options"].as_object().into_iter().flat_map(Map::keys) {
                assert!(known.contains(option), "{}: {option}", entry.name);
            }
        }
    }

    #[test]
    fn the_option_that_is_wrong_is_named() {
        let given = serde_json::json!({"failed_only": true, "path_prefix": 7});
        let error = options_of::<file_opens::FileOpens>(given.as_object().unwrap()).unwrap_err();
        assert!(error.message.starts_with("options.path_prefix: invalid type: integer `7`"), "{error}");
    }

    #[test]
    fn options_of_one_name_have_one_schema() {
        let mut seen: Map<String, Value> = Map::new();
        for entry in PROBES {
            let schema = (entry.schema)();
            for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let mut property = property.clone();
                // Which groups there are, and what it is without a word, is each probe's own.
                if name == "by" {
                    let groups = property["oneOf"].take();
                    property["default"].take();
                    assert!(
                        groups.as_array().is_some_and(|groups| groups.len() >= 2),
                        "{}: GROUPS is missing",
                        entry.name
                    );
                }
                let known = seen.entry(name.clone()).or_insert_with(|| property.clone());
                assert_eq!(*known, property, "{}: option {name} means something else elsewhere", entry.name);
            }
        }
    }

    #[test]
    fn only_groups_that_a_probe_can_make_are_offered() {
        for entry in PROBES {
            let schema = (entry.schema)();
            let Some(groups) = schema.pointer("/properties/by/oneOf").and_then(Value::as_array) else { continue };
            let offered: Vec<_> = groups.iter().map(|group| group["const"].as_str().unwrap()).collect();
            assert_eq!(offered, entry.groups.iter().map(|by| by.as_str()).collect::<Vec<_>>(), "{}", entry.name);
        }
        let of = |by: &str| {
            let given = serde_json::json!({ "by": by });
            options_of::<syscall_errors::SyscallErrors>(given.as_object().unwrap()).map(|_| ())
        };
        assert_eq!(of("pid"), Ok(()));
        let message = "options.by: syscall_errors does not group by `comm`; it takes total, pid";
        assert_eq!(of("comm").unwrap_err().message, message);
        assert_eq!(of("pidd").unwrap_err().did_you_mean.as_deref(), Some("pid"));
    }

    #[test]
    fn kernel_files_and_rows_are_the_same() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../mcptrace-ebpf/src/bin");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
        // Not probes: empty programs that show what a kernel can attach, and what the recorder has always on.
        files.retain(|name| !["attach_types", "recorder", "recorder_syscalls"].contains(&name.as_str()));
        files.sort();
        let mut names: Vec<_> = PROBES.iter().map(|entry| entry.name.to_owned()).collect();
        names.sort();
        assert_eq!(files, names);
    }

    #[test]
    fn a_short_or_odd_record_is_malformed() {
        use mcptrace_wire::SlowSyscall;
        let size = size_of::<SlowSyscall>();
        let mut record = vec![0_u8; size + 5];
        let header = |size: usize, version, kind| [size as u8, (size >> 8) as u8, version, kind];
        record[..4].copy_from_slice(&header(size, WIRE_VERSION, SlowSyscall::KIND));
        assert_eq!(
            parse::<SlowSyscall>(&record).unwrap().1,
            [] as [u8; 0],
            "padding of perf buffers is not part of it"
        );
        for bad in [
            header(size, WIRE_VERSION + 1, SlowSyscall::KIND),
            header(size, WIRE_VERSION, SlowSyscall::KIND + 1),
            header(size - 1, WIRE_VERSION, SlowSyscall::KIND),
            header(size + 6, WIRE_VERSION, SlowSyscall::KIND),
        ] {
            record[..4].copy_from_slice(&bad);
            assert!(parse::<SlowSyscall>(&record).is_none(), "{bad:?}");
        }
        assert!(parse::<SlowSyscall>(&[1, 2]).is_none());
    }
}
