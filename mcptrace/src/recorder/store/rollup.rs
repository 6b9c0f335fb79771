//! Longer spans out of seconds. Each tick goes into each tier exactly once, whatever ends the process: the number of the last tick
//! that a tier has taken in is written in the same transaction as what it came to.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _};

use super::{
    WriteError,
    body::{self, Cell, Cells, add},
    schema::{TIERS, TIME_BITS, Tier, number, set_number},
    series,
};
use crate::recorder::tick::Kind;

/// Series of a metric in one row at most; the smallest are merged into one.
const MOST_IN_A_ROW: usize = 500;

/// One tier's span that is not over yet.
#[derive(Debug)]
pub(super) struct Rollup {
    tier: Tier,
    start: i64,
    cells: BTreeMap<u32, Cells>,
    /// The last tick in it.
    seq: i64,
}

impl Rollup {
    /// A tier as it was when the last process ended: what it had not written is taken out of the seconds again.
    pub(super) fn restored(connection: &Connection, tier: Tier) -> Result<Self, WriteError> {
        let mut rollup = Self { tier, start: 0, cells: BTreeMap::new(), seq: 0 };
        let mut ticks = connection.prepare("SELECT seq, t FROM tick WHERE seq > ? ORDER BY seq")?;
        let mut rows = ticks.query([number(connection, tier.mark())?])?;
        while let Some(row) = rows.next()? {
            let (seq, second) = (row.get(0)?, row.get(1)?);
            rollup.take(connection, (seq, second), &second_of(connection, seq)?)?;
        }
        Ok(rollup)
    }

    /// Takes a second in; writes down the span before it if that is over.
    pub(super) fn take(
        &mut self,
        connection: &Connection,
        (seq, second): (i64, i64),
        metrics: &BTreeMap<u32, Cells>,
    ) -> Result<(), WriteError> {
        let start = self.tier.floor(second);
        if start != self.start {
            self.write(connection)?;
            self.start = start;
        }
        for (metric, cells) in metrics {
            let own = self.cells.entry(*metric).or_default();
            for (series, cell) in cells {
                add(own, *series, cell);
            }
        }
        self.seq = seq;
        Ok(())
    }

    fn write(&mut self, connection: &Connection) -> Result<(), WriteError> {
        for (metric, mut cells) in std::mem::take(&mut self.cells) {
            let key = (i64::from(metric) << TIME_BITS) + self.start;
            // There is a row already where the clock was set back.
            merge_row(connection, self.tier, key, &mut cells)?;
            bound(connection, metric, self.seq, &mut cells)?;
            let sql = format!("INSERT OR REPLACE INTO {} VALUES (?, ?)", self.tier.table);
            connection.prepare_cached(&sql)?.execute((key, body::written(&cells)))?;
        }
        if self.seq > 0 {
            set_number(connection, self.tier.mark(), self.seq)?;
        }
        Ok(())
    }
}

/// The tiers above seconds.
pub(super) fn restored(connection: &Connection) -> Result<Vec<Rollup>, WriteError> {
    TIERS[1..].iter().map(|tier| Rollup::restored(connection, *tier)).collect()
}

fn merge_row(connection: &Connection, tier: Tier, key: i64, cells: &mut Cells) -> Result<(), WriteError> {
    let mut find = connection.prepare_cached(&format!("SELECT body FROM {} WHERE key = ?", tier.table))?;
    let former: Option<String> = find.query_row([key], |row| row.get(0)).optional()?;
    if let (Some(former), Some(kind)) = (former, kind_of(cells)) {
        body::read(&former, kind, |series, cell| add(cells, series, &cell))?;
    }
    Ok(())
}

fn bound(connection: &Connection, metric: u32, seq: i64, cells: &mut Cells) -> rusqlite::Result<()> {
    if cells.len() <= MOST_IN_A_ROW || kind_of(cells) == Some(Kind::Gauge) {
        return Ok(());
    }
    let mut by_weight: Vec<_> = cells.iter().map(|(series, cell)| (cell.weight(), *series)).collect();
    by_weight.sort_by(|a, b| b.0.total_cmp(&a.0));
    let others = series::others(connection, metric, seq)?;
    for (_, small) in by_weight.drain(MOST_IN_A_ROW - 1..) {
        if small != others
            && let Some(cell) = cells.remove(&small)
        {
            add(cells, others, &cell);
        }
    }
    Ok(())
}

fn kind_of(cells: &Cells) -> Option<Kind> {
    cells.values().next().map(|cell| match cell {
        Cell::Sum(_) => Kind::Sum,
        Cell::Gauge(_) => Kind::Gauge,
        Cell::Distribution(_) => Kind::Distribution,
    })
}

/// What was written of a second.
fn second_of(connection: &Connection, seq: i64) -> Result<BTreeMap<u32, Cells>, WriteError> {
    let sql = "SELECT m.id, m.kind, b.body FROM metric_def m CROSS JOIN tier_1 b ON b.key = (?1 << 16) + m.id";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([seq])?;
    let mut metrics = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (metric, kind, text): (u32, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let kind = super::schema::kind_of(&kind).ok_or(body::Damaged)?;
        let own: &mut Cells = metrics.entry(metric).or_default();
        body::read(&text, kind, |series, cell| add(own, series, &cell))?;
    }
    Ok(metrics)
}
