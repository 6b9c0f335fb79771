//! `bpf_info`: what this kernel, this process and this bpftrace can do.

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

use super::{Effect, Outcome, Row};
use crate::{
    kernel::support::{self, Info, Options},
    server::{
        bounds::TEXT_BYTES,
        call::{Call, Reply},
        schema,
    },
};

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
    let work = |executions: &crate::executions::Executions| {
        support::info(&Options { limits: executions.limits().clone(), ..Options::default() })
    };
    let info = call.blocking(work).await?;
    Reply::with_text(support::text(&info, TEXT_BYTES), &info)
}
