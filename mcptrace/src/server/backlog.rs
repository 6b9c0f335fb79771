//! Answers that a connection's client has not read yet: how many bytes they may hold, and which calls they end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rmcp::model::RequestId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The calls of a connection whose answers have not been written yet, with the room that each answer takes.
#[derive(Debug)]
pub(super) struct Backlog {
    room: Arc<Semaphore>,
    bytes: u32,
    calls: usize,
    open: Mutex<HashMap<RequestId, Vec<OwnedSemaphorePermit>>>,
}

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// So many are under way that no other may be.
    Full(usize),
    /// One with the same id is.
    Taken,
}

impl Backlog {
    /// For so many calls at once, whose large answers have these bytes together.
    pub(super) fn new(calls: usize, bytes: u32) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes as usize)), bytes, calls, open: Mutex::default() }
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
        open.insert(id.clone(), Vec::new());
        Ok(())
    }

    /// Waits until there is room for an answer. It is kept until the call is closed; a call that is closed already needs none.
    pub(super) async fn reserve(&self, id: &RequestId, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        // It is never closed.
        let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(bytes).await else { return };
        if let Some(permits) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            permits.push(permit);
        }
    }

    /// A call has been cancelled, or its answer is being written.
    pub(super) fn close(&self, id: &RequestId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_are_bounded_and_their_ids_apart() {
        let backlog = Backlog::new(2, 1);
        let [one, two, three] = [1, 2, 3].map(RequestId::Number);
        assert_eq!(backlog.open(&one), Ok(()));
        assert_eq!(backlog.open(&one), Err(Closed::Taken));
        assert_eq!(backlog.open(&two), Ok(()));
        assert_eq!(backlog.open(&three), Err(Closed::Full(2)));
        backlog.close(&one);
        assert_eq!(backlog.open(&three), Ok(()));
    }

    #[tokio::test]
    async fn answers_wait_for_room_until_earlier_ones_have_been_written() {
        let backlog = Backlog::new(9, 100);
        let [one, two, gone] = [1, 2, 3].map(RequestId::Number);
        let has_room = async |id, bytes| tokio::time::timeout(Duration::ZERO, backlog.reserve(id, bytes)).await.is_ok();
        backlog.open(&one).unwrap();
        backlog.open(&two).unwrap();
        assert!(has_room(&one, 60).await);
        assert!(!has_room(&two, 1000).await, "more than there ever is waits for all of it");
        backlog.close(&one);
        assert!(has_room(&two, 1000).await);
        backlog.close(&two);
        assert!(has_room(&gone, 100).await);
        assert!(has_room(&gone, 100).await, "a call that is closed holds nothing");
    }
}
