//! Control groups of names that a test chooses.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

use crate::workload::Workload;

/// A control group below the cgroup2 mount; removed when dropped.
#[derive(Debug)]
pub struct Named(PathBuf);

impl Named {
    /// Makes it, by its path below the mount.
    ///
    /// # Panics
    ///
    /// If no hierarchy of version 2 is mounted.
    pub fn new(path: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup2 mount");
        let group = PathBuf::from(mount.split(' ').nth(1).unwrap()).join(path);
        fs::create_dir_all(&group).unwrap();
        Self(group)
    }

    /// Moves a workload into it.
    pub fn add(&self, workload: &Workload) {
        fs::write(self.processes(), workload.pid().to_string()).unwrap();
    }

    /// The file that processes are moved into it by.
    pub fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A hierarchy of version 1 as container runtimes use it, of which the kernel's programs see nothing; unmounted when dropped.
#[derive(Debug)]
pub struct Version1(TempDir);

impl Version1 {
    /// Mounts it, with a group in it.
    ///
    /// # Panics
    ///
    /// If it cannot be mounted.
    pub fn new(group: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = ["-t", "cgroup", "-o", "none,name=mcptrace_tests", "none"];
        let mounted = Command::new("mount").args(mount).arg(folder.path()).status().unwrap();
        assert!(
            mounted.success(),
            "a hierarchy without controllers can be mounted by every kernel with control groups"
        );
        fs::create_dir_all(folder.path().join(group)).unwrap();
        Self(folder)
    }

    /// Moves a workload into the group.
    pub fn put(&self, group: &str, workload: &Workload) {
        fs::write(self.0.path().join(group).join("cgroup.procs"), workload.pid().to_string()).unwrap();
    }
}

impl Drop for Version1 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
