//! The algorithms of the Node.js gateway, which devices, consoles and chat servers depend on, by
//! vectors computed with Node.js. Unit tests check upgrade headers and `.env` with the same file.

#![allow(clippy::unwrap_used)]

use data_encoding::HEXLOWER;
use mqtt_websocket_proxy::admin::auth::daily_token;
use mqtt_websocket_proxy::proto::audio::{
    Cipher, HEADER_LEN, UdpHeader, nonce, parse_ws_frame, ws_frame_header,
};
use mqtt_websocket_proxy::proto::identity::{
    ClientId, bearer_token, device_password, is_valid_user_name, verify_password,
};
use serde_json::Value;

fn vectors(section: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("data/node_vectors.json")).unwrap();
    let section = all[section].as_array().unwrap().clone();
    assert!(section.len() >= 3);
    section
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn bytes(case: &Value, key: &str) -> Vec<u8> {
    HEXLOWER.decode(text(case, key).as_bytes()).unwrap()
}

fn number(case: &Value, key: &str) -> u32 {
    case[key].as_u64().unwrap().try_into().unwrap()
}

#[test]
fn credentials() {
    for case in vectors("credentials") {
        let (key, id, user) =
            (text(&case, "key").as_bytes(), text(&case, "client_id"), text(&case, "user_name"));
        assert_eq!(device_password(key, id, user), text(&case, "password"));
        assert!(verify_password(key, id, user, text(&case, "password").as_bytes()));
        assert!(is_valid_user_name(user));
        let id = ClientId::parse(id).unwrap();
        assert_eq!(
            (id.mac().to_string().as_str(), id.uuid().as_deref()),
            (text(&case, "mac"), case["uuid"].as_str())
        );
    }
}

#[test]
fn tokens_for_chat_servers() {
    for case in vectors("tokens") {
        let (secret, id) = (text(&case, "secret").as_bytes(), text(&case, "client_id"));
        let mac = text(&case, "mac").parse().unwrap();
        assert_eq!(
            bearer_token(secret, id, mac, case["unix_seconds"].as_u64().unwrap()),
            text(&case, "token")
        );
    }
}

#[test]
fn tokens_of_consoles() {
    for case in vectors("api_tokens") {
        assert_eq!(daily_token(text(&case, "date"), text(&case, "key").as_bytes()), text(&case, "token"));
    }
}

#[test]
fn audio() {
    for case in vectors("audio") {
        let (packet, opus, frame) = (bytes(&case, "packet"), bytes(&case, "opus"), bytes(&case, "frame"));
        let header = UdpHeader::parse(&packet).unwrap();
        let expected = UdpHeader {
            flags: 0,
            payload_len: opus.len().try_into().unwrap(),
            ssrc: number(&case, "ssrc"),
            timestamp: number(&case, "timestamp"),
            sequence: number(&case, "sequence"),
        };
        assert_eq!(header, expected);
        assert_eq!(header.to_bytes(), packet[..HEADER_LEN]);
        assert_eq!(nonce(header.ssrc), *bytes(&case, "nonce"));

        let cipher = Cipher::new(&bytes(&case, "key").try_into().unwrap());
        let mut payload = packet[HEADER_LEN..].to_vec();
        cipher.apply(&header.to_bytes(), &mut payload);
        assert_eq!(payload, opus);
        cipher.apply(&header.to_bytes(), &mut payload);
        assert_eq!(payload, packet[HEADER_LEN..]);

        assert_eq!(parse_ws_frame(&frame), Some((header.timestamp, opus.as_slice())));
        // The first eight bytes are version, type and zeros here, and all zeros there: no known server reads them.
        let ours = ws_frame_header(header.timestamp, opus.len());
        assert_eq!((&ours[8..], &ours[..8]), (&frame[8..HEADER_LEN], &[0, 2, 0, 0, 0, 0, 0, 0][..]));
    }
}
