//! Answers that a client has not read yet: how many bytes they may hold, of a connection and of all together, and which calls they end.
//!
//! Small answers have a room of each connection, which nobody else can use up: a start, a stop and a usual look at a result never wait
//! for others. Large ones take room of their connection, of who asks, and of the process, before they are made; while they are made they
//! take several times their size, because that is what they take in memory until they are written as JSON.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rmcp::model::RequestId;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::memory;

/// What all connections together may have in large answers, in bytes.
const ALL_BYTES: usize = 32 << 20;
/// What those of one principal may have of it: others find room beside it.
pub(super) const EACH_BYTES: usize = ALL_BYTES / 2;
/// Answers up to this are usual: what is asked for without a size.
const USUAL: usize = 32 << 10;
/// Up to this they are small: lists and descriptions, which may be asked for by the hundred, and keep no usual one waiting.
const SMALL: usize = 64 << 10;
/// What the answers of a connection of each of these sizes may hold together.
const SMALL_BYTES: usize = 2 * SMALL;
/// What an answer takes while it is made, in multiples of its size.
const MAKING: usize = 4;
/// Large answers that are made at once, so that there are threads and time for everything else.
const MADE_AT_ONCE: usize = 2;
/// Memory is given back this long after the last large answer: what a client has left behind is dropped a little after its room.
const CALM: Duration = Duration::from_secs(1);

/// What bounds the large answers of all connections of a process.
#[derive(Debug)]
pub(super) struct Rooms {
    all: Arc<Semaphore>,
    makers: Semaphore,
    /// Since memory was given back, or is to be.
    used: AtomicBool,
    /// A task waits for calm, to give memory back.
    waiting: AtomicBool,
}

/// The calls of a connection whose answers have not been written yet, with the room that each answer takes.
#[derive(Debug)]
pub(super) struct Backlog {
    usual: Arc<Semaphore>,
    small: Arc<Semaphore>,
    /// Of the connection, of its principal, of all: in the order in which they are taken.
    large: [Arc<Semaphore>; 3],
    rooms: Arc<Rooms>,
    bytes: usize,
    calls: usize,
    open: Mutex<HashMap<RequestId, Held>>,
}

/// The room of an answer, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Held {
    permits: Vec<OwnedSemaphorePermit>,
    /// Of a large answer: the memory that it took may be given back afterwards.
    rooms: Option<Arc<Rooms>>,
}

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// So many are under way that no other may be.
    Full(usize),
    /// One with the same id is.
    Taken,
}

impl Rooms {
    /// Room for a process.
    pub(super) fn new() -> Arc<Self> {
        let (all, makers) = (Arc::new(Semaphore::new(ALL_BYTES)), Semaphore::new(MADE_AT_ONCE));
        Arc::new(Self { all, makers, used: AtomicBool::new(false), waiting: AtomicBool::new(false) })
    }

    /// A place among those that make an answer; small ones need none.
    pub(super) async fn maker(&self, bytes: usize) -> Option<tokio::sync::SemaphorePermit<'_>> {
        if bytes <= SMALL { None } else { self.makers.acquire().await.ok() }
    }

    /// Gives memory back to the system once no large answer is held any more.
    fn settle(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_free() && self.used.load(Ordering::SeqCst) && !self.waiting.swap(true, Ordering::SeqCst) {
            runtime.spawn(Arc::clone(self).wait_for_calm());
        }
    }

    fn is_free(&self) -> bool {
        self.all.available_permits() == ALL_BYTES
    }

    async fn wait_for_calm(self: Arc<Self>) {
        while self.used.swap(false, Ordering::SeqCst) {
            tokio::time::sleep(CALM).await;
        }
        let free = self.is_free();
        self.used.store(!free, Ordering::SeqCst);
        self.waiting.store(false, Ordering::SeqCst);
        if free {
            tokio::task::spawn_blocking(memory::release_free);
        } else {
            // It may have become free just now, when nobody else could wait.
            self.settle();
        }
    }
}

impl Backlog {
    /// For so many calls at once, whose large answers have these bytes together, and no more than is left to their principal and to all.
    pub(super) fn new(calls: usize, bytes: usize, each: Arc<Semaphore>, rooms: Arc<Rooms>) -> Self {
        let large = [Arc::new(Semaphore::new(bytes)), each, Arc::clone(&rooms.all)];
        let bytes = bytes.min(EACH_BYTES);
        let [usual, small] = [(); 2].map(|()| Arc::new(Semaphore::new(SMALL_BYTES)));
        Self { usual, small, large, rooms, bytes, calls, open: Mutex::default() }
    }

    /// A call begins.
    pub(super) fn open(&self, id: &RequestId) -> Result<(), Closed> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.calls {
            return Err(Closed::Full(self.calls));
        }
        if open.contains_key(id) {
            return Err(Closed::Taken);
        }
        open.insert(id.clone(), Held::default());
        Ok(())
    }

    /// Waits until there is room for an answer. It is kept until the call is closed; a call that is closed already needs none.
    pub(super) async fn reserve(&self, id: &RequestId, bytes: usize) {
        let mut held = if bytes <= SMALL { self.small_room(bytes).await } else { self.large_room(bytes).await };
        if let Some(of_call) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            of_call.permits.append(&mut held.permits);
            of_call.rooms = held.rooms.take().or_else(|| of_call.rooms.take());
        }
    }

    /// An answer is written as JSON: from now on it takes no more than its size.
    pub(super) fn made(&self, id: &RequestId) {
        if let Some(held) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            held.shrink();
        }
    }

    /// A call has been cancelled, or its answer is about to be written. Its id may be used again; its room when what it held is dropped.
    pub(super) fn close(&self, id: &RequestId) -> Held {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id).unwrap_or_default()
    }

    /// All calls end with their connection.
    pub(super) fn end(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn small_room(&self, bytes: usize) -> Held {
        let room = if bytes <= USUAL { &self.usual } else { &self.small };
        Held { permits: take(room, bytes).await.into_iter().collect(), rooms: None }
    }

    async fn large_room(&self, bytes: usize) -> Held {
        let bytes = bytes.saturating_mul(MAKING).min(self.bytes);
        let mut held = Held { permits: Vec::new(), rooms: Some(Arc::clone(&self.rooms)) };
        for room in &self.large {
            held.permits.extend(take(room, bytes).await);
        }
        self.rooms.used.store(true, Ordering::SeqCst);
        held
    }
}

