//! Control groups of version 1, where containers are on older hosts and on those that have both versions. The kernel's programs see the
//! group of version 2 only, which there is that of all containers together; a process that runs is found in the others by `/proc`.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The hierarchy in which systemd keeps its units.
pub(super) const SYSTEMD: &str = "name=systemd";
/// How long it is remembered whether any is mounted.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the groups of a process are taken for those that were read: a page has many events of one process, and what starts a container
/// moves into it milliseconds before it executes its program.
const FRESH: Duration = Duration::from_millis(5);
/// Processes whose groups are kept, for what is shown of them after they have ended.
const MOST: usize = 20_000;
/// Control groups that are looked through for a container.
const MOST_GROUPS: usize = 20_000;

/// The path of a process's groups of version 1 that names its container, else its unit; that of a process that has ended as it was when it
/// was last asked for, or its parent's: a process begins where its parent is. Numbers are not given out again before all others have been.
/// That of this process is read once: to read it anew for what it opens itself would be something to trace again, for ever.
pub fn path(pid: u32, parent: u32) -> Option<String> {
    if !is_mounted() || pid == 0 {
        return None;
    }
    let is_fresh = |kept: &&Kept| pid == std::process::id() || kept.at.elapsed() < FRESH;
    if let Some(kept) = with_kept(|kept| kept.get(&pid).filter(is_fresh).cloned()) {
        return kept.path;
    }
    let before = || with_kept(|kept| kept.get(&pid)?.path.clone()).or_else(|| of_process(parent));
    let path = of_process(pid).or_else(|| if is_gone(pid) { before() } else { None });
    with_kept(|kept| {
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(pid, Kept { path: path.clone(), at: Instant::now() });
    });
    path
}

/// Whether there is a container in any hierarchy of version 1.
pub fn has_containers() -> bool {
    let mut left = mounts();
    let mut seen = 0;
    while let Some(directory) = left.pop().filter(|_| seen < MOST_GROUPS) {
        let name = directory.file_name().unwrap_or_default();
        if super::container(&name.to_string_lossy()).is_some() {
            return true;
        }
        seen += 1;
        left.extend(crate::kernel::filter::subdirectories(&directory));
    }
    false
}

/// What was read of a process's groups, and when.
#[derive(Clone)]
struct Kept {
    path: Option<String>,
    at: Instant,
}

fn with_kept<T>(act: impl FnOnce(&mut HashMap<u32, Kept>) -> T) -> T {
    static KEPT: Mutex<Option<HashMap<u32, Kept>>> = Mutex::new(None);
    act(KEPT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

fn of_process(pid: u32) -> Option<String> {
    of_groups(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// Whether a process has ended. One that its parent has not asked for yet is shown in the root of each hierarchy of version 1.
fn is_gone(pid: u32) -> bool {
    let state = |text: String| text.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X']));
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(state).unwrap_or(true)
}

/// Whether containers may be in groups of version 1 here.
pub fn is_mounted() -> bool {
    static KNOWN: Mutex<Option<(Instant, bool)>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    match *known {
        Some((at, is_mounted)) if at.elapsed() < AGAIN => is_mounted,
        _ => {
            let is_mounted = !mounts().is_empty();
            *known = Some((Instant::now(), is_mounted));
            is_mounted
        }
    }
}

/// Where hierarchies of version 1 are mounted.
pub(in crate::kernel) fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.get(2) == Some(&"cgroup"))
        .map(|fields| fields[1].replace("\\040", " ").into())
        .collect()
}

/// That of version 2 is asked by its id.
fn of_groups(text: &str) -> Option<String> {
    super::naming(text.lines().filter(|line| !line.starts_with("0::")), |controllers| controllers == SYSTEMD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_in_any_hierarchy_of_version_1_and_a_unit_in_that_of_systemd() {
        let id = "4f2a99".repeat(10) + "abcd";
        let of = |text: &str| of_groups(text).unwrap_or_default();
        let docker = format!("9:name=systemd:/system.slice/docker.service\n4:memory:/docker/{id}\n0::/\n");
        assert_eq!(of(&docker), format!("/docker/{id}"));
        let kubernetes =
            format!("2:cpu,cpuacct:/kubepods/burstable/pod1:2/{id}\n0::/system.slice/containerd.service\n");
        assert_eq!(of(&kubernetes), format!("/kubepods/burstable/pod1:2/{id}"));
        let ssh = "4:memory:/other.service\n1:name=systemd:/system.slice/ssh.service\n0::/\n";
        assert_eq!(of(ssh), "/system.slice/ssh.service");
        let version_2 = format!("4:memory:/user.slice\n0::/docker/{id}\n");
        assert_eq!(of_groups(&version_2), None, "version 2 is asked by its id");
        assert_eq!(of_groups("nonsense\n\n1:\n"), None);
    }
}
