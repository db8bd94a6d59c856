//! What Redis holds of a connected device.

use std::fmt;
use std::str::FromStr;

use super::GatewayId;

/// Where a device is connected. Displays as `1:RUNID:CONNECTION:CLIENT:ORIGIN:SINCE`, which is how it stands in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceRecord {
    pub(super) gateway: GatewayId,
    /// The gateway's number of the connection.
    pub(super) connection: u32,
    /// A hash of the client id.
    pub(super) client: u64,
    pub(super) origin: Origin,
    /// Seconds since 1970, by the gateway's clock. For people only.
    pub(super) since: u64,
}

/// How a record came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Written when the device connected, whatever was there before: of two such records the later one is of the newer connection.
    Connected,
    /// Written where no record was. It may be of an older connection.
    Restored,
}

impl fmt::Display for DeviceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::Connected => 'c',
            Origin::Restored => 'r',
        };
        let Self { gateway, connection, client, since, .. } = self;
        write!(f, "1:{gateway}:{connection:08x}:{client:016x}:{origin}:{since}")
    }
}

impl FromStr for DeviceRecord {
    type Err = ();

    /// Reads only what a gateway of this version may have written.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(());
        if part()? != "1" {
            return Err(());
        }
        let record = Self {
            gateway: part()?.parse()?,
            connection: u32::from_str_radix(part()?, 16).map_err(drop)?,
            client: u64::from_str_radix(part()?, 16).map_err(drop)?,
            origin: match part()? {
                "c" => Origin::Connected,
                "r" => Origin::Restored,
                _ => return Err(()),
            },
            since: part()?.parse().map_err(drop)?,
        };
        (record.to_string() == text).then_some(record).ok_or(())
    }
}

impl DeviceRecord {
    /// As it stands in Redis; `None` when it is something else.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = DeviceRecord {
            gateway: GatewayId(0xab),
            connection: 7,
            client: u64::MAX,
            origin: Origin::Connected,
            since: 1_700_000_000,
        };
        let text = "1:00000000000000ab:00000007:ffffffffffffffff:c:1700000000";
        assert_eq!(record.to_string(), text);
        assert_eq!(DeviceRecord::parse(text.as_bytes()), Some(record));
        for bad in [
            "",
            "1",
            "2:00000000000000ab:00000007:ffffffffffffffff:c:1700000000",
            "1:00000000000000AB:00000007:ffffffffffffffff:c:1700000000",
            "1:00000000000000ab:7:ffffffffffffffff:c:1700000000",
            "1:00000000000000ab:00000007:ffffffffffffffff:x:1700000000",
            "1:00000000000000ab:00000007:ffffffffffffffff:c:+1700000000",
            "1:00000000000000ab:00000007:ffffffffffffffff:c:1700000000:",
            "1:00000000000000ab:00000007:ffffffffffffffff:c:99999999999999999999",
        ] {
            assert_eq!(DeviceRecord::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(DeviceRecord::parse(&[0xff; 60]), None);
    }
}
