//! What went wrong with a script, read out of bpftrace's words: pure but for the look at tracefs.

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::text::{escape, head};

/// How much of bpftrace's words an error repeats, in bytes.
const SAID_BYTES: usize = 2048;
/// What bpftrace before 0.25 says to everyone else, whatever their capabilities.
const ONLY_ROOT: &str = "only supports running as";
const BE_ROOT: &str = "run mcptrace as root: this bpftrace asks for the user, not for capabilities; native probes need CAP_BPF and CAP_PERFMON alone";
/// How many names an error proposes.
const PROPOSALS: usize = 3;

/// Why a script was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ScriptError {
    /// What kind of mistake it is.
    pub category: Category,
    /// One sentence.
    pub message: String,
    /// Where in the script, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub line: Option<u32>,
    /// Where in the line, in bytes, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub column: Option<u32>,
    /// bpftrace's own words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// Known names like the unknown one, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub did_you_mean: Vec<String>,
    /// What to do about it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remedy: Option<String>,
}

/// The kind of a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// It is not a bpftrace program.
    Syntax,
    /// It names a probe that is not there.
    UnknownProbe,
    /// It calls a function that bpftrace does not have.
    UnknownFunction,
    /// It names a variable, map, field or type that is not there.
    UnknownName,
    /// A value is of the wrong type, or arguments are missing.
    Type,
    /// This kernel cannot attach such a probe.
    UnsupportedProbeType,
    /// bpftrace may not do that here.
    Permission,
    /// The operator's policy does not allow it.
    Policy,
    /// It needs what is refused to scripts, such as `system()`.
    Unsafe,
    /// It is empty, too long or no text.
    BadInput,
    /// bpftrace is not there or is no bpftrace.
    Missing,
    /// It took too long.
    Timeout,
    /// Anything else.
    Other,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(formatter, "line {line}, column {column}: {}", self.message)?,
            (Some(line), None) => write!(formatter, "line {line}: {}", self.message)?,
            _ => formatter.write_str(&self.message)?,
        }
        if !self.did_you_mean.is_empty() {
            write!(formatter, "; did you mean {}?", self.did_you_mean.join(", "))?;
        }
        self.remedy.iter().try_for_each(|remedy| write!(formatter, "; {remedy}"))
    }
}

impl std::error::Error for ScriptError {}

impl ScriptError {
    pub(crate) fn new(category: Category, message: impl Into<String>) -> Self {
        Self {
            category,
            message: message.into(),
            line: None,
            column: None,
            said: String::new(),
            did_you_mean: Vec::new(),
            remedy: None,
        }
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Out of bpftrace's standard error (and output, for the few errors that it prints there).
    pub(crate) fn from_output(program: &str, stderr: &str, ending: &str) -> Self {
        let lines = spoken(stderr);
        let said = escape_lines(&lines);
        let first = lines.iter().find_map(|line| Located::find(line));
        let mut error = match first {
            Some(located) => {
                let mut error = Self::new(categorize(located.message), escape(located.message));
                (error.line, error.column) = (Some(located.line), located.column);
                error
            }
            None => Self::unlocated(&lines, ending),
        };
        error.said = said;
        error.advise(program, &TraceFs::of_this_kernel());
        error
    }

    fn unlocated(lines: &[&str], ending: &str) -> Self {
        let user = lines.iter().find(|line| line.contains(ONLY_ROOT));
        if let Some(line) = user {
            return Self::new(Category::Permission, escape(line.trim_start_matches("ERROR: "))).with_remedy(BE_ROOT);
        }
        let telling = |line: &&&str| line.contains("ERROR") || line.contains("error") || line.contains("FATAL");
        let Some(line) = lines.iter().find(telling).or(lines.last()) else {
            return Self::new(Category::Other, format!("bpftrace {ending} and said nothing"));
        };
        let message = line.strip_prefix("ERROR: ").or(line.strip_prefix("FATAL: ")).unwrap_or(line);
        let category = categorize(&lines.join("\n"));
        Self::new(category, format!("bpftrace {ending}: {}", escape(head(message, 512))))
    }

    /// Adds the place, the nearest names and the remedy where they can be found.
    fn advise(&mut self, program: &str, tracefs: &TraceFs<'_>) {
        if self.message.contains("Invalid probe type") {
            self.find_probe_type(program);
        }
        if let Some(name) = self.message.strip_prefix("tracepoint not found: ") {
            self.did_you_mean = tracefs.nearest(name);
        }
        if self.message.starts_with("tracepoint") && self.message.contains("not found") && !tracefs.mounted() {
            self.remedy = Some(TraceFs::UNMOUNTED.into());
        }
        if let Some(name) = self.message.strip_prefix("Unknown function: ") {
            self.did_you_mean = nearest(name, FUNCTIONS.iter().copied());
        }
        if let Some(name) = self.message.strip_prefix("Unknown identifier: '") {
            self.did_you_mean = nearest(name.trim_end_matches('\''), BUILTINS.iter().copied());
        }
        if self.category == Category::UnsupportedProbeType && self.remedy.is_none() {
            self.remedy = Some("this kernel cannot attach it; use a tracepoint or a native probe".into());
        }
    }

    /// bpftrace 0.17 aborts on an unknown probe type without saying which and where.
    fn find_probe_type(&mut self, program: &str) {
        let Some((offset, word)) = unknown_probe_type(program) else { return };
        let (line, column) = position(program, offset);
        (self.line, self.column) = (Some(line), Some(column));
        self.message = format!("this bpftrace has no probe type `{}`", escape(head(word, 64)));
        self.did_you_mean = nearest(word, PROBE_TYPES.iter().copied());
    }
}

/// The lines of standard error that say something: without the warnings that come on every machine of some kind.
///
/// Without `CAP_SYS_RESOURCE`, 0.17 says that it could not set `RLIMIT_MEMLOCK` and goes on. Without kprobes, it says that
/// it could not read the list of functions, without a line end.
pub(crate) fn spoken(stderr: &str) -> Vec<&str> {
    stderr.lines().map(without_harmless).filter(|line| !line.trim().is_empty()).collect()
}

fn without_harmless(line: &str) -> &str {
    let mut line = line;
    if let Some(at) = line.find("couldn't set RLIMIT_MEMLOCK") {
        line = &line[..line[..at].rfind("ERROR:").or(line[..at].rfind("WARNING:")).unwrap_or(0)];
    }
    if line.starts_with("Error while reading traceable functions from") { "" } else { line }
}

fn escape_lines(lines: &[&str]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| escape(line)).collect();
    let said = lines.join("\n");
    head(&said, SAID_BYTES).to_owned()
}

