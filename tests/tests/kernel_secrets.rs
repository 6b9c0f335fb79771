//! Secrets of programs: planted in arguments, the environment, names that are looked up, texts of USDT probes and files, while a daemon
//! traces in every way; then searched for in every reply, in its log, in the audit log and in its history. Needs root.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mcptrace_tests::{
    mcp::{Answer, Client, PATIENCE},
    program::program,
    workload::Workload,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

/// In every secret. The text of the workload's USDT probe is this word alone.
const SECRET: &str = "hunter2";
const WORKLOAD: &str = env!("CARGO_BIN_EXE_function_workload");

/// Plants secrets again and again.
struct Planter {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Planter {
    fn start() -> Self {
        let over = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("file");
            let mut workload = Workload::start(WORKLOAD);
            while !stop.load(Relaxed) {
                let mut cat = std::process::Command::new("/bin/cat");
                cat.args([&format!("--password={SECRET}argument"), &format!("-p{SECRET}short"), SECRET]);
                cat.env("TOKEN", format!("{SECRET}environment")).stdout(Stdio::null()).stderr(Stdio::null());
                cat.status().unwrap();
                workload.run(&format!("lookup 1 {SECRET}.name.example"));
                workload.run("usdt 1 5");
                fs::write(&file, format!("{SECRET}content")).unwrap();
                fs::read(&file).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Planter {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A daemon whose files are all in one folder.
struct Daemon {
    child: Child,
    folder: TempDir,
    client: Client,
    /// All that it answered.
    said: Vec<String>,
}

impl Daemon {
    async fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let text = format!(
            "[socket]\npath = \"{path}/socket\"\n[audit]\nto = \"{path}/audit.jsonl\"\n[recorder]\nstate = \"{path}/state\"\n\
             [limits]\nexecution_percent = 0.0\n{settings}"
        );
        fs::write(folder.path().join("config.toml"), text).unwrap();
        let mut command = Command::new(program());
        command.arg("daemon").arg("--config").arg(folder.path().join("config.toml")).env("MCPTRACE_LOG", "trace");
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let begun = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(folder.path().join("socket")).await {
                break stream;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not serve");
            sleep(Duration::from_millis(50)).await;
        };
        let (read, write) = stream.into_split();
        let mut client = Client::new(read, write);
        client.initialize("2025-11-25").await;
        Self { child, folder, client, said: Vec::new() }
    }

    async fn request(&mut self, method: &str, params: Value) -> Value {
        let answer = self.client.request(method, params).await;
        self.said.push(answer.to_string());
        answer
    }

    async fn tool(&mut self, name: &str, arguments: Value) -> Answer {
        Answer::of(&self.request("tools/call", json!({ "name": name, "arguments": arguments })).await)
    }

    /// What an execution has found in the end, and after it was read as a resource.
    async fn result(&mut self, id: &Value) -> Value {
        let begun = Instant::now();
        let found = loop {
            let asked = json!({ "execution_id": id, "wait_seconds": 20, "limit": 1000 });
            let found = self.tool("get_result", asked).await.success();
            if found["status"] != "running" {
                break found;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {found}");
        };
        let uri = format!("mcptrace://executions/{}", id.as_str().unwrap());
        self.request("resources/read", json!({ "uri": uri })).await;
        found
    }

    async fn probe(&mut self, name: &str, options: Value) -> Value {
        let call = json!({ "probe": name, "seconds": 2, "options": options, "background": true });
        let id = self.tool("run_probe", call).await.success()["execution_id"].clone();
        self.result(&id).await
    }

    async fn script(&mut self, arguments: Value) -> Value {
        let id = self.tool("exec_program", arguments).await.success()["execution_id"].clone();
        self.result(&id).await
    }

    /// Ends it in order, so that all is written.
    async fn end(&mut self) {
        // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().unwrap() as i32, libc::SIGTERM) }, 0);
        assert_eq!(timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code(), Some(0));
    }

    /// Every file that it wrote.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        list(self.folder.path(), &mut found);
        found.retain(|file| !file.ends_with("config.toml"));
        found
    }
}

fn list(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => list(&entry.path(), found),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Programs that would show what was planted.
fn spies() -> Vec<String> {
    let libc = libc_path();
    vec![
        "tracepoint:syscalls:sys_enter_execve { join(args->argv); }".to_owned(),
        "tracepoint:syscalls:sys_enter_execve { printf(\"%s\\n\", str(args->argv[1])); }".to_owned(),
        "tracepoint:syscalls:sys_enter_execve { join(args->envp); }".to_owned(),
        "tracepoint:syscalls:sys_enter_write { @[str(args->buf, args->count)] = count(); }".to_owned(),
        "tracepoint:syscalls:sys_enter_write { @[buf(args->buf, 32)] = count(); }".to_owned(),
        "tracepoint:syscalls:sys_enter_write { @[((struct new_utsname *)args->buf)->sysname] = count(); }".to_owned(),
        "tracepoint:syscalls:sys_enter_write { @b = args->buf; } tracepoint:sched:sched_switch { $u = (struct new_utsname *)@b; @[$u->sysname] = count(); }".to_owned(),
        "tracepoint:net:net_dev_queue { $s = (struct sk_buff *)args->skbaddr; $u = (struct new_utsname *)($s->data + 54); @[$u->sysname] = count(); }".to_owned(),
        "tracepoint:syscalls:sys_enter_write { @[macaddr(args->buf), macaddr(args->buf + 6)] = count(); }".to_owned(),
        "struct text { char path[32]; } tracepoint:syscalls:sys_enter_write { @[((struct text *)args->buf)->path] = count(); }".to_owned(),
        "kprobe:ksys_write { @[str(arg1, arg2)] = count(); }".to_owned(),
        "tracepoint:sched:sched_process_exec { @[((struct new_utsname *)curtask->mm->arg_start)->sysname] = count(); }".to_owned(),
        format!("uprobe:{libc}:getaddrinfo {{ printf(\"%s\\n\", str(arg0)); }}"),
        format!("usdt:{WORKLOAD}:mcptrace:tick {{ printf(\"%s\\n\", str(arg4)); }}"),
        format!("uprobe:{libc}:getaddrinfo {{ @[((struct new_utsname *)arg0)->sysname] = count(); }}"),
    ]
}

/// The C library of this process.
fn libc_path() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/libc.so"));
    path.expect("a C library").to_owned()
}

#[tokio::test]
async fn planted_secrets_are_in_no_reply_no_log_and_no_history() {
    let _planter = Planter::start();
    let mut daemon = Daemon::start("[scripts]\nprograms = true\n").await;
    let mut seen = 0;
    for (probe, options) in [
        ("process_exec", json!({})),
        ("dns_latency", json!({})),
        ("usdt_events", json!({ "binary": WORKLOAD, "usdt": "mcptrace:tick", "texts": "4" })),
        ("file_opens", json!({})),
        ("file_io", json!({})),
        ("process_exit", json!({})),
        ("privileged_actions", json!({})),
        ("offcpu_stacks", json!({})),
    ] {
        let found = daemon.probe(probe, options).await.to_string();
        // Lengths of what was planted, which is how it is seen.
        seen +=
            usize::from(found.contains("<15 bytes>") || found.contains("<20 bytes #") || found.contains("<7 bytes #"));
    }
    assert_eq!(seen, 3, "something was planted and not seen: {:#?}", daemon.said);
    for program in spies() {
        let refused = daemon.tool("exec_program", json!({ "program": program, "timeout": 3 })).await;
        assert!(refused.is_error && refused.text.contains("secrets.reveal"), "{program}: {}", refused.text);
    }
    let names = "tracepoint:syscalls:sys_enter_execve { @[comm, str(args->filename)] = count(); }";
    let found = daemon.script(json!({ "program": names, "timeout": 4 })).await;
    assert!(found.to_string().contains("/bin/cat"), "names of files are shown: {found}");
    for script in ["memory_file_use", "file_removals", "datagram_peers"] {
        daemon.script(json!({ "script": script, "timeout": 2 })).await;
    }
    for (tool, arguments) in [
        ("triage", json!({})),
        ("triage", json!({ "seconds": 2 })),
        ("bpf_info", json!({})),
        ("list_executions", json!({})),
        ("query_history", json!({ "metric": "cpu_time" })),
        ("query_history", json!({ "sql": "SELECT * FROM events LIMIT 1000" })),
    ] {
        daemon.tool(tool, arguments).await;
    }
    for method in ["resources/list", "resources/templates/list", "prompts/list", "tools/list"] {
        daemon.request(method, json!({})).await;
    }
    daemon.end().await;
    let said = daemon.said.iter().find(|answer| answer.contains(SECRET));
    assert!(said.is_none(), "{said:?}");
    let files = daemon.files();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    for wanted in ["log", "audit.jsonl"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    assert!(files.iter().any(|file| file.starts_with(daemon.folder.path().join("state"))), "no history: {names:?}");
    for file in files {
        assert!(!holds(&fs::read(&file).unwrap(), SECRET), "{}", file.display());
    }
}

/// What the search above would find if it was there: the same programs show it once the operator says so.
#[tokio::test]
async fn what_the_operator_reveals_is_shown() {
    let _planter = Planter::start();
    let settings = "[scripts]\nprograms = true\n[secrets]\nreveal = [\"all\"]\n";
    let mut daemon = Daemon::start(settings).await;
    let found = daemon.probe("process_exec", json!({})).await.to_string();
    assert!(found.contains("--password=hunter2argument"), "{found}");
    let found = daemon.probe("dns_latency", json!({})).await.to_string();
    assert!(found.contains("hunter2.name.example"), "{found}");
    // bpftrace cannot attach to functions of programs on every kernel.
    for (part, want) in [("join(args->argv)", "hunter2argument"), ("str(args->buf", "hunter2content")] {
        let program = spies().into_iter().find(|program| program.contains(part)).unwrap();
        let found = daemon.script(json!({ "program": program, "timeout": 4 })).await.to_string();
        assert!(found.contains(want), "{program}: {found}");
    }
    daemon.end().await;
}
