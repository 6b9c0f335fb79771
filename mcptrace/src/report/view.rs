//! What of a report is shown: a page of it, small enough. What is left out is counted and summed, never dropped in silence. Pure.

use serde_json::Value;

use super::{Envelope, Field, Histogram, Report, Rest, Row, Series, Table, cursor::Cursor};

/// Rows `offset..offset + limit` of a report. Tables and histograms sum the rest in `others` on their first page.
/// Gives the page and how many rows are left after it.
pub fn page(report: &Report, offset: u64, limit: usize) -> (Report, u64) {
    match report {
        Report::Table(table) => {
            let (page, left) = table_page(table, offset, limit);
            (Report::Table(page), left)
        }
        Report::Histogram(histogram) => {
            let (page, left) = histogram_page(histogram, offset, limit);
            (Report::Histogram(page), left)
        }
        Report::Events(events) => {
            let (rows, left) = slice(&events.rows, offset, limit);
            (Report::Events(super::Events { rows: rows.to_vec(), ..events.clone() }), left)
        }
        Report::Stacks(stacks) => {
            let (page, left) = slice(&stacks.stacks, offset, limit);
            let frames = stacks.frames.iter().take(limit).cloned().collect();
            (Report::Stacks(super::Stacks { frames, stacks: page.to_vec(), ..stacks.clone() }), left)
        }
    }
}

/// Makes an envelope's JSON fit into so many bytes by leaving out buckets first and rows then, last ones first. Says what it left out, and
/// sums it up on the page that begins with the first row.
/// `cursor_after` so many rows, and so many of the events beside them, is where a reader goes on.
pub fn fit(
    mut envelope: Envelope,
    most_bytes: usize,
    from: u64,
    cursor_after: impl Fn(u64, u64) -> Cursor,
) -> Envelope {
    let shown = |envelope: &Envelope| (rows_of(envelope.report.as_ref()), rows_of(envelope.events.as_ref()));
    let before = shown(&envelope);
    let mut bare = 0;
    while size(&envelope) > most_bytes && drop_buckets(&mut envelope, &mut bare) {}
    if bare > 0 {
        envelope.notes.push(format!(
            "buckets of {bare} series are left out to fit max_bytes; their percentiles are of all buckets"
        ));
    }
    while size(&envelope) > most_bytes && drop_rows(&mut envelope, from == 0) {}
    let (rows, events) = shown(&envelope);
    let left_out = before.0 - rows + before.1 - events;
    if left_out > 0 {
        let more = envelope.more.get_or_insert_default();
        more.rows_left += left_out as u64;
        more.cursor = Some(cursor_after(rows as u64, events as u64).to_string());
    }
    envelope
}

/// How many rows, series or stacks a report shows.
pub fn rows_of(report: Option<&Report>) -> usize {
    match report {
        Some(Report::Table(table)) => table.rows.len(),
        Some(Report::Histogram(histogram)) => histogram.series.len(),
        Some(Report::Events(events)) => events.rows.len(),
        Some(Report::Stacks(stacks)) => stacks.stacks.len(),
        None => 0,
    }
}

fn table_page(table: &Table, offset: u64, limit: usize) -> (Table, u64) {
    let (rows, left) = slice(&table.rows, offset, limit);
    let rest = &table.rows[(offset as usize).saturating_add(rows.len()).min(table.rows.len())..];
    let others = (offset == 0 && !rest.is_empty()).then(|| sum(table, rest));
    (Table { rows: rows.to_vec(), others: others.or_else(|| table.others.clone()), ..table.clone() }, left)
}

fn sum(table: &Table, rows: &[Row]) -> Row {
    let mut others = table.others.clone().unwrap_or_default();
    for column in &table.columns {
        let values = rows.iter().filter_map(|row| row.get(&column.name)).chain(others.get(&column.name));
        if let Some(merged) = merged_values(column, &values.collect::<Vec<_>>()) {
            others.insert(column.name.clone(), merged);
        }
    }
    others
}

