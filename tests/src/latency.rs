//! How long an event takes from the kernel to whoever watches: a thread fails to open files whose names are the time at which it does so.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    ffi::CString,
    path::Path,
    process::Stdio,
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::mcp::{Client, ServerProcess};

/// How somebody watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `get_result` with a cursor and `wait_seconds`.
    LongPoll,
    /// `resources/subscribe`, and `get_result` at each notice.
    Subscribe,
    /// `subscriptions/listen` of the stateless protocol, and `get_result` at each notice.
    Listen,
    /// `mcptrace run --follow --json`.
    Follow,
}

/// All ways to watch.
pub const STYLES: [Style; 4] = [Style::LongPoll, Style::Subscribe, Style::Listen, Style::Follow];

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// From the call to the watcher, in nanoseconds, ascending; one for each event that came.
    pub ns: Vec<u64>,
    /// Events that were made.
    pub made: u64,
    /// Whether an event came twice or out of its order.
    pub disorder: bool,
}

impl Measured {
    /// A percentile in milliseconds.
    pub fn ms(&self, share: f64) -> f64 {
        let at = (self.ns.len() as f64 * share) as usize;
        self.ns.get(at.min(self.ns.len().saturating_sub(1))).map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    }

    fn of(seen: Vec<(u64, u64)>, made: u64) -> Self {
        let disorder = seen.windows(2).any(|pair| pair[0].0 >= pair[1].0);
        let mut ns: Vec<u64> = seen.into_iter().map(|(called, came)| came.saturating_sub(called)).collect();
        ns.sort_unstable();
        Self { ns, made, disorder }
    }
}

/// Has a program watch so many events a second for some seconds.
pub async fn measure(program: &Path, style: Style, per_second: u32, seconds: u32) -> Measured {
    if style == Style::Follow {
        follow(program, per_second, seconds).await
    } else {
        serve(program, style, per_second, seconds).await
    }
}

/// A folder that does not exist and is this run's own.
fn prefix() -> String {
    format!("/{}-{:x}/", std::process::id(), now())
}

async fn serve(program: &Path, style: Style, per_second: u32, seconds: u32) -> Measured {
    let mut command = Command::new(program);
    // What else the machine opens is not to end it.
    command.args(["serve", "--execution-budget", "400"]);
    let mut process = ServerProcess::start_by(command).await;
    let client = &mut process.client;
    let prefix = prefix();
    let arguments = json!({ "probe": "file_opens", "options": { "path_prefix": prefix }, "seconds": seconds + 30, "background": true });
    let begun = client.tool("run_probe", arguments).await.success();
    let id = begun["execution_id"].clone();
    notices(client, style, &id).await;
    let maker = open(prefix.clone(), per_second, seconds);
    let (mut seen, mut cursor) = (Vec::new(), "e0".to_owned());
    let wanted = u64::from(per_second * seconds);
    let until = now() + u64::from(seconds + 20) * 1_000_000_000;
    while (seen.len() as u64) < wanted && now() < until {
        let wait = if style == Style::LongPoll { 1.0 } else { noticed(client).await };
        let page = json!({ "execution_id": id, "cursor": cursor, "wait_seconds": wait, "limit": 10_000, "max_bytes": 1_048_576 });
        let found = client.tool("get_result", page).await.success();
        let came = now();
        let rows = found["report"]["rows"].as_array().map_or(&[][..], Vec::as_slice);
        seen.extend(rows.iter().filter_map(|row| Some((called(row["path"].as_str()?, &prefix)?, came))));
        let next = found["more"]["cursor"].as_str().unwrap_or_else(|| panic!("it has ended: {found}"));
        next.clone_into(&mut cursor);
    }
    let made = maker.join().unwrap();
    client.tool("stop_execution", json!({ "execution_id": id })).await.success();
    Measured::of(seen, made)
}

/// Asks for notices about an execution.
async fn notices(client: &mut Client, style: Style, id: &Value) {
    let uri = format!("mcptrace://executions/{}", id.as_str().unwrap());
    match style {
        Style::Subscribe => drop(client.request("resources/subscribe", json!({ "uri": uri })).await),
        Style::Listen => {
            let params = json!({ "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": { "name": "latency", "version": "1" },
            }, "notifications": { "resourceSubscriptions": [uri] } });
            client.start("subscriptions/listen", params).await;
        }
        Style::LongPoll | Style::Follow => {}
    }
}

/// Waits for a notice. Those that came while an answer was waited for count as one; what they are about is read at once.
async fn noticed(client: &mut Client) -> f64 {
    let is_notice = |message: &Value| message["method"] == "notifications/resources/updated";
    let came = client.others.iter().any(is_notice);
    client.others.clear();
    if !came {
        let next = async { while !is_notice(&client.next().await) {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), next).await;
    }
    0.0
}

async fn follow(program: &Path, per_second: u32, seconds: u32) -> Measured {
    let prefix = prefix();
    let mut command = Command::new(program);
    command.args([
        "run",
        "file_opens",
        "--follow",
        "--json",
        "--path-prefix",
        &prefix,
        "-d",
        &(seconds + 30).to_string(),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    crate::mcp::attached_by(child.id().unwrap()).await;
    // What is attached first is not all yet.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let maker = open(prefix.clone(), per_second, seconds);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut seen, wanted) = (Vec::new(), u64::from(per_second * seconds));
    while (seen.len() as u64) < wanted {
        let Ok(Ok(Some(line))) = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await else { break };
        let came = now();
        let row: Value = serde_json::from_str(&line).unwrap();
        seen.extend(row["path"].as_str().and_then(|path| called(path, &prefix)).map(|called| (called, came)));
    }
    let made = maker.join().unwrap();
    child.kill().await.unwrap();
    Measured::of(seen, made)
}

/// Opens so many files a second that are not there, each named by the time; how many it were.
fn open(prefix: String, per_second: u32, seconds: u32) -> JoinHandle<u64> {
    thread::spawn(move || {
        let begun = now();
        let all = u64::from(per_second * seconds);
        for number in 0..all {
            let due = begun + number * 1_000_000_000 / u64::from(per_second);
            // Several at once, as sleeping is no more exact than this.
            while now() + 200_000 < due {
                thread::sleep(Duration::from_micros(500));
            }
            let path = CString::new(format!("{prefix}{}", now())).unwrap();
            // SAFETY: a string that ends in zero.
            assert_eq!(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) }, -1);
        }
        all
    })
}

fn called(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}

fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
