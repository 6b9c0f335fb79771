//! The fallback: scripts run by the bpftrace of the system.
//!
//! A script is compiled first ([`Bpftrace::compile`]), then run in a process group of its own ([`Bpftrace::spawn`]) with
//! nothing but what it needs: no standard input, a scrubbed environment, and death when its parent dies. All that it
//! writes is taken in within [`Limits`], and what is left out is counted. The calls block; an execution has a thread.

mod collect;
mod error;
mod install;
pub mod policy;
mod process;
mod record;
mod reports;
pub mod sandbox;
mod session;
mod text;
pub mod tools;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use collect::PRINTED;
pub use error::{Category, ScriptError};
use process::{Process, Stream, ending};
use sandbox::Sandbox;
pub use session::{End, Progress, Session, View};

use crate::report::NamedReport;

/// The longest program, in bytes. Linux takes 128 KB in one argument; bpftrace compiles this one in seconds.
pub const PROGRAM_BYTES: usize = 64 * 1024;

/// How long `--version` and `--info` may take, on a machine that may be in trouble.
const QUESTION_TIME: Duration = Duration::from_secs(10);
/// How long a compilation may take.
const COMPILE_TIME: Duration = Duration::from_secs(20);
/// How much of an answer is kept, in bytes. `-d` writes megabytes that nobody reads.
const ANSWER_BYTES: usize = 64 * 1024;

/// A bpftrace that answered.
#[derive(Clone, Debug)]
pub struct Bpftrace {
    words: Vec<String>,
    version: (u32, u32, u32),
    sandbox: Option<&'static Sandbox>,
}

/// The bounds of one run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it will run. Only under sudo, where no signal reaches bpftrace, the script itself ends then.
    pub seconds: u64,
    /// Lines, events, and rows of a map that are kept; the first ones.
    pub lines: usize,
    /// Bytes of a line that are kept.
    pub line_bytes: usize,
    /// Bytes of all lines that are kept, and as many of events.
    pub bytes: usize,
    /// The longest record of bpftrace, in bytes. A map is one record.
    pub record_bytes: usize,
    /// Bytes of all map prints that are kept; the last ones.
    pub map_bytes: usize,
    /// How long bpftrace may take to print its maps after SIGINT.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            seconds: 60,
            lines: 10_000,
            line_bytes: 4096,
            bytes: 4 << 20,
            record_bytes: 8 << 20,
            map_bytes: 16 << 20,
            grace: Duration::from_secs(5),
        }
    }
}

/// What a script has found.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Text as bpftrace prints it without `-f json`, control characters escaped.
    pub lines: Vec<String>,
    /// How many lines there were, kept or not.
    pub lines_total: u64,
    /// `output`, the printed events, then one report per map.
    pub reports: Vec<NamedReport>,
    /// Events that bpftrace lost because they came too fast.
    pub lost_events: u64,
    /// What was left out.
    pub cut: Cut,
    /// How many probes were attached. `None`: it had not come so far.
    pub attached: Option<u64>,
    /// How long it took to compile and attach.
    pub attached_after: Option<Duration>,
    /// How bpftrace ended, once it has.
    pub exit: Option<String>,
    /// Why it failed.
    pub error: Option<ScriptError>,
    /// What bpftrace wrote to standard error when it did not fail.
    pub warnings: Vec<String>,
    /// What a reader must know to not misread the rest.
    pub notes: Vec<String>,
}

/// How much was left out to keep a result bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Lines after the limit.
    pub lines: u64,
    /// Lines whose end was cut off; the line says so too.
    pub long_lines: u64,
    /// Records of bpftrace that were too long to read.
    pub long_records: u64,
    /// Events after the limit.
    pub events: u64,
    /// Earlier prints of a map that later ones pushed out.
    pub prints: u64,
}

impl Bpftrace {
    /// Finds bpftrace: `command`, such as `["sudo", "-n", "bpftrace"]`, or else `bpftrace` on the `PATH`.
    pub fn find(command: Option<&[String]>) -> Result<Self, ScriptError> {
        let words = match command {
            Some([]) | None => vec!["bpftrace".to_owned()],
            Some(words) => words.to_vec(),
        };
        let program = look_up(&words[0]).ok_or_else(|| missing(&words[0]))?;
        let mut found = Self { words, version: (0, 0, 0), sandbox: None };
        found.words[0] = program.to_string_lossy().into_owned();
        found.version = found.ask_version()?;
        Ok(found)
    }

