//! The server as root, as a user by capabilities of its file, and as a user by ambient ones as systemd gives them: what it may do, and
//! that it works with exactly what README says. Needs root, setcap (libcap) and setpriv (util-linux).
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use mcptrace_tests::{
    mcp::{Answer, ServerProcess},
    program::{descendants, launcher_of, may_do, program},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const README: &str = include_str!("../../README.md");
const NOBODY: &str = "65534";

/// The capabilities of README's line for native probes, and those of its line for scripts too.
fn of_readme() -> [String; 2] {
    let lines = README.lines().filter_map(|line| line.strip_prefix("sudo setcap ")?.split_once("+ep "));
    let all: Vec<String> = lines.map(|(names, _)| names.to_owned()).collect();
    all.try_into().expect("two lines with setcap")
}

fn names(list: &str) -> BTreeSet<String> {
    list.split(',').map(str::to_uppercase).collect()
}

/// A copy of the program that everybody can start.
fn copy() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("mcptrace");
    fs::copy(program(), &copy).unwrap();
    (folder, copy)
}

/// The same with capabilities.
fn copy_with(capabilities: &str) -> (TempDir, PathBuf) {
    let (folder, copy) = copy();
    let mut setcap = std::process::Command::new("setcap");
    assert!(setcap.arg(format!("{capabilities}+ep")).arg(&copy).status().unwrap().success());
    (folder, copy)
}

fn as_nobody(program: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).args(more).arg(program);
    command
}

/// As systemd starts a unit with `User=` and `AmbientCapabilities=`, whose bounding set has no more.
fn with_ambient(program: &Path, capabilities: &str) -> Command {
    let list: Vec<String> = capabilities.split(',').map(|name| name.replace("cap_", "+")).collect();
    let list = list.join(",");
    as_nobody(
        program,
        &["--inh-caps", &list, "--ambient-caps", &list, "--bounding-set", &format!("-all,{list}"), "--no-new-privs"],
    )
}

async fn traces(server: &mut ServerProcess) {
    let run = server.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.5 })).await.success();
    assert!(run["loss"]["seen"].as_u64().unwrap() > 0, "{run}");
    assert_eq!(run["overhead"]["method"], "measured", "{run}");
}

async fn script(server: &mut ServerProcess) -> Answer {
    let program = "BEGIN { printf(\"here\\n\"); } tracepoint:sched:sched_switch { @switches = count(); } interval:s:1 { exit(); }";
    server.client.tool("exec_program", json!({ "program": program, "timeout": 20 })).await
}

