//! Messages as lines of JSON over a pair of streams.
//!
//! rmcp's own transport ignores lines that are no JSON and those that are too long, ends when a notification comes first, and tells
//! nobody when the client leaves until all calls have been answered. This one answers every line that can be answered, and cancels
//! everything as soon as the client is gone.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use rmcp::{
    model::{ClientJsonRpcMessage, ClientNotification, ErrorCode, RequestId, ServerJsonRpcMessage},
    service::RoleServer,
    transport::Transport,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    backlog::{Backlog, Closed, Held, Rooms},
    hub::Lane,
    message::{self, Malformed},
};

/// What bounds a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The longest line that is read, in bytes.
    line_bytes: usize,
    /// Calls that may be under way at once, their answers not yet read; more are refused, each with an answer.
    calls: usize,
    /// What large answers may hold together until they are read, in bytes, if others leave as much; more of them wait to be made.
    unread_bytes: usize,
    /// How long a client may take to read what fits into the buffers between it and the server.
    patience: Duration,
}

/// A client that has the server for itself. A line above a 10 MB script deserves an answer that knows its id.
pub(super) const ALONE: Bounds =
    Bounds { line_bytes: 16 << 20, calls: 4096, unread_bytes: 16 << 20, patience: Duration::MAX };
/// One of many, each of which may use this up: a script has 64 KB at most.
pub(super) const SHARED: Bounds =
    Bounds { line_bytes: 1 << 20, calls: 256, unread_bytes: 4 << 20, patience: Duration::from_secs(30) };

/// Messages that wait for a slow client before calls wait too.
const QUEUE: usize = 64;
/// How long what is still to be written may take when everything else has ended.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// A message as it is written: a small part of what it takes in memory before.
struct Outgoing {
    line: Vec<u8>,
    /// The call that it answers.
    answers: Option<RequestId>,
}

/// A connection to a client.
pub(super) struct Wire<R> {
    lines: Lines<R>,
    /// Messages of a batch that are still to be handed over.
    messages: VecDeque<ClientJsonRpcMessage>,
    /// Answers to malformed lines that are still to be queued.
    refusals: VecDeque<ServerJsonRpcMessage>,
    queue: Option<mpsc::Sender<Outgoing>>,
    writer: JoinHandle<()>,
    backlog: Arc<Backlog>,
    begun: bool,
    bounds: Bounds,
    gone: CancellationToken,
}

