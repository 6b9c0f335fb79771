//! A principal's part of the server: its sessions and calls, which nobody else's reach.
//!
//! Sessions are those of protocols up to 2025-11-25. A session's id is no proof of who sends it: it is looked up among the sessions of
//! whoever shows the token.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{Request, Response, StatusCode, request},
};
use rmcp::{
    model::{CancelledNotification, CancelledNotificationParam, ClientJsonRpcMessage, ClientNotification, RequestId},
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService,
        session::{SessionManager as _, local::LocalSessionManager},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::answer::{Watch, plain};
use crate::{
    principal::{Caller, Principal},
    server::{Hub, Served},
};

/// Sessions of one principal, and of all.
const SESSIONS: usize = 512;
const ALL_SESSIONS: usize = 1024;
/// Calls of one principal that may be under way at once.
const CALLS: usize = 256;
/// Principals that are remembered. Static tokens are fewer; an identity provider may have any number of subjects.
const PRINCIPALS: usize = 512;
/// How long a call goes on after its connection has broken and its session has been silent: a client that lives asks again.
const RESUME_TIME: Duration = Duration::from_secs(10);
/// The header that names a session.
const SESSION: &str = "mcp-session-id";

/// All principals that have called.
pub(super) struct Tenants {
    hub: Arc<Hub>,
    end: CancellationToken,
    all: Mutex<HashMap<String, Arc<Tenant>>>,
    /// Sessions that are being opened and are not among the open ones yet.
    opening: Arc<AtomicUsize>,
}

/// One of them.
pub(super) struct Tenant {
    service: StreamableHttpService<Served, LocalSessionManager>,
    sessions: Arc<LocalSessionManager>,
    calls: Arc<Semaphore>,
    /// When each session was last heard of.
    heard: Mutex<HashMap<String, Instant>>,
}

/// A request whose body has been read and looked at.
pub(super) struct Asked {
    /// Its head.
    pub(super) head: request::Parts,
    /// Its body.
    pub(super) body: Bytes,
    /// The id of the call in it, if it is one.
    pub(super) call: Option<RequestId>,
    /// Whether it opens a session.
    pub(super) opens: bool,
}

impl Tenants {
    pub(super) fn new(hub: Arc<Hub>, end: CancellationToken) -> Self {
        Self { hub, end, all: Mutex::default(), opening: Arc::default() }
    }

    /// Answers a request of a principal.
    pub(super) async fn handle(&self, name: &str, asked: Asked) -> Response<Body> {
        let Some(tenant) = self.tenant(name) else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many principals are at work: try again later");
        };
        let _opening = if asked.opens {
            match self.open(&tenant).await {
                Ok(opening) => Some(opening),
                Err(refusal) => return refusal,
            }
        } else {
            None
        };
        tenant.handle(asked).await
    }

    fn tenant(&self, name: &str) -> Option<Arc<Tenant>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = all.get(name) {
            return Some(Arc::clone(tenant));
        }
        if all.len() >= PRINCIPALS {
            // Whoever has neither a session nor a call can be forgotten: executions are not kept here.
            all.retain(|_, tenant| Arc::strong_count(tenant) > 1 || tenant.is_busy());
        }
        (all.len() < PRINCIPALS).then(|| {
            let tenant = Arc::new(Tenant::new(self, name));
            all.insert(name.to_owned(), Arc::clone(&tenant));
            tenant
        })
    }

    /// A place for one more session.
    async fn open(&self, tenant: &Tenant) -> Result<Opening, Response<Body>> {
        let opening = Opening::new(&self.opening);
        let tenants: Vec<_> = self.all.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut open = self.opening.load(Ordering::Relaxed);
        for one in &tenants {
            open += one.sessions.sessions.read().await.len();
        }
        let own = tenant.sessions.sessions.read().await.len();
        if open > ALL_SESSIONS || own >= SESSIONS {
            let why =
                "too many sessions are open: end some (DELETE), or use the protocol of 2026-07-28, which has none";
            return Err(plain(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Ok(opening)
    }
}

/// Counts a session that is being opened.
struct Opening(Arc<AtomicUsize>);

impl Opening {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tenant {
    fn new(tenants: &Tenants, name: &str) -> Self {
        // There is no connection that its executions could end with: they have ids, and time limits.
        let (hub, caller) = (Arc::clone(&tenants.hub), Caller::from(Principal::token(name)));
        let factory = move || Ok(Served::new(&hub, caller.clone()));
        let sessions = Arc::new(LocalSessionManager::default());
        // Host and Origin have been checked before the token was.
        let config =
            StreamableHttpServerConfig::default().disable_allowed_hosts().with_cancellation_token(tenants.end.clone());
        Self {
            service: StreamableHttpService::new(factory, Arc::clone(&sessions), config),
            sessions,
            calls: Arc::new(Semaphore::new(CALLS)),
            heard: Mutex::default(),
        }
    }

    fn is_busy(&self) -> bool {
        let has_sessions = self.sessions.sessions.try_read().map_or(true, |sessions| !sessions.is_empty());
        has_sessions || self.calls.available_permits() < CALLS
    }

    async fn handle(self: &Arc<Self>, asked: Asked) -> Response<Body> {
        let Asked { head, body, call, .. } = asked;
        let session = head.headers.get(SESSION).and_then(|id| id.to_str().ok()).map(str::to_owned);
        if let Some(session) = &session {
            self.hear(session);
        }
        let place = match &call {
            None => None,
            Some(_) => match Arc::clone(&self.calls).try_acquire_owned() {
                Ok(place) => Some(place),
                Err(_) => return plain(StatusCode::TOO_MANY_REQUESTS, "256 calls are under way: wait for answers"),
            },
        };
        let answer = self.service.handle(Request::from_parts(head, Body::from(body))).await;
        let under_way = UnderWay { tenant: Arc::clone(self), session, call, begun: Instant::now(), place };
        answer.map(|body| Body::new(Watch::new(body, move || under_way.broken())))
    }

    fn hear(&self, session: &str) {
        let mut heard = self.heard();
        if heard.len() > 2 * SESSIONS {
            heard.retain(|_, last| last.elapsed() < RESUME_TIME);
        }
        heard.insert(session.to_owned(), Instant::now());
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn cancel(&self, session: String, call: RequestId) {
        let cancelled = CancelledNotification::new(CancelledNotificationParam::new(Some(call), None));
        let message = ClientJsonRpcMessage::notification(ClientNotification::CancelledNotification(cancelled));
        if let Err(error) = self.sessions.accept_message(&session.into(), message).await {
            tracing::debug!(%error, "a call whose client has gone could not be cancelled");
        }
    }
}

/// A call whose answer is being sent.
struct UnderWay {
    tenant: Arc<Tenant>,
    session: Option<String>,
    call: Option<RequestId>,
    begun: Instant,
    place: Option<OwnedSemaphorePermit>,
}

impl UnderWay {
    /// The connection has gone before the answer was complete. A call without a session has been cancelled by that; one of a session
    /// goes on, since its client may come back for the rest, and is cancelled if it does not.
    fn broken(self) {
        let gone = Instant::now();
        let Self { tenant, session: Some(session), call: Some(call), begun, place } = self else { return };
        tokio::spawn(async move {
            let _place = place;
            tokio::time::sleep(RESUME_TIME).await;
            let heard = tenant.heard().get(&session).copied();
            if heard.is_none_or(|heard| heard <= gone) {
                tracing::debug!(after = ?begun.elapsed(), "the client of a call has gone");
                tenant.cancel(session, call).await;
            }
        });
    }
}
