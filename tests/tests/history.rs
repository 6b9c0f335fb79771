//! The recorder's store and the history's answers, on real files with simulated seconds of known values.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use mcptrace::{
    distribution::RELATIVE_ERROR,
    recorder::{
        history::{self, Answer, HistoryError, Query, coverage::Coverage},
        metrics::{self, METRICS},
        place,
        status::{self, Status},
        store::{self, Keeper, Limits, OpenError, Reason, State, kept::Kept},
        tick::{self, Tick},
    },
    report::{Envelope, Report, Row, Table},
};
use mcptrace_tests::simulated::{SECOND, START, SYSCALLS, calls, latencies, level, tick};
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder() -> TempDir {
    // In memory: the tests write days of seconds, and what a disk takes for that is not theirs.
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn limits() -> Limits {
    Limits { spare_bytes: 0, retry: Duration::ZERO, ..Limits::default() }
}

fn keeper(folder: &Path) -> Keeper {
    let keeper = Keeper::open(&place::file(folder), limits()).unwrap();
    assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    keeper
}

fn keep(keeper: &mut Keeper, ticks: impl IntoIterator<Item = Tick>) {
    for tick in ticks {
        keeper.keep(&tick);
        assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    }
}

fn ask(folder: &Path, query: &Query, second: i64) -> Answer {
    history::ask_at(folder, query, START + second).unwrap()
}

/// A query about a window in seconds after [`START`].
fn query(metric: &str, from: i64, to: i64) -> Query {
    let at = |second| history::range::stamp(START + second);
    Query { metric: metric.into(), from: at(from), to: at(to), ..Query::default() }
}

fn table(answer: &Answer) -> &Table {
    match &answer.report {
        Some(Report::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

fn row<'a>(answer: &'a Answer, key: &str, value: &str) -> &'a Row {
    let rows = &table(answer).rows;
    rows.iter().find(|row| row[key] == value).unwrap_or_else(|| panic!("no {key}={value} in {rows:?}"))
}

fn total(answer: &Answer) -> u64 {
    let others = table(answer).others.iter();
    table(answer).rows.iter().chain(others).map(|row| row["total"].as_u64().unwrap()).sum()
}

fn missing(coverage: &Coverage) -> Vec<(&str, f64)> {
    coverage.missing.iter().map(|missing| (missing.why.as_str(), missing.seconds)).collect()
}

#[test]
fn a_minute_is_answered_to_the_unit() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let second =
        |n: i64| tick(n, vec![calls("redis", "user", n as u64), calls("redis", "system", 7), calls("cc1", "user", 2)]);
    keep(&mut keeper, (1..=60).map(second));
    let answer = ask(folder.path(), &query("test_calls", 0, 60), 60);
    assert_eq!((answer.unit.as_str(), answer.kind, answer.step_seconds), ("calls", "sum", Some(1)));
    assert_eq!(table(&answer).rows[0], *row(&answer, "mode", "user"), "the largest comes first");
    assert_eq!(row(&answer, "comm", "redis")["total"], 1830);
    assert_eq!(row(&answer, "mode", "system")["total"], 420);
    assert_eq!(row(&answer, "comm", "cc1")["per_second"], 2.0);
    let points = answer.points.iter().find(|point| point["key"]["mode"] == "user").unwrap();
    let expected: Vec<Value> = (1..=60).map(|n| json!(f64::from(n))).collect();
    assert_eq!(points["per_second"].as_array().unwrap(), &expected);
    assert_eq!((answer.coverage[0].recorded_seconds, answer.coverage[0].missing.len()), (60.0, 0));

    let by_comm = ask(folder.path(), &Query { group_by: "comm".into(), ..query("test_calls", 0, 60) }, 60);
    assert_eq!(row(&by_comm, "comm", "redis")["total"], 2250);
    let top = ask(folder.path(), &Query { top: 1, ..query("test_calls", 0, 60) }, 60);
    assert_eq!((table(&top).rows.len(), table(&top).rows_total), (1, 3));
    assert_eq!(table(&top).others.as_ref().unwrap()["total"], 540);
    let filtered = ask(folder.path(), &Query { filter: "comm=re*,mode=sys*".into(), ..query("test_calls", 0, 60) }, 60);
    assert_eq!(total(&filtered), 420);
    let all = ask(folder.path(), &Query { group_by: "none".into(), ..query("test_calls", 0, 60) }, 60);
    assert_eq!((total(&all), table(&all).rows.len()), (2370, 1));
}

#[test]
fn what_is_unknown_is_named_with_the_nearest() {
    let folder = folder();
    let absent = history::ask_at(folder.path(), &Query::default(), START).unwrap_err();
    assert!(matches!(absent, HistoryError::Absent(_)) && absent.to_string().contains("mcptrace daemon"), "{absent}");
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=3).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let error = |query: &Query| history::ask_at(folder.path(), query, START + 3).unwrap_err();
    let metric = error(&query("test_cals", 0, 3));
    assert_eq!((metric.category(), metric.did_you_mean()), ("unknown_metric", Some("test_calls")));
    let label = error(&Query { group_by: "com".into(), ..query("test_calls", 0, 3) });
    assert_eq!((label.category(), label.did_you_mean()), ("unknown_label", Some("comm")));
    assert_eq!(error(&Query { filter: "pid=5".into(), ..query("test_calls", 0, 3) }).category(), "unknown_label");
    assert_eq!(error(&Query { step: "1s".into(), ..query("test_calls", -9000, 3) }).category(), "invalid_range");
}

#[test]
fn every_tick_goes_into_every_tier_once_whatever_ends_the_process() {
    let folder = folder();
    let second = |n: i64| {
        tick(n, vec![calls("redis", "user", n as u64), level("sda", n as f64), latencies("sda", &[n as u64 * 1000])])
    };
    // Ends without a word after odd numbers of seconds, in the middle of spans of both tiers.
    let ends = [1, 97, 98, 1009, 2003, 4999, 5000, 7507];
    let mut before = 0;
    for end in ends {
        let mut keeper = keeper(folder.path());
        keep(&mut keeper, (before + 1..=end).map(second));
        before = end;
    }
    let last = before as u64;
    let whole =
        |metric: &str, step: &str| ask(folder.path(), &Query { step: step.into(), ..query(metric, 0, before) }, before);
    for step in ["60s", "10s", "7m"] {
        let answer = whole("test_calls", step);
        assert_eq!(total(&answer), last * (last + 1) / 2, "{step}");
        assert_eq!(answer.coverage[0].recorded_seconds as i64, before, "{step}");
    }
    let level = whole("test_level", "60s");
    let row = &table(&level).rows[0];
    assert_eq!((row["least"].as_f64(), row["greatest"].as_f64()), (Some(1.0), Some(before as f64)));
    assert!((row["average"].as_f64().unwrap() - f64::midpoint(before as f64, 1.0)).abs() < 1.0, "{row:?}");
    let latency = whole("test_latency_ns", "60s");
    let row = &table(&latency).rows[0];
    assert_eq!((row["count"].as_u64(), row["greatest"].as_u64()), (Some(last), Some(last * 1000)));
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let exact = (last as f64 * share).ceil() * 1000.0;
        let found = row[name].as_f64().unwrap();
        assert!((found - exact).abs() <= exact * RELATIVE_ERROR, "{name}: {found} for {exact}");
    }
}

