//! `mcptrace run PROBE`: traces for a while and shows what was found.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use clap::{Arg, ArgMatches, Args as _, Command, FromArgMatches as _, value_parser};
use serde_json::{Map, Value};
use tokio::{
    runtime, select,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Failure, config, failure, options, output, probe_help,
    progress::Progress,
    watch::Watch,
    workload::{self, Workload},
};
use crate::{
    audit::Audit,
    execution::{Execution, Page},
    executions::{self, Executions, ProbeRequest},
    kernel::{filter::Filter, processes::process_has_ended},
    principal::Principal,
    probes::{Entry, PROBES, WithStacks},
    report::{
        Envelope, Status,
        text::{Reader, envelope_for},
    },
};

/// How long a run is if nobody says.
const DEFAULT_SECONDS: f64 = 5.0;
/// The longest run, in seconds: a day, as for the server.
const LONGEST_SECONDS: f64 = 86_400.0;
/// How many rows are shown if nobody says.
const DEFAULT_ROWS: usize = 20;
/// How many rows there may be; an execution keeps some 60,000 events.
const MOST_ROWS: u32 = 100_000;
/// Bounds of what is printed, in bytes.
const MOST_TEXT: usize = 16 << 20;
const MOST_JSON: usize = 64 << 20;
/// How often the line on the terminal is redrawn.
const TICK: Duration = Duration::from_millis(200);

const AFTER_HELP: &str = "\
Examples:
  mcptrace run file_opens --failed-only
  mcptrace run runq_latency -d 10 --by comm
  mcptrace run syscall_counts --json -- ls /etc

mcptrace run PROBE --help shows the options of a probe.
Ctrl-C ends tracing and shows the result so far; a second one quits at once.
With -- COMMAND, tracing ends with the command, and a note says how that ended.
If tracing ends first (-d, Ctrl-C), the command gets SIGTERM.";

/// Flags that all probes take.
#[derive(Debug, clap::Args)]
struct Flags {
    /// How long to trace, in seconds [default: 5, or until COMMAND ends]
    #[arg(short = 'd', long, value_name = "N", global = true, allow_negative_numbers = true, value_parser = length)]
    seconds: Option<f64>,
    /// Rows or series to show at most [default: 20, with --json all]
    #[arg(long, value_name = "N", global = true, value_parser = value_parser!(u32).range(1..=i64::from(MOST_ROWS)))]
    top: Option<u32>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Write a flame graph, with probes of stacks
    #[arg(long, value_name = "SVG", global = true)]
    flamegraph: Option<PathBuf>,
    /// Write all stacks as folded text, with probes of stacks
    #[arg(long, value_name = "TXT", global = true)]
    folded: Option<PathBuf>,
    /// Show events as they come, or the report anew when it changes, once a second; without --seconds until Ctrl-C
    #[arg(short = 'f', long, global = true)]
    follow: bool,
    #[command(flatten)]
    filter: FilterFlags,
}

/// Which threads a probe looks at.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters, applied in the kernel; all that are given must match")]
struct FilterFlags {
    /// Process id (initial pid namespace)
    #[arg(long, value_name = "PID", global = true)]
    pid: Option<u32>,
    /// Thread id
    #[arg(long, value_name = "TID", global = true)]
    tid: Option<u32>,
    /// Command name, exact, at most 15 bytes
    #[arg(long, value_name = "NAME", global = true)]
    comm: Option<String>,
    /// User id
    #[arg(long, value_name = "UID", global = true)]
    uid: Option<u32>,
    /// Control group: path below the cgroup2 mount, with all below it
    #[arg(long, value_name = "PATH", global = true)]
    cgroup: Option<String>,
    /// Container id or the start of one
    #[arg(long, value_name = "ID", global = true)]
    container: Option<String>,
    /// With --pid: also its children from now on
    #[arg(long, global = true)]
    descendants: bool,
    /// Only what took at least this long, in microseconds
    #[arg(long, value_name = "N", global = true, alias = "min_duration_us")]
    min_duration_us: Option<u64>,
}

