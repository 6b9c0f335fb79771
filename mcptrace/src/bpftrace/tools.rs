//! The bpftrace tools that the host has installed: found, never changed.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::PROGRAM_BYTES;
use crate::{
    scripts::{self, Script},
    text::untrusted,
};

/// Where packages put them: Debian as commands, others in a folder of examples.
const FOLDERS: &[&str] = &["/usr/sbin", "/usr/share/bpftrace/tools", "/usr/local/share/bpftrace/tools"];
/// How many are looked at. bpftrace comes with some 40.
const MOST: usize = 200;

/// The tools found, by file name (`biolatency.bt`), in alphabetical order.
pub fn installed() -> Vec<Script> {
    installed_in(FOLDERS)
}

/// The tool of a file name.
fn find(name: &str) -> Option<Script> {
    let is_file = Path::new(name).extension().is_some_and(|end| end == "bt");
    is_file.then(installed)?.into_iter().find(|tool| tool.name == name)
}

/// The script of a name: of the library, or a tool of the host.
pub fn named(name: &str) -> Option<Script> {
    scripts::find(name).cloned().or_else(|| find(name))
}

fn installed_in(folders: &[&str]) -> Vec<Script> {
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let paths = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "bt"));
    let mut tools: Vec<Script> = paths.take(MOST).filter_map(|path| read(&path)).collect();
    // The same name in two folders: the first one is what a shell would run.
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    tools.dedup_by(|second, first| second.name == first.name);
    tools
}

/// A tool that only root can have put there, and that is no longer than a program may be.
fn read(path: &Path) -> Option<Script> {
    let status = fs::metadata(path).ok()?;
    let trusted = status.is_file() && status.uid() == 0 && status.mode() & 0o022 == 0;
    if !trusted || status.len() > PROGRAM_BYTES as u64 {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let name = path.file_name()?.to_str()?;
    Some(Script {
        name: untrusted(name.as_bytes(), 60),
        question: summary(name, &text),
        path: Some(path.to_owned()),
        text,
        ..Script::default()
    })
}

/// What the first line of its comment says after its name.
fn summary(name: &str, text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("#!"));
    let words = lines.map(|line| line.trim_start_matches(['/', '*', ' ', '\t']).trim());
    let first = words.into_iter().find(|line| !line.is_empty()).unwrap_or_default();
    let stem = name.trim_end_matches(".bt");
    let rest = first.strip_prefix(name).or_else(|| first.strip_prefix(stem)).unwrap_or(first);
    untrusted(rest.trim_start_matches([' ', '\t', '-']).as_bytes(), 120)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_summary_is_what_the_comment_begins_with() {
        let of = |line: &str| summary("biolatency.bt", &format!("#!/usr/bin/env bpftrace\n/*\n * {line}\n *\n */"));
        assert_eq!(of("biolatency.bt\tBlock I/O latency."), "Block I/O latency.");
        assert_eq!(of("biolatency - Block I/O latency."), "Block I/O latency.");
        assert_eq!(of("Block I/O latency."), "Block I/O latency.");
        assert_eq!(summary("x.bt", "BEGIN { }"), "BEGIN { }");
        assert_eq!(summary("x.bt", ""), "");
    }

    #[test]
    fn what_others_can_write_is_no_tool() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("a.bt", 0o644), ("b.bt", 0o666), ("c.txt", 0o644)] {
            let path = folder.path().join(name);
            fs::write(&path, "// a\tAnswers.\nBEGIN { exit(); }").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let root = fs::metadata(folder.path()).unwrap().uid() == 0;
        let found = installed_in(&[folder.path().to_str().unwrap(), "/nonexistent"]);
        let names: Vec<_> = found.iter().map(|tool| (tool.name.as_str(), tool.question.as_str())).collect();
        assert_eq!(names, if root { vec![("a.bt", "Answers.")] } else { vec![] });
    }
}
