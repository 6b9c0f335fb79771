//! What bpftrace is asked to do, and the arguments that say so. Pure.

use super::{
    PROGRAM_BYTES,
    error::{Category, ScriptError},
    text,
};

/// The longest name of probes that is looked up, in bytes.
const PATTERN_BYTES: usize = 1024;

/// One run of bpftrace. Its arguments are made here and nowhere else, whoever starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Its version.
    Version,
    /// What it and this kernel can do.
    Info,
    /// A program compiled and not attached.
    Compile(String),
    /// The probes that a name with wildcards stands for.
    List(String),
    /// A program run.
    Run {
        /// How long it will run, in seconds. Only where no signal reaches bpftrace, the script itself ends then.
        seconds: u64,
        /// The program.
        program: String,
    },
}

impl Task {
    /// What bpftrace could not even be asked.
    pub(super) fn check(&self) -> Result<(), ScriptError> {
        match self {
            Self::Version | Self::Info => Ok(()),
            Self::Compile(program) | Self::Run { program, .. } => check_input(program),
            Self::List(pattern) => check_pattern(pattern),
        }
    }

    /// The arguments. `ends_itself`: no signal reaches this bpftrace, so the script gets an end of its own, on a line of its own.
    pub(super) fn arguments(&self, ends_itself: bool) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Version => &["--version"],
            Self::Info => &["--info"],
            Self::Compile(program) => &["-d", "-e", program],
            Self::List(pattern) => &["-l", pattern],
            Self::Run { seconds, program } => {
                let end = format!("\ninterval:s:{} {{ exit(); }}", (*seconds).max(1));
                let program = format!("{program}{}", if ends_itself { &end } else { "" });
                // `-k` reports failed helpers, among them every update of a full map, which would be silent otherwise.
                return ["-f", "json", "-B", "line", "-k", "-e", &program].map(str::to_owned).to_vec();
            }
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// In a word, for errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Version => "--version",
            Self::Info => "--info",
            Self::Compile(_) => "-d",
            Self::List(_) => "-l",
            Self::Run { .. } => "-e",
        }
    }
}

/// A program that is no text, or too much of it.
pub(super) fn check_input(program: &str) -> Result<(), ScriptError> {
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

/// The name is an argument of its own: one that begins like an option would be one.
fn check_pattern(pattern: &str) -> Result<(), ScriptError> {
    if pattern.is_empty() || pattern.len() > PATTERN_BYTES {
        return bad(format!("a name of probes has 1 to {PATTERN_BYTES} bytes, not {}", pattern.len()));
    }
    if pattern.starts_with('-') || pattern.contains('\0') {
        return bad(format!("{:?} is no name of probes", text::escape(text::head(pattern, 80))));
    }
    Ok(())
}

fn bad(message: String) -> Result<(), ScriptError> {
    Err(ScriptError::new(Category::BadInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, seconds: u64) -> Task {
        Task::Run { seconds, program: program.into() }
    }

    #[test]
    fn only_where_no_signal_reaches_it_the_script_ends_itself() {
        let last = |ends_itself| run("BEGIN {} // x", 7).arguments(ends_itself).pop().unwrap();
        assert_eq!(last(false), "BEGIN {} // x");
        assert_eq!(last(true), "BEGIN {} // x\ninterval:s:7 { exit(); }");
        assert!(run("x", 0).arguments(true).concat().contains("interval:s:1 "));
    }

    #[test]
    fn impossible_input_is_refused_before_bpftrace_sees_it() {
        for program in ["", " \n\t", "BEGIN { \0 }", &"x".repeat(PROGRAM_BYTES + 1)] {
            for task in [run(program, 1), Task::Compile(program.into())] {
                assert_eq!(task.check().unwrap_err().category, Category::BadInput);
            }
        }
        for pattern in ["", "--version", "-l", "a\0b", &"x".repeat(PATTERN_BYTES + 1)] {
            assert_eq!(Task::List(pattern.into()).check().unwrap_err().category, Category::BadInput);
        }
        // A program is the argument of `-e`, whatever it looks like.
        run("--version", 1).check().unwrap();
        Task::List("tracepoint:*:*".into()).check().unwrap();
        Task::Version.check().unwrap();
    }
}