pub(super) fn define() -> Command {
    // The flags first: their own description would stand for the command's.
    Flags::augment_args(Command::new("run"))
        .about("Trace with a native probe and show what it found")
        .after_help(AFTER_HELP)
        .subcommand_value_name("PROBE")
        .subcommand_help_heading("Probes")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        // So that the error about an unknown probe is ours: it names the probes that there are.
        .allow_external_subcommands(true)
        .subcommands(PROBES.iter().map(probe))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let (name, matches) = matches.subcommand().ok_or_else(|| Failure::usage("which probe?"))?;
    let entry = PROBES.iter().find(|entry| entry.name == name).ok_or_else(|| unknown(name))?;
    let flags = Flags::from_arg_matches(matches).map_err(|error| Failure::usage(error.to_string()))?;
    let words: Vec<OsString> = matches.get_many("command").into_iter().flatten().cloned().collect();
    let request = request(entry, matches, &flags, !words.is_empty())?;
    flags.need_stacks(entry, &request.options)?;
    let config = config::load(matches)?.config;
    let executions = Executions::audited(config.limits(), Audit::new(&config.audit(false)));
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    flags.try_files()?;
    let (envelope, stacks) = runtime.block_on(trace(executions, request, &words, &flags))?;
    match flags {
        // Lines went before it.
        Flags { json: true, follow: true, .. } => output::json_line(&envelope).and_then(|()| worked(&envelope))?,
        Flags { json, .. } => show(&envelope, json)?,
    }
    stacks
}

fn probe(entry: &Entry) -> Command {
    let command = Arg::new("command")
        .value_name("COMMAND")
        .help("Trace this command and its children, from its first instruction to its end")
        .num_args(1..)
        .last(true)
        .value_parser(value_parser!(OsString));
    Command::new(entry.name)
        .aliases(entry.name.contains('_').then(|| entry.name.replace('_', "-")))
        .about(entry.summary)
        .after_help(probe_help::after_help(entry))
        .args(options::arguments(entry))
        .arg(command)
}

fn unknown(name: &str) -> Failure {
    let names: Vec<_> = PROBES.iter().map(|entry| entry.name).collect();
    let near = executions::find(name).err().and_then(|refusal| refusal.did_you_mean().map(str::to_owned));
    let near = near.map(|near| format!("\n\n  did you mean `{near}`?")).unwrap_or_default();
    let name = name.escape_debug();
    Failure::usage(format!("there is no probe `{name}`{near}\n\nThe probes are: {}", names.join(", ")))
}

pub(super) fn length(text: &str) -> Result<f64, String> {
    let right = format!("takes a number of seconds, more than 0 and at most {LONGEST_SECONDS}");
    let seconds: f64 = text.parse().map_err(|_| right.clone())?;
    if seconds > 0.0 && seconds <= LONGEST_SECONDS { Ok(seconds) } else { Err(right) }
}

fn request(entry: &Entry, matches: &ArgMatches, flags: &Flags, command: bool) -> Result<ProbeRequest, Failure> {
    if command && (flags.filter.pid.is_some() || flags.filter.descendants) {
        return Err(Failure::usage(
            "--pid and --descendants do not go with a command: the command and its children are traced",
        ));
    }
    let default = if command || flags.follow { LONGEST_SECONDS } else { DEFAULT_SECONDS };
    Ok(ProbeRequest {
        probe: entry.name.to_owned(),
        options: options::given(entry, matches),
        filter: filter(&flags.filter),
        seconds: flags.seconds.unwrap_or(default),
        by: Principal::cli().into(),
    })
}

fn filter(flags: &FilterFlags) -> Filter {
    let FilterFlags { pid, tid, comm, uid, cgroup, container, descendants, min_duration_us } = flags;
    Filter {
        pid: *pid,
        tid: *tid,
        comm: comm.clone(),
        uid: *uid,
        cgroup: cgroup.clone(),
        container: container.clone(),
        descendants: *descendants,
        min_duration_us: *min_duration_us,
    }
}

