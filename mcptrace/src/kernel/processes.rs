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

/// Whether a process runs no more: none of its threads does. One that nobody has waited for stays in `/proc` as a zombie.
pub fn process_has_ended(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    !threads.take(MOST).any(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| runs(&stat)))
}

/// Whether a thread runs no more. `/proc` has a folder for every thread, though it lists those of processes only.
pub fn thread_has_ended(tid: u32) -> bool {
    !fs::read_to_string(format!("/proc/{tid}/stat")).is_ok_and(|stat| runs(&stat))
}

/// The state stands behind the command's name in parentheses, which may have some itself (proc_pid_stat(5)).
fn runs(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X', 'x']))
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
    fn a_zombie_has_ended_and_so_has_a_thread_that_is_gone() {
        assert!(!process_has_ended(std::process::id()) && !thread_has_ended(std::process::id()));
        assert!(process_has_ended(u32::MAX) && thread_has_ended(u32::MAX));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !process_has_ended(pid) {
            assert!(std::time::Instant::now() < until);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(fs::exists(format!("/proc/{pid}")).unwrap() && thread_has_ended(pid), "nobody has waited for it");
        child.wait().unwrap();
        let thread = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get() as u32);
        let tid = thread.join().unwrap();
        // Its descriptor goes a moment after it.
        while !thread_has_ended(tid) {
            assert!(std::time::Instant::now() < until);
        }
    }

    #[test]
    fn a_name_with_parentheses_is_no_state() {
        assert!(runs("7 (a) Z b) S 1") && !runs("7 (a) S b) Z 1") && !runs(""));
    }

    #[test]
    fn this_process_is_among_them() {
        let all = list();
        let own = all.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(!own.comm.is_empty() && !own.comm.ends_with('\n'), "{own:?}");
        assert!(all.windows(2).all(|two| two[0].pid > two[1].pid));
    }
}
