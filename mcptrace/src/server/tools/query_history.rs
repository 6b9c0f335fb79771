//! `query_history`: what the recorder kept.

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

use super::{Effect, Outcome, Row};
use crate::{
    recorder::{
        history::{self, Answer, Query, text},
        place,
    },
    server::{
        bounds::{DEFAULT_BYTES, TEXT_BYTES},
        call::{Call, Reply},
        schema,
    },
};

pub(super) const ROW: Row = Row {
    name: "query_history",
    title: "Ask the recorder's past",
    description: "Answers from what `mcptrace daemon` recorded in the last hour (by the second), day and month. Use it for what happened \
        before now. Null is not recorded (see coverage), 0 is nothing happened. Not for details: run_probe.",
    input: || schema_for!(Arguments),
    output: || schema::outline(schema::of_result::<Answer>()),
    effect: Effect::Reads,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// None: lists all
    #[serde(default)]
    metric: String,
    /// -15m, -1d or RFC 3339
    #[serde(default)]
    from: String,
    #[serde(default)]
    to: String,
    /// 10s, 5m
    #[serde(default)]
    step: String,
    /// Labels with commas, or none
    #[serde(default)]
    group_by: String,
    /// label=glob,…
    #[serde(default)]
    r#where: String,
    /// Ranks changes against a window: previous, its begin, A..B
    #[serde(default)]
    compare_to: String,
    #[serde(default = "top")]
    #[schemars(range(min = 1, max = 200))]
    top: u64,
    /// SELECT on views metrics, sums, gauges, distributions, buckets, coverage, events, marks instead
    #[serde(default)]
    sql: String,
    #[serde(default = "bytes")]
    #[schemars(range(min = 1024, max = 1_048_576))]
    max_bytes: u64,
}

fn top() -> u64 {
    history::DEFAULT_TOP as u64
}

fn bytes() -> u64 {
    DEFAULT_BYTES
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    let max_bytes = arguments.max_bytes as usize;
    // Its query is bounded elsewhere, and may take long: it keeps nobody's answer from being made.
    drop(call.room(max_bytes).await?);
    let answer = call.querying(move |_| history::ask(&place::folder(None), &arguments.query())).await??;
    let text_bytes = TEXT_BYTES.min(max_bytes / 3);
    let answer = history::fit(answer, max_bytes - text_bytes);
    Reply::with_text(text::answer(&answer, text_bytes), &answer)
}

impl Arguments {
    fn query(self) -> Query {
        let Self { metric, from, to, step, group_by, r#where: filter, compare_to, top, sql, max_bytes: _ } = self;
        Query { metric, from, to, step, group_by, filter, compare_to, top: top as usize, sql }
    }
}
