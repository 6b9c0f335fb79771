//! `list_executions`: what runs or ran lately.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Effect, Outcome, Row};
use crate::{
    executions::{Summary, summary},
    report::Status,
    server::{
        bounds,
        call::{Call, Reply},
        schema,
    },
};

pub(super) const ROW: Row = Row {
    name: "list_executions",
    title: "List executions",
    description: "Lists what runs or ran lately, newest first. Use it to find an execution_id or what still runs in the background. Not \
        for results: those come from get_result.",
    input: || schema_for!(Arguments),
    output: || schema::outline(schema::of_result::<Listed>()),
    effect: Effect::Reads,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {}

#[derive(Serialize, JsonSchema)]
struct Listed {
    executions: Vec<Summary>,
    /// Kept from before, the latest, as above: get_result reads them
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<crate::report::Row>")]
    kept: Vec<Summary>,
    /// How many are kept
    kept_total: usize,
    /// How many run
    running: usize,
    /// How many may run at once
    running_limit: usize,
    /// How long results are kept, in seconds
    kept_seconds: u64,
}

/// Of what is kept, so many are listed.
const KEPT: usize = 20;

async fn run(mut call: Call) -> Outcome {
    let Arguments {} = call.arguments()?;
    call.room(bounds::LIST_BYTES).await?;
    let executions: Vec<Summary> = call.own_executions().iter().map(|execution| summary(execution)).collect();
    let principal = call.caller().principal.clone();
    let mut kept = call.looking(move |executions| executions.kept(&principal)).await?;
    let kept_total = kept.len();
    kept.truncate(KEPT);
    let limits = call.executions().limits();
    let listed = Listed {
        running: executions.iter().filter(|one| one.status == Status::Running).count(),
        running_limit: limits.running,
        kept_seconds: limits.keep.as_secs(),
        executions,
        kept,
        kept_total,
    };
    Reply::with_text(text(&listed), &listed)
}

fn text(listed: &Listed) -> String {
    let Listed { executions, kept, running, running_limit, kept_total, .. } = listed;
    let mut lines = match executions.len() {
        0 => vec!["No executions yet. run_probe and exec_program start one.".to_owned()],
        number => vec![format!("{number} executions, {running} running (limit {running_limit})")],
    };
    lines.extend(executions.iter().map(line));
    if !kept.is_empty() {
        lines.push(format!("{kept_total} kept from before, the latest {}:", kept.len()));
        lines.extend(kept.iter().map(line));
    }
    lines.join("\n")
}

fn line(one: &Summary) -> String {
    let what = match (one.probe.as_str(), one.script.as_str()) {
        ("", "") => "script".to_owned(),
        ("", script) => format!("script {script}"),
        (probe, _) => probe.to_owned(),
    };
    let Summary { execution_id, status, started, seconds, planned_seconds, .. } = one;
    format!("{execution_id}  {:9}  {what}  {seconds:.1} of {planned_seconds} s  started {started}", status.as_str())
}
