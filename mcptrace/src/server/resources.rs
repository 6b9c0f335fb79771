//! Resources: what clients can attach to a conversation without a call.

use std::sync::Arc;

use rmcp::{
    ErrorData,
    model::{PaginatedRequestParams, ReadResourceResult, Resource, ResourceContents, ResourceTemplate},
};
use schemars::schema_for;
use serde_json::{Value, json};

use super::{Server, bounds, tools::describe_native};
use crate::{
    bpftrace::tools,
    execution::{Execution, Page},
    executions::summary,
    probes::{self, PROBES},
    report::Report,
    scripts,
};

const SCHEMA_URI: &str = "mcptrace://schema/report";
/// The resource of a probe, and that of its template.
pub(super) const PROBE_URI: &str = "mcptrace://probes/";
/// The resource of an execution, and that of its template.
pub(super) const EXECUTION_URI: &str = "mcptrace://executions/";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
/// What stacks may take, drawn or not, in bytes.
const MOST_BYTES: usize = 1 << 20;
/// Rows and bytes of an execution that is read as a resource.
const PAGE: Page = Page { from: 0, event: 0, limit: 1000, max_bytes: 64 << 10 };

/// All resources; there are few enough for one page, because few executions are kept.
pub(super) fn list(executions: &[Arc<Execution>]) -> Vec<Resource> {
    let schema = resource(SCHEMA_URI, "report schema", "JSON schema of `report` in results");
    let probes = PROBES.iter().map(|entry| resource(&format!("{PROBE_URI}{}", entry.name), entry.name, entry.summary));
    let scripts = scripts::library().iter().map(|script| {
        resource(&format!("{}{}", scripts::URI, script.name), &script.name, &script.question).with_mime_type(TEXT)
    });
    let executions = executions.iter().map(|execution| {
        let summary = summary(execution);
        let what = if summary.probe.is_empty() { "script" } else { &summary.probe };
        let text = format!("{what}, {}, started {}", summary.status.as_str(), summary.started);
        resource(&format!("{EXECUTION_URI}{}", summary.execution_id), &summary.execution_id, &text)
    });
    [schema].into_iter().chain(probes).chain(scripts).chain(executions).collect()
}

fn resource(uri: &str, name: &str, description: &str) -> Resource {
    Resource::new(uri, name).with_description(description).with_mime_type(JSON)
}

/// Resources that have an argument.
pub(super) fn templates() -> Vec<ResourceTemplate> {
    let template = |uri: &str, name: &str, text: &str| {
        ResourceTemplate::new(uri, name).with_description(text).with_mime_type(JSON)
    };
    vec![
        template(&format!("{PROBE_URI}{{name}}"), "probe", "A native probe: options, fields, needs, cost, example"),
        template(
            &format!("{}{{name}}", scripts::URI),
            "script",
            "A bpftrace script for exec_program, with its question",
        )
        .with_mime_type(TEXT),
        template(&format!("{EXECUTION_URI}{{id}}"), "execution", "What an execution found so far"),
        template(&format!("{EXECUTION_URI}{{id}}/folded"), "folded stacks", "All stacks of an execution, folded")
            .with_mime_type("text/plain"),
        template(&format!("{EXECUTION_URI}{{id}}/flamegraph.svg"), "flame graph", "All stacks of an execution, drawn")
            .with_mime_type("image/svg+xml"),
    ]
}

/// What a resource may take, in bytes.
pub(super) fn most_bytes(uri: &str) -> usize {
    let is_stacks = uri.strip_prefix(EXECUTION_URI).is_some_and(|rest| rest.contains('/'));
    if is_stacks { MOST_BYTES } else { PAGE.max_bytes }
}

/// A resource's content.
pub(super) async fn read(server: &Server, uri: &str) -> Result<ReadResourceResult, ErrorData> {
    if let Some(content) = stacks(server, uri).await {
        return Ok(ReadResourceResult::new(vec![content]));
    }
    if let Some(name) = uri.strip_prefix(scripts::URI) {
        let script = script(server, name).await.ok_or_else(|| not_found(uri))?;
        return Ok(ReadResourceResult::new(vec![ResourceContents::text(script, uri).with_mime_type(TEXT)]));
    }
    let content = if uri == SCHEMA_URI {
        Some(schema_for!(Report).to_value())
    } else if let Some(name) = uri.strip_prefix(PROBE_URI) {
        probe(server, name).await
    } else if let Some(id) = uri.strip_prefix(EXECUTION_URI) {
        execution(server, id).await
    } else {
        None
    };
    let content = content.ok_or_else(|| not_found(uri))?;
    let content = ResourceContents::text(content.to_string(), uri).with_mime_type(JSON);
    Ok(ReadResourceResult::new(vec![content]))
}

/// The method by which resources are read, for records.
const READ: &str = "resources/read";

async fn script(server: &Server, name: &str) -> Option<String> {
    let name = name.to_owned();
    server.blocking(move |_| tools::named(&name)).await.ok()?.map(|script| script.text)
}

async fn probe(server: &Server, name: &str) -> Option<Value> {
    let entry = probes::find(name)?;
    let place = server.place().await;
    let described = server.blocking(|_| describe_native(entry)).await.ok()?.ok();
    drop(place);
    described
}

async fn execution(server: &Server, id: &str) -> Option<Value> {
    let execution = server.find(id, READ).ok()?;
    let envelope = server.blocking(move |_| execution.envelope(&PAGE)).await.ok()?;
    debug_assert!(bounds::size(&envelope) < 1 << 20);
    serde_json::to_value(envelope).ok()
}

/// All stacks of an execution, as text or as a picture; `None` if that is not asked for, or if it has none.
async fn stacks(server: &Server, uri: &str) -> Option<ResourceContents> {
    let (id, what) = uri.strip_prefix(EXECUTION_URI)?.split_once('/')?;
    let execution = server.find(id, READ).ok()?;
    let (text, kind) = match what {
        "folded" => (server.blocking(move |_| execution.folded()).await.ok()??.to_string(), "text/plain"),
        "flamegraph.svg" => (server.blocking(move |_| execution.flamegraph()).await.ok()??, "image/svg+xml"),
        _ => return None,
    };
    Some(ResourceContents::text(text, uri).with_mime_type(kind))
}

fn not_found(uri: &str) -> ErrorData {
    let uri = crate::text::untrusted(uri.as_bytes(), 200);
    ErrorData::resource_not_found(
        format!("there is no resource {uri}; resources/list shows all"),
        Some(json!({ "uri": uri })),
    )
}

/// Everything listed fits on one page, so there is no cursor that could be right.
pub(super) fn check_cursor(request: Option<PaginatedRequestParams>) -> Result<(), ErrorData> {
    match request.and_then(|request| request.cursor) {
        None => Ok(()),
        Some(_) => Err(ErrorData::invalid_params("this list has one page: leave `cursor` out", None)),
    }
}
