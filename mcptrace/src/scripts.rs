//! The library of bpftrace scripts: questions that no native probe answers. Pure.
//!
//! A script is a file in `mcptrace/scripts`, compiled into the program. Its leading comment says what it is for in `key: value` lines, and
//! [`Script::parse`] makes a row of them. A script that can look at one process alone takes its id as `$1`, where 0 means all.

use std::{path::PathBuf, sync::LazyLock};

use crate::suggest::nearest;

/// What a client sees of the resource of a script, before its name.
pub const URI: &str = "mcptrace://scripts/";

macro_rules! library {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../scripts/", $name, ".bt")))),*] };
}

/// Every script by name, in the order of the catalogue: CPU, files, memory, disk, network, security.
const FILES: &[(&str, &str)] = library! {
    "workqueue_latency" "timer_functions" "cpu_idle_states" "cross_cpu_calls" "tlb_flushes" "scheduling_changes" "sleep_requests"
    "poll_timeouts" "thread_starts" "syscall_stacks" "hypervisor_exits"
    "io_request_sizes" "file_status_calls" "directory_scans" "directory_cache" "vfs_call_rates" "file_removals" "file_watches" "file_locks"
    "fd_growth" "io_uring_requests"
    "memory_mappings" "address_space_lock" "page_allocations" "kernel_allocations" "slab_growth" "kswapd_activity" "huge_page_collapse"
    "dirty_throttling" "writeback_reasons" "journal_commits" "disk_access_pattern" "block_errors"
    "tcp_round_trip" "accept_queue" "socket_overflows" "napi_budget" "packet_sizes" "unix_connections" "socket_kinds" "datagram_peers"
    "neighbour_changes" "route_failures"
    "permission_changes" "writable_code" "memory_file_use" "cgroup_changes" "clock_changes"
};

static LIBRARY: LazyLock<Vec<Script>> =
    LazyLock::new(|| FILES.iter().map(|(name, text)| Script::parse(name, text)).collect());

/// A bpftrace script and what its header says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Its name.
    pub name: String,
    /// The question that it answers.
    pub question: String,
    /// How to read what it prints.
    pub read: String,
    /// What the kernel must have beyond the script's hooks, in words.
    pub needs: String,
    /// How much it slows down what it looks at: `low` (rare events), `medium` (thousands a second), `high` (every packet, call or page).
    pub cost: String,
    /// Whether it can look at one process.
    pub pid: ByPid,
    /// The program.
    pub text: String,
    /// Where it was found, if it is not of the library.
    pub path: Option<PathBuf>,
}

/// Whether a script can look at one process alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ByPid {
    /// No: what it sees happens to no process in particular.
    #[default]
    Never,
    /// Yes, and at all of them too.
    Optional,
    /// It must: of all processes it would be too much.
    Required,
}

/// Why a script cannot be made into a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PidError {
    /// It needs a process.
    #[error("script {0} looks at one process: give its `pid`")]
    Missing(String),
    /// It has no use for one.
    #[error("script {0} cannot look at one process alone: leave `pid` out")]
    Useless(String),
}

/// All scripts of the library.
pub fn library() -> &'static [Script] {
    &LIBRARY
}

/// The script of a name.
pub fn find(name: &str) -> Option<&'static Script> {
    library().iter().find(|script| script.name == name)
}

/// The name most like one that is not known.
pub fn near(name: &str) -> Option<&'static str> {
    nearest(name, library().iter().map(|script| script.name.as_str()))
}

impl Script {
    /// A script of the library: its leading comment has `key: value` lines, which go on where the next begins with blanks.
    pub fn parse(name: &str, text: &str) -> Self {
        let head = text.lines().map_while(|line| line.strip_prefix("//"));
        let mut script = Self { name: name.into(), text: text.into(), ..Self::default() };
        let mut key = String::new();
        for line in head {
            let words = line.trim();
            let found = line.strip_prefix(' ').and_then(|line| line.split_once(": "));
            match found.filter(|(key, _)| key.bytes().all(|letter| letter.is_ascii_lowercase())) {
                Some((first, rest)) => {
                    first.clone_into(&mut key);
                    script.set(&key, rest);
                }
                None => script.set(&key, words),
            }
        }
        script
    }

    fn set(&mut self, key: &str, words: &str) {
        let field = match key {
            "question" => &mut self.question,
            "read" => &mut self.read,
            "needs" => &mut self.needs,
            "cost" => &mut self.cost,
            "pid" => {
                self.pid = if words == "required" { ByPid::Required } else { ByPid::Optional };
                return;
            }
            _ => return,
        };
        if !field.is_empty() {
            field.push(' ');
        }
        field.push_str(words);
    }

    /// The program for one process, or for all.
    ///
    /// The number goes into the text: nothing that a client wrote becomes an argument of bpftrace.
    pub fn program(&self, pid: Option<u32>) -> Result<String, PidError> {
        match (self.pid, pid) {
            (ByPid::Never, Some(_)) => Err(PidError::Useless(self.name.clone())),
            (ByPid::Never, None) => Ok(self.text.clone()),
            (ByPid::Required, None) => Err(PidError::Missing(self.name.clone())),
            (ByPid::Optional | ByPid::Required, pid) => Ok(self.text.replace("$1", &pid.unwrap_or(0).to_string())),
        }
    }

    /// Whether a program is this script, for whatever process.
    pub fn is(&self, program: &str) -> bool {
        let Some(start) = self.text.find("$1").filter(|_| self.pid != ByPid::Never) else {
            return self.text == program;
        };
        let Some(rest) = program.get(start..) else { return false };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && self.text.replace("$1", &rest[..digits]) == program
    }

