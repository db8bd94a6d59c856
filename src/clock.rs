//! The time zone, times as text, and whether this machine's clock can be right: a board without a battery starts in 1970, and every certificate is
//! then refused.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use tz::TimeZone;

use crate::admin::auth::WallClock;
use crate::admin::call_record::LocalTime;

/// The time zone of `TZ`, else that of the system, else UTC.
pub(crate) fn local_time_zone() -> TimeZone {
    let named = std::env::var("TZ").ok().filter(|name| !name.is_empty());
    let zone = named.map_or_else(TimeZone::local, |name| TimeZone::from_posix_tz(&name));
    zone.unwrap_or_else(|_| TimeZone::utc())
}

/// What is wrong with the clock: it stands before the day on which this program was built.
pub fn clock_warning() -> Option<String> {
    warning(SystemTime::now(), env!("BUILT_AT").parse().unwrap_or_default())
}

/// A TLS library's error, with what is wrong with the clock if it is about a certificate.
pub(crate) fn with_clock_warning(error: String) -> String {
    let is_certificate = error.contains("certificate");
    match clock_warning().filter(|_| is_certificate) {
        Some(warning) => format!("{error}; {warning}"),
        None => error,
    }
}

/// The time since 1970; zero when the clock stands before that.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The time now.
pub(crate) fn wall_clock(time_zone: &TimeZone) -> WallClock {
    let unix = unix_time().as_secs() as i64;
    let local = time_zone.find_local_time_type(unix);
    WallClock { unix_seconds: unix, utc_offset_seconds: local.map_or(0, |local| local.ut_offset().into()) }
}

/// The time with milliseconds and offset (RFC 3339); an offset of zero is `Z`.
pub(crate) fn timestamp(time: SystemTime, zone: Option<&TimeZone>) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let unix = since.as_secs() as i64;
    let offset =
        zone.and_then(|zone| zone.find_local_time_type(unix).ok()).map_or(0, |local| local.ut_offset());
    let mut text = String::with_capacity("2026-01-31T23:59:59.999+08:00".len());
    // It fails in a year beyond two billion only.
    if write!(text, "{}", LocalTime { unix_ms: since.as_millis() as u64, utc_offset_s: offset }).is_err() {
        return "-".to_owned();
    }
    if let Some(local) = text.strip_suffix("+00:00").or_else(|| text.strip_suffix("-00:00")) {
        text.truncate(local.len());
        text.push('Z');
    }
    text
}

fn warning(now: SystemTime, built_at: u64) -> Option<String> {
    // A day, since the builder's clock may be ahead of this one.
    let built = SystemTime::UNIX_EPOCH + Duration::from_secs(built_at);
    let behind = built.duration_since(now).ok().filter(|behind| behind.as_secs() > 86_400)?;
    let days = behind.as_secs() / 86_400;
    Some(format!(
        "this machine's clock stands {days} days before the day this program was built, so every certificate may be \
         refused: set the clock"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_milliseconds_and_the_offset_of_its_date() {
        let at = |unix: u64, millis| SystemTime::UNIX_EPOCH + Duration::from_millis(unix * 1000 + millis);
        for (zone, time, expected) in [
            (None, at(1_769_903_999, 999), "2026-01-31T23:59:59.999Z"),
            (None, at(0, 0), "1970-01-01T00:00:00.000Z"),
            (Some("UTC0"), at(1_769_903_999, 5), "2026-01-31T23:59:59.005Z"),
            (Some("CST-8"), at(1_769_903_999, 999), "2026-02-01T07:59:59.999+08:00"),
            (Some("NST3:30"), at(1_769_903_999, 0), "2026-01-31T20:29:59.000-03:30"),
            // Summer time.
            (Some("CET-1CEST,M3.5.0,M10.5.0/3"), at(1_769_903_999, 0), "2026-02-01T00:59:59.000+01:00"),
            (Some("CET-1CEST,M3.5.0,M10.5.0/3"), at(1_782_864_000, 0), "2026-07-01T02:00:00.000+02:00"),
        ] {
            let zone = zone.map(|zone| TimeZone::from_posix_tz(zone).unwrap());
            assert_eq!(timestamp(time, zone.as_ref()), expected);
        }
        assert_eq!(
            timestamp(SystemTime::UNIX_EPOCH - Duration::from_secs(9), None),
            "1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn a_clock_before_the_build_date_is_named() {
        const DAY: u64 = 86_400;
        let at = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY);
        assert!(warning(at(1), 20_000 * DAY).unwrap().contains("19999 days before"));
        assert_eq!(warning(at(19_999), 20_000 * DAY), None);
        assert_eq!(warning(at(20_001), 20_000 * DAY), None);
        assert_eq!(clock_warning(), None, "the clock of whoever tests");
        assert_eq!(with_clock_warning("certificate verify failed".to_owned()), "certificate verify failed");
    }
}
