//! Signature keys: those that are too weak for the management API, and which one a device has used.

use std::num::NonZeroU32;

use sha2::{Digest, Sha256};

use super::Secret;

/// Tells signature keys apart, in four bytes for each device. Two keys share one with a probability of 1 in 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFingerprint(NonZeroU32);

/// Texts that make a key guessable, in any case.
const FORBIDDEN_WORDS: [&str; 6] = ["test", "1234", "admin", "password", "qwerty", "xiaozhi"];

impl Secret {
    /// Which key this is.
    pub fn fingerprint(&self) -> KeyFingerprint {
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(self.as_bytes()));
        KeyFingerprint(NonZeroU32::new(u32::from_be_bytes([a, b, c, d])).unwrap_or(NonZeroU32::MAX))
    }

    /// Why this signature key must not guard the management API, in words that follow "the key"; `None` when it may.
    ///
    /// The rule is that of the Node.js gateway and of the consoles that hand the key out, so that a key is good for all
    /// of them or for none.
    pub fn weakness(&self) -> Option<String> {
        let bytes = self.as_bytes();
        if String::from_utf8_lossy(bytes).chars().count() < 8 {
            return Some("is shorter than 8 characters".to_owned());
        }
        if !bytes.iter().any(u8::is_ascii_uppercase) {
            return Some("has no upper-case letter (A-Z)".to_owned());
        }
        if !bytes.iter().any(u8::is_ascii_lowercase) {
            return Some("has no lower-case letter (a-z)".to_owned());
        }
        let lower = bytes.to_ascii_lowercase();
        let found =
            FORBIDDEN_WORDS.iter().find(|text| lower.windows(text.len()).any(|part| part == text.as_bytes()));
        found.map(|text| format!("contains \"{text}\""))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        let fingerprint = |key: &str| Secret::new(key).unwrap().fingerprint();
        assert_eq!(fingerprint("a"), fingerprint("a"));
        assert_ne!(fingerprint("a"), fingerprint("b"));
    }

    #[test]
    fn weak_keys_are_those_of_the_node_js_gateway() {
        for (key, part) in [
            ("Good-Key", None),
            ("钥匙Good钥匙", None),
            ("Abcdefg", Some("shorter than 8")),
            ("钥匙Ab", Some("shorter than 8")),
            ("lower-case-only", Some("no upper-case")),
            ("UPPER-CASE-ONLY", Some("no lower-case")),
            ("12345678", Some("no upper-case")),
            ("My-TeSt-Key", Some("\"test\"")),
            ("Abcd1234", Some("\"1234\"")),
            ("An-Administrator", Some("\"admin\"")),
            ("PassWord-x", Some("\"password\"")),
            ("Qwerty-key", Some("\"qwerty\"")),
            ("XiaoZhi-key", Some("\"xiaozhi\"")),
        ] {
            let weakness = Secret::new(key).unwrap().weakness();
            match (&weakness, part) {
                (None, None) => {}
                (Some(weakness), Some(part)) => assert!(weakness.contains(part), "{key}: {weakness}"),
                _ => panic!("{key}: {weakness:?}"),
            }
        }
    }
}
