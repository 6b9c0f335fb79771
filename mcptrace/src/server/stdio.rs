//! The server on the standard streams, as MCP clients start it.

use std::sync::Arc;

use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{Hub, ServeError, serve};
use crate::{executions::Executions, principal::Principal};

/// Threads that pass messages on; executions have threads of their own.
const THREADS: usize = 2;

/// Serves the client that started this process until it leaves or a signal asks for the end; then stops everything.
///
/// When this returns nothing is attached and no process is left. The caller then ends the process: where standard input is no pipe
/// a thread may still wait for a line that never comes.
///
/// # Errors
///
/// If the system has no threads for it, or the conversation breaks down.
pub fn run(executions: Executions) -> Result<(), ServeError> {
    let runtime =
        Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().map_err(ServeError::Start)?;
    let served = runtime.block_on(serve_stdio(Arc::new(executions)));
    runtime.shutdown_background();
    served
}

async fn serve_stdio(executions: Arc<Executions>) -> Result<(), ServeError> {
    let end = CancellationToken::new();
    tokio::spawn(cancel_on_signal(end.clone()));
    let hub = Hub::new(Arc::clone(&executions));
    let served = serve(rmcp::transport::io::stdio_pipes(), &hub, Principal::stdio(), end).await;
    // Fails only if stopping panics, and then there is nothing more to be done.
    let _ = tokio::task::spawn_blocking(move || executions.stop_all()).await;
    served
}

async fn cancel_on_signal(end: CancellationToken) {
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(error) => {
            tracing::warn!(%error, "cannot wait for a signal");
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
    end.cancel();
}
