//! The keeping half of the recorder: an SQLite file with seconds for an hour, ten seconds for a day and minutes for a month.
//!
//! [`Keeper::keep`] never fails: what stops the recording is a [`State`] with a reason, and it begins again when it can. The tables
//! are in `store/schema.sql`, explained in `docs/history.md`.

pub mod body;
pub mod kept;
mod private;
mod prune;
mod rollup;
pub mod schema;
mod series;
pub mod timeline;
pub mod writer;

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use rusqlite::ErrorCode;
use rustix::{
    fs::statvfs,
    time::{ClockId, clock_gettime},
};
use serde::Serialize;

use self::{schema::SchemaError, writer::Writer};
use super::{place, tick::Tick};

/// What bounds the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Its size in bytes. Less than 200 MB, so that no day takes more.
    pub bytes: u64,
    /// Bytes of the disk that are left to others.
    pub spare_bytes: u64,
    /// Label sets that are known at once.
    pub series: usize,
    /// New label sets a minute, after which they are "others".
    pub fresh_series: usize,
    /// Events that are kept one by one.
    pub events: u64,
    /// How long to wait before recording is tried again.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 190 << 20,
            spare_bytes: 32 << 20,
            series: 50_000,
            fresh_series: 5_000,
            events: 100_000,
            retry: Duration::from_secs(10),
        }
    }
}

/// Whether it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It is.
    Recording {
        /// Since when, UTC.
        since: String,
    },
    /// It is not.
    Stopped {
        /// Why, in a word.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
        /// Since when, UTC.
        since: String,
    },
}

/// Why it is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// There is no room on the disk.
    DiskFull,
    /// The file is damaged and could not be set aside.
    Damaged,
    /// The file belongs to another program, or to a later mcptrace.
    Foreign,
    /// Somebody else keeps the file locked.
    Busy,
    /// It may not be written.
    ReadOnly,
    /// The file was removed, or another one stands in its place.
    Removed,
    /// The disk fails.
    Io,
}

impl Reason {
    /// The word for it, as in marks and coverage.
    pub fn word(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Busy => "busy",
            Self::ReadOnly => "read_only",
            Self::Removed => "removed",
            Self::Io => "io",
        }
    }
}

/// Why recording cannot begin at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another recorder writes this file.
    #[error("another recorder writes {0}: only one can")]
    Taken(PathBuf),
    /// The folder or its lock file cannot be made.
    #[error("cannot use {}: {error}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What is in the file is not what was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The file is not ours.
    #[error("{0}")]
    Foreign(SchemaError),
    /// SQLite says no.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// What is written goes nowhere.
    #[error("the file was removed or replaced")]
    Removed,
    /// The folder takes no lock file at present.
    #[error("cannot make the lock file: {0}")]
    Lock(io::Error),
    /// A recorder that began while this one could not record.
    #[error("another recorder writes the file")]
    Taken,
    /// Others need what room there is.
    #[error("{} MB are left on the disk, which are for others", free >> 20)]
    Spare {
        /// Bytes left.
        free: u64,
    },
}

impl From<body::Damaged> for WriteError {
    fn from(damaged: body::Damaged) -> Self {
        Self::Damaged(damaged.to_string())
    }
}

impl From<SchemaError> for WriteError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Sqlite(error) => Self::Sqlite(error),
            other => Self::Foreign(other),
        }
    }
}

/// Keeps what ticks yield.
#[derive(Debug)]
pub struct Keeper {
    file: PathBuf,
    limits: Limits,
    /// Held for as long as this writes; none while the folder takes none.
    lock: Option<File>,
    writer: Option<Writer>,
    state: State,
    /// When the state began; for how long nothing was kept.
    changed: Instant,
    stopped_ns: u64,
    tried: Instant,
    ticks: u64,
    /// When the file was begun of which nothing can be read any more.
    lost_since: Option<SystemTime>,
}

