//! The audit log: who started, was refused, stopped and ended what, in lines of JSON, each written before what it tells of happens.
//!
//! It holds names, numbers and hashes: of a script the beginning of its text, of a token its name, of what was found nothing.

mod file;
mod journal;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use self::{file::File, journal::Journal};
use crate::{clock, principal::Principal, report::Overhead, text::clipped, text::untrusted};

/// How much of a script is kept, in bytes; its hash is of all of it.
const SCRIPT_BYTES: usize = 512;
/// The longest reason, in bytes.
const REASON_BYTES: usize = 300;
/// The longest options or filters of a probe, in bytes of JSON; longer ones are told by their size.
const OPTIONS_BYTES: usize = 2048;

/// Where records go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere.
    #[default]
    Nowhere,
    /// Standard error, which the journal takes in under systemd.
    Stderr,
    /// The journal of systemd.
    Journal,
    /// A file, which is only appended to.
    File(PathBuf),
}

/// Where records go, how much of them is kept, and what happens where they cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to.
    pub to: Destination,
    /// How large a file gets before the next one is begun, in bytes.
    pub bytes: u64,
    /// How many full files are kept beside the one that is written.
    pub kept: u32,
    /// Whether others of the file's group may read it (0640 instead of 0600).
    pub group_reads: bool,
    /// Whether what cannot be recorded is not started.
    pub required: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { to: Destination::Nowhere, bytes: 16 << 20, kept: 8, group_reads: false, required: true }
    }
}

/// The log cannot be written, so nothing was started.
#[derive(Debug, thiserror::Error)]
#[error("nothing is started that cannot be recorded, and the audit log cannot be written: {0}")]
pub struct AuditError(String);

/// The audit log of a process.
#[derive(Debug, Default)]
pub struct Audit {
    sink: Mutex<Sink>,
    required: bool,
}

#[derive(Debug, Default)]
enum Sink {
    #[default]
    Nowhere,
    Stderr,
    Journal(Journal),
    File(File),
}

impl Audit {
    /// Nothing is opened before the first record: a process that starts nothing needs no log.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let sink = match &settings.to {
            Destination::Nowhere => Sink::Nowhere,
            Destination::Stderr => Sink::Stderr,
            Destination::Journal => Sink::Journal(Journal::default()),
            Destination::File(path) => Sink::File(File::new(path, settings)),
        };
        Arc::new(Self { sink: Mutex::new(sink), required: settings.required })
    }

    /// Records what the operator has set for this process.
    pub fn configured(&self, settings: Value) -> Result<(), AuditError> {
        self.required(&Record { what: settings, ..Record::new("configured", &Principal::cli(), "") })
    }

    /// Records that somebody was not let in. That nothing happens does not depend on the record.
    pub fn turned_away(&self, by: &Principal, reason: &str) {
        self.anyway(&Record { reason: reason_of(reason), ..Record::new("turned_away", by, "") });
    }

    /// The records of one execution. Nothing is written yet.
    pub fn trail(self: &Arc<Self>, by: &Principal, id: &str, what: Value) -> Trail {
        Trail { audit: Arc::clone(self), by: by.clone(), id: id.to_owned(), what }
    }

    fn is_off(&self) -> bool {
        matches!(*self.sink.lock().unwrap_or_else(PoisonError::into_inner), Sink::Nowhere)
    }

    /// Before something is done that must not go unrecorded.
    fn required(&self, record: &Record<'_>) -> Result<(), AuditError> {
        match self.write(record) {
            Err(error) if self.required => Err(AuditError(error.to_string())),
            Err(error) => {
                tracing::error!(%error, "the audit log cannot be written");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Before something is ended, which must not depend on a log.
    fn anyway(&self, record: &Record<'_>) {
        if let Err(error) = self.write(record) {
            tracing::error!(%error, event = record.event, "the audit log cannot be written");
        }
    }

    fn write(&self, record: &Record<'_>) -> io::Result<()> {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*sink, Sink::Nowhere) {
            return Ok(());
        }
        let mut line = serde_json::to_string(record)?;
        match &mut *sink {
            Sink::Nowhere => Ok(()),
            Sink::Journal(journal) => journal.send(&line),
            Sink::Stderr => {
                line.insert_str(0, "audit: ");
                line.push('\n');
                io::stderr().write_all(line.as_bytes())
            }
            Sink::File(file) => {
                line.push('\n');
                file.append(line.as_bytes())
            }
        }
    }
}

/// The records of one execution, from its start to its end.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    audit: Arc<Audit>,
    by: Principal,
    id: String,
    what: Value,
}

impl Trail {
    /// The execution's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Before anything is loaded, attached or spawned.
    pub fn starts(&self, seconds: f64) -> Result<(), AuditError> {
        let limits = Some(json!({ "seconds": seconds }));
        self.audit.required(&Record { what: self.what.clone(), limits, ..self.record("start") })
    }

    /// It was not started, or could not be.
    pub fn refused(&self, category: &str, reason: &str) {
        let what = self.what.clone();
        self.audit.anyway(&Record { what, outcome: category, reason: reason_of(reason), ..self.record("refused") });
    }

    /// Before it is told to end.
    pub fn stopped(&self, by: &Principal, reason: &str) {
        self.audit.anyway(&Record { reason: reason_of(reason), ..Record::new("stop", by, &self.id) });
    }

    /// It has ended: nothing of it is attached.
    pub fn ended(&self, outcome: &str, error: Option<&str>, seconds: f64, cost: Option<&Overhead>) {
        let reason = error.and_then(reason_of);
        self.audit.anyway(&Record { outcome, reason, seconds: Some(seconds), cost, ..self.record("end") });
    }

