//! Numbers and strings as people read them.

use serde_json::Value;

use crate::text::untrusted;

/// Nanoseconds with three digits and the unit that suits: `932 ns`, `1.60 µs`, `12.8 ms`, `4.06 s`.
pub fn duration(ns: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs")];
    match units.into_iter().find(|(size, _)| ns >= *size * 0.9995) {
        Some((size, unit)) => format!("{} {unit}", three_digits(ns / size)),
        None if ns.fract() == 0.0 || ns >= 100.0 => format!("{ns:.0} ns"),
        None => format!("{ns:.1} ns"),
    }
}

/// Bytes in powers of 1,024: `512 B`, `4.00 KiB`.
pub fn bytes(bytes: f64) -> String {
    let units = [(1024.0 * 1024.0 * 1024.0, "GiB"), (1024.0 * 1024.0, "MiB"), (1024.0, "KiB")];
    match units.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{} {unit}", three_digits(bytes / size)),
        None => format!("{bytes:.0} B"),
    }
}

/// A length of time: `0.54 s`, `5.0 s`, `123 s`.
pub fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") }
}

/// A whole number with commas between thousands.
pub fn count(number: u64) -> String {
    grouped(&number.to_string())
}

/// A number with at most three decimals, none of them a useless zero.
pub fn decimal(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A value of a row, as it is but without the quotes of a string.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A string on one line, without what could fool a terminal, of at most so many characters; the last is then an ellipsis.
pub fn plain(text: &str, longest: usize) -> String {
    let safe = untrusted(text.as_bytes(), longest.saturating_mul(4));
    if safe.chars().count() <= longest {
        return safe;
    }
    safe.chars().take(longest.saturating_sub(1)).chain(['…']).collect()
}

/// A value of a unit, for a column of a table.
pub(super) fn quantity(value: &Value, unit: &str) -> String {
    match (unit, value.as_f64()) {
        ("ns", Some(ns)) => duration(ns),
        ("bytes", Some(size)) => bytes(size),
        ("ns/s", Some(ns)) => format!("{}/s", duration(ns)),
        ("bytes/s", Some(size)) => format!("{}/s", bytes(size)),
        (_, Some(number)) if value.is_f64() => grouped(&decimal(number)),
        (_, Some(_)) => grouped(&value.to_string()),
        (_, None) => text(value),
    }
}

fn three_digits(number: f64) -> String {
    let decimals = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
    format!("{number:.decimals$}")
}

fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let digits = whole.trim_start_matches('-');
    let mut text = whole[..whole.len() - digits.len()].to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    fraction.map_or(text.clone(), |fraction| format!("{text}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_the_unit_that_suits() {
        let texts = [(0.0, "0 ns"), (92.25, "92.2 ns"), (932.0, "932 ns"), (999.6, "1.00 µs"), (1599.0, "1.60 µs")];
        let longer = [(12_799.0, "12.8 µs"), (420_789.9, "421 µs"), (4_063_231.0, "4.06 ms"), (61e9, "61.0 s")];
        for (ns, text) in texts.into_iter().chain(longer) {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(quantity(&serde_json::json!(-12345), ""), "-12,345");
        assert_eq!(quantity(&serde_json::json!(12345.50), "calls/s"), "12,345.5");
        assert_eq!(quantity(&serde_json::json!(1_572_864), "bytes"), "1.50 MiB");
    }

    #[test]
    fn strings_stay_on_one_line_and_short() {
        assert_eq!(plain("a\nb", 99), "a\\u{a}b");
        assert_eq!(plain("abcdef", 4), "abc…");
        assert_eq!(plain("éééé", 4), "éééé");
    }
}
