//! The MQTT client id of a device.

use std::borrow::Cow;
use std::fmt;

use uuid::Uuid;

use super::mac::{BadMac, Mac};

/// Separates the parts of a client id.
const SEPARATOR: &str = "@@@";
/// The longest client id, in bytes.
const MAX_CLIENT_ID: usize = 256;

/// An MQTT client id: `group@@@mac@@@uuid`, or `group@@@mac` from older devices.
///
/// Each connected device has one, so MAC and uuid are kept as bytes if they are written as firmware writes them: 32 bytes instead of
/// 67 with the group `GID_test`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientId(Box<[u8]>);

/// How an id is kept, by its first byte. All but `TEXT` go on with the length of the group, the six bytes of the MAC and the group.
mod form {
    /// The text as it came.
    pub(super) const TEXT: u8 = 0;
    /// Without a uuid.
    pub(super) const TWO_PARTS: u8 = 1;
    /// The third part is the second once more.
    pub(super) const MAC_TWICE: u8 = 2;
    /// The 16 bytes of a uuid follow, which was written with hyphens and lower-case digits.
    pub(super) const UUID: u8 = 3;
    /// The text of the third part follows.
    pub(super) const OTHER: u8 = 4;
}

/// Bytes before the group.
const HEAD: usize = 2 + 6;

impl ClientId {
    /// Parses two or three non-empty parts, the second of them a MAC. The id has no control character and at most 256 bytes, since
    /// it is used in HTTP headers and log lines.
    pub fn parse(text: &str) -> Result<Self, BadClientId> {
        if text.len() > MAX_CLIENT_ID {
            return Err(BadClientId::Long);
        }
        if text.contains(char::is_control) {
            return Err(BadClientId::Control);
        }
        let mut parts = parts(text);
        let (Some(group), Some(mac_text), uuid, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadClientId::Parts);
        };
        if group.is_empty() {
            return Err(BadClientId::Group);
        }
        let mac: Mac = mac_text.parse().map_err(|BadMac| BadClientId::Mac)?;
        if uuid == Some("") {
            return Err(BadClientId::Uuid);
        }
        if mac.underscored() != mac_text {
            return Ok(Self([&[form::TEXT], text.as_bytes()].concat().into()));
        }
        let bytes_of_uuid = uuid.and_then(canonical_uuid).map(Uuid::into_bytes);
        let (form, rest) = match (uuid, &bytes_of_uuid) {
            (None, _) => (form::TWO_PARTS, &[][..]),
            (_, Some(bytes)) => (form::UUID, &bytes[..]),
            (Some(uuid), None) if uuid == mac_text => (form::MAC_TWICE, &[][..]),
            (Some(uuid), None) => (form::OTHER, uuid.as_bytes()),
        };
        // Beside a MAC, a group is shorter than 256 bytes.
        let head = [form, group.len() as u8];
        Ok(Self([&head, &mac.bytes()[..], group.as_bytes(), rest].concat().into()))
    }

    /// The id as the device sent it.
    pub fn text(&self) -> Cow<'_, str> {
        let [form::TEXT, text @ ..] = &*self.0 else {
            let mut text = String::with_capacity(MAX_CLIENT_ID / 2);
            text.extend([self.group(), SEPARATOR, &self.mac().underscored()]);
            if let Some(uuid) = self.uuid() {
                text.extend([SEPARATOR, &uuid]);
            }
            return Cow::Owned(text);
        };
        Cow::Borrowed(checked(text))
    }

    /// The first part, which changes when a device is bound to an account.
    pub fn group(&self) -> &str {
        match &*self.0 {
            [form::TEXT, text @ ..] => parts(checked(text)).next().unwrap_or_default(),
            [_, len, rest @ ..] => checked(&rest[HEAD - 2..][..usize::from(*len)]),
            _ => "",
        }
    }

    /// The second part.
    pub fn mac(&self) -> Mac {
        let mac = match &*self.0 {
            [form::TEXT, text @ ..] => parts(checked(text)).nth(1).and_then(|mac| mac.parse().ok()),
            [_, _, rest @ ..] => rest.first_chunk::<6>().map(|mac| Mac::from(*mac)),
            _ => None,
        };
        mac.expect("`parse` has checked it")
    }

    /// The third part, if there is one.
    pub fn uuid(&self) -> Option<Cow<'_, str>> {
        let (form, rest) = match &*self.0 {
            [form::TEXT, text @ ..] => return parts(checked(text)).nth(2).map(Cow::Borrowed),
            [form, len, rest @ ..] => (*form, &rest[HEAD - 2 + usize::from(*len)..]),
            _ => return None,
        };
        match form {
            form::MAC_TWICE => Some(Cow::Owned(self.mac().underscored())),
            form::UUID => Uuid::from_slice(rest).ok().map(|uuid| Cow::Owned(uuid.hyphenated().to_string())),
            form::OTHER => Some(Cow::Borrowed(checked(rest))),
            _ => None,
        }
    }
}

