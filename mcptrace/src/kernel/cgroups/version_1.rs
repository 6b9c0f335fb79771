//! Control groups of version 1, where containers are on older hosts and on those that have both versions. The kernel's programs see the
//! group of version 2 only, which there is that of all containers together; a process that runs is found in the others by `/proc`.

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long it is remembered whether any is mounted.
const AGAIN: Duration = Duration::from_secs(1);

/// The container of a process by its groups of version 1, or by its parent's if it has ended: a process begins where its parent is. Numbers
/// are not given out again before all others have been.
pub fn container(pid: u32, parent: u32) -> Option<String> {
    if !is_mounted() {
        return None;
    }
    let groups = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    of_groups(&groups(pid).or_else(|_| groups(parent)).ok()?)
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

/// Lines are `number:controllers:path` (cgroups(7)); that of version 2 names no controllers.
fn of_groups(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.is_empty() { None } else { super::container(path) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_in_any_hierarchy_of_version_1() {
        let id = "4f2a99".repeat(10) + "abcd";
        let docker = format!("9:name=systemd:/\n4:memory:/docker/{id}\n0::/\n");
        assert_eq!(of_groups(&docker).as_deref(), Some("4f2a994f2a99"));
        let kubernetes =
            format!("2:cpu,cpuacct:/kubepods/burstable/pod1:2/{id}\n0::/system.slice/containerd.service\n");
        assert_eq!(of_groups(&kubernetes).as_deref(), Some("4f2a994f2a99"));
        assert_eq!(
            of_groups(&format!("4:memory:/user.slice\n0::/docker/{id}\n")),
            None,
            "version 2 is asked by its id"
        );
        assert_eq!(of_groups("nonsense\n\n1:\n"), None);
    }
}
