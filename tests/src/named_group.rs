//! A control group of a name that a test chooses.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{fs, path::PathBuf};

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
