//! A small MCP client over the standard streams of a server: one call at a time, every wait bounded.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

/// The protocol that this client speaks: the newest that starts with `initialize`.
const PROTOCOL_VERSION: &str = "2025-11-25";

/// How many of the server's last lines on stderr are kept.
const LOG_LINES: usize = 100;

/// How long a server may take to end after its input has.
const GRACE: Duration = Duration::from_secs(5);

/// A running server.
#[derive(Debug)]
pub(crate) struct McpClient {
    server: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    log: Arc<Mutex<VecDeque<String>>>,
    last_id: u64,
}

/// What a call gave.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) result: Value,
    /// From the request to its answer.
    pub(crate) took: Duration,
    /// Length of the answer as it came.
    pub(crate) bytes: usize,
}

impl McpClient {
    /// Starts a server and shakes hands.
    pub(crate) fn start(command: &mut Command, timeout: Duration) -> Result<(Self, Reply)> {
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = streams.spawn().context("cannot start the server")?;
        let input = server.stdin.take();
        let lines = forward_lines(server.stdout.take().context("no stdout")?);
        let log = keep_last_lines(server.stderr.take().context("no stderr")?);
        let mut client = Self { server, input, lines, log, last_id: 0 };
        let reply = client.call("initialize", &hello(), timeout)?;
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        Ok((client, reply))
    }

    /// Sends a request and waits for its answer. Errors carry what the server last logged.
    pub(crate) fn call(&mut self, method: &str, params: &Value, timeout: Duration) -> Result<Reply> {
        let answer = self.try_call(method, params, timeout);
        answer.map_err(|error| anyhow!("{method}: {error:#}{}", self.last_words()))
    }

    fn try_call(&mut self, method: &str, params: &Value, timeout: Duration) -> Result<Reply> {
        let start = Instant::now();
        self.last_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}))?;
        loop {
            let line = self.next_line(start, timeout)?;
            let message = parse(&line)?;
            if let Some(result) = self.answer(message)? {
                return Ok(Reply { result, took: start.elapsed(), bytes: line.len() });
            }
        }
    }

    fn next_line(&self, start: Instant, timeout: Duration) -> Result<String> {
        self.lines.recv_timeout(timeout.saturating_sub(start.elapsed())).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("no answer within {timeout:?}"),
            RecvTimeoutError::Disconnected => anyhow!("the server closed its output"),
        })
    }

    /// The result in a message, if it answers the last request. What the server asks of us, it is told that we lack.
    fn answer(&mut self, mut message: Value) -> Result<Option<Value>> {
        if message.get("method").is_some() {
            if let Some(id) = message.get("id") {
                let error = json!({"code": -32601, "message": "not supported by this client"});
                self.send(&json!({"jsonrpc": "2.0", "id": id, "error": error}))?;
            }
            return Ok(None);
        }
        if message.get("id").and_then(Value::as_u64) != Some(self.last_id) {
            return Ok(None);
        }
        if let Some(error) = message.get("error") {
            bail!("the server answered with an error: {error}");
        }
        Ok(Some(message["result"].take()))
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        let input = self.input.as_mut().context("the connection is closed")?;
        writeln!(input, "{message}").and_then(|()| input.flush()).context("the server reads no more")
    }

    /// Closes the server's input and waits for its end; a server that stays is killed, and that is an error.
    pub(crate) fn close(mut self) -> Result<()> {
        self.input = None;
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if let Some(status) = self.server.try_wait()? {
                ensure!(status.success(), "the server ended with {status}{}", self.last_words());
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the server was still there {GRACE:?} after its input had ended{}", self.last_words())
    }

    fn last_words(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = log.iter().map(String::as_str).collect();
        if lines.is_empty() { String::new() } else { format!("\nthe server's log:\n{}", lines.join("\n")) }
    }
}

impl Drop for McpClient {
    fn drop(&mut self) {
        self.input = None;
        if matches!(self.server.try_wait(), Ok(None)) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }
}

fn hello() -> Value {
    json!({
        "protocolVersion": PROTOCOL_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "mcptrace-demo", "version": env!("CARGO_PKG_VERSION")},
    })
}

fn parse(line: &str) -> Result<Value> {
    let start: String = line.chars().take(200).collect();
    serde_json::from_str(line).with_context(|| format!("a line on the server's stdout is not JSON: {start}"))
}

/// Reads lines in a thread of its own, so that waiting for them can be given up.
fn forward_lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(64);
    thread::spawn(move || {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.find_map(|line| sender.send(line).err())
    });
    receiver
}

fn keep_last_lines(output: impl Read + Send + 'static) -> Arc<Mutex<VecDeque<String>>> {
    let log = Arc::<Mutex<VecDeque<String>>>::default();
    let kept = Arc::clone(&log);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut log = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A server of a few lines of shell.
    fn server(script: &str) -> Result<(McpClient, Reply)> {
        McpClient::start(Command::new("sh").args(["-c", script]), SECOND)
    }

    #[test]
    fn a_call_gets_its_answer_among_other_messages() {
        let script = r#"
            read hello; echo '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"x"}}'
            read initialized; read call
            echo '{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'
            echo '{"jsonrpc":"2.0","id":"s1","method":"roots/list"}'
            read refusal; case "$refusal" in *-32601*) ;; *) exit 1;; esac
            echo '{"jsonrpc":"2.0","id":2,"result":{"seven":7}}'
            read end
        "#;
        let (mut client, hello) = server(script).unwrap();
        assert_eq!(hello.result["protocolVersion"], "x");
        let reply = client.call("ping", &json!({}), SECOND).unwrap();
        assert_eq!(reply.result, json!({"seven": 7}));
        assert_eq!(reply.bytes, r#"{"jsonrpc":"2.0","id":2,"result":{"seven":7}}"#.len());
        client.close().unwrap_err(); // `read` at the end of input fails, and the shell with it
    }

    #[test]
    fn failures_say_what_happened_and_show_the_log() {
        let silent = server("exec sleep 9").unwrap_err().to_string();
        assert!(silent.contains("no answer within 1s"), "{silent}");
        let gone = server("read hello; echo 'no privilege' >&2; sleep 0.1; exit 1").unwrap_err().to_string();
        assert!(gone.contains("closed its output") && gone.contains("no privilege"), "{gone}");
        let chatty = server("read hello; echo starting").unwrap_err().to_string();
        assert!(chatty.contains("not JSON: starting"), "{chatty}");
        let refused = server(r#"read hello; echo '{"id":1,"error":{"message":"bad"}}'"#).unwrap_err().to_string();
        assert!(refused.contains(r#"{"message":"bad"}"#), "{refused}");
    }
}
