//! What triage finds: a kind, how bad, the numbers, who, and what to do next. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Number;
use crate::report::text;

/// What kind of trouble. The names are part of the tool's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it, and `symptoms` and the rules the rest")]
pub enum Kind {
    CpuSaturation,
    RunqDelay,
    RunawayProcess,
    CpuSteal,
    DiskLatency,
    DiskSaturation,
    FsyncStorm,
    MemoryReclaim,
    MemoryLimit,
    Oom,
    UserLockContention,
    KernelLockContention,
    TcpRetransmits,
    PacketDrops,
    ConnectionRefused,
    DnsSlow,
    SyscallFailures,
    ExecStorm,
    SignalStorm,
    IrqLoad,
    CgroupThrottling,
}

use Kind::{
    CgroupThrottling, ConnectionRefused, CpuSaturation, CpuSteal, DiskLatency, DiskSaturation, DnsSlow, ExecStorm,
    FsyncStorm, IrqLoad, KernelLockContention, MemoryLimit, MemoryReclaim, Oom, PacketDrops, RunawayProcess, RunqDelay,
    SignalStorm, SyscallFailures, TcpRetransmits, UserLockContention,
};

impl Kind {
    /// What follows from it, and is not the cause where both are found.
    pub fn symptoms(self) -> &'static [Kind] {
        match self {
            // A holder that waits for a CPU makes everybody wait for its lock.
            CpuSaturation => &[RunqDelay, RunawayProcess, UserLockContention],
            CpuSteal => &[RunqDelay, CpuSaturation, UserLockContention],
            CgroupThrottling => &[RunqDelay, CpuSaturation, RunawayProcess, UserLockContention],
            FsyncStorm => &[DiskLatency, DiskSaturation, RunawayProcess],
            DiskSaturation => &[DiskLatency],
            MemoryReclaim => {
                &[DiskLatency, DiskSaturation, RunawayProcess, CpuSaturation, RunqDelay, KernelLockContention]
            }
            MemoryLimit | Oom => &[
                MemoryReclaim,
                DiskLatency,
                DiskSaturation,
                RunawayProcess,
                CpuSaturation,
                RunqDelay,
                KernelLockContention,
                ExecStorm,
            ],
            KernelLockContention | SyscallFailures => &[CpuSaturation, RunqDelay, RunawayProcess],
            ConnectionRefused => &[
                CpuSaturation,
                RunqDelay,
                RunawayProcess,
                SyscallFailures,
                TcpRetransmits,
                PacketDrops,
                IrqLoad,
                KernelLockContention,
            ],
            ExecStorm => {
                &[CpuSaturation, RunqDelay, RunawayProcess, SyscallFailures, KernelLockContention, SignalStorm, IrqLoad]
            }
            SignalStorm => &[CpuSaturation, RunqDelay, RunawayProcess, SyscallFailures, KernelLockContention],
            IrqLoad => &[CpuSaturation, RunqDelay, RunawayProcess, PacketDrops],
            TcpRetransmits | DnsSlow => &[PacketDrops],
            UserLockContention | RunqDelay | RunawayProcess | DiskLatency | PacketDrops => &[],
        }
    }
}

impl Kind {
    /// Whether it is what one process does, not the machine.
    pub fn is_of_process(self) -> bool {
        matches!(
            self,
            UserLockContention
                | KernelLockContention
                | SyscallFailures
                | SignalStorm
                | ConnectionRefused
                | FsyncStorm
                | ExecStorm
        )
    }

    /// Whether a live look can say whose doing it is: what comes from outside is nobody's.
    pub fn has_process(self) -> bool {
        !matches!(self, TcpRetransmits | PacketDrops | CpuSteal | Oom)
    }
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// Somebody notices.
    Medium,
    /// Work does not get done.
    High,
}

impl Severity {
    /// Severity of an impact from 0 to 1.
    pub fn of(impact: f64) -> Self {
        match impact {
            high if high >= 0.6 => Self::High,
            medium if medium >= 0.3 => Self::Medium,
            _ => Self::Low,
        }
    }

    /// The word used in JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Who is behind it or suffers from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Who {
    /// Process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub pid: Option<u32>,
    /// Its command name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comm: String,
    /// Control group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
    /// Block device, interrupt or function of the kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// The other end of a connection.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// Its part in it, in `unit`.
    pub value: f64,
    /// Unit of `value`.
    pub unit: String,
}

/// The call to make next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Next {
    /// The tool.
    pub tool: String,
    /// Its arguments.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub arguments: Value,
}

impl Next {
    /// A probe to run.
    pub fn probe(name: &str, filter: Value, options: Value) -> Self {
        let mut arguments = json!({ "probe": name, "seconds": 10 });
        for (key, value) in [("filter", filter), ("options", options)] {
            if value.as_object().is_some_and(|map| !map.is_empty()) {
                arguments[key] = value;
            }
        }
        Self { tool: "run_probe".into(), arguments }
    }

