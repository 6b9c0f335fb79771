//! The launcher of scripts: what it and its server may do, what a server that has been taken over can get out of it, and what ends it.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    io::{IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mcptrace_tests::{
    mcp::{PATIENCE, ServerProcess},
    program::{bpftrace_of, descendants, is_alive, launcher_of, may_do, program},
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde_json::json;

const ENDLESS: &str = "interval:s:1 { @ticks = count(); }";

fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |all, number| all | 1 << number)
}

/// A server's launcher, with a test in the place of the server.
struct Launcher {
    child: Child,
    socket: OwnedFd,
}

/// A script at work. bpftrace ends when nobody reads what it writes.
struct Run {
    out: fs::File,
    _err: OwnedFd,
    orders: OwnedFd,
}

/// What came back: a letter, what belongs to it, and descriptors.
struct Answer {
    text: String,
    descriptors: Vec<OwnedFd>,
}

impl Launcher {
    fn start(arguments: &[&str]) -> Self {
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut command = Command::new(program());
        command.arg("__launcher").args(arguments).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        Self { child: command.spawn().unwrap(), socket }
    }

    fn usual() -> Self {
        Self::start(&["--level", "policy", "--most", "2", "--longest", "600", "--"])
    }

    fn send(&self, packet: &[u8]) {
        rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL).unwrap();
    }

    fn receive(&self) -> Answer {
        let mut packet = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags).unwrap();
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = rights.flatten().collect();
        Answer { text: String::from_utf8_lossy(&packet[..got.bytes]).into_owned(), descriptors }
    }

    fn ask(&self, packet: &[u8]) -> Answer {
        self.send(packet);
        self.receive()
    }

    /// Asks for a run.
    fn run(&self, program: &str) -> Run {
        let answer = self.ask(&run(program));
        assert!(answer.text.starts_with('s'), "{}", answer.text);
        let [out, err, orders] = <[OwnedFd; 3]>::try_from(answer.descriptors).unwrap();
        rustix::io::ioctl_fionbio(&out, false).unwrap();
        Run { out: out.into(), _err: err, orders }
    }

    /// The same, when bpftrace waits for events: before that it notes a signal and does nothing about it until the next.
    fn attached(&self) -> Run {
        let mut run = self.run("BEGIN { @begun = 1; } interval:ms:200 { printf(\"tick\\n\"); }");
        let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&text).contains("tick") {
            let length = run.out.read(&mut chunk).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&chunk[..length]);
        }
        run
    }

    fn wait_for_its_end(&mut self) {
        wait_for("the launcher to end", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It may have ended, which is what some tests are about.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &str) -> Vec<u8> {
    [b"r", &600_u64.to_le_bytes()[..], program.as_bytes()].concat()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Groups that a launcher has made for its scripts.
fn groups(launcher: u32) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let places = mounts.lines().filter(|line| line.contains("cgroup")).filter_map(|line| line.split(' ').nth(1));
    let names = places.flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("mcptrace_script-{launcher}-"))).collect()
}

async fn server_of(scripts: &str) -> ServerProcess {
    let mut command = tokio::process::Command::new(program());
    command.args(["serve", "--allow-scripts", scripts]);
    ServerProcess::start_by(command).await
}

/// A server with a script at work, its launcher and its bpftrace.
async fn busy() -> (ServerProcess, String, u32, u32) {
    let mut server = server_of("policy").await;
    let started = server.client.tool("exec_program", json!({ "program": ENDLESS, "timeout": 600 })).await.success();
    let id = started["execution_id"].as_str().unwrap().to_owned();
    wait_for("bpftrace", || bpftrace_of(server.pid()).is_some());
    let (launcher, bpftrace) = (launcher_of(server.pid()).unwrap(), bpftrace_of(server.pid()).unwrap());
    (server, id, launcher, bpftrace)
}

