//! Results of executions that are kept beyond the process that ran them. Written in transactions of their own, by whoever may write the
//! file; the recorder need not run.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::{WriteError, schema, unix_ns};
use crate::{recorder::place, report::Envelope};

/// Results that are kept.
const MOST: i64 = 256;
/// Bytes of all of them.
const BYTES: i64 = 32 << 20;
/// The largest result, in bytes of JSON.
const LARGEST: usize = 4 << 20;

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

    /// The result of an id, if it is this owner's.
    pub fn load(&self, owner: &str, id: &str) -> Result<Option<Envelope>, WriteError> {
        let sql = "SELECT body FROM kept WHERE id = ? AND owner = ?";
        let body: Option<String> = self.connection.query_row(sql, (id, owner), |row| row.get(0)).optional()?;
        let envelope = body.map(|body| serde_json::from_str(&body)).transpose();
        envelope.map_err(|error| WriteError::Damaged(error.to_string()))
    }

    /// The ids of this owner's results, the latest first.
    pub fn ids(&self, owner: &str) -> Result<Vec<String>, WriteError> {
        let mut statement = self.connection.prepare("SELECT id FROM kept WHERE owner = ? ORDER BY at_ns DESC, id")?;
        let ids = statement.query_map([owner], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }
}
