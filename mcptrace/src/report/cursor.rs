//! Where a reader goes on: a place in a report, in the events beside it, or both. Pure.

use std::fmt;

/// A place to read on from. As text `e123` counts events from the first that was seen, `r20` rows of a sorted report, `r20e123` these and the
/// events beside them, and `s3` at the end names the report that was kept while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Events that are the report.
    Events(u64),
    /// Rows of a sorted report.
    Rows {
        /// The next row.
        row: u64,
        /// The next of the events beside the report.
        event: Option<u64>,
        /// Which of the kept reports it belongs to.
        of: Option<u64>,
    },
}

impl Cursor {
    /// Reads the text of one; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(place) = text.strip_prefix('e') {
            return number(place).map(Self::Events);
        }
        let (place, of) = split(text.strip_prefix('r')?, 's')?;
        let (row, event) = split(place, 'e')?;
        Some(Self::Rows { row: number(row)?, event, of })
    }

    /// Which of the kept reports it belongs to.
    pub fn of(self) -> Option<u64> {
        match self {
            Self::Events(_) => None,
            Self::Rows { of, .. } => of,
        }
    }

    /// The same, so many rows and events before it.
    #[must_use]
    pub fn back(self, rows: u64, events: u64) -> Self {
        match self {
            Self::Events(place) => Self::Events(place.saturating_sub(rows)),
            Self::Rows { row, event, of } => {
                Self::Rows { row: row.saturating_sub(rows), event: event.map(|event| event.saturating_sub(events)), of }
            }
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events(place) => write!(f, "e{place}"),
            Self::Rows { row, event, of } => {
                write!(f, "r{row}")?;
                event.map_or(Ok(()), |event| write!(f, "e{event}"))?;
                of.map_or(Ok(()), |of| write!(f, "s{of}"))
            }
        }
    }
}

/// What stands before a letter, and the number after it if it is there.
fn split(text: &str, letter: char) -> Option<(&str, Option<u64>)> {
    match text.split_once(letter) {
        Some((before, after)) => Some((before, Some(number(after)?))),
        None => Some((text, None)),
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_they_are_written() {
        let rows = |row, event, of| Cursor::Rows { row, event, of };
        let all = [
            ("e123", Cursor::Events(123)),
            ("r0", rows(0, None, None)),
            ("r20s3", rows(20, None, Some(3))),
            ("r20e7", rows(20, Some(7), None)),
            ("r20e7s3", rows(20, Some(7), Some(3))),
        ];
        for (text, cursor) in all {
            assert_eq!((Cursor::parse(text), cursor.to_string()), (Some(cursor), text.to_owned()));
        }
    }

    #[test]
    fn what_was_cut_off_is_read_again() {
        let back = |text: &str| Cursor::parse(text).unwrap().back(4, 5).to_string();
        assert_eq!([back("e9"), back("r20s3"), back("r20e7s3"), back("r2e3")], ["e5", "r16s3", "r16e2s3", "r0e0"]);
    }
}
