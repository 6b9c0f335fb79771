//! How much memory a server holds.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mcptrace::probes::PROBES;
use serde_json::{Value, json};

use crate::peer::resident_bytes;

/// The targets, in bytes.
pub(crate) const TARGET_BEFORE: u64 = 15 << 20;
pub(crate) const TARGET_AFTER: u64 = 30 << 20;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Resident memory of a server on stdio, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// After `initialize` and `tools/list`.
    pub(crate) before: u64,
    /// After the first native call.
    pub(crate) after_one: u64,
    /// After each probe has run twice.
    pub(crate) after_all: u64,
}

/// Measures a server; nothing if there is none, with a word on stderr.
pub(crate) fn measure(server: Option<&Path>) -> Result<Option<Memory>> {
    eprintln!("bench: memory");
    let Some(server) = server else { return Ok(None) };
    let mut client = Client::start(server)?;
    client.hello().with_context(|| format!("{} does not serve", server.display()))?;
    let before = resident_bytes(client.server.id())?;
    client.run_probe(PROBES[0].name)?;
    let after_one = resident_bytes(client.server.id())?;
    PROBES.iter().chain(PROBES).try_for_each(|entry| client.run_probe(entry.name))?;
    let after_all = resident_bytes(client.server.id())?;
    Ok(Some(Memory { before, after_one, after_all }))
}

/// A client of as little MCP as it takes.
struct Client {
    server: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    calls: u64,
}

impl Client {
    fn start(server: &Path) -> Result<Self> {
        let mut command = Command::new(server);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().with_context(|| format!("cannot start {}", server.display()))?;
        let output = server.stdout.take().context("no stdout")?;
        let input = server.stdin.take();
        Ok(Self { server, input, lines: lines_of(output), calls: 0 })
    }

    fn hello(&mut self) -> Result<()> {
        let client = json!({"name": "bench", "version": "1"});
        self.call("initialize", &json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}))?;
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        self.call("tools/list", &json!({}))?;
        Ok(())
    }

    fn run_probe(&mut self, probe: &str) -> Result<()> {
        self.call("tools/call", &json!({"name": "run_probe", "arguments": {"probe": probe, "seconds": 0.5}}))?;
        Ok(())
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.calls += 1;
        let id = self.calls;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        loop {
            let line = self.lines.recv_timeout(PATIENCE).with_context(|| format!("no answer to {method}"))?;
            let answer: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
            if answer["id"] == id {
                let failed = answer["error"] != Value::Null || answer["result"]["isError"] == true;
                ensure!(!failed, "{method} failed: {line}");
                return Ok(answer);
            }
        }
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

fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
