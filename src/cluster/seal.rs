//! Shows that a message was written by a gateway with the same `mqtt.signature_key`, since others may write to Redis too: 16 bytes of
//! HMAC-SHA256 (RFC 2104) behind it. Without a key, messages are not signed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of the signature.
const LEN: usize = 16;
/// So that nothing else that is signed with the same key is taken for a message.
const PURPOSE: &[u8] = b"message between gateways\0";

/// The keys: the first one signs, all are accepted.
#[derive(Debug, Default)]
pub(super) struct Seal(Vec<Vec<u8>>);

impl Seal {
    pub(super) fn new(keys: Vec<Vec<u8>>) -> Self {
        Self(keys)
    }

    /// The message with its signature for this channel.
    pub(super) fn seal(&self, channel: &[u8], message: &[u8]) -> Vec<u8> {
        let mut sealed = message.to_vec();
        if let Some(hmac) = self.0.first().and_then(|key| signature(key, channel, message)) {
            sealed.extend_from_slice(&hmac.finalize().into_bytes()[..LEN]);
        }
        sealed
    }

    /// The message without its signature; `None` if that is wrong.
    pub(super) fn open<'a>(&self, channel: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return Some(sealed);
        }
        let (message, tag) = sealed.split_at_checked(sealed.len().checked_sub(LEN)?)?;
        let is_right = |key: &Vec<u8>| {
            signature(key, channel, message).is_some_and(|hmac| hmac.verify_truncated_left(tag).is_ok())
        };
        self.0.iter().any(is_right).then_some(message)
    }
}

fn signature(key: &[u8], channel: &[u8], message: &[u8]) -> Option<Hmac<Sha256>> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    hmac.update(PURPOSE);
    hmac.update(channel);
    // No name of a channel has this byte.
    hmac.update(b"\0");
    hmac.update(message);
    Some(hmac)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seal(keys: &[&str]) -> Seal {
        Seal::new(keys.iter().map(|key| key.as_bytes().to_vec()).collect())
    }

    #[test]
    fn only_the_same_message_on_the_same_channel_with_a_known_key_is_opened() {
        let one = seal(&["key one"]);
        let sealed = one.seal(b"p:to:1", b"message");
        assert_eq!(sealed.len(), 7 + LEN);
        assert_eq!(one.open(b"p:to:1", &sealed), Some(&b"message"[..]));
        assert_eq!(one.open(b"p:to:2", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(one.open(b"p:to:1", &changed), None, "byte {at}");
            assert_eq!(one.open(b"p:to:1", &sealed[..at]), None, "{at} bytes");
        }
        // While a key is replaced.
        assert_eq!(seal(&["key two", "key one"]).open(b"p:to:1", &sealed), Some(&b"message"[..]));
        assert_eq!(seal(&["key two"]).open(b"p:to:1", &sealed), None);
        assert_eq!(seal(&["key one"]).open(b"p:to:1", b"message"), None);
    }

    #[test]
    fn without_a_key_nothing_is_signed() {
        let none = seal(&[]);
        assert_eq!(none.seal(b"channel", b"message"), b"message");
        assert_eq!(none.open(b"channel", b"message"), Some(&b"message"[..]));
    }

    // printf 'message between gateways\0p:to:1\0message' | openssl dgst -sha256 -hmac 'key one'
    #[test]
    fn the_signature_is_that_of_openssl() {
        let expected = "955e11809c3ea89108944e70a1f1ebb9";
        let sealed = seal(&["key one"]).seal(b"p:to:1", b"message");
        assert_eq!(data_encoding::HEXLOWER.encode(&sealed[7..]), expected);
    }
}
