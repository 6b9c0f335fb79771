//! `mcptrace script`: the library of bpftrace scripts, for questions that no native probe answers.

use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::{
    Failure, config, output, policy,
    progress::Progress,
    run::{View, blocking, follow, interrupts, length, page, show},
};
use crate::{
    audit::Audit,
    bpftrace::{launcher, tools},
    executions::{Executions, ScriptRequest},
    kernel::discovery::{self, Access},
    principal::Principal,
    report::Row,
    scripts::{self, ByPid, Script},
};

const AFTER_HELP: &str = "\
Examples:
  mcptrace script list                        the library, and the bpftrace tools of this host
  mcptrace script show tcp_round_trip
  mcptrace script run sleep_requests -d 10 --pid 1234

Native probes are cheaper: see mcptrace list first. Scripts need bpftrace.";

pub(super) fn define() -> Command {
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON");
    let name = || Arg::new("name").value_name("NAME").required(true).help("A script, as `script list` names it");
    let pid = Arg::new("pid").long("pid").value_name("PID").value_parser(value_parser!(u32).range(1..));
    let seconds = Arg::new("seconds").short('d').long("seconds").value_name("N").value_parser(length);
    Command::new("script")
        .about("List, show and run library scripts (bpftrace) for what no native probe answers")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(Command::new("list").about("List scripts, and why one cannot run here").arg(json()))
        .subcommand(Command::new("show").about("Print a script; its comment says how to read it").arg(name()))
        .subcommand(
            Command::new("run")
                .about("Run a script and show what it found")
                .arg(name())
                .arg(seconds.default_value("5").help("How long to trace, in seconds"))
                .arg(pid.help("This process only; not all scripts can"))
                .args(policy::arguments())
                .arg(json()),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => config::load(matches).and_then(|_| list(matches.get_flag("json"))),
        Some(("show", matches)) => config::load(matches).and_then(|_| output::text(&named(matches)?.text)),
        Some(("run", matches)) => trace(matches),
        _ => Err(Failure::usage("list, show or run?")),
    }
}

fn named(matches: &ArgMatches) -> Result<Script, Failure> {
    let name = matches.get_one::<String>("name").map_or("", String::as_str);
    tools::named(&name.replace('-', "_")).or_else(|| tools::named(name)).ok_or_else(|| {
        let near = scripts::near(name).map(|near| format!("\n\n  did you mean `{near}`?")).unwrap_or_default();
        Failure::usage(format!("there is no script `{}`{near}\n\nmcptrace script list shows all", name.escape_debug()))
    })
}

fn list(as_json: bool) -> Result<(), Failure> {
    let installed = tools::installed();
    if as_json {
        let all: Vec<Value> = scripts::library().iter().chain(&installed).map(listing).collect();
        return output::json(&json!({ "scripts": all }));
    }
    let mut lines = vec!["Library scripts (mcptrace script run NAME); * also by --pid:".to_owned()];
    lines.extend(scripts::library().iter().map(line));
    if !installed.is_empty() {
        lines.push("\nbpftrace tools of this host:".into());
        lines.extend(installed.iter().map(line));
    }
    output::text(&(lines.join("\n") + "\n"))
}

fn obstacle(script: &Script) -> Option<String> {
    let hooks = script.hooks();
    discovery::obstacle(hooks.iter().map(String::as_str), Access { allow_mount: true, fentry_works: None })
}

fn line(script: &Script) -> String {
    let star = if script.pid == ByPid::Never { ' ' } else { '*' };
    let reason = obstacle(script).map(|reason| format!(" [{reason}]")).unwrap_or_default();
    format!(" {star}{:<20} {}{reason}", script.name, script.question)
}

fn listing(script: &Script) -> Value {
    let reason = obstacle(script);
    let mut one = json!({
        "name": script.name,
        "question": script.question,
        "cost": script.cost,
        "by_pid": script.pid != ByPid::Never,
        "available": reason.is_none(),
    });
    let more = [("reason", reason), ("path", script.path.as_ref().map(|path| path.display().to_string()))];
    for (key, value) in more {
        if let Some(value) = value {
            one[key] = value.into();
        }
    }
    one
}

fn trace(matches: &ArgMatches) -> Result<(), Failure> {
    let script = named(matches)?;
    let pid = matches.get_one::<u32>("pid").copied();
    let as_json = matches.get_flag("json");
    let request = ScriptRequest {
        program: script.program(pid).map_err(|error| Failure::usage(error.to_string().replace("`pid`", "--pid")))?,
        options: Row::from_iter([("script".to_owned(), json!(script.name))]),
        seconds: matches.get_one::<f64>("seconds").copied().unwrap_or(5.0),
        by: Principal::cli().into(),
    };
    let config = policy::of(matches, config::load(matches)?.config);
    launcher::start(&config.launcher());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let envelope = runtime.block_on(async {
        let interrupted = interrupts()?;
        // Kept to the end: whoever lets go of the executions stops them.
        let executions = Arc::new(Executions::audited(config.limits(), Audit::new(&config.audit(false))));
        let starter = Arc::clone(&executions);
        let execution = blocking(move || starter.start_script(&request)).await??;
        follow(&execution, None, &interrupted, &mut View::Progress(Progress::new(true))).await?;
        let page = page(None, as_json);
        blocking(move || execution.envelope(&page)).await
    })?;
    if !as_json && !script.read.is_empty() {
        output::text(&format!("{}\n{}\n\n", script.question, script.read))?;
    }
    show(&envelope, as_json)
}
