//! Streamable HTTP: the same server for clients elsewhere, or for several at once.
//!
//! A request passes, in this order: limits of its connection ([`listen`]), its `Host` and `Origin`, its token ([`access`]), the limits
//! of its body, and then reaches what belongs to whoever the token names ([`tenants`]). What a client may not have is refused as early
//! as that is known. rmcp speaks the protocol; `docs/http.md` tells operators how to set it up.

mod access;
mod answer;
mod connections;
mod jwt;
mod listen;
mod tenants;
mod tls;
mod tokens;
mod watched;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    body::{Body, Bytes, HttpBody as _, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, Response, StatusCode, Uri, header},
    middleware::{Next, from_fn_with_state},
    routing::{any, get},
};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest};
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Builder, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{
    access::{Checks, Denied, Misdirected, Names, StaticTokens},
    answer::plain,
    jwt::{Issuer, Keys},
    tenants::{Asked, Tenants},
    tokens::{HOW_TO, Tokens},
    watched::Watched,
};
use super::{Hub, ServeError, message, stdio::cancel_on_signal};
use crate::{audit::Audit, executions::Executions, text::untrusted};

/// Where it listens if nobody says otherwise.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7811);
/// The variable that holds the token where there is no file of tokens.
pub const TOKEN_VARIABLE: &str = "MCPTRACE_HTTP_TOKEN";
/// Where MCP is spoken.
const PATH: &str = "/mcp";
/// Where clients find who hands out tokens (RFC 9728, section 3.1): with the path of the resource behind it, and without.
const METADATA: &str = "/.well-known/oauth-protected-resource";
/// The longest message, in bytes.
const MOST_BYTES: usize = 4 << 20;
/// How long a client may take to send one.
const BODY_TIME: Duration = Duration::from_secs(15);
/// Connections that may wait in the kernel.
const WAITING: i32 = 1024;
/// Threads that pass messages on; executions have threads of their own.
const THREADS: usize = 2;
/// Whoever shows the token of the environment.
const ENVIRONMENT: &str = "env";