#[tokio::test]
async fn server_and_launcher_have_what_each_needs_and_no_more() {
    let (server, _, launcher, bpftrace) = busy().await;
    // BPF, PERFMON, SYS_ADMIN, SYSLOG, DAC_READ_SEARCH, SYS_PTRACE, and SYS_RESOURCE before 5.11.
    let (native, old) = (bits(&[39, 38, 21, 34, 2, 19]), bits(&[24]));
    for (permitted, ever, fixed) in may_do(server.pid()) {
        assert_eq!((permitted & !old, ever & !old, fixed), (native, native, true), "{permitted:x} {ever:x}");
    }
    // The same for bpftrace, and SETPCAP, IPC_LOCK and DAC_OVERRIDE. Privileges may be gained from it on: within the bounding set.
    let of_box = native | bits(&[8, 14, 1]);
    for (permitted, ever, _) in may_do(launcher) {
        assert_eq!((permitted & !old, ever & !old), (of_box, of_box), "{permitted:x} {ever:x}");
    }
    let kept = bits(&[2, 14, 19, 34, 38, 39]);
    for (permitted, ever, fixed) in may_do(bpftrace) {
        assert_eq!((permitted, ever, fixed), (kept, kept, true), "{permitted:x} {ever:x}");
    }
}

#[tokio::test]
async fn where_no_scripts_are_allowed_there_is_no_launcher() {
    let mut server = server_of("never").await;
    server.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.2 })).await.success();
    assert_eq!(descendants(server.pid()), [0_u32; 0]);
    let info = server.client.tool("bpf_info", json!({})).await.success();
    assert_eq!(info["scripts"].get("launcher"), None, "{}", info["scripts"]);
    let script = server.client.tool("exec_program", json!({ "program": ENDLESS, "timeout": 5 })).await;
    assert!(script.is_error && script.text.contains("allows no scripts"), "{}", script.text);
}

#[tokio::test]
async fn what_each_holds_is_told_with_the_reason() {
    let mut server = server_of("policy").await;
    let info = server.client.tool("bpf_info", json!({})).await.success();
    assert_eq!(info["scripts"]["launcher"], launcher_of(server.pid()).unwrap());
    for (rows, name) in
        [(&info["process"]["capabilities"], "CAP_PERFMON"), (&info["scripts"]["capabilities"], "CAP_SETPCAP")]
    {
        let rows = rows.as_array().unwrap();
        assert!(rows.iter().all(|row| row["held"] == true && !row["purpose"].as_str().unwrap().is_empty()), "{rows:?}");
        assert!(rows.iter().any(|row| row["name"] == name), "{rows:?}");
    }
    for part in info["scripts"]["box"].as_array().unwrap() {
        assert_eq!(part["works"], true, "{part}");
    }
}

#[tokio::test]
async fn a_killed_server_leaves_no_launcher_no_script_and_no_group() {
    let (mut server, _, launcher, bpftrace) = busy().await;
    assert!(!groups(launcher).is_empty());
    server.signal(libc::SIGKILL);
    server.ended().await;
    wait_for("bpftrace to end", || !is_alive(bpftrace));
    wait_for("the launcher to end", || !is_alive(launcher));
    assert_eq!(groups(launcher), [""; 0], "the launcher has cleaned up before it ended");
}

#[tokio::test]
async fn a_launcher_that_is_killed_takes_its_scripts_along_and_native_probes_go_on() {
    let (mut server, id, launcher, bpftrace) = busy().await;
    // SAFETY: kill takes numbers only; the launcher is our server's child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(launcher as i32, libc::SIGKILL) }, 0);
    wait_for("bpftrace to end", || !is_alive(bpftrace));
    let ended = server.client.tool("get_result", json!({ "execution_id": id, "wait_seconds": 30 })).await.success();
    assert_eq!(ended["status"], "failed", "{ended}");
    assert!(ended["error"].as_str().unwrap().contains("signal 9"), "{ended}");
    let script = server.client.tool("exec_program", json!({ "program": ENDLESS, "timeout": 5 })).await;
    // Refused, or failed at once if nobody had noticed yet.
    assert!(script.is_error || script.structured["status"] == "failed", "{}", script.text);
    assert!(script.text.contains("start the server anew"), "{}", script.text);
    let run = server.client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.2 })).await.success();
    assert_eq!(run["status"], "completed");
}

