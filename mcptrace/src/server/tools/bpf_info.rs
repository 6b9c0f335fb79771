//! `bpf_info`: what this kernel, this process and this bpftrace can do.

use std::time::Duration;

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

use super::{Effect, Outcome, Row};
use crate::{
    kernel::support::{self, Info, Options},
    server::{
        bounds::{self, TEXT_BYTES},
        call::{Call, Reply},
        schema,
    },
};

/// How long an answer is good for: finding out takes real loads and attaches.
const FRESH: Duration = Duration::from_secs(2);

pub(super) const ROW: Row = Row {
    name: "bpf_info",
    title: "What can be traced here",
    description: "Tells what this kernel, this process and its bpftrace can do, tried out by real loads and attaches, and for each thing \
        missing how to get it. Use it when a probe or script is refused, or before promising what can be traced. Not needed before \
        run_probe.",
    input: || schema_for!(Arguments),
    output: || schema::outline(schema::of_result::<Info>()),
    effect: Effect::Settles,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {}

async fn run(mut call: Call) -> Outcome {
    let Arguments {} = call.arguments()?;
    call.room(bounds::LIST_BYTES).await?;
    let limits = call.executions().limits().clone();
    let look = async || call.looking(move |_| support::info(&Options { limits, ..Options::default() })).await;
    let info = call.recent_info().get(FRESH, look).await?;
    Reply::with_text(support::text(&info, TEXT_BYTES), info.as_ref())
}
