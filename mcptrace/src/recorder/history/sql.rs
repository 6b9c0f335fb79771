//! Queries in SQL: only reading, only the documented views, and only so much of time, memory, rows and bytes.
//!
//! The file is open for reading, SQLite is told that queries only read, and an authorizer lets through nothing but SELECT on the views:
//! whichever of the three failed, the others would hold.

mod words;

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection, ErrorCode, ffi,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
    types::ValueRef,
};
use serde_json::Value;

use super::{Answer, HistoryError, Now, reader::Reader};
use crate::{
    recorder::store::schema::VIEWS,
    report::{Field, Report, Row, Table},
    suggest::nearest,
    text::untrusted,
};

/// How long a query may take.
const LONGEST: Duration = Duration::from_secs(2);
/// Memory of a query, in bytes.
const MEMORY: i64 = 64 << 20;
/// Rows of an answer.
const ROWS: usize = 1000;
/// Bytes of an answer.
const BYTES: usize = 1 << 20;
/// The longest text of a cell, in bytes.
const CELL: usize = 4096;
/// Instructions of SQLite's machine between two looks at the time. Few, as one can go through 1 MB.
const INSTRUCTIONS: i32 = 100;
/// Functions of tables that may stand beside the views.
const TABLE_FUNCTIONS: &[&str] = &["json_each", "json_tree"];
/// What belongs to whoever ran it: read by id, never here.
const OWNED: &[&str] = &["kept", "executions"];
/// What lies under the views. A query that takes none of a view's columns, such as `count(*)`, reads of these that they are there, and SQLite
/// no longer says that it is for a view.
const UNDER_VIEWS: &[&str] =
    &["metric_def", "series_def", "tick", "tier_1", "tier_10", "tier_60", "bucket_def", "mark_log", "event_log"];
/// Functions that do more than compute.
const FUNCTIONS: &[&str] = &["load_extension", "fts3_tokenizer", "sqlite_log", "readfile", "writefile", "edit"];
/// Functions that take the product of two lengths, hours for two texts of 1 MB, and are one instruction each: no limit ends one of them.
const UNBOUNDED: &[&str] = &["instr", "replace", "trim", "ltrim", "rtrim", "unhex", "json_patch", "jsonb_patch"];

/// Answers a query.
pub(super) fn ask(folder: &Path, sql: &str, second: i64) -> Result<Answer, HistoryError> {
    let reader = Reader::open(folder)?;
    let notes = Now::of(folder, &reader, second)?.notes;
    if let Some(view) = words::posing_as(sql, VIEWS) {
        return Err(HistoryError::Sql(format!("`{view}` is a view: give the part of the query another name")));
    }
    let mut connection = reader.into_connection();
    confine(&mut connection)?;
    let (table, more) = run(&connection, sql).map_err(|error| explain(&connection, sql, &error))?;
    let more = more.map(|limit| {
        format!("there are more rows: an answer has at most {limit}; use LIMIT and ORDER BY, or aggregate")
    });
    Ok(Answer {
        report: Some(Report::Table(table)),
        notes: more.into_iter().chain(notes).collect(),
        ..Answer::default()
    })
}

fn confine(connection: &mut Connection) -> rusqlite::Result<()> {
    // What is sorted stays in memory, which is bounded: no files appear.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_LENGTH, 1 << 20),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 16 << 10),
        (Limit::SQLITE_LIMIT_COLUMN, 100),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 20),
        (Limit::SQLITE_LIMIT_VDBE_OP, 100_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 32),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, most)?;
    }
    let forbidden = forbidden(connection)?;
    connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&context, &forbidden)))?;
    let (until, memory) = (Instant::now() + LONGEST, memory_used() + MEMORY);
    connection.progress_handler(INSTRUCTIONS, Some(move || Instant::now() > until || memory_used() > memory))
}

/// What SQLite has allocated in this process, in bytes.
fn memory_used() -> i64 {
    // SAFETY: reads a number under SQLite's own lock; it may be called at any time.
    unsafe { ffi::sqlite3_memory_used() }
}

/// What a query may not read by itself: tables, and SQLite's modules that act as tables. What else it names it made itself.
fn forbidden(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let sql = "SELECT lower(name) FROM sqlite_schema UNION SELECT lower(name) FROM pragma_module_list";
    let mut statement = connection.prepare(sql)?;
    let mut names = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<BTreeSet<String>>>()?;
    names.retain(|name| !VIEWS.contains(&name.as_str()) && !TABLE_FUNCTIONS.contains(&name.as_str()));
    Ok(names)
}

