//! From the kernel's clock to the calendar.

use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Turns `CLOCK_MONOTONIC` nanoseconds of kernel programs into UTC.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The calendar time when `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970.
    origin_ns: i128,
}

impl Clock {
    /// Reads both clocks.
    pub fn now() -> Self {
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let since = Duration::new(monotonic.tv_sec as u64, monotonic.tv_nsec as u32);
        Self { origin_ns: unix_ns(SystemTime::now()) - since.as_nanos() as i128 }
    }

    /// UTC with microseconds, for example `2026-01-02T03:04:05.678901Z`.
    pub fn utc(&self, monotonic_ns: u64) -> String {
        format(self.origin_ns + i128::from(monotonic_ns), 6)
    }
}

/// UTC with milliseconds, for example `2026-01-02T03:04:05.678Z`.
pub fn utc(time: SystemTime) -> String {
    format(unix_ns(time), 3)
}

/// The time that [`utc`] wrote.
pub fn moment(utc: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(utc, &Rfc3339).ok().map(SystemTime::from)
}

fn unix_ns(time: SystemTime) -> i128 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128)
}

/// RFC 3339 with so many digits of the second, 9 at most.
fn format(unix_ns: i128, digits: usize) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(unix_ns).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = time.to_hms();
    let fraction = &format!("{:09}", time.nanosecond())[..digits];
    let (year, month, day) = time.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_is_utc_with_a_z() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        assert_eq!(utc(time), "2026-01-02T03:04:05.678Z");
        assert_eq!(moment(&utc(time)), Some(time));
        assert_eq!(moment("yesterday"), None);
        let clock = Clock { origin_ns: 1_767_323_045_000_000_000 };
        assert_eq!(clock.utc(678_901_999), "2026-01-02T03:04:05.678901Z");
    }
}