/// `stdin:1:9-21: ERROR: words`, or `stdin:1-3: ERROR: words` for one that spans lines.
struct Located<'a> {
    line: u32,
    column: Option<u32>,
    message: &'a str,
}

impl<'a> Located<'a> {
    fn find(line: &'a str) -> Option<Self> {
        let (place, message) = line.split_once(": ERROR: ")?;
        let mut parts = place.split(':').skip(1);
        let number = |part: Option<&str>| part?.split('-').next()?.parse().ok();
        Some(Self { line: number(parts.next())?, column: number(parts.next()), message })
    }
}

fn categorize(message: &str) -> Category {
    use Category::{
        Other, Permission, Syntax, Type, UnknownFunction, UnknownName, UnknownProbe, Unsafe, UnsupportedProbeType,
    };
    const WORDS: &[(&str, Category)] = &[
        ("unsafe function", Unsafe),
        ("Unknown function", UnknownFunction),
        ("Unknown identifier", UnknownName),
        ("Undefined", UnknownName),
        ("undeclared", UnknownName),
        ("Unknown struct", UnknownName),
        ("does not contain a field", UnknownName),
        ("file not found", UnknownName),
        ("not available for your kernel", UnsupportedProbeType),
        ("Error attaching probe", UnsupportedProbeType),
        ("perf_event_open failed", UnsupportedProbeType),
        ("not found", UnknownProbe),
        ("Invalid probe type", UnknownProbe),
        ("No probes to attach", UnknownProbe),
        ("does not exist", UnknownProbe),
        ("probe type requires", UnknownProbe),
        ("is not a software probe", UnknownProbe),
        ("is not a hardware probe", UnknownProbe),
        ("not an accepted unit", UnknownProbe),
        ("syntax error", Syntax),
        ("unexpected", Syntax),
        ("unterminated", Syntax),
        ("invalid character", Syntax),
        ("stoull", Syntax),
        ("ype mismatch", Type),
        ("specifier expects", Type),
        ("rgument", Type),
        ("Invalid condition", Type),
        ("String is too long", Type),
        ("requires", Type),
        (ONLY_ROOT, Permission),
        ("must be run as root", Permission),
        ("Operation not permitted", Permission),
        ("ermission denied", Permission),
        ("a password is required", Permission),
    ];
    WORDS.iter().find(|(words, _)| message.contains(words)).map_or(Other, |(_, category)| *category)
}

