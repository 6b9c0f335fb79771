//! The server on a unix socket: for several users of this host at once. The kernel tells who each is.
//!
//! A client that does not read, or says nothing, or leaves, costs a place among the connections of its user and nothing else.

mod listen;
mod peer;

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use rmcp::model::{ClientJsonRpcMessage, RequestId};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::listen::{Listening, SocketError};
use self::peer::Peer;
use super::{Hub, message, serve};
use crate::{audit::SETTLE, config::Socket, principal::Principal};

/// How long connections may take to end when the server does.
const END_TIME: Duration = Duration::from_secs(10);
/// How long one that is turned away may take to read why.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// How many may do so at once.
const REFUSALS: usize = 16;
/// What of a first line is read to find the id that the refusal belongs to, in bytes: an `initialize` is some hundreds.
const FIRST_BYTES: usize = 16 << 10;
/// Of the codes that JSON-RPC leaves to servers.
const NOT_ADMITTED: i32 = -32000;
/// Pause after the system had no descriptor or memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Who may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The group, if there is one of that name.
    pub group: Option<u32>,
    /// Users beside root and that of this process.
    pub users: Vec<u32>,
    /// Connections at once.
    pub most: usize,
    /// Connections of one user, root apart.
    pub most_each: usize,
}

impl Access {
    /// As the settings say.
    pub fn of(socket: &Socket) -> Self {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        Self {
            group: peer::group_id(&groups, &socket.group),
            users: socket.users.clone(),
            most: socket.connections,
            most_each: socket.connections_each,
        }
    }

    fn admits(&self, peer: &Peer) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let is_member = |group: u32| peer.gid == group || peer.groups.contains(&group);
        peer.uid == 0 || peer.uid == own || self.users.contains(&peer.uid) || self.group.is_some_and(is_member)
    }
}

/// Listens where the settings say, or on what systemd hands over.
pub fn listen(path: PathBuf, access: &Access) -> Result<Listening, SocketError> {
    listen::open(path, access)
}

/// Serves all who connect until `end` is cancelled. When this returns no connection is left.
pub async fn run(listening: Listening, hub: Arc<Hub>, access: Access, end: CancellationToken) -> io::Result<()> {
    let listener = UnixListener::from_std(listening.socket()?)?;
    let refusing = Arc::new(Semaphore::new(REFUSALS));
    let audit = Arc::clone(hub.executions().audit());
    let mut open = Open { hub, access, end: end.clone(), by_user: HashMap::new(), refusing, tasks: JoinSet::new() };
    let mut settle = interval(SETTLE);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = end.cancelled() => break,
            _ = settle.tick() => audit.settle(),
            ended = open.tasks.join_next(), if !open.tasks.is_empty() => open.forget(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => open.take_in(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
    drop((listener, listening));
    let ended = async { while open.tasks.join_next().await.is_some() {} };
    // What has not ended by then ends with the process.
    let _ = timeout(END_TIME, ended).await;
    Ok(())
}

/// The connections that are open.
struct Open {
    hub: Arc<Hub>,
    access: Access,
    end: CancellationToken,
    by_user: HashMap<u32, usize>,
    /// Places for those who are told why they are turned away.
    refusing: Arc<Semaphore>,
    tasks: JoinSet<u32>,
}

impl Open {
    fn take_in(&mut self, stream: UnixStream) {
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => return tracing::warn!(%error, "a connection whose user cannot be told is closed"),
        };
        if let Err((kind, why)) = self.admit(&peer) {
            self.hub.executions().audit().turned_away(&Principal::user(peer.uid), kind, &why);
            // A few at once, each for a moment: more are closed without a word.
            if let Ok(place) = Arc::clone(&self.refusing).try_acquire_owned() {
                tokio::spawn(async move {
                    turn_away(stream, why).await;
                    drop(place);
                });
            }
            return;
        }
        *self.by_user.entry(peer.uid).or_default() += 1;
        let (hub, end) = (Arc::clone(&self.hub), self.end.child_token());
        self.tasks.spawn(async move {
            // A task of its own: a bug that ends one connection leaves the count of its user right.
            let served = tokio::spawn(async move {
                let streams = stream.into_split();
                serve((streams.0, streams.1), &hub, Principal::user(peer.uid), end).await
            });
            if let Ok(Err(error)) = served.await {
                tracing::debug!(%error, uid = peer.uid, "a connection has failed");
            }
            peer.uid
        });
    }

    /// Whether somebody may come in; if not, one word for why, and a sentence.
    fn admit(&self, peer: &Peer) -> Result<(), (&'static str, String)> {
        if !self.access.admits(peer) {
            let why = format!("user {} may not connect: the operator names users and a group in [socket]", peer.uid);
            return Err(("user", why));
        }
        let own = self.by_user.get(&peer.uid).copied().unwrap_or(0);
        let all: usize = self.by_user.values().sum();
        if peer.uid != 0 && (own >= self.access.most_each || all >= self.access.most) {
            return Err(("connections", format!("too many connections: {own} of user {}, {all} in all", peer.uid)));
        }
        // Root finds a place when others have taken all, but not without bound either.
        if all >= 2 * self.access.most {
            return Err(("connections", format!("too many connections: {all}")));
        }
        Ok(())
    }

    fn forget(&mut self, ended: Option<Result<u32, tokio::task::JoinError>>) {
        let Some(Ok(uid)) = ended else { return };
        if let Some(open) = self.by_user.get_mut(&uid) {
            *open -= 1;
            if *open == 0 {
                self.by_user.remove(&uid);
            }
        }
    }
}

/// Answers the first request, which is what a client waits for. Without one, or with one that has no id, the answer has none either: `null`,
/// as JSON-RPC has it.
async fn turn_away(mut stream: UnixStream, why: String) {
    let id = timeout(REFUSAL_TIME, first_id(&mut stream)).await.ok().flatten();
    let error = serde_json::json!({ "code": NOT_ADMITTED, "message": why });
    let answer = serde_json::json!({ "jsonrpc": "2.0", "id": id, "error": error });
    let _ = timeout(REFUSAL_TIME, stream.write_all(format!("{answer}\n").as_bytes())).await;
}

/// The id of the request in the first line, if that is one.
async fn first_id(stream: &mut UnixStream) -> Option<RequestId> {
    let mut line = Vec::new();
    BufReader::new(stream.take(FIRST_BYTES as u64)).read_until(b'\n', &mut line).await.ok()?;
    match message::parse_line(&line).into_iter().next()? {
        Ok(Some(ClientJsonRpcMessage::Request(request))) => Some(request.id),
        Err(malformed) => malformed.id,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_group_and_named_users_are_let_in() {
        let access = Access { group: Some(700), users: vec![1001], most: 9, most_each: 9 };
        let peer = |uid, gid, groups: &[u32]| Peer { uid, gid, groups: groups.to_vec() };
        for (peer, may) in [
            (peer(0, 0, &[]), true),
            (peer(1001, 1001, &[]), true),
            (peer(1002, 700, &[]), true),
            (peer(1002, 1002, &[4, 700]), true),
            (peer(1002, 1002, &[4, 7]), false),
            (peer(65_534, 65_534, &[]), false),
        ] {
            assert_eq!(access.admits(&peer), may, "{peer:?}");
        }
        assert!(!Access::default().admits(&peer(1002, 0, &[0])), "no group is not group 0");
    }
}
