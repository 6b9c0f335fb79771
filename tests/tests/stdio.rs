//! The program as a client starts it, over its standard streams.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use mcptrace_tests::{
    mcp::{Answer, ServerProcess, left_over},
    program::{assert_has_shed, bpftrace_of, descendants, is_alive, may_do, program},
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const LONG: &str = "file_opens";

/// A server with a probe at work that somebody waits for, the call's id, and the programs it has attached.
async fn busy() -> (ServerProcess, u64, Vec<u32>) {
    let mut server = ServerProcess::start().await;
    let id = server.client.start_tool("run_probe", json!({ "probe": LONG, "seconds": 40 })).await;
    let programs = server.wait_attached().await;
    (server, id, programs)
}

fn code(message: &Value) -> i64 {
    message["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {message}"))
}

#[tokio::test]
async fn lines_that_are_no_messages_are_answered_and_the_server_lives() {
    let mut server = ServerProcess::start().await;
    let client = &mut server.client;
    for (line, want) in [
        ("garbage", -32700),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,", -32700),
        ("\u{0}\u{1}\u{1b}[31m", -32700),
        ("[]", -32600),
        ("17", -32600),
        ("{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"ping\"}", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":900,\"method\":\"tools/call\",\"params\":[]}", -32602),
        ("{\"jsonrpc\":\"2.0\",\"id\":901,\"method\":\"tools/call\",\"params\":{\"name\":5}}", -32602),
        ("{\"jsonrpc\":\"2.0\",\"id\":902,\"method\":\"tools/cal\"}", -32601),
    ] {
        client.line(line.as_bytes()).await;
        let answer = client.next().await;
        assert_eq!(code(&answer), want, "{line}: {answer}");
    }
    client.line(b"").await;
    client.line(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/nonsense\"}").await;
    assert!(client.request("ping", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn a_notification_before_the_first_request_is_no_end() {
    let mut server = ServerProcess::spawn(&[]);
    let client = &mut server.client;
    client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    client.send(&json!({ "jsonrpc": "2.0", "id": 5, "result": {} })).await;
    let early = client.request("tools/list", json!({})).await;
    assert_eq!(code(&early), -32602, "a stateless request says its version");
    assert_eq!(client.initialize("2025-06-18").await["protocolVersion"], "2025-06-18");
}

#[tokio::test]
async fn a_line_that_is_too_long_is_refused_in_bounded_memory() {
    let mut server = ServerProcess::start().await;
    let piece = vec![b'x'; 1 << 20];
    let mut line = b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"".to_vec();
    for _ in 0..64 {
        line.extend_from_slice(&piece);
    }
    line.extend_from_slice(b"\"}");
    server.client.line(&line).await;
    let answer = server.client.next().await;
    assert_eq!(code(&answer), -32600);
    assert!(answer["error"]["message"].as_str().unwrap().contains("16777216 bytes"), "{answer}");
    assert!(server.client.request("ping", json!({})).await["result"].is_object());
    let kilobytes = peak_kilobytes(server.pid());
    assert!(kilobytes < 96 << 10, "{kilobytes} KB for a line of 64 MB");
}

fn peak_kilobytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn two_thousand_calls_at_once_are_all_answered() {
    let mut server = ServerProcess::start().await;
    let mut open = std::collections::BTreeMap::new();
    for number in 0..2000 {
        let (tool, arguments) = match number % 20 {
            0 => ("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.1 })),
            1 => ("get_result", json!({ "execution_id": "exec_0" })),
            2 => ("list_probes", json!({})),
            3 => ("run_probe", json!({ "probe": "nothing" })),
            _ => ("list_executions", json!({})),
        };
        // Written before anything is read: the server must go on reading while its answers wait.
        open.insert(server.client.start_tool(tool, arguments).await, number % 20);
    }
    let mut run = 0;
    while !open.is_empty() {
        let message = server.client.next().await;
        let Some(id) = message["id"].as_u64() else { continue };
        let kind = open.remove(&id).expect("an id that was asked for, once");
        let answer = Answer::of(&message);
        match kind {
            0 if answer.is_error => assert_eq!(answer.structured["category"], "busy", "{}", answer.text),
            0 => run += 1,
            1 | 3 => assert!(answer.is_error),
            _ => assert!(!answer.is_error, "{}", answer.text),
        }
    }
    assert!(run > 0, "not one of 100 runs found a place");
    assert!(server.client.request("ping", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn more_calls_than_the_limit_are_refused_not_kept() {
    let mut server = ServerProcess::start().await;
    let background = json!({ "probe": LONG, "seconds": 60, "background": true });
    let id = server.client.tool("run_probe", background).await.success()["execution_id"].clone();
    for _ in 0..4200 {
        let arguments = json!({ "execution_id": id, "wait_seconds": 50 });
        // Without a progress token: this is about calls, not about what they tell.
        server.client.start("tools/call", json!({ "name": "get_result", "arguments": arguments })).await;
    }
    let refused = loop {
        let message = server.client.next().await;
        if message.get("error").is_some() {
            break message;
        }
    };
    assert_eq!(code(&refused), -32600);
    assert!(refused["error"]["message"].as_str().unwrap().contains("4096"), "{refused}");
}

#[tokio::test]
async fn standard_output_is_the_protocol_and_nothing_else() {
    let mut server = ServerProcess::spawn(&[("MCPTRACE_LOG", "trace")]);
    server.client.initialize("2025-11-25").await;
    let run = server.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.2 })).await;
    assert!(!run.is_error, "{}", run.text);
    server.client.tool("exec_program", json!({ "program": "nonsense" })).await;
    server.client.close().await;
    // Every line is JSON, or this fails.
    while let Some(message) = server.client.next_or_end().await {
        assert_eq!(message["jsonrpc"], "2.0");
    }
}

#[tokio::test]
async fn a_client_that_closes_stdin_during_a_call_ends_everything() {
    let (mut server, _, programs) = busy().await;
    let closed = Instant::now();
    server.client.close().await;
    assert_eq!(server.ended().await, Some(0));
    assert!(closed.elapsed() < Duration::from_secs(20), "it did not wait for the 40 s of the call");
    assert_eq!(left_over(&programs).await, [0_u32; 0]);
}

#[tokio::test]
async fn a_client_that_closes_stdin_leaves_no_bpftrace() {
    let mut server = ServerProcess::start().await;
    let program = "BEGIN { printf(\"begun\\n\"); } interval:s:1 { @ticks = count(); }";
    let id = server.client.tool("exec_program", json!({ "program": program, "timeout": 60 })).await.success();
    let id = id["execution_id"].clone();
    for _ in 0..200 {
        let found = server.client.tool("get_result", json!({ "execution_id": id })).await.success();
        if found["output"].as_array().unwrap().iter().any(|line| line == "begun") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bpftrace_of(server.pid()).is_some(), "bpftrace is a child of the launcher");
    let children = descendants(server.pid());
    server.client.close().await;
    assert_eq!(server.ended().await, Some(0));
    assert_eq!(still_running(&children).await, [0_u32; 0]);
}

#[tokio::test]
async fn a_client_that_says_nothing_and_leaves_is_no_error() {
    let mut server = ServerProcess::spawn(&[]);
    server.client.close().await;
    assert_eq!(server.ended().await, Some(0));
}

#[tokio::test]
async fn signals_end_it_cleanly_during_a_call() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (mut server, _, programs) = busy().await;
        server.signal(signal);
        assert_eq!(server.ended().await, Some(0), "signal {signal}");
        assert_eq!(left_over(&programs).await, [0_u32; 0]);
    }
}

#[tokio::test]
async fn sigkill_leaves_nothing_attached_and_no_bpftrace() {
    let (mut server, _, programs) = busy().await;
    let program = "interval:s:1 { @ticks = count(); }";
    server.client.tool("exec_program", json!({ "program": program, "timeout": 60 })).await.success();
    while bpftrace_of(server.pid()).is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let processes = descendants(server.pid());
    assert!(processes.len() >= 2, "launcher and bpftrace: {processes:?}");
    server.signal(libc::SIGKILL);
    assert_eq!(server.ended().await, None);
    assert_eq!(left_over(&programs).await, [0_u32; 0]);
    assert_eq!(still_running(&processes).await, [0_u32; 0]);
}

#[tokio::test]
async fn a_cancelled_call_detaches_and_is_not_answered() {
    let (mut server, id, programs) = busy().await;
    let params = json!({ "requestId": id, "reason": "enough" });
    server.client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params })).await;
    assert_eq!(left_over(&programs).await, [0_u32; 0]);
    let listed = server.client.tool("list_executions", json!({})).await.success();
    assert_eq!(listed["executions"][0]["status"], "stopped");
    assert!(server.client.others.iter().all(|message| message["id"] != id), "{:?}", server.client.others);
}