#[test]
fn percentiles_are_of_all_values_and_not_averages_of_percentiles() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    // One second with a thousand fast ones, 599 with a slow one each: an average of medians would be slow.
    let fast = vec![1000; 1000];
    keep(&mut keeper, (1..=600).map(|n| tick(n, vec![latencies("sda", if n == 300 { &fast } else { &[1_000_000] })])));
    let answer = ask(folder.path(), &query("test_latency_ns", 0, 600), 600);
    let row = &table(&answer).rows[0];
    assert_eq!(row["count"], 1599);
    assert!(row["p50"].as_f64().unwrap() < 1100.0, "{row:?}");
    assert!(row["p90"].as_f64().unwrap() > 900_000.0, "{row:?}");
}

#[test]
fn a_clock_set_back_loses_nothing_and_rates_stay_right() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=600).map(|n| tick(n, vec![calls("a", "user", 10)])));
    // Back by five minutes: 300 to 600 come a second time.
    keep(&mut keeper, (301..=700).map(|n| tick(n, vec![calls("a", "user", 10)])));
    for step in ["1s", "10s", "60s"] {
        let answer = ask(folder.path(), &Query { step: step.into(), ..query("test_calls", 0, 700) }, 700);
        assert_eq!(total(&answer), 10_000, "{step}");
        assert_eq!(table(&answer).rows[0]["per_second"], 10.0, "{step}");
        let rates = answer.points[0]["per_second"].as_array().unwrap();
        assert!(rates.iter().all(|rate| rate.as_f64() == Some(10.0)), "{step}: {rates:?}");
        assert!(answer.notes.iter().any(|note| note.contains("set back by 300 s")), "{:?}", answer.notes);
    }
    drop(keeper);
    let reopened = self::keeper(folder.path());
    drop(reopened);
    let answer = ask(folder.path(), &Query { step: "60s".into(), ..query("test_calls", 0, 700) }, 700);
    assert_eq!(total(&answer), 10_000, "after a restart");
}

#[test]
fn a_clock_set_forth_is_a_hole_with_its_reason() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=60).map(|n| tick(n, vec![calls("a", "user", 10)])));
    keep(&mut keeper, (181..=240).map(|n| tick(n, vec![calls("a", "user", 10)])));
    let answer = ask(folder.path(), &Query { step: "10s".into(), ..query("test_calls", 0, 240) }, 240);
    assert_eq!(total(&answer), 1200);
    let row = &table(&answer).rows[0];
    assert_eq!(row["per_second"], 10.0, "by the time that was recorded: {row:?}");
    assert_eq!(missing(&answer.coverage[0]), [("clock_jump", 120.0)]);
    let rates = answer.points[0]["per_second"].as_array().unwrap();
    let holes: Vec<usize> = (0..rates.len()).filter(|at| rates[*at].is_null()).collect();
    assert_eq!(holes, (6..18).collect::<Vec<_>>());
    assert_eq!(answer.coverage[0].gaps.len(), 1);
}

#[test]
fn what_was_not_recorded_is_not_taken_for_nothing() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let with = |n: i64, share: f64, why: Option<&'static str>| {
        let mut tick = tick(n, if share > 0.0 && n % 2 == 0 { vec![calls("a", "user", 4)] } else { vec![] });
        tick.coverage = vec![tick::Coverage { group: "cpu", share, why: why.map(Into::into) }];
        tick
    };
    keep(&mut keeper, (1..=20).map(|n| with(n, 1.0, None)));
    keep(&mut keeper, (21..=40).map(|n| with(n, 0.0, Some("shed"))));
    keep(&mut keeper, (41..=60).map(|n| with(n, 0.25, Some("duty_cycle"))));
    drop(keeper);
    let answer = ask(folder.path(), &Query { step: "1s".into(), ..query("test_calls", -20, 80) }, 90);
    let coverage = &answer.coverage[0];
    assert_eq!(missing(coverage), [("not_running", 40.0), ("shed", 20.0)]);
    assert_eq!((coverage.seconds, coverage.recorded_seconds), (100.0, 40.0));
    assert_eq!(coverage.looked_share, Some(0.625));
    let rates = answer.points[0]["scaled_per_second"].as_array().unwrap();
    assert_eq!(rates[19], Value::Null, "before");
    assert_eq!((&rates[20], &rates[21]), (&json!(0.0), &json!(4.0)), "recorded, and nothing happened; recorded");
    assert_eq!(rates[45], Value::Null, "shed");
    assert_eq!(rates[61], json!(16.0), "seen in a quarter of the time, and not scaled in silence");
    assert!(answer.points[0].get("per_second").is_none(), "{:?}", answer.points[0]);
    let row = &table(&answer).rows[0];
    assert_eq!((row["per_second"].as_f64(), row["scaled_per_second"].as_f64()), (Some(2.0), Some(3.2)));
    assert!(answer.notes.iter().any(|note| note.contains("62.5 %")), "{:?}", answer.notes);
    assert!(answer.notes.iter().any(|note| note.contains("not running")), "{:?}", answer.notes);
}

#[test]
fn a_late_tick_is_spread_and_one_of_minutes_is_not_kept() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, [tick(1, vec![calls("a", "user", 5)])]);
    let late = Tick { span_ns: 7 * SECOND, ..tick(8, vec![calls("a", "user", 37)]) };
    keep(&mut keeper, [late]);
    let very_late = Tick { span_ns: 100 * SECOND, ..tick(108, vec![calls("a", "user", 1_000_000)]) };
    keep(&mut keeper, [very_late, tick(109, vec![calls("a", "user", 5)])]);
    let answer = ask(folder.path(), &Query { step: "1s".into(), ..query("test_calls", 0, 109) }, 109);
    assert_eq!(total(&answer), 47);
    let rates: Vec<_> = answer.points[0]["per_second"].as_array().unwrap()[..9].iter().map(Value::as_f64).collect();
    assert_eq!(rates[0], Some(5.0));
    assert!(rates[1..8].iter().all(|rate| *rate == Some(5.0) || *rate == Some(6.0)), "{rates:?}");
    assert_eq!(missing(&answer.coverage[0]), [("late", 100.0)]);
}

