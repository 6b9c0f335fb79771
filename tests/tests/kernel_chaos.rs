//! Chaos: daemons, launchers, scripts and clients are killed at random while probes and scripts run, connections break in the middle of
//! calls and of lines, and then nothing is attached, no process and no control group is left, and a daemon starts at the same socket. Needs
//! root.
//!
//! `MCPTRACE_CHAOS_SECONDS` says for how long (20), `MCPTRACE_CHAOS_SEED` with which random numbers.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mcptrace_tests::{
    boxes,
    mcp::{Client, PATIENCE, left_over},
    program::{comm, descendants, is_alive, program},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};

/// A user that needs no account.
const USER: u32 = 70_021;
/// Clients at once.
const CLIENTS: u64 = 6;
/// How long a daemon lives, at least and at most, in milliseconds.
const LIFE: (u64, u64) = (700, 4000);

/// xorshift64* (Vigna, 2014).
struct Random(u64);

impl Random {
    /// Small numbers make good seeds too.
    fn new(seed: u64) -> Self {
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % most.max(1)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Some milliseconds.
    fn pause(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// The files of a daemon, which outlive it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        // A copy, so that its processes are told from all others by their file.
        fs::copy(program(), path.join("mcptrace")).unwrap();
        let text = format!(
            "[socket]\npath = \"{0}/socket\"\nusers = [{USER}]\n[audit]\nto = \"{0}/audit.jsonl\"\n[recorder]\nstate = \"{0}/state\"\n",
            path.display()
        );
        fs::write(path.join("config.toml"), text).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.path("mcptrace"));
        command.arg("--config").arg(self.path("config.toml")).current_dir("/");
        command.stderr(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A daemon that serves.
    async fn daemon(&self) -> Child {
        let mut command = self.command();
        let mut child = command.arg("daemon").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while UnixStream::connect(self.path("socket")).await.is_err() {
            assert_eq!(child.try_wait().unwrap(), None, "a daemon does not start");
            assert!(begun.elapsed() < PATIENCE, "a daemon does not serve");
            sleep(Duration::from_millis(20)).await;
        }
        child
    }

    /// Processes of this program, by their file.
    fn processes(&self) -> Vec<u32> {
        let file = self.path("mcptrace");
        let is_ours = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == file);
        processes().into_iter().filter(is_ours).filter(|pid| is_alive(*pid)).collect()
    }
}

fn processes() -> Vec<u32> {
    let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}

/// All that was ever seen, and what was done.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    programs: Mutex<BTreeSet<u32>>,
    /// Processes by number and start, so that a number that is used again is another's.
    processes: Mutex<BTreeMap<(u32, u64), String>>,
    done: Mutex<BTreeMap<&'static str, u64>>,
    answers: AtomicU64,
}

impl Seen {
    fn count(&self, what: &'static str) {
        *self.done.lock().unwrap().entry(what).or_default() += 1;
    }

    fn look(&self, place: &Place) {
        let own = place.processes();
        let all: BTreeSet<u32> = own.iter().flat_map(|pid| descendants(*pid).into_iter().chain([*pid])).collect();
        for pid in all {
            self.programs.lock().unwrap().extend(held(pid));
            if let Some(start) = start_of(pid) {
                self.processes.lock().unwrap().insert((pid, start), comm(pid));
            }
        }
    }

    /// Those that still run.
    fn left(&self) -> Vec<(u32, String)> {
        let all = self.processes.lock().unwrap();
        let runs = |pid: u32, start: u64| is_alive(pid) && start_of(pid) == Some(start);
        all.iter().filter(|((pid, start), _)| runs(*pid, *start)).map(|((pid, _), name)| (*pid, name.clone())).collect()
    }
}

/// The programs of a process that may end at any moment.
fn held(pid: u32) -> Vec<u32> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    infos.filter_map(|info| info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

/// When a process was started, in ticks since the machine was (proc(5), field 22).
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: kill takes numbers only; what it hits has been found among our own descendants.
    let _ = unsafe { libc::kill(pid as i32, signal) };
}

fn line(id: u64, method: &str, params: Value) -> String {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
}

fn hello() -> String {
    let info = json!({ "name": "chaos", "version": "1" });
    line(0, "initialize", json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info }))
        + "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n"
}