/// Runs the probe, and the command if there is one, to the end: what it found, and whether its stacks were written where they should go.
async fn trace(
    executions: Executions,
    mut request: ProbeRequest,
    words: &[OsString],
    flags: &Flags,
) -> Result<(Envelope, Result<(), Failure>), Failure> {
    let interrupted = interrupts()?;
    let mut workload = if words.is_empty() { None } else { Some(Workload::start(words, flags.json)?) };
    if let Some(workload) = &workload {
        request.filter.pid = Some(workload.pid());
        request.filter.descendants = true;
    }
    // Kept to the end: whoever lets go of the executions stops them.
    let executions = Arc::new(executions);
    let starter = Arc::clone(&executions);
    let subject = request.filter.pid.filter(|_| flags.follow && !request.filter.descendants);
    let execution = blocking(move || starter.start_probe(&request)).await??;
    let mut view = View::new(flags, workload.is_some());
    let ended = follow(&execution, workload.as_mut(), subject, &interrupted, &mut view).await?;
    let mut page = page(flags.top, flags.json);
    page.event = view.finish(&execution)?;
    let stacks = write_stacks(&execution, flags).await;
    let mut envelope = blocking(move || execution.envelope(&page)).await?;
    if ended.is_some() && !interrupted.is_cancelled() && envelope.status == Status::Stopped {
        // It has run for as long as it was meant to.
        envelope.status = Status::Completed;
    }
    if let Some(workload) = &mut workload {
        envelope.notes.push(match ended {
            Some(how) => how,
            None => workload.end().await?,
        });
    } else {
        envelope.notes.extend(ended);
    }
    Ok((envelope, stacks))
}

impl Flags {
    /// That there will be stacks, if they are to be written.
    fn need_stacks(&self, entry: &Entry, options: &Map<String, Value>) -> Result<(), Failure> {
        let Some(path) = self.flamegraph.as_ref().or(self.folded.as_ref()) else { return Ok(()) };
        let (name, path) = (entry.name, path.display());
        match entry.stacks {
            WithStacks::Always => Ok(()),
            WithStacks::IfAsked if options.get("stacks") == Some(&Value::Bool(true)) => Ok(()),
            WithStacks::IfAsked => {
                Err(Failure::usage(format!("{name} has stacks to write into {path} only with --stacks")))
            }
            WithStacks::Never => {
                let others: Vec<_> =
                    PROBES.iter().filter(|one| one.stacks != WithStacks::Never).map(|one| one.name).collect();
                let others = others.join(", ");
                Err(Failure::usage(format!("{name} has no stacks to write into {path}; probes that have: {others}")))
            }
        }
    }

    /// That stacks can be written where they are to go, before anything is traced.
    fn try_files(&self) -> Result<(), Failure> {
        for path in self.flamegraph.iter().chain(&self.folded) {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))?;
        }
        Ok(())
    }
}

