//! The tools among the fixtures.

use std::time::Duration;

use rmcp::{
    ErrorData,
    model::{
        CallToolRequestParams, CallToolResponse, ClientCapabilities, LoggingLevel, LoggingMessageNotificationParam,
        ProgressNotificationParam, ServerRequest, Tool,
    },
    service::{RequestContext, RoleServer},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{completed, content, input, made};

/// How long a tool waits that is to take a while.
const WHILE: Duration = Duration::from_millis(50);

/// All of them; those with arguments have a schema in [`schema`].
const NAMES: &[&str] = &[
    "test_simple_text",
    "test_image_content",
    "test_audio_content",
    "test_embedded_resource",
    "test_multiple_content_types",
    "test_tool_with_logging",
    "test_error_handling",
    "test_tool_with_progress",
    "test_sampling",
    "test_elicitation",
    "test_elicitation_sep1034_defaults",
    "test_elicitation_sep1330_enums",
    "test_reconnection",
    "json_schema_2020_12_tool",
    "test_custom_header",
    "test_missing_capability",
    "test_streaming_elicitation",
    "test_logging_tool",
    "test_input_required_result_elicitation",
    "test_input_required_result_sampling",
    "test_input_required_result_list_roots",
    "test_input_required_result_request_state",
    "test_input_required_result_multiple_inputs",
    "test_input_required_result_multi_round",
    "test_input_required_result_tampered_state",
    "test_input_required_result_capabilities",
];

/// Whether a tool is one of them.
pub(super) fn has(name: &str) -> bool {
    NAMES.contains(&name)
}

/// All of them, as clients see them.
pub(super) fn list() -> Vec<Tool> {
    let tool = |name: &&'static str| {
        let schema = schema(name).as_object().cloned().unwrap_or_default();
        Tool::new(*name, "For the conformance suite", schema)
    };
    NAMES.iter().map(tool).collect()
}

/// Calls one.
pub(super) async fn call(
    request: CallToolRequestParams,
    context: RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let client = context.client_capabilities().unwrap_or_default();
    if let Some(asked) = input::call(&request, &client) {
        return asked;
    }
    let name = request.name.as_ref();
    let argument = |name: &str| {
        let value = request.arguments.as_ref().and_then(|arguments| arguments.get(name)).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let result = match name {
        "test_error_handling" => {
            json!({ "isError": true, "content": [content::text("This tool intentionally returns an error for testing")] })
        }
        "test_tool_with_logging" => log_three_times(&context).await,
        "test_logging_tool" => log_if_asked(&context).await,
        "test_tool_with_progress" => tell_progress(&context).await,
        "test_missing_capability" if client.sampling.is_none() => {
            let needed: ClientCapabilities = made(json!({ "sampling": {} }))?;
            return Err(ErrorData::missing_required_client_capability(needed));
        }
        "test_sampling" => ask(&context, "LLM response", input::sample(&argument("prompt"))).await?,
        "test_elicitation" => ask(&context, "User response", input::form(&argument("message"), &user())).await?,
        "test_elicitation_sep1034_defaults" => {
            ask(&context, "Elicitation completed", input::form("All have defaults", &defaults())).await?
        }
        "test_elicitation_sep1330_enums" => {
            ask(&context, "Elicitation completed", input::form("Choose", &choices())).await?
        }
        _ => content::of_tool(name).unwrap_or_else(|| said("done")),
    };
    completed(result).map(CallToolResponse::Complete)
}

fn said(text: &str) -> Value {
    json!({ "content": [content::text(text)] })
}

/// Asks the client while its call waits, as protocols up to 2025-11-25 do, and answers with what it says.
async fn ask(context: &RequestContext<RoleServer>, what: &str, request: Value) -> Result<Value, ErrorData> {
    let request: ServerRequest = made(request)?;
    let answer = match context.peer.send_request(request).await {
        Ok(answer) => json!(answer),
        Err(error) => return Ok(json!({ "isError": true, "content": [content::text(&error.to_string())] })),
    };
    let action = answer["action"].as_str().map(|action| format!("action={action}, content={}", answer["content"]));
    let text = action.unwrap_or_else(|| answer["content"]["text"].as_str().unwrap_or_default().to_owned());
    Ok(said(&format!("{what}: {text}")))
}

async fn log_three_times(context: &RequestContext<RoleServer>) -> Value {
    for text in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
        log(context, LoggingLevel::Info, text).await;
        sleep(WHILE).await;
    }
    said("It has been logged")
}

