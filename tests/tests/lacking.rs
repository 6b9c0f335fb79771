//! The server where something is lacking: privilege, BTF, tracefs, bpftrace. Each call gets a clear answer and the server lives. Needs root.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{fs, os::unix::fs::PermissionsExt as _};

use mcptrace_tests::{
    mcp::{Answer, ServerProcess},
    program::program,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// A server that a shell becomes after some preparations: `"$@"` are its words.
async fn server_after(preparations: &str) -> ServerProcess {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{preparations} && exec \"$@\""), "sh"]).arg(program());
    ServerProcess::start_by(command).await
}

/// A server of a user with no capabilities, from a folder that every user can reach.
async fn unprivileged_server() -> (TempDir, ServerProcess) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("mcptrace");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command.uid(65_534).gid(65_534);
    (folder, ServerProcess::start_by(command).await)
}

async fn run(server: &mut ServerProcess) -> Answer {
    server.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.2 })).await
}

async fn script(server: &mut ServerProcess) -> Answer {
    server
        .client
        .tool("exec_program", json!({ "program": "BEGIN { printf(\"here\\n\"); exit(); }", "timeout": 10 }))
        .await
}

/// The native probes as `list_probes` tells them: name to why it cannot run.
async fn natives(server: &mut ServerProcess) -> Vec<Value> {
    let listed = server.client.tool("list_probes", json!({ "source": "native" })).await.success();
    listed["native"].as_array().unwrap().clone()
}

/// Calls that a server answers whatever it lacks.
async fn lives(server: &mut ServerProcess) {
    server.client.tool("bpf_info", json!({})).await.success();
    server.client.tool("list_executions", json!({})).await.success();
    server.client.tool("describe_probe", json!({ "name": "runq_latency" })).await.success();
    assert_eq!(server.bpf_programs(), [0_u32; 0], "something stays attached");
}

#[tokio::test]
async fn without_privilege_every_call_says_what_is_missing_and_how_to_get_it() {
    let (_folder, mut server) = unprivileged_server().await;
    let refused = run(&mut server).await;
    assert!(refused.is_error);
    assert!(
        refused.text.contains("lacks CAP_BPF and CAP_PERFMON") && refused.text.contains("setcap"),
        "{}",
        refused.text
    );
    for native in natives(&mut server).await {
        assert_eq!(native["available"], false, "{native}");
        assert!(native["reason"].as_str().unwrap().contains("CAP_BPF"), "{native}");
    }
    let refused = script(&mut server).await;
    assert!(refused.is_error);
    assert!(refused.text.contains("root user") && refused.text.contains("run mcptrace as root"), "{}", refused.text);
    lives(&mut server).await;
}

#[tokio::test]
async fn without_btf_native_probes_say_so_and_scripts_run() {
    let mut server = server_after("mount --bind /dev/null /sys/kernel/btf/vmlinux").await;
    let refused = run(&mut server).await;
    assert!(refused.is_error);
    let told = refused.text.contains("it is empty") && refused.text.contains("CONFIG_DEBUG_INFO_BTF");
    assert!(told, "{}", refused.text);
    assert!(natives(&mut server).await.iter().all(|native| native["available"] == false));
    let started = script(&mut server).await.success();
    let id = started["execution_id"].as_str().unwrap();
    let mut output = Value::Null;
    for _ in 0..100 {
        output = server.client.tool("get_result", json!({ "execution_id": id })).await.success();
        if output["status"] != "running" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(output["output"].to_string().contains("here"), "{output}");
    lives(&mut server).await;
}

/// Nothing can be mounted in its place either.
#[tokio::test]
async fn without_tracefs_native_probes_run_and_lists_say_what_is_missing() {
    let hide = "umount -a -t tracefs; mount -t tmpfs -o ro none /sys/kernel/tracing && mount -t tmpfs -o ro none /sys/kernel/debug";
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        &format!("{hide} && exec setpriv --bounding-set -sys_admin --inh-caps=-all \"$@\""),
        "sh",
    ]);
    command.arg(program());
    let mut server = ServerProcess::start_by(command).await;
    let found = run(&mut server).await.success();
    assert_eq!(found["status"], "completed");
    let listed = server.client.tool("list_probes", json!({ "filter": "tracepoint:syscalls:*read*" })).await.success();
    assert_eq!(listed["count"], 0);
    assert!(listed["notes"].to_string().contains("tracefs"), "an empty list that does not say why: {listed}");
    lives(&mut server).await;
}

#[tokio::test]
async fn without_bpftrace_native_probes_run_and_scripts_say_how_to_install_it() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.env("PATH", nowhere.path());
    let mut server = ServerProcess::start_by(command).await;
    let refused = script(&mut server).await;
    assert!(refused.is_error);
    assert!(refused.text.contains("not installed") && refused.text.contains("install it with"), "{}", refused.text);
    assert_eq!(run(&mut server).await.success()["status"], "completed");
    lives(&mut server).await;
}
