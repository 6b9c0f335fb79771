//! Names of control groups: from the id that kernel programs see to the path, and from the path to a container or unit.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::filter::cgroup2_mount;

/// How many control groups are looked at.
const MOST: usize = 20_000;
/// How often the hierarchy is looked through again for an id that is not known.
const AGAIN: Duration = Duration::from_secs(1);

/// The path of a control group below the mount of the version 2 hierarchy, which begins with a slash; `None` if there is none of that
/// id any more. Its id is the inode number of its directory.
pub fn path(id: u64) -> Option<String> {
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let stale = known.as_ref().is_none_or(|known| !known.paths.contains_key(&id) && known.read.elapsed() > AGAIN);
    if stale {
        let mut paths = known.take().map(|known| known.paths).unwrap_or_default();
        // Those that are gone keep their names, for events that came before.
        if paths.len() > MOST {
            paths.clear();
        }
        paths.extend(read());
        *known = Some(Known { paths, read: Instant::now() });
    }
    known.as_ref()?.paths.get(&id).cloned()
}

/// The container of a control group: the first 12 digits of the id in its path, as runtimes print it.
pub fn container(path: &str) -> Option<String> {
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = path.rsplit('/').flat_map(|part| part.trim_end_matches(".scope").rsplit(['-', ':']));
    words.into_iter().find(is_id).map(|id| id[..12].to_owned())
}

/// The systemd unit of a control group: the innermost service or scope in its path.
pub fn unit(path: &str) -> Option<&str> {
    let is_unit = |part: &&str| matches!(part.rsplit_once('.'), Some((_, "service" | "scope")));
    path.rsplit('/').find(is_unit)
}

struct Known {
    paths: HashMap<u64, String>,
    read: Instant,
}

fn read() -> HashMap<u64, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    cgroup2_mount(&mounts).map(|mount| walk(&mount)).unwrap_or_default()
}

fn walk(mount: &Path) -> HashMap<u64, String> {
    let mut paths = HashMap::new();
    let mut left: Vec<PathBuf> = vec![mount.to_owned()];
    while let Some(directory) = left.pop().filter(|_| paths.len() < MOST) {
        let Ok(metadata) = fs::metadata(&directory) else { continue };
        let below = directory.strip_prefix(mount).unwrap_or(&directory);
        paths.insert(metadata.ino(), format!("/{}", below.display()));
        left.extend(super::filter::subdirectories(&directory));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_the_usual_runtimes_are_recognised() {
        let id = "4f2a99".repeat(10) + "abcd";
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/docker/{id}"),
            format!("/kubepods.slice/kubepods-besteffort.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/burstable/pod1/{id}"),
            format!("/system.slice/containerd.service/kubepods-pod7.slice:cri-containerd:{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
        ] {
            assert_eq!(container(&path).as_deref(), Some("4f2a994f2a99"), "{path}");
        }
        assert_eq!(container("/system.slice/ssh.service"), None);
    }

    #[test]
    fn the_innermost_unit_counts() {
        assert_eq!(unit("/user.slice/user@0.service/app.slice/x.scope/y"), Some("x.scope"));
        assert_eq!(unit("/"), None);
    }

    #[test]
    fn directories_are_found_by_their_inode() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        let id = fs::metadata(root.path().join("a/b")).unwrap().ino();
        assert_eq!(walk(root.path())[&id], "/a/b");
    }
}
