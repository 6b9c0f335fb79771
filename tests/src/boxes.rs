//! The boxes of scripts, as what they leave.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

/// Control groups of boxes of these processes that are still there: their names have the number of whoever made them.
///
/// # Panics
///
/// Without /proc.
pub fn groups(pids: &BTreeSet<u32>) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let roots = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        kind.starts_with("cgroup").then(|| PathBuf::from(path))
    });
    let mut found = Vec::new();
    roots.for_each(|root| find_groups(&root, pids, 6, &mut found));
    found
}

fn find_groups(folder: &Path, pids: &BTreeSet<u32>, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let owner = |name: &OsStr| {
            name.to_str()?.strip_prefix("mcptrace_script-")?.split('-').find_map(|word| word.parse().ok())
        };
        match owner(&entry.file_name()) {
            Some(pid) if pids.contains(&pid) => found.push(entry.path()),
            _ if depth > 0 => find_groups(&entry.path(), pids, depth - 1, found),
            _ => {}
        }
    }
}