#[test]
fn levels_and_values_of_a_late_tick_are_in_all_its_seconds() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, [tick(1, vec![level("sda", 3.0), latencies("sda", &[100; 10])])]);
    let values: Vec<u64> = (0..80).map(|n| if n % 2 == 0 { 100 } else { 100_000 }).collect();
    keep(&mut keeper, [Tick { span_ns: 8 * SECOND, ..tick(9, vec![level("sda", 5.0), latencies("sda", &values)]) }]);
    let points = |metric: &str, name: &str| -> Vec<Option<f64>> {
        let answer = ask(folder.path(), &Query { step: "1s".into(), ..query(metric, 0, 9) }, 9);
        assert!(missing(&answer.coverage[0]).is_empty(), "{:?}", answer.coverage);
        assert!(answer.notes.iter().any(|note| note.contains("8 s before") && note.contains("spread")), "{answer:?}");
        answer.points[0][name].as_array().unwrap().iter().map(Value::as_f64).collect()
    };
    let levels: Vec<_> = [3.0].into_iter().chain([5.0; 8]).map(Some).collect();
    assert_eq!(points("test_level", "average"), levels);
    assert_eq!(points("test_latency_ns", "per_second"), [Some(10.0); 9]);
    assert!(points("test_latency_ns", "p99")[1..].iter().all(|p99| p99.is_some_and(|p99| p99 > 90_000.0)));
    let whole = ask(folder.path(), &query("test_latency_ns", 0, 9), 9);
    let row = &table(&whole).rows[0];
    assert_eq!((row["count"].as_u64(), row["mean"].as_f64()), (Some(90), Some(44_500.0)), "{row:?}");
}

/// So many system calls a second, looked at for a part of every tenth second.
fn duty_cycle(n: i64, rate: f64, share: f64) -> Tick {
    let looked = if n % 10 == 0 { share } else { 0.0 };
    let seen = (rate * looked) as u64;
    let sample = mcptrace_tests::simulated::sample(&SYSCALLS, &["openat"], tick::Value::Sum(seen));
    let mut tick = tick(n, if seen > 0 { vec![sample] } else { Vec::new() });
    tick.coverage[1] = tick::Coverage { group: "syscalls", share: looked, why: Some("duty_cycle".into()) };
    tick
}

#[test]
fn rates_of_a_duty_cycle_depend_neither_on_the_step_nor_on_how_long_it_looked() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=600).map(|n| duty_cycle(n, 100_000.0, if n <= 300 { 0.5 } else { 0.02 })));
    for step in ["1s", "5s", "10s", "60s"] {
        let answer = ask(folder.path(), &Query { step: step.into(), ..query("test_syscalls", 0, 300) }, 600);
        let row = &table(&answer).rows[0];
        assert_eq!(row["per_second"], 5000.0, "{step}");
        assert_eq!(row["scaled_per_second"], 100_000.0, "{step}");
        let points = answer.points[0]["scaled_per_second"].as_array().unwrap();
        assert!(points.iter().all(|rate| rate.is_null() || rate == 100_000.0), "{step}: {points:?}");
        assert!(points.iter().any(|rate| !rate.is_null()), "{step}");
        assert_eq!((answer.coverage[0].recorded_seconds, missing(&answer.coverage[0])), (300.0, vec![]), "{step}");
        assert!(history::text::answer(&answer, 4096).contains("scaled_per_second, at most 100,000"));
    }
    for (from, compare_to) in [(300, "previous".to_owned()), (540, format!("{0}..{1}", at(0), at(120)))] {
        let compared = ask(folder.path(), &Query { compare_to, ..query("test_syscalls", from, 600) }, 600);
        assert_eq!(table(&compared).rows.len(), 0, "nothing has changed: {:?}", table(&compared));
        assert_eq!(table(&compared).rows_total, 1);
        assert!(compared.notes.iter().all(|note| note.contains("estimates") || note.contains("not running")));
    }
}

fn at(second: i64) -> String {
    history::range::stamp(START + second)
}

#[test]
fn what_had_no_values_before_is_not_said_to_have_been_0() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let second =
        |n: i64| tick(n, if n > 600 { vec![latencies("sda", &[5000]), level("sda", 7.0)] } else { Vec::new() });
    keep(&mut keeper, [tick(0, vec![latencies("sdb", &[1]), level("sdb", 1.0)])]);
    keep(&mut keeper, (1..=1200).map(second));
    let compared = ask(folder.path(), &Query { compare_to: "previous".into(), ..query("", 600, 1200) }, 1200);
    let rows: Vec<_> = table(&compared).rows.iter().map(|row| (&row["metric"], &row["measure"])).collect();
    assert_eq!(rows, [(&json!("test_latency_ns"), &json!("per_second"))]);
}

#[test]
fn windows_that_are_compared_have_no_second_in_common_and_are_shown() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=2384).map(|n| tick(n, vec![calls("a", "user", if n == 1470 { 9999 } else { 1 })])));
    let compared =
        ask(folder.path(), &Query { compare_to: "previous".into(), ..query("test_calls", 1484, 2384) }, 2384);
    let (window, other) = (compared.window.clone().unwrap(), compared.compared_with.clone().unwrap());
    assert_eq!(other.end.as_deref(), Some(window.start.as_str()));
    assert!((window.seconds - other.seconds).abs() < 20.0, "{window:?} {other:?}");
    let text = history::text::answer(&compared, 4096);
    assert!(text.contains(&format!("compared with {} to {}", other.start, window.start)), "{text}");
    let nothing = ask(folder.path(), &Query { compare_to: at(-5000), ..query("test_calls", 1484, 2384) }, 2384);
    assert!(history::text::answer(&nothing, 4096).contains("nothing could be compared"));
}

#[test]
fn all_metrics_are_of_the_minute_that_is_said() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=157).map(|n| tick(n, vec![calls("a", "user", if n > 97 { 3 } else { 1000 })])));
    let answer = ask(folder.path(), &Query::default(), 157);
    assert_eq!(answer.window.as_ref().unwrap().seconds as i64, 60);
    assert_eq!(row(&answer, "metric", "test_calls")["value"], 3.0);
}

#[test]
fn what_does_not_fit_is_said_be_it_rows_or_coverage() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=60).map(|n| tick(n, vec![calls("a", "user", 3)])));
    let answer = ask(folder.path(), &query("test_calls", -600, 60), 60);
    assert!(!answer.coverage.is_empty());
    let fitted = history::fit(answer, 300);
    assert!(fitted.coverage.is_empty() && fitted.notes.last().unwrap().contains("(coverage)"), "{:?}", fitted.notes);
}

#[test]
fn no_step_is_no_length_and_nothing_recorded_is_not_less_than_nothing() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=60).map(|n| tick(n, vec![calls("a", "user", 3)])));
    let none = history::ask_at(folder.path(), &Query { step: "0s".into(), ..query("test_calls", 0, 60) }, START + 60);
    assert!(none.unwrap_err().to_string().contains("1s or longer"));
    let answer = ask(folder.path(), &query("test_calls", -900, -100), 60);
    let text = history::text::answer(&answer, 4096);
    assert!(
        text.contains(": 0 of 800 s recorded")
            && serde_json::to_string(&answer).unwrap().contains("\"recorded_seconds\":0.0"),
        "{text}"
    );
}

#[test]
fn there_is_one_writer() {
    let folder = folder();
    let keeper = keeper(folder.path());
    let second = Keeper::open(&place::file(folder.path()), limits());
    assert!(matches!(second, Err(OpenError::Taken(_))), "{second:?}");
    drop(keeper);
    self::keeper(folder.path());
}

