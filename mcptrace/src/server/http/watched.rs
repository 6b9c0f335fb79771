//! A file that is read again when it changes, so that a token can be withdrawn and a key replaced while the server runs.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// How long a file may be, in bytes.
const MOST_BYTES: u64 = 1 << 20;

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

/// The text of a file that nobody but its owner and group may read, and nobody but its owner may write.
pub(super) fn read_private(path: &Path) -> Result<String, String> {
    read_kept(path, 0o027, "others must not read it nor its group write it (chmod 600)")
}

/// The text of a file that nobody but its owner may write.
pub(super) fn read_guarded(path: &Path) -> Result<String, String> {
    read_kept(path, 0o022, "others must not write it (chmod go-w)")
}

/// The text of a file that root or this process's user owns, with none of these bits in its mode: whoever may change it decides who is let in.
fn read_kept(path: &Path, refused: u32, why: &str) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let status = file.metadata().map_err(|error| error.to_string())?;
    let (mode, owner) = (status.mode() & 0o777, status.uid());
    if mode & refused != 0 {
        return Err(format!("its mode is {mode:03o}: {why}"));
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("it belongs to user {owner}: it must be root's or this process's user's (chown)"));
    }
    bounded(file).map_err(|error| error.to_string())
}

/// The text of a file that is not too long.
pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    bounded(File::open(path)?)
}

fn bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    let length = file.take(MOST_BYTES + 1).read_to_string(&mut text)? as u64;
    let too_long = || io::Error::other(format!("it has more than {MOST_BYTES} bytes"));
    (length <= MOST_BYTES).then_some(text).ok_or_else(too_long)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
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
        let watched = Watched::open(&path, read_private, tell).unwrap();
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
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (mode, good) in
            [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o660, false), (0o602, false)]
        {
            write(&path, "x", mode);
            assert_eq!(read_private(&path).is_ok(), good, "{mode:o}");
        }
        for (mode, good) in [(0o644, true), (0o444, true), (0o664, false), (0o646, false)] {
            write(&path, "x", mode);
            assert_eq!(read_guarded(&path).is_ok(), good, "{mode:o}");
        }
        // Its owner is no less another than others are.
        if rustix::process::geteuid().is_root() {
            write(&path, "x", 0o600);
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            let errors = [read_private(&path).unwrap_err(), read_guarded(&path).unwrap_err()];
            assert!(errors.iter().all(|error| error.starts_with("it belongs to user 65534")), "{errors:?}");
        }
    }

    #[test]
    fn one_that_is_opened_to_others_says_nothing_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "one", 0o600);
        let watched = Watched::open(&path, read_private, |_, _, _| {}).unwrap();
        assert_eq!(*watched.get(), "one");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(*watched.get(), "");
    }

    #[test]
    fn what_does_not_end_is_not_read_to_its_end() {
        assert!(read_bounded(Path::new("/dev/zero")).unwrap_err().to_string().contains("more than"));
    }
}