/// A call of some probe or script, in the background or not.
fn call(random: &mut Random, id: u64) -> String {
    let probes =
        ["file_opens", "syscall_counts", "cpu_profile", "process_exec", "runq_latency", "dns_latency", "file_io"];
    let scripts = [
        "tracepoint:syscalls:sys_enter_openat { @[comm] = count(); }",
        "interval:ms:50 { printf(\"%d a line, again and again\\n\", nsecs); }",
        "tracepoint:sched:sched_switch { @[kstack(4)] = count(); }",
        "BEGIN { exit(); }",
    ];
    let call = match random.below(3) {
        0 => {
            json!({ "name": "exec_program", "arguments": { "program": random.one(&scripts), "timeout": 1 + random.below(20) } })
        }
        _ => json!({ "name": "run_probe", "arguments":
            { "probe": random.one(&probes), "seconds": 1 + random.below(60), "background": random.below(2) == 0 } }),
    };
    line(id, "tools/call", call)
}

/// Some calls at once, and for a while what comes back.
fn talk(random: &mut Random) -> String {
    let calls: String = (1..=1 + random.below(3)).map(|id| call(random, id)).collect();
    hello() + &calls
}

/// Reads for a while, or not.
async fn listen(read: &mut (impl tokio::io::AsyncRead + Unpin), time: Duration, seen: &Seen) {
    let mut bytes = vec![0; 1 << 16];
    let _ = timeout(time, async {
        while let Ok(length @ 1..) = read.read(&mut bytes).await {
            seen.answers.fetch_add(bytes[..length].split(|byte| *byte == b'\n').count() as u64 - 1, Relaxed);
        }
    })
    .await;
}

/// A connection that breaks: in the middle of a call, of a line, after a flood, or without ever having read.
async fn connection(place: &Place, random: &mut Random, seen: &Seen) {
    let Ok(mut stream) = UnixStream::connect(place.path("socket")).await else {
        return sleep(random.pause(10, 100)).await;
    };
    let text = talk(random);
    if stream.write_all(text.as_bytes()).await.is_err() {
        return;
    }
    match random.below(4) {
        0 => {
            let half = call(random, 9);
            let _ = stream.write_all(&half.as_bytes()[..random.below(half.len() as u64) as usize]).await;
            seen.count("half a line");
        }
        1 => {
            let flood = line(7, "tools/list", json!({})).repeat(500);
            let _ = timeout(random.pause(50, 500), stream.write_all(flood.as_bytes())).await;
            seen.count("flood without reading");
        }
        2 => {
            listen(&mut stream, random.pause(50, 3000), seen).await;
            seen.count("socket closed in the middle of a call");
        }
        _ => {
            // Its end of writing only: what comes back goes to nobody who is still there.
            let _ = stream.shutdown().await;
            listen(&mut stream, random.pause(10, 300), seen).await;
            seen.count("half closed");
        }
    }
}

/// A process that passes bytes on for a user, or serves by itself, and is killed; its own launcher and scripts with it or before it.
async fn process(place: &Place, random: &mut Random, seen: &Seen, serves_itself: bool) {
    let mut command = place.command();
    // Without privilege it passes bytes on.
    if !serves_itself {
        command.uid(USER).gid(USER);
    }
    let Ok(mut child) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else { return };
    let pid = child.id().unwrap();
    let mut write = child.stdin.take().unwrap();
    let _ = write.write_all(talk(random).as_bytes()).await;
    listen(child.stdout.as_mut().unwrap(), random.pause(50, 3000), seen).await;
    let below = descendants(pid);
    if serves_itself && random.below(3) == 0 && !below.is_empty() {
        kill(random.one(&below), libc::SIGKILL);
        seen.count("launcher or script of a server killed");
        sleep(random.pause(0, 500)).await;
    }
    kill(pid, random.one(&[libc::SIGKILL, libc::SIGKILL, libc::SIGTERM, libc::SIGHUP]));
    seen.count(if serves_itself { "server killed" } else { "client process killed" });
    drop(write);
    timeout(PATIENCE, child.wait()).await.expect("a client or server does not end").unwrap();
}

async fn client(place: Arc<Place>, seen: Arc<Seen>, seed: u64) {
    let mut random = Random::new(seed);
    while !seen.over.load(Relaxed) {
        match random.below(6) {
            0 => process(&place, &mut random, &seen, true).await,
            1 => process(&place, &mut random, &seen, false).await,
            _ => connection(&place, &mut random, &seen).await,
        }
    }
}