/// A daemon must begin however often somebody looks whether one runs.
#[test]
fn who_looks_whether_it_is_recorded_keeps_nobody_from_beginning() {
    let folder = folder();
    let file = place::file(folder.path());
    drop(keeper(folder.path()));
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    store::is_recorded(&file);
                }
            });
        }
        let begun: Vec<bool> = (0..50).map(|_| Keeper::open(&file, limits()).is_ok()).collect();
        let seen = Keeper::open(&file, limits()).map(|_keeper| store::is_recorded(&file));
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(begun.iter().all(|begun| *begun), "{begun:?}");
        assert!(seen.unwrap() && !store::is_recorded(&file));
    });
}

fn sql(folder: &Path, sql: &str) -> Result<Answer, HistoryError> {
    history::ask_at(folder, &Query { sql: sql.into(), ..Query::default() }, START + 60)
}

#[test]
fn the_views_say_what_the_answers_say() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let second = |n: i64| tick(n, vec![calls("a", "user", 3), level("sda", 2.5), latencies("sda", &[100, 100_000])]);
    keep(&mut keeper, (1..=130).map(second));
    let one = |text: &str| {
        let answer = sql(folder.path(), text).unwrap();
        table(&answer).rows[0].values().next().unwrap().clone()
    };
    assert_eq!(one("SELECT sum(amount) FROM sums WHERE metric = 'test_calls' AND step = 1"), 390);
    assert_eq!(one("SELECT sum(amount) FROM sums WHERE metric = 'test_calls' AND step = 60"), 360);
    assert_eq!(
        one("SELECT sum(amount) + 30 FROM sums WHERE metric = 'test_calls' AND step = 10 AND labels ->> 'comm' = 'a'"),
        390
    );
    assert_eq!(one("SELECT average FROM gauges WHERE metric = 'test_level' AND step = 60"), 2.5);
    assert_eq!(one("SELECT count FROM distributions WHERE step = 60 ORDER BY t LIMIT 1"), 120);
    assert_eq!(one("SELECT sum(count) FROM buckets WHERE step = 60 AND low <= 100 AND high > 100"), 120);
    assert_eq!(one("SELECT sum(seconds) FROM coverage WHERE step = 60 AND \"group\" = 'cpu' AND why = ''"), 120.0);
    assert_eq!(one("SELECT count(*) FROM marks WHERE kind = 'start'"), 1);
    assert_eq!(one("SELECT count(*) FROM metrics WHERE metric LIKE 'test%'"), 3);
    assert_eq!(one("WITH s AS (SELECT t, amount FROM sums WHERE step = 1) SELECT count(*) FROM s WHERE t >= 0"), 390);
    // Nothing of the view's columns is taken.
    assert_eq!(one("SELECT count(*) FROM Marks"), 1);
    assert_eq!(one("SELECT 7 FROM metrics"), 7);
    assert_eq!(one("SELECT count(*) FROM (SELECT kind FROM events)"), 0);
    for view in ["metrics", "samples", "sums", "gauges", "distributions", "buckets", "coverage", "events"] {
        assert!(one(&format!("SELECT count(*) FROM {view}")).as_u64().unwrap() > 0 || view == "events", "{view}");
    }
    let text = history::text::answer(&sql(folder.path(), "SELECT max(t) AS t FROM sums WHERE step = 1").unwrap(), 4096);
    assert!(text.contains(&(START + 129).to_string()), "{text}");
}

#[test]
fn sql_can_neither_write_nor_leave_nor_run_for_ever() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=60).map(|n| tick(n, vec![calls("a", "user", 3)])));
    let other = folder.path().join("other.db");
    std::fs::write(&other, "").unwrap();
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    let attach = format!("ATTACH '{}' AS other", other.display());
    let attacks = [
        "DELETE FROM kept",
        "INSERT INTO meta VALUES ('a', 1)",
        "UPDATE tick SET t = 0",
        "WITH a AS (SELECT 1) DELETE FROM tick",
        "INSERT INTO meta VALUES ('a', 1) RETURNING *",
        "DROP TABLE tick",
        "CREATE TABLE a (b)",
        "CREATE TEMP TABLE a (b)",
        "CREATE TEMP VIEW sums AS SELECT * FROM tick",
        "CREATE TEMP TRIGGER a AFTER INSERT ON tick BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE a USING fts5(b)",
        "ALTER TABLE tick RENAME TO tock",
        "PRAGMA user_version = 5",
        "PRAGMA user_version",
        "PRAGMA query_only = 0",
        "PRAGMA writable_schema = 1",
        "PRAGMA journal_mode = delete",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "SELECT * FROM pragma_user_version",
        "SELECT * FROM pragma_journal_mode('delete')",
        &attach,
        "DETACH main",
        "VACUUM",
        "VACUUM INTO '/dev/shm/mcptrace-stolen.db'",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "BEGIN EXCLUSIVE",
        "COMMIT",
        "SAVEPOINT a",
        "SELECT load_extension('/lib/x.so')",
        "SELECT 1; DELETE FROM tick",
        "SELECT 1; SELECT 2",
        "SELECT * FROM tick",
        "SELECT * FROM kept",
        "SELECT body FROM tier_1",
        "SELECT * FROM sqlite_schema",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM dbstat",
        "WITH sums AS (SELECT * FROM kept) SELECT * FROM sums",
        "WITH sums AS (SELECT * FROM sqlite_schema) SELECT * FROM sums",
        "WITH \"Sums\" AS MATERIALIZED (SELECT * FROM tick) SELECT * FROM sums",
        "WITH events(a, b) AS (SELECT * FROM meta) SELECT * FROM events",
        "SELECT count(*) FROM kept",
        "SELECT count(*) FROM executions",
        "SELECT count(*) FROM meta",
        "SELECT count(*) FROM sqlite_schema",
        "SELECT * FROM executions",
        "SELECT (SELECT max(seq) FROM tick) FROM sums",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('/dev/shm/mcptrace-stolen', 'x')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT zeroblob(1000000000)",
        "SELECT printf('%.*c', 1000000000, 'x')",
        "SELECT * FROM sums WHERE",
        "",
        "-- nothing",
        "\0SELECT 1",
    ];
    for attack in attacks.iter().filter(|attack| !attack.is_empty()) {
        let error = sql(folder.path(), attack).map(|answer| format!("{answer:?}")).unwrap_err();
        assert!(matches!(error, HistoryError::Sql(_)), "{attack}: {error}");
    }
    let endless = [
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r ORDER BY n DESC",
        "WITH RECURSIVE r(n) AS (SELECT randomblob(1000) UNION ALL SELECT randomblob(1000) FROM r) SELECT n FROM r ORDER BY n",
        "SELECT count(*) FROM samples a, samples b, samples c, samples d, samples e",
        "SELECT group_concat(a.labels || b.labels || c.labels || d.labels) FROM samples a, samples b, samples c, samples d",
    ];
    for attack in endless {
        let begun = std::time::Instant::now();
        let error = sql(folder.path(), attack).map(|answer| format!("{answer:?}")).unwrap_err();
        assert!(error.to_string().contains("narrow it") || error.to_string().contains("too big"), "{attack}: {error}");
        assert!(begun.elapsed().as_secs() < 10, "{attack}: {:?}", begun.elapsed());
    }
    let many = sql(
        folder.path(),
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 5000) SELECT n FROM r",
    )
    .unwrap();
    assert!(table(&many).rows.len() <= 1000 && many.notes.iter().any(|note| note.contains("more rows")));
    let large =
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 900) SELECT hex(randomblob(3000)) FROM r";
    let large = sql(folder.path(), large).unwrap();
    assert!(serde_json::to_string(&large).unwrap().len() < 3 << 20);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before, "no file more");
    assert!(!Path::new("/dev/shm/mcptrace-stolen.db").exists());
    // Whoever is attacked goes on.
    keep(&mut keeper, (61..=62).map(|n| tick(n, vec![calls("a", "user", 3)])));
    let answer = ask(folder.path(), &query("test_calls", 0, 62), 62);
    assert_eq!(total(&answer), 186);
}

