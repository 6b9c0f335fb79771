//! Names of control groups: from the id that kernel programs see to the path, and from the path to a container or unit.

pub mod version_1;

use std::{
    collections::HashMap,
    fs,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::filter::cgroup2_mount;

/// How many control groups are looked at, and how many names are kept.
const MOST: usize = 20_000;
/// How often the hierarchy is looked through again for an id that is not known, where ids cannot be opened.
const AGAIN: Duration = Duration::from_secs(1);
/// `FILEID_KERNFS`: a file handle that is the 64-bit id of a kernfs node (include/linux/exportfs.h, Linux 5.5 and later).
const FILEID_KERNFS: i32 = 0xfe;

/// The path of a control group below the mount of the version 2 hierarchy, which begins with a slash; `None` if there is none of that
/// id any more and it was not looked up before. Its id is the inode number of its directory.
pub fn path(id: u64) -> Option<String> {
    with_known(|known| known.path(id))
}

/// The path of a process's group that names its container, else its unit, of either version; `None` if none does or the process has ended.
pub fn of_process(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    naming(text.lines(), |controllers| controllers.is_empty() || controllers == version_1::SYSTEMD)
}

/// The path of the group that names a container, else of one that names a unit where the hierarchy is for that. Lines are
/// `number:controllers:path` (cgroups(7)); that of version 2 names no controllers.
fn naming<'a>(lines: impl Iterator<Item = &'a str>, has_units: impl Fn(&str) -> bool) -> Option<String> {
    let groups: Vec<_> = lines.filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    let of_container = groups.iter().find(|(_, path)| container(path).is_some());
    let of_unit = || groups.iter().find(|(controllers, path)| has_units(controllers) && unit(path).is_some());
    of_container.or_else(of_unit).map(|(_, path)| (*path).to_owned())
}

/// Takes in the path of a control group that is gone, as the kernel told it.
pub fn remember(id: u64, path: String) {
    with_known(|known| known.remember(id, path));
}

fn with_known<T>(act: impl FnOnce(&mut Known) -> T) -> T {
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    act(KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Known::new))
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

/// Names that were found. Those of groups that are gone stay, for events that came before.
struct Known {
    paths: HashMap<u64, String>,
    mount: Option<(PathBuf, File)>,
    /// When the hierarchy was looked through.
    walked: Option<Instant>,
}

impl Known {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = cgroup2_mount(&mounts).and_then(|path| Some((path.clone(), File::open(path).ok()?)));
        Self { paths: HashMap::new(), mount, walked: None }
    }

    fn path(&mut self, id: u64) -> Option<String> {
        if let Some(path) = self.paths.get(&id) {
            return Some(path.clone());
        }
        self.make_room();
        let (mount, root) = self.mount.as_ref()?;
        match open(root, id) {
            Ok(directory) => {
                let path = below(mount, &fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?)?;
                self.paths.insert(id, path);
            }
            // Without CAP_DAC_READ_SEARCH, or before Linux 5.5, ids are found by looking at all groups.
            Err(error) if error.raw_os_error() != Some(libc::ESTALE) && self.may_walk() => {
                self.paths.extend(walk(mount));
                self.walked = Some(Instant::now());
            }
            Err(_) => {}
        }
        self.paths.get(&id).cloned()
    }

    fn remember(&mut self, id: u64, path: String) {
        self.make_room();
        self.paths.entry(id).or_insert(path);
    }

    fn make_room(&mut self) {
        if self.paths.len() > MOST {
            self.paths.clear();
        }
    }

    fn may_walk(&self) -> bool {
        self.walked.is_none_or(|walked| walked.elapsed() > AGAIN)
    }
}

/// Opens the directory of a control group by its id.
fn open(mount: &File, id: u64) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mut handle = Handle { bytes: size_of::<u64>() as u32, kind: FILEID_KERNFS, id };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `handle` has the layout of `struct file_handle` with the 8 bytes that it says follow; the descriptor is open.
    let opened = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// A directory's path below the mount; `None` if it is not below it.
fn below(mount: &Path, directory: &Path) -> Option<String> {
    Some(format!("/{}", directory.strip_prefix(mount).ok()?.display()))
}

fn walk(mount: &Path) -> HashMap<u64, String> {
    let mut paths = HashMap::new();
    let mut left: Vec<PathBuf> = vec![mount.to_owned()];
    while let Some(directory) = left.pop().filter(|_| paths.len() < MOST) {
        let Ok(metadata) = fs::metadata(&directory) else { continue };
        paths.extend(below(mount, &directory).map(|path| (metadata.ino(), path)));
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
    fn a_group_is_found_as_soon_as_it_is_there_and_keeps_its_name() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let Some(mount) = cgroup2_mount(&mounts) else { return };
        let mut known = Known::new();
        for turn in 0..3 {
            let name = format!("mcptrace-names-{}-{turn}", std::process::id());
            // Without privilege there are no new groups to be had.
            let Ok(()) = fs::create_dir(mount.join(&name)) else { return };
            let id = fs::metadata(mount.join(&name)).unwrap().ino();
            let found = known.path(id);
            fs::remove_dir(mount.join(&name)).unwrap();
            assert_eq!((found, known.path(id)), (Some(format!("/{name}")), Some(format!("/{name}"))));
        }
        assert_eq!(known.path(1 << 60), None);
    }

    #[test]
    fn directories_are_found_by_their_inode() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        let id = fs::metadata(root.path().join("a/b")).unwrap().ino();
        assert_eq!(walk(root.path())[&id], "/a/b");
    }
}