impl Held {
    fn shrink(&mut self) {
        for permit in self.permits.iter_mut().filter(|permit| permit.num_permits() > SMALL) {
            let spare = permit.num_permits() - permit.num_permits() / MAKING;
            drop(permit.split(spare));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.permits.clear();
        if let Some(rooms) = &self.rooms {
            rooms.settle();
        }
    }
}

/// It is never closed, so there is room in the end.
async fn take(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(room).acquire_many_owned(bytes).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(calls: usize, bytes: usize, rooms: &Arc<Rooms>) -> Backlog {
        Backlog::new(calls, bytes, Arc::new(Semaphore::new(EACH_BYTES)), Arc::clone(rooms))
    }

    async fn has_room(backlog: &Backlog, id: &RequestId, bytes: usize) -> bool {
        tokio::time::timeout(Duration::ZERO, backlog.reserve(id, bytes)).await.is_ok()
    }

    #[test]
    fn calls_are_bounded_and_their_ids_apart() {
        let backlog = connection(2, 1, &Rooms::new());
        let [one, two, three] = [1, 2, 3].map(RequestId::Number);
        assert_eq!(backlog.open(&one), Ok(()));
        assert_eq!(backlog.open(&one), Err(Closed::Taken));
        assert_eq!(backlog.open(&two), Ok(()));
        assert_eq!(backlog.open(&three), Err(Closed::Full(2)));
        drop(backlog.close(&one));
        assert_eq!(backlog.open(&three), Ok(()));
    }

    #[tokio::test]
    async fn answers_wait_for_room_until_earlier_ones_have_been_written() {
        let backlog = connection(9, 4 << 20, &Rooms::new());
        let [one, two, gone] = [1, 2, 3].map(RequestId::Number);
        backlog.open(&one).unwrap();
        backlog.open(&two).unwrap();
        assert!(has_room(&backlog, &one, 1 << 20).await);
        assert!(!has_room(&backlog, &two, 100 << 20).await, "more than there ever is waits for all of it");
        let written = backlog.close(&one);
        assert!(!has_room(&backlog, &two, 1 << 20).await, "it has not been written yet");
        drop(written);
        assert!(has_room(&backlog, &two, 100 << 20).await);
        drop(backlog.close(&two));
        for _ in 0..2 {
            assert!(has_room(&backlog, &gone, 1 << 20).await, "a call that is closed holds nothing");
        }
    }

    #[tokio::test]
    async fn an_answer_takes_several_times_its_size_until_it_is_json() {
        let backlog = connection(9, 4 << 20, &Rooms::new());
        let [one, two] = [1, 2].map(RequestId::Number);
        backlog.open(&one).unwrap();
        backlog.open(&two).unwrap();
        assert!(has_room(&backlog, &one, 1 << 20).await);
        assert!(!has_room(&backlog, &two, 700 << 10).await);
        backlog.made(&one);
        assert!(has_room(&backlog, &two, 700 << 10).await);
    }

    #[tokio::test]
    async fn connections_share_the_room_for_large_answers_and_none_uses_up_that_for_small_ones() {
        let rooms = Rooms::new();
        let each = || Arc::new(Semaphore::new(EACH_BYTES));
        let (hog, other, third) = (each(), each(), each());
        let of = |each: &Arc<Semaphore>| Backlog::new(99, 4 << 20, Arc::clone(each), Arc::clone(&rooms));
        let fill = async |each: &Arc<Semaphore>| {
            let all: Vec<_> = (0..20).map(|_| of(each)).collect();
            let mut full = 0;
            for backlog in &all {
                let id = RequestId::Number(1);
                backlog.open(&id).unwrap();
                full += usize::from(has_room(backlog, &id, 1 << 20).await);
            }
            (all, full)
        };
        let (hogs, of_hog) = fill(&hog).await;
        assert_eq!((of_hog * 4) << 20, EACH_BYTES, "a principal has its share, whatever its number of connections");
        let (others, of_other) = fill(&other).await;
        assert_eq!(((of_hog + of_other) * 4) << 20, ALL_BYTES);
        let late = of(&third);
        let [one, two] = [1, 2].map(RequestId::Number);
        late.open(&one).unwrap();
        late.open(&two).unwrap();
        assert!(!has_room(&late, &one, 1 << 20).await, "there is none left for anybody");
        assert!(has_room(&late, &two, 24 << 10).await, "what is small never waits for others");
        assert!(has_room(&late, &two, SMALL).await && has_room(&late, &two, SMALL).await);
        assert!(!has_room(&late, &two, SMALL).await, "there is a bound for lists too");
        assert!(has_room(&late, &two, 24 << 10).await, "and they keep no usual answer waiting");
        drop(hogs);
        assert!(has_room(&late, &one, 1 << 20).await);
        drop(others);
    }
}
