//! Queries in SQL on the history: what they may, and that they can do no more.

use std::path::Path;

use mcptrace::recorder::history::{self, HistoryError, Query};
use mcptrace_tests::{
    histories::{ask, folder, keep, keeper, query, sql, table, total},
    simulated::{START, calls, latencies, level, tick},
};

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
fn sql_goes_alone() {
    let folder = folder();
    keep(&mut keeper(folder.path()), [tick(1, vec![calls("a", "user", 3)])]);
    let query = Query { sql: "SELECT 1".into(), ..query("test_calls", 0, 1) };
    let error = history::ask_at(folder.path(), &query, START).unwrap_err();
    assert!(error.category() == "invalid_sql" && error.to_string().contains("alone"), "{error}");
}

#[test]
fn sql_can_neither_write_nor_leave() {
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

#[test]
fn a_column_that_is_none_is_answered_with_those_of_the_views() {
    let folder = folder();
    keep(&mut keeper(folder.path()), [tick(1, vec![calls("a", "user", 3)])]);
    let error = |query: &str| sql(folder.path(), query).map(|answer| format!("{answer:?}")).unwrap_err().to_string();
    let column = error("SELECT value FROM sums");
    assert!(column.contains("sums(metric, step, t, time, labels, amount)"), "{column}");
    assert!(!column.contains("buckets("), "only of what was asked: {column}");
    let joined = error("SELECT b.height FROM sums AS s JOIN buckets b USING (t)");
    assert!(joined.contains("buckets(metric, step, t, time, labels, low, high, count)"), "{joined}");
    assert!(error("SELECT * FROM summs").contains("sums("), "the one that is meant");
}

#[test]
fn sql_does_not_run_for_ever() {
    let folder = folder();
    keep(&mut keeper(folder.path()), (1..=60).map(|n| tick(n, vec![calls("a", "user", 3)])));
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
    for name in ["instr", "replace", "trim", "ltrim", "rtrim", "unhex", "json_patch", "jsonb_patch"] {
        let third = if name == "replace" { ", 'c'" } else { "" };
        let error = sql(folder.path(), &format!("SELECT {name}('{{}}', '{{}}'{third})")).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("for ever"), "{name} of two long texts takes hours: {error}");
    }
}
