//! Errors of tools: what a model can read and repair.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{
    bpftrace::ScriptError, executions::Refusal, kernel::discovery::DiscoveryError, recorder::history::HistoryError,
    text::clipped,
};

/// The longest message, in bytes: it may quote what was passed, and that may be megabytes.
const LONGEST: usize = 2048;

/// Why a tool did not do what it was asked. It goes into the result of the call, not into a protocol error, because clients show
/// only the former to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct ToolError {
    /// One word for the kind of error.
    pub category: &'static str,
    /// What is wrong, where, and what would be right.
    pub message: String,
    /// Known names like the unknown one, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub did_you_mean: Vec<String>,
    /// Line of a script, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column of that line, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// bpftrace's own words.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub said: Box<str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Box<str>>,
}

impl ToolError {
    /// An error with no more than a sentence.
    pub(super) fn new(category: &'static str, message: impl Into<String>) -> Self {
        Self { category, message: clipped(message.into(), LONGEST), ..Self::default() }
    }

    /// Adds names that may have been meant.
    pub(super) fn near(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.did_you_mean = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds what to do.
    pub(super) fn remedy(mut self, remedy: impl Into<Box<str>>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The call was cancelled, or the client has gone.
    pub(super) fn cancelled() -> Self {
        Self::new("cancelled", "the call was cancelled; what it had started is stopped")
    }

    /// As a reader wants it.
    pub(super) fn text(&self) -> String {
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("line {line}, column {column}: "),
            _ => String::new(),
        };
        let near = (!self.did_you_mean.is_empty()).then(|| format!("did you mean: {}", self.did_you_mean.join(", ")));
        let remedy = self.remedy.as_ref().map(|remedy| format!("remedy: {remedy}"));
        let said = (!self.said.is_empty()).then(|| format!("bpftrace said:\n{}", self.said));
        let lines = [Some(place + &self.message), near, remedy, said];
        lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }

    /// As a program wants it.
    pub(super) fn structured(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl From<Refusal> for ToolError {
    fn from(refusal: Refusal) -> Self {
        let category = refusal.category();
        match refusal {
            Refusal::Script(error) => Self::of_script(category, error),
            other => Self::new(category, other.to_string()).near(other.did_you_mean()),
        }
    }
}

impl ToolError {
    fn of_script(category: &'static str, error: ScriptError) -> Self {
        let ScriptError { category: _, message, line, column, said, did_you_mean, remedy } = error;
        let (said, remedy) = (said.into(), remedy.map(Into::into));
        Self { category, message, did_you_mean, line, column, said, remedy }
    }
}

impl From<HistoryError> for ToolError {
    fn from(error: HistoryError) -> Self {
        Self::new(error.category(), error.to_string()).near(error.did_you_mean())
    }
}

impl From<DiscoveryError> for ToolError {
    fn from(error: DiscoveryError) -> Self {
        let category = match &error {
            DiscoveryError::Limit(_) | DiscoveryError::TooLong(_) => "invalid_argument",
            DiscoveryError::BadCursor | DiscoveryError::ForeignCursor | DiscoveryError::StaleCursor => "invalid_cursor",
            DiscoveryError::Unknown { .. } | DiscoveryError::Unnamed(_) => "unknown_probe",
            DiscoveryError::Tracefs(_) | DiscoveryError::Btf(_) => "unsupported",
            DiscoveryError::Binary(_) => "invalid_binary",
        };
        match error {
            DiscoveryError::Unknown { name, did_you_mean } => {
                Self::new(category, format!("there is no probe `{name}` here")).near(did_you_mean)
            }
            other => Self::new(category, other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_quotes_does_not_make_it_long() {
        let error = ToolError::new("unknown_probe", "é".repeat(1 << 20));
        assert_eq!(error.message.len(), LONGEST + '…'.len_utf8());
        assert!(error.structured().to_string().len() < 2 * LONGEST);
    }

    #[test]
    fn text_and_structure_say_the_same() {
        let error = ToolError {
            line: Some(2),
            column: Some(7),
            ..ToolError::new("syntax", "unexpected `}`").near(["a"]).remedy("do this")
        };
        assert_eq!(error.text(), "line 2, column 7: unexpected `}`\ndid you mean: a\nremedy: do this");
        let structured = error.structured();
        assert_eq!(structured["did_you_mean"], serde_json::json!(["a"]));
        assert!(structured.get("said").is_none());
    }
}
