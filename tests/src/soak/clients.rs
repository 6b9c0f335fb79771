//! Clients of every kind, all at once.

use std::{
    fs,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    process::Command,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use super::daemon::Daemon;
use crate::mcp::Answer;

/// What clients did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Probes that ran to their end and whose result was read.
    pub probes: u64,
    /// Executions that were stopped or cancelled.
    pub stopped: u64,
    /// Calls that were refused, or should have been.
    pub refused: u64,
    /// Clients that died while something ran.
    pub died: u64,
    /// Scripts that ran to their end.
    pub scripts: u64,
    /// Questions about the past.
    pub past: u64,
    /// Lists, descriptions, resources and prompts.
    pub other: u64,
}

#[derive(Debug, Default)]
struct Counts {
    probes: AtomicU64,
    stopped: AtomicU64,
    refused: AtomicU64,
    died: AtomicU64,
    scripts: AtomicU64,
    past: AtomicU64,
    other: AtomicU64,
    over: AtomicBool,
}

impl Counts {
    fn add(count: &AtomicU64) {
        count.fetch_add(1, Relaxed);
    }

    fn done(&self) -> Done {
        Done {
            probes: self.probes.load(Relaxed),
            stopped: self.stopped.load(Relaxed),
            refused: self.refused.load(Relaxed),
            died: self.died.load(Relaxed),
            scripts: self.scripts.load(Relaxed),
            past: self.past.load(Relaxed),
            other: self.other.load(Relaxed),
        }
    }
}