/// Probe types of bpftrace 0.17 and their short names (`src/types.cpp`, `PROBE_LIST`).
const PROBE_TYPES: &[&str] = &[
    "BEGIN",
    "END",
    "tracepoint",
    "t",
    "kprobe",
    "k",
    "kretprobe",
    "kr",
    "uprobe",
    "u",
    "uretprobe",
    "ur",
    "usdt",
    "U",
    "profile",
    "p",
    "interval",
    "i",
    "software",
    "s",
    "hardware",
    "h",
    "watchpoint",
    "w",
    "asyncwatchpoint",
    "aw",
    "kfunc",
    "f",
    "kretfunc",
    "fr",
    "iter",
    "it",
    "rawtracepoint",
    "rt",
];

/// Functions of bpftrace 0.17 (`man bpftrace`, section Functions).
const FUNCTIONS: &[&str] = &[
    "avg",
    "bswap",
    "buf",
    "cat",
    "cgroup_path",
    "cgroupid",
    "clear",
    "count",
    "delete",
    "exit",
    "hist",
    "join",
    "kaddr",
    "kptr",
    "kstack",
    "ksym",
    "lhist",
    "macaddr",
    "max",
    "min",
    "nsecs",
    "ntop",
    "override",
    "path",
    "print",
    "printf",
    "pton",
    "reg",
    "signal",
    "sizeof",
    "skboutput",
    "stats",
    "str",
    "strftime",
    "strncmp",
    "sum",
    "system",
    "time",
    "uaddr",
    "uptr",
    "ustack",
    "usym",
    "zero",
];

/// Built-in variables of bpftrace 0.17 (`man bpftrace`, section Builtins).
const BUILTINS: &[&str] = &[
    "args", "cgroup", "comm", "cpid", "cpu", "curtask", "elapsed", "func", "gid", "kstack", "nsecs", "numaddr", "pid",
    "probe", "rand", "retval", "tid", "uid", "username", "ustack",
];

/// The known names nearest to `name`: alike by more than half, best first.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut alike: Vec<(f64, &str)> = known
        .map(|known| (strsim::normalized_damerau_levenshtein(name, known), known))
        .filter(|(likeness, known)| *likeness > 0.5 && known.len() > 2)
        .collect();
    alike.sort_by(|left, right| right.0.total_cmp(&left.0));
    alike.into_iter().take(PROPOSALS).map(|(_, known)| known.to_owned()).collect()
}

/// The first word before a colon that is no probe type, and where it stands; strings and comments are passed over.
fn unknown_probe_type(program: &str) -> Option<(usize, &str)> {
    let bytes = program.as_bytes();
    let (mut at, mut depth, mut word) = (0, 0u32, 0..0);
    while at < bytes.len() {
        let next = match bytes[at] {
            b'"' => end_of_string(program, at),
            b'/' if program[at..].starts_with("//") => end_of(program, at, "\n"),
            b'/' if program[at..].starts_with("/*") => end_of(program, at + 2, "*/"),
            _ => at + 1,
        };
        match bytes[at] {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && word.end == at && !word.is_empty() => {
                let found = &program[word.clone()];
                if !PROBE_TYPES.contains(&found) {
                    return Some((word.start, found));
                }
                // The rest of a probe's name may hold colons too.
                at += program[at..].find([',', '{', ' ', '\t', '\n', '"']).unwrap_or(program.len() - at);
                continue;
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                word = if word.end == at { word.start..next } else { at..next };
            }
            _ => {}
        }
        at = next;
    }
    None
}

fn end_of_string(program: &str, start: usize) -> usize {
    let mut escaped = false;
    for (index, byte) in program.bytes().enumerate().skip(start + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    program.len()
}

fn end_of(program: &str, from: usize, mark: &str) -> usize {
    program.get(from..).and_then(|rest| rest.find(mark)).map_or(program.len(), |index| from + index + mark.len())
}

/// Line and column, from 1.
pub(super) fn position(program: &str, offset: usize) -> (u32, u32) {
    let before = &program[..offset];
    let line = before.matches('\n').count() + 1;
    let column = offset - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    (line as u32, column as u32)
}

/// Where the kernel lists its tracepoints.
struct TraceFs<'a> {
    places: &'a [&'a str],
}