/// Runs a process that writes from a second on, kills it after so long, and gives the last second that it said it had handed over.
fn write_and_kill(folder: &Path, first: i64, after: Duration) -> i64 {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_history_writer"));
    writer.arg(folder).arg(first.to_string()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let output = writer.stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).last());
    std::thread::sleep(after);
    writer.kill().unwrap();
    writer.wait().unwrap();
    reader.join().unwrap().map_or(first - 1, |last| last.parse().unwrap())
}

#[test]
fn a_killed_writer_loses_nothing_that_it_had_handed_over() {
    let folder = folder();
    keep(&mut keeper(folder.path()), [tick(0, vec![calls("a", "user", 1)])]);
    let mut next = 1;
    for round in 0..25_u64 {
        // Whoever is killed at any moment has said at most one second less than it has written.
        let last = write_and_kill(folder.path(), next, Duration::from_millis(20 + round * 23 % 170));
        let mut keeper = keeper(folder.path());
        let answer =
            ask(folder.path(), &Query { step: "1s".into(), ..query("test_calls", last - 500, last + 5) }, last + 5);
        let rates =
            answer.points.first().map(|points| points["per_second"].as_array().unwrap().clone()).unwrap_or_default();
        if last >= next {
            assert_eq!(rates[499].as_f64(), Some(1.0), "round {round}: second {last} of {next}..: {rates:?}");
        }
        // The next process begins two seconds later, so that nothing is written twice.
        next = last + 3;
        keep(&mut keeper, [tick(next - 1, vec![calls("a", "user", 1)])]);
        drop(keeper);
    }
    assert!(next > 500, "{next}: the writer hardly wrote");
    // In parts, because an answer has a bounded number of steps, and a quick machine writes many seconds.
    let whole = |step: &str| -> u64 {
        let parts = (0..next).step_by(12_000).map(|from| query("test_calls", from, next.min(from + 12_000)));
        parts.map(|part| total(&ask(folder.path(), &Query { step: step.into(), ..part }, next))).sum()
    };
    let (fine, coarse) = (whole("10s"), whole("60s"));
    assert_eq!(fine, coarse, "both tiers hold the same ticks");
    assert!(fine as i64 >= next - 1 - 25 && fine as i64 <= next + 1, "{fine} of {next}");
    let checked = rusqlite_check(folder.path());
    assert_eq!(checked, "ok");
}

fn rusqlite_check(folder: &Path) -> String {
    let connection = rusqlite::Connection::open(place::file(folder)).unwrap();
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

/// A file system in memory of so many megabytes, which is unmounted with it.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(megabytes: u64) -> Self {
        let folder = folder();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.unwrap().success(), "needs root to mount a small file system");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_the_recording_and_nothing_else() {
    let disk = SmallDisk::new(8);
    let folder = disk.0.path();
    let mut keeper = keeper(folder);
    keep(&mut keeper, (1..=100).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let ballast = folder.join("ballast");
    let filled = std::fs::write(&ballast, vec![1; 16 << 20]);
    assert!(filled.is_err(), "the disk is full");
    for n in 101..=160 {
        keeper.keep(&tick(n, vec![calls("a", "user", 1), latencies("sda", &[n as u64; 50])]));
    }
    let State::Stopped { reason, message, since } = keeper.state().clone() else { panic!("{:?}", keeper.state()) };
    assert_eq!((reason, since.len()), (Reason::DiskFull, 24), "{message}");
    let answer = ask(folder, &query("test_calls", 0, 100), 160);
    assert_eq!(total(&answer), 100, "what was recorded can be read");
    std::fs::remove_file(&ballast).unwrap();
    keep(&mut keeper, (161..=200).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let answer = ask(folder, &Query { step: "10s".into(), ..query("test_calls", 0, 200) }, 200);
    assert!((140..160).contains(&total(&answer)), "{}", total(&answer));
    let marks = sql(folder, "SELECT kind, seconds FROM marks WHERE kind = 'disk_full'").unwrap();
    assert_eq!(table(&marks).rows.len(), 1, "{marks:?}");
}

/// What stops the recording passes, be it before the first file is made.
#[test]
fn a_folder_that_takes_no_file_at_first_is_waited_for() {
    let disk = SmallDisk::new(8);
    let folder = disk.0.path();
    let remount = |options: &str| {
        let done = Command::new("mount").args(["-o", options]).arg(folder).status();
        assert!(done.unwrap().success(), "{options}");
    };
    remount("remount,ro");
    let file = place::file(folder);
    let mut keeper = Keeper::open(&file, limits()).unwrap();
    keeper.keep(&tick(1, vec![calls("a", "user", 1)]));
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::ReadOnly, .. }), "{:?}", keeper.state());
    assert!(keeper.trouble().unwrap().1.contains("Read-only"), "{:?}", keeper.trouble());
    remount("remount,rw");
    keep(&mut keeper, (2..=9).map(|n| tick(n, vec![calls("a", "user", 1)])));
    assert!(store::is_recorded(&file));
    assert_eq!(total(&ask(folder, &query("test_calls", 0, 10), 10)), 8);
    // Nor has a lock file any room.
    drop(keeper);
    std::fs::remove_file(place::lock_file(&file)).unwrap();
    remount("remount,nr_inodes=20");
    let files = (0..20).take_while(|n| std::fs::write(folder.join(format!("file-{n}")), "").is_ok()).count();
    assert!(files < 20, "there is no room for a file");
    let mut keeper = Keeper::open(&file, limits()).unwrap();
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::DiskFull, .. }), "{:?}", keeper.state());
    let second = Keeper::open(Path::new("/dev/null/history.db"), limits());
    assert!(matches!(second, Err(OpenError::Folder { .. })), "what does not pass ends the start: {second:?}");
    (0..files).for_each(|n| std::fs::remove_file(folder.join(format!("file-{n}"))).unwrap());
    keep(&mut keeper, [tick(11, vec![calls("a", "user", 1)])]);
}

