//! Windows of time: as they are asked for, and as they can be answered. Pure.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::HistoryError;

/// A span of time in whole seconds since 1970; its end is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first second.
    pub from: i64,
    /// The second after its last.
    pub to: i64,
}

impl Span {
    /// Its length in seconds.
    pub fn seconds(&self) -> i64 {
        self.to - self.from
    }

    /// The same as a number, and none if it ends before it begins.
    pub fn length(&self) -> f64 {
        self.seconds().max(0) as f64
    }

    /// The window that is asked for; the last quarter of an hour if nothing is said.
    pub fn asked(from: &str, to: &str, now: i64) -> Result<Self, HistoryError> {
        let to = if to.is_empty() { now } else { moment(to, now)? };
        let from = if from.is_empty() { to - 900 } else { moment(from, now)? };
        let span = Self { from, to };
        if from >= to {
            return Err(HistoryError::Range(format!("`from` must be before `to`: {} is not", span.text())));
        }
        if from >= now {
            return Err(HistoryError::Range(format!("{} is in the future", span.text())));
        }
        Ok(span)
    }

    /// The window to compare with: `previous` (just before), the time at which one of equal length begins, or `FROM..TO`.
    pub fn other(&self, asked: &str, now: i64) -> Result<Self, HistoryError> {
        if asked == "previous" {
            return Ok(Self { from: self.from - self.seconds(), to: self.from });
        }
        if let Some((from, to)) = asked.split_once("..") {
            return Self::asked(from.trim(), to.trim(), now);
        }
        let from = moment(asked, now).map_err(|_| {
            let asked = crate::text::untrusted(asked.as_bytes(), 60);
            HistoryError::Range(format!(
                "`{asked}` is no window to compare with: give previous, FROM..TO, or when one of the same length begins (-1h, \
                or 2026-01-02T03:04:05Z)"
            ))
        })?;
        Self::asked(asked, &stamp(from + self.seconds()), now)
    }

    /// Both ends as UTC.
    pub fn text(&self) -> String {
        format!("{} to {}", stamp(self.from), stamp(self.to))
    }
}

/// UTC of a second.
pub fn stamp(second: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// `now`, `-15m`, or a time of RFC 3339.
fn moment(text: &str, now: i64) -> Result<i64, HistoryError> {
    let text = text.trim();
    if text == "now" {
        return Ok(now);
    }
    if let Some(before) = text.strip_prefix('-') {
        return Ok(now - length(before)?);
    }
    let parsed = OffsetDateTime::parse(text, &Rfc3339).map(OffsetDateTime::unix_timestamp);
    parsed.ok().filter(|second| (0..1 << 39).contains(second)).ok_or_else(|| {
        let text = crate::text::untrusted(text.as_bytes(), 60);
        HistoryError::Range(format!("`{text}` is no time: give -15m, -2h, -1d, now, or 2026-01-02T03:04:05Z"))
    })
}

/// A length such as `90`, `90s`, `15m`, `1h30m`, `2d`, in seconds.
pub fn length(text: &str) -> Result<i64, HistoryError> {
    let wrong = || {
        let text = crate::text::untrusted(text.as_bytes(), 60);
        HistoryError::Range(format!("`{text}` is no length of time: give 90s, 15m, 1h30m or 2d"))
    };
    let mut total: i64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[..letters] {
            "" | "s" | "sec" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(unit).and_then(|part| total.checked_add(part));
        total = part.filter(|total| *total <= 100 * 366 * 86_400).ok_or_else(wrong)?;
    }
    Ok(total)
}

/// Steps that people can read, in seconds; those of more than ten are made of the tens that are kept for a day.
const STEPS: [i64; 16] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400];
/// Steps that a window has at most if none is asked for.
const USUAL: i64 = 60;
/// Steps that a window may have.
pub const MOST: i64 = 2000;

/// The step of a window if none is asked for: the shortest that makes no more than some 60 of it.
pub fn usual_step(seconds: i64) -> i64 {
    let fits = |step: &i64| seconds <= step * USUAL;
    STEPS.into_iter().find(fits).unwrap_or((seconds / USUAL / 86_400 + 1) * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_323_045;

    #[test]
    fn windows_are_relative_or_absolute() {
        let span = |from, to| Span::asked(from, to, NOW).map(|span| (span.from - NOW, span.to - NOW)).unwrap();
        assert_eq!(span("", ""), (-900, 0));
        assert_eq!(span("-1h30m", "-30m"), (-5400, -1800));
        assert_eq!(span("2026-01-02T03:00:00Z", "2026-01-02T04:04:05+01:00"), (-245, 0));
        assert_eq!(span("", "-1d"), (-87_300, -86_400));
        assert_eq!(span("-90", "now"), (-90, 0));
    }

    #[test]
    fn what_is_no_window_is_refused_with_what_would_be_one() {
        for (from, to) in
            [("soon", ""), ("-5x", ""), ("-", ""), ("-5m", "-10m"), ("-99999999999999999999s", ""), ("-1é", "")]
        {
            assert!(matches!(Span::asked(from, to, NOW), Err(HistoryError::Range(_))), "{from} {to}");
        }
        assert!(Span::asked("2030-01-01T00:00:00Z", "2030-01-01T01:00:00Z", NOW).is_err());
    }

    #[test]
    fn the_window_to_compare_with_is_of_equal_length() {
        let span = Span { from: NOW - 900, to: NOW };
        let other = |asked| span.other(asked, NOW).map(|span| (span.from - NOW, span.to - NOW)).unwrap();
        assert_eq!(other("previous"), (-1800, -900));
        assert_eq!(other("-1h"), (-3600, -2700));
        assert_eq!(other("-2h..-1h"), (-7200, -3600));
    }

    #[test]
    fn a_usual_step_makes_some_sixty_points() {
        assert_eq!([60, 900, 3600, 86_400, 7 * 86_400].map(usual_step), [1, 20, 60, 1800, 21_600]);
        for seconds in (1..40 * 86_400).step_by(997) {
            assert!(seconds / usual_step(seconds) <= 60, "{seconds}");
        }
    }
}
