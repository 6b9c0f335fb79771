//! What a process holds.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeSet, fs, time::Duration};

use tokio::time::sleep;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident memory, in KB.
    pub resident: u64,
    /// That of it which is the process's own (RssAnon), in KB: without pages of files, which the kernel drops when it likes.
    pub own: u64,
    /// Descriptors, but those of the history.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// eBPF programs.
    pub programs: u64,
    /// Child processes, without those that have ended and wait to be counted.
    pub children: u64,
}

impl Held {
    pub(super) fn now(pid: u32) -> Self {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|_| panic!("the daemon has ended"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            resident: field("VmRSS:"),
            own: field("RssAnon:"),
            threads: field("Threads:"),
            descriptors: descriptors(pid),
            programs: programs(pid).len() as u64,
            children: children(pid),
        }
    }

    /// The least of each over four seconds: the recorder works for a moment in every second.
    pub(super) async fn at_rest(pid: u32) -> Self {
        let mut least = Self::now(pid);
        for _ in 0..80 {
            sleep(Duration::from_millis(50)).await;
            least = least.each(Self::now(pid), u64::min);
        }
        least
    }

    pub(super) fn max(self, other: Self) -> Self {
        self.each(other, u64::max)
    }

    fn each(self, other: Self, of: fn(u64, u64) -> u64) -> Self {
        Self {
            resident: of(self.resident, other.resident),
            own: of(self.own, other.own),
            descriptors: of(self.descriptors, other.descriptors),
            threads: of(self.threads, other.threads),
            programs: of(self.programs, other.programs),
            children: of(self.children, other.children),
        }
    }
}

/// Of the history SQLite keeps as many open as were ever at once, and uses them again (os_unix.c, `pUnused`): they are as many as questions
/// that are answered at once, and that many come together late is no growth.
fn descriptors(pid: u32) -> u64 {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.filter(|one| fs::read_link(one.path()).is_ok_and(|path| !path.ends_with("history.db"))).count() as u64
}

/// Ids of the eBPF programs that a process holds. Descriptors may close while one looks.
pub(super) fn programs(pid: u32) -> BTreeSet<u32> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

fn children(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.map(|list| list.split_whitespace().filter(|pid| is_alive(pid)).count() as u64).sum()
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
