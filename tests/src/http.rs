//! A server over HTTP, and a client that sees every byte of it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::{
    mcp::{Answer, PATIENCE},
    program::program,
};

/// A token of the tests.
pub const ALICE: &str = "alice-0123456789abcdef0123456789abcdef";
/// Somebody else's.
pub const BOB: &str = "bob-fedcba9876543210fedcba9876543210";
/// One whose time is over.
pub const LATE: &str = "late-00112233445566778899aabbccddeeff";

/// A server in a process of its own. It is killed when this is dropped.
pub struct HttpServer {
    /// The process.
    pub child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    folder: TempDir,
}

impl HttpServer {
    /// Starts it on loopback with the tokens of the tests.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        let text = format!("# tests\nalice {ALICE}\nbob {BOB}\nlate {LATE} 2001-01-01T00:00:00Z\n");
        write_private(&tokens, &text);
        let mut command = Command::new(program());
        command.args(["serve", "--http-tokens"]).arg(&tokens).args(arguments);
        if !arguments.contains(&"--http") {
            command.args(["--http", "127.0.0.1:0"]);
        }
        Self::of(command, folder).await
    }

    /// Starts it with a token of the environment only.
    pub async fn start_from_environment(token: &str) -> Self {
        let mut command = Command::new(program());
        command.args(["serve", "--http", "127.0.0.1:0"]).env("MCPTRACE_HTTP_TOKEN", token);
        Self::of(command, tempfile::tempdir().unwrap()).await
    }

    /// The file of its tokens.
    pub fn tokens(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    /// Starts it by a command whose files are in a folder.
    pub async fn of(mut command: Command, folder: TempDir) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
            let line = line.unwrap_or_else(|| panic!("it has ended and said: {said}"));
            said.push_str(&line);
            said.push('\n');
            // What is recorded before has addresses in it too.
            if let Some((_, rest)) = line.split_once("serving MCP at ").and_then(|(_, url)| url.split_once("://")) {
                break rest.split('/').next().unwrap().parse().unwrap();
            }
        };
        let log = Arc::new(Mutex::new(said));
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, address, log, folder }
    }

    /// What it has written on standard error.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A new connection.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request on a connection of its own and waits for the whole answer.
    pub async fn ask(&self, request: &Ask<'_>) -> Heard {
        exchange(self.connect().await, &self.address.to_string(), request).await
    }

    /// Calls a tool by the protocol of 2026-07-28, which has no sessions.
    pub async fn tool(&self, token: &str, name: &str, arguments: Value) -> Answer {
        let params = json!({ "name": name, "arguments": arguments });
        let heard = self.ask(&Ask::message(token, &stateless("tools/call", params))).await;
        Answer::of(&heard.message())
    }

    /// Its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has ended")
    }
}

/// Writes a file that nobody else may read.
pub fn write_private(path: &Path, text: &str) {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
    /// Headers beside `Host`, which is added unless it is here.
    pub headers: Vec<(&'a str, String)>,
    /// Its body.
    pub body: String,
}

impl<'a> Ask<'a> {
    /// A message of MCP with a token.
    pub fn message(token: &str, message: &Value) -> Self {
        let mut headers = vec![
            ("Content-Type", "application/json".to_owned()),
            ("Accept", "application/json, text/event-stream".to_owned()),
            ("Authorization", format!("Bearer {token}")),
        ];
        if message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"].is_string() {
            headers.push(("MCP-Protocol-Version", "2026-07-28".to_owned()));
            headers.push(("Mcp-Method", message["method"].as_str().unwrap().to_owned()));
            if let Some(name) = message["params"]["name"].as_str() {
                headers.push(("Mcp-Name", name.to_owned()));
            }
        }
        Self { method: "POST", path: "/mcp", headers, body: message.to_string() }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }

    /// As it goes over the wire; the connection ends with the answer.
    pub fn bytes(&self, host: &str) -> Vec<u8> {
        let has = |wanted: &[&str]| self.headers.iter().any(|(name, _)| wanted.contains(name));
        let mut lines = vec![format!("{} {} HTTP/1.1", self.method, self.path), "Connection: close".to_owned()];
        if !has(&["Host"]) {
            lines.push(format!("Host: {host}"));
        }
        lines.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        if !has(&["Content-Length", "Transfer-Encoding"]) {
            lines.push(format!("Content-Length: {}", self.body.len()));
        }
        format!("{}\r\n\r\n{}", lines.join("\r\n"), self.body).into_bytes()
    }
}

