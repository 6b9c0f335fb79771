//! Who may read the file: it holds names, command lines and what executions found.

use std::{
    fs::{self, Metadata, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Of a file that is made here.
const MODE: u32 = 0o600;
/// What an operator may make of it: a group that reads.
const WIDEST: u32 = 0o640;

/// Makes the file for its owner alone, if it is not there, and takes away from one that is what lets others read it or a group write it.
/// SQLite gives the files beside it the mode of this one. What cannot be done is said: whether the file can be written decides whether it
/// is recorded.
pub(super) fn begin(file: &Path) {
    // One that is there is not opened: closing it would give up the locks that SQLite has in this process.
    let made = OpenOptions::new().write(true).create_new(true).mode(MODE).open(file);
    if made.err().is_none_or(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        // What else is wrong SQLite says better.
        return;
    }
    for path in files(file) {
        match narrow(&path) {
            Ok(None) => {}
            Ok(Some(mode)) => {
                tracing::warn!(file = %path.display(), "its mode was {mode:03o}, so that others could read or change it; now it is {:03o}", mode & WIDEST);
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "others may read it, and its mode cannot be changed");
            }
        }
    }
    let folder = file.parent().and_then(|folder| Some((folder, fs::metadata(folder).ok()?)));
    if let Some((folder, found)) = folder.filter(|(_, found)| others_write(found)) {
        let mode = found.permissions().mode() & 0o7777;
        tracing::warn!(folder = %folder.display(), "its mode is {mode:03o}: whoever may write there can put another history in the place of this one");
    }
}

/// The file, those that SQLite keeps beside it, and one that was set aside.
fn files(file: &Path) -> impl Iterator<Item = PathBuf> {
    ["", "-wal", "-shm", ".damaged", ".damaged-wal", ".damaged-shm"].into_iter().map(|end| {
        let mut name = file.as_os_str().to_owned();
        name.push(end);
        name.into()
    })
}

/// Takes away what is too wide; gives the mode before, if it was.
fn narrow(path: &Path) -> io::Result<Option<u32>> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => found,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mode = found.permissions().mode() & 0o777;
    if mode & !WIDEST == 0 {
        return Ok(None);
    }
    fs::set_permissions(path, Permissions::from_mode(mode & WIDEST))?;
    Ok(Some(mode))
}

/// In a folder with the sticky bit others cannot replace what is not theirs.
fn others_write(folder: &Metadata) -> bool {
    let mode = folder.permissions().mode();
    mode & 0o002 != 0 && mode & 0o1000 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::store::{Limits, writer::Writer};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn written(file: &Path) -> Writer {
        Writer::open(file, &Limits::default()).unwrap()
    }

    #[test]
    fn a_new_history_and_what_is_beside_it_are_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.db");
        let writer = written(&file);
        writer.mark(1, "start", 0.0, "").unwrap();
        let modes: Vec<u32> = files(&file).filter(|path| path.exists()).map(|path| mode(&path)).collect();
        assert_eq!(modes, [0o600; 3], "with its log and index");
    }

    #[test]
    fn one_that_is_wider_is_narrowed_and_a_group_that_reads_stays() {
        for (before, after) in [(0o644, 0o640), (0o666, 0o640), (0o640, 0o640), (0o604, 0o600), (0o600, 0o600)] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("history.db");
            written(&file).close().unwrap();
            fs::set_permissions(&file, Permissions::from_mode(before)).unwrap();
            let writer = written(&file);
            writer.mark(1, "start", 0.0, "").unwrap();
            let modes: Vec<u32> = files(&file).filter(|path| path.exists()).map(|path| mode(&path)).collect();
            assert_eq!(modes, [after; 3], "{before:o}");
        }
    }
}
