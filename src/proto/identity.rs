//! Who a device is: its MAC, its MQTT client id, its credentials, and the token it is announced with to chat servers.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;

use super::message;

/// What separates the parts of a client id.
const SEPARATOR: &str = "@@@";

/// A device's hardware address. It is shown as `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six bytes, first pair first.
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// `aa_bb_cc_dd_ee_ff`, the form in client ids and topics.
    pub fn underscored(&self) -> String {
        let [a, b, c, d, e, f] = self.0;
        format!("{a:02x}_{b:02x}_{c:02x}_{d:02x}_{e:02x}_{f:02x}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, fmt: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(fmt, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl From<[u8; 6]> for Mac {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    /// Six pairs of hexadecimal digits in either case, separated all by `:`, all by `_` or all by `-`.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let text = text.as_bytes();
        let separator = *text.get(2).filter(|byte| b":_-".contains(byte)).ok_or(BadMac)?;
        let mut pairs = text.split(|byte| *byte == separator);
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            *byte = match pairs.next() {
                Some(&[high, low]) => digit(high)? << 4 | digit(low)?,
                _ => return Err(BadMac),
            };
        }
        if pairs.next().is_some() { Err(BadMac) } else { Ok(Self(bytes)) }
    }
}

fn digit(byte: u8) -> Result<u8, BadMac> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(BadMac),
    }
}

/// The text is no MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadMac;

impl fmt::Display for BadMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not six pairs of hexadecimal digits separated by ':', '_' or '-'")
    }
}

impl std::error::Error for BadMac {}

/// An MQTT client id: `group@@@mac@@@uuid`, or `group@@@mac` from older devices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    text: Box<str>,
    mac: Mac,
}

impl ClientId {
    /// Two or three parts, none of them empty, the second a MAC, and no control character anywhere: the id goes into HTTP
    /// headers and log lines.
    pub fn parse(text: &str) -> Result<Self, BadClientId> {
        if text.contains(char::is_control) {
            return Err(BadClientId::Control);
        }
        let mut parts = text.split(SEPARATOR);
        let (Some(group), Some(mac), uuid, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadClientId::Parts);
        };
        if group.is_empty() {
            return Err(BadClientId::Group);
        }
        let mac = mac.parse().map_err(|BadMac| BadClientId::Mac)?;
        if uuid == Some("") {
            return Err(BadClientId::Uuid);
        }
        Ok(Self { text: text.into(), mac })
    }

    /// The id as the device sent it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first part. It changes when a device is bound to an account.
    pub fn group(&self) -> &str {
        self.text.split(SEPARATOR).next().unwrap_or_default()
    }

    /// The second part.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The third part; an id of two parts has none.
    pub fn uuid(&self) -> Option<&str> {
        self.text.split(SEPARATOR).nth(2)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is wrong with a client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadClientId {
    /// One part, or more than three.
    Parts,
    /// The first part is empty.
    Group,
    /// The second part is not a MAC.
    Mac,
    /// The third part is empty.
    Uuid,
    /// A control character.
    Control,
}

impl fmt::Display for BadClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parts => "client id is not group@@@mac@@@uuid or group@@@mac",
            Self::Group => "client id has an empty group",
            Self::Mac => "client id's second part is not a MAC",
            Self::Uuid => "client id has an empty third part",
            Self::Control => "client id holds a control character",
        })
    }
}

impl std::error::Error for BadClientId {}

/// The password of a device: base64(HMAC-SHA256(`key`, `client_id` + "|" + `user_name`)).
pub fn password(key: &[u8], client_id: &str, user_name: &str) -> String {
    BASE64.encode(&signature(key, &[client_id, user_name]).finalize().into_bytes())
}

/// Is `password` the one [`password()`] makes? Decoded first, then compared in constant time.
pub fn password_matches(key: &[u8], client_id: &str, user_name: &str, password: &[u8]) -> bool {
    BASE64
        .decode(password)
        .is_ok_and(|tag| signature(key, &[client_id, user_name]).verify_slice(&tag).is_ok())
}

/// Is it a user name as issued to devices: base64 of a JSON object?
pub fn is_user_name(user_name: &str) -> bool {
    BASE64
        .decode(user_name.as_bytes())
        .is_ok_and(|json| str::from_utf8(&json).is_ok_and(|json| message::peek(json).is_ok()))
}

/// The bearer token for a chat server: base64url without padding of HMAC-SHA256(`secret`, "`client_id`|`mac`|`unix_seconds`"), then
/// "." and `unix_seconds`. The MAC is signed with colons.
pub fn token(secret: &[u8], client_id: &str, mac: Mac, unix_seconds: u64) -> String {
    let signature = signature(secret, &[client_id, &mac.to_string(), &unix_seconds.to_string()]);
    format!("{}.{unix_seconds}", BASE64URL_NOPAD.encode(&signature.finalize().into_bytes()))
}

/// HMAC-SHA256 over the parts joined by "|".
fn signature(key: &[u8], parts: &[&str]) -> Hmac<Sha256> {
    // RFC 2104 section 2: a key of any length.
    let mut hmac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
    hmac.update(parts.join("|").as_bytes());
    hmac
}
