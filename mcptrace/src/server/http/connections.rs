//! Which connections are open, whose they are, and which of them goes when there are too many.
//!
//! A connection that has shown a token keeps its place. The others are shed where the places are needed: the oldest of the address that
//! holds most of them, so that whoever opens many drives out its own and not somebody's who is about to show a token.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;

/// Connections at once. Where all have shown tokens, more wait in the kernel until one ends.
const MOST: usize = 1024;
/// Descriptors that a process with so many connections should have: what executions need comes on top.
const FILES: u64 = 8 * MOST as u64;

/// The connections that are open.
#[derive(Debug)]
pub(super) struct Connections {
    audit: Arc<Audit>,
    most: usize,
    open: Mutex<Open>,
    /// That there may be room now.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    all: HashMap<u64, One>,
    /// Those that have shown no token, by where they come from; the lowest number is the oldest.
    strangers: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct One {
    from: IpAddr,
    /// Who has shown a token in it.
    principal: Option<String>,
    shed: CancellationToken,
}

/// An open connection; it is no longer counted when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    id: u64,
    shed: CancellationToken,
}

/// What names a connection to those that look at its requests.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    connections: Arc<Connections>,
    id: u64,
}

impl Connections {
    /// None yet. Of the descriptors that this process may have they take a half at most.
    pub(super) fn new(audit: Arc<Audit>) -> Arc<Self> {
        let most = usize::try_from(files() / 2).unwrap_or(MOST).clamp(1, MOST);
        Arc::new(Self { audit, most, open: Mutex::default(), changed: Notify::new() })
    }

    /// Waits until there is room for one more, or something to be shed for it.
    pub(super) async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            let has_room = {
                let open = self.open();
                open.all.len() < self.most || !open.strangers.is_empty()
            };
            if has_room {
                return;
            }
            changed.await;
        }
    }

    /// Takes one in; where that is one too many, another is shed.
    pub(super) fn take_in(self: &Arc<Self>, peer: IpAddr) -> Place {
        if self.open().all.len() >= self.most {
            self.shed_one();
        }
        let shed = CancellationToken::new();
        let mut open = self.open();
        open.last += 1;
        let id = open.last;
        let from = network(peer);
        open.all.insert(id, One { from, principal: None, shed: shed.clone() });
        open.strangers.entry(from).or_default().insert(id);
        Place { connections: Arc::clone(self), id, shed }
    }

    /// Ends a connection that has shown no token, if there is one.
    pub(super) fn shed_one(&self) -> bool {
        let shed = {
            let mut open = self.open();
            open.victim().and_then(|id| open.remove(id))
        };
        let Some(one) = shed else { return false };
        one.shed.cancel();
        self.audit.kept_out(
            one.from,
            "connections",
            "there were too many connections, and this one had shown no token",
        );
        true
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Of those without a token the oldest of whoever holds most of them; among equals the one that is older.
    fn victim(&self) -> Option<u64> {
        let of_each = self.strangers.values().filter_map(|own| Some((own.len(), own.first()?)));
        of_each.max_by_key(|(count, oldest)| (*count, Reverse(*oldest))).map(|(_, oldest)| *oldest)
    }

    fn remove(&mut self, id: u64) -> Option<One> {
        let one = self.all.remove(&id)?;
        self.is_known(id, one.from);
        Some(one)
    }

    /// It is no stranger's any more.
    fn is_known(&mut self, id: u64, from: IpAddr) {
        let Some(own) = self.strangers.get_mut(&from) else { return };
        own.remove(&id);
        if own.is_empty() {
            self.strangers.remove(&from);
        }
    }
}

impl Place {
    /// For those that look at its requests.
    pub(super) fn handle(&self) -> Handle {
        Handle { connections: Arc::clone(&self.connections), id: self.id }
    }

    /// Waits until it has to go.
    pub(super) async fn shed(&self) {
        self.shed.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().remove(self.id);
        self.connections.changed.notify_one();
    }
}

impl Handle {
    /// A valid token has been shown in it. False if whoever holds that has more than half of all connections already.
    pub(super) fn belongs_to(&self, principal: &str) -> bool {
        let mut open = self.connections.open();
        let is_own = |one: &One| one.principal.as_deref() == Some(principal);
        // One that has just been shed has nothing to be refused.
        let Some(one) = open.all.get(&self.id).filter(|one| !is_own(one)) else { return true };
        let from = one.from;
        if open.all.values().filter(|one| is_own(one)).count() >= self.connections.most.div_ceil(2) {
            return false;
        }
        if let Some(one) = open.all.get_mut(&self.id) {
            one.principal = Some(principal.to_owned());
        }
        open.is_known(self.id, from);
        true
    }
}

/// Of addresses of version 6 the network: one host has as many as it likes of its.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// How many descriptors this process may have, after it has asked for enough.
fn files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(now) = current.filter(|now| *now < FILES) else { return FILES };
    let wanted = maximum.unwrap_or(FILES).min(FILES).max(now);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    if raised.is_ok() { wanted } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(most: usize) -> Arc<Connections> {
        Arc::new(Connections { audit: Arc::default(), most, open: Mutex::default(), changed: Notify::new() })
    }

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_shed(place: &Place) -> bool {
        place.shed.is_cancelled()
    }

    #[test]
    fn the_oldest_without_a_token_of_whoever_has_most_goes() {
        let all = connections(6);
        let other = all.take_in(peer(2));
        let mut greedy: Vec<Place> = (0..5).map(|_| all.take_in(peer(1))).collect();
        assert!(greedy[0].handle().belongs_to("alice"));
        greedy.push(all.take_in(peer(1)));
        let shed: Vec<bool> = greedy.iter().map(is_shed).collect();
        assert_eq!(shed, [false, true, false, false, false, false]);
        assert!(!is_shed(&other), "somebody else's is older and stays");
        assert_eq!(all.open().all.len(), 6);
    }

    #[test]
    fn those_with_tokens_are_never_shed_and_nobody_has_more_than_half() {
        let all = connections(4);
        let places: Vec<Place> = (0..4).map(|_| all.take_in(peer(1))).collect();
        let admitted: Vec<bool> = places.iter().map(|place| place.handle().belongs_to("alice")).collect();
        assert_eq!(admitted, [true, true, false, false]);
        assert!(places[0].handle().belongs_to("alice"), "a further request in one of its own");
        assert!(places[2].handle().belongs_to("bob") && places[3].handle().belongs_to("bob"));
        assert!(!all.shed_one());
        assert!(!places.iter().any(is_shed));
        drop(places);
        assert_eq!(all.open().all.len(), 0);
    }

    #[tokio::test]
    async fn where_all_have_tokens_more_wait_until_one_ends() {
        let all = connections(2);
        let (one, two) = (all.take_in(peer(1)), all.take_in(peer(2)));
        assert!(one.handle().belongs_to("alice"));
        all.room().await;
        assert!(two.handle().belongs_to("bob"));
        let waiting = tokio::spawn({
            let all = Arc::clone(&all);
            async move { all.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(one);
        waiting.await.unwrap();
    }

    #[test]
    fn a_network_of_version_6_is_one_peer() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(of("::1"), "::");
    }
}