    /// The same at a shell.
    pub fn at_a_shell(&self) -> String {
        let of = |name: &str| self.arguments.get(name).and_then(Value::as_object).into_iter().flatten();
        let flag = |(name, value): (&String, &Value)| match value {
            Value::Bool(true) => format!(" --{}", name.replace('_', "-")),
            Value::Bool(false) | Value::Null => String::new(),
            value => format!(" --{} {}", name.replace('_', "-"), word(value)),
        };
        let flags: String = of("filter").chain(of("options")).map(flag).collect();
        format!("mcptrace run {} -d {}{flags}", word(&self.arguments["probe"]), word(&self.arguments["seconds"]))
    }
}

/// A value as one word of a shell.
fn word(value: &Value) -> String {
    let text = text::units::text(value);
    let is_plain = |one: char| one.is_ascii_alphanumeric() || "_-./:".contains(one);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// One thing that stands out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// 1 for the likeliest cause.
    pub rank: u32,
    /// What kind of trouble.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// One sentence.
    pub summary: String,
    /// The numbers behind it.
    pub evidence: Vec<Number>,
    /// Who, most first; at most three.
    pub who: Vec<Who>,
    /// How sure, from 0 to 1.
    pub confidence: f64,
    /// It has passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
    /// Findings that explain it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because_of: Vec<Kind>,
    /// The call to make next.
    pub next: Next,
    /// From 0 (nothing) to 1 (work does not get done): what it is ranked by.
    #[serde(skip)]
    pub impact: f64,
}

/// What a rule says of its own before it is ranked.
#[derive(Clone, Debug)]
pub struct Judged {
    /// From 0 to 1.
    pub impact: f64,
    /// From 0 to 1.
    pub confidence: f64,
    /// One sentence without anything that traced programs chose.
    pub summary: String,
    /// The numbers behind it.
    pub evidence: Vec<Number>,
    /// Who, most first.
    pub who: Vec<Who>,
    /// The call to make next.
    pub next: Next,
}

impl Finding {
    /// A finding of a kind.
    pub fn new(kind: Kind, judged: Judged) -> Self {
        let Judged { impact, confidence, summary, evidence, mut who, next } = judged;
        who.truncate(3);
        let impact = impact.clamp(0.0, 1.0);
        Self {
            rank: 0,
            kind,
            severity: Severity::of(impact),
            summary,
            evidence,
            who,
            confidence,
            over: false,
            because_of: Vec::new(),
            next,
            impact,
        }
    }

    /// The processes that are named.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.who.iter().filter_map(|who| who.pid)
    }

    /// Makes the next call about a process that lives: the one that it is about, else another that is named, else about all.
    pub fn ask_about_the_living(&mut self, lives: impl Fn(&Who) -> bool) {
        let Some(filter) = self.next.arguments.get("filter").and_then(|filter| filter.get("pid")) else { return };
        let first = filter.as_u64();
        let mut who: Vec<_> = self.who.iter().filter(|who| who.pid.is_some()).collect();
        who.sort_by_key(|who| who.pid.map(u64::from) != first);
        let living = who.into_iter().find(|who| lives(who)).and_then(|who| who.pid);
        match (living, self.next.arguments.as_object_mut()) {
            (Some(pid), Some(arguments)) => _ = arguments.insert("filter".into(), json!({ "pid": pid })),
            (None, Some(arguments)) => _ = arguments.remove("filter"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_call_has_its_words_at_a_shell() {
        let shell = |filter, options| Next::probe("syscall_errors", filter, options).at_a_shell();
        assert_eq!(
            shell(json!({ "pid": 7 }), json!({ "slower_than_us": 5, "events": true, "failed_only": false })),
            "mcptrace run syscall_errors -d 10 --pid 7 --slower-than-us 5 --events"
        );
        assert_eq!(
            shell(json!({ "comm": "a'; b" }), Value::Null),
            "mcptrace run syscall_errors -d 10 --comm 'a'\\''; b'"
        );
    }

    #[test]
    fn the_next_call_is_about_a_process_that_lives() {
        let who = |pid| Who { pid: Some(pid), ..Who::default() };
        let judged = Judged {
            impact: 0.9,
            confidence: 0.9,
            summary: String::new(),
            evidence: Vec::new(),
            who: vec![who(7), who(8)],
            next: Next::probe("cpu_profile", json!({ "pid": 7 }), json!({ "by": "pid" })),
        };
        for (living, filter) in
            [(vec![7, 8], json!({ "pid": 7 })), (vec![8], json!({ "pid": 8 })), (vec![], Value::Null)]
        {
            let mut finding = Finding::new(CpuSaturation, judged.clone());
            finding.ask_about_the_living(|who| who.pid.is_some_and(|pid| living.contains(&pid)));
            assert_eq!(finding.next.arguments.get("filter").cloned().unwrap_or_default(), filter, "{living:?}");
            assert_eq!(finding.next.arguments["options"]["by"], "pid");
        }
    }
}
