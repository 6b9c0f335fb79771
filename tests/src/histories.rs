//! Histories of simulated seconds: written, and asked about.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{path::Path, time::Duration};

use mcptrace::{
    recorder::{
        history::{self, Answer, HistoryError, Query, coverage::Coverage},
        place,
        store::{Keeper, Limits, State},
        tick::Tick,
    },
    report::{Report, Row, Table},
};
use tempfile::TempDir;

use crate::simulated::START;

/// A folder of its own.
pub fn folder() -> TempDir {
    // In memory: the tests write days of seconds, and what a disk takes for that is not theirs.
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// The usual limits, but that no room is left to others and nothing is waited for.
pub fn limits() -> Limits {
    Limits { spare_bytes: 0, retry: Duration::ZERO, ..Limits::default() }
}

/// Opens the history of a folder to write it.
///
/// # Panics
///
/// If it does not record.
pub fn keeper(folder: &Path) -> Keeper {
    let keeper = Keeper::open(&place::file(folder), limits()).unwrap();
    assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    keeper
}

/// Keeps seconds.
///
/// # Panics
///
/// If one is not kept.
pub fn keep(keeper: &mut Keeper, ticks: impl IntoIterator<Item = Tick>) {
    for tick in ticks {
        keeper.keep(&tick);
        assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    }
}

/// Asks as if it were so many seconds after [`START`].
///
/// # Panics
///
/// If there is no answer.
pub fn ask(folder: &Path, query: &Query, second: i64) -> Answer {
    history::ask_at(folder, query, START + second).unwrap()
}

/// A query about a window in seconds after [`START`].
pub fn query(metric: &str, from: i64, to: i64) -> Query {
    let at = |second| history::range::stamp(START + second);
    Query { metric: metric.into(), from: at(from), to: at(to), ..Query::default() }
}

/// The table of an answer.
///
/// # Panics
///
/// If it has none.
pub fn table(answer: &Answer) -> &Table {
    match &answer.report {
        Some(Report::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

/// The row of an answer in which a key has this value.
///
/// # Panics
///
/// If there is none.
pub fn row<'a>(answer: &'a Answer, key: &str, value: &str) -> &'a Row {
    let rows = &table(answer).rows;
    rows.iter().find(|row| row[key] == value).unwrap_or_else(|| panic!("no {key}={value} in {rows:?}"))
}

/// All of an amount, with what is not shown of it.
///
/// # Panics
///
/// If it is no answer about an amount.
pub fn total(answer: &Answer) -> u64 {
    let others = table(answer).others.iter();
    table(answer).rows.iter().chain(others).map(|row| row["total"].as_u64().unwrap()).sum()
}

/// What was not recorded: why, and for how many seconds.
pub fn missing(coverage: &Coverage) -> Vec<(&str, f64)> {
    coverage.missing.iter().map(|missing| (missing.why.as_str(), missing.seconds)).collect()
}

/// So many seconds after [`START`], as it is written.
pub fn at(second: i64) -> String {
    history::range::stamp(START + second)
}

/// Asks in SQL, a minute after [`START`].
pub fn sql(folder: &Path, sql: &str) -> Result<Answer, HistoryError> {
    history::ask_at(folder, &Query { sql: sql.into(), ..Query::default() }, START + 60)
}
