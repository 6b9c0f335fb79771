//! A client of as little MCP as it takes, over stdio.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::peer::resident_bytes;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// A server with its one client. It ends when this is dropped.
pub(crate) struct Client {
    server: Child,
    input: Option<ChildStdin>,
    /// Lines and when they came.
    lines: Receiver<(Instant, String)>,
    calls: u64,
}

/// An answer to one of many calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// From the call to its answer.
    pub(crate) took: Duration,
    /// Whether it is an error, as when too much runs already.
    pub(crate) refused: bool,
}

impl Client {
    /// Starts a server whose state is in a folder, and greets it.
    pub(crate) fn start(server: &Path, state: &Path) -> Result<Self> {
        let mut command = Command::new(server);
        command.env("MCPTRACE_STATE", state).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().with_context(|| format!("cannot start {}", server.display()))?;
        let output = server.stdout.take().context("no stdout")?;
        let input = server.stdin.take();
        let mut client = Self { server, input, lines: lines_of(output), calls: 0 };
        client.hello().context("it does not serve")?;
        Ok(client)
    }

    /// What the server holds, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.server.id())
    }

    /// Calls a tool, which must work; what it gives.
    pub(crate) fn tool(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let answer = self.call("tools/call", &json!({"name": name, "arguments": arguments}))?;
        ensure!(answer["result"]["isError"] != true, "{name} failed: {answer}");
        Ok(answer["result"]["structuredContent"].clone())
    }

    /// Makes so many calls of a tool at once and waits for all answers.
    pub(crate) fn many(&mut self, calls: u64, name: &str, arguments: &Value) -> Result<Vec<Answer>> {
        let params = json!({"name": name, "arguments": arguments});
        let mut sent = BTreeMap::new();
        for _ in 0..calls {
            self.calls += 1;
            sent.insert(self.calls, Instant::now());
            self.send(&request(self.calls, "tools/call", &params))?;
        }
        let mut answers = Vec::new();
        while !sent.is_empty() {
            let (came, answer) = self.next().with_context(|| format!("{} calls of {name} unanswered", sent.len()))?;
            let Some(begun) = answer["id"].as_u64().and_then(|id| sent.remove(&id)) else { continue };
            answers.push(Answer { took: came - begun, refused: is_error(&answer) });
        }
        Ok(answers)
    }

    fn hello(&mut self) -> Result<()> {
        let client = json!({"name": "bench", "version": "1"});
        self.call("initialize", &json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}))?;
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        self.call("tools/list", &json!({}))?;
        Ok(())
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.calls += 1;
        let id = self.calls;
        self.send(&request(id, method, params))?;
        loop {
            let (_, answer) = self.next().with_context(|| format!("no answer to {method}"))?;
            if answer["id"] == id {
                ensure!(answer["error"] == Value::Null, "{method} failed: {answer}");
                return Ok(answer);
            }
        }
    }

    fn next(&self) -> Result<(Instant, Value)> {
        let (came, line) = self.lines.recv_timeout(PATIENCE)?;
        Ok((came, serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?))
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        let input = self.input.as_mut().context("closed")?;
        Ok(writeln!(input, "{message}")?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn is_error(answer: &Value) -> bool {
    answer["error"] != Value::Null || answer["result"]["isError"] == true
}

fn lines_of(output: ChildStdout) -> Receiver<(Instant, String)> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    receiver
}
