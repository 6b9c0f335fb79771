//! The filters that every probe takes, as a caller writes them and as the kernel side reads them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use mcptrace_wire::{self as bits, COMM_LEN};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cgroups;
use crate::text::quoted;

/// Which threads a probe looks at. Every field that is set must match; the kernel side decides, so what does not match costs
/// next to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Process id (initial pid namespace)
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub pid: Option<u32>,
    /// Thread id
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub tid: Option<u32>,
    /// Command name, exact, at most 15 bytes
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub comm: Option<String>,
    /// User id
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub uid: Option<u32>,
    /// Control group: path below the cgroup2 mount, with all below it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub cgroup: Option<String>,
    /// Container id or the start of one
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub container: Option<String>,
    /// With pid: also its children from now on
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub descendants: bool,
    /// Only what took at least this long, in microseconds
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub min_duration_us: Option<u64>,
}

/// Why a filter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// No such process.
    #[error("filter.pid: there is no process {0}")]
    NoProcess(u32),
    /// A thread that is not the first of its process.
    #[error(
        "filter.pid: {0} is a thread of process {1}: use filter.tid for the thread, or filter.pid {1} for the process"
    )]
    NotAProcess(u32, u32),
    /// No such thread.
    #[error("filter.tid: there is no thread {0}")]
    NoThread(u32),
    /// The kernel keeps 15 bytes of a command name.
    #[error("filter.comm: `{0}` has more than 15 bytes; the kernel keeps the first 15 of a command name: use `{1}`")]
    LongComm(String, String),
    /// No command name is empty or goes on behind its end.
    #[error("filter.comm: a command name has 1 to 15 bytes and no NUL; leave the filter out to see every command")]
    NoComm,
    /// `descendants` follows a process.
    #[error("filter.descendants needs filter.pid: the process whose children are followed")]
    DescendantsOfNothing,
    /// No cgroup2 hierarchy.
    #[error("filter.{0}: no cgroup2 hierarchy is mounted here (mount -t cgroup2 none /sys/fs/cgroup)")]
    NoHierarchy(&'static str),
    /// It is in a hierarchy of version 1 only.
    #[error(
        "filter.{field}: {place} is a control group of version 1, and the kernel's programs can only tell those of version 2 apart, \
         where its processes are not in one of their own. Use filter.pid of its first process with filter.descendants (head -n 1 {place}/cgroup.procs), or start the host \
         with systemd.unified_cgroup_hierarchy=1"
    )]
    Version1 {
        /// Which filter.
        field: &'static str,
        /// Its folder.
        place: String,
    },
    /// No such control group.
    #[error("filter.cgroup: there is no control group `{path}` below {mount}")]
    NoCgroup {
        /// As given.
        path: String,
        /// The hierarchy.
        mount: String,
    },
    /// No such container.
    #[error("filter.container: no control group below {mount} has `{id}` in its name; is the container running?")]
    NoContainer {
        /// As given.
        id: String,
        /// The hierarchy.
        mount: String,
    },
    /// Every container would match.
    #[error("filter.container is empty: give an id or the start of one, or leave the filter out to see everything")]
    EmptyContainer,
    /// A name, which the kernel does not know.
    #[error(
        "filter.container: `{0}` is no container id: give at least 4 of its hexadecimal digits (docker ps, crictl ps), or filter.cgroup"
    )]
    NoContainerId(String),
    /// Several containers.
    #[error("filter.container: `{id}` names {count} control groups; give more of the id")]
    AmbiguousContainer {
        /// As given.
        id: String,
        /// How many.
        count: usize,
    },
    /// What the probe looks at has no duration.
    #[error("filter.min_duration_us: {0} measures no durations, so none can be too short; leave it out")]
    NoDuration(&'static str),
    /// Both name a control group.
    #[error("filter.cgroup and filter.container exclude each other: give one")]
    Both,
}

/// A filter as globals of the kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Globals and their values.
    pub globals: Vec<(&'static str, Vec<u8>)>,
    /// The process that is named.
    pub pid: Option<u32>,
    /// The process to follow.
    pub follow: Option<u32>,
    /// Whether any filter on threads is in force.
    pub on_threads: bool,
}