/// Writes what was asked for; an error if the probe has no stacks.
async fn write_stacks(execution: &Arc<Execution>, flags: &Flags) -> Result<(), Failure> {
    for (path, what) in
        [(&flags.flamegraph, Execution::flamegraph as fn(&Execution) -> Option<String>), (&flags.folded, folded)]
    {
        let Some(path) = path else { continue };
        let shared = Arc::clone(execution);
        let text = blocking(move || what(&shared)).await?;
        let text = text.ok_or_else(|| {
            Failure::usage(format!("{} has no stacks to write into {}", execution.identity.probe, path.display()))
        })?;
        std::fs::write(path, text)
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}

fn folded(execution: &Execution) -> Option<String> {
    execution.folded().map(|folded| folded.to_string())
}

/// Waits for the end: of the time, of the command, of the process that is followed, or by a signal. Says how one of these ended, if that
/// came first.
pub(super) async fn follow(
    execution: &Arc<Execution>,
    mut workload: Option<&mut Workload>,
    subject: Option<u32>,
    interrupted: &CancellationToken,
    view: &mut View,
) -> Result<Option<String>, Failure> {
    let (mut how, mut stopping) = (None, false);
    if let Some(workload) = &workload {
        workload.go()?;
    }
    loop {
        let pause = view.show(execution)?;
        if let Some(pid) = subject.filter(|pid| how.is_none() && process_has_ended(*pid)) {
            how = Some(format!("process {pid} has ended: there is nothing more to follow"));
            execution.stop();
        }
        select! {
            () = execution.ended() => return Ok(how),
            () = interrupted.cancelled(), if !stopping => {
                stopping = true;
                execution.stop();
            }
            status = end_of(workload.as_deref_mut()), if how.is_none() => {
                how = Some(workload::in_words(status?));
                execution.stop();
            }
            () = sleep(pause) => {}
        }
    }
}

/// What is seen of a run while it runs.
pub(super) enum View {
    Progress(Progress),
    Watch(Box<Watch>),
}

impl View {
    fn new(flags: &Flags, command: bool) -> Self {
        let rows = flags.top.map_or(DEFAULT_ROWS, |top| top as usize);
        if flags.follow {
            Self::Watch(Box::new(Watch::new(flags.json, rows)))
        } else {
            Self::Progress(Progress::new(!command))
        }
    }

    /// Shows how far it is; when to do so again.
    fn show(&mut self, execution: &Execution) -> Result<Duration, Failure> {
        match self {
            Self::Progress(progress) => {
                progress.show(execution);
                Ok(TICK)
            }
            Self::Watch(watch) => watch.show(execution),
        }
    }

    /// Shows the last of it; the place of the first event that has not been shown.
    fn finish(self, execution: &Execution) -> Result<u64, Failure> {
        match self {
            Self::Progress(_) => Ok(0),
            Self::Watch(mut watch) => watch.finish(execution),
        }
    }
}

async fn end_of(workload: Option<&mut Workload>) -> Result<std::process::ExitStatus, Failure> {
    match workload {
        Some(workload) => workload.ended().await,
        None => std::future::pending().await,
    }
}

/// Set by the first SIGINT, SIGTERM or SIGHUP; the second ends the program, and the kernel then detaches everything. They are waited for by a
/// thread of its own: that which prints waits for as long as nobody reads.
pub(super) fn interrupts() -> Result<CancellationToken, Failure> {
    let token = CancellationToken::new();
    let (set, (begun, begins)) = (token.clone(), mpsc::channel());
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let failed = runtime.and_then(|runtime| runtime.block_on(signals(&set, &begun)));
        let _ = begun.send(failed);
    })?;
    begins.recv().map_err(|error| Failure::failed(error.to_string()))??;
    Ok(token)
}

async fn signals(set: &CancellationToken, begun: &mpsc::Sender<io::Result<()>>) -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let _ = begun.send(Ok(()));
    loop {
        select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
        if set.is_cancelled() {
            std::process::exit(i32::from(failure::INTERRUPTED_TWICE));
        }
        set.cancel();
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(work).await.map_err(|error| Failure::failed(format!("internal error: {error}")))
}

/// How much of a result is shown.
pub(super) fn page(top: Option<u32>, json: bool) -> Page {
    let default = if json { MOST_ROWS as usize } else { DEFAULT_ROWS };
    let limit = top.map_or(default, |top| top as usize);
    Page { from: 0, event: 0, limit, max_bytes: MOST_JSON }
}

pub(super) fn show(envelope: &Envelope, json: bool) -> Result<(), Failure> {
    if json {
        output::json(envelope)?;
    } else {
        output::text(&envelope_for(Reader::Shell, envelope, MOST_TEXT))?;
    }
    worked(envelope)
}

fn worked(envelope: &Envelope) -> Result<(), Failure> {
    if envelope.status == Status::Failed { Err(Failure::failed("")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_more_than_none_and_at_most_a_day() {
        assert_eq!(length("0.3"), Ok(0.3));
        assert_eq!(length("86400"), Ok(86_400.0));
        for wrong in ["0", "-1", "nan", "inf", "1e9", "5s", "", "five"] {
            assert!(length(wrong).unwrap_err().contains("more than 0 and at most 86400"), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_probe_is_answered_with_the_nearest_and_all() {
        let text = unknown("file_open").message;
        assert!(text.contains("did you mean `file_opens`?") && text.contains("runq_latency"), "{text}");
    }
}
