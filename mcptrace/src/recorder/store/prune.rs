//! What goes, and when: everything has its time, and all together a size.

use rusqlite::{Connection, Result};

use super::{
    Limits,
    schema::{METRIC_BITS, TIERS, TIME_BITS, Tier, number},
};

/// Marks that are kept.
const MARKS: i64 = 10_000;
/// Seconds that are kept even if there is little room.
const LEAST_SECONDS: i64 = 600;
/// What goes in which order when room is short, and how many seconds of each stay for the time being: a week of minutes is worth more than a
/// day of ten seconds, and six hours of these more than a month of minutes.
const LEAST: &[(&Tier, i64)] = &[
    (&TIERS[1], 6 * 3600),
    (&TIERS[2], 7 * 86_400),
    (&TIERS[1], 3600),
    (&TIERS[2], 86_400),
    (&TIERS[1], 600),
    (&TIERS[2], 3600),
];
/// How often something is let go to make room, at one time.
const ROUNDS: usize = 200;

/// Lets go of what has had its time, as far as that does not take a clock or the clock can be trusted.
pub(super) fn by_age(connection: &Connection, limits: &Limits, seq: i64, now: Option<i64>) -> Result<()> {
    let rolled = number(connection, TIERS[1].mark())?.min(number(connection, TIERS[2].mark())?);
    seconds_before(connection, (seq - TIERS[0].keep).min(rolled))?;
    if let Some(now) = now {
        spans_by_age(connection, now)?;
    }
    newest(connection, "event_log", limits.events as i64)?;
    newest(connection, "mark_log", MARKS)
}

fn spans_by_age(connection: &Connection, now: i64) -> Result<()> {
    for tier in &TIERS[1..] {
        for metric in metrics(connection)? {
            let least = metric << TIME_BITS;
            // What lies further ahead than it is kept was recorded while the clock was wrong.
            let (old, odd) = (least + now - tier.keep, least + now + tier.keep);
            let sql = format!("DELETE FROM {} WHERE (key >= ?1 AND key < ?2) OR (key > ?3 AND key < ?4)", tier.table);
            connection.prepare_cached(&sql)?.execute((least, old, odd, (metric + 1) << TIME_BITS))?;
        }
    }
    Ok(())
}

/// Makes room when the file has come near its cap: the oldest and finest go first. True if there is room.
pub(super) fn by_size(connection: &Connection, limits: &Limits, seq: i64) -> Result<bool> {
    if used(connection)? < limits.bytes / 10 * 9 {
        return Ok(true);
    }
    for _ in 0..ROUNDS {
        if used(connection)? < limits.bytes / 100 * 85 {
            return Ok(true);
        }
        if !shed_once(connection, seq)? {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Bytes of the file that hold something.
pub(super) fn used(connection: &Connection) -> Result<u64> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    Ok(((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?) as u64)
}

/// Lets one thing go; false if nothing is left that may go.
fn shed_once(connection: &Connection, seq: i64) -> Result<bool> {
    let first: Option<i64> = connection.query_row("SELECT min(seq) FROM tick", [], |row| row.get(0))?;
    let first = first.unwrap_or(seq);
    let rolled = number(connection, TIERS[1].mark())?.min(number(connection, TIERS[2].mark())?);
    let surplus = (seq - LEAST_SECONDS).min(rolled) - first;
    if surplus > 0 {
        seconds_before(connection, first + (surplus + 3) / 4)?;
        return Ok(true);
    }
    for (tier, least) in LEAST {
        if shorten(connection, tier, *least)? {
            return Ok(true);
        }
    }
    Ok(halve(connection, "event_log", "id")? || halve(connection, "kept", "at_ns")?)
}

fn seconds_before(connection: &Connection, seq: i64) -> Result<()> {
    connection.prepare_cached("DELETE FROM tier_1 WHERE key < ?")?.execute([seq << METRIC_BITS])?;
    connection.prepare_cached("DELETE FROM tick WHERE seq < ?")?.execute([seq])?;
    Ok(())
}

/// Lets the oldest eighth of a tier go, but leaves so many seconds of it.
fn shorten(connection: &Connection, tier: &Tier, least: i64) -> Result<bool> {
    let Tier { table, width, .. } = tier;
    let metrics = metrics(connection)?;
    let (mut oldest, mut latest) = (i64::MAX, i64::MIN);
    for metric in &metrics {
        let sql = format!("SELECT min(key), max(key) FROM {table} WHERE key >= ?1 AND key < ?2");
        let ends = (metric << TIME_BITS, (metric + 1) << TIME_BITS);
        let (first, last): (Option<i64>, Option<i64>) =
            connection.query_row(&sql, ends, |row| Ok((row.get(0)?, row.get(1)?)))?;
        oldest = oldest.min(first.map_or(i64::MAX, |first| first - ends.0));
        latest = latest.max(last.map_or(i64::MIN, |last| last - ends.0));
    }
    if latest.saturating_sub(oldest) <= least {
        return Ok(false);
    }
    let until = oldest + (latest - oldest) / 8 + width;
    for metric in metrics {
        let sql = format!("DELETE FROM {table} WHERE key >= ?1 AND key < ?2");
        connection.execute(&sql, (metric << TIME_BITS, (metric << TIME_BITS) + until))?;
    }
    Ok(true)
}

fn halve(connection: &Connection, table: &str, order: &str) -> Result<bool> {
    let sql = format!(
        "DELETE FROM {table} WHERE {order} <= (SELECT {order} FROM {table} ORDER BY {order}
         LIMIT 1 OFFSET (SELECT count(*) / 2 FROM {table}))"
    );
    Ok(connection.execute(&sql, [])? > 0)
}

fn newest(connection: &Connection, table: &str, keep: i64) -> Result<()> {
    let sql = format!("DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?");
    connection.prepare_cached(&sql)?.execute([keep]).map(drop)
}

fn metrics(connection: &Connection) -> Result<Vec<i64>> {
    let mut statement = connection.prepare_cached("SELECT id FROM metric_def")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}
