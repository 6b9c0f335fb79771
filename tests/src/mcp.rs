//! A client that sees every message of the protocol as it goes over the wire, and the server to talk to.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{process::Stdio, sync::Arc, time::Duration};

use mcptrace::{
    executions::Executions,
    principal::Principal,
    server::{self, Hub},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, Command},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::program::program;

/// How long an answer may take before a test fails. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A connection to a server, message by message.
pub struct Client {
    write: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    lines: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    last_id: u64,
    /// What came that was no answer to the call in question.
    pub others: Vec<Value>,
}

/// What a tool answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// `isError`.
    pub is_error: bool,
    /// The text.
    pub text: String,
    /// `structuredContent`.
    pub structured: Value,
}

impl Client {
    /// A client of these streams.
    pub fn new(read: impl AsyncRead + Send + Unpin + 'static, write: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let read: Box<dyn AsyncRead + Send + Unpin> = Box::new(read);
        Self { write: Some(Box::new(write)), lines: BufReader::new(read).lines(), last_id: 0, others: Vec::new() }
    }

    /// A client of a server in this process, initialized.
    pub async fn in_process(executions: &Arc<Executions>) -> Self {
        Self::in_process_as(executions, "tester").await
    }

    /// The same for a certain principal.
    pub async fn in_process_as(executions: &Arc<Executions>, owner: &'static str) -> Self {
        let mut client = Self::connect(executions, owner);
        client.initialize("2025-11-25").await;
        client
    }

    /// A client of a server in this process that has not said anything yet.
    pub fn connect(executions: &Arc<Executions>, owner: &'static str) -> Self {
        Self::connect_as(executions, Principal::token(owner))
    }

    /// The same for any principal.
    pub fn connect_as(executions: &Arc<Executions>, principal: Principal) -> Self {
        Self::of_hub(&Hub::new(Arc::clone(executions)), principal)
    }

    /// The same, of one process with others.
    pub fn of_hub(hub: &Arc<Hub>, principal: Principal) -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let hub = Arc::clone(hub);
        tokio::spawn(async move {
            let streams = tokio::io::split(theirs);
            server::serve(streams, &hub, principal, CancellationToken::new()).await.unwrap();
        });
        let (read, write) = tokio::io::split(ours);
        Self::new(read, write)
    }

    /// Begins a conversation as clients of up to 2025-11-25 do; gives the result.
    pub async fn initialize(&mut self, version: &str) -> Value {
        let info = json!({ "name": "tests", "version": "1" });
        let params = json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": info });
        let answer = self.request("initialize", params).await;
        self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        answer["result"].clone()
    }

    /// Writes a line as it is.
    pub async fn line(&mut self, line: &[u8]) {
        let write = self.write.as_mut().expect("closed");
        write.write_all(line).await.unwrap();
        write.write_all(b"\n").await.unwrap();
        write.flush().await.unwrap();
    }

    /// Writes a message.
    pub async fn send(&mut self, message: &Value) {
        self.line(message.to_string().as_bytes()).await;
    }

    /// Writes a request and gives its id.
    pub async fn start(&mut self, method: &str, params: Value) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        id
    }

    /// Writes a call of a tool and gives its id, which is its progress token too.
    pub async fn start_tool(&mut self, name: &str, arguments: Value) -> u64 {
        let token = self.last_id + 1;
        let meta = json!({ "progressToken": token });
        self.start("tools/call", json!({ "name": name, "arguments": arguments, "_meta": meta })).await
    }

    /// The next message; fails the test if none comes.
    pub async fn next(&mut self) -> Value {
        self.next_or_end().await.expect("the server has closed the connection")
    }

    /// The next message, or `None` at the end.
    pub async fn next_or_end(&mut self) -> Option<Value> {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("the server says nothing").unwrap()?;
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("no JSON on standard output: {error}: {line}")))
    }

    /// The answer with this id; what comes before it goes to `others`.
    pub async fn answer(&mut self, id: u64) -> Value {
        loop {
            let message = self.next().await;
            if message["id"] == id {
                return message;
            }
            self.others.push(message);
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.start(method, params).await;
        self.answer(id).await
    }

    /// Calls a tool and waits for its result.
    pub async fn tool(&mut self, name: &str, arguments: Value) -> Answer {
        let id = self.start_tool(name, arguments).await;
        let answer = self.answer(id).await;
        Answer::of(&answer)
    }

    /// Closes what the server reads.
    pub async fn close(&mut self) {
        let mut write = self.write.take().expect("closed already");
        let _ = write.shutdown().await;
    }
}

impl Answer {
    /// The result in a message.
    pub fn of(message: &Value) -> Self {
        let result = &message["result"];
        assert!(result.is_object(), "no result: {message}");
        Self {
            is_error: result["isError"] == true,
            text: result["content"][0]["text"].as_str().unwrap().to_owned(),
            structured: result["structuredContent"].clone(),
        }
    }

    /// The structured content, which is that of a success.
    pub fn success(self) -> Value {
        assert!(!self.is_error, "{}", self.text);
        self.structured
    }

    /// Text and structured content together, in bytes.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.structured.to_string().len()
    }
}

/// A server in a process of its own, as clients start it. It is killed when this is dropped.
pub struct ServerProcess {
    /// The process.
    pub child: Child,
    /// Its client.
    pub client: Client,
}

impl ServerProcess {
    /// Starts the program and begins a conversation.
    pub async fn start() -> Self {
        let mut process = Self::spawn(&[]);
        process.client.initialize("2025-11-25").await;
        process
    }

    /// Starts the program with these variables in its environment.
    pub fn spawn(environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program());
        command.envs(environment.iter().copied());
        Self::of(command)
    }

    /// Starts it by a command, and says nothing yet.
    pub fn silent(command: Command) -> Self {
        Self::of(command)
    }

    /// Starts it by a command whose last words it is, and begins a conversation.
    pub async fn start_by(command: Command) -> Self {
        let mut process = Self::of(command);
        process.client.initialize("2025-11-25").await;
        process
    }

    fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let client = Client::new(child.stdout.take().unwrap(), child.stdin.take().unwrap());
        Self { child, client }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has ended")
    }

    /// Ids of the eBPF programs that it holds, now.
    pub fn bpf_programs(&self) -> Vec<u32> {
        programs_held(self.pid())
    }

    /// Waits until it has attached something.
    pub async fn wait_attached(&self) -> Vec<u32> {
        for _ in 0..600 {
            let programs = self.bpf_programs();
            if !programs.is_empty() {
                return programs;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nothing was attached");
    }

    /// Waits for its end and gives its exit code, if a signal did not end it.
    pub async fn ended(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap().code()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0);
    }
}

/// Ids of the eBPF programs that a process holds, now.
pub fn programs_held(pid: u32) -> Vec<u32> {
    let folder = format!("/proc/{pid}/fdinfo");
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let infos = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let mut ids: Vec<u32> = infos.filter_map(|info| field(&info, "prog_id:")).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Those of these eBPF programs that the kernel still has, after it had some time to free them.
pub async fn left_over(programs: &[u32]) -> Vec<u32> {
    let mut left = Vec::new();
    for _ in 0..100 {
        let all: Vec<u32> = libbpf_rs::query::ProgInfoIter::default().map(|program| program.id).collect();
        left = programs.iter().copied().filter(|id| all.contains(id)).collect();
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    left
}
