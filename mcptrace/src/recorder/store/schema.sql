-- The tables of mcptrace's history, version 1. docs/history.md explains them; the views at the end are what stays the same.
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE metric_def (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, unit TEXT NOT NULL, kind TEXT NOT NULL, grp TEXT NOT NULL,
  labels TEXT NOT NULL, help TEXT NOT NULL
);
CREATE TABLE series_def (
  id INTEGER PRIMARY KEY, metric INTEGER NOT NULL, labels TEXT NOT NULL, last_seq INTEGER NOT NULL, UNIQUE (metric, labels)
);
CREATE INDEX series_by_age ON series_def (last_seq);
-- One row a second, in the order in which they came about; `t` is the second by the clock of that moment.
CREATE TABLE tick (seq INTEGER PRIMARY KEY, t INTEGER NOT NULL);
-- key = (seq << 16) + metric
CREATE TABLE tier_1 (key INTEGER PRIMARY KEY, body TEXT NOT NULL);
-- key = (metric << 40) + t
CREATE TABLE tier_10 (key INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE tier_60 (key INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE bucket_def (bucket INTEGER PRIMARY KEY, low INTEGER NOT NULL, high INTEGER NOT NULL);
CREATE TABLE mark_log (id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, seconds REAL NOT NULL, text TEXT NOT NULL);
CREATE TABLE event_log (id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, fields TEXT NOT NULL);
CREATE INDEX event_by_time ON event_log (at_ns);
CREATE TABLE kept (
  id TEXT PRIMARY KEY, at_ns INTEGER NOT NULL, owner TEXT NOT NULL, kind TEXT NOT NULL, probe TEXT NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID;

-- What is recorded.
CREATE VIEW metrics AS
  SELECT id AS metric_id, name AS metric, unit, kind, grp AS "group", labels, help FROM metric_def;

-- Every value, as JSON, at every step that it is kept in (1, 10 and 60 seconds). Ask with `step` and `metric`.
CREATE VIEW samples AS
  SELECT m.name AS metric, 1 AS step, t.t AS t, datetime(t.t, 'unixepoch') AS time,
    coalesce(s.labels, '{}') AS labels, j.value AS value
  FROM metric_def m CROSS JOIN tick t
    CROSS JOIN tier_1 b ON b.key = (t.seq << 16) + m.id CROSS JOIN json_each(b.body) j
    LEFT JOIN series_def s ON s.id = CAST(j.key AS INTEGER)
  UNION ALL
  SELECT m.name, 10, b.key & 0xffffffffff, datetime(b.key & 0xffffffffff, 'unixepoch'), coalesce(s.labels, '{}'), j.value
  FROM metric_def m
    CROSS JOIN tier_10 b ON b.key >= m.id << 40 AND b.key < (m.id + 1) << 40 CROSS JOIN json_each(b.body) j
    LEFT JOIN series_def s ON s.id = CAST(j.key AS INTEGER)
  UNION ALL
  SELECT m.name, 60, b.key & 0xffffffffff, datetime(b.key & 0xffffffffff, 'unixepoch'), coalesce(s.labels, '{}'), j.value
  FROM metric_def m
    CROSS JOIN tier_60 b ON b.key >= m.id << 40 AND b.key < (m.id + 1) << 40 CROSS JOIN json_each(b.body) j
    LEFT JOIN series_def s ON s.id = CAST(j.key AS INTEGER);

-- Amounts.
CREATE VIEW sums AS
  SELECT x.metric, x.step, x.t, x.time, x.labels, x.value AS amount
  FROM samples x WHERE x.metric IN (SELECT name FROM metric_def WHERE kind = 'sum');

-- Levels.
CREATE VIEW gauges AS
  SELECT x.metric, x.step, x.t, x.time, x.labels, x.value ->> 0 AS average, x.value ->> 1 AS least, x.value ->> 2 AS greatest,
    x.value ->> 3 AS readings
  FROM samples x WHERE x.metric IN (SELECT name FROM metric_def WHERE kind = 'gauge');

-- Distributions, without their buckets.
CREATE VIEW distributions AS
  SELECT x.metric, x.step, x.t, x.time, x.labels, x.value ->> 0 AS count, x.value ->> 1 AS sum, x.value ->> 2 AS least,
    x.value ->> 3 AS greatest
  FROM samples x WHERE x.metric IN (SELECT name FROM metric_def WHERE kind = 'distribution');

-- Distributions, bucket by bucket: `count` values from `low` up to but not including `high`.
CREATE VIEW buckets AS
  SELECT x.metric, x.step, x.t, x.time, x.labels, d.low, d.high, c.value AS count
  FROM samples x CROSS JOIN json_each(x.value, '$[4]') r CROSS JOIN json_each(r.value) c
    CROSS JOIN bucket_def d ON d.bucket = (r.value ->> 0) + c.key - 1
  WHERE c.key > 0 AND x.metric IN (SELECT name FROM metric_def WHERE kind = 'distribution');

-- How much of the time each group of metrics was recorded, in seconds; `why` is empty for what was, else the reason why not.
CREATE VIEW coverage AS
  SELECT x.step, x.t, x.time, x.labels ->> 'group' AS "group", x.labels ->> 'why' AS why, x.value / 1e6 AS seconds
  FROM samples x WHERE x.metric = 'recorder_coverage_us';

-- What happened to the recorder: start, stop, clock_jump, suspend, disk_full, damaged …
CREATE VIEW marks AS
  SELECT at_ns / 1000000000 AS t, datetime(at_ns / 1000000000, 'unixepoch') AS time, kind, seconds, text FROM mark_log;

-- What is kept one by one: processes that began, ended or were killed.
CREATE VIEW events AS
  SELECT at_ns, datetime(at_ns / 1000000000, 'unixepoch') AS time, kind, fields FROM event_log;

-- Executions that are kept.
CREATE VIEW executions AS
  SELECT id AS execution_id, datetime(at_ns / 1000000000, 'unixepoch') AS ended, kind, probe, body AS envelope FROM kept;
