//! The gateway in a folder of the Node.js gateway: its file and its `.env` are used as they are.

#![allow(clippy::unwrap_used)]

mod support;

#[cfg(unix)]
use std::fs;

use support::command::{connack_code, only_line};
use support::device::client_id;
use support::mqtt::Connect;
use support::process::Folder;

#[cfg(unix)]
#[test]
fn a_node_gateways_directory_works_unchanged_and_is_reported() {
    let file =
        r#"{"production":{"chat_servers":["ws://127.0.0.1:9/"]},"max_mqtt_payload_size":8192,"debug":false}"#;
    let env = "PUBLIC_IP=192.0.2.7 # mine\nMQTT_SIGNATURE_KEY=hunter$2\nSERVER_SECRET=\"hunter#3\"\nUDP_PORT=1\nDEBUG=x\n";
    let folder = Folder::new().with_file("config/mqtt.json", file).with_file(".env", env);
    let mut running = folder.start("--config config/mqtt.json", &[]);
    let line = running.seen.iter().find(|line| line.contains("config/mqtt.json")).unwrap();
    assert!(line.contains("Node.js") && line.contains(".env gives PUBLIC_IP, MQTT_SIGNATURE_KEY"), "{line}");
    // UDP_PORT is set in the environment, so that of the file does not count.
    assert!(!line.contains("UDP_PORT"), "{line}");
    assert!(running.seen.last().unwrap().contains("public ip 192.0.2.7"), "{:#?}", running.seen);

    fs::write(folder.0.join("new.json"), file.replace(":9/", ":10/").replace("8192", "100000")).unwrap();
    fs::rename(folder.0.join("new.json"), folder.0.join("config/mqtt.json")).unwrap();
    running.signal("HUP");
    let line = running.wait_for_line("applied");
    assert!(
        line.contains("mqtt.max_payload_size") && line.contains("websocket.production_servers"),
        "{line}"
    );
    assert!(!line.contains("signature_key") && !line.contains("server_secret"), "{line}");

    running.signal("TERM");
    let (code, lines) = running.end();
    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!lines.join("\n").contains("hunter") && !lines.join("\n").contains("signature_key is not set"));
}

/// The remarks are GBK ("公网地址" and more, with bytes that are a backslash and a backtick in ASCII), as Windows saves them.
const GBK_ENV: &[u8] = b"# \xb9\xab\xcd\xf8\xb5\xd8\xd6\xb7\r\n\
    export PUBLIC_IP=192.168.7.7 # \xb9\xab\xcd\xf8\xb5\xd8\xd6\xb7 \x95\x5c \x8c\x60\r\n\
    MQTT_SIGNATURE_KEY=\"hunter#2 Key\" # \x95\x5c\r\n\
    MQTT_SIGNATUR_KEY=x\r\n\
    API_HOST='127.0.0.1'\r\nHTTP_HOST=0.0.0.0\r\n";

#[test]
fn a_gateway_started_bare_in_a_node_gateways_folder_uses_its_files() {
    let utf16 = |text: &[u8]| -> Vec<u8> {
        let text = String::from_utf8_lossy(text).into_owned();
        [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
    };
    let with_mark = [&b"\xef\xbb\xbf"[..], GBK_ENV].concat();
    for env in [GBK_ENV.to_vec(), with_mark, utf16(GBK_ENV)] {
        let folder = Folder::new().with_file("config/mqtt.json", "{}").with_file(".env", env);
        let process = folder.start("", &[]);
        let text = process.seen.join("\n");
        for part in [
            "configuration: config/mqtt.json: the Node.js gateway's own shape, used as it is; .env gives PUBLIC_IP, ",
            "public ip 192.168.7.7",
            "management API on 127.0.0.1:",
            ".env: MQTT_SIGNATUR_KEY is not a variable of this gateway; the nearest is MQTT_SIGNATURE_KEY",
            ".env: MQTT_SIGNATURE_KEY holds a blank and #",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("hunter"), "{text}");
        let connect = Connect::signed(&client_id(1), "hunter#2 Key");
        assert_eq!(connack_code(&process, &connect), 0);
    }
    // Our own file goes first; a value that is not ASCII is refused, for a key of other bytes would open nothing.
    let folder = Folder::new()
        .with_file("config/mqtt.json", "{}")
        .with_file(".env", b"MQTT_SIGNATURE_KEY=\xb9\xab\xcd\xf8\n");
    let error = only_line(&folder.run("", &[]));
    assert!(error.starts_with("error: .env: MQTT_SIGNATURE_KEY: found bytes that are not UTF-8"), "{error}");
    let folder = folder.with_file("config/gateway.json", "{\"x\":1}");
    assert!(only_line(&folder.run("", &[])).starts_with("error: config/gateway.json: x: "));
}

#[test]
fn the_env_file_is_read_for_a_node_file_only() {
    let folder = Folder::new()
        .with_file(".env", "MQTT_PORT=abc\n")
        .with_file("mqtt.json", r#"{"production":{}}"#)
        .with_file("bad.json", r#"{"mqtt":{"port":"abc"}}"#);
    let error = only_line(&folder.run("-c mqtt.json", &[]));
    assert!(error.starts_with(r#"error: .env: MQTT_PORT: found "abc", allowed: "#), "{error}");
    let error = only_line(&folder.run("-c bad.json", &[]));
    assert!(error.starts_with("error: bad.json: mqtt.port"), "{error}");
}