/// One value for several: amounts add up, of extremes the most counts. There is none for what is no amount: ids and texts, which have no
/// unit, and means, percentiles and ratios.
fn merged_values(column: &Field, values: &[&Value]) -> Option<Value> {
    let name = column.name.as_str();
    let is_ratio = ["mean", "p50", "p90", "p99"].iter().any(|start| name.starts_with(start)) || name.contains("_per_");
    if column.unit.is_empty() || column.unit == "percent" || is_ratio || values.is_empty() {
        return None;
    }
    let whole: Option<Vec<u64>> = values.iter().map(|value| value.as_u64()).collect();
    match whole {
        Some(numbers) if name.starts_with("max") => numbers.into_iter().max().map(Value::from),
        Some(numbers) => Some(numbers.into_iter().sum::<u64>().into()),
        None => Some(rounded(values.iter().filter_map(|value| value.as_f64()).sum())),
    }
}

fn rounded(value: f64) -> Value {
    tenths(value).into()
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn histogram_page(histogram: &Histogram, offset: u64, limit: usize) -> (Histogram, u64) {
    let (series, left) = slice(&histogram.series, offset, limit);
    let mut page = Histogram { series: series.to_vec(), ..histogram.clone() };
    let rest = &histogram.series[(offset as usize).saturating_add(series.len()).min(histogram.series.len())..];
    if offset == 0 && !rest.is_empty() {
        page.others = Some(Box::new(merged(rest, histogram.others.as_deref())));
    }
    (page, left)
}

/// Count, extremes and mean of several series, and the sums of their further numbers: what can be merged exactly without buckets.
fn merged(series: &[Series], others: Option<&Rest>) -> Rest {
    let mut all = Rest { min: u64::MAX, ..Rest::default() };
    let mut sum = 0.0;
    for part in series.iter().map(Rest::from).chain(others.cloned()) {
        all.count += part.count;
        all.min = all.min.min(part.min);
        all.max = all.max.max(part.max);
        sum += part.mean * part.count as f64;
        for (name, number) in part.also {
            let before = all.also.get(&name).and_then(Value::as_u64).unwrap_or(0);
            all.also.insert(name, number.as_u64().map_or(Value::Null, |number| (before + number).into()));
        }
    }
    all.mean = if all.count == 0 { 0.0 } else { tenths(sum / all.count as f64) };
    all
}

fn slice<T>(rows: &[T], offset: u64, limit: usize) -> (&[T], u64) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(rows.len());
    let end = start.saturating_add(limit).min(rows.len());
    (&rows[start..end], (rows.len() - end) as u64)
}

fn size(envelope: &Envelope) -> usize {
    serde_json::to_string(envelope).map_or(0, |text| text.len())
}

fn drop_buckets(envelope: &mut Envelope, bare: &mut usize) -> bool {
    let Some(Report::Histogram(histogram)) = &mut envelope.report else { return false };
    let with_buckets = histogram.series.iter_mut().rev().filter(|one| !one.buckets.is_empty());
    // A few at a time: measuring the size is what costs.
    let mut dropped = 0;
    for series in with_buckets.take(4) {
        series.buckets.clear();
        dropped += 1;
    }
    *bare += dropped;
    dropped > 0
}

/// Drops the last eighth of what there is, events beside the report first, and sums it up if it is to; false if only one is left.
fn drop_rows(envelope: &mut Envelope, sums: bool) -> bool {
    // With nothing at all on its page a reader would never come further.
    let least = usize::from(rows_of(envelope.report.as_ref()) == 0);
    if let Some(Report::Events(events)) = &mut envelope.events
        && shorten(&mut events.rows, least)
    {
        return true;
    }
    match &mut envelope.report {
        Some(Report::Table(table)) => {
            let kept = kept(table.rows.len(), 1);
            let rest = table.rows.split_off(kept);
            if rest.is_empty() {
                return false;
            }
            table.others = sums.then(|| sum(table, &rest));
            true
        }
        Some(Report::Histogram(histogram)) => {
            let kept = kept(histogram.series.len(), 1);
            let rest = histogram.series.split_off(kept);
            if rest.is_empty() {
                return false;
            }
            histogram.others = sums.then(|| Box::new(merged(&rest, histogram.others.as_deref())));
            true
        }
        Some(Report::Events(events)) => shorten(&mut events.rows, 1),
        // Both in step; the whole is behind the URIs.
        Some(Report::Stacks(stacks)) => shorten(&mut stacks.stacks, 0) | shorten(&mut stacks.frames, 0),
        None => false,
    }
}

