//! A file that is read again when it changes, so that a token can be withdrawn and a key replaced while the server runs.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// What a file says.
pub(super) struct Watched<T> {
    path: PathBuf,
    read: fn(&Path) -> Result<T, String>,
    tell: Tell<T>,
    last: Mutex<(Stamp, Arc<T>)>,
}

/// Is told when the file has been read again, before that is in force: which file, what it said before, and what it says now or why nothing.
type Tell<T> = Box<dyn Fn(&Path, &T, Result<&T, &str>) + Send + Sync>;

/// What changes when a file does: the time at which it, its owner or its mode was changed last, which nobody can set; its length, and which
/// file it is.
type Stamp = Option<(i64, i64, u64, u64)>;

impl<T: Default> Watched<T> {
    /// Reads a file for the first time.
    ///
    /// # Errors
    ///
    /// What is wrong with it, with its path.
    pub(super) fn open(
        path: &Path,
        read: fn(&Path) -> Result<T, String>,
        tell: impl Fn(&Path, &T, Result<&T, &str>) + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamp = stamp(path);
        let value = read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), read, tell: Box::new(tell), last: Mutex::new((stamp, Arc::new(value))) })
    }

    /// What it says now. One that cannot be read any more says nothing: whoever removes or empties it wants nobody let in by it.
    pub(super) fn get(&self) -> Arc<T> {
        let now = stamp(&self.path);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != now {
            let read = (self.read)(&self.path);
            (self.tell)(&self.path, &last.1, read.as_ref().map_err(String::as_str));
            match read {
                Ok(value) => *last = (now, Arc::new(value)),
                Err(error) => {
                    tracing::error!(file = %self.path.display(), %error, "cannot be read again: nobody is let in by it until it can");
                    *last = (now, Arc::default());
                }
            }
        }
        Arc::clone(&last.1)
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ctime(), metadata.ctime_nsec(), metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(path: &Path) -> Result<String, String> {
        crate::guarded::private(path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_change_is_noticed_and_what_cannot_be_read_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "one", 0o600);
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let told_to = Arc::clone(&told);
        let tell = move |_: &Path, before: &String, after: Result<&String, &str>| {
            told_to.lock().unwrap().push(format!("{before} -> {}", after.map_or("none", String::as_str)));
        };
        let watched = Watched::open(&path, read, tell).unwrap();
        assert_eq!(*watched.get(), "one");
        write(&path, "second", 0o600);
        assert_eq!(*watched.get(), "second");
        write(&path, "the third", 0o644);
        assert_eq!(*watched.get(), "");
        write(&path, "a fourth one", 0o600);
        assert_eq!(*watched.get(), "a fourth one");
        fs::remove_file(&path).unwrap();
        assert_eq!((watched.get().as_str(), watched.get().as_str()), ("", ""));
        let changes = ["one -> second", "second -> none", " -> a fourth one", "a fourth one -> none"];
        assert_eq!(*told.lock().unwrap(), changes, "each once");
    }

    #[test]
    fn one_that_is_opened_to_others_says_nothing_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "one", 0o600);
        let watched = Watched::open(&path, read, |_, _, _| {}).unwrap();
        assert_eq!(*watched.get(), "one");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(*watched.get(), "");
    }
}