fn authorize(context: &AuthContext<'_>, forbidden: &BTreeSet<String>) -> Authorization {
    // Nothing but a view is called so: see `words::posing_as`.
    let within_view = context.accessor.is_some_and(|name| VIEWS.iter().any(|view| view.eq_ignore_ascii_case(name)));
    let allowed = match context.action {
        AuthAction::Select | AuthAction::Recursive => true,
        AuthAction::Read { table_name, column_name } => {
            let name = table_name.to_lowercase();
            let inner = forbidden.contains(&name) || name.starts_with("sqlite_") || name.starts_with("pragma_");
            let counted = column_name.is_empty() && UNDER_VIEWS.contains(&name.as_str());
            !OWNED.contains(&name.as_str()) && (within_view || counted || !inner)
        }
        AuthAction::Function { function_name } => {
            !FUNCTIONS.iter().chain(UNBOUNDED).any(|name| name.eq_ignore_ascii_case(function_name))
        }
        _ => false,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

/// The rows, and how many there can be if there are more.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<(Table, Option<usize>)> {
    let mut statement = connection.prepare(sql)?;
    if !statement.readonly() || statement.column_count() == 0 {
        return Err(rusqlite::Error::InvalidQuery);
    }
    let names = distinct(statement.column_names());
    let (mut rows, mut bytes) = (Vec::new(), 0);
    let mut found = statement.query([])?;
    let mut more = None;
    while let Some(row) = found.next()? {
        if rows.len() == ROWS || bytes > BYTES {
            more = Some(rows.len());
            break;
        }
        let mut cells = Row::new();
        for (at, name) in names.iter().enumerate() {
            let value = cell(row.get_ref(at)?);
            bytes += name.len() + value.as_str().map_or(8, str::len);
            cells.insert(name.clone(), value);
        }
        rows.push(cells);
    }
    let columns = names.into_iter().map(|name| Field::new(name, "")).collect();
    let rows_total = rows.len() as u64;
    Ok((Table { key: Vec::new(), columns, rows, others: None, rows_total }, more))
}

/// Names of columns, made different from each other.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut own = |name: &str| {
        let name = untrusted(name.as_bytes(), 100);
        let free = (1..).map(|n| if n == 1 { name.clone() } else { format!("{name}_{n}") });
        let free = free.into_iter().find(|name| !seen.contains(name)).unwrap_or_default();
        seen.insert(free.clone());
        free
    };
    names.map(&mut own).collect()
}

fn cell(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => untrusted(&text[..text.len().min(CELL + 4)], CELL).into(),
        ValueRef::Blob(blob) => format!("({} bytes)", blob.len()).into(),
    }
}

/// SQLite's words, and what to do.
fn explain(connection: &Connection, sql: &str, error: &rusqlite::Error) -> HistoryError {
    let views = VIEWS.join(", ");
    let said = untrusted(error.to_string().as_bytes(), 500);
    let message = match (error, error.sqlite_error_code()) {
        (rusqlite::Error::MultipleStatement, _) => "sql takes one statement, a SELECT".to_owned(),
        (rusqlite::Error::InvalidQuery, _) => "sql takes a SELECT and nothing that writes".to_owned(),
        (_, Some(ErrorCode::AuthorizationForStatementDenied)) => {
            format!("sql may only SELECT, and only from the views {views}: {said}")
        }
        _ if said.starts_with("not authorized to use function") => {
            format!("{said}: it could run for ever or do more than compute; LIKE, GLOB, substr and ->> are there")
        }
        (_, Some(ErrorCode::OperationInterrupted)) => format!(
            "the query took longer than {} s or more than {} MB: narrow it by step, metric and t",
            LONGEST.as_secs(),
            MEMORY >> 20
        ),
        _ if said.starts_with("no such column") && !words::among(sql, VIEWS).is_empty() => {
            format!("{said}; there are {}", columns(connection, &words::among(sql, VIEWS)))
        }
        _ => match unknown_table(&said).and_then(|name| nearest(&name, VIEWS.iter().copied())) {
            Some(near) => format!("{said}; did you mean {}? There are {views}", columns(connection, &[near])),
            None => format!("{said}; there are the views {views}"),
        },
    };
    HistoryError::Sql(message)
}

/// Views as `name(column, …)`.
fn columns(connection: &Connection, views: &[&str]) -> String {
    let of = |view: &&str| {
        let statement = connection.prepare(&format!("SELECT * FROM {view}"));
        let names = statement.map(|found| found.column_names().map(str::to_owned).collect::<Vec<_>>());
        format!("{view}({})", names.unwrap_or_default().join(", "))
    };
    views.iter().map(of).collect::<Vec<_>>().join(", ")
}

fn unknown_table(said: &str) -> Option<String> {
    let name = said.split_once("no such table: ")?.1;
    Some(name.split_whitespace().next()?.to_owned())
}
