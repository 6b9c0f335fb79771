//! `exec_program`: runs a bpftrace program. One of the original's four: names, text and status as there.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Effect, Outcome, Row};
use crate::{
    bpftrace::tools,
    executions::ScriptRequest,
    report::Row as Fields,
    scripts::{self, Script},
    server::{
        call::{Call, Reply},
        error::ToolError,
        schema,
    },
};

pub(super) const ROW: Row = Row {
    name: "exec_program",
    title: "Run a bpftrace program",
    description: "Compiles a bpftrace program or a library script (list_probes source=scripts), refuses a bad one with line and column, \
        and starts a good one; read it with get_result (wait_seconds helps). Use it only for what no native probe answers: starting takes \
        up to a second and 90 MB. Maps are kept when the time is up. Not for shell commands: system() is refused.",
    input: || schema_for!(Arguments),
    output: schema::of_result::<Started>,
    effect: Effect::Starts,
    call: |call| Box::pin(run(call)),
};

/// The longest run of a script, in seconds, as in the original.
const LONGEST: u64 = 60;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// The program's text; this or script
    #[serde(default)]
    program: String,
    /// Name of a library script; this or program
    #[serde(default)]
    script: String,
    /// With script: this process only
    #[serde(default)]
    #[schemars(with = "u32", range(min = 1))]
    pid: Option<u32>,
    /// How long, in seconds; brought into 1 to 60
    #[serde(default = "ten")]
    timeout: u64,
}

fn ten() -> u64 {
    10
}

#[derive(Serialize, JsonSchema)]
struct Started {
    execution_id: String,
    /// `started`
    status: &'static str,
    message: String,
    /// How to read what the script prints
    #[serde(skip_serializing_if = "String::is_empty")]
    read: String,
}

/// What is to be run, and what is said of it.
#[derive(Default)]
struct Chosen {
    program: String,
    options: Fields,
    read: String,
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    let seconds = arguments.timeout.clamp(1, LONGEST);
    let by = call.caller().clone();
    let (execution, read) = call
        .blocking(move |executions| {
            let Chosen { program, options, read } = chosen(arguments)?;
            let request = ScriptRequest { program, options, seconds: seconds as f64, by };
            Ok::<_, ToolError>((executions.start_script(&request)?, read))
        })
        .await??;
    Reply::json(&Started {
        execution_id: execution.identity.id.clone(),
        status: "started",
        message: format!("Program execution started with timeout of {seconds}s"),
        read,
    })
}

fn chosen(arguments: Arguments) -> Result<Chosen, ToolError> {
    let Arguments { program, script, pid, timeout: _ } = arguments;
    let invalid = |message: &str| Err(ToolError::new("invalid_argument", message));
    match (program.trim(), script.trim()) {
        ("", "") => Err(ToolError::new("missing_argument", "`program` is missing: the text of a bpftrace program")),
        (_, "") if pid.is_some() => invalid("`pid` goes with `script`: filter in the program with /pid == N/"),
        (_, "") => Ok(Chosen { program, ..Chosen::default() }),
        ("", name) => named(name, pid),
        _ => invalid("`program` and `script` exclude each other: give one"),
    }
}

fn named(name: &str, pid: Option<u32>) -> Result<Chosen, ToolError> {
    let script = tools::named(name).ok_or_else(|| unknown_script(name))?;
    let program = script.program(pid).map_err(|error| ToolError::new("invalid_argument", error.to_string()))?;
    Ok(Chosen { program, options: options(&script, pid), read: script.read })
}

fn options(script: &Script, pid: Option<u32>) -> Fields {
    let mut options = Fields::new();
    options.insert("script".into(), json!(script.name));
    options.extend(pid.map(|pid| ("pid".to_owned(), json!(pid))));
    options
}

fn unknown_script(script: &str) -> ToolError {
    let message = format!("there is no script `{}`", crate::text::untrusted(script.as_bytes(), 60));
    ToolError::new("unknown_script", message)
        .near(scripts::near(script))
        .remedy("list_probes with source=scripts shows all; or pass the text of a bpftrace program in `program`")
}