/// A script runs to its end, in a box that is complete.
async fn runs_a_script(server: &mut ServerProcess) {
    let started = script(server).await.success();
    let mut found = Value::Null;
    for _ in 0..600 {
        found = server.client.tool("get_result", json!({ "execution_id": started["execution_id"] })).await.success();
        if found["status"] != "running" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(found["status"], "completed", "{found}");
    let text = found.to_string();
    assert!(text.contains("here") && text.contains("@switches"), "{found}");
    assert!(!text.contains("box lacks") && !text.contains("unboxed"), "{found}");
}

/// What server and launcher hold is what `bpf_info` says that they make use of.
async fn holds(server: &mut ServerProcess, native: &str, scripts: Option<&str>) {
    let info = server.client.tool("bpf_info", json!({})).await.success();
    let held = |rows: &Value| -> BTreeSet<String> {
        let rows = rows.as_array().unwrap();
        assert!(rows.iter().all(|row| row["held"] == true), "{rows:?}");
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let native = names(native);
    assert_eq!(held(&info["process"]["capabilities"]), native);
    if let Some(scripts) = scripts {
        // The line is for the file, so it has what the server needs too.
        let both: BTreeSet<String> = held(&info["scripts"]["capabilities"]).union(&native).cloned().collect();
        assert_eq!(both, names(scripts));
    }
    let (bits, launcher) =
        (|pid| may_do(pid).iter().fold(0, |all, (permitted, ..)| all | permitted), launcher_of(server.pid()));
    assert_eq!(bits(server.pid()).count_ones() as usize, native.len());
    assert!(may_do(server.pid()).iter().all(|(_, _, fixed)| *fixed));
    if let Some(launcher) = launcher {
        assert_eq!(bits(launcher).count_ones() as usize, info["scripts"]["capabilities"].as_array().unwrap().len());
    }
}

#[tokio::test]
async fn root_traces_and_runs_scripts() {
    let mut server = ServerProcess::start_by(Command::new(program())).await;
    traces(&mut server).await;
    runs_a_script(&mut server).await;
    holds(&mut server, &of_readme()[0], None).await;
}

#[tokio::test]
async fn a_user_traces_by_capabilities_of_the_file() {
    let [native, scripts] = of_readme();
    let (_folder, copy) = copy_with(&native);
    let mut server = ServerProcess::start_by(as_nobody(&copy, &[])).await;
    traces(&mut server).await;
    holds(&mut server, &native, None).await;
    assert_eq!(descendants(server.pid()), [0_u32; 0], "nothing that it could do");
    let refused = script(&mut server).await;
    assert!(refused.is_error && refused.text.contains("this process lacks CAP_"), "{}", refused.text);
    // The way to it is the other line.
    let list = refused.text.split("setcap ").nth(1).and_then(|rest| rest.split("+ep").next()).unwrap();
    assert_eq!(names(list), names(&scripts), "{}", refused.text);
}

#[tokio::test]
async fn a_user_runs_scripts_by_capabilities_of_the_file() {
    let [native, scripts] = of_readme();
    let (_folder, copy) = copy_with(&scripts);
    let mut server = ServerProcess::start_by(as_nobody(&copy, &[])).await;
    traces(&mut server).await;
    runs_a_script(&mut server).await;
    holds(&mut server, &native, Some(&scripts)).await;
    // A person is told the same, with the reasons.
    let output = as_nobody(&copy, &[]).arg("doctor").output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in ["yes  CAP_PERFMON          attach programs", "yes  CAP_SETUID           start bpftrace as root"] {
        assert!(said.contains(line), "{said}");
    }
}

#[tokio::test]
async fn a_user_traces_and_runs_scripts_by_ambient_capabilities() {
    let [native, scripts] = of_readme();
    let (_folder, copy) = copy();
    let mut server = ServerProcess::start_by(with_ambient(&copy, &native)).await;
    traces(&mut server).await;
    holds(&mut server, &native, None).await;
    let refused = script(&mut server).await;
    assert!(refused.is_error && refused.text.contains("this process lacks CAP_"), "{}", refused.text);
    drop(server);
    let mut server = ServerProcess::start_by(with_ambient(&copy, &scripts)).await;
    traces(&mut server).await;
    runs_a_script(&mut server).await;
    holds(&mut server, &native, Some(&scripts)).await;
}

#[tokio::test]
async fn whoever_starts_a_file_with_capabilities_does_not_choose_what_it_runs_and_reads() {
    let (folder, copy) = copy_with(&of_readme()[1]);
    // A bpftrace of one's own on the path, and a setting that names a file which only root may read.
    let (own, secret, mark) = (folder.path().join("bin"), folder.path().join("secret"), folder.path().join("mark"));
    fs::create_dir(&own).unwrap();
    let text = format!("#!/bin/sh\necho > {}\necho bpftrace v0.17.0\n", mark.display());
    fs::write(own.join("bpftrace"), text).unwrap();
    fs::set_permissions(own.join("bpftrace"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&secret, "planted = 1\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = as_nobody(&copy, &[]);
    command.env("PATH", format!("{}:/usr/bin:/usr/sbin", own.display())).env("BPFTRACE_BTF", &secret);
    let mut server = ServerProcess::start_by(command).await;
    runs_a_script(&mut server).await;
    assert!(!mark.exists(), "the other one has run");
    // Nor do capabilities open files that a command is given.
    for words in [&["config", "check"][..], &["doctor", "--config"]] {
        let output = as_nobody(&copy, &[]).args(words).arg(&secret).output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("Permission denied") && !said.contains("planted"), "{words:?}: {said}");
    }
    // The launcher that one starts oneself is no other.
    let mut by_hand = as_nobody(&copy, &[]);
    by_hand.args(["__launcher", "--level", "any", "--most", "9", "--longest", "9", "--"]);
    let output = by_hand.stdin(std::process::Stdio::null()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test]
async fn a_command_through_sudo_runs_unboxed_and_says_so() {
    // In the place of sudo, which few test machines have set up: a program that is root's whoever starts it, and runs what it is given.
    let (folder, copy) = copy();
    let sudo = folder.path().join("sudo");
    fs::copy("/usr/bin/env", &sudo).unwrap();
    fs::set_permissions(&sudo, fs::Permissions::from_mode(0o4755)).unwrap();
    let config = folder.path().join("config.toml");
    let text = format!(
        "[bpftrace]\ncommand = \"{} bpftrace\"\n[socket]\npath = \"{}/none\"\n",
        sudo.display(),
        folder.path().display()
    );
    fs::write(&config, text).unwrap();
    let mut command = as_nobody(&copy, &[]);
    command.arg("serve").arg("--config").arg(&config);
    let mut server = ServerProcess::start_by(command).await;
    let program = "BEGIN { printf(\"uid %d\\n\", uid); @begun = 1; }";
    let started = server.client.tool("exec_program", json!({ "program": program, "timeout": 2 })).await.success();
    let mut found = Value::Null;
    for _ in 0..600 {
        found = server.client.tool("get_result", json!({ "execution_id": started["execution_id"] })).await.success();
        if found["status"] != "running" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let text = found.to_string();
    assert!(text.contains("unboxed") && text.contains("@begun"), "{found}");
    // Without privilege of its own, the server gains none by it.
    assert!(may_do(server.pid()).iter().all(|(permitted, _, fixed)| *permitted == 0 && *fixed));
    let launcher = launcher_of(server.pid()).unwrap();
    assert!(may_do(launcher).iter().all(|(permitted, ..)| *permitted == 0), "nor does the launcher");
    let refused = server.client.tool("exec_program", json!({ "program": "BEGIN { system(\"id\"); }" })).await;
    assert!(refused.is_error, "the policy holds all the same: {}", refused.text);
}
