//! Content that never changes: what simple tools answer, resources and prompts.

use rmcp::{
    ErrorData,
    model::{GetPromptRequestParams, GetPromptResponse},
};
use serde_json::{Value, json};

use super::{SCHEME, completed, input, made};

/// One red point, as PNG.
const PICTURE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
/// No sound at all, as WAV: a header of 44 bytes and no samples.
const SOUND: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";

/// What a tool answers that always answers the same.
pub(super) fn of_tool(name: &str) -> Option<Value> {
    let content = match name {
        "test_simple_text" => json!([text("This is a simple text response for testing.")]),
        "test_image_content" => json!([picture()]),
        "test_audio_content" => json!([{ "type": "audio", "data": SOUND, "mimeType": "audio/wav" }]),
        "test_embedded_resource" => {
            json!([embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")])
        }
        "test_multiple_content_types" => {
            let data = json!({ "test": "data", "value": 123 }).to_string();
            let resource = embedded("test://mixed-content-resource", "application/json", &data);
            json!([text("Multiple content types test:"), picture(), resource])
        }
        _ => return None,
    };
    Some(json!({ "content": content }))
}

/// The resources in the list.
pub(super) fn resources() -> Value {
    let resource = |uri, kind| json!({ "uri": uri, "name": uri, "description": "For the suite", "mimeType": kind });
    json!([resource("test://static-text", "text/plain"), resource("test://static-binary", "image/png")])
}

/// The templates in the list.
pub(super) fn templates() -> Value {
    json!([{ "uriTemplate": "test://template/{id}/data", "name": "data", "mimeType": "application/json" }])
}

/// What is read of a resource.
pub(super) fn resource(uri: &str) -> Option<Value> {
    let contents = match uri.strip_prefix(SCHEME)? {
        "static-text" => {
            json!({ "uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource." })
        }
        "static-binary" => json!({ "uri": uri, "mimeType": "image/png", "blob": PICTURE }),
        other => {
            let id = other.strip_prefix("template/")?.strip_suffix("/data")?;
            let data = json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") });
            json!({ "uri": uri, "mimeType": "application/json", "text": data.to_string() })
        }
    };
    Some(json!({ "contents": [contents] }))
}

/// The prompts in the list.
pub(super) fn prompts() -> Value {
    let prompt = |name, arguments: &[&str]| {
        let arguments: Vec<_> = arguments.iter().map(|name| json!({ "name": name, "required": true })).collect();
        json!({ "name": name, "description": "For the suite", "arguments": arguments })
    };
    json!([
        prompt("test_simple_prompt", &[]),
        prompt("test_prompt_with_arguments", &["arg1", "arg2"]),
        prompt("test_prompt_with_embedded_resource", &["resourceUri"]),
        prompt("test_prompt_with_image", &[]),
        prompt(input::PROMPT, &[]),
    ])
}

/// What a prompt becomes; `None` if it is no fixture.
pub(super) fn prompt(request: &GetPromptRequestParams) -> Result<Option<GetPromptResponse>, ErrorData> {
    let argument = |name: &str| {
        let value = request.arguments.as_ref().and_then(|arguments| arguments.get(name)).and_then(Value::as_str);
        value.ok_or_else(|| ErrorData::invalid_params(format!("`{name}` is missing"), None))
    };
    let content = match request.name.as_str() {
        "test_simple_prompt" => json!([text("This is a simple prompt for testing.")]),
        "test_prompt_with_arguments" => {
            let (first, second) = (argument("arg1")?, argument("arg2")?);
            json!([text(&format!("Prompt with arguments: arg1='{first}', arg2='{second}'"))])
        }
        "test_prompt_with_embedded_resource" => {
            let uri = argument("resourceUri")?;
            let resource = embedded(uri, "text/plain", "Embedded resource content for testing.");
            json!([resource, text("Please process the embedded resource above.")])
        }
        "test_prompt_with_image" => json!([picture(), text("Please analyze the image above.")]),
        input::PROMPT => return input::prompt(request).map(Some),
        _ => return Ok(None),
    };
    messages(content).map(Some)
}

/// A prompt of these contents, all of which the user says.
pub(super) fn messages(contents: Value) -> Result<GetPromptResponse, ErrorData> {
    let contents: Vec<Value> = made(contents)?;
    let messages: Vec<_> = contents.iter().map(|content| json!({ "role": "user", "content": content })).collect();
    completed(json!({ "messages": messages })).map(GetPromptResponse::Complete)
}

/// A block of text.
pub(super) fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn picture() -> Value {
    json!({ "type": "image", "data": PICTURE, "mimeType": "image/png" })
}

fn embedded(uri: &str, kind: &str, text: &str) -> Value {
    json!({ "type": "resource", "resource": { "uri": uri, "mimeType": kind, "text": text } })
}
