//! The file as those read it who ask: never written, in whatever state.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use rusqlite::{Connection, OpenFlags};

use super::{HistoryError, range::Span};
use crate::{
    recorder::{
        place,
        store::{
            self,
            body::{self, Cell},
            schema::{self, SchemaError, TIERS, TIME_BITS, Tier, kind_of, number},
        },
        tick::Kind,
    },
    report::Row,
    suggest::nearest,
};

/// A history that is read.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

/// A metric as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Unit of its values.
    pub unit: String,
    /// How they come together.
    pub kind: Kind,
    /// What it is recorded and shed with.
    pub group: String,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// What it is.
    pub help: String,
}

/// Something that happened to the recorder.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// When, in seconds since 1970.
    pub at: f64,
    /// What.
    pub kind: String,
    /// How long, or how far.
    pub seconds: f64,
    /// More about it.
    pub text: String,
}

impl Reader {
    /// Opens the history of a folder.
    pub fn open(folder: &Path) -> Result<Self, HistoryError> {
        let file = place::file(folder);
        let absent = || HistoryError::Absent(file.clone());
        match std::fs::metadata(&file) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(absent()),
            Err(error) => return Err(HistoryError::Unreadable { file, error: error.to_string() }),
        }
        let unreadable = |error: String| HistoryError::Unreadable { file: file.clone(), error };
        let connection = connect(&file).map_err(|error| unreadable(error.to_string()))?;
        match schema::version(&connection) {
            Ok(Some(_)) => Ok(Self { connection }),
            Ok(None) => Err(absent()),
            Err(SchemaError::Sqlite(error)) => Err(error.into()),
            Err(error) => Err(unreadable(error.to_string())),
        }
    }

    /// The connection, for queries in SQL.
    pub(super) fn into_connection(self) -> Connection {
        self.connection
    }

    /// Does several readings of one state of the file.
    pub fn at_once<T>(&self, work: impl FnOnce(&Self) -> Result<T, HistoryError>) -> Result<T, HistoryError> {
        self.connection.execute_batch("BEGIN")?;
        let done = work(self);
        self.connection.execute_batch("COMMIT")?;
        done
    }

    /// All metrics.
    pub fn metrics(&self) -> Result<Vec<Known>, HistoryError> {
        let sql = "SELECT id, name, unit, kind, grp, labels, help FROM metric_def ORDER BY id";
        let mut statement = self.connection.prepare(sql)?;
        let known = statement.query_map([], |row| {
            let (kind, labels): (String, String) = (row.get(3)?, row.get(5)?);
            Ok(Known {
                id: row.get(0)?,
                name: row.get(1)?,
                unit: row.get(2)?,
                kind: kind_of(&kind).unwrap_or(Kind::Sum),
                group: row.get(4)?,
                labels: serde_json::from_str(&labels).unwrap_or_default(),
                help: row.get(6)?,
            })
        })?;
        Ok(known.collect::<Result<_, _>>()?)
    }

    /// The metric of a name.
    pub fn metric(&self, name: &str) -> Result<Known, HistoryError> {
        let mut all = self.metrics()?;
        if let Some(at) = all.iter().position(|known| known.name == name) {
            return Ok(all.swap_remove(at));
        }
        if all.is_empty() {
            return Err(HistoryError::Empty);
        }
        let did_you_mean = nearest(name, all.iter().map(|known| known.name.as_str())).map(str::to_owned);
        let name = crate::text::untrusted(name.as_bytes(), 60);
        Err(HistoryError::UnknownMetric { name, did_you_mean })
    }

    /// The label values of a metric's series. Those that are forgotten are not among them.
    pub fn series(&self, metric: &Known) -> Result<HashMap<u32, Vec<String>>, HistoryError> {
        let mut statement = self.connection.prepare("SELECT id, labels FROM series_def WHERE metric = ?")?;
        let rows = statement.query_map([metric.id], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let values = |text: &str| {
            let labels: BTreeMap<String, String> = serde_json::from_str(text).unwrap_or_default();
            metric.labels.iter().map(|name| labels.get(name).cloned().unwrap_or_default()).collect()
        };
        rows.map(|row| row.map(|(id, text)| (id, values(&text))).map_err(Into::into)).collect()
    }

    /// The first second that a tier holds.
    pub fn oldest(&self, tier: &Tier) -> Result<Option<i64>, HistoryError> {
        if tier.width == 1 {
            return Ok(self.connection.query_row("SELECT min(t) FROM tick", [], |row| row.get(0))?);
        }
        let sql = format!(
            "SELECT min(key) & ((1 << 40) - 1) FROM {} WHERE key >= (SELECT id FROM metric_def WHERE name = ?1) << 40
             AND key < ((SELECT id FROM metric_def WHERE name = ?1) + 1) << 40",
            tier.table
        );
        Ok(self.connection.query_row(&sql, [store::writer::COVERAGE.name], |row| row.get(0))?)
    }

    /// The second of the last tick.
    pub fn latest(&self) -> Result<Option<i64>, HistoryError> {
        use rusqlite::OptionalExtension as _;
        let sql = "SELECT t FROM tick ORDER BY seq DESC LIMIT 1";
        Ok(self.connection.query_row(sql, [], |row| row.get(0)).optional()?)
    }

    /// Hands over every value of a metric in a window, with the first second of its span; gives the number of rows that are damaged. A
    /// tier's rows first, then the seconds that it has not taken in yet.
    pub fn scan(
        &self,
        metric: &Known,
        tier: &Tier,
        span: Span,
        mut each: impl FnMut(i64, u32, Cell),
    ) -> Result<u64, HistoryError> {
        let mut damaged = 0;
        let mut row = |second: i64, text: &str| {
            damaged += u64::from(body::read(text, metric.kind, |series, cell| each(second, series, cell)).is_err());
        };
        let mut taken_in = 0;
        if tier.width > 1 {
            taken_in = number(&self.connection, tier.mark())?;
            let sql = format!("SELECT key, body FROM {} WHERE key >= ?1 AND key < ?2 ORDER BY key", tier.table);
            let base = metric.id << TIME_BITS;
            let mut statement = self.connection.prepare(&sql)?;
            let mut rows = statement.query((base + span.from, base + span.to))?;
            while let Some(found) = rows.next()? {
                row(found.get::<_, i64>(0)? - base, found.get_ref(1)?.as_str().unwrap_or_default());
            }
        }
        let sql = "SELECT tick.t, tier_1.body FROM tick CROSS JOIN tier_1 ON tier_1.key = (tick.seq << 16) + ?1
            WHERE tick.seq > ?2 AND tick.t >= ?3 AND tick.t < ?4";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query((metric.id, taken_in, span.from, span.to))?;
        while let Some(found) = rows.next()? {
            row(found.get(0)?, found.get_ref(1)?.as_str().unwrap_or_default());
        }
        Ok(damaged)
    }

    /// What happened to the recorder in a window and so much later, as it may be about the window.
    pub fn marks(&self, span: Span) -> Result<Vec<Mark>, HistoryError> {
        let sql = "SELECT at_ns, kind, seconds, text FROM mark_log
            WHERE at_ns >= ?1 AND at_ns - abs(seconds) * 1e9 < ?2 ORDER BY at_ns LIMIT 10000";
        let mut statement = self.connection.prepare(sql)?;
        let ns = |second: i64| second.saturating_mul(1_000_000_000);
        let rows = statement.query_map((ns(span.from), ns(span.to)), |row| {
            let at_ns: i64 = row.get(0)?;
            Ok(Mark { at: at_ns as f64 / 1e9, kind: row.get(1)?, seconds: row.get(2)?, text: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The latest events of a window: kind and fields.
    pub fn events(&self, span: Span, most: usize) -> Result<Vec<(String, Row)>, HistoryError> {
        let sql = "SELECT kind, fields FROM event_log WHERE at_ns >= ?1 AND at_ns < ?2 ORDER BY at_ns DESC LIMIT ?3";
        let mut statement = self.connection.prepare(sql)?;
        let ns = |second: i64| second.saturating_mul(1_000_000_000);
        let rows = statement.query_map((ns(span.from), ns(span.to), most as i64), |row| {
            Ok((row.get(0)?, serde_json::from_str(&row.get::<_, String>(1)?).unwrap_or_default()))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The tier for a window, and the window that it can answer: the coarsest of at most so many seconds, or else the finest that reaches
    /// back so far.
    pub fn choose(&self, span: Span, width: i64, now: i64) -> Result<(Tier, Span), HistoryError> {
        let mut at = TIERS.iter().rposition(|tier| tier.width <= width).unwrap_or(0);
        while at + 1 < TIERS.len() {
            let (own, next) = (self.oldest(&TIERS[at])?, self.oldest(&TIERS[at + 1])?);
            let reaches = own.is_some_and(|own| own <= span.from);
            let farther = next.is_some_and(|next| own.is_none_or(|own| next + TIERS[at + 1].width <= own));
            if reaches || !farther {
                break;
            }
            at += 1;
        }
        let tier = TIERS[at];
        Ok((tier, within(&tier, span, now)))
    }
}

/// The widest of the steps that are kept which is at most so long and does.
pub fn width(most: i64, does: impl Fn(i64) -> bool) -> i64 {
    TIERS.iter().map(|tier| tier.width).rfind(|width| *width <= most && does(*width)).unwrap_or(TIERS[0].width)
}

/// A window as a tier can answer it: of whole spans, the last one up to now.
pub fn within(tier: &Tier, span: Span, now: i64) -> Span {
    let end = tier.floor(span.to + tier.width - 1);
    Span { from: tier.floor(span.from), to: if end <= now { end } else { span.to } }
}

/// A step as a tier can answer it.
pub fn whole_spans(tier: &Tier, step: i64) -> i64 {
    (step + tier.width - 1) / tier.width * tier.width
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    match set_up(&connection) {
        // Who may not write to the folder cannot make the file by which readers and writers agree. Without a writer none is needed.
        Err(_) if !store::is_recorded(file) => immutable(file),
        Err(error) => Err(error),
        Ok(()) => Ok(connection),
    }
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(1))?;
    connection.pragma_update(None, "query_only", true)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

fn immutable(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let escaped: String = file.to_string_lossy().bytes().map(uri_byte).collect();
    let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    set_up(&connection).map(|()| connection)
}

fn uri_byte(byte: u8) -> String {
    let plain = byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte);
    if plain { char::from(byte).to_string() } else { format!("%{byte:02x}") }
}
