//! What all connections of a process share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::Semaphore;

use super::{
    backlog::{EACH_BYTES, Rooms},
    recent::Recent,
};
use crate::{executions::Executions, kernel::support::Info, principal::Who};

/// Threads that the calls of one principal may block at once. Loading a probe takes one for some 10 ms, compiling a script for 300.
const BLOCKING: usize = 4;
/// Those that only look: lists and descriptions, which may be asked for by the hundred.
const LOOKING: usize = 2;
/// Questions about the past of one principal at once; of one connection there is one.
const QUERIES: usize = 8;
/// Triages of one principal at once. Each runs some fifteen probes beside the executions.
const TRIAGES: usize = 2;

/// The executions, and what bounds those who ask for them. One for all transports of a process.
#[derive(Debug)]
pub struct Hub {
    executions: Arc<Executions>,
    info: Recent<Info>,
    rooms: Arc<Rooms>,
    lanes: Mutex<HashMap<Who, Weak<Lane>>>,
}

/// What the calls of one principal wait for, over all its connections: nobody's calls wait for those of others.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) blocking: Semaphore,
    pub(super) looking: Semaphore,
    pub(super) queries: Semaphore,
    pub(super) triages: Semaphore,
    /// Room for large answers until they are read, in bytes.
    pub(super) unread: Arc<Semaphore>,
}

impl Hub {
    /// Nobody is connected yet.
    pub fn new(executions: Arc<Executions>) -> Arc<Self> {
        Arc::new(Self { executions, info: Recent::default(), rooms: Rooms::new(), lanes: Mutex::default() })
    }

    /// The executions of everybody.
    pub fn executions(&self) -> &Arc<Executions> {
        &self.executions
    }

    /// What was found out about the system lately.
    pub(super) fn info(&self) -> &Recent<Info> {
        &self.info
    }

    /// Room for large answers of everybody.
    pub(super) fn rooms(&self) -> &Arc<Rooms> {
        &self.rooms
    }

    /// The lane of a principal; it lasts as long as one of its connections.
    pub(super) fn lane(&self, who: &Who) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|_, lane| lane.strong_count() > 0);
        if let Some(lane) = lanes.get(who).and_then(Weak::upgrade) {
            return lane;
        }
        let lane = Arc::new(Lane::default());
        lanes.insert(who.clone(), Arc::downgrade(&lane));
        lane
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            blocking: Semaphore::new(BLOCKING),
            looking: Semaphore::new(LOOKING),
            queries: Semaphore::new(QUERIES),
            triages: Semaphore::new(TRIAGES),
            unread: Arc::new(Semaphore::new(EACH_BYTES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executions::Limits;

    #[test]
    fn connections_of_one_principal_share_a_lane_and_those_of_two_do_not() {
        let hub = Hub::new(Arc::new(Executions::new(Limits::default())));
        let first = hub.lane(&Who::User(7));
        assert!(Arc::ptr_eq(&first, &hub.lane(&Who::User(7))));
        assert!(!Arc::ptr_eq(&first, &hub.lane(&Who::User(8))));
        drop(first);
        hub.lane(&Who::User(9));
        assert_eq!(hub.lanes.lock().unwrap().len(), 1, "lanes of those who have gone are not kept");
    }
}
