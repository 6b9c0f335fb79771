use serde_json::{Value, json};

use super::*;

/// An envelope with these fields instead of the usual ones.
fn with(fields: Value) -> Envelope {
    let mut all = json!({
        "execution_id": "exec_1", "kind": "probe", "probe": "p", "status": "completed",
        "window": {"start": "2026-01-02T03:04:05.678Z", "end": "2026-01-02T03:04:10.678Z", "seconds": 5.0},
        "loss": {"seen": 0, "delivered": 0, "dropped": {}, "missed": 0},
    });
    let Value::Object(fields) = fields else { panic!("not an object") };
    all.as_object_mut().unwrap().extend(fields);
    serde_json::from_value(all).unwrap()
}

fn shown(fields: Value) -> String {
    envelope(&with(fields), 4096)
}

fn table(rows: u64) -> Value {
    let rows: Vec<_> = (0..rows).rev().map(|n| json!({"syscall": format!("call{n}"), "calls": n * 1000})).collect();
    json!({
        "shape": "table", "key": ["syscall"], "columns": [{"name": "calls", "unit": "calls"}],
        "rows_total": rows.len(), "rows": rows,
    })
}

#[test]
fn a_table_has_a_title_aligned_columns_and_the_sum_of_the_rest() {
    let mut report = table(3);
    report["others"] = json!({"calls": 7});
    report["rows_total"] = json!(9);
    let text = shown(json!({
        "filter": {"pid": 23}, "options": {"by": "comm", "failed_only": false}, "report": report,
        "overhead": {"ns_per_event": 92.0, "cpu_percent": 0.4, "method": "measured"},
        "notes": ["calls are counted at entry"], "more": {"rows_left": 6, "cursor": "r3"},
    }));
    assert_eq!(
        text,
        "\
p completed · 5.0 s · filter pid=23 · options by=comm · exec_1

syscall   calls
call2     2,000
call1     1,000
call0         0
(others)      7

overhead: 92 ns an event, 0.4 % of one CPU (measured)
note: calls are counted at entry
6 more rows: get_result {\"execution_id\":\"exec_1\",\"cursor\":\"r3\"}
"
    );
}

#[test]
fn loss_is_said_when_there_is_any() {
    let line = |loss: Value| {
        let text = shown(json!({"report": table(1), "loss": loss}));
        text.lines().find(|line| line.contains("lost") || line.contains("missed")).map(str::to_owned)
    };
    assert_eq!(line(json!({"seen": 1000, "delivered": 1000, "dropped": {}, "missed": 0})), None);
    assert_eq!(
        line(json!({"seen": 1000, "delivered": 988, "dropped": {"buffer_full": 12}, "missed": 3})).unwrap(),
        "lost: 12 of 1,000 seen (buffer_full 12); missed at most 3"
    );
    assert_eq!(line(json!({"dropped": {}, "missed": 3})).unwrap(), "missed at most 3");
    assert_eq!(line(json!({"dropped": {"lines": 4}})).unwrap(), "lost: 4 (lines 4)");
}

#[test]
fn a_histogram_has_percentiles_in_human_units_and_bars() {
    let text = shown(json!({"report": {
        "shape": "histogram", "unit": "ns", "key": ["device"], "relative_error": 0.0625, "series_total": 1,
        "series": [{"key": {"device": "vda"}, "count": 7, "min": 900, "max": 5000, "mean": 1234.5,
            "p50": 1100, "p90": 5000, "p99": 5000, "p999": 5000, "also": {"bytes": 4096},
            "buckets": [[896, 960, 1], [1024, 1152, 2], [1280, 1408, 2], [4608, 5120, 2]]}],
    }}));
    let hashes = |n| "#".repeat(n);
    assert_eq!(
        text,
        format!(
            "\
p completed · 5.0 s · exec_1

device  count     mean      p50      p90      p99    p99.9      max     bytes
vda         7  1.23 µs  1.10 µs  5.00 µs  5.00 µs  5.00 µs  5.00 µs  4.00 KiB

              vda  count
 512 ns – 1.02 µs      1  {}
1.02 µs – 2.05 µs      4  {}
2.05 µs – 4.10 µs      0
4.10 µs – 8.19 µs      2  {}
",
            hashes(10),
            hashes(40),
            hashes(20)
        )
    );
}

#[test]
fn events_are_one_per_line_without_empty_columns() {
    let text = shown(json!({"report": {
        "shape": "events", "rows_total": 2,
        "fields": [{"name": "time"}, {"name": "latency_ns", "unit": "ns"}, {"name": "pid"}, {"name": "path"},
            {"name": "errno"}, {"name": "dirfd"}],
        "rows": [
            {"time": "2026-01-02T03:04:05.678901Z", "latency_ns": 19096, "pid": 12345, "path": "/etc/a"},
            {"time": "2026-01-02T03:04:05.700000Z", "latency_ns": 900, "pid": 7, "path": "/b\u{1b}[2J", "errno": "ENOENT"},
        ],
    }}));
    assert_eq!(
        text,
        "\
p completed · 5.0 s · exec_1

time (UTC)       latency    pid  path         errno
03:04:05.678901  19.1 µs  12345  /etc/a       -
03:04:05.700000   900 ns      7  /b\\u{1b}[2J  ENOENT
"
    );
}

#[test]
fn a_container_is_a_column_where_there_is_one_and_a_unit_where_rows_are_of_nothing_narrower() {
    let lines = |key: Value, rows: Value| {
        let text = shown(json!({"report": {
            "shape": "table", "key": key, "columns": [{"name": "calls", "unit": "calls"}], "rows_total": 2, "rows": rows,
        }}));
        text.lines().skip(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let host = json!({"pid": 1, "comm": "sshd", "unit": "ssh.service", "calls": 7});
    let inside = json!({"pid": 23, "comm": "nginx", "container": "4f2a994f2a99", "calls": 5});
    let processes = json!(["pid", "comm", "container", "unit"]);
    assert_eq!(lines(processes.clone(), json!([host])), ["pid  comm  calls", "  1  sshd      7"]);
    assert_eq!(
        lines(processes, json!([host, inside])),
        ["pid  comm   container     calls", "  1  sshd   -                 7", " 23  nginx  4f2a994f2a99      5"]
    );
    assert_eq!(
        lines(json!(["container", "unit"]), json!([host, inside])),
        ["container     unit         calls", "-             ssh.service      7", "4f2a994f2a99  -                5"]
    );
    let fields = json!([{"name": "pid"}, {"name": "container"}, {"name": "unit"}]);
    let events =
        |row: &Value| shown(json!({"report": {"shape": "events", "rows_total": 1, "fields": fields, "rows": [row]}}));
    assert_eq!(events(&host).lines().nth(2), Some("pid"));
    assert_eq!(events(&inside).lines().nth(2), Some("pid  container"));
}

#[test]
fn nothing_recorded_says_what_was_watched() {
    let nothing = |fields: Value| shown(fields).lines().nth(2).unwrap().to_owned();
    assert_eq!(
        nothing(json!({"filter": {"comm": "nginx"}, "report": table(0)})),
        "Nothing recorded: p was attached for 5.0 s with filter comm=nginx, and no event that it looks for was seen."
    );
    assert_eq!(
        nothing(json!({"status": "running", "report": table(0)})),
        "Nothing recorded yet: p was attached for 5.0 s with no filter, and no event that it looks for was seen."
    );
    assert_eq!(nothing(json!({"kind": "script"})), "Nothing recorded: the script ran for 5.0 s and printed nothing.");
    assert_eq!(
        nothing(json!({"report": table(0), "loss": {"seen": 23, "dropped": {"map_full": 23}}})),
        "No rows, though 23 events were seen: none is part of the report."
    );
    let mut page = table(0);
    page["rows_total"] = json!(41);
    assert_eq!(nothing(json!({"report": page})), "No rows on this page: the report has 41, all of them before it.");
}

#[test]
fn a_failure_says_why_and_never_that_nothing_happened() {
    let text = shown(json!({"status": "failed", "error": "the kernel\nsaid no"}));
    assert_eq!(
        text,
        "p failed · 5.0 s · exec_1\nerror: the kernel\\u{a}said no\n\nNo result: it failed after 5.0 s.\n"
    );
}

#[test]
fn a_running_execution_names_the_next_call() {
    let text = shown(json!({"status": "running", "report": table(1)}));
    assert!(text.ends_with("still running: get_result {\"execution_id\":\"exec_1\"}\n"), "{text}");
}

#[test]
fn a_running_execution_whose_rows_are_all_shown_is_read_on_from_there() {
    let more = json!({"rows_left": 0, "cursor": "e7"});
    let text = shown(json!({"status": "running", "report": table(1), "more": more}));
    let next = "still running: get_result {\"execution_id\":\"exec_1\",\"cursor\":\"e7\"}\n";
    assert!(text.ends_with(next), "{text}");
}

#[test]
fn columns_of_words_stand_on_the_left_and_rates_of_time_and_bytes_in_their_units() {
    let text = shown(json!({"report": {
        "shape": "table", "key": ["device"],
        "columns": [{"name": "help"}, {"name": "busy", "unit": "ns/s"}, {"name": "read", "unit": "bytes/s"}],
        "rows": [
            {"device": "vda", "help": "a disk", "busy": 972_105_928.0, "read": 1_572_864.0},
            {"device": "loop0", "help": "a file that is a disk", "busy": 5.5, "read": 0.0},
        ], "rows_total": 2,
    }}));
    let expected = "\
device  help                       busy        read
vda     a disk                 972 ms/s  1.50 MiB/s
loop0   a file that is a disk  5.5 ns/s       0 B/s
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn what_does_not_fit_is_counted_and_the_cursor_comes_back_to_it() {
    let all = with(json!({"report": table(1000), "notes": ["remember"]}));
    let text = envelope(&all, 500);
    assert!(text.len() <= 500, "{}", text.len());
    let rows = text.lines().filter(|line| line.starts_with("call")).count();
    assert!(rows > 5);
    let left = count(1000 - rows as u64);
    let end = format!(
        "note: remember\n{left} more rows: get_result {{\"execution_id\":\"exec_1\",\"cursor\":\"r{rows}\"}}\n"
    );
    assert!(text.ends_with(&end), "{text}");
}

#[test]
fn rows_cut_from_a_later_page_move_its_cursor_back() {
    let mut report = table(100);
    report["rows_total"] = json!(1000);
    let all = with(json!({"report": report, "more": {"rows_left": 700, "cursor": "r300"}}));
    let text = envelope(&all, 500);
    let rows = text.lines().filter(|line| line.starts_with("call")).count();
    let end = format!(
        "{} more rows: get_result {{\"execution_id\":\"exec_1\",\"cursor\":\"r{}\"}}\n",
        800 - rows,
        200 + rows
    );
    assert!(text.ends_with(&end), "{text}");
}

#[test]
fn a_cut_of_a_kept_report_stays_in_that_report() {
    let mut report = table(100);
    report["rows_total"] = json!(1000);
    let all = with(json!({"status": "running", "report": report, "more": {"rows_left": 900, "cursor": "r100s3"}}));
    let text = envelope(&all, 500);
    let rows = text.lines().filter(|line| line.starts_with("call")).count();
    assert!(text.contains(&format!("\"cursor\":\"r{rows}s3\"")), "{text}");
}

#[test]
fn events_beside_a_report_that_are_cut_are_counted_and_the_cursor_comes_back_to_them() {
    let rows: Vec<_> = (0..100).map(|n| json!({"number": n})).collect();
    let events = json!({"shape": "events", "fields": [{"name": "number"}], "rows": rows, "rows_total": 300});
    for more in [json!({"rows_left": 200, "cursor": "r2e100"}), Value::Null] {
        let given = if more.is_null() { 300 } else { 100 };
        let all = with(json!({"report": table(2), "events": events, "more": more}));
        let text = envelope(&all, 500);
        let shown = text.lines().filter(|line| line.trim().parse::<u64>().is_ok()).count();
        let left = 100 - shown + if given == 100 { 200 } else { 0 };
        let end = format!(
            "{left} more rows: get_result {{\"execution_id\":\"exec_1\",\"cursor\":\"r2e{}\"}}\n",
            given - (100 - shown)
        );
        assert!(shown > 5 && text.ends_with(&end), "{text}");
    }
}

#[test]
fn no_text_is_longer_than_allowed_and_a_cut_is_explicit() {
    let all = with(json!({"report": table(50), "notes": vec!["é".repeat(300); 9]}));
    for most in [100, 101, 102, 300, 1000, 2000] {
        let text = envelope(&all, most);
        assert!(text.len() <= most, "{most}: {}", text.len());
        assert!(text.ends_with(ENDING), "{text}");
    }
}

#[test]
fn a_script_shows_each_map_under_its_name() {
    let mut reads = table(1);
    reads["rows_total"] = json!(5);
    reads["name"] = json!("@reads");
    let text = shown(json!({"kind": "script", "probe": "", "reports": [reads], "loss": {"dropped": {}}}));
    assert_eq!(
        text,
        "bpftrace script completed · 5.0 s · exec_1\n\n@reads (1 of 5):\nsyscall  calls\ncall0        0\n"
    );
}

#[test]
fn stacks_show_the_heaviest_frames_and_stacks() {
    let text = shown(json!({"report": {
        "shape": "stacks", "unit": "samples", "total": 200, "unknown_percent": 1.5,
        "frames": [{"frame": "work", "self": 150, "total": 200}],
        "stacks": [{"frames": ["main", "work"], "value": 150, "comm": "busy"}],
    }}));
    assert_eq!(
        text,
        "\
p completed · 5.0 s · exec_1

200 samples, 1.5 % in code without a name
self %  total %  frame
    75      100  work

75 % busy main;work
"
    );
}

#[test]
fn a_person_at_a_shell_is_told_of_flags_and_not_of_tools() {
    let all = with(json!({"report": table(3), "more": {"rows_left": 6, "cursor": "r3"}}));
    let text = envelope_for(Reader::Shell, &all, 4096);
    assert!(text.starts_with("p completed · 5.0 s\n"), "{text}");
    assert!(text.ends_with("6 more rows: --top N shows more rows, --json all of them\n"), "{text}");
}
