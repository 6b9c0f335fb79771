//! A control group with little memory.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{fs, path::PathBuf};

/// A control group for memory with a limit, of whichever version is there; gone when dropped.
#[derive(Debug)]
pub struct Limited(PathBuf);

impl Limited {
    /// Makes it.
    pub fn new(name: &str, bytes: u64) -> Self {
        let old = PathBuf::from("/sys/fs/cgroup/memory");
        let (root, file) =
            if old.is_dir() { (old, "memory.limit_in_bytes") } else { (PathBuf::from("/sys/fs/cgroup"), "memory.max") };
        let group = root.join(format!("mcptrace_{name}_{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        fs::write(group.join(file), bytes.to_string()).unwrap();
        // Without swap the limit is met at once.
        let _ = fs::write(group.join("memory.swappiness"), "0");
        let _ = fs::write(group.join("memory.swap.max"), "0");
        Self(group)
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) {
        fs::write(self.procs(), pid.to_string()).unwrap();
    }

    /// Moves a process out of it, to the group above.
    pub fn release(&self, pid: u32) {
        fs::write(self.0.with_file_name("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// The file that takes the ids of processes to move.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // The last process may still be on its way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
