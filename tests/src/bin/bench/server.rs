//! How fast a server answers when many ask at once.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::client::{Answer, Client};

/// Calls that are made at once.
const AT_ONCE: [u64; 3] = [1, 100, 1000];

/// How fast a tool answers so many calls at once.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) tool: &'static str,
    pub(crate) calls: u64,
    pub(crate) refused: u64,
    /// Half of the answers came within this, 99 % within this, and all, in milliseconds.
    pub(crate) half_ms: f64,
    pub(crate) most_ms: f64,
    pub(crate) all_ms: f64,
}

/// Asks a server everything.
pub(crate) fn measure(server: &Path) -> Result<Vec<Row>> {
    eprintln!("bench: latency of the server");
    let state = tempfile::tempdir()?;
    let mut client = Client::start(server, state.path())?;
    let run = client.tool("run_probe", &json!({"probe": "syscall_counts", "seconds": 0.2}))?;
    let id = run["execution_id"].as_str().context("no execution")?.to_owned();
    let mut rows = Vec::new();
    for (tool, arguments) in questions(&id) {
        for calls in AT_ONCE {
            eprintln!("bench:   {calls} × {tool}");
            rows.push(Row::of(tool, &client.many(calls, tool, &arguments)?));
        }
    }
    Ok(rows)
}

/// What each tool is asked. Those that trace are asked for as little as they may.
fn questions(execution: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("list_probes", json!({})),
        ("describe_probe", json!({"name": "file_opens"})),
        ("bpf_info", json!({})),
        ("list_executions", json!({})),
        ("get_result", json!({"execution_id": execution})),
        ("stop_execution", json!({"execution_id": execution})),
        ("query_history", json!({})),
        ("run_probe", json!({"probe": "syscall_counts", "seconds": 0.1})),
        ("exec_program", json!({"program": "BEGIN { exit(); }", "timeout": 1})),
        ("triage", json!({"seconds": 1})),
    ]
}

impl Row {
    fn of(tool: &'static str, answers: &[Answer]) -> Self {
        let mut times: Vec<_> = answers.iter().map(|answer| answer.took).collect();
        times.sort();
        let at = |share: f64| milliseconds(times[((times.len() - 1) as f64 * share).round() as usize]);
        let refused = answers.iter().filter(|answer| answer.refused).count() as u64;
        let calls = answers.len() as u64;
        Self { tool, calls, refused, half_ms: at(0.5), most_ms: at(0.99), all_ms: at(1.0) }
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let answer = |ms| Answer { took: Duration::from_millis(ms), refused: ms > 150 };
        let row = Row::of("t", &(1..=200).rev().map(answer).collect::<Vec<_>>());
        assert_eq!((row.calls, row.refused), (200, 50));
        assert_eq!((row.half_ms, row.most_ms, row.all_ms), (101.0, 198.0, 200.0));
    }
}
