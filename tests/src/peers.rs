//! Tools of others that watch what a probe watches, run as processes.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Seek as _, SeekFrom},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;

use crate::tracers;

/// How long a tool may take to attach, to say what it has seen, and to end. A machine at work needs some of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tool that has attached all its programs. It ends when this is dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    /// What it prints; a file, which takes any amount.
    output: File,
}

impl Peer {
    /// Runs a bpftrace script, with JSON as its output.
    pub fn script(program: &str) -> Self {
        Self::script_of(program, &[])
    }

    /// The same with further arguments.
    pub fn script_of(program: &str, arguments: &[&str]) -> Self {
        mount_tracefs();
        // It prints what an interval says only when everything is attached.
        let ready = "interval:ms:20 { if (!@ready) { @ready = 1; printf(\"ready\\n\"); } }";
        let program = format!("{program} {ready}");
        let words = [&["bpftrace", "-f", "json", "-B", "line"], arguments, &["-e", &program]].concat();
        let mut peer = Self::start(&words);
        peer.wait_until("says ready", |peer| peer.text().contains("ready"));
        peer
    }

    /// Runs a program of libbpf-tools until it has attached so many programs.
    pub fn tool(words: &[&str], programs: usize) -> Self {
        mount_tracefs();
        // It fills a whole block before it writes to a file, unless told otherwise.
        let mut peer = Self::start(&[&["stdbuf", "-oL"], words].concat());
        peer.wait_until(&format!("attaches {programs} programs"), |peer| {
            tracers::attached_by(peer.child.id()) >= programs
        });
        peer
    }

    /// What it has printed so far.
    pub fn text(&self) -> String {
        fs::read_to_string(format!("/proc/self/fd/{}", self.output.as_raw_fd())).unwrap()
    }

    /// Waits until it has printed something, but not for ever: what is compared then is what it says at its end.
    pub fn wait_for(&self, is_there: impl Fn(&str) -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        while !is_there(&self.text()) && Instant::now() < end {
            sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a user would, and gives all that it has printed.
    pub fn end(mut self) -> String {
        self.interrupt();
        self.text()
    }

    fn start(words: &[&str]) -> Self {
        let mut output = tempfile::tempfile().unwrap();
        output.seek(SeekFrom::Start(0)).unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
        // SAFETY: only a system call between fork and exec. If the test is killed, nothing of the tool stays attached.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words.join(" ")));
        Self { child, output }
    }

    fn wait_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self) {
            let ended = self.child.try_wait().unwrap();
            let attached = tracers::attached_by(self.child.id());
            assert!(
                ended.is_none() && Instant::now() < end,
                "waiting until it {what}: attached {attached}, {ended:?}: {}",
                self.text()
            );
            sleep(Duration::from_millis(5));
        }
    }

    fn interrupt(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::INT);
        }
        let end = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.interrupt();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A fresh machine has tracefs unmounted; that it is mounted already is as good.
fn mount_tracefs() {
    if !fs::exists("/sys/kernel/tracing/events").unwrap() {
        let _ = Command::new("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]).status();
    }
}

/// A bucket of a histogram: values from the first up to but not including the second, in nanoseconds, and how many there are.
pub type Bucket = (u64, u64, u64);

/// The numbers of a map of a bpftrace script by key; one without a key has the empty one.
pub fn map(text: &str, name: &str) -> BTreeMap<String, u64> {
    let Some(found) = data(text, "map", name) else { return BTreeMap::new() };
    match &found {
        Value::Object(numbers) => numbers.iter().map(|(key, value)| (key.clone(), value.as_u64().unwrap())).collect(),
        number => BTreeMap::from([(String::new(), number.as_u64().unwrap())]),
    }
}

/// The only number of a map of a bpftrace script; zero if it was never written.
pub fn number(text: &str, name: &str) -> u64 {
    map(text, name).get("").copied().unwrap_or_default()
}

/// The buckets of a histogram of a bpftrace script, whose values are nanoseconds.
pub fn histogram(text: &str, name: &str) -> Vec<Bucket> {
    let Some(Value::Array(buckets)) = data(text, "hist", name) else { return Vec::new() };
    let bound = |bucket: &Value, field: &str| bucket[field].as_u64().unwrap_or_default();
    buckets.iter().map(|one| (bound(one, "min"), bound(one, "max") + 1, bound(one, "count"))).collect()
}

/// The buckets that a program of libbpf-tools draws, `1024 -> 2047 : 66 |****|`, whose values are so many nanoseconds each.
pub fn drawn(text: &str, unit_ns: u64) -> Vec<Bucket> {
    let bucket = |line: &str| -> Option<Bucket> {
        let (bounds, rest) = line.split_once(':')?;
        let (low, high) = bounds.split_once("->")?;
        let count = rest.split('|').next()?.trim().parse().ok()?;
        Some((low.trim().parse::<u64>().ok()? * unit_ns, (high.trim().parse::<u64>().ok()? + 1) * unit_ns, count))
    };
    text.lines().filter_map(bucket).collect()
}

/// The words of the lines that a program of libbpf-tools prints.
pub fn columns(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect())
}

fn data(text: &str, kind: &str, name: &str) -> Option<Value> {
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter(|message| message["type"] == kind).find_map(|message| message["data"].get(name).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bpftrace_keeps_is_read() {
        let text = "{\"type\": \"attached_probes\", \"data\": {\"probes\": 1}}\n\n\
            {\"type\": \"map\", \"data\": {\"@calls\": {\"39\": 7}}}\n{\"type\": \"map\", \"data\": {\"@all\": 9}}\n\
            {\"type\": \"hist\", \"data\": {\"@ns\": [{\"max\": 0, \"count\": 1}, {\"min\": 8, \"max\": 15, \"count\": 2}]}}";
        assert_eq!(map(text, "@calls"), BTreeMap::from([("39".to_owned(), 7)]));
        assert_eq!((number(text, "@all"), number(text, "@none")), (9, 0));
        assert_eq!(histogram(text, "@ns"), [(0, 1, 1), (8, 16, 2)]);
    }

    #[test]
    fn what_libbpf_tools_draw_is_read() {
        let text = "     usecs               : count    distribution\n      1024 -> 2047       : 66       |****|\n";
        assert_eq!(drawn(text, 1000), [(1_024_000, 2_048_000, 66)]);
    }
}
