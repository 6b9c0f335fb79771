//! The history's answers, out of simulated seconds of known values.

use mcptrace::recorder::{
    history::{self, HistoryError, Query},
    metrics,
    tick::{self, Tick},
};
use mcptrace_tests::{
    histories::{self, ask, at, folder, keep, keeper, missing, query, row, table, total},
    simulated::{SECOND, START, SYSCALLS, calls, latencies, level, tick},
};
use serde_json::{Value, json};

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
fn a_history_that_has_just_begun_says_so() {
    let folder = folder();
    let _keeper = keeper(folder.path());
    for metric in ["", "cpu_process_ns"] {
        let error =
            history::ask_at(folder.path(), &Query { metric: metric.into(), ..Query::default() }, START).unwrap_err();
        assert_eq!((error.category(), error.did_you_mean()), ("no_history", None), "{error}");
        assert!(error.to_string().contains("just begun"), "{error}");
    }
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
fn steps_and_ends_are_those_that_are_asked_for_where_they_are_kept() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=1000).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let of = |step: &str, from: i64, to: i64| {
        let answer = ask(folder.path(), &Query { step: step.into(), ..query("test_calls", from, to) }, 1000);
        let older = answer.notes.iter().any(|note| note.contains("what is older"));
        (answer.step_seconds.unwrap(), answer.window.unwrap().seconds as i64, older)
    };
    assert_eq!(of("15s", 97, 997), (15, 900, false));
    assert_eq!(of("1h", 983, 993), (3600, 10, false), "a step is longer than what is asked about");
    let (step, seconds, older) = of("", 97, 997);
    assert!((seconds - 900).abs() < 20 && seconds / step <= 60 && !older, "{step} {seconds} {older}");
}

#[test]
fn a_condition_that_nothing_fits_is_told_with_what_there_is() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=60).map(|n| tick(n, if n < 30 { vec![calls("redis", "user", 1)] } else { Vec::new() })));
    let of = |filter: &str, from: i64| {
        let query = Query { filter: filter.into(), ..query("test_calls", from, 60) };
        history::ask_at(folder.path(), &query, START + 60)
    };
    let none = of("comm=reddis", 0).unwrap();
    assert!(
        none.notes.iter().any(|note| note.contains("comm=reddis") && note.contains("without `where`")),
        "{:?}",
        none.notes
    );
    let idle = of("comm=redis", 40).unwrap();
    assert!(idle.notes.iter().any(|note| note.contains("none of it came about")), "{:?}", idle.notes);
    assert!(of("comm=redis", 0).unwrap().notes.iter().all(|note| note.contains("not running")));
    let twice = of("mode=user,mode=system", 0).unwrap_err().to_string();
    assert!(twice.contains("`mode`") && twice.contains("once"), "{twice}");
}

#[test]
fn what_several_groups_lack_is_told_once() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(
        &mut keeper,
        (1..=60).map(|n| duty_cycle(n, 1000.0, 0.1)).map(|mut tick| {
            tick.samples.push(calls("a", "user", 1));
            tick
        }),
    );
    let compared = ask(folder.path(), &Query { compare_to: "previous".into(), ..query("", 0, 120) }, 120);
    let lacks: Vec<_> = compared.notes.iter().filter(|note| note.contains("compare with lacks")).collect();
    assert_eq!(lacks.len(), 1, "{:?}", compared.notes);
    assert!(lacks[0].contains("cpu, syscalls"), "{lacks:?}");
    let all = history::text::answer(&ask(folder.path(), &query("", -60, 60), 60), 1 << 20);
    let lines: Vec<_> = all.lines().filter(|line| line.starts_with("coverage of")).collect();
    assert_eq!(lines.len(), 1, "{all}");
    assert!(lines[0].contains("cpu, recorder, syscalls") || lines[0].contains("cpu, syscalls"), "{lines:?}");
}

#[test]
fn what_cannot_be_compared_with_is_told_what_can() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    keep(&mut keeper, (1..=60).map(|n| tick(n, vec![calls("a", "user", 1)])));
    let query = Query { compare_to: "yesterday".into(), ..query("test_calls", 0, 60) };
    let error = history::ask_at(folder.path(), &query, START + 60).unwrap_err().to_string();
    assert!(error.contains("`yesterday`") && error.contains("previous") && error.contains("FROM..TO"), "{error}");
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
    let reopened = histories::keeper(folder.path());
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

#[test]
fn what_is_always_read_has_rates_by_all_the_time_that_was_recorded() {
    let folder = folder();
    let mut keeper = keeper(folder.path());
    let faults = metrics::metric("page_faults").unwrap();
    let second = |n: i64| {
        let mut tick = duty_cycle(n, 1000.0, 0.1);
        tick.samples.push(mcptrace_tests::simulated::sample(faults, &["minor"], tick::Value::Sum(10)));
        // Files of before have no such group.
        tick.coverage.extend((n > 90).then_some(tick::Coverage { group: metrics::PROC, share: 1.0, why: None }));
        tick
    };
    keep(&mut keeper, (1..=120).map(second));
    for from in [0, 100] {
        let answer = ask(folder.path(), &query("page_faults", from, 120), 120);
        assert_eq!(table(&answer).rows[0]["per_second"], 10.0, "{answer:?}");
        assert_eq!(missing(&answer.coverage[0]), [], "{answer:?}");
    }
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
    assert!(!text.contains("in both"), "{text}");
    let both = format!("{}..{}", at(1084), at(1784));
    let both = ask(folder.path(), &Query { compare_to: both, ..query("test_calls", 1484, 2384) }, 2384);
    assert!(both.notes.iter().any(|note| note.contains(" s are in both windows")), "{:?}", both.notes);
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
    assert!(!mcptrace::triage::text(&found).contains("not judged"), "{found:?}");
    // What is not recorded cannot stand out, which is not to say that it is well.
    let without = |n: i64| {
        let mut tick = second(n);
        let groups = tick.coverage.iter_mut().filter(|one| ["syscalls", "tcp"].contains(&one.group));
        groups.for_each(|one| (one.share, one.why) = (0.0, Some("shed".into())));
        tick
    };
    keep(&mut keeper, (1901..=1960).map(without));
    let lacking = |focus| mcptrace::triage::text(&look(1960, focus).unwrap());
    assert!(lacking(None).contains("not judged: tcp, syscalls"), "{}", lacking(None));
    assert!(!lacking(Some(Focus::Cpu)).contains("not judged"), "{}", lacking(Some(Focus::Cpu)));
    assert_eq!(look(2020, None), None, "what is a minute old is not now");
    drop(keeper);
    assert_eq!(look(1960, None), None, "nobody records any more");
}
