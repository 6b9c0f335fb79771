//! One call of a tool: its arguments, what it may use, and how it waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rmcp::{
    model::{ProgressNotificationParam, ProgressToken},
    service::{RequestContext, RoleServer},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::sync::SemaphorePermit;

use super::{Server, error::ToolError, recent::Recent};
use crate::{
    audit::Trail,
    execution::{Execution, Page},
    executions::{Executions, Refusal},
    kernel::support::Info,
    principal::Caller,
    report::Envelope,
};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// How often it is looked whether an event has come.
const LOOK: Duration = Duration::from_millis(4);
/// How long an execution may take to detach after it was told to stop.
const STOP_TIME: Duration = Duration::from_secs(15);

/// What a tool answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    /// For people, or JSON where clients of the original rely on it.
    pub(super) text: String,
    /// For programs.
    pub(super) structured: Value,
}

impl Reply {
    /// A reply whose text is its JSON.
    pub(super) fn json(result: &impl Serialize) -> Result<Self, ToolError> {
        let structured = to_value(result)?;
        Ok(Self { text: structured.to_string(), structured })
    }

    /// A reply with a text of its own.
    pub(super) fn with_text(text: String, result: &impl Serialize) -> Result<Self, ToolError> {
        Ok(Self { text, structured: to_value(result)? })
    }
}

fn to_value(result: &impl Serialize) -> Result<Value, ToolError> {
    serde_json::to_value(result).map_err(|error| ToolError::new("internal", error.to_string()))
}

/// Why waiting for an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The execution has ended.
    Ended,
    /// It has not, and the time was up.
    TimeUp,
    /// The call was cancelled, or the client has gone.
    Cancelled,
}

/// One call of a tool.
pub(super) struct Call {
    server: Server,
    arguments: Map<String, Value>,
    context: RequestContext<RoleServer>,
}

impl Call {
    pub(super) fn new(server: Server, arguments: Map<String, Value>, context: RequestContext<RoleServer>) -> Self {
        Self { server, arguments, context }
    }

    /// The arguments, which have been made to fit the tool's schema.
    pub(super) fn arguments<T: DeserializeOwned>(&mut self) -> Result<T, ToolError> {
        let arguments = Value::Object(std::mem::take(&mut self.arguments));
        serde_json::from_value(arguments).map_err(|error| ToolError::new("invalid_argument", error.to_string()))
    }

    /// Who calls.
    pub(super) fn caller(&self) -> &Caller {
        self.server.caller()
    }

    /// The records of what is started beside the executions.
    pub(super) fn trail(&self, what: Value) -> Trail {
        self.executions().trail(&self.caller().principal, what)
    }