/// A request of the protocol of 2026-07-28.
pub fn stateless(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "1" },
    });
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Its status.
    pub status: u16,
    /// Its headers, as they are written.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Heard {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The body as a message, which may have no id.
    pub fn message_or_error(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The message with an id in it: of a stream of events, or the body itself.
    pub fn message(&self) -> Value {
        let events = self.body.lines().filter_map(|line| line.strip_prefix("data:"));
        let found = events.filter_map(|data| serde_json::from_str::<Value>(data).ok()).find(|data| data["id"].is_u64());
        found.or_else(|| serde_json::from_str(&self.body).ok()).unwrap_or_else(|| panic!("no message: {self:?}"))
    }
}

/// Sends a request and reads to the end.
pub async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, request: &Ask<'_>) -> Heard {
    // A server that has refused it may not read the rest.
    let _ = stream.write_all(&request.bytes(host)).await;
    let _ = stream.flush().await;
    read_all(stream).await
}

/// Reads an answer to the end of the connection.
pub async fn read_all(mut stream: impl AsyncRead + Unpin) -> Heard {
    let mut bytes = Vec::new();
    // A connection that is reset after the answer has given it all the same.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("no end");
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Heard { status, head: head.to_owned(), body }
}

fn unchunk(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size.min(rest.len())]);
        text = rest.get(size + 2..).unwrap_or("");
    }
    whole
}

/// A session of the protocol of 2025-11-25.
pub struct Session {
    /// Its id.
    pub id: String,
    token: String,
    last: u64,
}

impl Session {
    /// Opens one.
    pub async fn open(server: &HttpServer, token: &str) -> Self {
        Self::try_open(server, token).await.unwrap_or_else(|heard| panic!("{heard:?}"))
    }

    /// Opens one, or gives the refusal.
    pub async fn try_open(server: &HttpServer, token: &str) -> Result<Self, Heard> {
        let info = json!({ "name": "tests", "version": "1" });
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info });
        let message = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let heard = server.ask(&Ask::message(token, &message)).await;
        let Some(id) = heard.header("mcp-session-id").map(str::to_owned) else { return Err(heard) };
        assert_eq!(heard.message()["result"]["protocolVersion"], "2025-11-25");
        let session = Self { id, token: token.to_owned(), last: 0 };
        let begun = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(server.ask(&session.ask(&begun)).await.status, 202);
        Ok(session)
    }

    /// A message of this session.
    pub fn ask(&self, message: &Value) -> Ask<'static> {
        Ask::message(&self.token, message).with("Mcp-Session-Id", &*self.id).with("MCP-Protocol-Version", "2025-11-25")
    }

    /// A call of a tool.
    pub fn call(&mut self, name: &str, arguments: Value) -> Ask<'static> {
        self.last += 1;
        let params = json!({ "name": name, "arguments": arguments });
        self.ask(&json!({ "jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": params }))
    }

    /// Calls a tool and waits for its result.
    pub async fn tool(&mut self, server: &HttpServer, name: &str, arguments: Value) -> Answer {
        let heard = server.ask(&self.call(name, arguments)).await;
        Answer::of(&heard.message())
    }
}

/// Starts the program with these arguments and environment and gives its exit code and what it says; for starts that fail.
pub async fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    command.arg("serve").args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = timeout(PATIENCE, command.output()).await.expect("it has started").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