/// All clients of a round.
pub(super) struct Crowd {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

/// What a client does, again and again; the number counts how often.
type Act = for<'a> fn(&'a Daemon, &'a Counts, u64) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Each has a task of its own.
const ACTS: &[Act] = &[
    |daemon, counts, turn| Box::pin(trace(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(trace(daemon, counts, turn + 5)),
    |daemon, counts, turn| Box::pin(stop(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(cancel(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(ask_wrongly(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(die(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(script(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(ask_the_past(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(look_around(daemon, counts, turn)),
    |daemon, counts, turn| Box::pin(make_events(daemon, counts, turn)),
];

impl Crowd {
    pub(super) fn start(daemon: &Arc<Daemon>) -> Self {
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        for act in ACTS {
            let (daemon, counts) = (Arc::clone(daemon), Arc::clone(&counts));
            tasks.spawn(async move {
                let mut turn = 0;
                while !counts.over.load(Relaxed) {
                    act(&daemon, &counts, turn).await;
                    turn += 1;
                }
            });
        }
        Self { counts, tasks }
    }

    /// Lets each finish what it does, and gives what all did.
    pub(super) async fn end(mut self) -> Done {
        self.counts.over.store(true, Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            result.expect("a client fails");
        }
        self.counts.done()
    }

    /// Drops all connections, in the middle of whatever they are at.
    pub(super) fn abandon(mut self) {
        self.tasks.abort_all();
    }
}

/// Probes with options and filters of all kinds.
fn probes() -> Vec<Value> {
    let pid = std::process::id();
    vec![
        json!({ "probe": "syscall_counts", "seconds": 0.3, "top": 3 }),
        json!({ "probe": "file_opens", "seconds": 0.4 }),
        json!({ "probe": "runq_latency", "seconds": 0.2, "options": { "by": "comm" } }),
        json!({ "probe": "process_exec", "seconds": 0.5 }),
        json!({ "probe": "syscall_latency", "seconds": 0.3, "filter": { "pid": pid, "descendants": true } }),
        json!({ "probe": "cpu_profile", "seconds": 0.5 }),
        json!({ "probe": "file_io", "seconds": 0.3 }),
        json!({ "probe": "offcpu_stacks", "seconds": 0.3 }),
        json!({ "probe": "block_latency", "seconds": 0.2 }),
        json!({ "probe": "page_faults", "seconds": 0.3, "options": { "stacks": true } }),
        json!({ "probe": "tcp_connections", "seconds": 0.2 }),
        json!({ "probe": "function_latency", "seconds": 0.2, "options": { "function": "getpid" } }),
        json!({ "probe": "file_opens", "seconds": 0.3, "options": { "transport": "perf" } }),
    ]
}

/// Runs a probe to its end and reads all pages of what it found.
async fn trace(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let all = probes();
    let answer = client.tool("run_probe", all[turn as usize % all.len()].clone()).await;
    if answer.is_error {
        return Counts::add(&counts.refused);
    }
    let id = answer.structured["execution_id"].clone();
    let mut page = json!({ "execution_id": id, "limit": 50 });
    for _ in 0..3 {
        let answer = client.tool("get_result", page.clone()).await;
        let Some(cursor) = answer.structured.get("next_cursor").filter(|_| !answer.is_error) else { break };
        page["cursor"] = cursor.clone();
    }
    Counts::add(&counts.probes);
}

fn long(turn: u64) -> Value {
    let names = ["file_opens", "syscall_counts", "cpu_slices", "cpu_profile", "process_exit"];
    json!({ "probe": names[turn as usize % names.len()], "seconds": 600, "background": true })
}

/// Starts a probe, looks at it while it runs, and stops it.
async fn stop(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let answer = client.tool("run_probe", long(turn)).await;
    if answer.is_error {
        // All places are taken.
        sleep(Duration::from_millis(50)).await;
        return Counts::add(&counts.refused);
    }
    let id = answer.structured["execution_id"].clone();
    sleep(Duration::from_millis(100 + turn * 37 % 400)).await;
    for tool in ["get_result", "stop_execution"] {
        let answer = client.tool(tool, json!({ "execution_id": id })).await;
        if answer.is_error {
            // Its cost may have ended it, on a machine that is busy, and others have pushed it out then.
            assert_eq!(answer.structured["category"], "expired_execution", "{tool}: {}", answer.text);
            return Counts::add(&counts.refused);
        }
    }
    Counts::add(&counts.stopped);
}

/// Starts a probe that it waits for, and then does not.
async fn cancel(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let mut arguments = long(turn);
    arguments["background"] = false.into();
    let id = client.start_tool("run_probe", arguments).await;
    sleep(Duration::from_millis(50 + turn * 53 % 500)).await;
    let params = json!({ "requestId": id, "reason": "the user changed their mind" });
    client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params })).await;
    client.tool("list_executions", json!({})).await.success();
    Counts::add(&counts.stopped);
}

/// Everything that is refused: names, numbers, scripts, lines that are no JSON.
async fn ask_wrongly(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let wrong = [
        ("run_probe", json!({ "probe": "no_such_probe" })),
        ("run_probe", json!({ "probe": "file_opens", "seconds": 0.2, "options": { "no_such_option": 1 } })),
        ("run_probe", json!({ "probe": "file_opens", "seconds": 1, "filter": { "pid": 4_194_303 } })),
        ("run_probe", json!({ "probe": "usdt_events", "seconds": 1, "options": { "binary": "/no/such/file" } })),
        ("exec_program", json!({ "program": "BEGIN { system(\"id\"); }", "timeout": 1 })),
        ("exec_program", json!({ "program": "tracepoint:no:such { @ = count(); }", "timeout": 1 })),
        ("exec_program", json!({ "program": "BEGIN { @x = ", "timeout": 1 })),
        ("get_result", json!({ "execution_id": "exec_0123456789abcdef" })),
        ("stop_execution", json!({ "execution_id": "exec_0123456789abcdef" })),
        ("query_history", json!({ "metric": "no.such.metric" })),
        ("query_history", json!({ "sql": "DROP TABLE samples" })),
    ];
    for (tool, arguments) in wrong {
        let answer = client.tool(tool, arguments.clone()).await;
        assert!(answer.is_error, "{tool} {arguments}: {}", answer.text);
        Counts::add(&counts.refused);
    }
    if turn.is_multiple_of(4) {
        client.line(b"{\"jsonrpc\": \"2.0\", \"id\": 7, \"method\"").await;
        // Whether it is told or not, the next one is answered.
        client.request("ping", json!({})).await;
        Counts::add(&counts.refused);
    }
    sleep(Duration::from_millis(100)).await;
}

/// Leaves without a word while its probe runs: a connection that breaks, one that breaks within a line, a process that passes bytes on
/// and is killed, a server of its own that is killed.
async fn die(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut arguments = long(turn);
    arguments["background"] = turn.is_multiple_of(2).into();
    let pause = Duration::from_millis(100 + turn * 71 % 300);
    match turn % 8 {
        0 => {
            let mut server = daemon.beside().await;
            server.client.start_tool("run_probe", arguments).await;
            sleep(pause).await;
            server.signal(libc::SIGKILL);
            let _ = server.child.wait().await;
        }
        1 | 4 => {
            let mut user = daemon.user().await;
            user.client.start_tool("run_probe", arguments).await;
            sleep(pause).await;
            user.signal(libc::SIGKILL);
            let _ = user.child.wait().await;
        }
        2 => {
            let mut client = daemon.client().await;
            client
                .start_tool("exec_program", json!({ "program": "interval:ms:100 { @ = count(); }", "timeout": 9 }))
                .await;
            sleep(pause).await;
        }
        _ => {
            let mut client = daemon.client().await;
            client.start_tool("run_probe", arguments).await;
            sleep(pause).await;
            client.line(b"{\"jsonrpc\": \"2.0\", \"id\"").await;
        }
    }
    Counts::add(&counts.died);
}

/// Runs scripts: some to their end, some that say more than is kept, one that is stopped.
async fn script(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let arguments = match turn % 4 {
        0 => json!({ "program": "tracepoint:syscalls:sys_enter_openat { @[comm] = count(); }", "timeout": 1 }),
        1 => json!({ "script": "sleep_requests", "timeout": 1 }),
        2 => {
            json!({ "program": "interval:us:100 { printf(\"%d a line of some length, again and again\\n\", nsecs); }", "timeout": 1 })
        }
        _ => json!({ "program": "tracepoint:sched:sched_switch { @[kstack(4)] = count(); }", "timeout": 30 }),
    };
    let answer = client.tool("exec_program", arguments).await;
    if answer.is_error {
        sleep(Duration::from_millis(50)).await;
        return Counts::add(&counts.refused);
    }
    let id = answer.structured["execution_id"].clone();
    if turn % 4 == 3 {
        sleep(Duration::from_millis(700)).await;
        client.tool("stop_execution", json!({ "execution_id": id })).await;
    }
    // Another may have pushed it out when the machine is busy.
    let Answer { is_error, .. } = client.tool("get_result", json!({ "execution_id": id, "wait_seconds": 20 })).await;
    if !is_error {
        Counts::add(&counts.scripts);
    }
}

/// Questions about what was recorded.
async fn ask_the_past(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let questions = [
        json!({}),
        json!({ "metric": "cpu_process_ns", "from": "-5m" }),
        json!({ "metric": "cpu_process_ns", "from": "-30s", "group_by": "comm", "top": 20 }),
        json!({ "metric": "runq_latency_ns", "from": "-1m", "step": "1s" }),
        json!({ "from": "-10s", "compare_to": "previous" }),
        json!({ "sql": "SELECT metric, count(*) FROM sums GROUP BY metric" }),
    ];
    for question in questions {
        let answer = client.tool("query_history", question.clone()).await;
        // What does not come in time is not asked here; a question that is answered by nobody would be no work.
        let wrong = ["invalid_argument", "unknown_metric", "unknown_label"];
        let category = answer.structured["category"].as_str().unwrap_or_default();
        assert!(!wrong.contains(&category), "{question}: {}", answer.text);
        Counts::add(&counts.past);
    }
    sleep(Duration::from_millis(50 + turn % 3 * 50)).await;
}

/// Lists, descriptions, resources, prompts; now and then a triage.
async fn look_around(daemon: &Daemon, counts: &Counts, turn: u64) {
    let mut client = daemon.client().await;
    let add = || Counts::add(&counts.other);
    client.tool("list_probes", json!({ "filter": "syscalls:*open*" })).await.success();
    client.tool("describe_probe", json!({ "name": "file_opens" })).await.success();
    client.tool("bpf_info", json!({})).await.success();
    (0..3).for_each(|_| add());
    for (method, params) in [
        ("tools/list", json!({})),
        ("resources/list", json!({})),
        ("resources/read", json!({ "uri": "mcptrace://probes/file_opens" })),
        ("prompts/list", json!({})),
        ("ping", json!({})),
    ] {
        let answer = client.request(method, params).await;
        assert!(answer["result"].is_object(), "{method}: {answer}");
        add();
    }
    if turn % 16 == 7 {
        client.tool("triage", json!({ "seconds": 2 })).await;
        add();
    }
}

/// Something to see: programs that start and end, files that are opened in vain, blocks that are written.
async fn make_events(daemon: &Daemon, _counts: &Counts, _turn: u64) {
    let file = daemon.path("written");
    let _ = Command::new("true").status().await;
    let _ = spawn_blocking(move || {
        for _ in 0..200 {
            let _ = fs::File::open("/no/such/file");
        }
        let _ = fs::write(&file, vec![7; 64 << 10]);
        let _ = fs::File::open(&file).and_then(|file| file.sync_all());
    })
    .await;
    sleep(Duration::from_millis(10)).await;
}
