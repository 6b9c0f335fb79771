//! The fallback: scripts run by the bpftrace of the system.
//!
//! A script is compiled first ([`Bpftrace::compile`]), then run in a process group of its own ([`Bpftrace::spawn`]) with
//! nothing but what it needs: no standard input, a scrubbed environment, and death when its parent dies. All that it
//! writes is taken in within [`Limits`], and what is left out is counted. The calls block; an execution has a thread.
//! In a server all that is done by the [`launcher`].

mod child;
mod collect;
mod error;
mod install;
pub mod launcher;
pub mod policy;
mod process;
mod record;
mod reports;
pub mod sandbox;
mod session;
mod task;
mod text;
pub mod tools;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use child::MAP_KEYS;
use child::{Own, ending, variable};
pub(crate) use collect::PRINTED;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use collect::check_output;
pub use error::{Category, ScriptError};
use launcher::{Launcher, ends_itself};
use process::{Held, Process, Stream};
use sandbox::Sandbox;
pub use session::{End, Progress, Session, View};
use task::Task;

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
    starter: Starter,
}

/// Who starts it.
#[derive(Clone, Copy, Debug)]
enum Starter {
    /// This process, without a box.
    Bare,
    /// This process, in a box.
    Boxed(&'static Sandbox),
    /// The launcher: in a box, but where the operator's command goes through sudo.
    Launcher(&'static Launcher),
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
        let mut words = words(command);
        let program = look_up(&words[0], variable("PATH"))?;
        words[0] = program.to_string_lossy().into_owned();
        Self { words, version: (0, 0, 0), starter: Starter::Bare }.asked()
    }

    /// Finds the bpftrace that serves clients: that of the launcher, if this process has one, and else one that is boxed.
    pub fn served(command: Option<&[String]>) -> Result<Self, ScriptError> {
        match launcher::get() {
            None => Ok(Self::find(command)?.boxed()),
            Some(Ok(launcher)) => {
                Self { words: words(command), version: (0, 0, 0), starter: Starter::Launcher(launcher) }.asked()
            }
            Some(Err(why)) => {
                let message = format!("the launcher, which builds the box of scripts, could not be started: {why}");
                Err(ScriptError::new(Category::Permission, message))
            }
        }
    }

    /// The same, whose programs are compiled and run in a box from now on: all of it that this machine gives ([`sandbox::in_force`]).
    ///
    /// Not under sudo, which a box would keep from its work; the result of such a run says `unboxed`.
    #[must_use]
    pub fn boxed(self) -> Self {
        if self.is_unboxed() { self } else { Self { starter: Starter::Boxed(Sandbox::get()), ..self } }
    }

    /// Whether its programs run without a box, because the operator's command goes through sudo.
    pub fn is_unboxed(&self) -> bool {
        ends_itself(&self.words)
    }

    /// Whether this process starts it itself.
    pub(crate) fn is_own(&self) -> bool {
        !matches!(self.starter, Starter::Launcher(_))
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
        let answer = self.ask(Task::Info, QUESTION_TIME)?;
        answer.succeed("")?;
        let said = [answer.out.as_str(), answer.err.as_str()].concat();
        Ok(error::spoken(&said).join("\n"))
    }

    /// Compiles without attaching (`-d`). bpftrace checks all names and types, but not whether the kernel takes the probes.
    pub fn compile(&self, program: &str) -> Result<(), ScriptError> {
        self.ask(Task::Compile(program.to_owned()), COMPILE_TIME)?.succeed(program)
    }

    /// How many probes a name with wildcards stands for (`-l`); more than are worth counting are `None`.
    pub(crate) fn count(&self, pattern: &str) -> Result<Option<usize>, ScriptError> {
        let answer = self.ask(Task::List(pattern.to_owned()), QUESTION_TIME)?;
        answer.succeed(pattern)?;
        Ok((answer.out.len() < ANSWER_BYTES).then(|| answer.out.lines().filter(|line| line.contains(':')).count()))
    }

    /// Starts the program. The calling thread must live as long as the [`Session`].
    pub fn spawn(&self, program: &str, limits: Limits) -> Result<Session, ScriptError> {
        let process = self.start(Task::Run { seconds: limits.seconds, program: program.to_owned() })?;
        Ok(Session::new(process, program, limits, self.note(limits.seconds).into_iter().collect()))
    }

    /// What a reader must know of how it is run.
    fn note(&self, seconds: u64) -> Option<String> {
        if self.is_unboxed() {
            return Some(format!(
                "unboxed: bpftrace runs through {} and ends itself after {seconds} s; it cannot be ended earlier",
                self.words[0].rsplit('/').next().unwrap_or("sudo")
            ));
        }
        match self.starter {
            Starter::Bare => None,
            Starter::Boxed(_) | Starter::Launcher(_) => sandbox::note(&sandbox::in_force()),
        }
    }

    /// With the version that it says it has.
    fn asked(mut self) -> Result<Self, ScriptError> {
        let answer = self.ask(Task::Version, QUESTION_TIME)?;
        answer.succeed("")?;
        self.version = parse_version(&answer.out).ok_or_else(|| {
            let said = text::escape(text::head(answer.out.trim(), 200));
            ScriptError::new(Category::Missing, format!("{} is no bpftrace: it says {said:?}", self.words.join(" ")))
        })?;
        Ok(self)
    }

    fn ask(&self, task: Task, time: Duration) -> Result<Answer, ScriptError> {
        let what = task.name();
        let mut process = self.start(task)?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut sink = |stream, bytes: &[u8]| {
            let kept = if stream == Stream::Out { &mut out } else { &mut err };
            kept.extend_from_slice(&bytes[..bytes.len().min(ANSWER_BYTES - kept.len())]);
        };
        let ended = process.pump_until(Instant::now() + time, &|| false, &mut sink);
        let status = process.finish(&mut sink).filter(|_| ended).ok_or_else(|| {
            ScriptError::new(Category::Timeout, format!("bpftrace {what} took more than {} s", time.as_secs()))
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer { success: status.success(), ending: ending(status), out: text(&out), err: text(&err) })
    }

    fn start(&self, task: Task) -> Result<Process, ScriptError> {
        task.check()?;
        let sandbox = match self.starter {
            Starter::Launcher(launcher) => {
                let (running, out, err) = launcher.run(task)?;
                return Ok(Process::new(Held::Launched(running), out.into(), err.into()));
            }
            Starter::Boxed(sandbox) => Some(sandbox),
            Starter::Bare => None,
        };
        let started = Own::spawn(&self.words, &task.arguments(self.is_unboxed()), sandbox);
        let (own, out, err) = started.map_err(|error| self.not_started(&error))?;
        Ok(Process::new(Held::Own(own), out, err))
    }

    fn not_started(&self, error: &std::io::Error) -> ScriptError {
        let words = self.words.join(" ");
        if matches!(self.starter, Starter::Bare) {
            return ScriptError::new(Category::Missing, format!("{words} could not be started: {error}"));
        }
        let message = format!("{words} could not be started in its box, and is not started without: {error}");
        ScriptError::new(Category::Permission, message).with_remedy("bpf_info tells which parts of the box work here")
    }
}

fn words(command: Option<&[String]>) -> Vec<String> {
    match command {
        Some([]) | None => vec!["bpftrace".to_owned()],
        Some(words) => words.to_vec(),
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

/// The file that a shell would run.
fn look_up(name: &str, path: Option<OsString>) -> Result<PathBuf, ScriptError> {
    let found = if name.contains('/') {
        Path::new(name).is_file().then(|| name.into())
    } else {
        let path = path.unwrap_or_default();
        let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
        folders.map(|folder| folder.join(name)).find(|file| runs(file))
    };
    found.ok_or_else(|| missing(name))
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
        Bpftrace { words: vec![word.into()], version: (0, 17, 0), starter: Starter::Bare }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("bpftrace v0.17.0\n"), Some((0, 17, 0)));
        assert_eq!(parse_version("bpftrace v0.21.2-dirty"), Some((0, 21, 2)));
        assert_eq!(parse_version("bpftrace v0.24"), Some((0, 24, 0)));
        assert_eq!(parse_version("sudo: a password is required"), None);
    }

    #[test]
    fn under_sudo_a_result_says_that_there_is_no_box() {
        assert_eq!(found("/usr/bin/bpftrace").note(7), None);
        let note = found("/usr/bin/sudo").note(7).unwrap();
        assert!(note.starts_with("unboxed: bpftrace runs through sudo and ends itself after 7 s"), "{note}");
        assert!(found("/usr/bin/sudo").boxed().is_unboxed());
    }

    #[test]
    fn a_missing_command_says_how_to_get_it() {
        let error = Bpftrace::find(Some(&["/nowhere/bpftrace".into()])).unwrap_err();
        assert_eq!(error.category, Category::Missing);
        assert!(error.to_string().contains("native probes work without it"), "{error}");
        assert!(missing("bpftrace").to_string().contains("install"));
    }
}
