//! `mcptrace serve` without the privilege to trace: passes bytes between its standard streams and the daemon's socket.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::AsFd as _,
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::Path,
    thread,
};

use super::Failure;

/// How much is passed on at once, in bytes.
const CHUNK: usize = 64 << 10;

/// A connection to the daemon of this host, or why there is none.
pub(super) fn connect(path: &Path) -> Result<UnixStream, String> {
    let said = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!("no daemon serves {}", path.display()),
        io::ErrorKind::PermissionDenied => format!("this user may not connect to {}", path.display()),
        _ => format!("{}: {error}", path.display()),
    };
    trusted(path).map_err(said)?;
    UnixStream::connect(path).map_err(said)
}

/// Passes bytes on until either side has closed. The daemon bounds what it reads and writes; here nothing is kept.
pub(super) fn run(daemon: UnixStream) -> Result<(), Failure> {
    let mut upward = daemon.try_clone()?;
    // It is not waited for: it may wait for a line that never comes.
    thread::Builder::new().name("mcptrace-pump".into()).spawn(move || {
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let passed = pass(&mut stdin, &mut upward);
        // The daemon then ends what runs and closes its side.
        upward.shutdown(Shutdown::Write)?;
        passed
    })?;
    // Not through Rust's standard output, which would hold back what has no end of line.
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    match pass(&mut &daemon, &mut stdout) {
        // A client that has gone is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::failed(format!("the connection to the daemon has failed: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Not `io::copy`, which splices: while splice(2) waits for the socket it keeps the lock of the pipe (`splice_file_to_pipe`, fs/splice.c,
/// 6.18), and whoever reads that pipe waits too, even if it has asked not to.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A socket in a folder that others may write to could be anybody's.
fn trusted(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/")).metadata()?;
    if folder.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::other("others may write to its folder, so it is not taken for the daemon's"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixListener};

    use super::*;

    #[test]
    fn bytes_are_passed_on_as_they_come() {
        let (mut near, mut far) = (io::Cursor::new(vec![7; 3 * CHUNK + 11]), Vec::new());
        pass(&mut near, &mut far).unwrap();
        assert_eq!(far, vec![7; 3 * CHUNK + 11]);
    }

    #[test]
    fn why_there_is_no_daemon_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(connect(&path).unwrap_err().starts_with("no daemon serves"));
        let listener = UnixListener::bind(&path).unwrap();
        connect(&path).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(connect(&path).unwrap_err().contains("others may write"));
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        drop(listener);
        assert!(connect(&path).unwrap_err().starts_with("no daemon serves"));
    }
}
