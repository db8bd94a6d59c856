//! The identity of a device: its MAC, its MQTT client id, its credentials, and the bearer token for chat servers.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;

pub use super::client_id::{BadClientId, ClientId};
pub use super::mac::{BadMac, Mac, MacPrefix, MacPrefixes};
use super::message::{self, Reader};

/// A device's password: base64(HMAC-SHA256(`key`, `client_id` + "|" + `user_name`)).
pub fn device_password(key: &[u8], client_id: &str, user_name: &str) -> String {
    BASE64.encode(&signature(key, &[client_id, user_name]).finalize().into_bytes())
}

/// Whether `password` equals [`device_password()`]. It is decoded first, then compared in constant time.
pub fn verify_password(key: &[u8], client_id: &str, user_name: &str, password: &[u8]) -> bool {
    BASE64
        .decode(password)
        .is_ok_and(|tag| signature(key, &[client_id, user_name]).verify_slice(&tag).is_ok())
}

/// Whether this is a user name as issued to devices: base64 of a JSON object.
pub fn is_valid_user_name(user_name: &str) -> bool {
    BASE64
        .decode(user_name.as_bytes())
        .is_ok_and(|json| str::from_utf8(&json).is_ok_and(|json| message::peek(json, Reader::Server).is_ok()))
}

/// The bearer token for a chat server: base64url without padding of HMAC-SHA256(`secret`, "`client_id`|`mac`|`unix_seconds`"), then
/// "." and `unix_seconds`. The MAC is signed with colons.
pub fn bearer_token(secret: &[u8], client_id: &str, mac: Mac, unix_seconds: u64) -> String {
    let signature = signature(secret, &[client_id, &mac.to_string(), &unix_seconds.to_string()]);
    format!("{}.{unix_seconds}", BASE64URL_NOPAD.encode(&signature.finalize().into_bytes()))
}