    /// Whether nobody reads it, so that what it would tell need not be found out.
    pub fn is_off(&self) -> bool {
        self.audit.is_off()
    }

    fn record(&self, event: &'static str) -> Record<'_> {
        Record::new(event, &self.by, &self.id)
    }
}

/// A line. The order of its fields is that of reading.
#[derive(Serialize)]
struct Record<'a> {
    time: String,
    event: &'static str,
    principal: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    transport: &'static str,
    pid: u32,
    /// Under whose id this process runs: for what it does for itself.
    uid: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    execution_id: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    what: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'a Overhead>,
}

impl<'a> Record<'a> {
    fn new(event: &'static str, by: &'a Principal, execution_id: &'a str) -> Self {
        Self {
            time: clock::utc(SystemTime::now()),
            event,
            principal: untrusted(by.who.to_string().as_bytes(), REASON_BYTES),
            name: &by.name,
            transport: by.via.as_str(),
            pid: std::process::id(),
            uid: rustix::process::getuid().as_raw(),
            execution_id,
            what: Value::Null,
            limits: None,
            outcome: "",
            reason: None,
            seconds: None,
            cost: None,
        }
    }
}

/// A probe as it is recorded.
pub fn probe(name: &str, options: &Map<String, Value>, filter: &Map<String, Value>) -> Value {
    let name = untrusted(name.as_bytes(), REASON_BYTES);
    json!({ "tool": "run_probe", "probe": name, "options": bounded(options), "filter": bounded(filter) })
}

/// A script as it is recorded: what it is called, the hash of its text, and how that begins.
pub fn script(options: &Map<String, Value>, text: &str) -> Value {
    let hash = Sha256::digest(text.as_bytes()).iter().fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
    let begin = untrusted(clipped(text.to_owned(), SCRIPT_BYTES).as_bytes(), 2 * SCRIPT_BYTES);
    json!({ "tool": "exec_program", "options": bounded(options), "sha256": hash, "bytes": text.len(), "text": begin })
}

fn bounded(map: &Map<String, Value>) -> Value {
    let text = Value::from(map.clone());
    let bytes = text.to_string().len();
    if bytes <= OPTIONS_BYTES { text } else { json!(format!("{bytes} bytes")) }
}

fn reason_of(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| untrusted(clipped(text.to_owned(), REASON_BYTES).as_bytes(), 2 * REASON_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(folder: &std::path::Path, settings: Settings) -> (PathBuf, Arc<Audit>) {
        let path = folder.join("audit.jsonl");
        (path.clone(), Audit::new(&Settings { to: Destination::File(path), ..settings }))
    }

    fn lines(path: &std::path::Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_execution_is_told_from_its_start_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (path, audit) = audit(folder.path(), Settings::default());
        let trail = audit.trail(&Principal::user(0), "exec_1", probe("file_opens", &Map::new(), &Map::new()));
        assert!(!path.exists(), "nothing is opened before the first record");
        trail.starts(5.0).unwrap();
        trail.stopped(&Principal::token("ci"), "asked for");
        trail.ended("stopped", None, 1.5, None);
        let lines = lines(&path);
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["start", "stop", "end"]);
        assert_eq!((&lines[0]["principal"], &lines[0]["transport"]), (&json!("uid:0"), &json!("unix")));
        assert_eq!((&lines[0]["what"]["probe"], &lines[0]["limits"]["seconds"]), (&json!("file_opens"), &json!(5.0)));
        assert_eq!((&lines[1]["principal"], &lines[1]["reason"]), (&json!("token:ci"), &json!("asked for")));
        assert_eq!((&lines[2]["outcome"], &lines[2]["seconds"]), (&json!("stopped"), &json!(1.5)));
        assert!(lines.iter().all(|line| line["execution_id"] == "exec_1"), "{lines:?}");
        let time = lines[0]["time"].as_str().unwrap();
        let format = &time::format_description::well_known::Rfc3339;
        assert!(time.ends_with('Z') && time::OffsetDateTime::parse(time, format).is_ok(), "{time}");
    }

    #[test]
    fn what_cannot_be_recorded_is_not_started_unless_the_operator_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("missing");
        let start = |required| {
            let settings = Settings { required, ..Settings::default() };
            let (_, audit) = audit(&nowhere, settings);
            audit.trail(&Principal::cli(), "exec_1", Value::Null).starts(1.0)
        };
        let refused = start(true).unwrap_err().to_string();
        assert!(refused.contains("audit.jsonl") && refused.contains("nothing is started"), "{refused}");
        start(false).unwrap();
    }

    #[test]
    fn records_are_bounded_whatever_is_asked_for() {
        let huge = "\u{1b}".repeat(1 << 20);
        let options = Map::from_iter([("x".to_owned(), Value::from(huge.as_str()))]);
        let folder = tempfile::tempdir().unwrap();
        let (path, audit) = audit(folder.path(), Settings::default());
        for what in [probe(&huge, &options, &options), script(&options, &huge)] {
            let trail = audit.trail(&Principal::token(&huge), "exec_1", what);
            trail.starts(1.0).unwrap();
            trail.refused("policy", &huge);
        }
        let text = std::fs::read_to_string(path).unwrap();
        let longest = text.lines().map(str::len).max().unwrap();
        assert!(longest < 8192 && !text.contains('\u{1b}'), "{longest}");
    }

    #[test]
    fn a_script_is_known_by_its_hash() {
        let text = format!("BEGIN {{ }} // {}", "x".repeat(4000));
        let record = script(&Map::new(), &text);
        assert_eq!(record["bytes"], 4013);
        assert_eq!(
            script(&Map::new(), "abc")["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(record["text"].as_str().unwrap().len() < 600);
    }
}