/// Daemons one after another at the same socket, each killed in its turn, some after their launcher or a script of theirs.
async fn daemons(place: &Place, random: &mut Random, seen: &Seen, until: Instant) {
    while Instant::now() < until {
        let mut daemon = place.daemon().await;
        let pid = daemon.id().unwrap();
        seen.count("daemon started");
        sleep(random.pause(LIFE.0, LIFE.1)).await;
        let below = descendants(pid);
        if random.below(3) == 0 && !below.is_empty() {
            kill(random.one(&below), libc::SIGKILL);
            seen.count("launcher or script of the daemon killed");
            sleep(random.pause(0, 2000)).await;
        }
        assert_eq!(daemon.try_wait().unwrap(), None, "the daemon has ended by itself");
        let signal = random.one(&[libc::SIGKILL, libc::SIGKILL, libc::SIGTERM]);
        kill(pid, signal);
        seen.count(if signal == libc::SIGKILL { "daemon killed" } else { "daemon told to end" });
        let status = timeout(PATIENCE, daemon.wait()).await.expect("a daemon does not end").unwrap();
        assert!(signal == libc::SIGKILL || status.code() == Some(0), "{status}");
    }
}

async fn watch(place: Arc<Place>, seen: Arc<Seen>) {
    while !seen.over.load(Relaxed) {
        let (place, seen) = (Arc::clone(&place), Arc::clone(&seen));
        tokio::task::spawn_blocking(move || seen.look(&place)).await.unwrap();
        sleep(Duration::from_millis(30)).await;
    }
}

/// What is left after so long.
async fn wait_for_none<T: std::fmt::Debug>(what: &str, mut left: impl FnMut() -> Vec<T>) {
    let begun = Instant::now();
    loop {
        let now = left();
        if now.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} left: {now:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_whoever_is_killed_and_whenever() {
    let (seconds, seed) = (number("MCPTRACE_CHAOS_SECONDS", 20), number("MCPTRACE_CHAOS_SEED", 0x5eed));
    eprintln!("chaos for {seconds} s with seed {seed}");
    let (place, seen) = (Arc::new(Place::new()), Arc::<Seen>::default());
    let watcher = tokio::spawn(watch(Arc::clone(&place), Arc::clone(&seen)));
    let mut clients = JoinSet::new();
    for number in 1..=CLIENTS {
        clients.spawn(client(Arc::clone(&place), Arc::clone(&seen), seed.wrapping_add(number << 32)));
    }
    let mut random = Random::new(seed);
    daemons(&place, &mut random, &seen, Instant::now() + Duration::from_secs(seconds)).await;
    // The last one is killed while all are at it, and once more the clients have nobody.
    let mut last = place.daemon().await;
    sleep(Duration::from_secs(2)).await;
    seen.look(&place);
    kill(last.id().unwrap(), libc::SIGKILL);
    seen.count("daemon killed");
    last.wait().await.unwrap();
    seen.over.store(true, Relaxed);
    while let Some(ended) = timeout(PATIENCE, clients.join_next()).await.expect("a client hangs") {
        ended.unwrap();
    }
    watcher.await.unwrap();

    wait_for_none("processes", || seen.left()).await;
    wait_for_none("processes of the program", || place.processes()).await;
    let programs: Vec<u32> = seen.programs.lock().unwrap().iter().copied().collect();
    assert_eq!(left_over(&programs).await, [0_u32; 0], "still attached");
    let pids: BTreeSet<u32> = seen.processes.lock().unwrap().keys().map(|(pid, _)| *pid).collect();

    // The socket of one that was killed is still there, and stops nobody.
    assert!(place.path("socket").exists());
    let daemon = place.daemon().await;
    let (read, write) = UnixStream::connect(place.path("socket")).await.unwrap().into_split();
    let mut client = Client::new(read, write);
    client.initialize("2025-11-25").await;
    let script = json!({ "program": "BEGIN { exit(); }", "timeout": 5 });
    let answer = client.tool("exec_program", script).await;
    assert!(!answer.is_error, "{}", answer.text);
    // An empty group of a launcher that was killed goes with the next script.
    wait_for_none("control groups", || boxes::groups(&pids)).await;
    kill(daemon.id().unwrap(), libc::SIGTERM);
    let output = timeout(PATIENCE, daemon.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!place.path("socket").exists());
    let lines = fs::read_to_string(place.path("audit.jsonl")).unwrap();
    let torn = lines.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).count();
    assert_eq!(torn, 0, "lines of the audit log are whole, whoever was killed while writing");

    let done = seen.done.lock().unwrap();
    eprintln!(
        "{} programs, {} processes, {} answers, {} records",
        programs.len(),
        pids.len(),
        seen.answers.load(Relaxed),
        lines.lines().count()
    );
    done.iter().for_each(|(what, count)| eprintln!("{count} x {what}"));
    assert!(programs.len() > 20 && pids.len() > 10, "hardly anything ran");
}
