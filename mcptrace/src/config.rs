//! The configuration: one file of TOML, of which every key has a row in [`KEYS`]. Variables of the environment override the file, and
//! flags of a command both. A key that is not known is an error, as is a value that does not fit: nothing is read otherwise than meant.

mod keys;
mod read;
mod show;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    keys::{KEYS, Key},
    read::{ConfigError, Loaded, check, load, text},
    show::{document, show, summary},
};
use crate::{
    audit::{Destination, Settings},
    bpftrace::{
        launcher,
        policy::{Level, Policy},
    },
    executions,
    recorder::place,
    secrets::{Reveals, Secret},
    server::http::DEFAULT_ADDRESS,
};

/// Where the file is if nobody says.
pub const DEFAULT_FILE: &str = "/etc/mcptrace/config.toml";
/// The variable that names the file.
pub const VARIABLE: &str = "MCPTRACE_CONFIG";

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What scripts may do.
    pub scripts: Scripts,
    /// How bpftrace is started.
    pub bpftrace: Bpftrace,
    /// What bounds executions.
    pub limits: Limits,
    /// What is shown of traced programs.
    pub secrets: Secrets,
    /// What is recorded of who does what.
    pub audit: Audit,
    /// Who may reach the daemon.
    pub socket: Socket,
    /// How the server is reached over HTTP.
    pub http: Http,
    /// What the daemon records.
    pub recorder: Recorder,
}

/// `[scripts]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scripts {
    allow: String,
    programs: bool,
}

/// `[bpftrace]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bpftrace {
    command: String,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    running: usize,
    running_each: usize,
    kept: usize,
    keep_seconds: u64,
    events_mb: usize,
    longest_seconds: u64,
    execution_percent: f64,
}

/// `[secrets]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    /// Kinds of strings that are shown as they are.
    pub reveal: Vec<String>,
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    to: String,
    file_mb: u64,
    files: u32,
    group_reads: bool,
    required: bool,
}

/// `[socket]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// The group that may connect.
    pub group: String,
    /// Users that may connect beside root and the group.
    pub users: Vec<u32>,
    /// Connections at once.
    pub connections: usize,
    /// Connections of one user at once.
    pub connections_each: usize,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Whether the daemon serves over it too.
    pub listen: bool,
    /// Where it listens.
    pub address: SocketAddr,
    /// The file of tokens; empty for none.
    pub tokens: PathBuf,
    /// The certificate with its chain, and its key; empty for none.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// The server's own URL; empty: as it listens.
    pub url: String,
    /// Web pages that may call.
    pub origins: Vec<String>,
    /// The identity provider whose tokens are taken; empty for none.
    pub issuer: String,
    /// The file of its public keys.
    pub jwks: PathBuf,
}

/// `[recorder]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recorder {
    /// Where the history is; empty: where systemd says, or the default.
    pub state: PathBuf,
    /// How large it may get.
    pub size_mb: u64,
    /// What recording may cost, of the time of all CPUs.
    pub budget_percent: f64,
    /// Whether it looks at system calls for a part of the time.
    pub syscalls: bool,
    /// Whether results of executions are kept in the history.
    pub results: bool,
}

