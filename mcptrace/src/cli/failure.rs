//! Why a command ends with an error, and the exit status that says so.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{
    executions::Refusal,
    kernel::{discovery::DiscoveryError, loader},
    recorder::history::HistoryError,
};

/// Ended hard by a second signal, as a shell counts SIGINT.
pub(super) const INTERRUPTED_TWICE: u8 = 130;

/// An error for a person: a message and an exit status.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: u8,
    pub(super) message: String,
}

impl Failure {
    /// It failed while it ran.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { status: 1, message: message.into() }
    }

    /// It was called wrongly.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { status: 2, message: message.into() }
    }

    /// It cannot run here.
    pub(super) fn cannot_run(message: impl Into<String>) -> Self {
        Self { status: 3, message: message.into() }
    }

    /// Nobody reads what it prints any more (`| head`): no error, and a reason to end.
    pub(super) fn reader_gone() -> Self {
        Self { status: 0, message: String::new() }
    }

    /// Says it on stderr, if there is anything to say.
    pub(super) fn tell(&self) -> ExitCode {
        if !self.message.is_empty() {
            // Whoever read it may have gone (`2>&1 | head`); the exit status still tells.
            let _ = writeln!(io::stderr(), "error: {}", self.message);
        }
        ExitCode::from(self.status)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let mut message = as_flags(&refusal.to_string());
        if let Some(name) = refusal.did_you_mean() {
            message = format!("{message}\n\n  did you mean `{name}`?");
        }
        match refusal.category() {
            "permission" | "unsupported" | "missing_bpftrace" => Self::cannot_run(message),
            "internal" | "busy" | "audit" | "timeout" => Self::failed(message),
            _ => Self::usage(message),
        }
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        let mut message = error.to_string();
        if let Some(name) = error.did_you_mean() {
            message = format!("{message}\n\n  did you mean `{name}`?");
        }
        match error.category() {
            "no_history" | "permission" => Self::cannot_run(message),
            "unreadable_history" => Self::failed(message),
            _ => Self::usage(message),
        }
    }
}

impl From<DiscoveryError> for Failure {
    fn from(error: DiscoveryError) -> Self {
        let message = error.to_string();
        match error {
            DiscoveryError::Tracefs(_) | DiscoveryError::Btf(_) => Self::cannot_run(message),
            DiscoveryError::Binary(_) => Self::failed(message),
            _ => Self::usage(message),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Which capability this process lacks for native probes and how to grant it, if it lacks one.
pub(super) fn lack_of_privilege() -> Option<String> {
    loader::lack_of_privilege().map(|lack| lack.to_string())
}

/// A message of the engine with its fields written as flags: `filter.min_duration_us` is `--min-duration-us` here.
pub(super) fn as_flags(message: &str) -> String {
    let flag = |word: &str| {
        let name = word.strip_prefix("filter.").or_else(|| word.strip_prefix("options."))?;
        Some(format!("--{}", name.replace('_', "-")))
    };
    message.split(' ').map(|word| flag(word).unwrap_or_else(|| word.to_owned())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::loader::LoadError;

    #[test]
    fn fields_of_the_engine_are_flags_to_a_person() {
        assert_eq!(as_flags("filter.pid: there is no process 7"), "--pid: there is no process 7");
        assert_eq!(as_flags("filter.descendants needs filter.pid: the"), "--descendants needs --pid: the");
        assert_eq!(as_flags("options.path_prefix: takes 1"), "--path-prefix: takes 1");
    }

    #[test]
    fn refusals_have_the_documented_status() {
        let status = |refusal| Failure::from(refusal).status;
        assert_eq!(status(Refusal::Seconds { given: 0.0, longest: 1.0 }), 2);
        assert_eq!(status(Refusal::Busy { running: 8 }), 1);
        assert_eq!(status(Refusal::Unsupported { probe: "p", reason: "r".into() }), 3);
        let missing = LoadError::Permission { missing: "CAP_BPF".into(), remedy: "r".into() };
        assert_eq!(status(Refusal::Load(missing)), 3);
    }
}
