//! Map contents as bpftrace prints them without `-f json`, and the escaping of control characters: pure.

use super::record::{MapKind, Node};
use super::reports::{Bucket, buckets, split_key};
use crate::text::is_deceptive;

/// The width of a bar; bpftrace 0.17, `src/output.cpp`.
const BAR: usize = 52;

/// The lines that bpftrace prints for a map.
pub(crate) fn map_lines(name: &str, kind: MapKind, body: &Node) -> Vec<String> {
    match (kind, body) {
        (MapKind::Hist, Node::List(_)) => hist_lines(format!("{name}: "), body),
        (MapKind::Hist, Node::Pairs(pairs)) => {
            pairs.iter().flat_map(|(key, body)| hist_lines(format!("{name}[{}]: ", shown_key(key)), body)).collect()
        }
        (MapKind::Stats, Node::Pairs(pairs)) if is_stats(pairs) => vec![format!("{name}: {}", body.plain_text())],
        (_, Node::Pairs(pairs)) => {
            pairs.iter().map(|(key, value)| format!("{name}[{}]: {}", shown_key(key), value.plain_text())).collect()
        }
        _ => vec![format!("{name}: {}", body.plain_text())],
    }
}

/// Whether the pairs are one `stats()` value and not a map of them.
pub(crate) fn is_stats(pairs: &[(String, Node)]) -> bool {
    pairs.len() == 3 && pairs.iter().all(|(name, node)| STATS.contains(&name.as_str()) && node.as_i64().is_some())
}

/// The parts of a `stats()` value.
pub(crate) const STATS: [&str; 3] = ["count", "average", "total"];

fn shown_key(key: &str) -> String {
    split_key(key).join(", ")
}

fn hist_lines(title: String, body: &Node) -> Vec<String> {
    let buckets = buckets(body);
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0).max(1);
    let bars = buckets.iter().map(|bucket| {
        let bar = "@".repeat((u128::from(bucket.count) * BAR as u128 / u128::from(most)) as usize);
        format!("{:<16}{:>8} |{bar:<BAR$}|", interval(bucket), bucket.count)
    });
    std::iter::once(title).chain(bars).collect()
}

fn interval(bucket: &Bucket) -> String {
    match (bucket.min, bucket.max) {
        (None, Some(max)) => format!("(..., {})", short(max + 1)),
        (Some(min), None) => format!("[{}, ...)", short(min)),
        (Some(min), Some(max)) if min == max => format!("[{}]", short(min)),
        (Some(min), Some(max)) => format!("[{}, {})", short(min), short(max + 1)),
        (None, None) => "(..., ...)".into(),
    }
}

/// A bound with its power of two: 2048 is `2K`.
fn short(number: i128) -> String {
    const POWERS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let (mut number, mut power) = (number, 0);
    while number != 0 && number % 1024 == 0 && power + 1 < POWERS.len() {
        number /= 1024;
        power += 1;
    }
    format!("{number}{}", POWERS[power])
}

/// Control characters escaped, so that traced data cannot move a terminal's cursor. Tabs stay.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if needs_escape(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// C0 and C1 controls, and what hides or reorders text.
fn needs_escape(character: char) -> bool {
    (character.is_control() && character != '\t') || is_deceptive(character)
}

/// The longest beginning of `text` that is at most `limit` bytes and ends between two characters.
pub(crate) fn head(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, parse};
    use super::*;

    /// The same program was run with and without `-f json`.
    #[test]
    fn maps_look_as_bpftrace_prints_them() {
        let json = include_str!("../../../tests/fixtures/bpftrace/maps.jsonl");
        let text = include_str!("../../../tests/fixtures/bpftrace/maps.txt");
        let mut lines = Vec::new();
        for line in json.lines() {
            let Some(Record::Map { name, kind, body }) = parse(line.as_bytes()) else { panic!("no map: {line}") };
            lines.extend(map_lines(&name, kind, &body));
        }
        let expected: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn control_characters_are_escaped_and_text_is_not() {
        assert_eq!(escape("a\u{1b}[31m\r\n\tb é\u{202e}"), "a\\u{1b}[31m\\r\\n\tb é\\u{202e}");
        assert_eq!(escape("\u{61c}\u{200b}\u{2028}\u{feff}\u{e0041}"), "\\u{61c}\\u{200b}\\u{2028}\\u{feff}\\u{e0041}");
        let (hidden, shown) =
            ("\u{61c}\u{200b}\u{2028}\u{feff}\u{e0041}", "\\u{61c}\\u{200b}\\u{2028}\\u{feff}\\u{e0041}");
        assert_eq!(escape(hidden), shown);
    }

    #[test]
    fn a_head_ends_between_characters() {
        assert_eq!(head("aé", 2), "a");
        assert_eq!(head("aé", 9), "aé");
    }
}
