//! `triage`: what is wrong with this machine.

use std::time::Duration;

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::json;

use super::{Effect, Outcome, Row};
use crate::{
    executions::Refusal,
    report::Window,
    server::{
        call::{Call, Reply, Waited},
        error::ToolError,
        schema,
    },
    triage::{
        self, Focus, Triage,
        evidence::Evidence,
        gather::{self, Gathering},
        lately,
        recorded::{self, Draft, NAMING_SECONDS},
    },
};

pub(super) const ROW: Row = Row {
    name: "triage",
    title: "What is wrong here",
    description: "Ranks what is wrong with this machine: CPUs, run queue, memory, disks, network, locks, processes; each finding with \
        numbers, who, and the next call. Use it first when something is slow and nothing is known yet. Where the \
        recorder runs it answers from the last minute; with seconds, or without a recorder, it runs some fifteen probes, which \
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
        && let Some(draft) =
            call.looking(move |executions| recorded::now(executions.limits().history.as_deref()?, focus)).await?
    {
        return reply(name(&call, draft).await?.answer());
    }
    let seconds = seconds.unwrap_or(gather::USUAL);
    let (evidence, window) = gather(&call, focus, seconds, move || Gathering::start(focus, seconds)).await?;
    let lately = call.looking(|executions| executions.limits().history.as_deref().map(lately::look)).await?;
    reply(triage::judge(&evidence, window, lately.unwrap_or_default()))
}

fn reply(triage: Triage) -> Outcome {
    let (text, triage) = triage::reply(triage);
    Reply::with_text(text, &triage)
}

/// Looks for a moment whose doing that is of which the recorder does not know it. An answer without names is better than none.
async fn name(call: &Call, mut draft: Draft) -> Result<Draft, ToolError> {
    let kinds = draft.unnamed();
    if kinds.is_empty() {
        return Ok(draft);
    }
    let wanted = kinds.clone();
    match gather(call, None, NAMING_SECONDS, move || Gathering::of(&wanted, NAMING_SECONDS)).await {
        Ok((evidence, _)) => draft.name(&kinds, &evidence),
        Err(error) if error.category == "cancelled" => return Err(error),
        Err(error) => draft.note(&format!("who is behind it was not looked for: {}", error.message)),
    }
    Ok(draft)
}

/// Looks live, on record, as one of the triages that whoever calls may have at once.
async fn gather(
    call: &Call,
    focus: Option<Focus>,
    seconds: f64,
    start: impl FnOnce() -> Gathering + Send + 'static,
) -> Result<(Evidence, Window), ToolError> {
    let trail = call.trail(json!({ "tool": "triage", "focus": focus }));
    let place = call.place_for_triage().inspect_err(|busy| trail.refused(busy.category, &busy.message))?;
    trail.starts(json!({ "seconds": seconds })).map_err(Refusal::from)?;
    let gathering = call.looking(move |_| start()).await?;
    let waited = call.pause(Duration::from_secs_f64(seconds)).await;
    let (evidence, window) = call.settled(move |_| gathering.finish()).await?;
    drop(place);
    trail.ended(if waited == Waited::Cancelled { "stopped" } else { "completed" }, None, window.seconds, None);
    if waited == Waited::Cancelled { Err(ToolError::cancelled()) } else { Ok((evidence, window)) }
}
