//! Who is at the other end of a unix socket, as the kernel noted it when the connection was made.

use std::{io, os::fd::AsRawFd as _};

use tokio::net::UnixStream;

/// Groups of a user that are asked for; Linux allows 65,536, and nobody has so many.
const MOST_GROUPS: usize = 1024;

/// A user and its groups (unix(7), SO_PEERCRED and SO_PEERGROUPS).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        // Before Linux 4.13 there is only the first group.
        Ok(Self { uid: peer.uid(), gid: peer.gid(), groups: groups(stream).unwrap_or_default() })
    }
}

fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; MOST_GROUPS];
    let mut bytes = (MOST_GROUPS * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the buffer is as long as `bytes` says, and any bytes are valid numbers.
    let result = unsafe {
        let buffer = groups.as_mut_ptr().cast();
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, buffer, &raw mut bytes)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(bytes as usize / size_of::<u32>());
    Ok(groups)
}

/// The id of a group in the text of a group file (group(5)).
pub(super) fn group_id(file: &str, name: &str) -> Option<u32> {
    let line = file.lines().find(|line| !name.is_empty() && line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name() {
        let file = "root:x:0:\nodd\nmcptrace:x:712:alice,bob\n::9:\n";
        assert_eq!(group_id(file, "mcptrace"), Some(712));
        assert_eq!(group_id(file, "mcp"), None);
        assert_eq!(group_id(file, ""), None);
        assert_eq!(group_id(file, "odd"), None);
    }

    #[tokio::test]
    async fn the_peer_is_this_process_with_its_groups() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let mut found = peer.groups.clone();
        own.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, own);
    }
}
