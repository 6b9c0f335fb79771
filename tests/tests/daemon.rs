//! The daemon and its unix socket: several users at once, those who leave or hang, and what ends either side. Needs root.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use mcptrace::recorder::store::kept::Kept;
use mcptrace_tests::{
    http::{ALICE as ALICES_TOKEN, Ask, BOB as BOBS_TOKEN, HttpServer, stateless, write_private},
    mcp::{Client, PATIENCE, ServerProcess, left_over, programs_held},
    program::{assert_has_shed, bpftrace_of, descendants, is_alive, own_memory, program},
    workload,
    workload::hex,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Users that need no account, as few have.
const ALICE: u32 = 70_001;
const BOB: u32 = 70_002;
const STRANGER: u32 = 70_003;

/// A daemon, its files, and a program that every user can start.
struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_with("").await
    }

    async fn start_with(socket: &str) -> Self {
        let folder = Self::folder(socket);
        let child = Self::spawn(Command::new(program()), folder.path());
        let daemon = Self { child, folder };
        daemon.wait_until_it_serves().await;
        daemon
    }

    fn folder(socket: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(program(), path.join("mcptrace")).unwrap();
        let config = format!(
            "[socket]\npath = \"{0}/socket\"\nusers = [{ALICE}, {BOB}]\n{socket}\n[audit]\nto = \"{0}/audit.jsonl\"\n\
             [recorder]\nstate = \"{0}/state\"\n",
            path.display()
        );
        fs::write(path.join("config.toml"), config).unwrap();
        folder
    }

    /// `command` is the program, or what becomes it.
    fn spawn(mut command: Command, folder: &Path) -> Child {
        command.arg("daemon").arg("--config").arg(folder.join("config.toml"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn().unwrap()
    }

    async fn wait_until_it_serves(&self) {
        let begun = Instant::now();
        while UnixStream::connect(self.socket()).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "it does not serve");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The recorder's programs, once it has attached all: what comes later belongs to executions.
    async fn recorders(&self) -> Vec<u32> {
        let mut last = Vec::new();
        for _ in 0..120 {
            sleep(Duration::from_millis(500)).await;
            let now = programs_held(self.pid());
            if !now.is_empty() && now == last {
                return now;
            }
            last = now;
        }
        panic!("it does not record");
    }

    /// The program as a user's client starts it.
    fn client_of(&self, uid: u32) -> ServerProcess {
        let mut command = Command::new(self.folder.path().join("mcptrace"));
        command.arg("--config").arg(self.folder.path().join("config.toml")).uid(uid).gid(uid).current_dir("/");
        ServerProcess::silent(command)
    }

    async fn client(&self, uid: u32) -> ServerProcess {
        let mut process = self.client_of(uid);
        process.client.initialize("2025-11-25").await;
        process
    }

    /// A client without a process of its own: this one, which is root's.
    async fn root(&self) -> Client {
        let (read, write) = UnixStream::connect(self.socket()).await.unwrap().into_split();
        let mut client = Client::new(read, write);
        client.initialize("2025-11-25").await;
        client
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn background(client: &mut Client) -> Value {
    let arguments = json!({ "probe": "syscall_counts", "seconds": 600, "background": true });
    client.tool("run_probe", arguments).await.success()["execution_id"].clone()
}

async fn status(client: &mut Client, id: &Value, wait: u32) -> Value {
    client.tool("get_result", json!({ "execution_id": id, "wait_seconds": wait })).await.success()["status"].clone()
}

#[tokio::test]
async fn users_without_privilege_trace_through_the_daemon_and_see_their_own() {
    let daemon = Daemon::start().await;
    let (mut alice, mut bob) = (daemon.client(ALICE).await, daemon.client(BOB).await);
    let found = alice.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await.success();
    assert_eq!(found["status"], "completed");
    assert_eq!(alice.bpf_programs(), [0_u32; 0], "what passes bytes on holds nothing");
    let id = background(&mut alice.client).await;
    let of_bob = bob.client.tool("get_result", json!({ "execution_id": id })).await;
    let unknown = bob.client.tool("get_result", json!({ "execution_id": "exec_0" })).await;
    assert_eq!(of_bob.text.replace(id.as_str().unwrap(), "exec_0"), unknown.text);
    assert_eq!(bob.client.tool("list_executions", json!({})).await.success()["executions"], json!([]));
    let mut root = daemon.root().await;
    assert_eq!(root.tool("list_executions", json!({})).await.success()["executions"][0]["execution_id"], id);
    let audit = daemon.audit();
    assert_eq!(audit[0]["event"], "configured");
    let starts: Vec<_> = audit.iter().filter(|line| line["event"] == "start").collect();
    assert!(starts.iter().all(|line| line["principal"] == "uid:70001" && line["transport"] == "unix"), "{starts:?}");
    assert_eq!(starts.len(), 2);
}

#[tokio::test]
async fn triage_answers_at_once_from_the_recorder_unless_it_is_told_how_long_to_look() {
    let daemon = Daemon::start().await;
    let mut root = daemon.root().await;
    let live = root.tool("triage", json!({ "seconds": 1 })).await.success();
    assert_eq!(live["source"], "live", "whoever says how long gets that");
    // A few seconds have to be recorded first; until then it looks itself.
    let begun = Instant::now();
    let recorded = loop {
        let answer = root.tool("triage", json!({})).await;
        if answer.structured["source"] == "recorder" {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", answer.text);
    };
    assert!(recorded.text.contains("as recorded") && recorded.text.len() <= 4096, "{}", recorded.text);
    let found = recorded.success();
    assert!(found.to_string().len() <= 4096 && found["looked_at"].as_array().unwrap().len() >= 8, "{found}");
    let one = root.tool("triage", json!({ "focus": "disk" })).await.success();
    // Numbers make room for findings, of which a busy machine has many; and what costs too much there is not recorded.
    let names: Vec<_> = one["looked_at"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    let is_shed = found["notes"].to_string().contains("not judged");
    assert!(names.contains(&"cpu_used") && (names.contains(&"runq_wait_p99") || is_shed), "{names:?} {found}");
    assert_eq!(one["source"], "recorder");
    assert!(one["notes"].to_string().contains("only disk was looked at"), "{one}");
    // Answers out of the history start nothing: only the live looks are on record.
    let starts = daemon.audit().iter().filter(|line| line["event"] == "start").count();
    assert!(starts >= 1, "{starts}");
}

/// A folder that a flag names is the one of the whole process, and the flag counts more than the configuration.
#[tokio::test]
async fn what_is_asked_is_answered_from_the_folder_that_is_recorded_to() {
    let folder = Daemon::folder("");
    let state = folder.path().join("flag");
    let mut command = Command::new(program());
    command.arg("daemon").arg("--state").arg(&state).arg("--config").arg(folder.path().join("config.toml"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let daemon = Daemon { child: command.spawn().unwrap(), folder };
    daemon.wait_until_it_serves().await;
    let mut root = daemon.root().await;
    let begun = Instant::now();
    while root.tool("triage", json!({})).await.structured["source"] != "recorder" {
        assert!(begun.elapsed() < PATIENCE, "triage does not find what is recorded");
    }
    let history = root.tool("query_history", json!({})).await.success();
    assert!(history["report"]["rows"].as_array().unwrap().len() > 10, "{history}");
    let found = root.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await.success();
    let info = root.tool("bpf_info", json!({})).await.success();
    assert_eq!(info["recorder"]["sink"], state.join("history.db").to_str().unwrap(), "{info}");
    assert!(!daemon.folder.path().join("state").exists());
    let kept = Kept::read(&state).unwrap();
    let id = found["execution_id"].as_str().unwrap();
    wait_for(|| kept.load(id).unwrap().is_some()).await;
    // The commands that read it know the flag as well.
    for command in ["history", "triage"] {
        let mut asked = Command::new(program());
        let asked = asked.args([command, "--json", "--state"]).arg(&state).output().await.unwrap();
        let answer: Value = serde_json::from_slice(&asked.stdout).unwrap_or_else(|error| panic!("{error}: {asked:?}"));
        assert!(command == "history" || answer["source"] == "recorder", "{answer}");
    }
}

#[tokio::test]
async fn a_daemon_says_how_long_it_has_recorded_from_its_first_seconds_on() {
    let daemon = Daemon::start().await;
    let file = daemon.folder.path().join("state/recorder.json");
    let mut said = Vec::new();
    let begun = Instant::now();
    while said.last().is_none_or(|ticks| *ticks < 4) {
        assert!(begun.elapsed() < PATIENCE, "{said:?}");
        if let Some(status) = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok()) {
            said.push(status["ticks"].as_u64().unwrap());
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(said.iter().any(|ticks| (1..4).contains(ticks)), "not only at the end: {said:?}");
}

#[tokio::test]
async fn a_stranger_is_turned_away_and_recorded() {
    let daemon = Daemon::start().await;
    // The id is that of what is refused; whoever has asked for nothing gets none.
    for asks in [true, false] {
        let mut stranger = daemon.client_of(STRANGER);
        if asks {
            stranger
                .client
                .send(&json!({ "jsonrpc": "2.0", "id": "first", "method": "initialize", "params": {} }))
                .await;
        }
        let told = stranger.client.next().await;
        assert!(told["error"]["message"].as_str().unwrap().contains("user 70003 may not connect"), "{told}");
        assert_eq!(told["id"], if asks { json!("first") } else { Value::Null });
        assert_eq!(stranger.ended().await, Some(0));
    }
    let audit = daemon.audit();
    let turned = audit.iter().find(|line| line["event"] == "turned_away").unwrap();
    assert_eq!(turned["principal"], "uid:70003");
}

#[tokio::test]
async fn a_client_that_is_killed_ends_its_own_executions_and_no_others() {
    let daemon = Daemon::start().await;
    let recorders = daemon.recorders().await;
    let (mut alice, mut bob) = (daemon.client(ALICE).await, daemon.client(BOB).await);
    let of_bob = background(&mut bob.client).await;
    let with_bob = programs_held(daemon.pid());
    let of_alice = background(&mut alice.client).await;
    let of_alice_alone: Vec<u32> = difference(&programs_held(daemon.pid()), &with_bob);
    assert!(!of_alice_alone.is_empty() && with_bob.len() > recorders.len());
    alice.signal(libc::SIGKILL);
    assert_eq!(left_over(&of_alice_alone).await, [0_u32; 0]);
    assert_eq!(status(&mut bob.client, &of_bob, 0).await, "running");
    let mut root = daemon.root().await;
    assert_eq!(status(&mut root, &of_alice, 20).await, "stopped");
}

fn difference(all: &[u32], without: &[u32]) -> Vec<u32> {
    all.iter().copied().filter(|id| !without.contains(id)).collect()
}

#[tokio::test]
async fn a_daemon_that_is_killed_leaves_nothing_attached_and_can_be_started_anew() {
    let mut daemon = Daemon::start().await;
    let mut alice = daemon.client(ALICE).await;
    background(&mut alice.client).await;
    let script = json!({ "program": "interval:s:1 { @ticks = count(); }", "timeout": 60 });
    let mut root = daemon.root().await;
    root.tool("exec_program", script).await.success();
    daemon.recorders().await;
    wait_for(|| bpftrace_of(daemon.pid()).is_some()).await;
    let (programs, children) = (programs_held(daemon.pid()), descendants(daemon.pid()));
    daemon.child.start_kill().unwrap();
    timeout(PATIENCE, daemon.child.wait()).await.unwrap().unwrap();
    assert_eq!(left_over(&programs).await, [0_u32; 0]);
    assert_eq!(alice.ended().await, Some(0), "who passes bytes on ends with the daemon");
    for child in children {
        wait_for(|| !is_alive(child)).await;
    }
    assert!(daemon.socket().exists(), "nobody was left to remove it");
    daemon.child = Daemon::spawn(Command::new(program()), daemon.folder.path());
    daemon.wait_until_it_serves().await;
    let mut alice = daemon.client(ALICE).await;
    alice.client.tool("list_executions", json!({})).await.success();
}

#[tokio::test]
async fn sigterm_ends_everything_in_order() {
    let mut daemon = Daemon::start().await;
    let mut alice = daemon.client(ALICE).await;
    let running = json!({ "probe": "file_opens", "seconds": 40 });
    alice.client.start_tool("run_probe", running).await;
    daemon.recorders().await;
    let programs = programs_held(daemon.pid());
    // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
    assert_eq!(unsafe { libc::kill(daemon.pid() as i32, libc::SIGTERM) }, 0);
    let status = timeout(PATIENCE, daemon.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(left_over(&programs).await, [0_u32; 0]);
    assert!(!daemon.socket().exists());
    assert_eq!(alice.ended().await, Some(0));
    let events: Vec<_> = daemon.audit().iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["configured", "start", "stop", "end"]);
}

#[tokio::test]
async fn clients_that_do_not_read_or_say_half_of_it_keep_nobody_waiting() {
    let daemon = Daemon::start().await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": { "protocolVersion": "2025-11-25",
            "capabilities": {}, "clientInfo": { "name": "slow", "version": "1" } } });
        stream.write_all(format!("{call}\n").as_bytes()).await.unwrap();
        for id in 2..400 {
            let list = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/list" });
            // Until the server takes no more of it.
            let line = format!("{list}\n");
            if timeout(Duration::from_millis(100), stream.write_all(line.as_bytes())).await.is_err() {
                break;
            }
        }
        slow.push(stream);
    }
    let mut half = UnixStream::connect(daemon.socket()).await.unwrap();
    half.write_all(b"{\"jsonrpc\":\"2.0\",").await.unwrap();
    let mut alice = daemon.client(ALICE).await;
    let found = alice.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await;
    assert_eq!(found.success()["status"], "completed");
}

/// Asks and asks, and reads no answer, until the server takes no more or so many were sent.
async fn flood(client: &mut Client) {
    for id in 1000..11_000 {
        let list = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/list" });
        if timeout(Duration::from_millis(500), client.send(&list)).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn floods_and_deaf_and_dying_clients_do_not_touch_what_another_runs() {
    let daemon = Daemon::start().await;
    let mut bob = daemon.client(BOB).await;
    let of_bob = background(&mut bob.client).await;
    let before = own_memory(daemon.pid());
    let (mut crowd, mut of_alice) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut alice = daemon.client(ALICE).await;
        of_alice.push(background(&mut alice.client).await);
        alice.client.start_tool("stop_execution", json!({ "execution_id": of_bob })).await;
        flood(&mut alice.client).await;
        crowd.push(alice);
    }
    let begun = Instant::now();
    let found = bob.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await.success();
    assert_eq!(found["status"], "completed");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let grown = own_memory(daemon.pid()).saturating_sub(before);
    assert!(grown < 200 << 20, "{} MB more", grown >> 20);
    assert_eq!(status(&mut bob.client, &of_bob, 0).await, "running");
    for alice in &crowd {
        alice.signal(libc::SIGKILL);
    }
    let mut root = daemon.root().await;
    for id in &of_alice {
        assert_eq!(status(&mut root, id, 20).await, "stopped", "what the dead have started ends");
    }
    assert_eq!(status(&mut bob.client, &of_bob, 0).await, "running");
}

#[tokio::test]
async fn a_line_without_end_is_refused_at_a_megabyte() {
    let daemon = Daemon::start().await;
    let mut root = daemon.root().await;
    root.line(&vec![b'x'; 3 << 20]).await;
    let refused = root.next().await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("1048576 bytes"), "{refused}");
    root.tool("list_executions", json!({})).await.success();
}

#[tokio::test]
async fn one_user_cannot_take_all_connections() {
    let daemon = Daemon::start_with("connections = 4\nconnections_each = 2").await;
    let (first, _second) = (daemon.client(ALICE).await, daemon.client(ALICE).await);
    let mut third = daemon.client_of(ALICE);
    let told = third.client.next().await;
    assert!(told["error"]["message"].as_str().unwrap().contains("too many connections"), "{told}");
    daemon.client(BOB).await;
    daemon.root().await;
    drop(first);
    let begun = Instant::now();
    loop {
        let mut again = daemon.client_of(ALICE);
        let id = again.client.start("ping", json!({})).await;
        // Whoever is let in is answered; who is not, is told so with no id.
        match timeout(PATIENCE, again.client.next_or_end()).await.unwrap() {
            Some(message) if message["id"] == id => break,
            _ => assert!(begun.elapsed() < PATIENCE, "the place of one that has left is not given back"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_socket_that_systemd_hands_over_is_used() {
    let folder = Daemon::folder("");
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(program()).stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let child = Daemon::spawn(command, folder.path());
    let daemon = Daemon { child, folder };
    let mut root = daemon.root().await;
    root.tool("list_executions", json!({})).await.success();
}

#[tokio::test]
async fn a_second_daemon_does_not_take_the_socket_of_the_first() {
    let daemon = Daemon::start().await;
    let mut command = Command::new(program());
    command.args(["daemon", "--print", "--socket"]).arg(daemon.socket()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another daemon serves"), "{output:?}");
    daemon.root().await;
}

/// A daemon that serves over HTTP too, as the configuration or the flag says.
async fn over_http(by_flag: bool) -> HttpServer {
    let folder = Daemon::folder("");
    let (config, tokens) = (folder.path().join("config.toml"), folder.path().join("tokens"));
    write_private(&tokens, &format!("alice {ALICES_TOKEN}\nbob {BOBS_TOKEN}\n"));
    let mut command = Command::new(program());
    command.arg("daemon").arg("--config").arg(&config);
    if by_flag {
        command.args(["--http", "127.0.0.1:0", "--http-tokens"]).arg(&tokens);
    } else {
        let http = format!("\n[http]\nlisten = true\naddress = \"127.0.0.1:0\"\ntokens = \"{}\"\n", tokens.display());
        fs::write(&config, fs::read_to_string(&config).unwrap() + &http).unwrap();
    }
    HttpServer::of(command, folder).await
}

#[tokio::test]
async fn it_serves_over_http_beside_its_socket() {
    for by_flag in [false, true] {
        let daemon = over_http(by_flag).await;
        let long = json!({ "probe": "syscall_counts", "seconds": 600, "background": true });
        let id = daemon.tool(ALICES_TOKEN, "run_probe", long).await.success()["execution_id"].clone();
        // By name of the token, as over HTTP alone.
        let of_bob = daemon.tool(BOBS_TOKEN, "get_result", json!({ "execution_id": id })).await;
        assert!(of_bob.is_error, "{}", of_bob.text);
        let guess = Ask::message(&"x".repeat(40), &stateless("tools/list", json!({})));
        assert_eq!(daemon.ask(&guess).await.status, 401);
        // The executions of both ways in are the same.
        let socket = daemon.folder().join("socket");
        let (read, write) = UnixStream::connect(socket).await.unwrap().into_split();
        let mut root = Client::new(read, write);
        root.initialize("2025-11-25").await;
        assert_eq!(status(&mut root, &id, 0).await, "running");
        let stopped = root.tool("stop_execution", json!({ "execution_id": id })).await.success();
        assert_eq!(stopped["status"], "stopped");
        let seen = daemon.tool(ALICES_TOKEN, "get_result", json!({ "execution_id": id })).await.success();
        assert_eq!(seen["status"], "stopped");
        let audit = fs::read_to_string(daemon.folder().join("audit.jsonl")).unwrap();
        let start = audit.lines().find(|line| line.contains("\"event\":\"start\"")).unwrap();
        let start: Value = serde_json::from_str(start).unwrap();
        assert_eq!((&start["principal"], &start["transport"]), (&json!("token:alice"), &json!("http")), "{start}");
    }
}

/// It takes CAP_CHOWN to give the socket to a group, and CAP_NET_BIND_SERVICE to bind a low port; once both are done nobody has them.
#[tokio::test]
async fn what_only_the_start_needs_is_gone_after_it() {
    let folder = Daemon::folder("group = \"daemon\"\n[http]\naddress = \"127.7.7.7:81\"");
    let tokens = folder.path().join("tokens");
    write_private(&tokens, &format!("alice {ALICES_TOKEN}\n"));
    let mut command = Command::new(program());
    command.arg("daemon").arg("--config").arg(folder.path().join("config.toml"));
    command.arg("--http").arg("127.7.7.7:81").arg("--http-tokens").arg(&tokens);
    let daemon = HttpServer::of(command, folder).await;
    let list = Ask::message(ALICES_TOKEN, &stateless("tools/list", json!({})));
    assert_eq!(daemon.ask(&list).await.status, 200);
    let group = fs::metadata(daemon.folder().join("socket")).unwrap().gid();
    assert_eq!(group, 1, "daemon's");
    assert_has_shed(daemon.pid());
}

#[tokio::test]
async fn http_that_is_not_safe_ends_the_start() {
    let folder = Daemon::folder("");
    for (arguments, want) in [(&["--http"][..], "HTTP needs a token"), (&["--http", "0.0.0.0:0"], "--tls-cert")] {
        let mut command = Command::new(program());
        command.arg("daemon").arg("--config").arg(folder.path().join("config.toml")).args(arguments);
        let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(want), "{said}");
        assert!(!folder.path().join("socket").exists(), "nothing is left of it");
    }
}

async fn wait_for(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "it does not come");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Twelve connections ask for 40 MB each and read none of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cost_bounded_memory_and_nobodys_time() {
    let daemon = Daemon::start_with("[limits]\nexecution_percent = 400").await;
    let mut root = daemon.root().await;
    let mut workload = workload!();
    let arguments =
        json!({ "probe": "file_opens", "filter": { "pid": workload.pid() }, "seconds": 600, "background": true });
    let id = root.tool("run_probe", arguments).await.success()["execution_id"].clone();
    workload.run(&format!("flood 1 40000 {}", hex("/etc/../etc/../etc/../etc/../etc/../etc/passwd")));
    let page = json!({ "execution_id": id, "limit": 10_000, "max_bytes": 1_048_576 });
    // One that is read: what the answers of one client take at all.
    root.tool("get_result", page.clone()).await.success();
    let before = own_memory(daemon.pid());
    let mut silent = Vec::new();
    for _ in 0..12 {
        let mut client = daemon.root().await;
        for _ in 0..40 {
            client.start_tool("get_result", page.clone()).await;
        }
        silent.push(client);
    }
    let (mut most, mut longest) = (0, Duration::ZERO);
    for _ in 0..8 {
        let asked = Instant::now();
        let mut alice = daemon.client(ALICE).await;
        let started = background(&mut alice.client).await;
        alice.client.tool("stop_execution", json!({ "execution_id": started })).await.success();
        longest = longest.max(asked.elapsed());
        most = most.max(own_memory(daemon.pid()).saturating_sub(before));
        sleep(Duration::from_millis(500)).await;
    }
    println!("{} MB more, and a start and a stop take {longest:?}", most >> 20);
    assert!(most < 128 << 20, "{} MB more while nobody reads", most >> 20);
    assert!(longest < Duration::from_secs(10), "others wait for {longest:?}");
    drop(silent);
    let gone = Instant::now();
    while own_memory(daemon.pid()).saturating_sub(before) > 24 << 20 {
        let kept = own_memory(daemon.pid()).saturating_sub(before) >> 20;
        assert!(gone.elapsed() < Duration::from_secs(20), "{kept} MB are kept");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Its rows take twenty times what is kept of them.
#[tokio::test]
async fn keeping_a_large_result_leaves_its_events_in_memory_and_no_more() {
    let daemon = Daemon::start().await;
    let (mut root, mut workload) = (daemon.root().await, workload!());
    let probe = json!({ "probe": "file_opens", "filter": { "pid": workload.pid() }, "seconds": 3, "background": true });
    let before = own_memory(daemon.pid());
    let id = root.tool("run_probe", probe).await.success()["execution_id"].clone();
    let opens = workload.run(&format!("flood 1 40000 {}", hex("/etc/../etc/../etc/../etc/passwd")))[0];
    assert_eq!(status(&mut root, &id, 50).await, "completed");
    let kept = Kept::read(&daemon.folder.path().join("state")).unwrap().load(id.as_str().unwrap()).unwrap().unwrap().1;
    assert!(kept.notes.iter().any(|note| note.contains("rows were not kept")), "{opens} opens: {:?}", kept.notes);
    let grown = own_memory(daemon.pid()).saturating_sub(before);
    assert!(grown < 40 << 20, "{} MB more for 8 MB of events", grown >> 20);
}
