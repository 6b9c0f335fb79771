//! Results that outlast the process, in the history of the recorder where there is one.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::Summary;
use crate::{
    execution::Execution,
    memory,
    principal::{Caller, Principal, Via, Who},
    recorder::store::kept::{Kept, LARGEST},
};

/// Results are made ready one at a time, however many executions end at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Keeps what an execution found. Without a history, or where it may not be written, nothing is kept.
pub(super) fn keep(folder: &Path, execution: &Execution) {
    let Some(mut kept) = Kept::open(folder) else { return };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    write(&mut kept, execution);
    memory::release_free();
}

fn write(kept: &mut Kept, execution: &Execution) {
    let owner = execution.identity.by.principal.who.to_string();
    // Not quite as much as has room: what says that something was left out comes on top.
    let envelope = execution.to_keep(LARGEST - 4096);
    match kept.keep(&owner, &envelope) {
        Ok(true) => {}
        Ok(false) => tracing::warn!(id = envelope.execution_id, "a result is too large to be kept"),
        Err(error) => tracing::warn!(id = envelope.execution_id, %error, "a result cannot be kept"),
    }
}

/// The execution of an id, if its result was kept and the principal may see it.
pub(super) fn find(folder: &Path, by: &Principal, id: &str) -> Option<Arc<Execution>> {
    let loaded = Kept::read(folder)?.load(id);
    let (owner, envelope) =
        loaded.inspect_err(|error| tracing::warn!(id, %error, "a kept result is unreadable")).ok()??;
    let owner = owner_of(&owner)?;
    by.sees(&owner).then(|| Execution::kept(Caller::from(owner), envelope))
}

/// Whose the result of an id is, if it was kept.
pub(super) fn owner(folder: &Path, id: &str) -> Option<Principal> {
    owner_of(&Kept::read(folder)?.owner(id).ok()??)
}

/// What was kept of all that the principal may see, the latest first.
pub(super) fn list(folder: &Path, by: &Principal) -> Vec<Summary> {
    let Some(kept) = Kept::read(folder) else { return Vec::new() };
    let all =
        kept.list().inspect_err(|error| tracing::warn!(%error, "what was kept is unreadable")).unwrap_or_default();
    let seen = |owner: &str| owner_of(owner).is_some_and(|owner| by.sees(&owner));
    all.into_iter().filter(|(owner, _)| seen(owner)).map(|(_, summary)| summary).collect()
}

/// How it once came in is not kept: whose it is decides.
fn owner_of(who: &str) -> Option<Principal> {
    let who: Who = who.parse().ok()?;
    Some(Principal { who, via: Via::default(), name: String::new() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        audit::Trail,
        execution::{Control, Identity, Page, Snapshot, Source},
        executions::{Executions, Limits, Refusal},
        recorder::{place, store},
        report::{Events, Field, Kind, Loss, Row, Status},
    };

    /// So many events.
    struct Numbers(u64);

    impl Source for Numbers {
        fn run(&self, _: &Control) -> Result<(), String> {
            Ok(())
        }

        fn snapshot(&self, _: f64, page: &Page) -> Snapshot {
            let row = |number: u64| {
                Row::from_iter([("number".to_owned(), number.into()), ("word".to_owned(), "x".repeat(99).into())])
            };
            let rows: Vec<Row> = (page.event..self.0).take(page.limit).map(row).collect();
            let next = page.event + rows.len() as u64;
            let events = Events { fields: vec![Field::new("number", "")], rows, rows_total: self.0, rows_evicted: 0 };
            let loss = Loss { seen: Some(self.0), delivered: Some(self.0), ..Loss::default() };
            Snapshot {
                events: Some(events),
                events_left: self.0 - next,
                events_next: Some(next),
                loss,
                ..Snapshot::default()
            }
        }

        fn loss(&self) -> Loss {
            Loss::default()
        }

        fn bytes(&self) -> usize {
            0
        }

        fn release(&self) {}

        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }

    fn run(folder: &Path, id: &str, who: Who, events: u64) {
        let by = Caller::from(Principal { who, via: Via::Unix, name: String::new() });
        let identity = Identity {
            id: id.to_owned(),
            kind: Kind::Probe,
            probe: "file_opens".to_owned(),
            filter: Row::new(),
            options: Row::new(),
            by,
        };
        let folder = folder.to_owned();
        let execution = Execution::spawn(
            identity,
            Box::new(Numbers(events)),
            Duration::from_secs(1),
            Trail::default(),
            move |one| keep(&folder, one),
        );
        assert!(execution.unwrap().wait(Duration::from_secs(20)));
    }

    fn user(uid: u32) -> Principal {
        Principal { who: Who::User(uid), via: Via::Unix, name: String::new() }
    }

    #[test]
    fn a_result_is_read_again_by_another_process_and_only_by_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        store::Keeper::open(&place::file(folder.path()), store::Limits::default()).unwrap().close();
        run(folder.path(), "exec_one", Who::User(7), 5);
        run(folder.path(), "exec_two", Who::User(8), 6);
        // As after a restart: nothing is in memory.
        let executions = Executions::new(Limits { history: Some(folder.path().to_owned()), ..Limits::default() });
        let found = executions.get(&user(7), "exec_one").unwrap();
        let envelope = found.envelope(&Page { from: 0, event: 0, limit: 3, max_bytes: usize::MAX });
        assert_eq!((envelope.status, envelope.loss.seen), (Status::Completed, Some(5)));
        assert_eq!(envelope.more.unwrap().cursor.as_deref(), Some("e3"));
        assert!(envelope.notes.iter().any(|note| note.contains("history")), "{:?}", envelope.notes);
        assert!(found.stop_and_wait(), "it has ended");
        for (by, id) in [(7, "exec_two"), (8, "exec_one"), (9, "exec_one"), (0, "exec_none")] {
            assert!(matches!(executions.get(&user(by), id), Err(Refusal::UnknownId(_))), "{by} {id}");
        }
        let ids = |by: &Principal| executions.kept(by).into_iter().map(|one| one.execution_id).collect::<Vec<_>>();
        assert_eq!((ids(&user(7)), ids(&user(9))), (vec!["exec_one".to_owned()], vec![]));
        assert_eq!(ids(&user(0)), ["exec_two", "exec_one"]);
    }

    #[test]
    fn what_has_no_room_is_left_out_and_said() {
        let folder = tempfile::tempdir().unwrap();
        store::Keeper::open(&place::file(folder.path()), store::Limits::default()).unwrap().close();
        run(folder.path(), "exec_large", Who::Process, 60_000);
        let found = find(folder.path(), &Principal::cli(), "exec_large").unwrap();
        let envelope = found.envelope(&Page { from: 0, event: 0, limit: usize::MAX, max_bytes: usize::MAX });
        let note = envelope.notes.iter().find(|note| note.contains("rows were not kept")).unwrap();
        let lacking: usize = note.split(' ').next().unwrap().parse().unwrap();
        let Some(crate::report::Report::Events(events)) = envelope.report else { panic!() };
        assert_eq!((events.rows.len() + lacking, events.rows_total), (60_000, 60_000));
        assert!(events.rows.len() > 5_000, "{}", events.rows.len());
    }

    #[test]
    fn without_a_history_nothing_is_kept_and_nothing_fails() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), "exec_one", Who::Process, 5);
        assert!(find(folder.path(), &Principal::cli(), "exec_one").is_none());
        assert_eq!(list(folder.path(), &Principal::cli()), []);
        assert!(!place::file(folder.path()).exists());
    }
}
