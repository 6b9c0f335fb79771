//! `list_executions`: what runs or ran lately.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Effect, Outcome, Row};
use crate::{
    executions::{Summary, summary},
    report::Status,
    server::{
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
    output: schema::of_result::<Listed>,
    effect: Effect::Reads,
    call: |call| Box::pin(std::future::ready(run(call))),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {}

#[derive(Serialize, JsonSchema)]
struct Listed {
    executions: Vec<Summary>,
    /// How many run
    running: usize,
    /// How many may run at once
    running_limit: usize,
    /// How long results are kept, in seconds
    kept_seconds: u64,
}

fn run(mut call: Call) -> Outcome {
    let Arguments {} = call.arguments()?;
    let executions: Vec<Summary> = call.own_executions().iter().map(|execution| summary(execution)).collect();
    let limits = call.executions().limits();
    let running = executions.iter().filter(|one| one.status == Status::Running).count();
    let listed = Listed { running, running_limit: limits.running, kept_seconds: limits.keep.as_secs(), executions };
    Reply::with_text(text(&listed), &listed)
}

fn text(listed: &Listed) -> String {
    if listed.executions.is_empty() {
        return "No executions yet. run_probe and exec_program start one.".into();
    }
    let lines = listed.executions.iter().map(line);
    let head =
        format!("{} executions, {} running (limit {})", listed.executions.len(), listed.running, listed.running_limit);
    [head].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
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
