//! What the recorder says beside the findings: what has changed since an hour ago. Nothing of it is a finding; it shows what is usual here.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    recorder::history::{self, Answer, HistoryError, Query},
    report::{Report, Row},
};

/// The window that is compared: the last minute.
const LATELY: &str = "-1m";
/// With what: the same minute an hour ago, else the minute before.
const BEFORE: [(&str, &str); 2] = [("-61m", "an hour ago"), ("previous", "the minute before")];
/// Changes of less than this are not worth a word: twofold, and sure.
const LEAST_SCORE: f64 = 1.0;
/// Changes that are shown.
const MOST: usize = 5;

/// What has changed, as far as it was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lately {
    /// With what the last minute was compared: an hour ago, or the minute before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub compared_with: String,
    /// What has at least doubled or halved, what stands out most first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Change>,
    /// Why nothing was compared.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lack: String,
}

/// A number that has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// The metric; query_history has more of it.
    pub metric: String,
    /// Of what.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub labels: String,
    /// `per_second`, `average` or `p99`.
    pub measure: String,
    /// Then.
    pub before: f64,
    /// In the last minute.
    pub now: f64,
    /// Of both.
    pub unit: String,
}

/// Compares the last minute with an hour ago, out of the history of a folder.
pub fn look(folder: &Path) -> Lately {
    let mut lack = String::new();
    for (compare_to, name) in BEFORE {
        let query = Query { from: LATELY.into(), compare_to: compare_to.into(), top: 4 * MOST, ..Query::default() };
        match history::ask(folder, &query).map(|answer| changes(&answer)) {
            Ok(Some(changed)) => return Lately { compared_with: name.to_owned(), changed, lack: String::new() },
            Ok(None) => "not enough was recorded for a comparison with an hour ago".clone_into(&mut lack),
            Err(HistoryError::Absent(_)) => {
                "not compared with an hour ago: nothing is recorded (`mcptrace daemon` does that)"
                    .clone_into(&mut lack);
            }
            Err(error) => lack = format!("not compared with an hour ago: {error}"),
        }
    }
    Lately { lack, ..Lately::default() }
}

/// What an answer says has changed; nothing if one of the windows was not recorded.
fn changes(answer: &Answer) -> Option<Vec<Change>> {
    let Some(Report::Table(table)) = &answer.report else { return None };
    let stands_out = |row: &&Row| row.get("score").and_then(Value::as_f64).is_some_and(|score| score >= LEAST_SCORE);
    let rows = table.rows.iter().filter(stands_out).take(MOST);
    (table.rows_total > 0).then(|| rows.map(change).collect())
}

fn change(row: &Row) -> Change {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or_default();
    Change {
        metric: text("metric"),
        labels: text("labels"),
        measure: text("measure"),
        before: number("before"),
        now: number("now"),
        unit: text("unit"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::Table;

    fn answer(rows: &Value) -> Answer {
        let rows: Vec<Row> = serde_json::from_value(rows.clone()).unwrap();
        let rows_total = rows.len() as u64;
        Answer { report: Some(Report::Table(Table { rows, rows_total, ..Table::default() })), ..Answer::default() }
    }

    #[test]
    fn only_what_stands_out_is_told_and_an_empty_comparison_is_none() {
        let row = |metric: &str, score: f64| json!({ "metric": metric, "labels": "device=vda", "measure": "p99", "before": 1.0, "now": 9.0, "unit": "ns", "score": score });
        let found = changes(&answer(&json!([row("disk", 3.0), row("noise", 0.4)]))).unwrap();
        assert_eq!(found.iter().map(|one| &one.metric[..]).collect::<Vec<_>>(), ["disk"]);
        assert_eq!((found[0].before.to_bits(), found[0].now.to_bits()), (1.0_f64.to_bits(), 9.0_f64.to_bits()));
        assert_eq!(changes(&answer(&json!([row("noise", 0.4)]))), Some(vec![]));
        assert_eq!(changes(&answer(&json!([]))), None);
    }

    #[test]
    fn without_a_history_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let lately = look(folder.path());
        assert!(lately.changed.is_empty() && lately.lack.contains("mcptrace daemon"), "{lately:?}");
    }
}
