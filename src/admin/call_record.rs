//! The record of a call that has ended: one plain value, for the history, its file, and events.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tz::UtcDateTime;

use crate::proto::identity::{ClientId, Mac};
use crate::session::{CallReport, CallSeries, CallState, CallStats, CallSummary, EndReason, EndedBy};
use crate::text::parse_digits;

/// A call that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRecord {
    /// Later calls have higher ids, also after a restart. About the milliseconds since 1970 at the end of the call.
    pub id: u64,
    /// When the device said hello.
    pub started_at: LocalTime,
    /// When the call ended.
    pub ended_at: LocalTime,
    /// The time between, which a change of the clock does not affect.
    pub seconds: f64,
    /// The device.
    pub client_id: Box<str>,
    /// Its MAC.
    pub mac: Box<str>,
    /// Its address, or with `history.mask_addresses` the network of that.
    pub ip: Box<str>,
    /// The list or route that its chat servers come from.
    pub route: Box<str>,
    /// The last chat server: its URL, without the secrets in its query.
    pub server: Option<Box<str>>,
    /// The session id that the device was given, or would have been given.
    pub session_id: Box<str>,
    /// Whether it was in a call with another device, or was calling one, at the end.
    pub device_call: bool,
    /// The MAC of that device, if it answered.
    pub peer: Option<Box<str>>,
    /// Whether the device got its hello reply.
    pub answered: bool,
    /// Why the call ended.
    pub reason: EndReason,
    /// Who ended it.
    pub ended_by: EndedBy,
    /// Packets, bytes and what went missing.
    #[serde(flatten)]
    pub stats: CallStats,
    /// The verdict, and what it goes by.
    #[serde(flatten)]
    pub report: CallReport,
}

/// A record and the course of its call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedCall {
    /// The record.
    #[serde(flatten)]
    pub record: CallRecord,
    /// The course.
    pub series: CallSeries,
}

/// What a record holds besides what the call's own state machine knows.
pub struct CallPlace<'a> {
    /// When the call ended.
    pub ended_at: LocalTime,
    /// The device.
    pub client_id: &'a ClientId,
    /// Its address.
    pub ip: IpAddr,
    /// Whether only the network of its address is recorded.
    pub mask_address: bool,
    /// The list or route that its chat servers come from.
    pub route: &'a str,
    /// The other device of a call between devices.
    pub peer: Option<Mac>,
}

impl FinishedCall {
    /// The record of a call, with the id 0 until the history gives it one.
    pub fn new(summary: &CallSummary, place: &CallPlace<'_>) -> Self {
        let ms = u64::try_from(summary.duration.as_millis()).unwrap_or(u64::MAX);
        let record = CallRecord {
            id: 0,
            started_at: LocalTime { unix_ms: place.ended_at.unix_ms.saturating_sub(ms), ..place.ended_at },
            ended_at: place.ended_at,
            seconds: ms as f64 / 1000.0,
            client_id: place.client_id.text().into(),
            mac: place.client_id.mac().to_string().into(),
            ip: if place.mask_address { masked(place.ip) } else { place.ip.to_string() }.into(),
            route: place.route.into(),
            server: summary.server.as_ref().map(|server| server.to_string().into()),
            session_id: summary.session_id.clone(),
            device_call: matches!(summary.state, CallState::Ringing | CallState::InDeviceCall),
            peer: place.peer.map(|peer| peer.to_string().into()),
            answered: summary.answered,
            reason: summary.reason,
            ended_by: summary.reason.ended_by(),
            stats: summary.stats,
            report: summary.report.clone(),
        };
        Self { record, series: summary.series.clone() }
    }
}

/// The network of an address: 24 bits of an IPv4 address, 48 of an IPv6 address, which providers give to one customer.
fn masked(ip: IpAddr) -> String {
    let ip = ip.to_canonical();
    let network = IpNet::new(ip, if ip.is_ipv4() { 24 } else { 48 });
    network.map_or_else(|_| String::new(), |network| network.trunc().to_string())
}