    /// The same, whose programs are compiled and run in a box from now on: all of it that this machine gives ([`Sandbox::parts`]).
    ///
    /// Not under sudo, which a box would keep from its work; the result of such a run says `unboxed`.
    #[must_use]
    pub fn boxed(self) -> Self {
        if self.unreachable() { self } else { Self { sandbox: Some(Sandbox::get()), ..self } }
    }

    /// Major, minor, patch.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// The command that is run, without arguments.
    pub fn command(&self) -> &[String] {
        &self.words
    }

    /// What bpftrace says that it and this kernel can do: `--info`, which 0.17 writes to standard error.
    pub fn info(&self) -> Result<String, ScriptError> {
        let answer = self.ask(&["--info"], QUESTION_TIME)?;
        answer.succeed("")?;
        let said = [answer.out.as_str(), answer.err.as_str()].concat();
        Ok(error::spoken(&said).join("\n"))
    }

    /// Compiles without attaching (`-d`). bpftrace checks all names and types, but not whether the kernel takes the probes.
    pub fn compile(&self, program: &str) -> Result<(), ScriptError> {
        check_input(program)?;
        self.ask(&["-d", "-e", program], COMPILE_TIME)?.succeed(program)
    }

    /// How many probes a name with wildcards stands for (`-l`); more than are worth counting are `None`.
    pub(crate) fn count(&self, pattern: &str) -> Result<Option<usize>, ScriptError> {
        let answer = self.ask(&["-l", pattern], QUESTION_TIME)?;
        answer.succeed(pattern)?;
        Ok((answer.out.len() < ANSWER_BYTES).then(|| answer.out.lines().filter(|line| line.contains(':')).count()))
    }

    /// Starts the program. The calling thread must live as long as the [`Session`].
    pub fn spawn(&self, program: &str, limits: Limits) -> Result<Session, ScriptError> {
        check_input(program)?;
        let (text, notes) = self.bounded(program, limits.seconds);
        // `-k` reports failed helpers, among them every update of a full map, which would be silent otherwise.
        let process = self.start(&["-f", "json", "-B", "line", "-k", "-e", &text])?;
        Ok(Session::new(process, program, limits, notes))
    }

    /// Under sudo no signal reaches bpftrace, so the script gets an end of its own, on a line of its own.
    fn bounded(&self, program: &str, seconds: u64) -> (String, Vec<String>) {
        if !self.unreachable() {
            return (program.to_owned(), self.sandbox.and_then(Sandbox::note).into_iter().collect());
        }
        let note = format!(
            "unboxed: bpftrace runs through sudo and ends itself after {seconds} s; it cannot be ended earlier"
        );
        (format!("{program}\ninterval:s:{} {{ exit(); }}", seconds.max(1)), vec![note])
    }

    fn unreachable(&self) -> bool {
        Path::new(&self.words[0]).file_name().is_some_and(|name| name == "sudo" || name == "doas")
    }

    fn ask_version(&self) -> Result<(u32, u32, u32), ScriptError> {
        let answer = self.ask(&["--version"], QUESTION_TIME)?;
        answer.succeed("")?;
        parse_version(&answer.out).ok_or_else(|| {
            let said = text::escape(text::head(answer.out.trim(), 200));
            ScriptError::new(Category::Missing, format!("{} is no bpftrace: it says {said:?}", self.words.join(" ")))
        })
    }

