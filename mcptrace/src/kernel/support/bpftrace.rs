//! The bpftrace of this system: its version and what it says of itself.

use std::sync::{Mutex, PoisonError};

use super::{BpftraceSupport, Feature};
use crate::bpftrace::{Bpftrace, Category, ScriptError};

/// How many features are kept; 0.17 names 35, 0.24 some 60.
const MOST_FEATURES: usize = 200;
/// How much of the answer is kept, in bytes.
const MOST_INFO: usize = 16 << 10;

/// Asks it, once for each version that is found.
pub(super) fn check(command: Option<&[String]>) -> BpftraceSupport {
    static KNOWN: Mutex<Option<BpftraceSupport>> = Mutex::new(None);
    let found = match Bpftrace::served(command) {
        Ok(found) => found,
        Err(error) => return missing(&error, command),
    };
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let version = version(found.version());
    let same = |known: &BpftraceSupport| known.command == found.command() && known.version.as_ref() == Some(&version);
    if let Some(known) = known.filter(same) {
        return known;
    }
    let support = ask(&found, version);
    if support.works {
        *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(support.clone());
    }
    support
}

fn ask(found: &Bpftrace, version: String) -> BpftraceSupport {
    let base = BpftraceSupport {
        installed: true,
        version: Some(version),
        command: found.command().to_vec(),
        ..BpftraceSupport::default()
    };
    match found.info() {
        Ok(info) => BpftraceSupport { works: true, features: parse(&info), info: head(info), ..base },
        Err(error) => BpftraceSupport { reason: Some(error.message.clone()), remedy: error.remedy.clone(), ..base },
    }
}

fn missing(error: &ScriptError, command: Option<&[String]>) -> BpftraceSupport {
    BpftraceSupport {
        installed: error.category != Category::Missing,
        command: command.unwrap_or_default().to_vec(),
        reason: Some(error.message.clone()),
        remedy: error.remedy.clone(),
        ..BpftraceSupport::default()
    }
}

fn version((major, minor, patch): (u32, u32, u32)) -> String {
    format!("{major}.{minor}.{patch}")
}

fn head(mut text: String) -> String {
    let end = (0..=MOST_INFO.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    if end < text.len() {
        text.truncate(end);
        text.push_str("\n[cut]");
    }
    text
}

/// Headings stand at the start of a line, features below them, indented, as `name: value`.
fn parse(info: &str) -> Vec<Feature> {
    let mut section = "";
    let mut features = Vec::new();
    for line in info.lines() {
        let inside = line.starts_with([' ', '\t']);
        match line.trim().rsplit_once(": ") {
            Some((name, value)) if inside => features.push(feature(section, name, value)),
            _ if !inside && !line.is_empty() => section = line.trim(),
            _ => {}
        }
    }
    features.truncate(MOST_FEATURES);
    features
}

fn feature(section: &str, name: &str, value: &str) -> Feature {
    Feature { section: section.to_owned(), name: name.trim().to_owned(), value: value.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of bpftrace 0.17.0.
    const INFO: &str = "System\n  OS: Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0\n  Arch: x86_64\n\nBuild\n  version: v0.17.0\n  \
        libdw (DWARF support): yes\n\nKernel features\n  uprobe refcount (depends on Build:bcc bpf_attach_uprobe \
        refcount): yes\n\nProbe types\n  iter:task: no\n";

    #[test]
    fn features_are_read_by_section() {
        let features = parse(INFO);
        let of = |name: &str| features.iter().find(|feature| feature.name == name).unwrap();
        assert_eq!(of("iter:task"), &feature("Probe types", "iter:task", "no"));
        assert_eq!(of("libdw (DWARF support)"), &feature("Build", "libdw (DWARF support)", "yes"));
        assert_eq!(of("Arch").value, "x86_64");
        assert_eq!(of("uprobe refcount (depends on Build:bcc bpf_attach_uprobe refcount)").section, "Kernel features");
        assert_eq!(features.len(), 6);
    }

    #[test]
    fn other_text_gives_no_features_and_no_end_is_needed() {
        assert!(parse("").is_empty());
        assert!(parse("ERROR: something: else\n\n").is_empty());
        assert_eq!(parse(&"  a: b\n".repeat(1000)).len(), MOST_FEATURES);
        assert!(head("é".repeat(MOST_INFO)).len() <= MOST_INFO + 10);
    }
}
