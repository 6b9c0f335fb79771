//! A control group of its own for each run: version 2, the controllers of version 1, or both, as the machine has them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The beginning of the names; then the process and a number.
const PREFIX: &str = "mcptrace_script-";
/// How long a killed group may take to become empty.
const EMPTY: Duration = Duration::from_millis(500);

/// The group, a folder in each hierarchy. It goes when it is dropped, with all that still runs in it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    pub(super) fn new(memory: u64, threads: u64) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut group = Self { folders: Vec::new() };
        let mut bounded = (false, false);
        for root in hierarchies() {
            remove_stale(&root);
            let folder = root.join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let set = |file: &str, value: u64| fs::write(folder.join(file), value.to_string()).is_ok();
            bounded.0 |= set("memory.max", memory) || set("memory.limit_in_bytes", memory);
            bounded.1 |= set("pids.max", threads);
            // Without swap the bound is what it says; kernels without swap accounting have no such file.
            let _ = fs::write(folder.join("memory.swap.max"), "0");
            group.folders.push(folder);
        }
        match bounded {
            (true, true) => Ok(group),
            _ if group.folders.is_empty() => Err(io::Error::other("no control group can be made here")),
            _ => Err(io::Error::other("control groups here bound no memory or no threads")),
        }
    }

    /// Where a process is put into each of them.
    pub(super) fn entries(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &PathBuf| OpenOptions::new().write(true).open(folder.join("cgroup.procs")).map(File::into);
        self.folders.iter().map(open).collect()
    }

    /// Ends all that runs in it: `cgroup.kill` (Linux 5.14), and without it each process by its number.
    pub(crate) fn kill(&self) {
        for folder in &self.folders {
            if fs::write(folder.join("cgroup.kill"), "1").is_err() {
                for pid in members(folder) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

impl Cgroup {
    /// Removes it if it is empty; true when it is gone.
    pub(crate) fn is_removed(&mut self) -> bool {
        self.folders.retain(|folder| fs::remove_dir(folder).is_err());
        self.folders.is_empty()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        let until = Instant::now() + EMPTY;
        while !self.is_removed() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn members(folder: &Path) -> impl Iterator<Item = rustix::process::Pid> {
    let list = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<i32> = list.lines().filter_map(|line| line.parse().ok()).collect();
    pids.into_iter().filter_map(rustix::process::Pid::from_raw)
}

/// The roots of version 2, and of the two controllers of version 1 that matter.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().filter_map(hierarchy).collect()
}

/// A line of mounts: device, place, type, options.
fn hierarchy(line: &str) -> Option<PathBuf> {
    let mut words = line.split(' ').skip(1);
    let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
    let wanted = || options.split(',').any(|option| option == "memory" || option == "pids");
    (kind == "cgroup2" || (kind == "cgroup" && wanted())).then(|| place.into())
}

/// Groups of servers that were killed before they could remove them.
fn remove_stale(root: &Path) {
    let names =
        fs::read_dir(root).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for name in names {
        let Some((pid, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            // One that still has members stays.
            let _ = fs::remove_dir(root.join(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_by_their_mounts() {
        let of = |line: &str| hierarchy(line).map(|path| path.display().to_string());
        assert_eq!(of("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0").as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(of("cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0").as_deref(), Some("/sys/fs/cgroup/pids"));
        assert_eq!(of("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0"), None);
        assert_eq!(of("tmpfs /tmp tmpfs rw 0 0"), None);
        assert_eq!(of(""), None);
    }
}
