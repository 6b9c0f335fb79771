//! Arguments of tools: what clients send, made to fit the schema or refused by name. Pure.
//!
//! Clients send numbers and booleans as strings, objects as JSON in strings, and null for what they leave out. All of that is taken
//! where it cannot be misread. What is unknown is refused with the nearest known name: a filter that is ignored in silence gives a
//! wrong answer that looks right.

use serde_json::{Map, Number, Value};

use super::error::ToolError;
use crate::{range, suggest::nearest, text::untrusted};

/// How much of a wrong value an error repeats, in bytes.
const REPEATED: usize = 60;

/// Makes arguments fit an object schema without references.
pub(super) fn fit(schema: &Value, arguments: Map<String, Value>) -> Result<Map<String, Value>, ToolError> {
    fit_object(schema, "", arguments)
}

fn fit_object(schema: &Value, path: &str, given: Map<String, Value>) -> Result<Map<String, Value>, ToolError> {
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let mut fitted = Map::new();
    for (name, value) in given {
        let Some(property) = properties.get(&name) else {
            if schema.get("additionalProperties") == Some(&Value::Bool(true)) {
                // Refused further on, where it is known what would be right.
                fitted.insert(name, value);
                continue;
            }
            return Err(unknown(path, &name, properties));
        };
        if !value.is_null() {
            let value = fit_value(property, &join(path, &name), value)?;
            fitted.insert(name, value);
        }
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    match required.into_iter().find(|name| !fitted.contains_key(*name)) {
        Some(missing) => Err(missing_argument(&join(path, missing), &properties[missing])),
        None => Ok(fitted),
    }
}

fn fit_value(schema: &Value, path: &str, value: Value) -> Result<Value, ToolError> {
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let fitted = match kind {
        "integer" => whole(&value),
        "number" => number(&value),
        "boolean" => boolean(&value),
        "string" => value.is_string().then(|| value.clone()),
        "object" => {
            let object = as_object(value).map_err(|value| wrong_type(path, schema, &value))?;
            return fit_object(schema, path, object).map(Value::Object);
        }
        _ => Some(value.clone()),
    };
    let Some(fitted) = fitted else { return Err(wrong_type(path, schema, &value)) };
    check_range(schema, path, &fitted)?;
    check_enum(schema, path, &fitted)?;
    Ok(fitted)
}

fn whole(value: &Value) -> Option<Value> {
    match value {
        Value::Number(number) if number.is_u64() || number.is_i64() => Some(value.clone()),
        // 5.0 is 5; below 2^53 every whole number has a float of its own.
        Value::Number(number) => {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 9e15).then(|| Value::from(float as i64))
        }
        Value::String(text) => {
            let text = text.trim();
            let small = text.parse::<i64>().ok().map(Value::from);
            small.or_else(|| text.parse::<u64>().ok().map(Value::from)).or_else(|| whole(&number(value)?))
        }
        _ => None,
    }
}

fn number(value: &Value) -> Option<Value> {
    match value {
        Value::Number(_) => Some(value.clone()),
        Value::String(text) => Number::from_f64(text.trim().parse().ok()?).map(Value::Number),
        _ => None,
    }
}

fn boolean(value: &Value) -> Option<Value> {
    match value {
        Value::Bool(_) => Some(value.clone()),
        Value::String(text) => text.trim().to_ascii_lowercase().parse::<bool>().ok().map(Value::Bool),
        _ => None,
    }
}

fn as_object(value: Value) -> Result<Map<String, Value>, Value> {
    match value {
        Value::Object(object) => Ok(object),
        Value::String(text) if text.trim().is_empty() => Ok(Map::new()),
        Value::String(text) => serde_json::from_str(&text).map_err(|_| Value::String(text)),
        other => Err(other),
    }
}

fn check_range(schema: &Value, path: &str, value: &Value) -> Result<(), ToolError> {
    let Some(fault) = range::fault(schema, value) else { return Ok(()) };
    let category = if path == "seconds" { "invalid_seconds" } else { "invalid_argument" };
    Err(ToolError::new(category, format!("`{path}` {fault}")))
}

