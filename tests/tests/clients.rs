//! Clients that nobody here wrote, over every transport, by the protocol with `initialize` and the one without. What they do stands in
//! `tests/clients`; they check every structured result against the schema of its tool. Needs root, and the network once.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use mcptrace_tests::{
    http::{HttpServer, write_private},
    mcp::PATIENCE,
    program::program,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};
use xtask::clients::Clients;

/// How long a client may take for all that it does.
const CLIENT_TIME: Duration = Duration::from_mins(5);
/// Users that need no account.
const USERS: [u32; 4] = [70_011, 70_012, 70_013, 70_014];

fn clients() -> &'static Clients {
    static CLIENTS: OnceLock<Clients> = OnceLock::new();
    CLIENTS.get_or_init(|| Clients::install().unwrap_or_else(|error| panic!("{error:#}")))
}

/// A client and how it begins.
#[derive(Clone, Copy, Debug)]
enum Driver {
    Python,
    /// The TypeScript SDK of line 1 or 2.
    Node(&'static str),
}

/// All of them. Line 1 of the TypeScript SDK knows no protocol without `initialize`.
const DRIVERS: [(Driver, &str); 4] = [
    (Driver::Python, "legacy"),
    (Driver::Python, "auto"),
    (Driver::Node("sdk"), "legacy"),
    (Driver::Node("client"), "auto"),
];

impl Driver {
    fn command(self, spec: &Value) -> Command {
        let spec = spec.to_string();
        let command = match self {
            Self::Python => {
                let mut command = clients().python("drive.py");
                command.arg(spec);
                command
            }
            Self::Node(sdk) => {
                let mut command = clients().node("drive.mjs");
                command.args([sdk, &spec]);
                command
            }
        };
        command.into()
    }
}

/// Runs all clients at once, each with what `spec` makes of its number, and fails with what they say if one does.
async fn drive(spec: impl Fn(usize) -> Value) {
    let mut running = JoinSet::new();
    for (number, (driver, era)) in DRIVERS.into_iter().enumerate() {
        let mut spec = spec(number);
        spec["era"] = era.into();
        let command = driver.command(&spec);
        running.spawn(async move { (driver, era, output(command).await) });
    }
    let mut failed = Vec::new();
    while let Some(done) = running.join_next().await {
        let (driver, era, output) = done.unwrap();
        let said = said(&output);
        println!("{driver:?} {era}: {}\n{said}", output.status);
        if !output.status.success() || !said.contains(" checks") {
            failed.push(format!("{driver:?} {era}: {}\n{said}", output.status));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

async fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    timeout(CLIENT_TIME, command.output()).await.expect("the client does not end").unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat()
}

/// A daemon with a recorder, and a program that every user can start.
struct Daemon {
    _child: Child,
    folder: TempDir,
}

impl Daemon {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(program(), path.join("mcptrace")).unwrap();
        let config = format!(
            "[socket]\npath = \"{0}/socket\"\nusers = {USERS:?}\n[audit]\nto = \"{0}/audit.jsonl\"\n[recorder]\nstate = \"{0}/state\"\n",
            path.display()
        );
        fs::write(path.join("config.toml"), config).unwrap();
        let mut command = Command::new(program());
        command.args(["daemon", "--config"]).arg(path.join("config.toml"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let daemon = Self { _child: command.spawn().unwrap(), folder };
        let serves = async {
            while UnixStream::connect(daemon.socket()).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, serves).await.expect("it does not serve");
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// What a user's client starts: the program, which passes everything on because this user may not trace.
    fn pump(&self, user: u32) -> Vec<String> {
        let folder = self.folder.path().display();
        let id = user.to_string();
        let user = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"].map(str::to_owned);
        let program = [format!("{folder}/mcptrace"), "--config".into(), format!("{folder}/config.toml")];
        user.into_iter().chain(program).collect()
    }
}

#[tokio::test]
async fn over_stdio() {
    drive(|_| json!({ "transport": "stdio", "command": [program()], "recorded": false })).await;
}

#[tokio::test]
async fn through_the_pump_without_privilege() {
    let daemon = Daemon::start().await;
    drive(|number| json!({ "transport": "stdio", "command": daemon.pump(USERS[number]), "recorded": true })).await;
}

#[tokio::test]
async fn straight_to_the_daemons_socket() {
    let daemon = Daemon::start().await;
    drive(|_| json!({ "transport": "unix", "socket": daemon.socket(), "recorded": true })).await;
}

/// A server over HTTP, and a token for each client.
async fn http() -> (HttpServer, [String; 4]) {
    let server = HttpServer::start().await;
    let tokens = ["one", "two", "three", "four"].map(|name| format!("{name}-0123456789abcdef0123456789abcdef"));
    let lines: Vec<_> = tokens.iter().enumerate().map(|(number, token)| format!("client{number} {token}\n")).collect();
    write_private(&server.tokens(), &lines.concat());
    (server, tokens)
}

fn url(server: &HttpServer) -> String {
    format!("http://{}/mcp", server.address)
}

#[tokio::test]
async fn over_http_with_a_token() {
    let (server, tokens) = http().await;
    let spec = |token: &str| json!({ "transport": "http", "url": url(&server), "token": token, "recorded": false });
    drive(|number| spec(&tokens[number])).await;
    for (driver, era) in DRIVERS {
        let mut spec = spec("not-a-token");
        spec["era"] = era.into();
        let output = output(driver.command(&spec)).await;
        let said = said(&output);
        // Python's client does not say which error it was when it begins by the old protocol.
        let names_it = said.contains("401") || said.contains("Server returned an error response");
        assert!(output.status.code() == Some(1) && names_it, "{driver:?} {era}: {said}");
    }
}

mod inspector {
    use super::*;

    /// Asks the server that `target` reaches, and gives the result.
    async fn ask(target: &[String], era: &str, method: &str, more: &[&str]) -> Value {
        let mut command: Command = clients().inspector().into();
        command.args(["--protocol-era", era, "--format", "json", "-q", "--method", method]).args(more).args(target);
        let output = output(command).await;
        let said = said(&output);
        assert!(output.status.success(), "{method} {more:?} by {era}: {}\n{said}", output.status);
        let strict = more.contains(&"--strict");
        assert!(!strict || !said.contains("Warning: tool"), "it warns of a schema: {said}");
        let mut answer: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{method}: {error}: {said}"));
        answer["result"].take()
    }

    /// A bit of everything, by both protocols.
    async fn look(target: &[String]) {
        for era in ["legacy", "modern"] {
            let listed = ask(target, era, "tools/list", &["--strict"]).await;
            assert_eq!(listed["tools"].as_array().unwrap().len(), 10);
            let arguments = r#"{"probe":"syscall_counts","seconds":0.3,"top":3}"#;
            let call = ["--tool-name", "run_probe", "--tool-args-json", arguments];
            let found = ask(target, era, "tools/call", &call).await;
            assert_eq!(found["structuredContent"]["status"], "completed", "{found}");
        }
        let read = ask(target, "modern", "resources/read", &["--uri", "mcptrace://probes/file_opens"]).await;
        assert!(read["contents"][0]["text"].as_str().unwrap().contains("path_prefix"), "{read}");
        let templates = ask(target, "legacy", "resources/templates/list", &[]).await;
        assert_eq!(templates["resourceTemplates"].as_array().unwrap().len(), 5);
        let prompt = ask(target, "legacy", "prompts/get", &["--prompt-name", "slow_system"]).await;
        assert!(prompt["messages"][0]["content"]["text"].as_str().unwrap().contains("triage"), "{prompt}");
    }

    #[tokio::test]
    async fn over_stdio() {
        look(&[program().display().to_string()]).await;
    }

    #[tokio::test]
    async fn through_the_pump() {
        let daemon = Daemon::start().await;
        // A script, because the Inspector would take options of the server for its own.
        let script = daemon.folder.path().join("start");
        fs::write(&script, format!("#!/bin/sh\nexec {}\n", daemon.pump(USERS[0]).join(" "))).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        look(&[script.display().to_string()]).await;
    }

    #[tokio::test]
    async fn over_http() {
        let (server, tokens) = http().await;
        let header = format!("Authorization: Bearer {}", tokens[0]);
        look(&["--transport", "http", "--server-url", &url(&server), "--header", &header].map(str::to_owned)).await;
    }
}

/// What a release must not have: fixtures of the conformance suite.
#[test]
fn the_program_has_no_fixtures() {
    let program = fs::read(program()).unwrap();
    let has = |text: &[u8]| program.windows(text.len()).any(|bytes| bytes == text);
    assert!(has(b"there is no method "), "what the server says is found");
    assert!(!has(b"test_simple_text") && !has(b"This is a simple text response"), "a fixture is in the program");
}
