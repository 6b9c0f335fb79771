//! JSON schemas as clients want them: short, flat, without what some of them reject. Pure.
//!
//! The schemas come from the types; nothing here says what a field is called or means.

use rmcp::model::JsonObject;
use schemars::Schema;
use serde_json::{Map, Value, json};

use crate::probes::PROBES;

/// The options of all probes as one flat object: each once, with the probes that take it.
pub(super) fn options(_: &mut schemars::SchemaGenerator) -> Schema {
    let mut merged: Map<String, Value> = Map::new();
    for entry in PROBES {
        let schema = (entry.schema)();
        let mut schema = schema.to_value();
        inline(&mut schema);
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let known = merged.entry(name).or_insert_with(|| property.clone());
            add_probe(known, entry.name);
        }
    }
    for property in merged.values_mut() {
        close_probes(property);
    }
    schemars::json_schema!({ "type": "object", "properties": merged, "additionalProperties": false })
}

/// A schema for arguments: no references, titles, formats or null defaults.
pub(super) fn input(schema: Schema) -> Value {
    let mut value = schema.to_value();
    inline(&mut value);
    value
}

/// What is published of an input schema: without what only this server's own check reads.
pub(super) fn published(mut schema: Value) -> JsonObject {
    shorten(&mut schema, true);
    object(schema)
}

/// A schema for structured results. A result has all required fields, or it is an error: some clients check errors, too.
pub(super) fn output(schema: Schema) -> JsonObject {
    let mut value = schema.to_value();
    inline(&mut value);
    shorten(&mut value, false);
    let mut value = object(value);
    let required = value.remove("required").unwrap_or_else(|| json!([]));
    value.insert("anyOf".into(), json!([{ "required": required }, { "required": ["category", "message"] }]));
    value
}

fn object(schema: Value) -> JsonObject {
    match schema {
        Value::Object(schema) => schema,
        _ => JsonObject::new(),
    }
}

const PROBES_START: &str = " [";

fn add_probe(property: &mut Value, probe: &str) {
    let Some(property) = property.as_object_mut() else { return };
    let said = property.get("description").and_then(Value::as_str).unwrap_or_default();
    let text =
        if said.contains(PROBES_START) { format!("{said}, {probe}") } else { format!("{said}{PROBES_START}{probe}") };
    property.insert("description".into(), text.into());
}

fn close_probes(property: &mut Value) {
    if let Some(Value::String(text)) = property.get_mut("description") {
        text.push(']');
    }
}

/// Puts what `$ref` names in its place, and enums of described constants as plain enums.
fn inline(schema: &mut Value) {
    let definitions = schema.as_object_mut().and_then(|schema| schema.remove("$defs")).unwrap_or_default();
    inline_with(schema, &definitions, 0);
}

/// References deeper than any of ours: ends a recursive type.
const DEEPEST: usize = 16;

fn inline_with(schema: &mut Value, definitions: &Value, depth: usize) {
    if let Some(items) = schema.as_array_mut() {
        items.iter_mut().for_each(|item| inline_with(item, definitions, depth));
        return;
    }
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(Value::String(reference)) = object.remove("$ref") {
        let name = reference.rsplit('/').next().unwrap_or_default();
        if let (Some(Value::Object(definition)), true) = (definitions.get(name), depth < DEEPEST) {
            for (key, value) in definition.clone() {
                object.entry(key).or_insert(value);
            }
        }
    }
    flatten_enum(object);
    object.values_mut().for_each(|value| inline_with(value, definitions, depth + 1));
}

fn flatten_enum(object: &mut Map<String, Value>) {
    let Some(variants) = object.get("oneOf").and_then(Value::as_array) else { return };
    let words: Option<Vec<Value>> = variants.iter().map(|variant| variant.get("const").cloned()).collect();
    if let Some(words) = words {
        object.remove("oneOf");
        object.insert("type".into(), "string".into());
        object.insert("enum".into(), words.into());
    }
}

/// Removes what a client can do without: it pays for every byte in every conversation.
fn shorten(schema: &mut Value, is_input: bool) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, is_input)),
        Value::Object(object) => {
            // Not keys of a schema but names of properties.
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                properties.values_mut().for_each(|property| shorten_property(property, is_input));
            }
            for key in ["items", "additionalProperties"] {
                object.get_mut(key).into_iter().for_each(|value| shorten_property(value, is_input));
            }
            for key in ["$schema", "title", "format"] {
                object.remove(key);
            }
            let is_whole = object.get("type").is_some_and(|kind| kind == "integer");
            if is_whole && object.get("minimum").is_some_and(|least| *least == 0) {
                object.remove("minimum");
            }
            object.retain(|key, value| key != "default" || keeps_default(value, is_input));
        }
        _ => {}
    }
}

fn shorten_property(property: &mut Value, is_input: bool) {
    shorten(property, is_input);
    if let (Some(object), false) = (property.as_object_mut(), is_input) {
        // A definition's own description repeats that of the field.
        if object.contains_key("properties") && object.contains_key("description") {
            object.remove("description");
        }
    }
}

fn keeps_default(value: &Value, is_input: bool) -> bool {
    let empty = match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) => false,
    };
    is_input && !empty
}

#[cfg(test)]
mod tests {
    use schemars::{JsonSchema, schema_for};

    use super::*;

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Outer {
        /// Which one
        inner: Inner,
        /// What kind
        kind: Kind,
        number: Option<u32>,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Inner {
        format: u64,
        title: String,
    }

    #[derive(JsonSchema)]
    #[schemars(rename_all = "snake_case")]
    #[expect(dead_code, reason = "only its schema is used")]
    enum Kind {
        /// The first
        One,
        /// The second
        Two,
    }

    #[test]
    fn references_are_inlined_and_described_enums_made_plain() {
        let schema = published(input(schema_for!(Outer)));
        let text = Value::Object(schema.clone()).to_string();
        assert!(!text.contains("$ref") && !text.contains("$defs"), "{text}");
        assert_eq!(schema["properties"]["kind"]["enum"], json!(["one", "two"]));
        assert_eq!(schema["properties"]["inner"]["description"], "Which one");
    }

    #[test]
    fn properties_called_like_keywords_stay() {
        let schema = published(input(schema_for!(Outer)));
        let inner = schema["properties"]["inner"]["properties"].as_object().unwrap();
        assert_eq!(inner.keys().collect::<Vec<_>>(), ["format", "title"]);
        assert!(inner["format"].get("format").is_none());
    }

    #[test]
    fn every_option_of_every_probe_is_there_once_with_its_probes() {
        let schema = options(&mut schemars::SchemaGenerator::default());
        let properties = schema.get("properties").unwrap().as_object().unwrap();
        for entry in PROBES {
            for option in entry.option_names() {
                let text = properties[&option]["description"].as_str().unwrap();
                assert!(text.contains(entry.name) && text.ends_with(']'), "{option}: {text}");
            }
        }
    }

    #[test]
    fn an_output_schema_takes_results_and_errors() {
        let schema = output(schema_for!(Outer));
        assert!(!schema.contains_key("required"));
        assert_eq!(schema["anyOf"][1]["required"], json!(["category", "message"]));
    }
}
