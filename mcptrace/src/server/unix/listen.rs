//! The listening socket: made where the settings say, or handed over by systemd (sd_listen_fds(3)).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::Access;

/// The first descriptor that systemd hands over.
const FIRST: i32 = 3;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else listens.
    #[error("another daemon serves {0}")]
    InUse(PathBuf),
    /// Something stands there that is no socket.
    #[error("{0} exists and is no socket")]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("cannot listen on {0}")]
    Listen(PathBuf, #[source] io::Error),
    /// What systemd handed over is no listening unix socket.
    #[error("what LISTEN_FDS hands over is no listening unix socket")]
    Activation(#[source] io::Error),
}

/// A socket that listens. Its name goes with it, if it was made here.
#[derive(Debug)]
pub struct Listening {
    socket: OwnedFd,
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    path: PathBuf,
    inode: u64,
    /// Held as long as the socket: who has it may take the name of one that was left behind.
    _lock: File,
}

impl Listening {
    /// Where it is; `None` if systemd made it.
    pub fn path(&self) -> Option<&Path> {
        self.made.as_ref().map(|made| made.path.as_path())
    }

    pub(super) fn socket(&self) -> io::Result<UnixListener> {
        let socket = UnixListener::from(self.socket.try_clone()?);
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Only one's own: somebody may have put another in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|named| named.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn open(path: PathBuf, access: &Access) -> Result<Listening, SocketError> {
    let variable = |name: &str| std::env::var(name).ok();
    if handed_over(std::process::id(), variable) {
        // SAFETY: systemd has opened it for this process, and nothing else here owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
        return adopt(socket).map_err(SocketError::Activation);
    }
    make(&path, access)
}

/// Whether systemd hands over sockets, and to this process, not to a parent of it.
fn handed_over(pid: u32, variable: impl Fn(&str) -> Option<String>) -> bool {
    let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
    number("LISTEN_PID") == Some(pid) && number("LISTEN_FDS").is_some_and(|count| count >= 1)
}

fn adopt(socket: OwnedFd) -> io::Result<Listening> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let fits = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
        && sockopt::socket_type(&socket)? == SocketType::STREAM
        && sockopt::socket_acceptconn(&socket)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "it is of another kind");
    fits.then_some(Listening { socket, made: None }).ok_or_else(wrong)
}

fn make(path: &Path, access: &Access) -> Result<Listening, SocketError> {
    let cannot = |error| SocketError::Listen(path.to_owned(), error);
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(cannot)?;
    let lock = lock(&beside(path, "lock")).map_err(cannot)?.ok_or_else(|| SocketError::InUse(path.to_owned()))?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
        _ => {}
    }
    // Made aside and moved over what a dead daemon has left: nobody connects before the mode is right.
    let aside = beside(path, "new");
    let made = bind(&aside, access).and_then(|socket| {
        fs::rename(&aside, path)?;
        Ok((socket, fs::symlink_metadata(path)?.ino()))
    });
    let (socket, inode) = made.inspect_err(|_| _ = fs::remove_file(&aside)).map_err(cannot)?;
    Ok(Listening { socket: socket.into(), made: Some(Made { path: path.to_owned(), inode, _lock: lock }) })
}

fn bind(path: &Path, access: &Access) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    let mode = if access.users.is_empty() { 0o660 } else { 0o666 };
    if let Some(group) = access.group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    // Users that are named need not be in the group; who connects is looked at in any case.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(socket)
}

fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_dead_daemon_left_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/socket");
        fs::create_dir(folder.path().join("deep")).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "it was left behind");
        let living = make(&path, &Access::default()).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(matches!(make(&path, &Access::default()), Err(SocketError::InUse(_))));
        UnixStream::connect(&path).unwrap();
        drop(living);
        assert!(!path.exists(), "its name goes with it");
        fs::write(&path, "data").unwrap();
        assert!(matches!(make(&path, &Access::default()), Err(SocketError::NoSocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn others_have_no_access_unless_users_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for (users, mode) in [(vec![], 0o660), (vec![7], 0o666)] {
            let access = Access { users, ..Access::default() };
            let _listening = make(&path, &access).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn sockets_are_taken_over_only_if_they_are_meant_for_this_process() {
        let set = |pid: &'static str, count: &'static str| {
            move |name: &str| Some(if name == "LISTEN_PID" { pid } else { count }.to_owned())
        };
        assert!(handed_over(7, set("7", "1")));
        assert!(!handed_over(7, set("8", "1")));
        assert!(!handed_over(7, set("7", "0")));
        assert!(!handed_over(7, set("7", "x")));
        assert!(!handed_over(7, |_| None));
    }

    #[test]
    fn only_a_listening_unix_socket_is_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(adopt(listener.into()).is_ok());
        assert!(adopt(UnixStream::pair().unwrap().0.into()).is_err());
        assert!(adopt(File::open("/dev/null").unwrap().into()).is_err());
        assert!(adopt(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()).is_err());
    }
}
