//! What a script may do, decided before bpftrace sees it.
//!
//! The text is read by a grammar of its own ([`parser`]); what that does not understand is refused, with the place. Then [`rules`]
//! look at what the program attaches to and calls: what is not known to be harmless is refused; [`memory`] looks at what it reads. All are
//! pure. Last, [`hooks`] counts
//! what wildcards stand for, and how often the hooks fire that print at each event.

mod hooks;
mod lexer;
mod memory;
mod parser;
mod rules;

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Bpftrace,
    error::{Category, ScriptError, position},
    task::check_input,
};
use crate::{scripts::library, secrets::Reveals};

/// Which scripts are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// None, not even those of the library.
    Never,
    /// Those that the policy admits.
    #[default]
    Policy,
    /// All; bpftrace's own safe mode is the only fence.
    Any,
}

/// What the operator allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Policy {
    /// Which scripts are run.
    pub level: Level,
    /// Whether scripts may attach to functions of programs (uprobe, uretprobe, usdt), whose arguments are what users typed.
    pub programs: bool,
    /// Which secrets scripts may read.
    #[serde(skip)]
    pub reveals: Reveals,
}

impl Level {
    /// All, as an operator writes them.
    pub const ALL: [(&str, Self); 3] = [("never", Self::Never), ("policy", Self::Policy), ("any", Self::Any)];
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, level)| level == self).map_or("", |(name, _)| name);
        formatter.write_str(name)
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, level)| *level).ok_or_else(|| "use never, policy or any".to_owned())
    }
}

/// A program that the rules let pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// What it attaches to.
    pub hooks: Vec<Hook>,
}

/// What a probe of a program attaches to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// As it is written.
    pub text: String,
    /// Where in the program, in bytes.
    pub at: usize,
    /// What it sends to user space at each event, and under a condition.
    pub outputs: Vec<Output>,
}

/// Calls that send something to user space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The function that does so most.
    pub function: String,
    /// Where in the program, in bytes.
    pub at: usize,
    /// Not at each event: there is a predicate, an `if` or a `?`.
    pub conditional: bool,
    /// How often at each event, all together, with the loops around them.
    pub times: u64,
}

impl Policy {
    /// Whether a program may run, and if not, why, where, and what would be right. Attaches nothing.
    ///
    /// Asks bpftrace for what wildcards stand for where the trace file system does not tell, and counts for `time` how often hooks
    /// fire that print at each event.
    pub fn check(self, bpftrace: &Bpftrace, program: &str, time: Duration) -> Result<(), ScriptError> {
        let Some(admitted) = self.admit(program)? else { return Ok(()) };
        hooks::check(bpftrace, &admitted.hooks, time).map_err(|fault| fault.in_program(program))
    }

    /// The part of [`Self::check`] that looks at nothing but the text. `None`: nobody asked for it to be looked at.
    pub fn admit(self, program: &str) -> Result<Option<Admitted>, ScriptError> {
        check_input(program)?;
        match self.level {
            Level::Any => Ok(None),
            Level::Never => Err(Self::none()),
            Level::Policy => self.read(program).map(Some).map_err(|fault| fault.in_program(program)),
        }
    }

    fn read(self, program: &str) -> Result<Admitted, Fault> {
        let script = parser::parse(program, rules::takes_path)?;
        let admitted = rules::admit(&script, self)?;
        // What comes with this program reads what it says it reads.
        if !library().iter().any(|ours| ours.is(program)) {
            memory::check(&script, self.reveals)?;
        }
        Ok(admitted)
    }

    fn none() -> ScriptError {
        ScriptError::new(Category::Policy, "the operator of this server allows no scripts (--allow-scripts never)")
            .with_remedy("use a native probe: list_probes shows them")
    }
}

/// Why a program is refused, at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    at: usize,
    category: Category,
    message: String,
    remedy: Option<String>,
    did_you_mean: Vec<String>,
}

impl Fault {
    fn new(at: usize, category: Category, message: impl Into<String>) -> Self {
        Self { at, category, message: message.into(), remedy: None, did_you_mean: Vec::new() }
    }

    fn policy(at: usize, message: impl Into<String>) -> Self {
        Self::new(at, Category::Policy, message)
    }

    fn syntax(at: usize, message: impl Into<String>) -> Self {
        Self::new(at, Category::Syntax, message)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn in_program(self, program: &str) -> ScriptError {
        let (line, column) = position(program, self.at.min(program.len()));
        let mut error = ScriptError::new(self.category, super::text::escape(&self.message));
        (error.line, error.column) = (Some(line), Some(column));
        (error.did_you_mean, error.remedy) = (self.did_you_mean, self.remedy);
        error
    }
}

#[cfg(test)]
mod escapes;
#[cfg(test)]
mod tests;