#[tokio::test]
async fn signals_to_the_whole_group_do_not_end_the_launcher_before_its_server() {
    let (mut server, id, launcher, _) = busy().await;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::kill(launcher as i32, signal) }, 0);
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let stopped = server.client.tool("stop_execution", json!({ "execution_id": id })).await.success();
    assert_eq!(stopped["status"], "stopped");
    let found = server.client.tool("get_result", json!({ "execution_id": id })).await.success();
    assert!(found.to_string().contains("@ticks"), "its maps were kept: {found}");
    server.client.close().await;
    assert_eq!(server.ended().await, Some(0));
    wait_for("the launcher to end", || !is_alive(launcher));
}

#[test]
fn what_is_no_request_is_refused_and_the_launcher_lives() {
    let launcher = Launcher::usual();
    let long = [&b"c"[..], &vec![b'x'; 200_000]].concat();
    let packets: [&[u8]; 14] = [
        b"x",
        b"\0",
        b"p1",
        b"v ",
        b"i--unsafe",
        b"c\xff\xfe",
        b"r",
        b"r1234567",
        b"l\xc3",
        b"P",
        b"{}",
        b"vv",
        b"s",
        &long,
    ];
    for packet in packets {
        let answer = launcher.ask(packet);
        assert!(answer.text.starts_with('n') && answer.text.contains("no request"), "{packet:?}: {}", answer.text);
        assert!(answer.descriptors.is_empty());
    }
    assert_eq!(descendants(launcher.child.id()), [0_u32; 0]);
    assert!(launcher.ask(b"p").text.starts_with("p["), "it lives");
}

#[test]
fn descriptors_that_come_with_a_request_are_not_kept() {
    let launcher = Launcher::usual();
    launcher.ask(b"p");
    let open = || fs::read_dir(format!("/proc/{}/fd", launcher.child.id())).unwrap().count();
    let before = open();
    let file = fs::File::open("/etc/hostname").unwrap();
    let files = [file.as_fd(), file.as_fd()];
    for _ in 0..20 {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        rustix::net::sendmsg(&launcher.socket, &[IoSlice::new(b"z")], &mut control, SendFlags::NOSIGNAL).unwrap();
        assert!(launcher.receive().text.starts_with('n'));
    }
    assert_eq!(open(), before);
}

#[test]
fn what_the_policy_refuses_the_launcher_does_not_run_either() {
    let launcher = Launcher::usual();
    for (packet, want) in [
        (run("BEGIN { system(\"id\"); }"), "system"),
        (run("#include <x>\nBEGIN { }"), "line 1"),
        (run("uprobe:/bin/sh:main { @ = count(); }"), "uprobe"),
        (run(""), "empty"),
        (run(&"x".repeat(65_537)), "no request"),
        ([b"c", &b"BEGIN { cat(\"/etc/shadow\"); }"[..]].concat(), "cat"),
        (b"l--version".to_vec(), "no name of probes"),
        (b"l-lv".to_vec(), "no name of probes"),
        (b"l".to_vec(), "1 to 1024 bytes"),
    ] {
        let answer = launcher.ask(&packet);
        assert!(answer.text.starts_with('n') && answer.text.contains(want), "{want}: {}", answer.text);
        assert!(answer.descriptors.is_empty());
    }
    assert_eq!(descendants(launcher.child.id()), [0_u32; 0]);
}

#[test]
fn only_so_many_run_at_once() {
    let launcher = Launcher::usual();
    let (first, second) = (launcher.attached(), launcher.attached());
    let third = launcher.ask(&run(ENDLESS));
    assert!(third.text.starts_with('n') && third.text.contains("2 runs"), "{}", third.text);
    drop(first);
    wait_for("a place", || launcher.ask(&run(ENDLESS)).text.starts_with('s'));
    drop(second);
}

/// The launcher gives it a minute more than its time: to attach, and to print its maps.
#[test]
fn a_run_that_nobody_ends_is_ended_when_its_time_is_up() {
    let launcher = Launcher::start(&["--level", "policy", "--most", "2", "--longest", "1", "--"]);
    let begun = Instant::now();
    let run = launcher.run(ENDLESS);
    let mut status = [0; 4];
    rustix::net::recv(&run.orders, &mut status, RecvFlags::empty()).unwrap();
    assert_eq!(i32::from_le_bytes(status), libc::SIGKILL);
    assert!(begun.elapsed() > Duration::from_mins(1), "{:?}", begun.elapsed());
}