impl Default for Scripts {
    fn default() -> Self {
        Self { allow: Level::default().to_string(), programs: false }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let limits = executions::Limits::default();
        Self {
            running: limits.running,
            running_each: 0,
            kept: limits.kept,
            keep_seconds: limits.keep.as_secs(),
            events_mb: limits.bytes >> 20,
            longest_seconds: limits.longest.as_secs(),
            execution_percent: 5.0,
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        let Settings { to: _, bytes, kept, group_reads, required } = Settings::default();
        Self { to: "auto".to_owned(), file_mb: bytes >> 20, files: kept, group_reads, required }
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            path: "/run/mcptrace/mcptrace.sock".into(),
            group: "mcptrace".to_owned(),
            users: Vec::new(),
            connections: 64,
            connections_each: 16,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        let empty = PathBuf::new;
        Self {
            listen: false,
            address: DEFAULT_ADDRESS,
            tokens: empty(),
            certificate: empty(),
            key: empty(),
            url: String::new(),
            origins: Vec::new(),
            issuer: String::new(),
            jwks: empty(),
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self { state: PathBuf::new(), size_mb: 190, budget_percent: 1.0, syscalls: true, results: true }
    }
}

impl Config {
    /// What scripts may do. The level has been checked when it was read.
    pub fn policy(&self) -> Policy {
        Policy {
            level: self.scripts.allow.parse().unwrap_or(Level::Never),
            programs: self.scripts.programs,
            reveals: Reveals::of(&self.secrets.reveal.join(",")),
        }
    }

    /// The command of bpftrace, if the operator has one.
    fn bpftrace_command(&self) -> Vec<String> {
        self.bpftrace.command.split_whitespace().map(str::to_owned).collect()
    }

    /// What the launcher of scripts is told. Each execution runs bpftrace once at a time; some more for those that are about to start, and
    /// for `bpf_info`.
    pub fn launcher(&self) -> launcher::Settings {
        const MORE: usize = 16;
        launcher::Settings {
            policy: self.policy(),
            most: self.limits.running + MORE,
            longest: Duration::from_secs(self.limits.longest_seconds),
            command: self.bpftrace_command(),
        }
    }

    /// What bounds executions of those that are served, who do not look on as a person at a shell does.
    pub fn served_limits(&self) -> executions::Limits {
        let budget = Some(self.limits.execution_percent).filter(|percent| *percent > 0.0);
        executions::Limits { budget, ..self.limits() }
    }

    /// What bounds executions.
    pub fn limits(&self) -> executions::Limits {
        let Limits { running, running_each, kept, keep_seconds, events_mb, longest_seconds, execution_percent: _ } =
            self.limits;
        executions::Limits {
            running,
            running_each: if running_each == 0 { executions::leaving_room(running) } else { running_each },
            kept,
            keep: Duration::from_secs(keep_seconds),
            bytes: events_mb << 20,
            longest: Duration::from_secs(longest_seconds),
            budget: None,
            scripts: self.policy(),
            bpftrace: Some(self.bpftrace_command()).filter(|command| !command.is_empty()),
            history: self.recorder.results.then(|| place::folder(None)),
        }
    }

    /// Where records go. `auto` is standard error for those that serve others, and nowhere for those that serve who started them.
    pub fn audit(&self, serves_others: bool) -> Settings {
        let to = match self.audit.to.as_str() {
            "auto" if serves_others => Destination::Stderr,
            "auto" | "off" => Destination::Nowhere,
            "stderr" => Destination::Stderr,
            "journal" => Destination::Journal,
            path => Destination::File(path.into()),
        };
        let Audit { to: _, file_mb, files, group_reads, required } = self.audit;
        Settings { to, bytes: file_mb << 20, kept: files, group_reads, required }
    }

    /// Takes over what flags say of scripts.
    #[must_use]
    pub fn with_policy(mut self, level: Option<Level>, programs: bool) -> Self {
        if let Some(level) = level {
            self.scripts.allow = level.to_string();
        }
        self.scripts.programs |= programs;
        self
    }

    /// Takes over what a flag says of the budget of executions.
    #[must_use]
    pub fn with_budget(mut self, percent: Option<f64>) -> Self {
        self.limits.execution_percent = percent.unwrap_or(self.limits.execution_percent);
        self
    }

    /// Takes over what flags say of the recorder.
    #[must_use]
    pub fn with_recorder(mut self, size_mb: Option<u64>, budget_percent: Option<f64>, no_syscalls: bool) -> Self {
        self.recorder.size_mb = size_mb.unwrap_or(self.recorder.size_mb);
        self.recorder.budget_percent = budget_percent.unwrap_or(self.recorder.budget_percent);
        self.recorder.syscalls &= !no_syscalls;
        self
    }

    /// Sets what the whole process goes by: which strings are shown, and where the history is.
    pub fn apply(&self) {
        crate::secrets::reveal(&self.secrets.reveal.join(","));
        if !self.recorder.state.as_os_str().is_empty() {
            place::set_folder(&self.recorder.state);
        }
    }

    /// What is wrong with values that have the right type: the key, and what would be right.
    fn faults(&self) -> Vec<(&'static str, String)> {
        let audit = self.audit.to.as_str();
        let words = ["auto", "off", "stderr", "journal"];
        let kinds: Vec<&str> = Secret::ALL.map(Secret::word).into_iter().chain(["all"]).collect();
        let level = self.scripts.allow.parse::<Level>();
        let limits = &self.limits;
        let checks = [
            (level.is_ok(), "scripts.allow", level.err().unwrap_or_default()),
            ((1..=256).contains(&limits.running), "limits.running", "use 1 to 256".to_owned()),
            (limits.running_each <= 256, "limits.running_each", "use 0 (three quarters of running) to 256".to_owned()),
            (limits.kept <= 10_000, "limits.kept", "use 0 to 10000".to_owned()),
            (limits.keep_seconds <= 604_800, "limits.keep_seconds", "use 0 to 604800 (a week)".to_owned()),
            ((1..=4096).contains(&limits.events_mb), "limits.events_mb", "use 1 to 4096".to_owned()),
            ((1..=604_800).contains(&limits.longest_seconds), "limits.longest_seconds", "use 1 to 604800".to_owned()),
            (
                (0.0..=100_000.0).contains(&limits.execution_percent),
                "limits.execution_percent",
                "use 0 (no bound) to 100000".to_owned(),
            ),
            (
                self.http.certificate.as_os_str().is_empty() == self.http.key.as_os_str().is_empty(),
                "http.key",
                "certificate and key go together".to_owned(),
            ),
            (
                self.http.issuer.is_empty() == self.http.jwks.as_os_str().is_empty(),
                "http.jwks",
                "issuer and jwks go together".to_owned(),
            ),
            (
                self.secrets.reveal.iter().all(|kind| kinds.contains(&kind.as_str())),
                "secrets.reveal",
                format!("use {}", kinds.join(", ")),
            ),
            (
                words.contains(&audit) || Path::new(audit).is_absolute(),
                "audit.to",
                format!("use {} or the absolute path of a file", words.join(", ")),
            ),
            ((1..=10_000).contains(&self.audit.file_mb), "audit.file_mb", "use 1 to 10000".to_owned()),
            (self.audit.files <= 1000, "audit.files", "use 0 to 1000".to_owned()),
            (self.socket.path.is_absolute(), "socket.path", "use an absolute path".to_owned()),
            ((1..=4096).contains(&self.socket.connections), "socket.connections", "use 1 to 4096".to_owned()),
            ((1..=4096).contains(&self.socket.connections_each), "socket.connections_each", "use 1 to 4096".to_owned()),
            (
                self.recorder.state.as_os_str().is_empty() || self.recorder.state.is_absolute(),
                "recorder.state",
                "use an absolute path".to_owned(),
            ),
            ((16..=1_000_000).contains(&self.recorder.size_mb), "recorder.size_mb", "use 16 to 1000000".to_owned()),
            (
                (0.05..=50.0).contains(&self.recorder.budget_percent),
                "recorder.budget_percent",
                "use 0.05 to 50".to_owned(),
            ),
        ];
        checks.into_iter().filter(|(good, _, _)| !good).map(|(_, key, right)| (key, right)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_bounds_in_their_units() {
        let limits = Limits {
            running: 3,
            running_each: 2,
            kept: 5,
            keep_seconds: 7,
            events_mb: 11,
            longest_seconds: 13,
            execution_percent: 17.0,
        };
        let scripts = Scripts { allow: "any".into(), programs: true };
        let mut config = Config { scripts, limits, ..Config::default() };
        config.bpftrace.command = "sudo  -n bpftrace".into();
        let limits = config.limits();
        assert_eq!((limits.running, limits.running_each, limits.kept, limits.bytes), (3, 2, 5, 11 * 1024 * 1024));
        assert_eq!((limits.keep, limits.longest), (Duration::from_secs(7), Duration::from_secs(13)));
        assert_eq!((limits.budget, config.served_limits().budget), (None, Some(17.0)));
        assert_eq!(limits.bpftrace, Some(["sudo", "-n", "bpftrace"].map(str::to_owned).to_vec()));
        assert!(limits.history.is_some() && limits.scripts.programs && limits.scripts.level == Level::Any);
        let launcher = config.launcher();
        assert!(launcher.most > limits.running, "those that are about to start have room");
        assert_eq!((launcher.longest, launcher.policy), (limits.longest, limits.scripts));
        assert_eq!(Some(launcher.command), limits.bpftrace);

        config.limits.execution_percent = 0.0;
        config.bpftrace.command = " ".into();
        config.recorder.results = false;
        assert_eq!(config.served_limits().budget, None, "0 is no bound");
        assert_eq!((config.limits().bpftrace, config.limits().history), (None, None));
    }

    #[test]
    fn a_level_that_is_none_lets_nothing_run() {
        let config = Config { scripts: Scripts { allow: "sometimes".into(), programs: false }, ..Config::default() };
        assert_eq!(config.policy().level, Level::Never);
    }

    #[test]
    fn records_go_where_the_setting_says() {
        let to = |text: &str, serves_others| {
            let audit = Audit { to: text.into(), file_mb: 3, files: 4, ..Audit::default() };
            let config = Config { audit, ..Config::default() };
            let settings = config.audit(serves_others);
            assert_eq!((settings.bytes, settings.kept), (3 << 20, 4));
            settings.to
        };
        assert_eq!(to("auto", true), Destination::Stderr);
        assert_eq!(to("auto", false), Destination::Nowhere);
        assert_eq!(to("off", true), Destination::Nowhere);
        assert_eq!(to("stderr", false), Destination::Stderr);
        assert_eq!(to("journal", false), Destination::Journal);
        assert_eq!(to("/var/log/audit", true), Destination::File("/var/log/audit".into()));
    }

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let config = || Config::default();
        assert_eq!(config().with_policy(None, false).with_budget(None).with_recorder(None, None, false), config());
        let flagged = config().with_policy(Some(Level::Never), true);
        assert_eq!((flagged.policy().level, flagged.scripts.programs), (Level::Never, true));
        assert!(flagged.with_policy(None, false).scripts.programs, "a flag that is not given takes nothing away");
        assert!((config().with_budget(Some(2.5)).limits.execution_percent - 2.5).abs() < f64::EPSILON);
        let recorder = config().with_recorder(Some(64), Some(0.5), true).recorder;
        assert_eq!(recorder, Recorder { size_mb: 64, budget_percent: 0.5, syscalls: false, ..Recorder::default() });
        let mut off = config();
        off.recorder.syscalls = false;
        assert!(!off.with_recorder(None, None, false).recorder.syscalls, "nor does it turn on what the file turns off");
    }
}
