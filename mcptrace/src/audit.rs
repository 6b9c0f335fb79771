//! The audit log: who started, was refused, stopped and ended what, in lines of JSON, each written before what it tells of happens.
//!
//! It holds names, numbers and hashes: of a script the beginning of its text, of a token its name, of what was found nothing.

mod file;
mod journal;
mod refusals;

use std::{
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use self::{
    file::File,
    journal::Journal,
    refusals::{LeftOut, Refusals},
};
use crate::{
    clock,
    principal::{Principal, Via},
    report::Overhead,
    text::{clipped, untrusted},
};

/// How much of a script is kept, in bytes; its hash is of all of it.
const SCRIPT_BYTES: usize = 512;
/// How often servers should call [`Audit::settle`].
pub const SETTLE: Duration = Duration::from_secs(10);
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
    /// Of those whom nobody vouches for, and of those with a name: the former cannot use up what the latter may cause.
    strangers: Mutex<Refusals>,
    named: Mutex<Refusals>,
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
        Arc::new(Self { sink: Mutex::new(sink), required: settings.required, ..Self::default() })
    }

    /// Records what the operator has set for this process.
    pub fn configured(&self, settings: Value) -> Result<(), AuditError> {
        self.required(&Record { what: settings, ..Record::new("configured", &Principal::cli(), "") })
    }

    /// Records that a user of this host was not let in, and which kind of reason there was. That nothing happens does not depend on the record.
    pub fn turned_away(&self, by: &Principal, kind: &'static str, reason: &str) {
        let record = Record { outcome: kind, reason: reason_of(reason), ..Record::new("turned_away", by, "") };
        self.refusal(&self.named, (by.who.to_string(), kind), record);
    }

    /// Records that a request of the network was refused before anybody was known to have sent it.
    pub fn kept_out(&self, peer: IpAddr, kind: &'static str, reason: &str) {
        let peer = peer.to_canonical().to_string();
        let nobody = Principal { via: Via::Http, ..Principal::default() };
        let record = Record {
            principal: NOBODY.to_owned(),
            peer: Some(peer.clone()),
            outcome: kind,
            reason: reason_of(reason),
            ..Record::new("turned_away", &nobody, "")
        };
        self.refusal(&self.strangers, (peer, kind), record);
    }

    /// Records that somebody asked for an execution that belongs to another, and by which tool; the answer is that there is none.
    pub fn withheld(&self, by: &Principal, tool: &str, id: &str, owner: &Principal) {
        let record = Record {
            what: json!({ "tool": tool }),
            outcome: OF_ANOTHER,
            reason: reason_of(&format!("it belongs to {}", owner.who)),
            ..Record::new("refused", by, id)
        };
        self.refusal(&self.named, (by.who.to_string(), OF_ANOTHER), record);
    }

    /// Records that a file by which callers are known was read anew: what is in force from here on, or why nobody is let in by it any more.
    pub fn reloaded(&self, file: &Path, what: Value, error: Option<&str>) {
        let file = untrusted(file.display().to_string().as_bytes(), REASON_BYTES);
        self.anyway(&Record {
            what: json!({ "file": file, "now": what }),
            outcome: if error.is_some() { "failed" } else { "completed" },
            reason: error.and_then(reason_of),
            ..Record::new("reloaded", &Principal::cli(), "")
        });
    }

    /// Tells which refusals were left out, if it is time to. To be called again and again, since no more may come.
    pub fn settle(&self) {
        self.tell(false);
    }

    /// The same when nothing more is to come.
    pub fn finish(&self) {
        self.tell(true);
    }

    fn refusal(&self, lately: &Mutex<Refusals>, (caller, kind): (String, &'static str), record: Record<'_>) {
        if self.is_off() {
            return;
        }
        let noted = locked(lately).note((caller, kind), Instant::now());
        if let Some(left_out) = noted {
            self.anyway(&Record { left_out: (left_out > 0).then_some(left_out), ..record });
        }
    }

    fn tell(&self, at_the_end: bool) {
        for lately in [&self.strangers, &self.named] {
            let Some(LeftOut { total, most }) = locked(lately).left_out(Instant::now(), at_the_end) else { continue };
            let most: Vec<Value> = most
                .into_iter()
                .map(|((caller, kind), count)| json!({ "caller": untrusted(caller.as_bytes(), REASON_BYTES), "outcome": kind, "count": count }))
                .collect();
            let what = json!({ "most": most });
            self.anyway(&Record { what, left_out: Some(total), ..Record::new("left_out", &Principal::cli(), "") });
        }
    }

    /// The records of one execution. Nothing is written yet.
    pub fn trail(self: &Arc<Self>, by: &Principal, id: &str, what: Value) -> Trail {
        Trail { audit: Arc::clone(self), by: by.clone(), id: id.to_owned(), what }
    }

    fn is_off(&self) -> bool {
        matches!(*locked(&self.sink), Sink::Nowhere)
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
        let mut sink = locked(&self.sink);
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

    /// Before anything is loaded, attached or spawned: with what bounds it.
    pub fn starts(&self, limits: Value) -> Result<(), AuditError> {
        self.audit.required(&Record { what: self.what.clone(), limits: Some(limits), ..self.record("start") })
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The outcome for whoever asks for what belongs to another.
const OF_ANOTHER: &str = "of_another";
/// The principal of a request that nobody is known to have sent.
const NOBODY: &str = "none";

/// A line. The order of its fields is that of reading.
#[derive(Serialize)]
struct Record<'a> {
    time: String,
    event: &'static str,
    principal: String,
    /// The address that a request came from, where that is all that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
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
    /// Refusals of the same caller and kind before this one, or of all, that have no record.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<u64>,
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
            peer: None,
            name: &by.name,
            transport: by.via.as_str(),
            pid: std::process::id(),
            uid: rustix::process::getuid().as_raw(),
            execution_id,
            what: Value::Null,
            limits: None,
            outcome: "",
            reason: None,
            left_out: None,
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
    let given = Value::from(map.clone());
    let bytes = given.to_string().len();
    if bytes <= OPTIONS_BYTES { escaped(given) } else { json!(format!("{bytes} bytes")) }
}

/// Strings of a caller as a reader of the log should see them.
fn escaped(given: Value) -> Value {
    match given {
        Value::String(text) => untrusted(text.as_bytes(), OPTIONS_BYTES).into(),
        Value::Array(all) => all.into_iter().map(escaped).collect(),
        Value::Object(all) => all.into_iter().map(|(name, one)| (name, escaped(one))).collect(),
        other => other,
    }
}

fn reason_of(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| untrusted(clipped(text.to_owned(), REASON_BYTES).as_bytes(), 2 * REASON_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(folder: &Path, settings: Settings) -> (PathBuf, Arc<Audit>) {
        let path = folder.join("audit.jsonl");
        (path.clone(), Audit::new(&Settings { to: Destination::File(path), ..settings }))
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn what_a_caller_gives_cannot_turn_a_line_around() {
        let given = json!({ "comm": "a\u{202e}b", "paths": ["\u{1b}[2J", "\u{e0041}"], "pid": 7 });
        let what = probe("file_opens", given.as_object().unwrap(), &Map::new());
        let wanted = json!({ "comm": "a\\u{202e}b", "paths": ["\\u{1b}[2J", "\\u{e0041}"], "pid": 7 });
        assert_eq!(what["options"], wanted);
    }

    #[test]
    fn an_execution_is_told_from_its_start_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (path, audit) = audit(folder.path(), Settings::default());
        let trail = audit.trail(&Principal::user(0), "exec_1", probe("file_opens", &Map::new(), &Map::new()));
        assert!(!path.exists(), "nothing is opened before the first record");
        trail.starts(json!({ "seconds": 5.0, "rows": 20 })).unwrap();
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
            audit.trail(&Principal::cli(), "exec_1", Value::Null).starts(Value::Null)
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
            trail.starts(Value::Null).unwrap();
            trail.refused("policy", &huge);
        }
        let text = std::fs::read_to_string(path).unwrap();
        let longest = text.lines().map(str::len).max().unwrap();
        assert!(longest < 8192 && !text.contains('\u{1b}'), "{longest}");
    }

    #[test]
    fn refusals_are_recorded_and_a_flood_of_them_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (path, audit) = audit(folder.path(), Settings::default());
        let peer = "::ffff:10.1.2.3".parse().unwrap();
        for _ in 0..1009 {
            audit.kept_out(peer, "token", "a token is needed");
            audit.turned_away(&Principal::user(70_003), "user", "may not connect");
        }
        audit.withheld(&Principal::token("ci"), "stop_execution", "exec_1", &Principal::user(0));
        audit.settle();
        let found = lines(&path);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!((&found[0]["principal"], &found[0]["peer"]), (&json!("none"), &json!("10.1.2.3")));
        assert_eq!((&found[0]["outcome"], &found[0]["transport"]), (&json!("token"), &json!("http")));
        assert_eq!((&found[1]["principal"], &found[1]["outcome"]), (&json!("uid:70003"), &json!("user")));
        assert_eq!((&found[2]["execution_id"], &found[2]["outcome"]), (&json!("exec_1"), &json!("of_another")));
        assert_eq!(found[2]["what"]["tool"], "stop_execution");
        audit.finish();
        let told: Vec<Value> = lines(&path).split_off(3);
        assert_eq!(told.len(), 2, "{told:?}");
        for (line, caller) in told.iter().zip(["10.1.2.3", "uid:70003"]) {
            assert_eq!((&line["event"], &line["left_out"]), (&json!("left_out"), &json!(1008)));
            assert_eq!(
                (&line["what"]["most"][0]["caller"], &line["what"]["most"][0]["count"]),
                (&json!(caller), &json!(1008))
            );
        }
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
