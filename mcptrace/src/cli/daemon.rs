//! `mcptrace daemon`: the recorder, and the server on the unix socket, until it is told to end.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tokio::{
    runtime, select,
    sync::oneshot,
    task::{JoinError, JoinHandle, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{Failure, config, http, policy, run::interrupts, serve::chain};
use crate::{
    bpftrace::launcher,
    config::Config,
    executions::Executions,
    kernel::shed,
    memory,
    recorder::{
        place,
        run::{Options, Recorder},
        sink::{History, Print, Sink},
        status::{self, GroupStatus, Status},
        store::Limits,
    },
    server::{
        Hub,
        http::{Service, StartError},
        tools,
        unix::{self, Access, Listening},
    },
};

/// How soon after the start it says what recording costs: after the first measurement.
const FIRST_REPORT: Duration = Duration::from_secs(6);
/// How often it is looked whether something has changed; before the first report every second, so that who asks is not told that nothing
/// was recorded yet.
const EVERY: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
What is recorded: time on CPUs by process, waits for a CPU, context switches, block requests, TCP connections, network devices,
processes that begin and end, signals that kill, stalls for memory, interrupts, pressure, locks of the kernel, and system calls for a
part of the time. Over the budget it first looks at system calls for a shorter time, then leaves out what is dearest, and takes it back
when there is room. It ends at SIGTERM, SIGINT or SIGHUP; nothing stays attached.";

pub(super) fn define() -> Command {
    Command::new("daemon")
        .about("Record what the machine does, at a bounded cost, and serve MCP on a unix socket, and over HTTP if asked to")
        .arg(
            Arg::new("state")
                .long("state")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Where the history is [default: $MCPTRACE_STATE, $STATE_DIRECTORY or /var/lib/mcptrace]"),
        )
        .arg(
            Arg::new("size-cap")
                .long("size-cap")
                .value_name("MB")
                .value_parser(value_parser!(u64).range(16..=1_000_000))
                .help("How large the history may get; the oldest goes first [default: recorder.size_mb, 190]"),
        )
        .arg(
            Arg::new("budget").long("budget").value_name("PERCENT").value_parser(budget).help(
                "What recording may cost, in percent of the time of all CPUs [default: recorder.budget_percent, 1]",
            ),
        )
        .arg(
            Arg::new("socket")
                .long("socket")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Where MCP is served [default: socket.path, /run/mcptrace/mcptrace.sock]"),
        )
        .args(policy::arguments())
        .args(http::arguments())
        .arg(Arg::new("no-syscalls").long("no-syscalls").action(ArgAction::SetTrue).help("Never look at system calls"))
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .hide(true)
                .help("End after so many seconds"),
        )
        .arg(
            Arg::new("print")
                .long("print")
                .action(ArgAction::SetTrue)
                .help("Keep nothing; print every second as a line of JSON"),
        )
        .after_help(AFTER_HELP)
}

/// A percentage.
fn budget(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "a number of percent, for example 0.5".to_owned())?;
    if (0.05..=50.0).contains(&percent) { Ok(percent) } else { Err("0.05 to 50 percent".to_owned()) }
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let (config, must_serve) = configured(matches)?;
    let prints = matches.get_flag("print");
    let serves = !prints || must_serve || config.http.listen;
    if serves {
        launcher::start(&config.launcher());
    }
    // What it takes to give the socket to a group and to bind a low port is not needed any more after that.
    let open = if serves { Open::new(&config, must_serve)? } else { Open::default() };
    // Before there is a second thread: each has capabilities of its own.
    shed::shed(shed::needed_by_daemon())?;
    let options = Options { budget: config.recorder.budget_percent / 100.0, syscalls: config.recorder.syscalls };
    let seconds = matches.get_one::<u64>("seconds").copied();
    let folder = place::folder(None);
    let sink = sink(matches, &folder, config.recorder.size_mb)?;
    let folder = (!prints).then_some(folder);
    // Every client asks for it first. What writes the schemas is not needed again.
    drop(tools::list());
    memory::release_start();
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let served = if open.is_nothing() { None } else { Some(serving(&config, open).await?) };
        let recorded = record(options, sink, folder.as_deref(), seconds).await;
        if let Some(served) = served {
            served.end().await;
        }
        recorded
    })
}

/// The server beside the recorder.
struct Served {
    end: CancellationToken,
    socket: Option<JoinHandle<std::io::Result<()>>>,
    http: Option<JoinHandle<Result<(), StartError>>>,
    executions: Arc<Executions>,
}

impl Served {
    /// Closes all connections, stops everything and waits until nothing is attached.
    async fn end(self) {
        self.end.cancel();
        if let Some(Ok(Err(error))) = wait_for(self.socket).await {
            say(&format!("the socket has failed: {error}"));
        }
        if let Some(Ok(Err(error))) = wait_for(self.http).await {
            say(&format!("HTTP has failed: {}", chain(&error)));
        }
        let _ = spawn_blocking(move || self.executions.stop_all()).await;
    }
}