impl Filter {
    /// Looks up what the filter names.
    pub fn resolve(&self) -> Result<Resolved, FilterError> {
        self.check()?;
        let mut resolved = Resolved { pid: self.pid, ..Resolved::default() };
        let mut filters = 0;
        let mut set = |bit: u32, global, value: &[u8]| {
            filters |= bit;
            resolved.globals.push((global, value.to_vec()));
        };
        if let Some(pid) = self.pid {
            let bit = if self.descendants { bits::BY_FOLLOWED } else { bits::BY_PID };
            set(bit, "FILTER_PID", &pid.to_ne_bytes());
        }
        if let Some(tid) = self.tid {
            set(bits::BY_TID, "FILTER_TID", &tid.to_ne_bytes());
        }
        if let Some(uid) = self.uid {
            set(bits::BY_UID, "FILTER_UID", &uid.to_ne_bytes());
        }
        if let Some(comm) = &self.comm {
            set(bits::BY_COMM, "FILTER_COMM", &padded(comm));
        }
        if let Some(cgroup) = self.cgroup()? {
            set(bits::BY_CGROUP, "FILTER_CGROUP", &cgroup.id.to_ne_bytes());
            set(bits::BY_CGROUP, "FILTER_CGROUP_LEVEL", &cgroup.level.to_ne_bytes());
        }
        resolved.globals.push(("FILTERS", filters.to_ne_bytes().to_vec()));
        if let Some(us) = self.min_duration_us {
            resolved.globals.push(("FILTER_MIN_NS", us.saturating_mul(1000).to_ne_bytes().to_vec()));
        }
        resolved.on_threads = filters != 0;
        resolved.follow = self.pid.filter(|_| self.descendants);
        Ok(resolved)
    }

    fn check(&self) -> Result<(), FilterError> {
        if self.descendants && self.pid.is_none() {
            return Err(FilterError::DescendantsOfNothing);
        }
        if let Some(pid) = self.pid {
            check_process(pid)?;
        }
        // Threads are not listed in /proc, but they can be looked up there.
        if let Some(tid) = self.tid.filter(|tid| !Path::new(&format!("/proc/{tid}")).exists()) {
            return Err(FilterError::NoThread(tid));
        }
        match &self.comm {
            Some(comm) if comm.len() >= COMM_LEN => {
                let end = (0..COMM_LEN).rev().find(|end| comm.is_char_boundary(*end)).unwrap_or(0);
                Err(FilterError::LongComm(quoted(comm), quoted(&comm[..end])))
            }
            Some(comm) if comm.is_empty() || comm.contains('\0') => Err(FilterError::NoComm),
            _ => Ok(()),
        }
    }

    fn cgroup(&self) -> Result<Option<Cgroup>, FilterError> {
        match (&self.cgroup, &self.container) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(FilterError::Both),
            (Some(path), None) => hierarchy("cgroup")
                .and_then(|mount| cgroup_by_path(&mount, path))
                .map(Some)
                .map_err(|error| version_1(error, "cgroup", |mount| folder_below(mount, path))),
            (None, Some(id)) if id.is_empty() => Err(FilterError::EmptyContainer),
            (None, Some(id)) if !is_id(id) => Err(FilterError::NoContainerId(quoted(id))),
            (None, Some(id)) => hierarchy("container")
                .and_then(|mount| cgroup_of_container(&mount, id))
                .map(Some)
                .map_err(|error| version_1(error, "container", |mount| containers_below(mount, id).pop())),
        }
    }
}