/// From 2026-07-28 on only calls that say so want to be told.
async fn log_if_asked(context: &RequestContext<RoleServer>) -> Value {
    if let Some(level) = context.meta.log_level() {
        log(context, level, "You have asked for it").await;
    }
    said("It has been logged for those who asked")
}

async fn log(context: &RequestContext<RoleServer>, level: LoggingLevel, text: &str) {
    // A client that has gone needs no log.
    let _ = context.peer.notify_logging_message(LoggingMessageNotificationParam::new(level, json!(text))).await;
}

async fn tell_progress(context: &RequestContext<RoleServer>) -> Value {
    for progress in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let told = ProgressNotificationParam::new(token, progress).with_total(100.0);
            // A client that has gone needs no progress.
            let _ = context.peer.notify_progress(told).await;
        }
        sleep(WHILE).await;
    }
    said("All of it is done")
}

/// The schema of a tool's arguments.
fn schema(name: &str) -> Value {
    let text =
        |name: &str| json!({ "type": "object", "properties": { name: { "type": "string" } }, "required": [name] });
    match name {
        "test_sampling" => text("prompt"),
        "test_elicitation" => text("message"),
        "test_custom_header" => {
            let mut schema = text("value");
            schema["properties"]["value"]["x-mcp-header"] = "Value".into();
            schema
        }
        "json_schema_2020_12_tool" => full_schema(),
        _ => json!({ "type": "object", "properties": {} }),
    }
}

/// Keywords that must reach the client as they are (SEP-1613, SEP-2106).
fn full_schema() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": { "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": { "street": text, "city": text },
        } },
        "properties": {
            "name": text,
            "address": { "$ref": "#/$defs/address" },
            "contactMethod": { "type": "string", "enum": ["phone", "email"] },
            "phone": text,
            "email": text,
        },
        "allOf": [{ "anyOf": [{ "required": ["phone"] }, { "required": ["email"] }] }],
        "if": { "properties": { "contactMethod": { "const": "phone" } }, "required": ["contactMethod"] },
        "then": { "required": ["phone"] },
        "else": { "required": ["email"] },
        "additionalProperties": false,
    })
}

fn user() -> Value {
    let field = |what: &str| json!({ "type": "string", "description": what });
    let fields = json!({ "username": field("The user's name"), "email": field("The user's address") });
    json!({ "type": "object", "properties": fields, "required": ["username", "email"] })
}

/// A default of every type that a form's field can have (SEP-1034).
fn defaults() -> Value {
    let status = ["active", "inactive", "pending"];
    json!({ "type": "object", "properties": {
        "name": { "type": "string", "default": "John Doe" },
        "age": { "type": "integer", "default": 30 },
        "score": { "type": "number", "default": 95.5 },
        "status": { "type": "string", "enum": status, "default": status[0] },
        "verified": { "type": "boolean", "default": true },
    } })
}

/// Every way to choose among words (SEP-1330).
fn choices() -> Value {
    let plain = json!(["option1", "option2", "option3"]);
    let titled = |what: &str| {
        let one =
            |number: usize, word: &str| json!({ "const": format!("value{number}"), "title": format!("{word} {what}") });
        json!([one(1, "First"), one(2, "Second"), one(3, "Third")])
    };
    let names = ["Option One", "Option Two", "Option Three"];
    json!({ "type": "object", "properties": {
        "untitledSingle": { "type": "string", "enum": plain },
        "titledSingle": { "type": "string", "oneOf": titled("Option") },
        "legacyEnum": { "type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": names },
        "untitledMulti": { "type": "array", "items": { "type": "string", "enum": plain } },
        "titledMulti": { "type": "array", "items": { "anyOf": titled("Choice") } },
    } })
}
