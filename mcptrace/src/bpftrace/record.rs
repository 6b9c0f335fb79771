//! One line of `bpftrace -f json`: pure.
//!
//! The types of bpftrace 0.17 are in `src/output.cpp`, `enum class MessageType`. Objects are read as pairs, not as a
//! map, because bpftrace joins the parts of a key with commas: two keys of one map can have the same text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// A JSON value whose objects keep their order and their duplicates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    /// A number, a boolean or null.
    Plain(Value),
    Text(String),
    List(Vec<Node>),
    Pairs(Vec<(String, Node)>),
}

/// What one line says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// bpftrace is about to attach so many probes.
    Attached(u64),
    /// The content of a map: `map`, `hist` or `stats`.
    Map { name: String, kind: MapKind, body: Node },
    /// `printf`, `time`, `join`, `cat` and `syscall`: text as the program wrote it. `value`: what `print()` was given.
    Text { kind: String, text: String },
    /// A BPF helper failed in the kernel, for instance because a map is full.
    HelperError(HelperError),
    /// The perf buffer overflowed and so many events were lost.
    Lost(u64),
    /// A type that this parser does not know.
    Unknown(String),
}

/// Which of the three kinds of map content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// Plain values, counts and sums.
    Values,
    /// Buckets.
    Hist,
    /// `avg()` and `stats()`.
    Stats,
}

/// Where and how a BPF helper failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HelperError {
    pub(crate) helper: String,
    pub(crate) code: i64,
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// Reads one line; `None` when it is no JSON object with a `type`.
pub(crate) fn parse(line: &[u8]) -> Option<Record> {
    let node: Node = serde_json::from_str(&repair(line)).ok()?;
    let Node::Pairs(mut fields) = node else { return None };
    let Node::Text(kind) = take(&mut fields, "type")? else { return None };
    Some(record(&kind, fields).unwrap_or(Record::Unknown(kind)))
}

fn record(kind: &str, mut fields: Vec<(String, Node)>) -> Option<Record> {
    match kind {
        "attached_probes" => count(&mut fields, "probes").map(Record::Attached),
        "lost_events" => count(&mut fields, "events").map(Record::Lost),
        "helper_error" => helper_error(fields).map(Record::HelperError),
        "map" => map(MapKind::Values, fields),
        "hist" => map(MapKind::Hist, fields),
        "stats" => map(MapKind::Stats, fields),
        "value" => Some(Record::Text { kind: kind.to_owned(), text: take(&mut fields, "data")?.plain_text() + "\n" }),
        "join" => text(kind, fields, "\n"),
        "printf" | "time" | "cat" | "syscall" => text(kind, fields, ""),
        _ => None,
    }
}

fn map(kind: MapKind, mut fields: Vec<(String, Node)>) -> Option<Record> {
    let Node::Pairs(mut data) = take(&mut fields, "data")? else { return None };
    let (name, body) = data.pop()?;
    data.is_empty().then_some(Record::Map { name, kind, body })
}

fn text(kind: &str, mut fields: Vec<(String, Node)>, end: &str) -> Option<Record> {
    let Node::Text(text) = take(&mut fields, "data")? else { return None };
    Some(Record::Text { kind: kind.to_owned(), text: text + end })
}

fn count(fields: &mut Vec<(String, Node)>, name: &str) -> Option<u64> {
    let Node::Pairs(mut data) = take(fields, "data")? else { return None };
    take(&mut data, name)?.as_u64()
}

/// 0.17 puts these fields beside `type`, later versions into `data`.
fn helper_error(mut fields: Vec<(String, Node)>) -> Option<HelperError> {
    if let Some(Node::Pairs(data)) = take(&mut fields, "data") {
        fields = data;
    }
    let Node::Text(helper) = take(&mut fields, "helper")? else { return None };
    let code = take(&mut fields, "retcode")?.as_i64()?;
    let mut number = |name| take(&mut fields, name).and_then(|node| node.as_u64()).unwrap_or(0);
    Some(HelperError { helper, code, line: number("line"), column: number("col") })
}

fn take(fields: &mut Vec<(String, Node)>, name: &str) -> Option<Node> {
    let index = fields.iter().position(|(key, _)| key == name)?;
    Some(fields.swap_remove(index).1)
}

impl Node {
    pub(crate) fn as_u64(&self) -> Option<u64> {
        if let Self::Plain(value) = self { value.as_u64() } else { None }
    }

    pub(crate) fn as_i64(&self) -> Option<i64> {
        if let Self::Plain(value) = self { value.as_i64() } else { None }
    }