/// How the operator wants it.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// A file of tokens.
    pub tokens: Option<PathBuf>,
    /// The token of the environment.
    pub token: Option<String>,
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Its address as clients write it, `https://host:port/mcp`: its name in `Host`, and the audience of tokens.
    pub url: Option<String>,
    /// Web pages that may call.
    pub origins: Vec<String>,
    /// The identity provider whose tokens are taken, and the file of its public keys.
    pub issuer: Option<(String, PathBuf)>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Peer {
    address: SocketAddr,
    connection: connections::Handle,
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings are not safe, or contradict each other.
    #[error("{0}")]
    Settings(String),
    /// It cannot listen there.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The system has no threads for it.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// What answers requests.
struct Gate {
    audit: Arc<Audit>,
    names: Names,
    checks: Checks,
    tenants: Tenants,
    /// This server's own URL and its identity provider, if it has one.
    metadata: Option<(String, String)>,
}

/// All that is needed to serve, found to be in order.
pub struct Service {
    listener: std::net::TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    audit: Arc<Audit>,
    end: CancellationToken,
}

/// Takes the port, which may need a capability that nothing after it does. Nobody is served yet.
///
/// # Errors
///
/// If what listens there would not be safe, or it cannot.
pub fn bind(options: &Options) -> Result<std::net::TcpListener, StartError> {
    in_the_clear(options)?;
    let failed = |error| StartError::Listen(options.address, error);
    let listener = std::net::TcpListener::bind(options.address).map_err(failed)?;
    // As many as may wait, more than the standard library asks for.
    rustix::net::listen(&listener, WAITING).map_err(|error| failed(error.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

impl Service {
    /// Checks the options and reads the files. Serves the executions of a hub, where [`bind`] has bound, until `end` is cancelled.
    ///
    /// # Errors
    ///
    /// If it is not safe to start so.
    pub fn new(
        options: &Options,
        listener: std::net::TcpListener,
        hub: Arc<Hub>,
        end: CancellationToken,
    ) -> Result<Self, StartError> {
        let tls = tls(options)?;
        let audit = Arc::clone(hub.executions().audit());
        let router = router(gate(options, hub, end.clone())?);
        Ok(Self { listener, tls, router, audit, end })
    }

    /// Serves to the end; `ready` is told where it listens.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub async fn serve(self, ready: impl FnOnce(SocketAddr)) -> Result<(), StartError> {
        let listener = TcpListener::from_std(self.listener).map_err(ServeError::Start)?;
        let address = listener.local_addr().map_err(ServeError::Start)?;
        ready(address);
        listen::serve(listener, self.tls, self.router, self.audit, self.end).await;
        Ok(())
    }
}

/// Serves until a signal asks for the end; then stops everything. `ready` is told where it listens.
///
/// # Errors
///
/// If it is not safe to start with these options, or not possible.
pub fn run(
    executions: Executions,
    options: &Options,
    listener: std::net::TcpListener,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), StartError> {
    let end = CancellationToken::new();
    let executions = Arc::new(executions);
    let service = Service::new(options, listener, Hub::new(Arc::clone(&executions)), end.clone())?;
    let runtime =
        Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().map_err(ServeError::Start)?;
    let served = runtime.block_on(async {
        tokio::spawn(cancel_on_signal(end));
        let served = service.serve(ready).await;
        // Fails only if stopping panics, and then there is nothing more to be done.
        let _ = tokio::task::spawn_blocking(move || executions.stop_all()).await;
        served
    });
    runtime.shutdown_background();
    served
}

fn tls(options: &Options) -> Result<Option<TlsAcceptor>, StartError> {
    in_the_clear(options)?;
    let acceptor = options.tls.as_ref().map(|(certificate, key)| tls::acceptor(certificate, key));
    acceptor.transpose().map_err(StartError::Settings)
}

/// Tokens are not sent in the clear to where others listen.
fn in_the_clear(options: &Options) -> Result<(), StartError> {
    if options.tls.is_some() || options.address.ip().is_loopback() {
        return Ok(());
    }
    Err(StartError::Settings(format!(
        "{} can be reached from other hosts, where tokens must not be sent in the clear: give --tls-cert and --tls-key, or listen on {DEFAULT_ADDRESS} behind a proxy that encrypts",
        options.address
    )))
}

fn gate(options: &Options, hub: Arc<Hub>, end: CancellationToken) -> Result<Arc<Gate>, StartError> {
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let url = options.url.clone().unwrap_or_else(|| format!("{scheme}://{}{PATH}", options.address));
    let parsed = url.parse::<Uri>().ok().filter(|url| url.scheme().is_some() && url.path() == PATH);
    let host = parsed.as_ref().and_then(Uri::host).map(str::to_ascii_lowercase);
    let Some(host) = host else {
        return Err(StartError::Settings(format!("--http-url is this server's own, like https://host.example{PATH}")));
    };
    let audit = Arc::clone(hub.executions().audit());
    let provider = options.issuer.as_ref().map(|(issuer, keys)| provider(issuer, keys, &url, &audit)).transpose()?;
    let metadata = options.issuer.as_ref().map(|(issuer, _)| (url.clone(), issuer.clone()));
    let checks = Checks { tokens: static_tokens(options, &audit)?, provider };
    if checks.tokens.is_none() && checks.provider.is_none() {
        return Err(StartError::Settings(format!(
            "HTTP needs a token: give --http-tokens FILE, or the variable {TOKEN_VARIABLE}, or --http-issuer with --http-jwks; {HOW_TO}"
        )));
    }
    let names = Names::new(options.address, vec![host], options.origins.clone());
    Ok(Arc::new(Gate { audit, names, checks, tenants: Tenants::new(hub, end), metadata }))
}

fn provider(issuer: &str, keys: &Path, url: &str, audit: &Arc<Audit>) -> Result<(Issuer, Watched<Keys>), StartError> {
    let issuer = Issuer { name: issuer.to_owned(), audience: url.to_owned() };
    let audit = Arc::clone(audit);
    let tell = move |file: &Path, before: &Keys, after: Result<&Keys, &str>| {
        let now = after.map_or(0, Keys::count);
        audit.reloaded(file, json!({ "keys": now, "keys_before": before.count() }), after.err());
    };
    Ok((issuer, Watched::open(keys, Keys::read, tell).map_err(StartError::Settings)?))
}

fn static_tokens(options: &Options, audit: &Arc<Audit>) -> Result<Option<StaticTokens>, StartError> {
    match (&options.tokens, &options.token) {
        (Some(file), _) => {
            let audit = Arc::clone(audit);
            let tell = move |file: &Path, before: &Tokens, after: Result<&Tokens, &str>| {
                audit.reloaded(file, after.unwrap_or(&Tokens::default()).compared(before), after.err());
            };
            let watched = Watched::open(file, Tokens::read, tell).map_err(StartError::Settings)?;
            Ok(Some(StaticTokens::File(watched)))
        }
        (None, Some(secret)) => {
            let tokens = Tokens::single(ENVIRONMENT, secret);
            let tokens = tokens.map_err(|error| StartError::Settings(format!("{TOKEN_VARIABLE}: {error}")))?;
            Ok(Some(StaticTokens::Fixed(Arc::new(tokens))))
        }
        (None, None) => Ok(None),
    }
}

fn router(gate: Arc<Gate>) -> Router {
    let open = Router::new()
        .route(METADATA, get(metadata))
        .route(&format!("{METADATA}{PATH}"), get(metadata))
        .with_state(Arc::clone(&gate));
    Router::new()
        .route(PATH, any(converse))
        .with_state(Arc::clone(&gate))
        .merge(open)
        .fallback(async || plain(StatusCode::NOT_FOUND, "MCP is spoken at /mcp"))
        .layer(from_fn_with_state(gate, admit))
}

/// Refuses what is not meant for this server, and logs every request: never its headers, query or body.
async fn admit(
    State(gate): State<Arc<Gate>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let begun = Instant::now();
    let (method, path) = (request.method().clone(), untrusted(request.uri().path().as_bytes(), 100));
    let answer = match gate.names.admit(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Misdirected { kind, why }) => {
            gate.audit.kept_out(peer.address.ip(), kind, why);
            plain(StatusCode::FORBIDDEN, why)
        }
    };
    let status = answer.status().as_u16();
    let caller = answer.extensions().get::<Caller>().map_or("-", |caller| &caller.0);
    let (peer, milliseconds) = (peer.address, begun.elapsed().as_millis() as u64);
    tracing::info!(%peer, caller, %method, %path, status, milliseconds, "request");
    answer
}

/// The name of whoever has been let in, for the log.
#[derive(Clone, Debug)]
struct Caller(String);

async fn converse(State(gate): State<Arc<Gate>>, Extension(peer): Extension<Peer>, request: Request) -> Response<Body> {
    let name = match gate.checks.identify(request.headers()) {
        Ok(name) => name,
        Err(denied) => return gate.unauthorized(&peer, denied),
    };
    if !peer.connection.belongs_to(&name) {
        return plain(StatusCode::TOO_MANY_REQUESTS, "half of all connections are yours already: close some");
    }
    let mut answer = match read(request).await {
        Ok(asked) => gate.tenants.handle(&name, asked).await,
        Err(refusal) => refusal,
    };
    answer.extensions_mut().insert(Caller(name));
    answer
}

impl Gate {
    fn unauthorized(&self, peer: &Peer, denied: Denied) -> Response<Body> {
        let mut challenge = "Bearer realm=\"mcptrace\"".to_owned();
        if denied == Denied::Invalid {
            challenge.push_str(", error=\"invalid_token\"");
        }
        if let Some((url, _)) = &self.metadata {
            let root = url.strip_suffix(PATH).unwrap_or(url);
            challenge = format!("{challenge}, resource_metadata=\"{root}{METADATA}{PATH}\"");
        }
        let (kind, text) = match denied {
            Denied::Missing => ("no_token", "a token is needed: Authorization: Bearer TOKEN"),
            Denied::Invalid => ("token", "this token is not valid, or not any more"),
        };
        self.audit.kept_out(peer.address.ip(), kind, text);
        let mut answer = plain(StatusCode::UNAUTHORIZED, text);
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

/// Where tokens come from (RFC 9728).
async fn metadata(State(gate): State<Arc<Gate>>) -> Response<Body> {
    let Some((url, issuer)) = &gate.metadata else {
        return plain(StatusCode::NOT_FOUND, "tokens are handed out by the operator of this server");
    };
    let document = json!({
        "resource": url,
        "resource_name": "mcptrace",
        "authorization_servers": [issuer],
        "bearer_methods_supported": ["header"],
    });
    json_answer(StatusCode::OK, &document)
}

fn json_answer(status: StatusCode, document: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(document.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// Reads a request as far as it must be known before it is passed on.
async fn read(request: Request) -> Result<Asked, Response<Body>> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Ok(Asked { head, body: Bytes::new(), call: None, opens: false });
    }
    let too_large = || plain(StatusCode::PAYLOAD_TOO_LARGE, &format!("a message has at most {MOST_BYTES} bytes"));
    // What says so beforehand is not waited for.
    if body.size_hint().lower() > MOST_BYTES as u64 {
        return Err(too_large());
    }
    let body = match timeout(BODY_TIME, to_bytes(body, MOST_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err(too_large()),
        Err(_) => return Err(plain(StatusCode::REQUEST_TIMEOUT, "the message did not come in time")),
    };
    let (call, opens) = look(&body).map_err(|refusal| *refusal)?;
    Ok(Asked { head, body, call, opens })
}

/// The id of a call, and whether it opens a session. What is no message is answered as over any other transport.
fn look(body: &[u8]) -> Result<(Option<rmcp::model::RequestId>, bool), Box<Response<Body>>> {
    let mut parsed = message::parse_line(body);
    let first = if parsed.len() == 1 { parsed.pop() } else { None };
    match first {
        Some(Ok(Some(ClientJsonRpcMessage::Request(request)))) => {
            let opens = matches!(request.request, ClientRequest::InitializeRequest(_));
            Ok((Some(request.id), opens))
        }
        Some(Ok(Some(_))) => Ok((None, false)),
        // A notification that says nothing to this server.
        Some(Ok(None)) => Err(Box::new(plain(StatusCode::ACCEPTED, ""))),
        Some(Err(malformed)) => Err(Box::new(malformed_answer(&malformed.answer()))),
        None => Err(Box::new(malformed_answer(&message::one_at_a_time().answer()))),
    }
}

fn malformed_answer(answer: &rmcp::model::ServerJsonRpcMessage) -> Response<Body> {
    json_answer(StatusCode::BAD_REQUEST, &serde_json::to_value(answer).unwrap_or_default())
}
