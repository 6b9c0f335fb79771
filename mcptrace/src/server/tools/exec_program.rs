//! `exec_program`: runs a bpftrace program. One of the original's four: names, text and status as there.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Effect, Outcome, Row};
use crate::{
    executions::ScriptRequest,
    server::{
        call::{Call, Reply},
        error::ToolError,
        schema,
    },
};

pub(super) const ROW: Row = Row {
    name: "exec_program",
    title: "Run a bpftrace program",
    description: "Compiles a bpftrace program, refuses a bad one with line and column, and starts a good one; read it with get_result \
        (wait_seconds helps). Use it only for what no native probe answers (list_probes): starting takes up to a second and 90 MB. Maps \
        and histograms are kept when the time is up. Not for shell commands: system() is refused.",
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
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    let program = chosen(&arguments)?;
    let seconds = arguments.timeout.clamp(1, LONGEST);
    let request = ScriptRequest { program, seconds: seconds as f64, owner: call.owner().to_owned() };
    let execution = call.blocking(move |executions| executions.start_script(&request)).await??;
    Reply::json(&Started {
        execution_id: execution.identity.id.clone(),
        status: "started",
        message: format!("Program execution started with timeout of {seconds}s"),
    })
}

fn chosen(arguments: &Arguments) -> Result<String, ToolError> {
    match (arguments.program.trim(), arguments.script.trim()) {
        ("", "") => Err(ToolError::new("missing_argument", "`program` is missing: the text of a bpftrace program")),
        (_, "") => Ok(arguments.program.clone()),
        ("", script) => Err(unknown_script(script)),
        _ => Err(ToolError::new("invalid_argument", "`program` and `script` exclude each other: give one")),
    }
}

fn unknown_script(script: &str) -> ToolError {
    let script = crate::text::untrusted(script.as_bytes(), 60);
    let message = format!("there is no library script `{script}`: this version comes without any");
    ToolError::new("unknown_script", message).remedy("pass the text of a bpftrace program in `program`")
}