fn shorten<T>(rows: &mut Vec<T>, least: usize) -> bool {
    let kept = kept(rows.len(), least);
    let shorter = kept < rows.len();
    rows.truncate(kept);
    shorter
}

fn kept(rows: usize, least: usize) -> usize {
    (rows - rows.div_ceil(8).min(rows)).max(least.min(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Events, FrameWeight, Kind, Loss, Stack, Stacks, Status, Window};

    fn table(rows: u64) -> Report {
        let row = |number: u64| {
            Row::from_iter([("name".into(), format!("n{number}").into()), ("calls".into(), number.into())])
        };
        Report::Table(Table {
            key: vec!["name".into()],
            columns: vec![Field::new("calls", "calls")],
            rows: (0..rows).rev().map(row).collect(),
            others: None,
            rows_total: rows,
        })
    }

    #[test]
    fn the_rest_has_sums_and_extremes_and_nothing_that_cannot_be_merged() {
        let row = |total: u64, max: u64| {
            let row = serde_json::json!({"total_ns": total, "max_ns": max, "mean_ns": 5, "hit_percent": 9.0, "cpu": 0.5, "uid": 7});
            serde_json::from_value::<Row>(row).unwrap()
        };
        let units = [
            ("total_ns", "ns"),
            ("max_ns", "ns"),
            ("mean_ns", "ns"),
            ("hit_percent", "percent"),
            ("cpu", "% of one CPU"),
            ("uid", ""),
        ];
        let columns = units.map(|(name, unit)| Field::new(name, unit)).to_vec();
        let rows = vec![row(90, 20), row(30, 8), row(10, 9)];
        let table = Report::Table(Table { key: Vec::new(), columns, rows, others: None, rows_total: 3 });
        let (Report::Table(page), 2) = page(&table, 0, 1) else { panic!() };
        assert_eq!(serde_json::json!(page.others), serde_json::json!({"total_ns": 40, "max_ns": 9, "cpu": 1.0}));
    }

    fn envelope(report: Report) -> Envelope {
        Envelope {
            execution_id: "exec_1".into(),
            kind: Kind::Probe,
            probe: "p".into(),
            status: Status::Completed,
            error: None,
            window: Window::default(),
            filter: Row::new(),
            options: Row::new(),
            report: Some(report),
            events: None,
            reports: Vec::new(),
            loss: Loss::default(),
            overhead: None,
            notes: Vec::new(),
            more: None,
        }
    }

    fn total(report: &Report) -> u64 {
        let Report::Table(table) = report else { panic!() };
        let rows = table.rows.iter().chain(&table.others);
        rows.map(|row| row["calls"].as_u64().unwrap()).sum()
    }

    #[test]
    fn a_first_page_sums_what_it_does_not_show() {
        let (page, left) = page(&table(100), 0, 7);
        assert_eq!((rows_of(Some(&page)), left), (7, 93));
        assert_eq!(total(&page), (0..100).sum::<u64>());
    }

    #[test]
    fn pages_cover_every_row_once() {
        let all = table(23);
        let pages = [0, 7, 14, 21].map(|offset| page(&all, offset, 7));
        assert_eq!(pages.iter().map(|(page, _)| rows_of(Some(page))).sum::<usize>(), 23);
        assert_eq!(pages[3].1, 0);
        assert_eq!(rows_of(Some(&page(&all, u64::MAX, 7).0)), 0, "an offset past the end is an empty page");
    }

    #[test]
    fn fitting_loses_no_count_and_says_where_to_read_on() {
        let fitted = fit(envelope(table(1000)), 2000, 0, |row, _| Cursor::Rows { row, event: None, of: None });
        assert!(size(&fitted) <= 2100, "{}", size(&fitted));
        assert_eq!(total(fitted.report.as_ref().unwrap()), (0..1000).sum::<u64>());
        let shown = rows_of(fitted.report.as_ref());
        let more = fitted.more.unwrap();
        assert_eq!((more.rows_left, more.cursor), (1000 - shown as u64, Some(format!("r{shown}"))));
    }

    #[test]
    fn a_later_page_sums_nothing_up() {
        let (later, _) = page(&table(1000), 500, 400);
        let fitted = fit(envelope(later), 2000, 500, |row, _| Cursor::Rows { row, event: None, of: None });
        let Some(Report::Table(table)) = fitted.report else { panic!() };
        assert_eq!(table.others, None);
    }

    #[test]
    fn errors_of_series_that_are_not_shown_are_added_up() {
        let series = |count, errors: u64| Series {
            count,
            max: count,
            mean: 1.0,
            also: Row::from_iter([("errors".to_owned(), errors.into())]),
            ..Series::default()
        };
        let histogram = Histogram { series: vec![series(9, 0), series(5, 2), series(3, 4)], ..Histogram::default() };
        let (Report::Histogram(page), 2) = page(&Report::Histogram(histogram), 0, 1) else { panic!() };
        assert_eq!(page.series.len(), 1);
        let others = serde_json::to_value(page.others).unwrap();
        assert_eq!(others, serde_json::json!({"count": 8, "min": 0, "max": 5, "mean": 1.0, "also": {"errors": 6}}));
    }

    #[test]
    fn buckets_go_before_series() {
        let series =
            |count| Series { count, buckets: (0..50).map(|low| (low, low + 1, 1)).collect(), ..Series::default() };
        let histogram =
            Histogram { series: (1..=20).rev().map(series).collect(), series_total: 20, ..Histogram::default() };
        let fitted =
            fit(envelope(Report::Histogram(histogram)), 4000, 0, |row, _| Cursor::Rows { row, event: None, of: None });
        assert_eq!(rows_of(fitted.report.as_ref()), 20);
        assert!(fitted.notes[0].contains("buckets of"));
        assert!(fitted.more.is_none());
    }

    fn numbered(rows: u64) -> Vec<Row> {
        (0..rows).map(|number| Row::from_iter([("number".to_owned(), number.into())])).collect()
    }

    fn events(rows: u64) -> Events {
        Events { rows: numbered(rows), rows_total: rows, ..Events::default() }
    }

    fn stacks(number: u64) -> Stacks {
        let name = |of: u64| format!("function_{of}");
        Stacks {
            frames: (0..number).map(|of| FrameWeight { frame: name(of), self_weight: of, total: of }).collect(),
            stacks: (0..number).map(|of| Stack { frames: vec![name(of)], value: of, comm: String::new() }).collect(),
            stacks_total: number,
            total: 77,
            ..Stacks::default()
        }
    }

    #[test]
    fn pages_of_events_and_stacks_are_the_rows_that_were_asked_for() {
        let (Report::Events(shown), 13) = page(&Report::Events(events(20)), 4, 3) else { panic!() };
        assert_eq!((shown.rows, shown.rows_total), (numbered(20)[4..7].to_vec(), 20));
        let (Report::Stacks(shown), 13) = page(&Report::Stacks(stacks(20)), 4, 3) else { panic!() };
        assert_eq!(shown.stacks, stacks(20).stacks[4..7]);
        assert_eq!(shown.frames, stacks(20).frames[..3], "functions are of all stacks, whichever page is shown");
        assert_eq!((shown.stacks_total, shown.total), (20, 77));
    }

    #[test]
    fn a_page_that_shows_all_sums_nothing_up() {
        let (Report::Table(all), 0) = page(&table(5), 0, 5) else { panic!() };
        assert_eq!(all.others, None);
        let (Report::Table(last), 0) = page(&table(5), 3, 5) else { panic!() };
        assert_eq!((last.rows.len(), last.others), (2, None));
        let (Report::Table(middle), 1) = page(&table(5), 1, 3) else { panic!() };
        assert_eq!(middle.others, None, "only the first page has the rest");
        let series = |count| Series { count, ..Series::default() };
        let three = Report::Histogram(Histogram { series: (1..=3).map(series).collect(), ..Histogram::default() });
        for (offset, limit, rest) in [(0, 3, false), (0, 2, true), (1, 1, false), (1, 2, false)] {
            let (Report::Histogram(shown), _) = page(&three, offset, limit) else { panic!() };
            assert_eq!((shown.series.len(), shown.others.is_some()), (limit, rest), "{offset} {limit}");
        }
    }

    #[test]
    fn every_kind_of_report_can_be_made_to_fit() {
        let few_functions = Stacks { frames: stacks(3).frames, ..stacks(500) };
        for report in [Report::Events(events(500)), Report::Stacks(stacks(500)), Report::Stacks(few_functions)] {
            let fitted = fit(envelope(report), 3000, 0, |row, _| Cursor::Rows { row, event: None, of: None });
            assert!(size(&fitted) <= 3100, "{}", size(&fitted));
            let shown = rows_of(fitted.report.as_ref());
            assert!(shown > 5, "{shown} rows are few for 3,000 bytes");
            let more = fitted.more.unwrap();
            assert_eq!((more.rows_left, more.cursor), (500 - shown as u64, Some(format!("r{shown}"))));
        }
    }

    #[test]
    fn series_that_do_not_fit_are_merged_with_those_that_did_not_before() {
        let series = |count| Series { count, min: count, max: count, mean: count as f64, ..Series::default() };
        let others = Rest { count: 1000, min: 3, max: 9000, mean: 2.0, also: Row::new() };
        let histogram = Histogram {
            series: (101..=200).rev().map(series).collect(),
            series_total: 1100,
            others: Some(Box::new(others)),
            ..Histogram::default()
        };
        let fitted =
            fit(envelope(Report::Histogram(histogram)), 3000, 0, |row, _| Cursor::Rows { row, event: None, of: None });
        let Some(Report::Histogram(histogram)) = fitted.report else { panic!() };
        let rest = histogram.others.unwrap();
        let shown: u64 = histogram.series.iter().map(|one| one.count).sum();
        assert_eq!(shown + rest.count, (101..=200).sum::<u64>() + 1000);
        assert_eq!((rest.min, rest.max), (3, 9000));
        let left = 101..=200 - histogram.series.len() as u64;
        let sum = left.map(|count| (count * count) as f64).sum::<f64>() + 2000.0;
        assert!((rest.mean - sum / rest.count as f64).abs() < 1.0, "{}", rest.mean);
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        let whole = envelope(table(20));
        let most = size(&whole);
        assert_eq!(fit(whole.clone(), most, 0, |_, _| unreachable!("nothing is left out")), whole);
        let less = fit(whole, most - 1, 0, |row, _| Cursor::Rows { row, event: None, of: None });
        assert!(rows_of(less.report.as_ref()) < 20);
        let one = Series { count: 1, buckets: vec![(1, 2, 1)], ..Series::default() };
        let whole = envelope(Report::Histogram(Histogram { series: vec![one], ..Histogram::default() }));
        assert_eq!(fit(whole.clone(), size(&whole), 0, |_, _| unreachable!("nor buckets")), whole);
    }

    #[test]
    fn events_beside_the_report_go_before_its_rows_and_one_row_stays() {
        let mut both = envelope(table(40));
        both.events = Some(Report::Events(events(300)));
        let alone = size(&envelope(table(40)));
        let fitted = fit(both.clone(), alone + 100, 0, |row, _| Cursor::Rows { row, event: None, of: None });
        assert_eq!(rows_of(fitted.report.as_ref()), 40);
        let least = fit(both, 1, 0, |row, _| Cursor::Rows { row, event: None, of: None });
        assert_eq!((rows_of(least.report.as_ref()), rows_of(least.events.as_ref())), (1, 0));
    }
}
