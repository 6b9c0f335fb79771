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
    triage::{
        self, Focus, Triage,
        gather::{self, Gathering},
        lately,
    },
};

pub(super) const ROW: Row = Row {
    name: "triage",
    title: "What is wrong here",
    description: "Ranks what is wrong with this machine: CPUs, run queue, memory, disks, network, locks, processes; each finding with \
        numbers, who, and the next call. Use it first when something is slow and nothing is known yet. Where the \
        recorder runs it answers at once from the last minute; with seconds, or without a recorder, it runs some fifteen probes, which \
        costs busy programs a few percent.",
    input: || schema_for!(Arguments),
    output: || schema::outline(schema::of_result::<Triage>()),
    effect: Effect::Starts,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Look live, for so long. Without: the recorder's last minute, else 10 s
    #[serde(default)]
    #[schemars(with = "f64", range(min = 1, max = 45))]
    seconds: Option<f64>,
    /// Look at one area only
    #[serde(default)]
    #[schemars(with = "Focus")]
    focus: Option<Focus>,
}

async fn run(mut call: Call) -> Outcome {
    let Arguments { seconds, focus } = call.arguments()?;
    if seconds.is_none()
        && let Some(triage) =
            call.looking(move |executions| recorded(executions.limits().history.as_deref(), focus)).await?
    {
        return Reply::with_text(triage::text(&triage), &triage);
    }
    let seconds = seconds.unwrap_or(gather::USUAL);
    let trail = call.trail(json!({ "tool": "triage", "focus": focus }));
    let place = call.place_for_triage().inspect_err(|busy| trail.refused(busy.category, &busy.message))?;
    trail.starts(json!({ "seconds": seconds })).map_err(Refusal::from)?;
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

/// The recorder's answer, if it has one; what keeps it from answering is no reason not to look live.
fn recorded(history: Option<&Path>, focus: Option<Focus>) -> Option<Triage> {
    triage::recorded::now(history?, focus)
}

fn finish(gathering: Gathering, history: Option<&Path>) -> Triage {
    let (evidence, window) = gathering.finish();
    triage::judge(&evidence, window, history.map(lately::look).unwrap_or_default())
}
