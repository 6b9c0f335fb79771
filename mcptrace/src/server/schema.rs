//! JSON schemas as clients want them: short, flat, without what some of them reject. Pure.
//!
//! The schemas come from the types; nothing here says what a field is called or means.

use std::collections::BTreeMap;

use rmcp::model::JsonObject;
use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::probes::PROBES;

/// How many probes of an option are named; `describe_probe` and the error for a wrong option name all.
const NAMED: usize = 4;

/// The options of all probes as one flat object: each once, with the probes that take it.
pub(super) fn options(_: &mut schemars::SchemaGenerator) -> Schema {
    let mut merged: Map<String, Value> = Map::new();
    let mut takers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for entry in PROBES {
        let schema = (entry.schema)();
        let mut schema = schema.to_value();
        inline(&mut schema);
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let known = merged.entry(name).or_insert_with(|| property.clone());
            add_choices(known, property);
            keep_common_default(known, property);
            takers.entry(name.clone()).or_default().push(entry.name);
        }
    }
    for (name, property) in &mut merged {
        name_probes(property, &takers[name]);
    }
    // What a probe does not take is refused by name when the probe is known; `published` closes the object.
    schemars::json_schema!({ "type": "object", "properties": merged, "additionalProperties": true })
}

/// Probes offer different parts of the same choices: what any of them takes passes here, and each refuses what is not its own.
fn add_choices(known: &mut Value, other: &Value) {
    for list in ["oneOf", "enum"] {
        let choices = known.get_mut(list).and_then(Value::as_array_mut).zip(other.get(list).and_then(Value::as_array));
        let Some((known, other)) = choices else { continue };
        let missing: Vec<_> = other.iter().filter(|choice| !known.contains(choice)).cloned().collect();
        known.extend(missing);
    }
}

/// What is left out means the same for all probes, or nothing is said: clients send defaults as if they had been chosen.
fn keep_common_default(known: &mut Value, other: &Value) {
    if known.get("default") != other.get("default")
        && let Some(known) = known.as_object_mut()
    {
        known.remove("default");
    }
}

/// A schema for arguments: no references, titles, formats or null defaults.
pub(super) fn input(schema: Schema) -> Value {
    let mut value = schema.to_value();
    inline(&mut value);
    value
}

/// What is published of an input schema: without what only this server's own check reads.
pub(super) fn published(mut schema: Value) -> JsonObject {
    shorten(&mut schema);
    close(&mut schema);
    let mut schema = object(schema);
    schema.remove("description");
    schema
}

/// The schema of a type as it is written: what may be left out is not required.
pub(super) fn of_result<T: JsonSchema>() -> Schema {
    SchemaSettings::default().for_serialize().into_generator().into_root_schema_for::<T>()
}

/// A schema for structured results. A result has all required fields, or it is an error: some clients check errors, too.
pub(super) fn output(schema: Schema) -> JsonObject {
    let mut value = schema.to_value();
    inline(&mut value);
    shorten(&mut value);
    let mut value = object(value);
    value.remove("description");
    properties(&mut value).for_each(|property| undescribe(property, true));
    let required = value.remove("required").unwrap_or_else(|| json!([]));
    value.insert("anyOf".into(), json!([{ "required": required }, { "required": ["category", "message"] }]));
    value
}

/// Fields that an outline requires: enough to tell a result from an error.
const REQUIRED: usize = 5;

/// A schema that says no more than what fields there are: for results that are rarely read by programs and have many, and for those
/// whose fields another tool's schema tells in full.
pub(super) fn outline(schema: Schema) -> Schema {
    let mut value = schema.to_value();
    inline(&mut value);
    let mut value = object(value);
    for property in properties(&mut value).filter_map(Value::as_object_mut) {
        property.retain(|key, _| ["type", "enum", "anyOf", "description"].contains(&key.as_str()));
    }
    if let Some(required) = value.get_mut("required").and_then(Value::as_array_mut) {
        required.truncate(REQUIRED);
    }
    value.into()
}

/// Text, or null where there is none.
pub(super) fn text_or_null(_: &mut schemars::SchemaGenerator) -> Schema {
    or_null("string")
}