    fn ask(&self, arguments: &[&str], time: Duration) -> Result<Answer, ScriptError> {
        let mut process = self.start(arguments)?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut sink = |stream, bytes: &[u8]| {
            let kept = if stream == Stream::Out { &mut out } else { &mut err };
            kept.extend_from_slice(&bytes[..bytes.len().min(ANSWER_BYTES - kept.len())]);
        };
        let ended = process.pump_until(Instant::now() + time, &|| false, &mut sink);
        let status = process.finish(&mut sink).filter(|_| ended).ok_or_else(|| {
            let what = arguments[0];
            ScriptError::new(Category::Timeout, format!("bpftrace {what} took more than {} s", time.as_secs()))
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer { success: status.success(), ending: ending(status), out: text(&out), err: text(&err) })
    }

    fn start(&self, arguments: &[&str]) -> Result<Process, ScriptError> {
        Process::spawn(&self.words, arguments, self.sandbox).map_err(|error| {
            let words = self.words.join(" ");
            if self.sandbox.is_none() {
                return ScriptError::new(Category::Missing, format!("{words} could not be started: {error}"));
            }
            let message = format!("{words} could not be started in its box, and is not started without: {error}");
            ScriptError::new(Category::Permission, message)
                .with_remedy("bpf_info tells which parts of the box work here")
        })
    }
}

/// The whole output of a short run.
struct Answer {
    success: bool,
    ending: String,
    out: String,
    err: String,
}

impl Answer {
    fn succeed(&self, program: &str) -> Result<(), ScriptError> {
        if self.success { Ok(()) } else { Err(ScriptError::from_output(program, &self.err, &self.ending)) }
    }
}

/// What bpftrace could not even be asked.
fn check_input(program: &str) -> Result<(), ScriptError> {
    let bad = |message: String| Err(ScriptError::new(Category::BadInput, message));
    if program.trim().is_empty() {
        return bad("the program is empty; the shortest one is: BEGIN { exit(); }".into());
    }
    if program.len() > PROGRAM_BYTES {
        return bad(format!("the program has {} bytes; at most {PROGRAM_BYTES} are taken", program.len()));
    }
    match program.find('\0') {
        Some(at) => bad(format!("the program has a NUL byte at offset {at}; it must be text")),
        None => Ok(()),
    }
}

/// The file that a shell would run.
fn look_up(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).is_file().then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| runs(file))
}

fn runs(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

fn missing(name: &str) -> ScriptError {
    let error = ScriptError::new(Category::Missing, format!("{} is not installed here", text::escape(name)));
    let native = "native probes work without it";
    if name == "bpftrace" {
        error.with_remedy(format!("{}; {native}", install::remedy()))
    } else {
        error.with_remedy(native)
    }
}

/// `bpftrace v0.17.0`, or `bpftrace v0.21.2-dirty`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let line = text.lines().find_map(|line| line.strip_prefix("bpftrace v"))?;
    let mut numbers = line.split(|character: char| !character.is_ascii_digit()).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(word: &str) -> Bpftrace {
        Bpftrace { words: vec![word.into()], version: (0, 17, 0), sandbox: None }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("bpftrace v0.17.0\n"), Some((0, 17, 0)));
        assert_eq!(parse_version("bpftrace v0.21.2-dirty"), Some((0, 21, 2)));
        assert_eq!(parse_version("bpftrace v0.24"), Some((0, 24, 0)));
        assert_eq!(parse_version("sudo: a password is required"), None);
    }

    #[test]
    fn only_under_sudo_the_script_ends_itself() {
        assert_eq!(found("/usr/bin/bpftrace").bounded("BEGIN {} // x", 7), ("BEGIN {} // x".into(), vec![]));
        let (text, notes) = found("/usr/bin/sudo").bounded("BEGIN {} // x", 7);
        assert_eq!(text, "BEGIN {} // x\ninterval:s:7 { exit(); }");
        assert!(notes[0].starts_with("unboxed"));
    }

    #[test]
    fn impossible_input_is_refused_before_bpftrace_sees_it() {
        for program in ["", " \n\t", "BEGIN { \0 }", &"x".repeat(PROGRAM_BYTES + 1)] {
            assert_eq!(check_input(program).unwrap_err().category, Category::BadInput);
        }
        check_input("--version").unwrap();
    }

    #[test]
    fn a_missing_command_says_how_to_get_it() {
        let error = Bpftrace::find(Some(&["/nowhere/bpftrace".into()])).unwrap_err();
        assert_eq!(error.category, Category::Missing);
        assert!(error.to_string().contains("native probes work without it"), "{error}");
        assert!(missing("bpftrace").to_string().contains("install"));
    }
}