/// What a task ended with, if there is one.
async fn wait_for<T>(task: Option<JoinHandle<T>>) -> Option<Result<T, JoinError>> {
    match task {
        Some(task) => Some(task.await),
        None => None,
    }
}

/// Where clients may connect from now on: nobody is answered yet.
#[derive(Default)]
struct Open {
    socket: Option<Listening>,
    http: Option<http::Bound>,
}

impl Open {
    /// Opens the socket, and takes the port of HTTP if that is asked for. Recording goes on without the socket unless somebody has asked
    /// for it by name.
    fn new(config: &Config, must: bool) -> Result<Self, Failure> {
        let socket = match unix::listen(config.socket.path.clone(), &Access::of(&config.socket)) {
            Ok(listening) => Some(listening),
            Err(error) if must => return Err(Failure::failed(chain(&error))),
            Err(error) => {
                let rest = if config.http.listen {
                    "nobody can connect to the socket"
                } else {
                    "recording only, nobody can connect"
                };
                say(&format!("{rest}: {}", chain(&error)));
                None
            }
        };
        let http = config.http.listen.then(|| http::Bound::new(config.http.clone())).transpose()?;
        Ok(Self { socket, http })
    }

    fn is_nothing(&self) -> bool {
        self.socket.is_none() && self.http.is_none()
    }
}

/// Serves on the socket and over HTTP, as far as they are open: the same executions.
async fn serving(config: &Config, open: Open) -> Result<Served, Failure> {
    let executions = Arc::new(Executions::audited(config.served_limits(), config::audited(config, true)?));
    let (hub, end) = (Hub::new(Arc::clone(&executions)), CancellationToken::new());
    let http = match open.http {
        Some(bound) => Some(over_http(bound, &hub, &end).await?),
        None => None,
    };
    let access = Access::of(&config.socket);
    let socket = open.socket.map(|listening| {
        let place = listening.path().map_or_else(|| "systemd's socket".to_owned(), |path| path.display().to_string());
        let task = tokio::spawn(unix::run(listening, hub, access, end.clone()));
        say(&format!("serving MCP on {place}"));
        task
    });
    Ok(Served { end, socket, http, executions })
}

/// Serves over HTTP; returns when it listens.
async fn over_http(
    bound: http::Bound,
    hub: &Arc<Hub>,
    end: &CancellationToken,
) -> Result<JoinHandle<Result<(), StartError>>, Failure> {
    let http::Bound { options, listener } = bound;
    let service = Service::new(&options, listener, Arc::clone(hub), end.clone()).map_err(http::failure)?;
    let (listens, listening) = oneshot::channel();
    let say_so = http::ready("mcptrace daemon", &options);
    let task = tokio::spawn(service.serve(move |address| {
        say_so(address);
        // Whoever waits for it is this function.
        let _ = listens.send(());
    }));
    if listening.await.is_ok() {
        return Ok(task);
    }
    match task.await {
        Ok(Err(error)) => Err(http::failure(error)),
        Ok(Ok(())) | Err(_) => Err(Failure::failed("HTTP has ended before it began")),
    }
}

/// The settings, and whether they name the socket.
fn configured(matches: &ArgMatches) -> Result<(Config, bool), Failure> {
    let loaded = config::load(matches)?;
    let flag = matches.get_one::<PathBuf>("socket");
    let must = flag.is_some() || loaded.says("socket.path");
    let mut config = http::of(matches, policy::of(matches, loaded.config));
    config.http.listen |= http::is_asked_for(matches);
    config.socket.path = flag.cloned().unwrap_or(config.socket.path);
    let size = matches.get_one::<u64>("size-cap").copied();
    let budget = matches.get_one::<f64>("budget").copied();
    Ok((config.with_recorder(size, budget, matches.get_flag("no-syscalls")), must))
}

fn sink(matches: &ArgMatches, folder: &Path, megabytes: u64) -> Result<Box<dyn Sink>, Failure> {
    if matches.get_flag("print") {
        return Ok(Box::new(Print));
    }
    let limits = Limits { bytes: megabytes << 20, ..Limits::default() };
    let history = History::open(place::file(folder), limits);
    Ok(Box::new(history.map_err(|error| Failure::failed(error.to_string()))?))
}

