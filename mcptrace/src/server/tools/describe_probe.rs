//! `describe_probe`: all about one probe.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Effect, Outcome, Row};
use crate::{
    bpftrace::tools,
    executions::obstacle,
    kernel::discovery::{self, Access, DiscoveryError, KernelProbe},
    probes::{self, Entry, PROBES},
    report::Field,
    scripts::{ByPid, Script},
    server::{
        bounds,
        call::{Call, Reply},
        error::ToolError,
        schema,
        tools::list_probes,
    },
    suggest::nearest,
};

pub(super) const ROW: Row = Row {
    name: "describe_probe",
    title: "Describe a probe",
    description: "Tells all about one probe: for a native one what its numbers mean, options, fields with units, needs, cost, an example \
        and what to look at next; for a kernel probe (tracepoint:sched:sched_switch) its arguments; a library script. Use it before a first run or a script. \
        Not for finding probes: list_probes.",
    input: || schema_for!(Arguments),
    output: schema::of_result::<Described>,
    effect: Effect::Settles,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// A name from list_probes
    name: String,
}

/// What is said of any probe, and what only one kind has.
#[derive(Serialize, JsonSchema)]
struct Described {
    /// Its name
    name: String,
    /// `native`, or the type of a kernel probe
    kind: String,
    /// All else: for native probes summary, details, options, fields, hooks, needs, cost_ns, example, next
    #[serde(flatten)]
    #[schemars(skip)]
    more: Map<String, Value>,
}

/// A native probe, as told.
#[derive(Serialize)]
pub(in crate::server) struct Native {
    summary: &'static str,
    category: &'static str,
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    details: &'static str,
    options: Value,
    fields: Vec<Field>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    event_fields: Vec<Field>,
    hooks: Vec<String>,
    needs: &'static [&'static str],
    /// Added to each event on the reference machine.
    cost_ns: f64,
    example: Value,
    next: &'static [&'static str],
}

/// A library script, or a tool of the host.
#[derive(Serialize)]
struct ScriptTold<'a> {
    summary: &'a str,
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    read: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    needs: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cost: &'a str,
    pid: &'static str,
    hooks: Vec<String>,
    example: Value,
    program: &'a str,
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    let described = call.looking(move |_| describe(&arguments.name)).await??;
    Reply::with_text(text(&described), &described)
}

fn describe(name: &str) -> Result<Described, ToolError> {
    if let Some(entry) = probes::find(name) {
        return native(entry);
    }
    if let Some(script) = tools::named(name) {
        return library_script(&script);
    }
    let probe = discovery::describe(name, Access { allow_mount: true, fentry_works: None })
        .map_err(|error| unknown(name, error))?;
    kernel_probe(&probe)
}

/// A native probe as an object.
pub(in crate::server) fn native_object(entry: &Entry) -> Result<Map<String, Value>, ToolError> {
    let reason = obstacle(entry);
    let native = Native {
        summary: entry.summary,
        category: entry.category,
        available: reason.is_none(),
        reason,
        details: entry.details,
        options: options(entry),
        fields: (entry.fields)(),
        event_fields: entry.further_event_fields(),
        hooks: entry.hook_names(),
        needs: entry.needs,
        cost_ns: entry.cost_ns,
        example: serde_json::from_str(entry.example).unwrap_or_default(),
        next: entry.next,
    };
    object(&native)
}

fn native(entry: &Entry) -> Result<Described, ToolError> {
    Ok(Described { name: entry.name.into(), kind: "native".into(), more: native_object(entry)? })
}

/// What a script is for, how to read it, and its text.
fn library_script(script: &Script) -> Result<Described, ToolError> {
    let reason = list_probes::script_obstacle(script);
    let told = ScriptTold {
        summary: &script.question,
        available: reason.is_none(),
        reason,
        read: &script.read,
        needs: &script.needs,
        cost: &script.cost,
        pid: match script.pid {
            ByPid::Never => "no",
            ByPid::Optional => "optional",
            ByPid::Required => "required",
        },
        hooks: script.hooks(),
        example: json!({ "script": script.name, "timeout": 5 }),
        program: &script.text,
    };
    Ok(Described { name: script.name.clone(), kind: "script".into(), more: object(&told)? })
}

fn options(entry: &Entry) -> Value {
    let schema = schema::published(schema::input((entry.schema)()));
    schema.get("properties").cloned().unwrap_or_else(|| Value::Object(Map::new()))
}

fn kernel_probe(probe: &KernelProbe) -> Result<Described, ToolError> {
    let mut more = object(probe)?;
    more.remove("name");
    more.remove("kind");
    Ok(Described { name: probe.name.clone(), kind: probe.kind.clone(), more })
}

fn object(value: &impl Serialize) -> Result<Map<String, Value>, ToolError> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(ToolError::new("internal", "a description is no object")),
    }
}

fn unknown(name: &str, error: DiscoveryError) -> ToolError {
    let near = nearest(name, PROBES.iter().map(|entry| entry.name));
    match (&error, near) {
        (DiscoveryError::Unnamed(_), near) if !name.contains(':') => {
            let name = crate::text::untrusted(name.as_bytes(), 100);
            let message = format!("there is no native probe `{name}`, and kernel probes are named TYPE:NAME");
            ToolError::new("unknown_probe", message).near(near).remedy("list_probes shows what there is")
        }
        _ => error.into(),
    }
}

fn text(described: &Described) -> String {
    let mut lines = vec![format!("{} ({})", described.name, described.kind)];
    let told = |key: &str| described.more.get(key);
    for key in ["summary", "details", "read", "reason", "returns"] {
        lines.extend(told(key).and_then(Value::as_str).map(str::to_owned));
    }
    lines.extend(told("options").and_then(Value::as_object).into_iter().flatten().map(option_line));
    for key in ["fields", "event_fields", "arguments"] {
        lines.extend(told(key).and_then(Value::as_array).map(|fields| format!("{key}: {}", field_names(fields))));
    }
    let tool = if described.kind == "script" { "exec_program" } else { "run_probe" };
    lines.extend(told("example").map(|example| format!("example: {tool} {example}")));
    for key in ["next", "notes"] {
        let said = told(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        lines.extend(said.map(|line| format!("{key}: {line}")));
    }
    bounds::cut(lines.join("\n"))
}

fn option_line((name, schema): (&String, &Value)) -> String {
    let what = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    format!("option {name} ({kind}): {what}")
}

fn field_names(fields: &[Value]) -> String {
    let name = |field: &Value| {
        let part = |key: &str| field.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = [part("unit"), part("type")].concat();
        if kind.is_empty() { part("name") } else { format!("{} ({kind})", part("name")) }
    };
    fields.iter().map(name).collect::<Vec<_>>().join(", ")
}