#[test]
fn a_file_that_is_removed_or_replaced_is_begun_anew_and_that_is_said() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let second = |n: i64| tick(now - START + n, vec![calls("a", "user", 1)]);
    keep(&mut keeper, (-5..=0).map(second));
    std::thread::sleep(Duration::from_millis(2100));
    std::fs::remove_file(&file).unwrap();
    keeper.keep(&second(1));
    let (reason, message, since) = keeper.trouble().unwrap();
    assert!(reason == Reason::Removed && message.contains("removed or replaced") && since > 0, "{message}");
    keep(&mut keeper, (2..=4).map(second));
    let seconds = |kind: &str| {
        let marks = sql(folder.path(), &format!("SELECT kind, seconds FROM marks WHERE kind = '{kind}'")).unwrap();
        table(&marks).rows.first().map(|row| row["seconds"].as_f64().unwrap())
    };
    assert!(seconds("removed").is_some_and(|seconds| seconds > 2.0), "{:?}", seconds("removed"));
    let from = now - START;
    assert_eq!(total(&ask(folder.path(), &query("test_calls", from, from + 5), from + 4)), 3);
    // Another file in its place is as good as none.
    let other = folder.path().join("other.db");
    std::fs::write(&other, "").unwrap();
    std::fs::rename(&other, &file).unwrap();
    keeper.keep(&second(5));
    assert_eq!(keeper.trouble().map(|(reason, ..)| reason), Some(Reason::Removed));
    keep(&mut keeper, (6..=7).map(second));
}

#[test]
fn while_nothing_can_be_kept_the_reason_is_that_of_the_recorder() {
    let disk = SmallDisk::new(8);
    let folder = disk.0.path();
    let mut keeper = keeper(folder);
    keep(&mut keeper, (1..=100).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let stopped_ns = Some((START + 100) as u64 * SECOND);
    let error = Some("31 MB are left".to_owned());
    status::write(folder, &Status { error, stopped_by: Some("disk_full".into()), stopped_ns, ..Status::default() })
        .unwrap();
    let answer = ask(folder, &query("test_calls", 0, 160), 160);
    assert_eq!(missing(&answer.coverage[0]), [("disk_full", 60.0)]);
    assert!(answer.notes.iter().any(|note| note.contains("31 MB are left")), "{:?}", answer.notes);
}

#[test]
fn room_that_is_for_others_is_left_to_them() {
    let disk = SmallDisk::new(8);
    let file = place::file(disk.0.path());
    let keeper = Keeper::open(&file, Limits { spare_bytes: 9 << 20, ..limits() }).unwrap();
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::DiskFull, .. }), "{:?}", keeper.state());
    assert!(!file.exists());
}

#[test]
fn a_damaged_file_is_set_aside_and_a_new_one_begun() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=2000).map(|n| tick(n, vec![calls("a", "user", 1)])));
    keeper.close();
    let mut bytes = std::fs::read(&file).unwrap();
    for at in (4096..bytes.len()).step_by(3 * 4096) {
        bytes[at..at + 64].fill(0xa5);
    }
    std::fs::write(&file, &bytes).unwrap();
    // Who only reads gets an error or what is left, and no panic.
    for step in ["1s", "10s", "60s"] {
        let _ =
            history::ask_at(folder.path(), &Query { step: step.into(), ..query("test_calls", 0, 2000) }, START + 2000);
    }
    let mut keeper = self::keeper(folder.path());
    keep(&mut keeper, (2001..=2010).map(|n| tick(n, vec![calls("a", "user", 1)])));
    assert_eq!(total(&ask(folder.path(), &query("test_calls", 1990, 2010), 2010)), 10);
    let aside = folder.path().join("history.db.damaged");
    assert_eq!(std::fs::read(&aside).unwrap(), bytes, "the damaged file is kept as it was");
    let marks = sql(folder.path(), "SELECT text FROM marks WHERE kind = 'set_aside'").unwrap();
    assert!(table(&marks).rows[0]["text"].as_str().unwrap().contains("history.db.damaged"), "{marks:?}");
    let marks = sql(folder.path(), "SELECT seconds FROM marks WHERE kind = 'set_aside'").unwrap();
    assert!(table(&marks).rows[0]["seconds"].as_f64().unwrap() > 0.0, "as long as there was a file: {marks:?}");
}

#[test]
fn a_file_of_noise_or_of_somebody_else_never_ends_the_recorder() {
    let folder = folder();
    let file = place::file(folder.path());
    std::fs::write(&file, vec![0x5a; 70_000]).unwrap();
    keep(&mut keeper(folder.path()), [tick(1, vec![calls("a", "user", 1)])]);
    assert!(folder.path().join("history.db.damaged").exists());
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.path().join(format!("history.db{suffix}")));
    }
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE precious (a); INSERT INTO precious VALUES (1)").unwrap();
    drop(other);
    let mut keeper = Keeper::open(&file, limits()).unwrap();
    keeper.keep(&tick(1, vec![calls("a", "user", 1)]));
    assert!(matches!(keeper.state(), State::Stopped { reason: Reason::Foreign, .. }), "{:?}", keeper.state());
    let other = rusqlite::Connection::open(&file).unwrap();
    let rows: i64 = other.query_row("SELECT count(*) FROM precious", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1, "it is left alone");
}

#[test]
fn damage_while_it_records_is_found_and_mended() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=1000).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let size = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, vec![0xa5; size as usize]).unwrap();
    for n in 1001..=4500 {
        keeper.keep(&tick(n, vec![calls("a", "user", 1)]));
    }
    assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    assert!(folder.path().join("history.db.damaged").exists());
    assert_eq!(total(&ask(folder.path(), &query("test_calls", 4400, 4500), 4500)), 100);
}

#[test]
fn the_file_keeps_to_its_size_and_the_present_to_its_detail() {
    let folder = folder();
    let file = place::file(folder.path());
    let cap = 4 << 20;
    let mut keeper = Keeper::open(&file, Limits { bytes: cap, ..limits() }).unwrap();
    let second = |n: i64| {
        let names: Vec<String> = (0..40).map(|one| format!("process-{one}")).collect();
        let mut samples: Vec<_> = names.iter().map(|name| calls(name, "user", n as u64 * 1000)).collect();
        samples.push(latencies("sda", &(0..200).map(|value| value * value * 1000).collect::<Vec<u64>>()));
        tick(n, samples)
    };
    keep(&mut keeper, (1..=9000).map(second));
    let size = std::fs::metadata(&file).unwrap().len();
    assert!(size <= cap, "{size}");
    assert!(size > cap / 2, "{size}: the test fills it");
    let answer = ask(folder.path(), &Query { step: "1s".into(), ..query("test_calls", 8900, 9000) }, 9000);
    assert_eq!(answer.step_seconds, Some(1), "the last minutes are there by the second");
    assert_eq!(answer.coverage[0].recorded_seconds as i64, 100);
    let early = ask(folder.path(), &query("test_calls", 60, 1200), 9000);
    assert_eq!(early.coverage[0].recorded_seconds as i64, 1140, "the first minutes are there, but not by the second");
    assert!(early.step_seconds >= Some(10), "{:?}", early.step_seconds);
}

