//! What grows with what a server keeps: executions, events, history.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use mcptrace::recorder::{
    history::range::stamp,
    place,
    store::{Keeper, Limits},
};
use mcptrace_tests::simulated::{START, calls, latencies, tick};
use serde_json::{Value, json};

use crate::{client::Client, rounds::median, server::milliseconds, workload::open_and_close};

/// A server that keeps so much.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) count: u64,
    pub(crate) resident_bytes: u64,
    /// The question whose answer is timed.
    pub(crate) question: &'static str,
    /// The median of some answers, in milliseconds.
    pub(crate) ms: f64,
}

/// Measures a server as it is given more to keep.
pub(crate) fn measure(server: &Path, quick: bool) -> Result<Vec<Row>> {
    eprintln!("bench: growth");
    let mut rows = executions(server)?;
    rows.extend(events(server, if quick { &[0, 1000] } else { &[0, 1000, 100_000, 1_000_000] })?);
    rows.extend(history(server, if quick { &[60] } else { &[60, 3600, 4 * 3600] })?);
    Ok(rows)
}

fn executions(server: &Path) -> Result<Vec<Row>> {
    let state = tempfile::tempdir()?;
    let mut client = Client::start(server, state.path())?;
    let mut kept = 0;
    // A server keeps 64.
    [1, 16, 64, 200]
        .into_iter()
        .map(|count| {
            while kept < count {
                client.tool("run_probe", &json!({"probe": "syscall_counts", "seconds": 0.1}))?;
                kept += 1;
            }
            row(&mut client, "executions that ended", count, "list_executions", &json!({}))
        })
        .collect()
}

fn events(server: &Path, counts: &[u64]) -> Result<Vec<Row>> {
    let state = tempfile::tempdir()?;
    let mut client = Client::start(server, state.path())?;
    let filter = json!({"pid": std::process::id()});
    let run = json!({"probe": "file_opens", "seconds": 600, "background": true, "filter": filter});
    let run = client.tool("run_probe", &run)?;
    let id = run["execution_id"].as_str().context("no execution")?.to_owned();
    let mut made = 0;
    counts
        .iter()
        .map(|count| {
            open_and_close(count - made)?;
            made = *count;
            // The reader looks every few milliseconds.
            std::thread::sleep(Duration::from_millis(100));
            row(&mut client, "events of one execution", *count, "get_result", &json!({"execution_id": id}))
        })
        .collect()
}

fn history(server: &Path, seconds: &[i64]) -> Result<Vec<Row>> {
    seconds.iter().map(|seconds| history_of(server, *seconds)).collect()
}

fn history_of(server: &Path, seconds: i64) -> Result<Row> {
    let state = tempfile::tempdir()?;
    let mut keeper = Keeper::open(&place::file(state.path()), Limits::default())?;
    for second in 0..seconds {
        let samples = (0..20).map(|number| calls(&format!("program{number}"), "user", 7));
        keeper.keep(&tick(second, samples.chain([latencies("sda", &[second as u64])]).collect()));
    }
    drop(keeper);
    let mut client = Client::start(server, state.path())?;
    let (from, to) = (stamp(START), stamp(START + seconds));
    let question = json!({"metric": "test_calls", "from": from, "to": to, "group_by": "comm"});
    row(&mut client, "seconds of history", seconds.unsigned_abs(), "query_history", &question)
}

fn row(client: &mut Client, what: &'static str, count: u64, question: &'static str, arguments: &Value) -> Result<Row> {
    let times = (0..15).map(|_| {
        let answer = client.many(1, question, arguments)?[0];
        anyhow::ensure!(!answer.refused, "{question} {arguments} fails");
        Ok(milliseconds(answer.took))
    });
    let ms = median(times.collect::<Result<_>>()?).unwrap_or_default();
    Ok(Row { what, count, resident_bytes: client.resident_bytes()?, question, ms })
}