/// A number, or null where there is none.
pub(super) fn number_or_null(_: &mut schemars::SchemaGenerator) -> Schema {
    or_null("number")
}

/// Written as two schemas: some clients do not take a list of types.
fn or_null(kind: &str) -> Schema {
    schemars::json_schema!({ "anyOf": [{ "type": kind }, { "type": "null" }] })
}

fn object(schema: Value) -> JsonObject {
    match schema {
        Value::Object(schema) => schema,
        _ => JsonObject::new(),
    }
}

fn name_probes(property: &mut Value, probes: &[&str]) {
    let Some(property) = property.as_object_mut() else { return };
    let said = property.get("description").and_then(Value::as_str).unwrap_or_default();
    let who = if probes.len() > NAMED { "many".to_owned() } else { probes.join(", ") };
    property.insert("description".into(), format!("{said} [{who}]").into());
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
        for item in items {
            inline_with(item, definitions, depth);
        }
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
fn shorten(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["$schema", "title", "format"] {
        object.remove(key);
    }
    let is_whole = object.get("type").is_some_and(|kind| kind == "integer");
    if is_whole && object.get("minimum").is_some_and(|least| *least == 0) {
        object.remove("minimum");
    }
    object.retain(|key, value| {
        key != "default" || value.is_number() || value.as_str().is_some_and(|text| !text.is_empty())
    });
    inner(object).for_each(shorten);
}

/// Says that an object takes no other properties than those it names.
fn close(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.contains_key("properties") {
        object.insert("additionalProperties".into(), false.into());
    }
    inner(object).for_each(close);
}

/// Drops what a program does not read, but where the field of a result points elsewhere.
fn undescribe(schema: &mut Value, is_field: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("default");
    if object.get("additionalProperties") == Some(&Value::Bool(true)) {
        object.remove("additionalProperties");
    }
    let points = |text: &Value| text.as_str().is_some_and(|text| text.contains("mcptrace://"));
    object.retain(|key, value| key != "description" || (is_field && points(value)));
    inner(object).for_each(|below| undescribe(below, false));
}

/// The schemas in a schema: its properties, items and further properties. A property may be called like a keyword.
fn inner(object: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    let parts = object.iter_mut().flat_map(|(key, value)| match key.as_str() {
        "properties" => value.as_object_mut().map(|properties| properties.values_mut().collect()).unwrap_or_default(),
        "items" | "additionalProperties" => vec![value],
        _ => Vec::new(),
    });
    parts.collect::<Vec<_>>().into_iter()
}

fn properties(object: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
}

#[cfg(test)]
mod tests {
    use schemars::schema_for;

    use super::*;

    #[test]
    fn what_any_probe_takes_passes_the_schema_of_all() {
        let choices = |property: &Value| {
            let listed = ["oneOf", "enum"].into_iter().filter_map(|list| property.get(list)?.as_array()).flatten();
            listed.map(|choice| choice.get("const").unwrap_or(choice).clone()).collect::<Vec<_>>()
        };
        let all = options(&mut schemars::SchemaGenerator::default());
        for entry in PROBES {
            let schema = (entry.schema)();
            for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let known = choices(&all.get("properties").unwrap()[name]);
                assert!(
                    choices(property).iter().all(|choice| known.contains(choice)),
                    "{}: {name}: {known:?}",
                    entry.name
                );
            }
        }
    }

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
                let takers = PROBES.iter().filter(|entry| entry.option_names().contains(&option)).count();
                let named = if takers > NAMED { text.ends_with(" [many]") } else { text.contains(entry.name) };
                assert!(named && text.ends_with(']'), "{option}: {text}");
            }
        }
    }

    #[test]
    fn a_default_is_that_of_every_probe_that_takes_the_option() {
        let all = options(&mut schemars::SchemaGenerator::default());
        for entry in PROBES {
            let schema = (entry.schema)();
            for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                if let Some(default) = all.get("properties").unwrap()[name].get("default") {
                    assert_eq!(property.get("default"), Some(default), "{}: {name}", entry.name);
                }
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
