//! What the recorder does at present, and how other processes learn of it: a small file beside the history.

use std::{
    borrow::Cow,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{place, store};

/// What the recorder does at present.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Status {
    /// When it began, in nanoseconds since 1970
    pub since_ns: u64,
    /// When the last second ended that it recorded
    pub last_ns: u64,
    /// Seconds recorded
    pub ticks: u64,
    /// What it may cost, in percent of the time of all CPUs
    pub budget_percent: f64,
    /// What it costs by its own measurement: programs in the kernel, and the thread that reads and keeps
    pub cost_percent: f64,
    /// The part of that thread
    pub cost_process_percent: f64,
    /// Whether the cost of programs can be measured here
    pub cost_is_measured: bool,
    /// For how many milliseconds of ten seconds system calls are looked at
    pub syscalls_ms_of_10_s: u64,
    /// What is recorded
    pub groups: Vec<GroupStatus>,
    /// Where it goes
    pub sink: String,
    /// Why the last second could not be kept
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The same in a word, as in coverage
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<Cow<'static, str>>,
    /// Since when nothing is kept, in nanoseconds since 1970
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_ns: Option<u64>,
}

/// A group of metrics.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct GroupStatus {
    /// Its name
    pub name: Cow<'static, str>,
    /// `on`, `duty_cycle` (a part of the time), `shed` (over budget), `off` or `unsupported`
    pub state: Cow<'static, str>,
    /// What its programs cost, in percent of the time of all CPUs
    pub cost_percent: f64,
    /// Why it is not recorded
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The file in the folder of the history.
const FILE: &str = "recorder.json";

/// Tells other processes; in place of what stood there, at once. Where the disk has no room for another file it is written over, because that is
/// when there is something to tell: whoever reads it just then finds nothing.
pub fn write(folder: &Path, status: &Status) -> io::Result<()> {
    let (new, file) = (folder.join(format!("{FILE}.new")), folder.join(FILE));
    let text = serde_json::to_vec(status).map_err(io::Error::other)?;
    fs::write(&new, &text)
        .and_then(|()| fs::rename(&new, &file))
        .or_else(|error| if error.kind() == io::ErrorKind::StorageFull { write_over(&file, &text) } else { Err(error) })
}

fn write_over(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).open(file)?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)
}

/// What a recorder that writes the history in a folder does at present; `None` if there is none.
pub fn read(folder: &Path) -> Option<Status> {
    // The file of a recorder that was killed stays.
    if !store::is_recorded(&place::file(folder)) {
        return None;
    }
    serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_was_written_while_somebody_records() {
        let folder = tempfile::tempdir().unwrap();
        let group =
            GroupStatus { name: "runq".into(), state: "shed".into(), cost_percent: 0.7, why: Some("dear".into()) };
        let status = Status { ticks: 7, groups: vec![group], sink: "somewhere".into(), ..Status::default() };
        let keeper = store::Keeper::open(&place::file(folder.path()), store::Limits::default()).unwrap();
        assert_eq!(read(folder.path()), None);
        write(folder.path(), &status).unwrap();
        assert_eq!(read(folder.path()), Some(status));
        keeper.close();
        assert_eq!(read(folder.path()), None, "nobody records any more");
    }
}
