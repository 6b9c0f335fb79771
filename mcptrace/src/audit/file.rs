//! A file of records: only appended to, and begun anew when it is full. Several processes may write it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::Settings;

/// How often a file is begun anew for a line, at most: each time somebody else was faster.
const TRIES: usize = 100;

/// The file that is written and those that are full: `NAME.1` is the latest.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    bytes: u64,
    kept: u32,
    mode: u32,
    open: Option<fs::File>,
}

impl File {
    pub(super) fn new(path: &Path, settings: &Settings) -> Self {
        let mode = if settings.group_reads { 0o640 } else { 0o600 };
        Self { path: path.to_owned(), bytes: settings.bytes, kept: settings.kept, mode, open: None }
    }

    /// Appends a line, whole or not at all as far as its reader can tell: what is torn by a full disk is ended by the next line.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.try_append(line).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))
    }

    fn try_append(&mut self, line: &[u8]) -> io::Result<()> {
        for _ in 0..TRIES {
            let file = self.current()?;
            // One process at a time, so that none writes into a file that another has just put aside.
            flock(&file, FlockOperation::LockExclusive)?;
            if self.is_current(&file) {
                let size = file.metadata()?.len();
                if size == 0 || size + line.len() as u64 <= self.bytes {
                    let result = write_line(&file, line);
                    flock(&file, FlockOperation::Unlock)?;
                    return result;
                }
                self.put_aside()?;
            }
            // Whoever waits for the lock of what was put aside gets it with the last handle, and finds that it is current no more.
            self.open = None;
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "others put it aside again and again"))
    }

    fn current(&mut self) -> io::Result<fs::File> {
        match self.open.take() {
            Some(file) if self.is_current(&file) => {
                let handle = file.try_clone();
                self.open = Some(file);
                handle
            }
            _ => self.reopen(),
        }
    }

    /// Whether the path still names it: somebody may have moved it away, another process among them.
    fn is_current(&self, file: &fs::File) -> bool {
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        fs::symlink_metadata(&self.path).is_ok_and(|named| file.metadata().is_ok_and(|open| same(named, open)))
    }

    fn reopen(&mut self) -> io::Result<fs::File> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(self.mode).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&self.path)?;
        let status = file.metadata()?;
        if !status.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        // One that was there before may be open to others, who could write what never happened, or take away what did. One that is another
        // user's, and this process may write as a member of its group, is not for it to narrow.
        let narrowed = fs::Permissions::from_mode(status.mode() & self.mode);
        if status.mode() & 0o777 & !self.mode != 0
            && let Err(error) = file.set_permissions(narrowed)
            && status.mode() & 0o002 != 0
        {
            return Err(error);
        }
        self.open = Some(file.try_clone()?);
        Ok(file)
    }

    /// Makes room for a new file; the oldest goes.
    fn put_aside(&self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.kept == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.kept).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, numbered(1))
    }
}

fn write_line(mut file: &fs::File, line: &[u8]) -> io::Result<()> {
    let written = file.write(line)?;
    if written == line.len() {
        return Ok(());
    }
    // The rest would stand behind a gap. It is ended, so that the next line is whole.
    let _ = file.write_all(b"\n");
    Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, bytes: u64, kept: u32) -> File {
        File::new(&folder.join("log"), &Settings { bytes, kept, ..Settings::default() })
    }

    #[test]
    fn it_is_appended_to_and_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log"), "before\n").unwrap();
        file(folder.path(), 1000, 1).append(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "before\nafter\n");
        for (wide, group_reads, narrowed) in
            [(0o666, false, 0o600), (0o666, true, 0o640), (0o640, true, 0o640), (0o644, false, 0o600)]
        {
            let path = folder.path().join(format!("wide{wide:o}{group_reads}"));
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(wide)).unwrap();
            File::new(&path, &Settings { group_reads, ..Settings::default() }).append(b"x\n").unwrap();
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, narrowed, "{wide:o}");
        }
        for (group_reads, mode) in [(false, 0o600), (true, 0o640)] {
            let path = folder.path().join(format!("new{mode}"));
            File::new(&path, &Settings { group_reads, ..Settings::default() }).append(b"x\n").unwrap();
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode & !0o022);
        }
    }

    #[test]
    fn size_and_number_of_files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = file(folder.path(), 20, 2);
        for number in 0..97 {
            log.append(format!("line {number:02}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(text("log.2") + &text("log.1") + &text("log"), "line 92\nline 93\nline 94\nline 95\nline 96\n");
    }

    #[test]
    fn several_writers_lose_no_line() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let mut log = file(folder.path(), 500, 100);
                scope.spawn(move || {
                    for number in 0..211 {
                        log.append(format!("{writer} {number:03}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        let mut lines = Vec::new();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(text.len() <= 500);
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.sort();
        let expected: Vec<_> =
            (0..3).flat_map(|writer| (0..211).map(move |number| format!("{writer} {number:03}"))).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_link_or_a_folder_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.path().join("log")).unwrap();
        assert!(file(folder.path(), 1000, 1).append(b"x\n").is_err());
        assert!(File::new(folder.path(), &Settings::default()).append(b"x\n").is_err());
        assert!(File::new(Path::new("/dev/null"), &Settings::default()).append(b"x\n").is_err());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        assert!(write_line(&full, b"x\n").is_err());
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = file(folder.path(), 1000, 1);
        log.append(b"one\n").unwrap();
        fs::rename(folder.path().join("log"), folder.path().join("moved")).unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "two\n");
    }
}
