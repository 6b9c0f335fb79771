//! Who runs: ids and command names of processes, as `/proc` shows them.

use std::{fs, time::Duration};

use crate::text;

/// How many are looked at.
const MOST: usize = 4096;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command name.
    pub comm: String,
}

/// All processes, those started last first.
pub fn list() -> Vec<Process> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = folders.filter_map(|folder| folder.file_name().to_str()?.parse::<u32>().ok());
    let mut all: Vec<_> = pids.take(MOST).filter_map(read).collect();
    all.sort_by_key(|process| std::cmp::Reverse(process.pid));
    all
}

/// CPU time of the first thread of a process (Documentation/scheduler/sched-stats.rst); `None` if it has ended.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// It may have ended by now.
fn read(pid: u32) -> Option<Process> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
    Some(Process { pid, comm: text::untrusted(comm, 64) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_a_cpu_grows_with_work() {
        // That of the first thread, which in a test waits for the others.
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
        assert_eq!(cpu_time(u32::MAX), None);
    }

    #[test]
    fn this_process_is_among_them() {
        let all = list();
        let own = all.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(!own.comm.is_empty() && !own.comm.ends_with('\n'), "{own:?}");
        assert!(all.windows(2).all(|two| two[0].pid > two[1].pid));
    }
}