impl Keeper {
    /// Opens a history, or makes one; a disk that is full or may not be written and a file that is damaged are states, not errors.
    ///
    /// # Errors
    ///
    /// If another recorder writes it, or the folder cannot be made for another reason than those.
    pub fn open(file: &Path, limits: Limits) -> Result<Self, OpenError> {
        let lock = match lock(file) {
            Ok(lock) => Some(lock),
            Err(OpenError::Folder { error, .. }) if passes(&error) => None,
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let mut keeper = Self {
            file: file.into(),
            limits,
            lock,
            writer: None,
            state: State::Recording { since: utc() },
            changed: now,
            stopped_ns: 0,
            tried: now,
            ticks: 0,
            lost_since: None,
        };
        keeper.begin(None);
        Ok(keeper)
    }

    /// What keeps it from recording, and since when in nanoseconds since 1970.
    pub fn trouble(&self) -> Option<(Reason, &str, u64)> {
        match &self.state {
            State::Recording { .. } => None,
            State::Stopped { reason, message, .. } => Some((*reason, message, self.stopped_ns)),
        }
    }

    /// Whether it is recorded, and if not, why.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Keeps a tick, if that is possible. Every fifth waits for the disk.
    pub fn keep(&mut self, tick: &Tick) {
        if self.writer.is_none() && self.tried.elapsed() >= self.limits.retry {
            self.begin(Some(tick.at_ns));
        }
        if let Err(error) = self.write(tick) {
            self.stop(error);
        }
    }

    /// Ends it cleanly.
    pub fn close(mut self) {
        if let Some(writer) = self.writer.take() {
            let closed = writer.mark(unix_ns(), "stop", 0.0, "the recorder ended").and_then(|()| writer.close());
            if let Err(error) = closed {
                tracing::warn!(%error, "the history was not closed cleanly");
            }
        }
    }

    fn write(&mut self, tick: &Tick) -> Result<(), WriteError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if !writer.is_in_place() {
            return Err(WriteError::Removed);
        }
        if self.ticks.is_multiple_of(SPARE_TICKS) {
            spare(&self.file, &self.limits)?;
        }
        self.ticks += 1;
        writer.keep(tick, asleep_ns())
    }

    /// Opens the file; sets a damaged one aside and begins a new one.
    fn begin(&mut self, at_ns: Option<u64>) {
        self.tried = Instant::now();
        let opened = self.hold().and_then(|()| spare(&self.file, &self.limits));
        let opened = opened.and_then(|()| Writer::open(&self.file, &self.limits));
        let opened = match opened {
            Err(error) if reason(&error, &self.file, &self.limits) == Reason::Damaged => self.replace(&error),
            other => other,
        };
        match opened.and_then(|writer| self.resume(&writer, at_ns).map(|()| writer)) {
            Ok(writer) => {
                self.writer = Some(writer);
                self.lost_since = None;
                self.state = State::Recording { since: utc() };
                self.changed = Instant::now();
            }
            Err(error) => self.stop(error),
        }
    }

    /// Holds the lock, if that was not possible before.
    fn hold(&mut self) -> Result<(), WriteError> {
        if self.lock.is_none() {
            self.lock = Some(lock(&self.file).map_err(|error| match error {
                OpenError::Taken(_) => WriteError::Taken,
                OpenError::Folder { error, .. } => WriteError::Lock(error),
            })?);
        }
        Ok(())
    }

    /// Says in the file that recording begins, and why it had stopped.
    fn resume(&self, writer: &Writer, at_ns: Option<u64>) -> Result<(), WriteError> {
        let at_ns = at_ns.unwrap_or_else(unix_ns);
        if let State::Stopped { reason, message, .. } = &self.state {
            let stopped = self.changed.elapsed().as_secs_f64();
            writer.mark(at_ns, reason.word(), stopped.max(seconds_since(self.lost_since)), message)?;
        }
        writer.mark(at_ns, "start", 0.0, concat!("mcptrace ", env!("CARGO_PKG_VERSION")))
    }

    fn replace(&self, error: &WriteError) -> Result<Writer, WriteError> {
        let began = begun_at(&self.file);
        let aside = set_aside(&self.file).map_err(|error| WriteError::Damaged(error.to_string()))?;
        tracing::error!(%error, aside = %aside.display(), "the history is damaged: it is set aside and a new one begun");
        let writer = Writer::open(&self.file, &self.limits)?;
        let text = format!("{error}; the former file is {}", aside.display());
        writer.mark(unix_ns(), "set_aside", seconds_since(began), &text)?;
        Ok(writer)
    }