#[test]
fn what_changed_most_comes_first() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let second = |n: i64| {
        let late = n > 600;
        let wobble = (n * 7919 % 13) as u64;
        tick(
            n,
            vec![
                calls("steady", "user", 1000 + wobble),
                calls("noisy", "user", (n * 7919 % 601) as u64 * 3),
                calls("culprit", "user", if late { 800 } else { 20 } + wobble),
                calls(if late { "new" } else { "gone" }, "user", 3),
                level("sda", if late { 51.0 } else { 50.0 } + wobble as f64),
                latencies("sda", &[if late { 9_000_000 } else { 100_000 } + wobble; 20]),
            ],
        )
    };
    keep(&mut keeper, (1..=1200).map(second));
    let compared =
        |metric: &str, to: &str| ask(folder.path(), &Query { compare_to: to.into(), ..query(metric, 600, 1200) }, 1200);
    let one = compared("test_calls", "previous");
    let first = &table(&one).rows[0];
    assert_eq!(first["labels"], "comm=culprit,mode=user", "{:?}", table(&one));
    assert!((first["factor"].as_f64().unwrap() - 806.0 / 26.0).abs() < 1.0, "{first:?}");
    let all = compared("", &history::range::stamp(START));
    let rows = &table(&all).rows;
    assert_eq!(
        (rows[0]["metric"].as_str(), rows[0]["measure"].as_str()),
        (Some("test_latency_ns"), Some("p99")),
        "{rows:?}"
    );
    assert_eq!(rows[1]["labels"], "comm=culprit,mode=user", "{rows:?}");
    let named = |comm: &str| rows.iter().any(|row| row["labels"].as_str().unwrap().contains(comm));
    assert!(!named("steady") && !named("noisy"), "{rows:?}");
}

/// A thousand control groups in an hour, each with a process of its own for three seconds; there are only 300 process ids.
#[test]
fn short_groups_and_process_ids_that_are_used_again_stay_apart() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let metric = metrics::metric("cpu_process_ns").unwrap();
    let second = |n: i64| {
        let group = n * 1000 / 3600;
        let pid = (300 + group % 300).to_string();
        let labels = [&*pid, &format!("job-{}", group % 7), &format!("/jobs/{group:064x}")].map(str::to_owned);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let others = ["others", "", ""];
        let amount = |ns| tick::Value::Sum(ns);
        tick(
            n,
            vec![
                mcptrace_tests::simulated::sample(metric, &labels, amount(1_000_000)),
                mcptrace_tests::simulated::sample(metric, &others, amount(7)),
            ],
        )
    };
    keep(&mut keeper, (1..=3600).map(second));
    let grouped = |by: &str, filter: &str, from: i64| {
        let query =
            Query { group_by: by.into(), filter: filter.into(), top: 200, ..query("cpu_process_ns", from, 3600) };
        ask(folder.path(), &query, 3600)
    };
    let all = grouped("none", "", 0);
    assert_eq!(total(&all), 3600 * 1_000_007, "nothing is lost among them");
    assert_eq!(table(&grouped("cgroup", "", 0)).rows_total, 1002, "and each of the groups has its own");
    assert_eq!(total(&grouped("comm", "comm=job-3", 0)) % 1_000_000, 0);
    // Three and four processes have had this id, each in a group of its own.
    let one = grouped("", "pid=350", 0);
    assert_eq!(table(&one).rows_total, 4, "{:?}", table(&one));
    let groups: std::collections::BTreeSet<_> = table(&one).rows.iter().map(|row| row["cgroup"].to_string()).collect();
    assert_eq!(groups.len(), 4);
    let lately = grouped("", "pid=350", 3000);
    assert!(table(&lately).rows_total < 2, "{:?}", table(&lately));
}

/// CPUs come and go: a level says how many there were, and rates are by time and not by CPU.
#[test]
fn cpus_that_go_offline_and_come_back_are_seen_and_rates_stay_right() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let [mode, online] = ["cpu_mode_ns", "cpus_online"].map(|name| metrics::metric(name).unwrap());
    let second = |n: i64| {
        let cpus = if (100..200).contains(&n) { 1 } else { 2 };
        let sample = mcptrace_tests::simulated::sample;
        let [idle, user] = ["idle", "user"].map(|name| sample(mode, &[name], tick::Value::Sum(cpus * 500_000_000)));
        tick(n, vec![idle, user, sample(online, &[], tick::Value::Gauge(cpus as f64))])
    };
    keep(&mut keeper, (1..=300).map(second));
    let cpus = ask(folder.path(), &query("cpus_online", 0, 300), 300);
    let row = &table(&cpus).rows[0];
    assert_eq!((row["least"].as_f64(), row["greatest"].as_f64()), (Some(1.0), Some(2.0)));
    for (from, to, rate) in [(0, 98, 1e9), (101, 198, 5e8), (201, 300, 1e9)] {
        let user = ask(folder.path(), &Query { filter: "mode=user".into(), ..query("cpu_mode_ns", from, to) }, 300);
        let found = table(&user).rows[0]["per_second"].as_f64().unwrap();
        assert!((found - rate).abs() < rate / 50.0, "{found} from {from} to {to}");
    }
}

#[test]
fn triage_answers_out_of_the_last_minute_and_says_so() {
    use mcptrace::triage::{Focus, Source, finding::Kind, recorded};
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let sample = |name: &str, labels: &[&str], sum: u64| {
        mcptrace_tests::simulated::sample(metrics::metric(name).unwrap(), labels, tick::Value::Sum(sum))
    };
    let second = |n: i64| {
        // Half an hour of calm; then a program that takes both CPUs, while others wait.
        let busy = if n > 1800 { 1_960_000_000 } else { 40_000_000 };
        let samples = vec![
            sample("cpu_mode_ns", &["user"], busy),
            sample("cpu_mode_ns", &["idle"], 2_000_000_000 - busy),
            sample("cpu_process_ns", &["4711", "culprit", "/system.slice/x"], busy * 9 / 10),
            sample("cpu_process_ns", &["others", "", ""], busy / 10),
            sample("pressure_some_ns", &["cpu"], busy * 48 / 100),
        ];
        let coverage = metrics::GROUPS.iter().map(|group| tick::Coverage { group, share: 1.0, why: None });
        Tick { coverage: coverage.collect(), ..tick(n, samples) }
    };
    let look = |second: i64, focus| recorded::look(folder.path(), focus, START + second).unwrap();
    keep(&mut keeper, (1..=2).map(second));
    assert_eq!(look(2, None), None, "two seconds say nothing");
    keep(&mut keeper, (3..=1800).map(second));
    let calm = look(1800, None).unwrap();
    assert!(calm.findings.is_empty() && calm.looked_at.len() >= 5, "{calm:?}");
    keep(&mut keeper, (1801..=1900).map(second));
    let found = look(1900, None).unwrap();
    assert_eq!((found.source, found.window.seconds), (Source::Recorder, 60.0));
    let first = &found.findings[0];
    assert_eq!((first.kind, first.who[0].pid, &*first.who[0].comm), (Kind::CpuSaturation, Some(4711), "culprit"));
    assert!((first.who[0].value - 176.0).abs() < 1.0, "{:?} % of one CPU", first.who[0].value);
    assert!(mcptrace::triage::text(&found).contains(" as recorded"), "{}", mcptrace::triage::text(&found));
    assert!(look(1900, Some(Focus::Disk)).unwrap().findings.is_empty());
    assert_eq!(look(1960, None), None, "what is a minute old is not now");
    drop(keeper);
    assert_eq!(look(1900, None), None, "nobody records any more");
}