/// A time of the clock, with the time zone of then. Written as in RFC 3339: `2026-01-31T23:59:59.999+08:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Seconds that local time is ahead of UTC.
    pub utc_offset_s: i32,
}

impl LocalTime {
    /// Reads a time as it is written, also without seconds, fraction or zone: then it is in the zone of `utc_offset_s`; and without
    /// time of day: then that day begins.
    pub fn parse(text: &str, utc_offset_s: i32) -> Option<Self> {
        let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00"));
        let (time, utc_offset_s) = match time.find(['Z', 'z', '+', '-']) {
            Some(at) => (&time[..at], parse_offset(&time[at..])?),
            None => (time, utc_offset_s),
        };
        let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let [year, month, day] = numbers(date, '-')?[..] else { return None };
        let [hour, minute, second] = match numbers(clock, ':')?[..] {
            [hour, minute] => [hour, minute, 0],
            [hour, minute, second] => [hour, minute, second],
            _ => return None,
        };
        let is_fraction = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
        let millis: u64 = format!("{:0<3.3}", is_fraction.then_some(fraction)?).parse().ok()?;
        let byte = |number: u32| u8::try_from(number).ok();
        let utc = UtcDateTime::new(
            year.try_into().ok()?,
            byte(month)?,
            byte(day)?,
            byte(hour)?,
            byte(minute)?,
            byte(second)?,
            0,
        );
        let unix = utc.ok()?.unix_time() - i64::from(utc_offset_s);
        Some(Self { unix_ms: u64::try_from(unix).ok()?.checked_mul(1000)? + millis, utc_offset_s })
    }
}

/// Numbers of one to four digits.
fn numbers(text: &str, between: char) -> Option<Vec<u32>> {
    text.split(between).map(|part| parse_digits(part).filter(|_| part.len() <= 4)).collect()
}

