//! `stop_execution`: ends an execution and returns its final report.

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

use super::{Effect, Outcome, Row, get_result};
use crate::{
    report::{Envelope, Status},
    server::{bounds::DEFAULT_BYTES, call::Call, schema},
};

const NAME: &str = "stop_execution";

pub(super) const ROW: Row = Row {
    name: NAME,
    title: "Stop an execution",
    description: "Ends a running probe or script, waits until nothing of it is attached and returns its final report. Use it when a \
        background run has shown enough. Not needed for runs that ended by themselves; on one of those it only returns the report.",
    input: || schema_for!(Arguments),
    // The envelope stands in full in the schema of run_probe.
    output: || schema::outline(schema::of_result::<Envelope>()),
    effect: Effect::Settles,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// From run_probe or exec_program
    execution_id: String,
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    let execution = call.find(&arguments.execution_id, NAME)?;
    if execution.status() == Status::Running {
        call.stop(&execution).await?;
    }
    get_result::reply(&call, &execution, get_result::Part::first(20, DEFAULT_BYTES)).await
}