    /// A place among the triages of whoever calls.
    pub(super) fn place_for_triage(&self) -> Result<SemaphorePermit<'_>, ToolError> {
        self.server.lane().triages.try_acquire().map_err(|_| {
            ToolError::new("busy", "triages of yours are under way, as many as may be").remedy("wait for their answers")
        })
    }

    /// All executions that whoever calls may see, the latest first.
    pub(super) fn own_executions(&self) -> Vec<Arc<Execution>> {
        self.server.own_executions()
    }

    /// What was found out about the system lately.
    pub(super) fn recent_info(&self) -> &Recent<Info> {
        self.server.recent_info()
    }

    /// What bounds executions.
    pub(super) fn executions(&self) -> &Executions {
        self.server.executions()
    }

    /// The execution of an id, if whoever calls may see it.
    pub(super) fn find(&self, id: &str, tool: &str) -> Result<Arc<Execution>, Refusal> {
        self.server.find(id, tool)
    }

    /// Does work that only looks, and may look long: it keeps no start and no stop waiting.
    pub(super) async fn looking<T, F>(&self, work: F) -> Result<T, ToolError>
    where
        T: Send + 'static,
        F: FnOnce(&Executions) -> T + Send + 'static,
    {
        tokio::select! {
            () = self.context.ct.cancelled() => Err(ToolError::cancelled()),
            place = self.server.place_to_look() => {
                let done = self.server.blocking(work).await;
                drop(place);
                done
            }
        }
    }

    /// Asks about the past: it keeps neither what only looks waiting nor the questions of other connections.
    pub(super) async fn querying<T, F>(&self, work: F) -> Result<T, ToolError>
    where
        T: Send + 'static,
        F: FnOnce(&Executions) -> T + Send + 'static,
    {
        tokio::select! {
            () = self.context.ct.cancelled() => Err(ToolError::cancelled()),
            places = self.server.place_to_query() => {
                let done = self.server.blocking(work).await;
                drop(places);
                done
            }
        }
    }

    /// Does work that blocks on a thread for such work; at most a few at a time, whatever the number of calls.
    pub(super) async fn blocking<T, F>(&self, work: F) -> Result<T, ToolError>
    where
        T: Send + 'static,
        F: FnOnce(&Executions) -> T + Send + 'static,
    {
        tokio::select! {
            () = self.context.ct.cancelled() => Err(ToolError::cancelled()),
            place = self.server.place() => {
                let done = self.server.blocking(work).await;
                drop(place);
                done
            }
        }
    }

    /// Waits until there is room for an answer: one that is large is not made before clients have read those before, nor beside many
    /// others. What is handed back is to be kept until it is made.
    pub(super) async fn room(&self, bytes: usize) -> Result<Option<SemaphorePermit<'_>>, ToolError> {
        if !self.server.room(&self.context, bytes).await {
            return Err(ToolError::cancelled());
        }
        tokio::select! {
            () = self.context.ct.cancelled() => Err(ToolError::cancelled()),
            maker = self.server.maker(bytes) => Ok(maker),
        }
    }

    /// What an execution found.
    pub(super) async fn envelope(&self, execution: &Arc<Execution>, page: Page) -> Result<Envelope, ToolError> {
        let execution = Arc::clone(execution);
        self.server.blocking(move |_| execution.envelope(&page)).await
    }

    /// Waits for the end of an execution and tells the client how far it is, if it asked for that.
    pub(super) async fn wait(&self, execution: &Execution, most: Duration) -> Waited {
        let token = self.context.meta.get_progress_token();
        let until = Instant::now() + most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            tokio::select! {
                // In this order: what has ended has ended, even if the time was up at the same moment.
                biased;
                () = execution.ended() => return Waited::Ended,
                () = self.context.ct.cancelled() => return Waited::Cancelled,
                () = tokio::time::sleep(left.min(PROGRESS)) => {}
            }
            if Instant::now() >= until {
                return Waited::TimeUp;
            }
            // When its time is up it reads its maps and detaches; there is no more progress to tell.
            if let Some(token) = &token
                && execution.seconds() < execution.planned_seconds()
            {
                self.tell(execution, token.clone()).await;
            }
        }
    }

    /// Waits for an event from a place in the sequence on, or the end; false if the call was cancelled. It looks instead of being woken:
    /// a wakeup for each of many events would cost more than they do.
    pub(super) async fn wait_for_event(&self, execution: &Execution, event: u64, most: Duration) -> bool {
        let until = Instant::now() + most;
        let one = Page { from: 0, event, limit: 1, max_bytes: usize::MAX };
        loop {
            let is_there = execution.source().events(&one).is_none_or(|(events, _)| !events.rows.is_empty());
            let left = until.saturating_duration_since(Instant::now());
            if is_there || left.is_zero() {
                return true;
            }
            match self.wait(execution, left.min(LOOK)).await {
                Waited::Ended => return true,
                Waited::TimeUp => {}
                Waited::Cancelled => return false,
            }
        }
    }

    /// Lets some time pass and tells the client how far it is, if it asked for that.
    pub(super) async fn pause(&self, length: Duration) -> Waited {
        let (token, started) = (self.context.meta.get_progress_token(), Instant::now());
        while started.elapsed() < length {
            tokio::select! {
                () = self.context.ct.cancelled() => return Waited::Cancelled,
                () = tokio::time::sleep(length.saturating_sub(started.elapsed()).min(PROGRESS)) => {}
            }
            if let Some(token) = token.clone().filter(|_| started.elapsed() < length) {
                let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
                let progress = ProgressNotificationParam::new(token, seconds)
                    .with_total(length.as_secs_f64())
                    .with_message(format!("looking: {seconds:.1} of {} s", length.as_secs_f64()));
                let _ = self.context.peer.notify_progress(progress).await;
            }
        }
        Waited::Ended
    }

    /// Does work that must be done even if the call has been cancelled: it lets go of something.
    pub(super) async fn settled<T, F>(&self, work: F) -> Result<T, ToolError>
    where
        T: Send + 'static,
        F: FnOnce(&Executions) -> T + Send + 'static,
    {
        self.server.blocking(work).await
    }

    /// Stops an execution and waits until nothing of it is attached.
    pub(super) async fn stop(&self, execution: &Execution) -> Result<(), ToolError> {
        execution.stop_for(&self.caller().principal, "asked for");
        let ended = tokio::time::timeout(STOP_TIME, execution.ended()).await;
        ended.map_err(|_| {
            let message = format!("{} was told to stop and has not ended after {STOP_TIME:?}", execution.identity.id);
            ToolError::new("internal", message).remedy("ask get_result whether it has ended by now")
        })
    }

    async fn tell(&self, execution: &Execution, token: ProgressToken) {
        let progress = ProgressNotificationParam::new(token, (execution.seconds() * 10.0).round() / 10.0)
            .with_total(execution.planned_seconds())
            .with_message(progress_message(execution));
        // A client that does not take it any more ends the call by closing the connection.
        let _ = self.context.peer.notify_progress(progress).await;
    }
}

fn progress_message(execution: &Execution) -> String {
    let loss = execution.loss();
    let elapsed = format!("{:.1} of {} s", execution.seconds(), execution.planned_seconds());
    match loss.seen {
        Some(seen) => format!("{elapsed}, {seen} events seen, {} lost", loss.dropped_total()),
        None => format!("{elapsed}, {} events lost", loss.dropped_total()),
    }
}

/// Stops an execution when the call that waits for it ends in any other way than by waiting to the end.
pub(super) struct StopOnDrop(pub(super) Arc<Execution>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop_for(&self.0.identity.by.principal, "the call that waits for it has ended");
    }
}
