//! Reads a configuration, and replaces it in one step with what it was kept beside it.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use super::Failure;

/// What comes behind the name of a file that keeps what another one was.
const BACKUP: &str = ".before-mcptrace";
/// The longest configuration, in bytes. Claude Code keeps more in its file than settings.
const MOST_BYTES: u64 = 64 << 20;

/// A configuration, as it was read.
#[derive(Debug)]
pub(super) struct File {
    /// The file itself, if the path is a link to it.
    path: PathBuf,
    /// `None` if there is none.
    old: Option<Old>,
}

#[derive(Debug)]
struct Old {
    text: String,
    mode: u32,
    owner: (u32, u32),
}

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    /// Where what was there before is; `None` if nothing was.
    pub(super) backup: Option<PathBuf>,
}

impl File {
    /// A file that need not be there.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |what: String| Failure::failed(format!("{}: {what}; nothing was changed", path.display()));
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                return Ok(Self { path: path.to_owned(), old: None });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(failed("a link to nothing".to_owned()));
            }
            Err(error) => return Err(failed(format!("cannot be read: {error}"))),
        };
        match Old::read(&real) {
            Ok(old) => Ok(Self { path: real, old: Some(old) }),
            Err(error) => Err(failed(format!("cannot be read: {error}"))),
        }
    }

    /// What it says; nothing if it is not there.
    pub(super) fn text(&self) -> &str {
        self.old.as_ref().map_or("", |old| &old.text)
    }

    /// Whether it was not there before mcptrace has made it: nothing was kept beside it.
    pub(super) fn is_ours(&self) -> bool {
        self.old.is_some() && !beside(&self.path, BACKUP).exists()
    }

    /// Replaces it. Whoever reads it meanwhile sees all of the old or all of the new.
    pub(super) fn replace(&self, text: &str) -> Result<Written, Failure> {
        self.write(text).map_err(|error| self.failed(&format!("cannot be written: {error}")))
    }

    /// Removes it.
    pub(super) fn delete(&self) -> Result<(), Failure> {
        fs::remove_file(&self.path).map_err(|error| self.failed(&format!("cannot be removed: {error}")))
    }

    fn failed(&self, what: &str) -> Failure {
        Failure::failed(format!("{}: {what}; nothing was changed", self.path.display()))
    }

    fn write(&self, text: &str) -> io::Result<Written> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let aside = Aside::write(&self.path, text, self.old.as_ref())?;
        let backup = match &self.old {
            Some(old) => {
                let backup = beside(&self.path, BACKUP);
                Aside::write(&backup, &old.text, Some(old))?.put(&backup)?;
                Some(backup)
            }
            None => None,
        };
        if self.changed_meanwhile() {
            return Err(io::Error::other("it changed just now, so its program is running; try again"));
        }
        aside.put(&self.path)?;
        fs::File::open(folder)?.sync_all()?;
        Ok(Written { backup })
    }

    /// A client may write it at any time; what it wrote must not be lost.
    fn changed_meanwhile(&self) -> bool {
        match &self.old {
            Some(old) => Old::read(&self.path).map_or(true, |now| now.text != old.text),
            None => self.path.exists(),
        }
    }
}

impl Old {
    fn read(path: &Path) -> io::Result<Self> {
        // A pipe would keep us waiting for somebody who writes.
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        if metadata.len() > MOST_BYTES {
            return Err(io::Error::other(format!("it is larger than {} MB", MOST_BYTES >> 20)));
        }
        let mut text = String::new();
        (&mut file).take(MOST_BYTES).read_to_string(&mut text)?;
        Ok(Self { text, mode: metadata.mode() & 0o7777, owner: (metadata.uid(), metadata.gid()) })
    }
}

/// A file beside another, which takes its place or goes.
#[derive(Debug)]
struct Aside(PathBuf);

impl Aside {
    /// With the owner and the mode of what it will replace: there may be secrets in it.
    fn write(path: &Path, text: &str, like: Option<&Old>) -> io::Result<Self> {
        let aside = Self(beside(path, &format!(".{}.new", std::process::id())));
        let mode = like.map_or(0o666, |_| 0o600);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside.0)?;
        if let Some(Old { mode, owner: (uid, gid), .. }) = like {
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (*uid, *gid) {
                fchown(&file, Some(*uid), Some(*gid))?;
            }
            file.set_permissions(Permissions::from_mode(*mode))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(aside)
    }

    fn put(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Gone already where it has taken its place.
        let _ = fs::remove_file(&self.0);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut all: Vec<String> = all.collect();
        all.sort();
        all
    }

    #[test]
    fn a_file_that_is_not_there_is_made_with_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/config");
        let file = File::read(&path).unwrap();
        assert_eq!(file.text(), "");
        assert_eq!(file.replace("new").unwrap().backup, None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let file = File::read(&path).unwrap();
        assert!(file.is_ours());
        file.delete().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_was_there_is_kept_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let backup = File::read(&path).unwrap().replace("new").unwrap().backup.unwrap();
        assert_eq!(fs::read_to_string(&backup).unwrap(), "old");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        for file in [&path, &backup] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o640);
        }
        assert_eq!(names(folder.path()), ["config", "config.before-mcptrace"]);
        assert!(!File::read(&path).unwrap().is_ours());
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("dotfiles"), folder.path().join("config"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        File::read(&link).unwrap().replace("new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        fs::remove_file(&real).unwrap();
        assert!(File::read(&link).unwrap_err().message.contains("a link to nothing"));
    }

    #[test]
    fn what_changes_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "old").unwrap();
        let file = File::read(&path).unwrap();
        fs::write(&path, "newer").unwrap();
        let said = file.replace("mine").unwrap_err().message;
        assert!(said.contains("it changed just now"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        let missing = File::read(&folder.path().join("other")).unwrap();
        fs::write(folder.path().join("other"), "theirs").unwrap();
        assert!(missing.replace("mine").is_err());
        assert!(names(folder.path()).iter().all(|name| !name.contains(".new")), "{:?}", names(folder.path()));
    }

    #[test]
    fn what_is_no_text_in_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(File::read(&path).unwrap_err().message.contains("UTF-8"));
        assert!(File::read(folder.path()).unwrap_err().message.contains("no file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("pipe"), 0o600.into()).unwrap();
        assert!(File::read(&folder.path().join("pipe")).unwrap_err().message.contains("no file"));
    }
}
