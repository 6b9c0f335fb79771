//! `triage`: what is wrong with this machine.

use std::{path::Path, time::Duration};

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::json;

use super::{Effect, Outcome, Row};
use crate::{
    executions::Refusal,
    server::{
        call::{Call, Reply, Waited},
        error::ToolError,
        schema,
    },
    triage::{self, Focus, Triage, gather::Gathering, lately},
};

pub(super) const ROW: Row = Row {
    name: "triage",
    title: "What is wrong here",
    description: "Ranks what is wrong with this machine: CPUs, run queue, memory, disks, network, locks, processes; each finding with \
        numbers, who, and the next call. Use it first when the question is why something is slow and nothing is known yet. It runs some \
        fifteen probes together, which costs busy programs a few percent for that time. Not for a question that one probe answers.",
    input: || schema_for!(Arguments),
    output: || schema::outline(schema::of_result::<Triage>()),
    effect: Effect::Starts,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// How long to look, in seconds
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 45))]
    seconds: f64,
    /// Look at one area only
    #[serde(default)]
    #[schemars(with = "Focus")]
    focus: Option<Focus>,
}

fn ten() -> f64 {
    10.0
}

async fn run(mut call: Call) -> Outcome {
    let Arguments { seconds, focus } = call.arguments()?;
    let trail = call.trail(json!({ "tool": "triage", "focus": focus }));
    let place = call.place_for_triage().inspect_err(|busy| trail.refused(busy.category, &busy.message))?;
    trail.starts(seconds).map_err(Refusal::from)?;
    let gathering = call.looking(move |_| Gathering::start(focus, seconds)).await?;
    let waited = call.pause(Duration::from_secs_f64(seconds)).await;
    let triage = call.settled(move |executions| finish(gathering, executions.limits().history.as_deref())).await?;
    drop(place);
    trail.ended(if waited == Waited::Cancelled { "stopped" } else { "completed" }, None, triage.window.seconds, None);
    if waited == Waited::Cancelled {
        return Err(ToolError::cancelled());
    }
    Reply::with_text(triage::text(&triage), &triage)
}

fn finish(gathering: Gathering, history: Option<&Path>) -> Triage {
    let (evidence, window) = gathering.finish();
    triage::judge(&evidence, window, history.map(lately::look).unwrap_or_default())
}