    fn stop(&mut self, error: WriteError) {
        if let (WriteError::Removed, Some(writer)) = (&error, &self.writer) {
            self.lost_since = writer.began();
        }
        self.writer = None;
        let reason = reason(&error, &self.file, &self.limits);
        if matches!(&self.state, State::Stopped { reason: former, .. } if *former == reason) {
            return;
        }
        tracing::error!(%error, reason = reason.word(), "nothing is recorded");
        if matches!(self.state, State::Recording { .. }) {
            self.changed = Instant::now();
            self.stopped_ns = unix_ns();
        }
        self.state = State::Stopped { reason, message: error.to_string(), since: utc() };
        // A file that is damaged or gone is replaced at the next tick; the rest needs time.
        if matches!(reason, Reason::Damaged | Reason::Removed) {
            self.tried = Instant::now().checked_sub(self.limits.retry).unwrap_or(self.tried);
        } else {
            self.tried = Instant::now();
        }
    }
}

/// Every so many ticks it is looked how much room the disk has.
const SPARE_TICKS: u64 = 10;

fn lock(file: &Path) -> Result<File, OpenError> {
    let path = place::lock_file(file);
    let failed = |error: io::Error| OpenError::Folder { path: path.clone(), error };
    if let Some(folder) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(failed)?;
    }
    let lock = File::options().create(true).append(true).open(&path).map_err(failed)?;
    match ofd(&lock, libc::F_OFD_SETLK) {
        Ok(_) => Ok(lock),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OpenError::Taken(file.into())),
        Err(error) => Err(failed(error)),
    }
}

/// Whether a recorder has a file open. It is asked for the lock and never takes it: a recorder that begins just then must get it.
pub fn is_recorded(file: &Path) -> bool {
    let Ok(lock) = File::open(place::lock_file(file)) else { return false };
    ofd(&lock, libc::F_OFD_GETLK).is_ok_and(|found| i32::from(found.l_type) != libc::F_UNLCK)
}

/// Takes the lock of a whole file, or asks who has it. The lock belongs to the open file: it goes with the process, and holds between two
/// that one process has opened.
fn ofd(file: &File, command: i32) -> io::Result<libc::flock> {
    // SAFETY: all bits zero are a value of it; the length 0 is that of the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, and the pointer good for the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
        Ok(lock)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether what keeps a file from being made may pass: it is tried again. What else there is wants an operator.
fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EROFS | libc::ENOSPC | libc::EDQUOT | libc::EIO))
}

/// When a file was begun, as far as that is known.
fn begun_at(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|found| found.created()).ok()
}

fn seconds_since(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.elapsed().ok()).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn spare(file: &Path, limits: &Limits) -> Result<(), WriteError> {
    let Some(room) = file.parent().and_then(|folder| statvfs(folder).ok()) else { return Ok(()) };
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < limits.spare_bytes { Err(WriteError::Spare { free }) } else { Ok(()) }
}

fn reason(error: &WriteError, file: &Path, limits: &Limits) -> Reason {
    let error = match error {
        WriteError::Damaged(_) => return Reason::Damaged,
        WriteError::Foreign(_) => return Reason::Foreign,
        WriteError::Spare { .. } => return Reason::DiskFull,
        WriteError::Removed => return Reason::Removed,
        WriteError::Taken => return Reason::Busy,
        WriteError::Lock(error) => {
            return match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => Reason::DiskFull,
                Some(libc::EIO) => Reason::Io,
                _ => Reason::ReadOnly,
            };
        }
        WriteError::Sqlite(error) => error,
    };
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Reason::DiskFull,
        // Without a code it is a value of a type that was never written.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::TypeMismatch) | None => Reason::Damaged,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Reason::Busy,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => Reason::ReadOnly,
        Some(_) if spare(file, limits).is_err() => Reason::DiskFull,
        Some(_) => Reason::Io,
    }
}

/// Gives a damaged file another name. Only the last one is kept, so that they do not fill the disk.
fn set_aside(file: &Path) -> io::Result<PathBuf> {
    let with = |suffix: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with(".damaged");
    fs::rename(file, &aside)?;
    for suffix in ["-wal", "-shm"] {
        match fs::rename(with(suffix), with(&format!(".damaged{suffix}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

/// How long the host has slept since it was started, in nanoseconds.
fn asleep_ns() -> u64 {
    let ns = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    // Read in this order the difference is never too small by much; what is between the two readings is no sleep.
    let monotonic = ns(ClockId::Monotonic);
    ns(ClockId::Boottime).saturating_sub(monotonic)
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn utc() -> String {
    crate::clock::utc(SystemTime::now())
}
