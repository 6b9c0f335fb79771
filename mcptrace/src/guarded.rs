//! Files that decide what others may do: who may have written them, who may read them, and how long they are.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// The longest such file, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// The text of any file that is not too long.
///
/// # Errors
///
/// If it cannot be read, is a pipe, a folder or a device, has more than 1 MB, or is not UTF-8.
pub fn text(path: &Path) -> io::Result<String> {
    bounded(open(path)?)
}

/// The text of a file that nobody but root or this process's user can have written.
///
/// # Errors
///
/// As [`text`]; and of the kind `PermissionDenied` if others may write it.
pub(crate) fn guarded(path: &Path) -> io::Result<String> {
    kept(path, 0o022, "others must not write it (chmod go-w)")
}

/// The text of a file that is [`guarded`], and that nobody but its owner and group may read.
///
/// # Errors
///
/// As [`guarded`], and if others may read it.
pub(crate) fn private(path: &Path) -> io::Result<String> {
    kept(path, 0o027, "others must not read it nor its group write it (chmod 600)")
}

fn kept(path: &Path, refused: u32, why: &str) -> io::Result<String> {
    let denied = |what: String| io::Error::new(io::ErrorKind::PermissionDenied, what);
    let file = open(path)?;
    let status = file.metadata()?;
    let (mode, owner) = (status.mode() & 0o777, status.uid());
    if mode & refused != 0 {
        return Err(denied(format!("its mode is {mode:03o}: {why}")));
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(denied(format!("it belongs to user {owner}: it must be root's or this process's user's (chown)")));
    }
    bounded(file)
}

/// Without waiting for whoever may write into a pipe.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "it is no file");
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

fn bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    let fits = text.len() as u64 <= MOST_BYTES;
    fits.then_some(text).ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MB"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_may_read_or_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (mode, good) in
            [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o660, false), (0o602, false)]
        {
            write(&path, "x", mode);
            assert_eq!(private(&path).is_ok(), good, "{mode:o}");
        }
        for (mode, good) in [(0o644, true), (0o444, true), (0o664, false), (0o646, false)] {
            write(&path, "x", mode);
            assert_eq!(guarded(&path).is_ok(), good, "{mode:o}");
            assert!(text(&path).is_ok(), "{mode:o}");
        }
        // Its owner is no less another than others are.
        if rustix::process::geteuid().is_root() {
            write(&path, "x", 0o600);
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            let errors = [private(&path).unwrap_err(), guarded(&path).unwrap_err()];
            assert!(errors.iter().all(|error| error.kind() == io::ErrorKind::PermissionDenied), "{errors:?}");
            assert!(errors[0].to_string().starts_with("it belongs to user 65534"), "{errors:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for_and_what_is_too_long_not_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, long) = (folder.path().join("pipe"), folder.path().join("long"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for odd in [&*pipe, folder.path(), Path::new("/dev/zero")] {
            assert_eq!(private(odd).unwrap_err().to_string(), "it is no file", "{}", odd.display());
        }
        File::create(&long).unwrap().set_len(MOST_BYTES).unwrap();
        assert_eq!(text(&long).unwrap().len() as u64, MOST_BYTES);
        File::options().write(true).open(&long).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert_eq!(text(&long).unwrap_err().to_string(), "it has more than 1 MB");
    }
}
