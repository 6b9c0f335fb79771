//! Where the kernel's trace file system is, and mounting it where that is allowed.
//!
//! Classic tracepoints are listed and described only there. A freshly booted machine may have it unmounted.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Where it belongs since Linux 4.1.
pub const MOUNT_POINT: &str = "/sys/kernel/tracing";
/// What mounts it.
pub const MOUNT_COMMAND: &str = "mount -t tracefs tracefs /sys/kernel/tracing";

/// Where it was before; entering it mounts tracefs on kernels up to 6.17 at least.
const DEBUGFS_PLACE: &str = "/sys/kernel/debug/tracing";
/// `TRACEFS_MAGIC` of `include/uapi/linux/magic.h`.
const TRACEFS_MAGIC: u64 = 0x7472_6163;

/// The state of tracefs, as this thread sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracefs {
    /// Mounted, and its files can be read.
    MountedAt(PathBuf),
    /// Mounted nowhere.
    NotMounted,
    /// Mounted, but closed to this process.
    NotReadable {
        /// Where.
        at: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

/// Why tracefs cannot be used, with the command that changes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TracefsError {
    /// It is not mounted and must not be mounted from here.
    #[error("tracefs is not mounted, so classic tracepoints are unknown. As root: `{MOUNT_COMMAND}`")]
    NotMounted,
    /// Mounting it failed.
    #[error("tracefs is not mounted, and mounting it failed ({0}). As root: `{MOUNT_COMMAND}`")]
    MountFailed(String),
    /// The kernel has none.
    #[error("this kernel has no tracefs ({MOUNT_POINT} does not exist): it is built without CONFIG_TRACING")]
    Unsupported,
    /// This process may not read it.
    #[error(
        "tracefs at {} cannot be read ({reason}): it is open to root only. Run as root or grant CAP_DAC_READ_SEARCH",
        at.display()
    )]
    NotReadable {
        /// Where it is.
        at: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

/// Looks for tracefs without changing anything.
pub fn state() -> Tracefs {
    let Some(at) = find() else { return Tracefs::NotMounted };
    match File::open(at.join("available_events")) {
        Ok(_) => Tracefs::MountedAt(at),
        Err(error) => Tracefs::NotReadable { at, reason: error.to_string() },
    }
}

/// The directory of tracefs; mounts it first when it is not mounted and `allow_mount` says that this may be done.
pub fn ensure(allow_mount: bool) -> Result<PathBuf, TracefsError> {
    match state() {
        Tracefs::MountedAt(at) => Ok(at),
        Tracefs::NotReadable { at, reason } => Err(TracefsError::NotReadable { at, reason }),
        Tracefs::NotMounted if !Path::new(MOUNT_POINT).is_dir() => Err(TracefsError::Unsupported),
        Tracefs::NotMounted if allow_mount => mount_it(),
        Tracefs::NotMounted => Err(TracefsError::NotMounted),
    }
}

fn mount_it() -> Result<PathBuf, TracefsError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("tracefs", MOUNT_POINT, "tracefs", flags, None) {
        // Busy: somebody else was faster.
        Ok(()) | Err(Errno::BUSY) => Ok(PathBuf::from(MOUNT_POINT)),
        Err(error) => Err(TracefsError::MountFailed(io::Error::from(error).to_string())),
    }
}

fn find() -> Option<PathBuf> {
    let usual = [MOUNT_POINT, DEBUGFS_PLACE].map(Path::new);
    usual.into_iter().find(|at| is_tracefs(at)).map(Path::to_owned).or_else(mounted_elsewhere)
}

fn is_tracefs(at: &Path) -> bool {
    statfs(at).is_ok_and(|stat| stat.f_type as u64 == TRACEFS_MAGIC)
}

/// The mounts of this thread, not of the process: a thread may be in a mount namespace of its own.
fn mounted_elsewhere() -> Option<PathBuf> {
    mount_point(&fs::read_to_string("/proc/thread-self/mounts").ok()?).filter(|at| is_tracefs(at))
}

/// The first tracefs of a mount table in the form of `/proc/self/mounts`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "tracefs").then(|| PathBuf::from(unescape(at)))
    })
}

/// The kernel writes blanks in mount points as octal escapes (`mangle_path` in `fs/seq_file.c`).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_tracefs_in_a_mount_table() {
        let mounts = "proc /proc proc rw 0 0\nnone /a\\040b tracefs rw,relatime 0 0\nsysfs /sys sysfs rw 0 0\n";
        assert_eq!(mount_point(mounts), Some(PathBuf::from("/a b")));
        assert_eq!(mount_point("tracefs /tracefs proc rw 0 0\n"), None);
        assert_eq!(mount_point(""), None);
    }

    #[test]
    fn every_error_says_what_to_do() {
        assert!(TracefsError::NotMounted.to_string().contains(MOUNT_COMMAND));
        assert!(TracefsError::MountFailed("EPERM".into()).to_string().contains(MOUNT_COMMAND));
        let closed = TracefsError::NotReadable { at: MOUNT_POINT.into(), reason: "denied".into() };
        assert!(closed.to_string().contains("CAP_DAC_READ_SEARCH"));
    }
}