/// Threads can be looked up in /proc as processes can, and say of which process they are.
fn check_process(pid: u32) -> Result<(), FilterError> {
    if !Path::new(&format!("/proc/{pid}")).exists() {
        return Err(FilterError::NoProcess(pid));
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    match process {
        Some(process) if process != pid => Err(FilterError::NotAProcess(pid, process)),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cgroup {
    /// `bpf_get_current_cgroup_id` gives the inode number of the directory.
    id: u64,
    level: u32,
}

/// How many control groups are looked through for a container.
const MOST_CGROUPS: usize = 100_000;

fn padded(comm: &str) -> [u8; COMM_LEN] {
    let mut bytes = [0; COMM_LEN];
    bytes[..comm.len()].copy_from_slice(comm.as_bytes());
    bytes
}

fn hierarchy(field: &'static str) -> Result<PathBuf, FilterError> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    cgroup2_mount(&mounts).ok_or(FilterError::NoHierarchy(field))
}

pub(super) fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find(|fields| fields.get(2) == Some(&"cgroup2")).map(|fields| PathBuf::from(fields[1]))
}

/// Why a group that version 2 does not have cannot be filtered by, where a hierarchy of version 1 has it; else the error as it is.
fn version_1(error: FilterError, field: &'static str, find: impl Fn(&Path) -> Option<PathBuf>) -> FilterError {
    if matches!(error, FilterError::AmbiguousContainer { .. }) {
        return error;
    }
    let place = cgroups::version_1::mounts().iter().find_map(|mount| find(mount));
    place.map_or(error, |place| FilterError::Version1 { field, place: quoted(&place.display().to_string()) })
}

/// A folder below a mount that is not the mount itself.
fn folder_below(mount: &Path, path: &str) -> Option<PathBuf> {
    let relative = path.trim_start_matches('/');
    let inside = !relative.is_empty() && !relative.split('/').any(|part| part == "..");
    inside.then(|| mount.join(relative)).filter(|folder| folder.is_dir())
}

fn cgroup_by_path(mount: &Path, path: &str) -> Result<Cgroup, FilterError> {
    let relative = path.trim_start_matches('/');
    let inside = !relative.split('/').any(|part| part == "..");
    let found = inside.then(|| cgroup_at(mount, &mount.join(relative))).and_then(Result::ok);
    found.ok_or_else(|| FilterError::NoCgroup { path: quoted(path), mount: mount.display().to_string() })
}

fn cgroup_of_container(mount: &Path, id: &str) -> Result<Cgroup, FilterError> {
    let none = || FilterError::NoContainer { id: quoted(id), mount: mount.display().to_string() };
    match containers_below(mount, id).as_slice() {
        [one] => cgroup_at(mount, one).map_err(|_| none()),
        [] => Err(none()),
        many => Err(FilterError::AmbiguousContainer { id: quoted(id), count: many.len() }),
    }
}

/// The control groups of containers whose id begins so.
fn containers_below(mount: &Path, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![mount.to_owned()];
    let mut seen = 0;
    while let Some(directory) = left.pop() {
        seen += 1;
        let names_it =
            !id.is_empty() && directory.file_name().is_some_and(|name| is_container(&name.to_string_lossy(), id));
        if names_it {
            found.push(directory);
        } else if seen < MOST_CGROUPS {
            left.extend(subdirectories(&directory));
        }
    }
    found
}

/// Whether this may be an id of a container or the beginning of one.
fn is_id(id: &str) -> bool {
    (4..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the name of a control group is that of a container: `docker-ID.scope`, `crio-ID.scope`, `libpod-ID`, or `ID` alone.
fn is_container(name: &str, id: &str) -> bool {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    name.starts_with(id) || name.rsplit_once('-').is_some_and(|(_, last)| last.starts_with(id))
}

pub(super) fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn cgroup_at(mount: &Path, directory: &Path) -> io::Result<Cgroup> {
    let metadata = fs::metadata(directory)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let below = directory.strip_prefix(mount).map_or(0, |path| path.components().count());
    Ok(Cgroup { id: metadata.ino(), level: below as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_without_fields_sets_no_bit() {
        let resolved = Filter::default().resolve().unwrap();
        assert_eq!(resolved.globals, [("FILTERS", vec![0; 4])]);
        assert!(!resolved.on_threads);
    }

    #[test]
    fn descendants_take_the_place_of_the_exact_process() {
        let filter = Filter { pid: Some(std::process::id()), descendants: true, ..Filter::default() };
        let resolved = filter.resolve().unwrap();
        assert_eq!(resolved.follow, filter.pid);
        assert!(resolved.globals.contains(&("FILTERS", bits::BY_FOLLOWED.to_ne_bytes().to_vec())));
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let error = |filter: Filter| filter.resolve().unwrap_err().to_string();
        assert_eq!(
            error(Filter { pid: Some(0x7fff_fff0), ..Filter::default() }),
            "filter.pid: there is no process 2147483632"
        );
        assert_eq!(
            error(Filter { comm: Some(String::new()), ..Filter::default() }),
            "filter.comm: a command name has 1 to 15 bytes and no NUL; leave the filter out to see every command"
        );
        assert_eq!(
            error(Filter { container: Some(String::new()), ..Filter::default() }),
            "filter.container is empty: give an id or the start of one, or leave the filter out to see everything"
        );
        assert!(
            error(Filter { comm: Some("a_name_that_is_long".into()), ..Filter::default() })
                .contains("`a_name_that_is_`")
        );
        assert!(error(Filter { descendants: true, ..Filter::default() }).contains("needs filter.pid"));
    }

    #[test]
    fn a_thread_is_not_taken_for_a_process_nor_a_name_for_a_container() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receiver.recv());
        let own = std::process::id();
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let tid = threads.filter_map(|task| task.file_name().to_string_lossy().parse().ok()).find(|tid| *tid != own);
        let said = Filter { pid: tid, ..Filter::default() }.check().unwrap_err().to_string();
        assert!(said.contains(&format!("is a thread of process {own}: use filter.tid")), "{said}");
        assert!(Filter { pid: Some(own), ..Filter::default() }.check().is_ok());
        drop(sender);
        thread.join().unwrap().unwrap_err();
        for name in ["s", "web-server", "4f2", "system.slice"] {
            let filter = Filter { container: Some(name.into()), ..Filter::default() };
            assert!(matches!(filter.cgroup(), Err(FilterError::NoContainerId(said)) if said == name), "{name}");
        }
    }

    #[test]
    fn names_of_containers_are_recognised() {
        assert!(is_container("docker-4f2a99.scope", "4f2a"));
        assert!(is_container("4f2a99", "4f2a"));
        assert!(!is_container("user-1000.slice", "4f2a"));
    }

    #[test]
    fn the_second_hierarchy_of_a_hybrid_host_is_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }
}