    /// What it attaches to, as bpftrace names it.
    pub fn hooks(&self) -> Vec<String> {
        hooks(&self.text)
    }
}

/// What a program attaches to: the words outside of comments, preprocessor lines, predicates and bodies.
pub fn hooks(program: &str) -> Vec<String> {
    let (mut hooks, mut word) = (Vec::new(), String::new());
    let mut depth = 0_u32;
    let mut rest = program.chars().peekable();
    let mut line_begins = true;
    while let Some(letter) = rest.next() {
        match letter {
            '/' if rest.peek() == Some(&'/') => skip_past(&mut rest, "\n"),
            '/' if rest.peek() == Some(&'*') => skip_past(&mut rest, "*/"),
            '#' if line_begins => skip_past(&mut rest, "\n"),
            '"' => skip_string(&mut rest),
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            // A path in a probe's name has slashes too; a predicate begins a word.
            '/' if depth == 0 && word.is_empty() => skip_past(&mut rest, "/"),
            _ if depth > 0 => {}
            ',' | ' ' | '\t' | '\n' => take(&mut word, &mut hooks),
            _ => word.push(letter),
        }
        if depth > 0 {
            take(&mut word, &mut hooks);
        }
        line_begins = letter == '\n' || (line_begins && letter.is_whitespace());
    }
    take(&mut word, &mut hooks);
    hooks
}

fn take(word: &mut String, hooks: &mut Vec<String>) {
    let word = std::mem::take(word);
    if word.contains(':') && !hooks.contains(&word) {
        hooks.push(word);
    }
}

fn skip_past(rest: &mut impl Iterator<Item = char>, end: &str) {
    let mut last = String::new();
    for letter in rest {
        last.push(letter);
        if last.ends_with(end) {
            return;
        }
        if last.len() > 8 {
            last.remove(0);
        }
    }
}

fn skip_string(rest: &mut impl Iterator<Item = char>) {
    while let Some(letter) = rest.next() {
        match letter {
            '\\' => drop(rest.next()),
            '"' => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_rows_are_the_same() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts")).unwrap();
        let mut files: Vec<_> =
            files.map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
        files.sort();
        let mut names: Vec<_> = library().iter().map(|script| script.name.clone()).collect();
        names.sort();
        assert_eq!(files, names);
        assert!(names.len() >= 25);
    }

    #[test]
    fn headers_are_complete() {
        for script in library() {
            let Script { name, question, read, cost, pid, text, .. } = script;
            assert!(question.ends_with('?') && question.len() <= 130, "{name}: {question}");
            assert!(read.contains('@') || read.contains("One line"), "{name}: {read}");
            assert!(read.len() > 60 && read.ends_with('.'), "{name}: {read}");
            assert!(["low", "medium", "high"].contains(&cost.as_str()), "{name}: {cost}");
            assert_eq!(*pid != ByPid::Never, text.contains("$1"), "{name}");
            assert!(!script.hooks().is_empty(), "{name}");
        }
    }

    #[test]
    fn a_script_does_not_repeat_the_name_of_a_probe() {
        for script in library() {
            assert!(crate::probes::find(&script.name).is_none(), "{}", script.name);
        }
    }

    #[test]
    fn every_map_that_is_explained_exists() {
        for script in library() {
            let program: String = script.text.lines().filter(|line| !line.starts_with("//")).collect();
            let named = script.read.split('@').skip(1).map(|rest| {
                let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
                &rest[..end.unwrap_or(rest.len())]
            });
            for map in named {
                assert!(program.contains(&format!("@{map}")), "{}: @{map}", script.name);
            }
        }
    }

    #[test]
    fn a_header_goes_on_over_lines() {
        let text = "// question: Who?\n// read: @a is\n//   much: more\n// pid: required\n// cost: low\n\nBEGIN { }\n// read: no";
        let script = Script::parse("x", text);
        assert_eq!((script.question.as_str(), script.read.as_str()), ("Who?", "@a is much: more"));
        assert_eq!((script.cost.as_str(), script.pid), ("low", ByPid::Required));
    }

    #[test]
    fn a_process_is_a_number_in_the_program() {
        let script =
            |pid| Script { name: "x".into(), pid, text: "k:f /$1 == 0 || pid == $1/ {}".into(), ..Script::default() };
        assert_eq!(script(ByPid::Optional).program(Some(7)).unwrap(), "k:f /7 == 0 || pid == 7/ {}");
        assert_eq!(script(ByPid::Optional).program(None).unwrap(), "k:f /0 == 0 || pid == 0/ {}");
        assert_eq!(script(ByPid::Required).program(None), Err(PidError::Missing("x".into())));
        assert_eq!(script(ByPid::Never).program(Some(1)), Err(PidError::Useless("x".into())));
    }

    #[test]
    fn hooks_are_what_stands_outside_of_bodies() {
        let text = "#!/usr/bin/env bpftrace\n/* a:b\n */\n#include <x:y>\nBEGIN { @a = 1 ? 2 : 3; }\n// c:d\ntracepoint:a:b,\nkprobe:f\n\
            /pid == 1 ? 1 : 0/ { printf(\"}%s:\\\"\", \"{\"); if (1) { } }\nuprobe:/bin/bash:readline { } k:g{}\nprofile:hz:99";
        assert_eq!(hooks(text), ["tracepoint:a:b", "kprobe:f", "uprobe:/bin/bash:readline", "k:g", "profile:hz:99"]);
        assert_eq!(hooks("struct a { int b; };\n\"a:b"), [""; 0]);
    }
}