/// HMAC-SHA256 over the parts joined by "|".
fn signature(key: &[u8], parts: &[&str]) -> Hmac<Sha256> {
    let mut hmac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
    hmac.update(parts.join("|").as_bytes());
    hmac
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x0f]);

    #[test]
    fn macs() {
        for text in ["aa:bb:cc:dd:ee:0f", "AA:BB:CC:DD:EE:0F", "aa_bb_cc_dd_ee_0f", "Aa-bB-cc-DD-ee-0F"] {
            assert_eq!(text.parse(), Ok(MAC), "{text}");
        }
        assert_eq!(MAC.to_string(), "aa:bb:cc:dd:ee:0f");
        assert_eq!(MAC.underscored(), "aa_bb_cc_dd_ee_0f");
        assert_eq!(MAC.bytes(), [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x0f]);
        let bad = [
            "",
            "aa",
            "aabbccddee0f",
            "aa:bb:cc:dd:ee",
            "aa:bb:cc:dd:ee:",
            "aa:bb:cc:dd:ee:0f:",
            "aa:bb:cc:dd:ee:0f:11",
            "aa:bb_cc:dd_ee:0f",
            "aa:bb:cc:dd:ee:0g",
            "aa:bb:cc:dd:ee:+f",
            "aa:bb:cc:dd:ee: f",
            "aa:bb:cc:dd:ee:f",
            "aa:bb:cc:dd:ee:00f",
            " aa:bb:cc:dd:ee:0f",
            "aa:bb:cc:dd:ee:0f\n",
            "ää:bb:cc:dd:ee:0f",
        ];
        for text in bad {
            assert_eq!(text.parse::<Mac>(), Err(BadMac), "{text:?}");
        }
        assert_eq!(BadMac.to_string(), "not six pairs of hexadecimal digits separated by ':', '_' or '-'");
        for separator in '\0'..='\u{ff}' {
            let text = ["aa", "bb", "cc", "dd", "ee", "0f"].join(&separator.to_string());
            let expected = if ":_-".contains(separator) { Ok(MAC) } else { Err(BadMac) };
            assert_eq!(text.parse(), expected, "{separator:?}");
        }
    }

    /// Passwords computed with Python's hmac and with OpenSSL.
    #[test]
    fn passwords() {
        let id = "GID_test@@@aa_bb_cc_dd_ee_ff@@@uuid-1";
        let user = "eyJpcCI6IjEuMi4zLjQifQ==";
        let cases: [(&[u8], &str, &str, &str); 4] = [
            (b"test-key", id, user, "2ILB9lesNCpktIvJ13DMzHmxlnFCcOX6CEnnT0jrlSc="),
            (b"", id, "", "kLVOSyQJAjQgx9f0luV9smzAzQlpNBVDCiZOOLYoL/w="),
            (&[b'k'; 100], id, user, "g9HJ55AuTNb2DDjBmecWWNRPhaQyqUxynasKhgrhZQI="),
            (
                "密钥".as_bytes(),
                "组@@@aa_bb_cc_dd_ee_ff",
                user,
                "NC3CjWO4Lwp8Ror+knr83ebK9hmWhoqPSZLboiRBTH4=",
            ),
        ];
        for (key, id, user, expected) in cases {
            assert_eq!(device_password(key, id, user), expected);
            assert!(verify_password(key, id, user, expected.as_bytes()));
        }
        let (key, good) = (cases[0].0, cases[0].3);
        let refused = [
            "",
            "=",
            &good[1..],
            good.trim_end_matches('='),
            &good.replace("2I", "2J"),
            &good.to_lowercase(),
            &format!("{good}\n"),
            &format!("{good}{good}"),
            // A tag cut short must not pass for the whole.
            "2ILB9lesNCpktIvJ13DMzA==",
        ];
        for text in refused {
            assert!(!verify_password(key, id, user, text.as_bytes()), "{text:?}");
        }
        assert!(!verify_password(b"test-kez", id, user, good.as_bytes()));
        assert!(!verify_password(key, "GID_test@@@aa_bb_cc_dd_ee_ff@@@uuid-2", user, good.as_bytes()));
        assert!(!verify_password(key, id, "eyJpcCI6IjEuMi4zLjUifQ==", good.as_bytes()));
        assert!(!verify_password(key, id, user, &[0xff; 44]));
    }

    #[test]
    fn user_names() {
        let cases = [
            (r#"{"ip":"1.2.3.4"}"#, true),
            ("{}", true),
            (" { } ", true),
            ("", false),
            ("[]", false),
            ("1", false),
            ("null", false),
            (r#""{}""#, false),
            ("{", false),
            ("{}{}", false),
            ("user", false),
        ];
        for (json, expected) in cases {
            assert_eq!(is_valid_user_name(&BASE64.encode(json.as_bytes())), expected, "{json}");
        }
        for text in [
            "{}",
            "user",
            "e30",
            "e30=\n",
            " e30=",
            "e3==",
            "e30=e30=",
            "é",
            &BASE64.encode(b"{\"a\":\"\xff\"}"),
        ] {
            assert!(!is_valid_user_name(text), "{text:?}");
        }
        assert!(is_valid_user_name("e30="));
    }

    /// Tokens computed with Python's hmac.
    #[test]
    fn tokens() {
        let mac = Mac([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        let cases = [
            (1_700_000_000, "2m-STvO-TqgekZacIQw6fzFHHsTIUX6ROEGGLyZzzCA.1700000000"),
            (1_700_000_001, "ffI6bF2Wpsn6cXvUqLg1qFVXtqUeGT2dV-vtoq8v2sc.1700000001"),
            (0, "3nRgU9TZpCoIW53SmFxMuJ-x2koxY5DXPAvTmhi7NTo.0"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(bearer_token(b"secret", "uuid-1", mac, seconds), expected);
        }
    }

    proptest! {
        #[test]
        fn identities_round_trip(bytes in any::<[u8; 6]>(), key in prop::collection::vec(any::<u8>(), 0..200), user in ".*") {
            let mac = Mac(bytes);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            prop_assert_eq!(mac.underscored().to_uppercase().parse(), Ok(mac));
            let id = format!("g@@@{}@@@u", mac.underscored());
            prop_assert_eq!(ClientId::parse(&id).map(|id| id.mac()), Ok(mac));
            prop_assert!(verify_password(&key, &id, &user, device_password(&key, &id, &user).as_bytes()));
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in ".*", parts in prop::collection::vec("[a-z@:_0-9]*", 0..5)) {
            let _ = (text.parse::<Mac>(), is_valid_user_name(&text));
            let _ = ClientId::parse(&parts.join("@@@"));
        }
    }
}