fn check_enum(schema: &Value, path: &str, value: &Value) -> Result<(), ToolError> {
    let Some(known) = schema.get("enum").and_then(Value::as_array) else { return Ok(()) };
    if known.contains(value) {
        return Ok(());
    }
    let words: Vec<&str> = known.iter().filter_map(Value::as_str).collect();
    let message = format!("`{path}` must be one of {}, not {}", words.join(", "), shown(value));
    Err(ToolError::new("invalid_argument", message).near(nearest(value.as_str().unwrap_or_default(), words)))
}

fn unknown(path: &str, name: &str, properties: &Map<String, Value>) -> ToolError {
    let full = join(path, &untrusted(name.as_bytes(), REPEATED));
    let known: Vec<&str> = properties.keys().map(String::as_str).collect();
    let known_text = if known.is_empty() { "there are none".into() } else { format!("known: {}", known.join(", ")) };
    let error = ToolError::new("unknown_argument", format!("there is no argument `{full}`; {known_text}"));
    error.near(nearest(name, known).map(|near| join(path, near)))
}

fn missing_argument(path: &str, schema: &Value) -> ToolError {
    let what = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let separator = if what.is_empty() { "" } else { ": " };
    ToolError::new("missing_argument", format!("`{path}` is missing{separator}{what}"))
}

fn wrong_type(path: &str, schema: &Value, value: &Value) -> ToolError {
    let right = match schema.get("type").and_then(Value::as_str).unwrap_or_default() {
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "string" => "a string",
        "object" => "an object",
        _ => "something else",
    };
    let category = if path == "seconds" { "invalid_seconds" } else { "invalid_argument" };
    ToolError::new(category, format!("`{path}` must be {right}, not {}", shown(value)))
}