/// A text that was cut out of one.
fn checked(text: &[u8]) -> &str {
    str::from_utf8(text).expect("`parse` took it from a text")
}

/// The uuid that is written exactly like this.
fn canonical_uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    let mut written = Uuid::encode_buffer();
    (uuid.hyphenated().encode_lower(&mut written) == text).then_some(uuid)
}

/// As [`str::split`] does it, which prepares a search that takes longer than one of a text as short as this.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.as_bytes().windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR.as_bytes());
        rest = end.map(|end| &text[end + SEPARATOR.len()..]);
        Some(end.map_or(text, |end| &text[..end]))
    })
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// Why a client id is invalid.
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
    /// It contains a control character.
    Control,
    /// More than 256 bytes.
    Long,
}

impl fmt::Display for BadClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parts => "client id is not group@@@mac@@@uuid or group@@@mac",
            Self::Group => "client id has an empty group",
            Self::Mac => "client id's second part is not a MAC",
            Self::Uuid => "client id has an empty third part",
            Self::Control => "client id holds a control character",
            Self::Long => "client id is longer than 256 bytes",
        })
    }
}

impl std::error::Error for BadClientId {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x0f];

    /// The bytes that an id of this text takes, which comes back as it was, with these parts.
    fn kept(text: &str, group: &str, uuid: Option<&str>) -> usize {
        let id = ClientId::parse(text).unwrap();
        assert_eq!(
            (&*id.text(), id.group(), id.mac(), id.uuid().as_deref()),
            (text, group, MAC.into(), uuid)
        );
        assert_eq!((id.to_string(), &id), (text.to_owned(), &ClientId::parse(&id.text()).unwrap()));
        id.0.len()
    }

    #[test]
    fn what_firmware_sends_is_kept_in_few_bytes() {
        let uuid = "0b0e8c7a-1f2e-4d3c-8b4a-5f6e7d8c9b0a";
        let text = format!("GID_test@@@aa_bb_cc_dd_ee_0f@@@{uuid}");
        assert_eq!((text.len(), kept(&text, "GID_test", Some(uuid))), (67, 32));
        // Java issues the MAC a second time as the third part.
        let mac = "aa_bb_cc_dd_ee_0f";
        assert_eq!(kept(&format!("g@@@{mac}@@@{mac}"), "g", Some(mac)), HEAD + 1);
        assert_eq!(kept("组@@@aa_bb_cc_dd_ee_0f", "组", None), HEAD + 3);
        assert_eq!(kept("g@@@aa_bb_cc_dd_ee_0f@@@u-1", "g", Some("u-1")), HEAD + 4);
    }

    #[test]
    fn what_is_written_in_another_way_stays_as_it_is() {
        for uuid in [
            "0B0E8C7A-1F2E-4D3C-8B4A-5F6E7D8C9B0A",
            "0b0e8c7a1f2e4d3c8b4a5f6e7d8c9b0a",
            "{0b0e8c7a-1f2e-4d3c-8b4a-5f6e7d8c9b0a}",
            "urn:uuid:0b0e8c7a-1f2e-4d3c-8b4a-5f6e7d8c9b0a",
            "aa:bb:cc:dd:ee:0f",
            "AA_BB_CC_DD_EE_0F",
        ] {
            let text = format!("g@@@aa_bb_cc_dd_ee_0f@@@{uuid}");
            assert_eq!(kept(&text, "g", Some(uuid)), HEAD + 1 + uuid.len());
        }
        for mac in ["AA_bb_cc_dd_ee_0f", "aa:bb:cc:dd:ee:0f", "AA-BB-CC-DD-EE-0F"] {
            assert_eq!(kept(&format!("g@@@{mac}"), "g", None), 1 + 4 + mac.len());
            assert_eq!(kept(&format!("g@@@{mac}@@@{mac}"), "g", Some(mac)), 1 + 7 + 2 * mac.len());
        }
        let (group, mac) = ("g".repeat(236), "aa_bb_cc_dd_ee_0f");
        assert_eq!(kept(&format!("{group}@@@{mac}"), &group, None), HEAD + 236);
    }

    #[test]
    fn bad_client_ids() {
        let cases = [
            ("", BadClientId::Parts),
            ("mqtt-explorer-1", BadClientId::Parts),
            ("g@@aa_bb_cc_dd_ee_0f", BadClientId::Parts),
            ("g@@@aa_bb_cc_dd_ee_0f@@@u@@@x", BadClientId::Parts),
            ("g@@@aa_bb_cc_dd_ee_0f@@@u@@@", BadClientId::Parts),
            ("@@@aa_bb_cc_dd_ee_0f@@@u", BadClientId::Group),
            ("@@@", BadClientId::Group),
            ("g@@@@aa_bb_cc_dd_ee_0f@@@u", BadClientId::Mac),
            ("g@@@@@@u", BadClientId::Mac),
            ("g@@@aa_bb_cc_dd_ee@@@u", BadClientId::Mac),
            ("g@@@aa_bb_cc_dd_ee_0f@@@", BadClientId::Uuid),
            ("g@@@aa_bb_cc_dd_ee_0f@@@u\r\nx: y", BadClientId::Control),
            ("g\t@@@aa_bb_cc_dd_ee_0f@@@u", BadClientId::Control),
            ("g@@@aa_bb_cc_dd_ee_0f@@@u\u{7f}", BadClientId::Control),
            ("g@@@aa_bb_cc_dd_ee_0f@@@u\u{85}", BadClientId::Control),
            ("\u{1b}[31m", BadClientId::Control),
            (&format!("{}@@@aa_bb_cc_dd_ee_0f@@@u", "g".repeat(233)), BadClientId::Long),
        ];
        for (text, expected) in cases {
            assert_eq!(ClientId::parse(text), Err(expected), "{text:?}");
            assert!(expected.to_string().starts_with("client id"), "{expected}");
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back_as_it_was(
            text in ".*",
            loose in prop::collection::vec("[a-z@:_0-9]*", 0..5),
            group in "[a-c@组]{1,5}",
            mac in "([0-9a-fA-F]{2}_){5}[0-9a-fA-F]{2}|([0-9a-f]{2}:){5}[0-9a-f]{2}",
            uuid in "|u|[0-9a-fA-F]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|([0-9a-f]{2}_){5}[0-9a-f]{2}",
        ) {
            let (two, three) = (format!("{group}@@@{mac}"), format!("{group}@@@{mac}@@@{uuid}"));
            for text in [text, loose.join(SEPARATOR), format!("{two}@@@{mac}"), two, three] {
                let Ok(id) = ClientId::parse(&text) else { continue };
                prop_assert_eq!(&id.text(), &text);
                let parts: Vec<_> = text.split(SEPARATOR).collect();
                prop_assert_eq!(id.group(), parts[0]);
                prop_assert_eq!(Ok(id.mac()), parts[1].parse());
                let uuid = id.uuid();
                prop_assert_eq!(uuid.as_deref(), parts.get(2).copied());
            }
        }
    }
}