impl<R: AsyncRead + Send + Unpin> Wire<R> {
    /// Speaks over these streams; cancels `gone` when the client has closed either. Its answers take room of the lane and of all.
    pub(super) fn new<W>(
        (read, write): (R, W),
        gone: CancellationToken,
        bounds: Bounds,
        lane: &Lane,
        rooms: &Arc<Rooms>,
    ) -> Self
    where
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (queue, queued) = mpsc::channel(QUEUE);
        let (each, rooms) = (Arc::clone(&lane.unread), Arc::clone(rooms));
        let backlog = Arc::new(Backlog::new(bounds.calls, bounds.unread_bytes, each, rooms));
        Self {
            lines: Lines::new(read, bounds.line_bytes),
            messages: VecDeque::new(),
            refusals: VecDeque::new(),
            queue: Some(queue),
            writer: tokio::spawn(write_all(write, queued, Arc::clone(&backlog), gone.clone(), bounds.patience)),
            backlog,
            begun: false,
            bounds,
            gone,
        }
    }

    /// What bounds the answers of those who answer here.
    pub(super) fn backlog(&self) -> Arc<Backlog> {
        Arc::clone(&self.backlog)
    }

    /// Queues what answers malformed lines. May be cancelled at any point without losing one.
    async fn refuse(&mut self) {
        while !self.refusals.is_empty() {
            let Some(queue) = &self.queue else { return };
            let Ok(place) = queue.reserve().await else { return };
            if let Some(refusal) = self.refusals.pop_front() {
                place.send(Outgoing { line: line(&refusal), answers: None });
            }
        }
    }

    fn take_in(&mut self, line: &[u8]) {
        for parsed in message::parse_line(line) {
            match parsed.and_then(|message| message.map_or(Ok(None), |message| self.admit(message))) {
                Ok(message) => self.messages.extend(message),
                Err(malformed) => self.refusals.push_back(malformed.answer()),
            }
        }
    }

    /// Lets a message in, drops it, or refuses it.
    fn admit(&mut self, message: ClientJsonRpcMessage) -> message::Parsed {
        match &message {
            ClientJsonRpcMessage::Request(call) => {
                self.open_call(&call.id)?;
                self.begun |= message::opens(&call.request);
            }
            _ if !self.begun => return Ok(None),
            ClientJsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification {
                    cancelled.params.request_id.iter().for_each(|id| drop(self.backlog.close(id)));
                }
            }
            _ => {}
        }
        Ok(Some(message))
    }

    fn open_call(&self, id: &RequestId) -> Result<(), Malformed> {
        let why = match self.backlog.open(id) {
            Ok(()) => return Ok(()),
            Err(Closed::Full(calls)) => {
                format!("{calls} calls are under way or their answers unread, which is the limit: read answers first")
            }
            Err(Closed::Taken) => "a call with this id is under way".into(),
        };
        Err(Malformed::new(Some(id.clone()), ErrorCode::INVALID_REQUEST, why))
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> Transport<RoleServer> for Wire<R> {
    type Error = io::Error;

    fn send(&mut self, message: ServerJsonRpcMessage) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let queue = self.queue.clone();
        let answers = match &message {
            ServerJsonRpcMessage::Response(response) => Some(response.id.clone()),
            ServerJsonRpcMessage::Error(error) => error.id.clone(),
            _ => None,
        };
        let outgoing = Outgoing { line: line(&message), answers };
        if let Some(id) = &outgoing.answers {
            self.backlog.made(id);
        }
        async move {
            let closed = || io::Error::from(io::ErrorKind::NotConnected);
            queue.ok_or_else(closed)?.send(outgoing).await.map_err(|_| closed())
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            self.refuse().await;
            if let Some(message) = self.messages.pop_front() {
                return Some(message);
            }
            match self.lines.next().await {
                Line::Whole(line) => self.take_in(&line),
                Line::TooLong => self.refusals.push_back(message::too_long(self.bounds.line_bytes).answer()),
                Line::End => {
                    self.gone.cancel();
                    return None;
                }
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.queue = None;
        // A client that has stopped reading cannot be told anything more.
        let _ = tokio::time::timeout(CLOSE_TIME, &mut self.writer).await;
        self.writer.abort();
        self.backlog.end();
        Ok(())
    }
}

/// Writes what is queued, and flushes when nothing more is waiting.
async fn write_all<W>(
    write: W,
    mut queued: mpsc::Receiver<Outgoing>,
    backlog: Arc<Backlog>,
    gone: CancellationToken,
    patience: Duration,
) where
    W: AsyncWrite + Send + Unpin,
{
    let mut write = write;
    while let Some(Outgoing { line: mut lines, answers }) = queued.recv().await {
        // Their calls end before they are written: who has read an answer may use its id again. Their room is kept until then.
        let close = |answers: Option<RequestId>| answers.map_or_else(Held::default, |id| backlog.close(&id));
        let mut held = vec![close(answers)];
        while lines.len() < 64 << 10
            && let Ok(Outgoing { line, answers }) = queued.try_recv()
        {
            lines.extend_from_slice(&line);
            held.push(close(answers));
        }
        let written = async {
            write.write_all(&lines).await?;
            write.flush().await
        };
        let written = tokio::time::timeout(patience, written).await.unwrap_or_else(|late| Err(late.into()));
        if let Err(error) = written {
            tracing::debug!(%error, "the client does not read any more");
            gone.cancel();
            return;
        }
    }
}

/// A message as a line; empty if it cannot be written as JSON, which is a bug.
fn line(message: &ServerJsonRpcMessage) -> Vec<u8> {
    match serde_json::to_vec(message) {
        Ok(mut line) => {
            line.push(b'\n');
            line
        }
        Err(error) => {
            tracing::error!(%error, "a message cannot be written as JSON");
            Vec::new()
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// Lines of a stream, in bounded memory.
struct Lines<R> {
    read: BufReader<R>,
    line: Vec<u8>,
    most_bytes: usize,
    /// In the middle of a line that is too long.
    skipping: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(read: R, most_bytes: usize) -> Self {
        Self { read: BufReader::new(read), line: Vec::new(), most_bytes, skipping: false }
    }

    /// May be cancelled at any point without losing a byte: nothing is awaited between taking bytes and keeping them.
    async fn next(&mut self) -> Line {
        loop {
            let bytes = match self.read.fill_buf().await {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::debug!(%error, "cannot read from the client");
                    return Line::End;
                }
            };
            if bytes.is_empty() {
                // A last line without an end is a message all the same.
                let rest = std::mem::take(&mut self.line);
                return if rest.is_empty() { Line::End } else { Line::Whole(rest) };
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            if !self.skipping {
                self.line.extend_from_slice(&bytes[..taken]);
            }
            self.read.consume(taken);
            if let Some(line) = self.after(end.is_some()) {
                return line;
            }
        }
    }

    fn after(&mut self, ended: bool) -> Option<Line> {
        if self.skipping {
            self.skipping = !ended;
            return None;
        }
        if self.line.len() > self.most_bytes {
            self.line = Vec::new();
            self.skipping = !ended;
            return Some(Line::TooLong);
        }
        ended.then(|| Line::Whole(std::mem::take(&mut self.line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &str, most_bytes: usize) -> Vec<String> {
        let mut lines = Lines::new(text.as_bytes(), most_bytes);
        let mut found = Vec::new();
        loop {
            match lines.next().await {
                Line::Whole(line) => found.push(String::from_utf8(line).unwrap()),
                Line::TooLong => found.push("too long".into()),
                Line::End => return found,
            }
        }
    }

    #[tokio::test]
    async fn lines_come_whole_and_the_last_needs_no_end() {
        assert_eq!(lines("a\nbc\n\nd", 9).await, ["a\n", "bc\n", "\n", "d"]);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_said_once_and_skipped_to_its_end() {
        let long = "x".repeat(100_000);
        assert_eq!(lines(&format!("a\n{long}\nb\n"), 50).await, ["a\n", "too long", "b\n"]);
        assert_eq!(lines(&format!("{long}\n"), 50).await, ["too long"]);
        assert_eq!(lines(&long, 50).await, ["too long"]);
    }
}
