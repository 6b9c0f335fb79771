//! Connections: how many, how slow, and how they end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    select,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Peer,
    connections::{Connections, Place},
};
use crate::audit::{Audit, SETTLE};

/// How long a client may take for the headers of a request, and be silent between two.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// How long it may take to agree on keys.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How large the headers of a request may be, in bytes.
const HEADER_BYTES: usize = 32 << 10;
/// How long answers that are under way may take when the server ends.
const END_TIME: Duration = Duration::from_secs(5);
/// How long to wait when the system has no more descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Serves whoever connects until `end` is cancelled; then lets answers that are under way finish.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    audit: Arc<Audit>,
    end: CancellationToken,
) {
    let open = Connections::new(Arc::clone(&audit));
    let mut connections = JoinSet::new();
    let mut settle = interval(SETTLE);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            () = end.cancelled() => break,
            Some(_) = connections.join_next() => {}
            _ = settle.tick() => audit.settle(),
            (stream, address) = accept(&listener, &open) => {
                let place = open.take_in(address.ip());
                let router = router.clone().layer(Extension(Peer { address, connection: place.handle() }));
                connections.spawn(connection(stream, tls.clone(), router, end.clone(), place));
            }
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    if timeout(END_TIME, rest).await.is_err() {
        tracing::info!("some answers were under way at the end");
    }
}

async fn accept(listener: &TcpListener, open: &Connections) -> (TcpStream, SocketAddr) {
    open.room().await;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Mostly there are no descriptors left.
                open.shed_one();
                sleep(BREATH).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router, end: CancellationToken, place: Place) {
    // Small answers, which somebody waits for. If it fails they come a little later.
    let _ = stream.set_nodelay(true);
    select! {
        () = place.shed() => tracing::debug!("a connection without a token makes room"),
        () = converse(stream, tls, router, end) => {}
    }
}

async fn converse(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router, end: CancellationToken) {
    match tls {
        None => speak(stream, router, end).await,
        Some(tls) => match timeout(HANDSHAKE_TIME, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, router, end).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
            Err(_) => tracing::debug!("no TLS in time"),
        },
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, end: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_header_size(HEADER_BYTES).max_headers(64);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let served = select! {
        served = serving.as_mut() => served,
        () = end.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection has broken");
    }
}
