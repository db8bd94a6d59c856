//! The hardware address of a device.

use std::fmt;
use std::str::FromStr;

/// A device's hardware address, displayed as `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub(super) [u8; 6]);

impl Mac {
    /// The six bytes in order.
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// `aa_bb_cc_dd_ee_ff`, the form in client ids and topics.
    pub fn underscored(&self) -> String {
        self.written('_')
    }

    /// Each message to a device contains it, and a format string with six numbers takes twenty times as long.
    fn written(&self, separator: char) -> String {
        let mut text = String::with_capacity(3 * self.0.len());
        for byte in self.0 {
            let digits =
                [byte >> 4, byte & 0xf].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]));
            text.extend(digits);
            text.push(separator);
        }
        text.pop();
        text
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, fmt: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt.write_str(&self.written(':'))
    }
}

impl From<[u8; 6]> for Mac {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    /// Parses six pairs of hexadecimal digits in either case, with `:`, `_` or `-` as the separator.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let MacPrefix { bytes, len } = text.parse()?;
        if len == bytes.len() { Ok(Self(bytes)) } else { Err(BadMac) }
    }
}

/// The first one to six bytes of a MAC: all devices of a vendor or a batch, or one device. Displayed as `aa:bb:cc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacPrefix {
    /// Zero from `len` on.
    bytes: [u8; 6],
    len: usize,
}

impl fmt::Display for MacPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Mac(self.bytes).to_string()[..3 * self.len - 1])
    }
}

impl FromStr for MacPrefix {
    type Err = BadMac;

    /// Parses one to six pairs, written as in a [`Mac`].
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let text = text.as_bytes();
        let separator = text.get(2).copied().unwrap_or(b':');
        if !b":_-".contains(&separator) {
            return Err(BadMac);
        }
        let mut prefix = Self { bytes: [0; 6], len: 0 };
        for pair in text.split(|byte| *byte == separator) {
            let (Some(byte), &[high, low]) = (prefix.bytes.get_mut(prefix.len), pair) else {
                return Err(BadMac);
            };
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(BadMac);
            *byte = (digit(high)? << 4 | digit(low)?) as u8;
            prefix.len += 1;
        }
        Ok(prefix)
    }
}

/// A sorted list of prefixes: a reload looks every connected device up in it, which may take no time even if it names thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MacPrefixes(Vec<MacPrefix>);

impl MacPrefixes {
    /// Whether the list names no device.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the prefixes is that of this MAC.
    pub fn contains(&self, mac: Mac) -> bool {
        let mut prefix = MacPrefix { bytes: [0; 6], len: 0 };
        mac.0.iter().any(|byte| {
            prefix.bytes[prefix.len] = *byte;
            prefix.len += 1;
            self.0.binary_search(&prefix).is_ok()
        })
    }

    /// The prefixes in order, each once.
    pub fn as_slice(&self) -> &[MacPrefix] {
        &self.0
    }
}

impl From<Vec<MacPrefix>> for MacPrefixes {
    fn from(mut prefixes: Vec<MacPrefix>) -> Self {
        prefixes.sort_unstable();
        prefixes.dedup();
        Self(prefixes)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_one_to_six_pairs() {
        for (text, shown) in [
            ("aA", "aa"),
            ("aa-BB", "aa:bb"),
            ("aa_bb_cc", "aa:bb:cc"),
            ("AA:bb:cc:dd:ee:0F", "aa:bb:cc:dd:ee:0f"),
        ] {
            assert_eq!(text.parse::<MacPrefix>().unwrap().to_string(), shown);
        }
        for text in ["", "a", "aab", "aa:", "aa:b", "aa:bb_cc", "aabb", "aa:bb:cc:dd:ee:0f:11", "aa:*", ":aa"]
        {
            assert_eq!(text.parse::<MacPrefix>(), Err(BadMac), "{text:?}");
        }
    }

    #[test]
    fn a_list_holds_the_macs_that_begin_with_one_of_its_prefixes() {
        let list = |texts: &[&str]| {
            MacPrefixes::from(texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
        };
        let mac: Mac = "aa:bb:cc:dd:ee:00".parse().unwrap();
        for (texts, expected) in [
            (&[][..], false),
            (&["aa"], true),
            (&["ab", "aa:bb:cc", "00"], true),
            (&["aa:bb:cc:dd:ee:00"], true),
            (&["aa:bb:cc:dd:ee"], true),
            (&["bb:cc", "aa:bb:cd", "aa:00", "aa:bb:cc:dd:ee:01", "00:aa"], false),
            // Trailing zeros are no wildcard.
            (&["aa:00:00:00:00:00", "aa:bb:cc:dd:00"], false),
        ] {
            assert_eq!(list(texts).contains(mac), expected, "{texts:?}");
        }
        assert_eq!(list(&["bb", "aa", "BB"]).as_slice(), list(&["aa", "bb"]).as_slice());
    }
}
