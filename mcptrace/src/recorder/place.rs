//! Where the recorder keeps its files: one answer for who writes and who reads.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The folder if nothing else is said.
pub const DEFAULT: &str = "/var/lib/mcptrace";

/// The variable that names the folder.
pub const VARIABLE: &str = "MCPTRACE_STATE";

/// What a flag or the configuration says.
static CONFIGURED: OnceLock<PathBuf> = OnceLock::new();

/// Sets the folder for the whole process, as a flag or else the configuration says: who says it first is heard.
pub fn set_folder(folder: &Path) {
    let _ = CONFIGURED.set(folder.to_owned());
}

/// The folder: as given (`--state`), or configured (`MCPTRACE_STATE`, `recorder.state`), or systemd's `STATE_DIRECTORY`, or [`DEFAULT`].
pub fn folder(given: Option<&Path>) -> PathBuf {
    choose(given.or(CONFIGURED.get().map(PathBuf::as_path)), |name| std::env::var_os(name).map(PathBuf::from))
}

/// The history in a folder.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("history.db")
}

/// The file whose lock says that a recorder writes the history.
pub fn lock_file(history: &Path) -> PathBuf {
    history.with_extension("lock")
}

fn choose(given: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.as_os_str().is_empty());
    // systemd lists several folders with colons between them; the first is ours.
    let first = |value: PathBuf| value.to_str().and_then(|all| all.split(':').next()).map(PathBuf::from);
    let given = given.map(Path::to_path_buf).or_else(|| set(VARIABLE));
    given.or_else(|| set("STATE_DIRECTORY").and_then(first)).unwrap_or_else(|| DEFAULT.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_more_exactly_wins() {
        let both = |name: &str| Some(PathBuf::from(if name == VARIABLE { "/own" } else { "/first:/second" }));
        let systemd = |name: &str| (name != VARIABLE).then(|| PathBuf::from("/first:/second"));
        let empty = |_: &str| Some(PathBuf::new());
        assert_eq!(choose(Some(Path::new("/given")), both), Path::new("/given"));
        assert_eq!(choose(None, both), Path::new("/own"));
        assert_eq!(choose(None, systemd), Path::new("/first"));
        assert_eq!(choose(None, empty), Path::new(DEFAULT));
    }
}