async fn record(
    options: Options,
    sink: Box<dyn Sink>,
    folder: Option<&Path>,
    seconds: Option<u64>,
) -> Result<(), Failure> {
    // Before anything is attached, so that a signal meanwhile ends it in order.
    let interrupted = interrupts()?;
    let recorder = Recorder::start(options, sink).map_err(|error| Failure::cannot_run(error.to_string()))?;
    say(&begun(&recorder.status()));
    let end = seconds.map(Duration::from_secs);
    select! {
        () = interrupted.cancelled() => {}
        () = sleep(end.unwrap_or(Duration::MAX)), if end.is_some() => {}
        () = report(&recorder, folder) => {}
    }
    say("ending");
    let status = recorder.stop();
    say(&format!("ended after {} seconds recorded", status.ticks));
    Ok(())
}

/// Says what recording costs, soon after the start and whenever what is recorded changes; and tells other processes. Ends where nobody reads
/// what is printed.
async fn report(recorder: &Recorder, folder: Option<&Path>) {
    let begun = Instant::now();
    let mut status = recorder.status();
    tell(folder, &status);
    let mut has_said_cost = false;
    loop {
        sleep(if begun.elapsed() < FIRST_REPORT { SECOND } else { EVERY }).await;
        let now = recorder.status();
        tell(folder, &now);
        let states = |status: &Status| status.groups.iter().map(|group| group.state.clone()).collect::<Vec<_>>();
        if states(&now) != states(&status) {
            say(&format!("{}; {}", groups(&now), cost(&now)));
        } else if !has_said_cost && begun.elapsed() >= FIRST_REPORT {
            say(&cost(&now));
        }
        has_said_cost |= begun.elapsed() >= FIRST_REPORT;
        if now.error != status.error {
            say(&now.error.as_ref().map_or_else(|| "kept again".to_owned(), |error| format!("not kept: {error}")));
        }
        // What is printed and cannot be written is for nobody; a file may have room again.
        if folder.is_none() && now.error.is_some() {
            return;
        }
        status = now;
    }
}

/// What cannot be told is no reason to record nothing.
fn tell(folder: Option<&Path>, status: &Status) {
    if let Some(Err(error)) = folder.map(|folder| status::write(folder, status)) {
        tracing::debug!(%error, "cannot tell other processes what is recorded");
    }
}

fn begun(status: &Status) -> String {
    let (budget, sink) = (status.budget_percent, &status.sink);
    let what = match &status.error {
        None => format!("recording to {sink}"),
        Some(error) => format!("nothing is kept in {sink}: {error}; it is tried again"),
    };
    format!("{what}, budget {budget} % of CPU time; {}", groups(status))
}

fn groups(status: &Status) -> String {
    let names = |wanted: &[&str]| {
        let all = status
            .groups
            .iter()
            .filter(|group| wanted.contains(&group.state.as_ref()))
            .map(|group| group.name.as_ref());
        all.collect::<Vec<_>>().join(", ")
    };
    let without = status.groups.iter().filter(|group| !matches!(group.state.as_ref(), "on" | "duty_cycle"));
    let why = |group: &GroupStatus| group.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let without = without.map(|group| format!("{} is {}{}", group.name, group.state, why(group)));
    let recorded = format!("recorded: {}", names(&["on", "duty_cycle"]));
    [recorded].into_iter().chain(without).collect::<Vec<_>>().join("; ")
}

fn cost(status: &Status) -> String {
    if !status.cost_is_measured {
        return "its cost in the kernel cannot be measured here (that takes CAP_SYS_ADMIN and Linux 5.8)".to_owned();
    }
    let Status { cost_percent, cost_process_percent, .. } = status;
    format!("costs {cost_percent} % of CPU time, {cost_process_percent} % of it in its own thread")
}

/// A line on stderr; whoever read it may have gone.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "mcptrace daemon: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_sensible_percentage() {
        assert_eq!(budget("0.5"), Ok(0.5));
        for wrong in ["0", "51", "-1", "nan", "one"] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_takes_nothing_is_not_announced_as_one_that_does() {
        let status = Status { sink: "h.db".into(), error: Some("it is not a history".into()), ..Status::default() };
        let text = begun(&status);
        assert!(text.starts_with("nothing is kept in h.db: it is not a history; it is tried again, budget"), "{text}");
        assert!(begun(&Status { error: None, ..status }).starts_with("recording to h.db, budget"));
    }

    #[test]
    fn what_is_not_recorded_is_said_with_its_reason() {
        let group = |name: &'static str, state: &'static str, why: Option<&str>| {
            let why = why.map(str::to_owned);
            GroupStatus { name: name.into(), state: state.into(), why, cost_percent: 0.0 }
        };
        let groups_of = vec![
            group("cpu", "on", None),
            group("locks", "unsupported", Some("it has no tracepoint")),
            group("syscalls", "duty_cycle", None),
        ];
        let text = groups(&Status { groups: groups_of, ..Status::default() });
        assert_eq!(text, "recorded: cpu, syscalls; locks is unsupported: it has no tracepoint");
    }
}
