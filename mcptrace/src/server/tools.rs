//! The table of tools: a row each, and its file.

mod bpf_info;
mod describe_probe;
mod exec_program;
mod get_result;
mod list_executions;
mod list_probes;
mod query_history;
mod run_probe;
mod stop_execution;
mod triage;

use std::{
    pin::Pin,
    sync::{Arc, LazyLock},
};

use rmcp::{
    ErrorData,
    model::{Tool, ToolAnnotations},
};
use schemars::Schema;
use serde_json::{Value, json};

use super::{
    call::{Call, Reply},
    error::ToolError,
    schema,
};
use crate::{probes::Entry, suggest::nearest};

/// Every tool, in the order clients show them.
pub(super) const TOOLS: &[Row] = &[
    triage::ROW,
    run_probe::ROW,
    list_probes::ROW,
    describe_probe::ROW,
    get_result::ROW,
    list_executions::ROW,
    stop_execution::ROW,
    exec_program::ROW,
    query_history::ROW,
    bpf_info::ROW,
];

/// What a tool gives: a reply or an error that the model can repair.
pub(super) type Outcome = Result<Reply, ToolError>;
/// An outcome, or an error of the protocol.
pub(super) type Answered = Result<Outcome, ErrorData>;
/// A tool at work.
pub(super) type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A tool.
pub(super) struct Row {
    /// Its name.
    pub(super) name: &'static str,
    /// Its name for people.
    pub(super) title: &'static str,
    /// When to use it and when not.
    pub(super) description: &'static str,
    /// The schema of its arguments.
    pub(super) input: fn() -> Schema,
    /// The schema of its structured results.
    pub(super) output: fn() -> Schema,
    /// What it does to the world.
    pub(super) effect: Effect,
    /// What it does.
    pub(super) call: fn(Call) -> Work,
}

/// What a tool does to the world. None destroys anything or reaches beyond this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It reads.
    Reads,
    /// It changes something, and doing it twice is as doing it once.
    Settles,
    /// It starts something, each time anew.
    Starts,
}

struct Built {
    name: &'static str,
    input: Value,
    tool: Tool,
}

/// Schemas are made once, at the first call that needs them.
static BUILT: LazyLock<Vec<Built>> = LazyLock::new(|| TOOLS.iter().map(Row::build).collect());

/// The tools as clients see them.
pub fn list() -> Vec<Tool> {
    BUILT.iter().map(|built| built.tool.clone()).collect()
}

/// A native probe as `describe_probe` tells of it.
pub(super) fn describe_native(entry: &Entry) -> Result<Value, ToolError> {
    describe_probe::native_object(entry).map(Value::Object)
}

/// The tool of a name.
pub(super) fn find(name: &str) -> Result<&'static Row, ErrorData> {
    TOOLS.iter().find(|row| row.name == name).ok_or_else(|| {
        let near = nearest(name, TOOLS.iter().map(|row| row.name));
        let data = near.map(|near| json!({ "did_you_mean": near }));
        let name = crate::text::untrusted(name.as_bytes(), 100);
        ErrorData::invalid_params(format!("Unknown tool: {name}"), data)
    })
}

impl Row {
    /// The schema that arguments are made to fit.
    pub(super) fn arguments(&self) -> &'static Value {
        static NONE: Value = Value::Null;
        BUILT.iter().find(|built| built.name == self.name).map_or(&NONE, |built| &built.input)
    }

    fn build(&self) -> Built {
        let input = schema::input((self.input)());
        let tool = Tool::new(self.name, self.description, Arc::new(schema::published(input.clone())))
            .with_title(self.title)
            .with_raw_output_schema(Arc::new(schema::output((self.output)())))
            .with_annotations(self.effect.annotations());
        Built { name: self.name, input, tool }
    }
}

impl Effect {
    fn annotations(self) -> ToolAnnotations {
        let reads = self == Self::Reads;
        let hints = ToolAnnotations::new().read_only(reads).open_world(false);
        if reads { hints } else { hints.destructive(false).idempotent(self == Self::Settles) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_complete_and_names_unique() {
        let names: std::collections::BTreeSet<_> = TOOLS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TOOLS.len());
        for tool in list() {
            assert!(tool.title.is_some() && tool.annotations.is_some(), "{}", tool.name);
            assert_eq!(tool.input_schema["type"], "object", "{}", tool.name);
            assert_eq!(tool.output_schema.unwrap()["type"], "object", "{}", tool.name);
        }
    }

    #[test]
    fn descriptions_say_when_to_use_and_when_not() {
        for row in TOOLS {
            assert!(row.description.contains("Use "), "{}", row.name);
            assert!(row.description.len() < 700, "{}: {}", row.name, row.description.len());
        }
    }

    #[test]
    fn argument_schemas_have_nothing_that_clients_reject() {
        for tool in list() {
            for key in ["oneOf", "anyOf", "allOf", "$defs", "$ref"] {
                assert!(!tool.input_schema.contains_key(key), "{}: {key}", tool.name);
            }
            let text = serde_json::to_string(&tool.input_schema).unwrap();
            for never in ["\"null\"", "$ref", "\"format\":\""] {
                assert!(!text.contains(never), "{}: {never} in {text}", tool.name);
            }
            assert_eq!(tool.input_schema["additionalProperties"], false, "{}", tool.name);
        }
    }
}