#[test]
fn a_script_ends_with_the_socket_of_its_orders() {
    let launcher = Launcher::usual();
    let Run { out: _out, _err, orders } = launcher.attached();
    let children = descendants(launcher.child.id());
    assert_eq!(children.len(), 1);
    drop(orders);
    wait_for("the script to end", || !is_alive(children[0]));
    wait_for("its group to go", || groups(launcher.child.id()).is_empty());
}

#[test]
fn what_is_no_order_ends_the_script() {
    let launcher = Launcher::usual();
    for order in [&b"x"[..], b"ii", b"KILL", &[b'k'; 5000]] {
        let run = launcher.attached();
        let child = descendants(launcher.child.id())[0];
        rustix::net::send(&run.orders, order, SendFlags::NOSIGNAL).unwrap();
        wait_for("the script to end", || !is_alive(child));
        wait_for("its place", || descendants(launcher.child.id()).is_empty());
        drop(run);
    }
}

#[test]
fn an_interrupt_prints_the_maps_and_the_end_is_told() {
    let launcher = Launcher::usual();
    let mut run = launcher.attached();
    rustix::net::send(&run.orders, b"i", SendFlags::NOSIGNAL).unwrap();
    let mut text = String::new();
    run.out.read_to_string(&mut text).unwrap();
    assert!(text.contains("@begun"), "{text}");
    let mut status = [0; 4];
    rustix::net::recv(&run.orders, &mut status, RecvFlags::empty()).unwrap();
    assert_eq!(i32::from_le_bytes(status), 0);
}

#[test]
fn a_bpftrace_that_others_could_have_put_there_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("bpftrace");
    fs::copy("/bin/true", &program).unwrap();
    let refused = |mode: u32, path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let command = ["--level", "any", "--most", "2", "--longest", "60", "--", program.to_str().unwrap()];
        let launcher = Launcher::start(&command);
        let answer = launcher.ask(&run("BEGIN { }"));
        answer.text.starts_with('n') && answer.text.contains("others than root may write")
    };
    assert!(refused(0o777, &program));
    assert!(!refused(0o755, &program));
    assert!(refused(0o777, folder.path()));
}

#[tokio::test]
async fn it_ends_with_the_process_that_started_it_even_if_the_socket_stays_open() {
    let (mut server, _, launcher, bpftrace) = busy().await;
    // Whoever has taken a server over may have passed its socket on. Here that is this test.
    let pidfd = rustix::process::pidfd_open(pid(server.pid()), rustix::process::PidfdFlags::empty()).unwrap();
    let mut kept = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten() {
        let is_socket = fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        if is_socket {
            let flags = rustix::process::PidfdGetfdFlags::empty();
            kept.extend(rustix::process::pidfd_getfd(&pidfd, number, flags));
        }
    }
    // That of requests, and that of the script's orders.
    assert!(kept.len() >= 2, "{kept:?}");
    server.signal(libc::SIGKILL);
    server.ended().await;
    wait_for("bpftrace to end", || !is_alive(bpftrace));
    wait_for("the launcher to end", || !is_alive(launcher));
}

fn pid(number: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(number as i32).unwrap()
}

#[test]
fn it_ends_with_its_socket() {
    let mut launcher = Launcher::usual();
    let _run = launcher.attached();
    let (_, closed) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    launcher.socket = closed;
    launcher.wait_for_its_end();
}

#[test]
fn it_is_not_started_by_hand() {
    let arguments = ["__launcher", "--level", "policy", "--most", "2", "--longest", "60", "--"];
    let output = Command::new(program()).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mcptrace serve"), "{output:?}");
    // Nor as the child of another than who made the socket: that process would not tell when the other ends.
    let (_socket, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\"; exit $?", "sh"]).arg(program()).args(arguments);
    let output = shell.stdin(Stdio::from(theirs)).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
