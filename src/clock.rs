//! The time zone, and whether this machine's clock can be right: a board without a battery starts in 1970, and every certificate is
//! then refused.

use std::time::{Duration, SystemTime};

use tz::TimeZone;

use crate::admin::auth::WallClock;

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

/// The time now.
pub(crate) fn wall_clock(time_zone: &TimeZone) -> WallClock {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let local = time_zone.find_local_time_type(unix);
    WallClock { unix_seconds: unix, utc_offset_seconds: local.map_or(0, |local| local.ut_offset().into()) }
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
