//! The tables and views, how a connection is set up, and what is known of tiers.

use mcptrace_wire::{BUCKETS, bucket_high, bucket_low};
use rusqlite::{Connection, OptionalExtension as _};

use crate::recorder::tick::Kind;

/// The version of the tables (`PRAGMA user_version`).
pub const VERSION: i64 = 1;
/// "mctr": tells a history from other SQLite files (`PRAGMA application_id`).
pub const APPLICATION: i64 = 0x6d63_7472;
/// Bits of a key of seconds that hold the metric.
pub const METRIC_BITS: u32 = 16;
/// Bits of a key of longer spans that hold the time.
pub const TIME_BITS: u32 = 40;

const TABLES: &str = include_str!("schema.sql");

/// Views that stay as they are from version to version, and the only ones that a query in SQL may read.
pub const VIEWS: &[&str] =
    &["metrics", "samples", "sums", "gauges", "distributions", "buckets", "coverage", "marks", "events"];

/// How long the spans of a table are, and how long they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Length of a span in seconds.
    pub width: i64,
    /// Its table.
    pub table: &'static str,
    /// How long it is kept, in seconds.
    pub keep: i64,
}

/// Seconds for an hour, ten seconds for a day, minutes for a month.
pub const TIERS: [Tier; 3] = [
    Tier { width: 1, table: "tier_1", keep: 3600 },
    Tier { width: 10, table: "tier_10", keep: 86_400 },
    Tier { width: 60, table: "tier_60", keep: 31 * 86_400 },
];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It is an SQLite file, but no history.
    #[error("it is not a history of mcptrace")]
    Foreign,
    /// It was made by a later mcptrace.
    #[error("it was made by a later mcptrace (version {0} of the tables; this one knows {VERSION})")]
    Later(i64),
    /// SQLite says no.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// Makes the tables in an empty file, or checks that they are ours.
pub fn prepare(connection: &mut Connection) -> Result<(), SchemaError> {
    match version(connection)? {
        None => create(connection).map_err(Into::into),
        Some(_) => Ok(()),
    }
}

/// The version of the tables; nothing if the file is empty.
pub fn version(connection: &Connection) -> Result<Option<i64>, SchemaError> {
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(None);
    }
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION, version) if version <= VERSION => Ok(Some(version)),
        (APPLICATION, version) => Err(SchemaError::Later(version)),
        _ => Err(SchemaError::Foreign),
    }
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    for bucket in 0..BUCKETS {
        let bound = |bound: u64| bound.min(i64::MAX as u64) as i64;
        let row = (bucket as i64, bound(bucket_low(bucket)), bound(bucket_high(bucket)));
        transaction.execute("INSERT INTO bucket_def VALUES (?, ?, ?)", row)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// A number kept under a name; 0 if there is none.
pub fn number(connection: &Connection, key: &str) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Keeps a number under a name.
pub fn set_number(connection: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?, ?)")?;
    statement.execute((key, value)).map(drop)
}

/// The word for a kind.
pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Sum => "sum",
        Kind::Gauge => "gauge",
        Kind::Distribution => "distribution",
    }
}

/// The kind of a word.
pub fn kind_of(word: &str) -> Option<Kind> {
    [Kind::Sum, Kind::Gauge, Kind::Distribution].into_iter().find(|kind| kind_word(*kind) == word)
}

impl Tier {
    /// The beginning of the span that a second is in.
    pub fn floor(&self, second: i64) -> i64 {
        second - second.rem_euclid(self.width)
    }

    /// The name under which it is kept up to which tick this tier has taken them in.
    pub fn mark(&self) -> &'static str {
        if self.width == 10 { "rolled_10" } else { "rolled_60" }
    }
}