    /// As bpftrace prints it without `-f json`: strings bare, tuples in parentheses.
    pub(crate) fn plain_text(&self) -> String {
        match self {
            Self::Plain(value) => value.to_string(),
            Self::Text(text) => text.clone(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::plain_text).collect();
                format!("({})", items.join(", "))
            }
            Self::Pairs(pairs) => {
                let pairs: Vec<String> =
                    pairs.iter().map(|(key, node)| format!("{key} {}", node.plain_text())).collect();
                pairs.join(", ")
            }
        }
    }
}

/// How a sign-extended byte begins.
const SIGN: &str = "\\uffffff";

/// bpftrace 0.17 writes each byte from 0x80 on as a sign-extended `\uffffffXX`, which JSON reads as something else
/// (`src/output.cpp`, `JsonOutput::json_escape`). The byte is put back; bytes that are no UTF-8 become U+FFFD.
fn repair(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    if !text.contains(SIGN) {
        return text;
    }
    let mut bytes = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(&first) = rest.first() {
        let taken = match high_byte(rest) {
            Some(byte) => {
                bytes.push(byte);
                SIGN.len() + 2
            }
            // An escape is copied whole, so that the second backslash of `\\` does not start another one.
            None if first == b'\\' && rest.len() > 1 => {
                bytes.extend_from_slice(&rest[..2]);
                2
            }
            None => {
                bytes.push(first);
                1
            }
        };
        rest = &rest[taken..];
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn high_byte(rest: &[u8]) -> Option<u8> {
    let digits = rest.strip_prefix(SIGN.as_bytes())?.get(..2)?;
    let byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (byte >= 0x80).then_some(byte)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Plain(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Plain(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Plain(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Plain(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Plain(Value::Null))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(Node::Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &str, text: &str) -> Record {
        Record::Text { kind: kind.into(), text: text.into() }
    }

    #[test]
    fn every_line_of_a_real_run_is_known() {
        let output = include_str!("../../../tests/fixtures/bpftrace/types.jsonl");
        for line in output.lines().filter(|line| !line.is_empty()) {
            let record = parse(line.as_bytes()).unwrap_or_else(|| panic!("not read: {line}"));
            assert!(!matches!(record, Record::Unknown(_)), "{line}");
        }
    }

    #[test]
    fn text_keeps_its_line_ends() {
        assert_eq!(parse(br#"{"type": "printf", "data": "a\nb\n"}"#), Some(text("printf", "a\nb\n")));
        assert_eq!(parse(br#"{"type": "join", "data": "/bin/ls -l"}"#), Some(text("join", "/bin/ls -l\n")));
        assert_eq!(parse(br#"{"type": "value", "data": [1,"x"]}"#), Some(text("value", "(1, x)\n")));
    }

    #[test]
    fn sign_extended_bytes_become_utf8_again() {
        let line = br#"{"type": "printf", "data": "\uffffffc3\uffffffa9 \\uffffffc3 \uffffffff"}"#;
        assert_eq!(parse(line), Some(text("printf", "é \\uffffffc3 \u{fffd}")));
        assert_eq!(parse(br#"{"type": "printf", "data": "\uffffffc3\"#), None, "cut within an escape");
    }

    #[test]
    fn keys_with_the_same_text_are_all_kept() {
        let Some(Record::Map { body: Node::Pairs(pairs), .. }) =
            parse(br#"{"type": "map", "data": {"@": {"a,b": 1, "a,b": 2}}}"#)
        else {
            panic!("no map")
        };
        assert_eq!(pairs.len(), 2);
    }

    #[test]
    fn helper_errors_are_read_in_both_layouts() {
        let expected =
            Record::HelperError(HelperError { helper: "map_update_elem".into(), code: -7, line: 1, column: 46 });
        for line in [
            r#"{"type": "helper_error", "helper": "map_update_elem", "retcode": -7, "line": 1, "col": 46}"#,
            r#"{"type": "helper_error", "data": {"helper": "map_update_elem", "retcode": -7, "line": 1, "col": 46}}"#,
        ] {
            assert_eq!(parse(line.as_bytes()).as_ref(), Some(&expected));
        }
    }

    #[test]
    fn what_is_no_record_is_none_and_what_is_new_is_unknown() {
        assert_eq!(parse(b"No probes to attach"), None);
        assert_eq!(parse(b"[1]"), None);
        assert_eq!(parse(b"{}"), None);
        assert_eq!(parse(br#"{"type": "surprise", "data": 1}"#), Some(Record::Unknown("surprise".into())));
        assert_eq!(parse(br#"{"type": "map", "data": 1}"#), Some(Record::Unknown("map".into())));
    }
}