fn shown(value: &Value) -> String {
    let kind = match value {
        Value::String(_) => "the string ",
        Value::Array(_) => "the list ",
        Value::Object(_) => "the object ",
        _ => "",
    };
    let text = value.to_string();
    format!("{kind}{}", untrusted(text.as_bytes(), REPEATED))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "probe": {"type": "string", "description": "Name of the probe"},
                "seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
                "background": {"type": "boolean"},
                "top": {"type": "integer", "minimum": 1, "maximum": 1000},
                "options": {"type": "object", "properties": {
                    "by": {"type": "string", "enum": ["total", "pid"]},
                    "slower_than_us": {"type": "integer", "minimum": 0}
                }},
                "filter": {"type": "object", "properties": {
                    "pid": {"type": "integer", "format": "uint32", "minimum": 0}, "comm": {"type": "string"}
                }}
            },
            "required": ["probe"]
        })
    }

    fn fitted(arguments: Value) -> Value {
        Value::Object(fit(&schema(), arguments.as_object().unwrap().clone()).unwrap())
    }

    fn refused(arguments: Value) -> ToolError {
        fit(&schema(), arguments.as_object().unwrap().clone()).unwrap_err()
    }

    #[test]
    fn strings_become_what_the_schema_wants() {
        let given =
            json!({"probe": "a", "seconds": " 0.5 ", "background": "True", "top": "7", "filter": {"pid": "12"}});
        let want = json!({"probe": "a", "seconds": 0.5, "background": true, "top": 7, "filter": {"pid": 12}});
        assert_eq!(fitted(given), want);
        assert_eq!(fitted(json!({"probe": "5"}))["probe"], "5", "where a string is wanted it stays one");
        assert_eq!(fitted(json!({"probe": "a", "top": 5.0}))["top"], 5);
        assert_eq!(fitted(json!({"probe": "a", "top": "5.0"}))["top"], 5);
    }

    #[test]
    fn objects_in_strings_are_opened_and_checked() {
        let given = json!({"probe": "a", "options": "{\"by\":\"pid\"}", "filter": ""});
        assert_eq!(fitted(given), json!({"probe": "a", "options": {"by": "pid"}, "filter": {}}));
        assert_eq!(refused(json!({"probe": "a", "options": "{by:pid}"})).category, "invalid_argument");
    }

    #[test]
    fn null_is_absent() {
        assert_eq!(
            fitted(json!({"probe": "a", "seconds": null, "filter": {"pid": null}})),
            json!({"probe": "a", "filter": {}})
        );
        assert_eq!(refused(json!({"probe": null})).category, "missing_argument");
    }

    #[test]
    fn what_is_unknown_is_named_with_the_nearest() {
        let error = refused(json!({"probe": "a", "filter": {"pidd": 5}}));
        assert_eq!(error.message, "there is no argument `filter.pidd`; known: pid, comm");
        assert_eq!(error.did_you_mean, ["filter.pid"]);
        let error = refused(json!({"probe": "a", "options": {"slower_than": 5}}));
        assert_eq!((error.category, error.did_you_mean), ("unknown_argument", vec!["options.slower_than_us".into()]));
        assert_eq!(refused(json!({"prob": "a"})).did_you_mean, ["probe"]);
    }

    #[test]
    fn an_open_object_keeps_what_it_does_not_know() {
        let open = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": true});
        let given = json!({"a": "1", "b": "1"});
        let fitted = fit(&open, given.as_object().unwrap().clone()).unwrap();
        assert_eq!(Value::Object(fitted), json!({"a": 1, "b": "1"}));
    }

    #[test]
    fn a_missing_argument_is_named_with_its_meaning() {
        assert_eq!(refused(json!({})).message, "`probe` is missing: Name of the probe");
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        let message = |arguments| refused(arguments).message;
        assert_eq!(
            message(json!({"probe": "a", "seconds": "soon"})),
            "`seconds` must be a number, not the string \"soon\""
        );
        assert_eq!(message(json!({"probe": 5})), "`probe` must be a string, not 5");
        assert_eq!(message(json!({"probe": "a", "filter": [1]})), "`filter` must be an object, not the list [1]");
        assert_eq!(
            message(json!({"probe": "a", "background": "yes"})),
            "`background` must be true or false, not the string \"yes\""
        );
        assert_eq!(message(json!({"probe": "a", "top": 1.5})), "`top` must be a whole number, not 1.5");
        let error = refused(json!({"probe": "a", "options": {"by": "pdi"}}));
        assert_eq!(error.message, "`options.by` must be one of total, pid, not the string \"pdi\"");
        assert_eq!(error.did_you_mean, ["pid"]);
    }

    #[test]
    fn seconds_are_positive_finite_and_bounded() {
        for bad in
            [json!(0), json!(-5), json!(1e9), json!("NaN"), json!("inf"), json!("-0"), json!(true), json!("1e999")]
        {
            assert_eq!(refused(json!({"probe": "a", "seconds": bad})).category, "invalid_seconds", "{bad}");
        }
        let error = refused(json!({"probe": "a", "seconds": -5}));
        assert_eq!(error.message, "`seconds` must be more than 0 and at most 86400, not -5");
    }

    #[test]
    fn whole_numbers_fit_their_type() {
        for bad in [json!(-1), json!(4_294_967_296_u64), json!(u64::MAX), json!(1e18)] {
            assert_eq!(refused(json!({"probe": "a", "filter": {"pid": bad}})).category, "invalid_argument", "{bad}");
        }
        assert_eq!(fitted(json!({"probe": "a", "filter": {"pid": 4_294_967_295_u32}}))["filter"]["pid"], u32::MAX);
    }

    #[test]
    fn a_long_or_odd_value_is_repeated_in_part() {
        let message = refused(json!({"probe": "a", "top": format!("\u{1b}[31m{}", "x".repeat(9999))})).message;
        assert!(message.len() < 150 && !message.contains('\u{1b}'), "{message}");
        let message = refused(json!({"y".repeat(9999): 1})).message;
        assert!(message.len() < 250, "{message}");
    }
}
