//! The journal of systemd, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of `FIELD=value` lines.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

const SOCKET: &str = "/run/systemd/journal/socket";

/// Where records are sent.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { path: SOCKET.into(), socket: None }
    }
}

impl Journal {
    /// Sends a record. A journal that takes none is an error at once: nobody waits for it.
    pub(super) fn send(&mut self, line: &str) -> io::Result<()> {
        self.try_send(line).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))
    }

    fn try_send(&mut self, line: &str) -> io::Result<()> {
        // JSON in one line holds no newline, which would need another encoding.
        let record = format!("MESSAGE={line}\nPRIORITY=5\nSYSLOG_IDENTIFIER=mcptrace-audit\n");
        if let Some(socket) = &self.socket
            && socket.send(record.as_bytes()).is_ok()
        {
            return Ok(());
        }
        // It may have been started anew.
        let socket = connect(&self.path)?;
        socket.send(record.as_bytes())?;
        self.socket = Some(socket);
        Ok(())
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_datagram_also_after_the_journal_was_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut journal = Journal { path: path.clone(), socket: None };
        assert!(journal.send("{}").is_err(), "there is no journal");
        for _ in 0..2 {
            let socket = UnixDatagram::bind(&path).unwrap();
            journal.send("{\"event\":\"start\"}").unwrap();
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            assert_eq!(text, "MESSAGE={\"event\":\"start\"}\nPRIORITY=5\nSYSLOG_IDENTIFIER=mcptrace-audit\n");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
