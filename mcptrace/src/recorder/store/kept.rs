//! Results of executions that are kept beyond the process that ran them. Written in transactions of their own, by whoever may write the
//! file; the recorder need not run.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, types::Type};
use serde::de::DeserializeOwned;

use super::{WriteError, schema, unix_ns};
use crate::{executions::Summary, recorder::place, report::Envelope};

/// Results that are kept.
const MOST: i64 = 256;
/// Bytes of all of them.
const BYTES: i64 = 32 << 20;
/// The largest result, in bytes of JSON. Its rows take twenty times as much in memory while it is kept or read.
pub const LARGEST: usize = 1 << 20;

/// The results in a history.
#[derive(Debug)]
pub struct Kept {
    connection: Connection,
}

impl Kept {
    /// Opens the history of a folder for writing; nothing if there is none or it may not be written.
    pub fn open(folder: &Path) -> Option<Self> {
        Self::with(folder, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    /// Opens the history of a folder for reading; nothing if there is none.
    pub fn read(folder: &Path) -> Option<Self> {
        Self::with(folder, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    fn with(folder: &Path, flags: OpenFlags) -> Option<Self> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(place::file(folder), flags).ok()?;
        connection.busy_timeout(Duration::from_secs(1)).ok()?;
        let ours = matches!(schema::version(&connection), Ok(Some(_)));
        ours.then_some(Self { connection })
    }

    /// Keeps a result; the oldest go when there are too many. A result that is too large is not kept: false.
    pub fn keep(&mut self, owner: &str, envelope: &Envelope) -> Result<bool, WriteError> {
        let body = serde_json::to_string(envelope).unwrap_or_default();
        if body.is_empty() || body.len() > LARGEST {
            return Ok(false);
        }
        let kind = serde_json::to_string(&envelope.kind).unwrap_or_default();
        let row = (&envelope.execution_id, unix_ns() as i64, owner, kind.trim_matches('"'), &envelope.probe, &body);
        let transaction = self.connection.transaction()?;
        transaction.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?, ?)", row)?;
        let sql = "DELETE FROM kept WHERE id IN (SELECT id FROM (
            SELECT id, row_number() OVER newest AS place, sum(length(body)) OVER newest AS bytes
            FROM kept WINDOW newest AS (ORDER BY at_ns DESC, id)) WHERE place > ? OR bytes > ?)";
        transaction.execute(sql, (MOST, BYTES))?;
        transaction.commit()?;
        Ok(true)
    }

    /// The result of an id, and whose it is.
    pub fn load(&self, id: &str) -> Result<Option<(String, Envelope)>, WriteError> {
        let sql = "SELECT owner, body FROM kept WHERE id = ?";
        let row = self.connection.query_row(sql, [id], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).optional()?;
        let Some((owner, body)) = row else { return Ok(None) };
        let envelope = serde_json::from_str(&body).map_err(|error| WriteError::Damaged(error.to_string()))?;
        Ok(Some((owner, envelope)))
    }

    /// Whose the result of an id is.
    pub fn owner(&self, id: &str) -> Result<Option<String>, WriteError> {
        let sql = "SELECT owner FROM kept WHERE id = ?";
        Ok(self.connection.query_row(sql, [id], |row| row.get(0)).optional()?)
    }

    /// What is kept, the latest first, and whose it is.
    pub fn list(&self) -> Result<Vec<(String, Summary)>, WriteError> {
        let sql = "SELECT owner, id, kind, probe, ifnull(body ->> '$.options.script', ''), body ->> '$.status',
                body ->> '$.window.start', body ->> '$.window.seconds'
            FROM kept ORDER BY at_ns DESC, id";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, summary(row)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn summary(row: &Row<'_>) -> Result<Summary, rusqlite::Error> {
    let seconds: f64 = row.get(7)?;
    Ok(Summary {
        execution_id: row.get(1)?,
        kind: word(row, 2)?,
        probe: row.get(3)?,
        script: row.get(4)?,
        status: word(row, 5)?,
        started: row.get(6)?,
        seconds,
        planned_seconds: seconds,
    })
}

/// A word that stands for something, as JSON has it.
fn word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, rusqlite::Error> {
    let text: String = row.get(column)?;
    let bad = |error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error));
    serde_json::from_value(text.into()).map_err(bad)
}
