//! The hardware address of a device.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;

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

    /// Parses six pairs of hexadecimal digits in either case, with `:`, `_` or `-` as the separator.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let text = text.as_bytes();
        let separator = *text.get(2).filter(|byte| b":_-".contains(byte)).ok_or(BadMac)?;
        let mut pairs = text.split(|byte| *byte == separator);
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or(BadMac)?;
            HEXLOWER_PERMISSIVE.decode_mut(pair, std::slice::from_mut(byte)).map_err(|_| BadMac)?;
        }
        if pairs.next().is_some() { Err(BadMac) } else { Ok(Self(bytes)) }
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
