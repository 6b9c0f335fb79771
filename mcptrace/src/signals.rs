//! Names of signals.

use crate::suggest::nearest;

/// Signals 1 to 31 (include/uapi/asm-generic/signal.h and arch/x86/include/uapi/asm/signal.h, which agree).
const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];
/// The first signal that glibc leaves to programs (`SIGRTMIN`); it keeps 32 and 33 for its threads.
const REAL_TIME: i32 = 34;

/// The name of a signal; `SIGRTMIN+n` for those of real time, `SIGn` for others.
pub fn name(signal: i32) -> String {
    let known = signal.checked_sub(1).and_then(|index| usize::try_from(index).ok()).and_then(|index| NAMES.get(index));
    match known {
        Some(name) => (*name).to_owned(),
        None if (REAL_TIME..=64).contains(&signal) => format!("SIGRTMIN+{}", signal - REAL_TIME),
        None => format!("SIG{signal}"),
    }
}

/// The number of a signal, by its name with or without `SIG` or as digits.
pub fn number(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let is = |signal: &i32| {
        let known = self::name(*signal);
        known == upper || known.strip_prefix("SIG") == Some(&upper) || signal.to_string() == upper
    };
    (1..=64).find(is)
}

/// The name nearest to one that no signal has.
pub fn nearest_to(name: &str) -> Option<String> {
    let known: Vec<_> = (1..=64).map(self::name).collect();
    nearest(&name.to_ascii_uppercase(), known.iter().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_both_ways() {
        for signal in 1..=64 {
            assert_eq!(number(&name(signal)), Some(signal));
        }
        assert_eq!((name(libc::SIGSYS), name(libc::SIGCHLD)), ("SIGSYS".into(), "SIGCHLD".into()));
        assert_eq!(name(libc::SIGRTMIN() + 3), "SIGRTMIN+3");
        assert_eq!((number("kill"), number("9"), number("SIGNONE"), number("0")), (Some(9), Some(9), None, None));
        assert_eq!(nearest_to("sigtrem").as_deref(), Some("SIGTERM"));
    }
}