impl TraceFs<'_> {
    const UNMOUNTED: &'static str = "tracefs at /sys/kernel/tracing is not mounted here, so bpftrace finds no tracepoint: \
         mount -t tracefs tracefs /sys/kernel/tracing";

    fn of_this_kernel() -> Self {
        Self { places: &["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"] }
    }

    fn events(&self) -> Option<&Path> {
        self.places.iter().map(Path::new).find(|path| path.is_dir())
    }

    fn mounted(&self) -> bool {
        self.events().is_some()
    }

    /// Tracepoints like `category:name`: of the same category if there is one, else of the nearest.
    fn nearest(&self, name: &str) -> Vec<String> {
        let Some((events, (category, event))) = self.events().zip(name.split_once(':')) else { return Vec::new() };
        let categories = entries(events);
        let known = categories.iter().find(|known| *known == category).cloned();
        let like = || nearest(category, categories.iter().map(String::as_str)).into_iter().next();
        let Some(category) = known.or_else(like) else { return Vec::new() };
        let known = entries(&events.join(&category));
        nearest(event, known.iter().map(String::as_str)).iter().map(|event| format!("{category}:{event}")).collect()
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMLOCK: &str = "ERROR: Unknown error -1: couldn't set RLIMIT_MEMLOCK for bpftrace. If your program is not loading, \
                           you can try \"ulimit -l 8192\" to fix the problem\n";

    fn error(program: &str, stderr: &str) -> ScriptError {
        ScriptError::from_output(program, stderr, "exited with status 1")
    }

    /// Each block of the fixture: `### program`, then what bpftrace 0.17 said, then `=> category line column`.
    #[test]
    fn real_errors_have_their_category_and_place() {
        let fixture = include_str!("../../../tests/fixtures/bpftrace/errors.txt");
        for block in fixture.split("### ").skip(1) {
            let (program, rest) = block.split_once('\n').unwrap();
            let (stderr, expected) = rest.split_once("=> ").unwrap();
            let error = error(&program.replace("\\n", "\n"), stderr);
            let place = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
            let category = serde_json::to_value(error.category).unwrap();
            let found = format!("{} {} {}", category.as_str().unwrap(), place(error.line), place(error.column));
            assert_eq!(found, expected.trim(), "{program}: {error:?}");
        }
    }

    #[test]
    fn the_memlock_line_is_never_said() {
        assert!(spoken(MEMLOCK).is_empty());
        let joined = format!(
            "Error while reading traceable functions from /x: No such file or directory{MEMLOCK}stdin:1:1-2: WARNING: w"
        );
        assert_eq!(spoken(&joined), ["stdin:1:1-2: WARNING: w"]);
        assert_eq!(error("BEGIN {}", MEMLOCK).message, "bpftrace exited with status 1 and said nothing");
    }

    #[test]
    fn near_names_are_proposed() {
        assert_eq!(error("", "stdin:1:1-4: ERROR: Unknown function: cuont").did_you_mean[0], "count");
        assert_eq!(error("", "stdin:1:1-4: ERROR: Unknown identifier: 'com'").did_you_mean[0], "comm");
        let unknown = error("BEGIN {}\n tracepont:a:b { }", "FATAL: Invalid probe type made it to attachpoint parser");
        assert_eq!((unknown.line, unknown.column), (Some(2), Some(2)));
        assert_eq!(unknown.did_you_mean, ["tracepoint", "rawtracepoint"]);
        assert_eq!(
            unknown.to_string(),
            "line 2, column 2: this bpftrace has no probe type `tracepont`; did you mean tracepoint, rawtracepoint?"
        );
    }

    #[test]
    fn colons_in_strings_comments_and_probe_names_are_no_probe_types() {
        let program = "// a:b\n/* c:d */ uprobe:/bin/x:\"y:z\" { printf(\"q:r\\\"s:t\"); $a = 1 ? b:c } kprobe:f { }";
        assert_eq!(unknown_probe_type(program), None);
        assert_eq!(unknown_probe_type("k:a,nope:b { }"), Some((4, "nope")));
        assert_eq!(unknown_probe_type("é /* "), None);
    }

    #[test]
    fn an_unmounted_tracefs_is_the_reason() {
        let mut error = ScriptError::new(Category::UnknownProbe, "tracepoint not found: sched:sched_switch");
        error.advise("", &TraceFs { places: &["/nowhere"] });
        assert!(error.remedy.unwrap().contains("tracefs at /sys/kernel/tracing is not mounted here"));
    }

    #[test]
    fn tracepoints_are_proposed_from_tracefs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["sched/sched_switch", "sched/sched_wakeup", "net/netif_rx"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let tracefs = folder.path().to_str().unwrap();
        let nearest = |name| TraceFs { places: &[tracefs] }.nearest(name);
        assert_eq!(nearest("sched:sched_swich")[0], "sched:sched_switch");
        assert_eq!(nearest("shed:sched_switch")[0], "sched:sched_switch");
        assert!(nearest("nothing:alike").is_empty());
    }
}
