//! Metrics and label sets by number.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use rusqlite::{Connection, OptionalExtension as _, Result};

use super::schema::kind_word;
use crate::recorder::{metrics::OTHERS, tick::Metric};

/// Series that were not seen for so many ticks leave memory.
const IDLE_TICKS: i64 = 600;

/// Numbers of metrics and series, as far as they are in use.
#[derive(Debug, Default)]
pub(super) struct Interned {
    metrics: HashMap<&'static str, u32>,
    /// By metric and two hashes of the labels with keys of their own: 128 bits that nobody can aim at. The labels themselves, thousands of
    /// small pieces that live for minutes, would keep memory from being given back that large answers have lain in between.
    series: HashMap<(u32, [u64; 2]), Seen>,
    hashers: [RandomState; 2],
    /// New ones since the last sweep.
    fresh: usize,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    id: u32,
    seq: i64,
}

impl Interned {
    /// The number of a metric, which is written down if it is new.
    pub(super) fn metric(&mut self, connection: &Connection, metric: &Metric) -> Result<u32> {
        if let Some(id) = self.metrics.get(metric.name) {
            return Ok(*id);
        }
        let id = metric_id(connection, metric)?;
        self.metrics.insert(metric.name, id);
        Ok(id)
    }

    /// The number of a label set; that of "others" if too many were new lately.
    pub(super) fn series(
        &mut self,
        connection: &Connection,
        (id, metric): (u32, &Metric),
        labels: &[impl AsRef<str>],
        (seq, most_fresh): (i64, usize),
    ) -> Result<u32> {
        let labels = labels_json(metric.labels, labels);
        let key = (id, self.hash(&labels));
        if let Some(seen) = self.series.get_mut(&key) {
            seen.seq = seq;
            return Ok(seen.id);
        }
        let labels = if self.fresh < most_fresh { labels } else { others_json(metric.labels) };
        let found = series_id(connection, (id, &labels), seq)?;
        self.fresh += 1;
        self.series.insert((id, self.hash(&labels)), Seen { id: found, seq });
        Ok(found)
    }

    fn hash(&self, labels: &str) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(labels))
    }

    /// Writes down which series were seen, and lets go of those that were not for a while.
    pub(super) fn sweep(&mut self, connection: &Connection, seq: i64, since: i64) -> Result<()> {
        let mut statement = connection.prepare_cached("UPDATE series_def SET last_seq = ?2 WHERE id = ?1")?;
        for seen in self.series.values().filter(|seen| seen.seq > since) {
            statement.execute((seen.id, seen.seq))?;
        }
        self.series.retain(|_, seen| seen.seq + IDLE_TICKS > seq);
        self.fresh = 0;
        Ok(())
    }
}

/// Forgets the label sets that were not seen for longest, until no more than so many are left. What was recorded of them stays, as a
/// part of the metric without labels.
pub(super) fn forget(connection: &Connection, seq: i64, most: usize) -> Result<usize> {
    let count: i64 = connection.query_row("SELECT count(*) FROM series_def", [], |row| row.get(0))?;
    let surplus = count - most as i64;
    if surplus <= 0 {
        return Ok(0);
    }
    // A tenth more, so that it is not done each time.
    let goes = surplus + most as i64 / 10;
    let sql = "DELETE FROM series_def WHERE id IN
        (SELECT id FROM series_def WHERE last_seq + ?1 < ?2 ORDER BY last_seq LIMIT ?3)";
    connection.execute(sql, (IDLE_TICKS, seq, goes))
}

/// A metric whose definition has changed gets a new number; the former one keeps its data under another name.
fn metric_id(connection: &Connection, metric: &Metric) -> Result<u32> {
    let labels = serde_json::json!(metric.labels).to_string();
    let kind = kind_word(metric.kind);
    let known = "SELECT id, unit = ?2 AND kind = ?3 AND labels = ?4 FROM metric_def WHERE name = ?1";
    let known: Option<(u32, bool)> = connection
        .query_row(known, (metric.name, metric.unit, kind, &labels), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match known {
        Some((id, true)) => {
            let sql = "UPDATE metric_def SET grp = ?2, help = ?3 WHERE id = ?1 AND (grp <> ?2 OR help <> ?3)";
            connection.execute(sql, (id, metric.group, metric.help))?;
            return Ok(id);
        }
        Some((id, false)) => {
            connection.execute("UPDATE metric_def SET name = name || '@' || id WHERE id = ?", [id])?;
        }
        None => {}
    }
    let sql = "INSERT INTO metric_def (name, unit, kind, grp, labels, help) VALUES (?, ?, ?, ?, ?, ?)";
    connection.execute(sql, (metric.name, metric.unit, kind, metric.group, labels, metric.help))?;
    Ok(connection.last_insert_rowid() as u32)
}

fn series_id(connection: &Connection, (metric, labels): (u32, &str), seq: i64) -> Result<u32> {
    let mut find = connection.prepare_cached("SELECT id FROM series_def WHERE metric = ? AND labels = ?")?;
    if let Some(id) = find.query_row((metric, labels), |row| row.get(0)).optional()? {
        return Ok(id);
    }
    let mut insert = connection.prepare_cached("INSERT INTO series_def (metric, labels, last_seq) VALUES (?, ?, ?)")?;
    insert.execute((metric, labels, seq))?;
    Ok(connection.last_insert_rowid() as u32)
}

/// `{"comm":"redis","cpu":"3"}`. A value too few is empty, one too many is left out.
fn labels_json(names: &[&str], values: &[impl AsRef<str>]) -> String {
    let value = |at: usize| values.get(at).map_or("", AsRef::as_ref).into();
    let object: serde_json::Map<_, _> =
        names.iter().enumerate().map(|(at, name)| ((*name).into(), value(at))).collect();
    serde_json::Value::Object(object).to_string()
}

fn others_json(names: &[&str]) -> String {
    labels_json(names, &names.iter().map(|_| OTHERS).collect::<Vec<_>>())
}

/// The number of the series that takes in what has no room.
pub(super) fn others(connection: &Connection, metric: u32, seq: i64) -> Result<u32> {
    let sql = "SELECT labels FROM metric_def WHERE id = ?";
    let names: String = connection.query_row(sql, [metric], |row| row.get(0))?;
    let names: Vec<String> = serde_json::from_str(&names).unwrap_or_default();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    series_id(connection, (metric, &others_json(&names)), seq)
}
