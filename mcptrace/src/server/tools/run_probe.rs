//! `run_probe`: runs a native probe.

use std::{sync::Arc, time::Duration};

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Effect, Outcome, Row};
use crate::{
    execution::Execution,
    executions::ProbeRequest,
    kernel::filter::Filter,
    principal::Caller,
    report::Envelope,
    server::{
        bounds::{self, DEFAULT_BYTES, Wanted},
        call::{Call, StopOnDrop, Waited},
        error::ToolError,
        schema,
    },
};

pub(super) const ROW: Row = Row {
    name: "run_probe",
    title: "Run a native probe",
    description: "Runs a native kernel probe for some seconds and returns what it found: a table, histogram or events, with exact loss \
        accounting. Use it first for any question about system calls, file opens, disk latency or waiting for CPUs: it attaches in \
        milliseconds and costs little. Narrow with filter and options. Not for what no probe covers (exec_program). Above 50 seconds set \
        background=true, which returns at once with an execution_id for get_result.",
    input: || schema_for!(Arguments),
    output: schema::of_result::<Envelope>,
    effect: Effect::Starts,
    call: |call| Box::pin(run(call)),
};

/// The longest that a call may take: clients give up at 60 s.
const FOREGROUND: f64 = 50.0;
/// What an execution may take beyond its time to read its maps and detach.
const GRACE: Duration = Duration::from_secs(8);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Name of the probe (list_probes)
    probe: String,
    /// Options of the probe; in brackets the probes that take each
    #[serde(default)]
    #[schemars(schema_with = "schema::options")]
    options: Map<String, Value>,
    /// Which threads to look at; all that is set must match
    #[serde(default)]
    filter: Filter,
    /// How long, in seconds
    #[serde(default = "five")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 86400))]
    seconds: f64,
    /// Return at once; read with get_result
    #[serde(default)]
    background: bool,
    /// Rows or series to return at most; the rest is summed
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 1000))]
    top: u64,
    /// Size of the whole reply at most
    #[serde(default = "bytes")]
    #[schemars(range(min = 1024, max = 1_048_576))]
    max_bytes: u64,
}

fn five() -> f64 {
    5.0
}

fn twenty() -> u64 {
    20
}

fn bytes() -> u64 {
    DEFAULT_BYTES
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    check_length(&arguments)?;
    let wanted =
        Wanted { from: 0, event: 0, rows: arguments.top as usize, bytes: arguments.max_bytes as usize, of: None };
    let background = arguments.background;
    let request = request(arguments, call.caller().clone());
    let execution = call.blocking(move |executions| executions.start_probe(&request)).await??;
    if background {
        return bounds::started(&call, &execution).await;
    }
    let guard = StopOnDrop(Arc::clone(&execution));
    finish(&call, &execution).await?;
    drop(guard);
    bounds::reply(&call, &execution, wanted).await
}

fn check_length(arguments: &Arguments) -> Result<(), ToolError> {
    if arguments.background || arguments.seconds <= FOREGROUND {
        return Ok(());
    }
    let message = format!("`seconds` must be at most {FOREGROUND} for a call that waits, not {}", arguments.seconds);
    Err(ToolError::new("invalid_seconds", message).remedy("set background=true and read with get_result"))
}

fn request(arguments: Arguments, by: Caller) -> ProbeRequest {
    let Arguments { probe, options, filter, seconds, background: _, top: _, max_bytes: _ } = arguments;
    ProbeRequest { probe, options, filter, seconds, by }
}

async fn finish(call: &Call, execution: &Execution) -> Result<(), ToolError> {
    let most = Duration::from_secs_f64(execution.planned_seconds()) + GRACE;
    match call.wait(execution, most).await {
        Waited::Ended => Ok(()),
        Waited::TimeUp => call.stop(execution).await,
        Waited::Cancelled => {
            call.stop(execution).await?;
            Err(ToolError::cancelled())
        }
    }
}