/// A second of a busy host, of the metrics that the recorder has.
fn busy(n: i64) -> Tick {
    let seed = n as u64;
    let random = |salt: u64| {
        (seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt.wrapping_mul(1_442_695_040_888_963_407))) >> 33
    };
    // Three powers of two wide, as latencies of one kind are for the most part, and now and then a slow one.
    let values = |salt: u64, count: u64| -> Vec<u64> {
        let usual: u64 = 1 << (9 + salt % 11);
        let slow = usual << (3 + random(salt) % 6);
        (0..count).map(|one| usual + random(salt + one) % (usual * 7)).chain([slow]).collect()
    };
    let mut samples = Vec::new();
    for metric in METRICS {
        let series: Vec<Vec<String>> = match metric.name {
            // Forty that stay, and a container that lives for a moment: 1,000 an hour.
            "cpu_process_ns" => (0..40)
                .map(|one| {
                    [format!("{}", 1000 + one), format!("worker-{}", one % 13), "/system.slice/app.service".into()]
                })
                .chain([[format!("{}", 100_000 + n / 4), "sh".into(), format!("/docker/{:064x}", n / 4)]])
                .map(Into::into)
                .collect(),
            "interrupts" | "interrupt_ns" => (0..25).map(|one| vec!["hard".into(), format!("eth0-{one}")]).collect(),
            // A duty cycle: each tenth second.
            "syscall_ns" | "syscalls" | "syscall_errors" if n % 10 != 0 => Vec::new(),
            "syscall_ns" | "syscalls" | "syscall_errors" => (0..60).map(|one| vec![format!("call{one}")]).collect(),
            _ => (0..if metric.labels.is_empty() { 1 } else { 4 })
                .map(|one| metric.labels.iter().map(|label| format!("{label}{one}")).collect())
                .collect(),
        };
        for (at, labels) in series.iter().enumerate() {
            let salt = at as u64 * 1000 + metric.name.len() as u64;
            let value = match metric.kind {
                tick::Kind::Sum => tick::Value::Sum(random(salt) % 30_000_000),
                tick::Kind::Gauge => tick::Value::Gauge(random(salt) as f64),
                tick::Kind::Distribution => {
                    tick::Value::Distribution(Box::new(mcptrace_tests::simulated::distribution(&values(salt, 60))))
                }
            };
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            samples.push(mcptrace_tests::simulated::sample(metric, &labels, value));
        }
    }
    let coverage = metrics::GROUPS.iter().map(|group| tick::Coverage { group, share: 1.0, why: None });
    Tick { coverage: coverage.collect(), ..tick(n, samples) }
}

/// A whole day where the program is optimised, else two hours and what they come to in a day.
#[test]
fn a_day_is_small_and_a_question_about_it_quick() {
    let folder = folder();
    let file = place::file(folder.path());
    let mut keeper = keeper(folder.path());
    let size = || std::fs::metadata(&file).unwrap().len();
    let hours = std::env::var("HISTORY_HOURS").ok().and_then(|hours| hours.parse().ok());
    let hours: i64 = hours.unwrap_or(if cfg!(debug_assertions) { 2 } else { 24 });
    let begun = std::time::Instant::now();
    keep(&mut keeper, (1..=3600).map(busy));
    let first = size();
    keep(&mut keeper, (3601..=hours * 3600).map(busy));
    let each = begun.elapsed() / (hours * 3600) as u32;
    let day = if hours == 24 { size() } else { first + 23 * (size() - first) };
    let end = hours * 3600;
    let mut longest = Duration::ZERO;
    for metric in ["cpu_process_ns", "runq_latency_ns", "syscall_ns", "memory_available_bytes"] {
        let begun = std::time::Instant::now();
        let answer = ask(
            folder.path(),
            &Query {
                group_by: if metric == "cpu_process_ns" { "comm".into() } else { String::new() },
                ..query(metric, 0, end)
            },
            end,
        );
        println!("{metric}: {:?} for {hours} h, {} groups", begun.elapsed(), table(&answer).rows_total);
        longest = longest.max(begun.elapsed());
        assert_eq!(answer.coverage[0].recorded_seconds as i64, end);
    }
    println!("a tick: {each:?} (with making it up); a day: {} MB; a question: {longest:?}", day >> 20);
    assert!(day < 200 << 20, "{day}");
    if hours == 24 {
        assert!(longest < Duration::from_secs(2), "{longest:?}: far from the 200 ms that are the aim");
    }
}

#[test]
fn results_are_kept_for_their_owner_and_bounded() {
    let folder = folder();
    assert!(Kept::open(folder.path()).is_none(), "without a history nothing is kept");
    drop(keeper(folder.path()));
    let envelope = |n: usize, bytes: usize| -> Envelope {
        let text = json!({
            "execution_id": format!("exec_{n:04}"), "kind": "probe", "probe": "file_opens", "status": "completed",
            "window": {"start": "2026-01-02T03:04:05.678Z", "seconds": 5.0}, "loss": {"dropped": {}}, "notes": ["x".repeat(bytes)] });
        serde_json::from_value(text).unwrap()
    };
    let mut kept = Kept::open(folder.path()).unwrap();
    // The recorder writes meanwhile.
    let mut keeper = keeper(folder.path());
    for n in 0..300 {
        assert!(kept.keep("me", &envelope(n, 100)).unwrap());
        keeper.keep(&tick(n as i64 + 1, vec![calls("a", "user", 1)]));
    }
    assert!(matches!(keeper.state(), State::Recording { .. }), "{:?}", keeper.state());
    drop(kept);
    let mut kept = Kept::open(folder.path()).unwrap();
    let loaded = kept.load("exec_0299").unwrap().unwrap();
    assert_eq!(loaded, ("me".to_owned(), envelope(299, 100)), "after a restart, with its owner");
    assert!(kept.load("exec_0001").unwrap().is_none(), "the oldest have gone");
    let list = kept.list().unwrap();
    assert_eq!((list.len(), &list[0].1.execution_id[..], &list[0].1.probe[..]), (256, "exec_0299", "file_opens"));
    assert!(!kept.keep("me", &envelope(1000, 5 << 20)).unwrap(), "too large");
    for n in 2000..2020 {
        kept.keep("me", &envelope(n, 3 << 20)).unwrap();
    }
    assert_eq!(kept.list().unwrap().len(), 10, "of 3 MB each");
    assert_eq!(total(&ask(folder.path(), &query("test_calls", 0, 300), 300)), 300);
}