/// `Z`, or `+08:00`, in seconds.
fn parse_offset(text: &str) -> Option<i32> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("Z" | "z", "") => return Some(0),
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let [hours @ 0..24, minutes @ 0..60] = numbers(rest, ':')?[..] else { return None };
    Some(sign * (hours * 3600 + minutes * 60) as i32)
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.unix_ms / 1000, self.unix_ms % 1000);
        let local = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_add(self.utc_offset_s.into());
        // Only a year beyond two billion is none.
        let time = UtcDateTime::from_timespec(local, 0).map_err(|_| fmt::Error)?;
        let offset = self.utc_offset_s.unsigned_abs() / 60;
        let mut text = *b"-00-00T00:00:00.000+00:00";
        for (end, number) in [
            (2, time.month().into()),
            (5, time.month_day().into()),
            (8, time.hour().into()),
            (11, time.minute().into()),
            (14, time.second().into()),
            (18, millis as u32),
            (21, offset / 60),
            (24, offset % 60),
        ] {
            put_digits(&mut text[..=end], number);
        }
        if self.utc_offset_s < 0 {
            text[19] = b'-';
        }
        // The formatter's own padding would take ten times as long, and every line of the log has a time.
        write!(f, "{:04}{}", time.year(), std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Writes a number over the digits at the end of `text`.
fn put_digits(text: &mut [u8], mut number: u32) {
    for digit in text.iter_mut().rev().take_while(|byte| byte.is_ascii_digit()) {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

impl Serialize for LocalTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LocalTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text, 0).ok_or_else(|| serde::de::Error::custom("no time as in RFC 3339"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::session::Verdict;

    /// A call that ended at this time in milliseconds since 1970.
    pub(in crate::admin) fn finished_call(ended_ms: u64, verdict: &str) -> FinishedCall {
        let text = r#"{"id":0,"startedAt":"2026-01-31T23:59:50.000+08:00","endedAt":"2026-01-31T23:59:59.999+08:00","seconds":9.999,
            "clientId":"GID_test@@@aa_bb_cc_dd_ee_ff@@@11111111-2222-4333-8444-555555555555","mac":"aa:bb:cc:dd:ee:ff",
            "ip":"192.0.2.7","route":"production","server":"ws://a/chat?token=***","sessionId":"s1","deviceCall":false,
            "peer":null,"answered":true,"reason":"device_goodbye","endedBy":"device","packetsUp":100,"bytesUp":8000,
            "packetsDown":50,"bytesDown":4000,"lost":9,"reordered":1,"duplicates":2,"dropped":3,"redials":1,
            "verdict":"good","setup":{"totalMs":123,"resolveMs":1,"connectMs":2,"tlsMs":3,"upgradeMs":4,"helloMs":113},
            "firstPacketMs":60,"lossPercent":8.2,"worstLossPercent":9.1,"medianJitterMs":3.1,"worstJitterMs":20.5,"gaps":1,
            "gapMs":200,"longestGapMs":200,"slowestAnswerMs":900,"unheardMs":0,"resumed":0,"awayMs":0,"failureCount":1,
            "failures":[{"afterMs":5000,"server":"ws://b/","stage":"live","cause":"closed"}],
            "series":{"sliceSeconds":10,"slices":[{"packetsUp":100,"lost":9,"jitterMs":3.1,"packetsDown":50,"gapMs":200}]}}"#;
        let mut call: FinishedCall = serde_json::from_str(text).unwrap();
        call.record.report.verdict = Verdict::ALL.into_iter().find(|known| known.label() == verdict).unwrap();
        let seconds = call.record.seconds;
        call.record.ended_at.unix_ms = ended_ms;
        call.record.started_at.unix_ms = ended_ms.saturating_sub((seconds * 1000.0) as u64);
        call
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let call = finished_call(1_769_875_199_999, "lossy_uplink");
        let text = serde_json::to_string(&call).unwrap();
        assert!(text.contains(r#""endedAt":"2026-01-31T23:59:59.999+08:00""#), "{text}");
        assert!(text.contains(r#""lost":9,"#) && text.contains(r#""verdict":"lossy_uplink""#), "{text}");
        assert!(text.contains(r#""lossPercent":8.2,"#), "{text}");
        assert_eq!(serde_json::from_str::<FinishedCall>(&text).unwrap(), call);
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_record_takes_little_memory() {
        // README.md states what it takes with its texts and its series.
        assert!(size_of::<FinishedCall>() <= 400, "{}", size_of::<FinishedCall>());
    }

    #[test]
    fn times_have_their_zone() {
        let time = |unix_ms, utc_offset_s| LocalTime { unix_ms, utc_offset_s };
        for (time, text) in [
            (time(0, 0), "1970-01-01T00:00:00.000+00:00"),
            (time(1_769_875_199_999, 28_800), "2026-01-31T23:59:59.999+08:00"),
            (time(1_769_875_199_999, -12_600), "2026-01-31T12:29:59.999-03:30"),
        ] {
            assert_eq!(time.to_string(), text);
            assert_eq!(LocalTime::parse(text, 99), Some(time));
        }
        for (text, unix_ms) in [
            ("2026-01-31T15:59:59Z", Some(1_769_875_199_000)),
            ("2026-01-31t15:59:59.5z", Some(1_769_875_199_500)),
            ("2026-01-31 23:59", Some(1_769_875_140_000)),
            ("2026-01-31", Some(1_769_788_800_000)),
            ("2026-02-30", None),
            ("2026-01-31T24:00", None),
            ("2026-01-31T23:59:59.", None),
            ("2026-01-31T23:59:59+8", None),
            ("2026-01-31T23:59:59+24:00", None),
            ("2026-01-31T23:59:59+08:00x", None),
            ("2026-01", None),
            ("1969-12-31", None),
            ("+2026-01-31", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(LocalTime::parse(text, 28_800).map(|time| time.unix_ms), unix_ms, "{text}");
        }
    }

    #[test]
    fn a_masked_address_is_a_network() {
        for (ip, shown) in [
            ("203.0.113.77", "203.0.113.0/24"),
            ("::ffff:203.0.113.77", "203.0.113.0/24"),
            ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ] {
            assert_eq!(masked(ip.parse().unwrap()), shown);
        }
    }
}