#[tokio::test]
async fn stopping_detaches_before_it_answers() {
    let mut server = ServerProcess::start().await;
    let arguments = json!({ "probe": LONG, "seconds": 60, "background": true });
    let begun = server.client.tool("run_probe", arguments).await.success();
    assert_eq!(begun["status"], "running");
    let programs = server.bpf_programs();
    assert!(!programs.is_empty(), "the answer comes when it is attached");
    let stop = json!({ "execution_id": begun["execution_id"] });
    let stopped = server.client.tool("stop_execution", stop.clone()).await.success();
    assert_eq!(stopped["status"], "stopped");
    assert_eq!(left_over(&programs).await, [0_u32; 0]);
    assert_eq!(server.client.tool("stop_execution", stop).await.success()["status"], "stopped", "twice is as once");
}

/// Those of these processes that do not end. Zombies have ended: whoever is their parent by now may not reap.
async fn still_running(processes: &[u32]) -> Vec<u32> {
    let mut left = Vec::new();
    for _ in 0..200 {
        left = processes.iter().copied().filter(|pid| is_alive(*pid)).collect();
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    left
}

/// A daemon at work on a folder. It is killed when this is dropped.
async fn recorder(folder: &Path) -> Child {
    let mut daemon = Command::new(program());
    daemon.args(["daemon", "--no-syscalls", "--state"]).arg(folder).stdin(Stdio::null()).stderr(Stdio::null());
    let daemon = daemon.kill_on_drop(true).spawn().unwrap();
    for _ in 0..600 {
        if mcptrace::recorder::status::read(folder).is_some_and(|status| status.ticks > 0) {
            return daemon;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not record");
}

#[tokio::test]
async fn results_outlast_the_server_where_there_is_a_history() {
    let folder = tempfile::tempdir().unwrap();
    let state = [("MCPTRACE_STATE", folder.path().to_str().unwrap())];
    let recorder = recorder(folder.path()).await;
    let mut first = ServerProcess::spawn(&state);
    first.client.initialize("2025-11-25").await;
    let info = first.client.tool("bpf_info", json!({})).await.success();
    assert!(info["recorder"]["ticks"].as_u64().unwrap() > 0, "{}", info["recorder"]);
    let run = first.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await.success();
    let id = run["execution_id"].clone();
    drop(first);
    drop(recorder);
    let mut second = ServerProcess::spawn(&state);
    second.client.initialize("2025-11-25").await;
    let listed = second.client.tool("list_executions", json!({})).await.success();
    assert_eq!((&listed["kept"][0]["execution_id"], &listed["executions"]), (&id, &json!([])));
    let kept = second.client.tool("get_result", json!({ "execution_id": id, "limit": 5 })).await.success();
    assert_eq!((&kept["status"], &kept["loss"], &kept["window"]), (&json!("completed"), &run["loss"], &run["window"]));
    assert_eq!(kept["report"]["rows"][0], run["report"]["rows"][0]);
    let info = second.client.tool("bpf_info", json!({})).await.success();
    assert_eq!(info.get("recorder"), None, "nobody records any more");
}

#[tokio::test]
async fn a_server_keeps_what_tracing_needs_and_can_gain_nothing() {
    // CAP_SETUID, CAP_SETPCAP, CAP_KILL, CAP_DAC_OVERRIDE: what building a box takes.
    const OF_THE_LAUNCHER: u64 = 1 << 7 | 1 << 8 | 1 << 5 | 1 << 1;
    for scripts in ["never", "policy"] {
        let mut command = Command::new(program());
        command.args(["serve", "--allow-scripts", scripts]);
        let mut server = ServerProcess::start_by(command).await;
        let run = server.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await.success();
        assert!(run["loss"]["seen"].as_u64().unwrap() > 0, "{run}");
        assert_has_shed(server.pid());
        assert!(may_do(server.pid()).iter().all(|(permitted, ..)| permitted & OF_THE_LAUNCHER == 0), "{scripts}");
    }
}
