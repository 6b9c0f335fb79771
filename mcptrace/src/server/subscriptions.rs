//! Watched executions: notices that what an execution found has changed, at most a few a second, until it has ended.
//!
//! Protocols up to 2025-11-25 subscribe to one resource at a time, for as long as the connection lasts; that of 2026-07-28 asks for
//! several with one request, which is answered when all of them have ended.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rmcp::{
    ErrorData,
    model::{ResourceUpdatedNotification, ResourceUpdatedNotificationParam, ServerNotification, SubscriptionFilter},
    service::{Peer, RoleServer, SubscriptionContext},
};
use tokio::{select, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Server, resources::EXECUTION_URI};
use crate::{
    execution::{Execution, Page},
    report::Status,
};

/// The least time between two notices about an execution: what came meanwhile is told by one. Events are to be read soon; what is summed up
/// changes all the time.
const PACE: Duration = Duration::from_millis(250);
const PACE_OF_EVENTS: Duration = Duration::from_millis(10);
/// Resources that one connection watches, at most.
const MOST: usize = 64;

/// What a connection watches; the watching ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Mutex<HashMap<String, CancellationToken>>);

impl Subscriptions {
    /// Begins to watch; the same resource again takes the place of the first.
    pub(super) fn add(&self, server: &Server, uri: &str, peer: Peer<RoleServer>) -> Result<(), ErrorData> {
        let execution = execution(server, uri).ok_or_else(|| unknown(uri))?;
        let mut all = self.lock();
        all.retain(|_, watched| !watched.is_cancelled());
        if all.len() >= MOST && !all.contains_key(uri) {
            return Err(ErrorData::invalid_params(
                format!("{MOST} resources are watched already: end some first"),
                None,
            ));
        }
        let end = CancellationToken::new();
        if let Some(earlier) = all.insert(uri.to_owned(), end.clone()) {
            earlier.cancel();
        }
        drop(all);
        let uri = uri.to_owned();
        tokio::spawn(async move {
            let over = end.clone();
            let _guard = over.drop_guard();
            watch(&execution, &end, || async {
                peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(&uri)).await.is_ok()
            })
            .await;
        });
        Ok(())
    }

    /// Ends the watching; one that nobody watches is no error.
    pub(super) fn remove(&self, uri: &str) {
        if let Some(watched) = self.lock().remove(uri) {
            watched.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.lock().values().for_each(CancellationToken::cancel);
    }
}

/// Of what a client wants to be told of: those executions that it may see.
pub(super) fn accepted(server: &Server, requested: &SubscriptionFilter) -> SubscriptionFilter {
    let own = each_once(requested.resource_subscriptions.iter().flatten(), |uri| execution(server, uri).is_some());
    let filter = SubscriptionFilter::builder();
    if own.is_empty() { filter.build() } else { filter.resource_subscriptions(own).build() }
}

/// Those that are wanted, each once, so that nobody is told twice of the same. No more are looked at than may be watched: it may take a
/// look into the history to know one.
fn each_once<'a>(uris: impl Iterator<Item = &'a String>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut seen = HashSet::new();
    uris.filter(|uri| seen.insert(*uri)).take(MOST).filter(|uri| wanted(uri)).cloned().collect()
}

/// Tells of all accepted executions until the last has ended or the request is cancelled.
pub(super) async fn listen(server: &Server, context: SubscriptionContext) -> Result<(), ErrorData> {
    let end = CancellationToken::new();
    let _guard = end.clone().drop_guard();
    let mut watching = JoinSet::new();
    for uri in context.accepted().resource_subscriptions.iter().flatten() {
        let Some(execution) = execution(server, uri) else { continue };
        let uri = uri.clone();
        let (sink, end) = (context.sink().clone(), end.clone());
        watching.spawn(async move {
            let notice = || {
                let updated = ResourceUpdatedNotification::new(ResourceUpdatedNotificationParam::new(&uri));
                let notice = ServerNotification::ResourceUpdatedNotification(updated);
                async { sink.send(notice).await.is_ok() }
            };
            watch(&execution, &end, notice).await;
        });
    }
    select! {
        () = async { while watching.join_next().await.is_some() {} } => Ok(()),
        () = context.cancelled() => Ok(()),
    }
}

/// Gives a notice whenever something has changed, the last one after the end. A client that takes none any more ends it.
async fn watch<F, T>(execution: &Arc<Execution>, end: &CancellationToken, notice: F)
where
    F: Fn() -> T,
    T: Future<Output = bool>,
{
    let mut told = None;
    let none = Page { limit: 0, max_bytes: 0, ..Page::default() };
    let pace = if execution.source().events(&none).is_some() { PACE_OF_EVENTS } else { PACE };
    loop {
        let state = state(execution);
        let ended = state.0 != Status::Running;
        if told.as_ref() != Some(&state) {
            let taken = select! { taken = notice() => taken, () = end.cancelled() => false };
            if !taken {
                return;
            }
            told = Some(state);
        }
        if ended {
            return;
        }
        select! {
            () = end.cancelled() => return,
            () = sleep(pace) => {}
        }
    }
}

/// What a notice is about: it changes with each event that is seen, delivered or lost.
fn state(execution: &Execution) -> (Status, Option<u64>, Option<u64>, u64) {
    let loss = execution.loss();
    (execution.status(), loss.seen, loss.delivered, loss.dropped_total())
}

fn execution(server: &Server, uri: &str) -> Option<Arc<Execution>> {
    server.find(uri.strip_prefix(EXECUTION_URI)?, "resources/subscribe").ok()
}

fn unknown(uri: &str) -> ErrorData {
    let uri = crate::text::untrusted(uri.as_bytes(), 200);
    ErrorData::resource_not_found(
        format!("{uri} is no execution of yours: only {EXECUTION_URI}ID changes; list_executions shows the ids"),
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_resource_twice_is_watched_once() {
        let uris = ["a", "b", "a", "other", "a"].map(str::to_owned);
        assert_eq!(each_once(uris.iter(), |uri| uri != "other"), ["a", "b"]);
        let many: Vec<_> = (0..MOST * 2).map(|number| number.to_string()).collect();
        let looked = std::cell::Cell::new(0);
        let look = |_: &str| {
            looked.set(looked.get() + 1);
            false
        };
        assert_eq!((each_once(many.iter(), |_| true).len(), each_once(many.iter(), look).len()), (MOST, 0));
        assert_eq!(looked.get(), MOST, "nor does asking for many take long");
    }
}
