//! `init` writes a configuration with which a device can log in, and says what to do next.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
#[cfg(unix)]
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::command::{connack_code, login, only_line};
use support::http::{RawClient, http_call};
use support::process::Folder;

/// Runs `init` and returns its report. The file must be new.
fn init(folder: &Folder, options: &str) -> Value {
    let output = folder.run(&format!("init --json {options}"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn init_in_an_empty_folder_then_a_start_an_ota_request_and_a_login() {
    let folder = Folder::new();
    let server = ChatServer::start();
    // The tests may run in a container, where the devices must be named.
    let report = init(&folder, &format!("--server {} --macs 02:00:00,aa:bb:cc:dd:ee:ff", server.url()));
    assert_eq!(report["file"], "config/gateway.json");
    assert_eq!(report["chat_servers"], json!([server.url()]));
    let path = folder.0.join("config/gateway.json");
    #[cfg(unix)]
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let written: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(written["ota"], json!({"enabled": true, "macs": ["02:00:00", "aa:bb:cc:dd:ee:ff"]}));
    let key = written["mqtt"]["signature_key"].as_str().unwrap();
    assert!(!report.to_string().contains(key), "{report}");
    let ports: Vec<_> =
        report["ports"].as_array().unwrap().iter().map(|port| (&port["protocol"], &port["port"])).collect();
    let expected =
        [("TCP", 1883), ("UDP", 8884), ("TCP", 8006), ("TCP", 8007)].map(|(a, b)| (json!(a), json!(b)));
    assert_eq!(ports, expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>());

    // What it wrote starts without a name. A device asks, and logs in with what it is told.
    let mut process = folder.start("", &[("MQTT_PROXY_OTA_PORT", "0")]);
    assert!(process.seen.iter().any(|line| line.ends_with("configuration: config/gateway.json")));
    let ota = process.seen.iter().find_map(|line| line.split_once("http://HOST:")).unwrap().1;
    let (port, path) = ota.split_once('/').unwrap();
    let url = report["ota"]["url"].as_str().unwrap();
    assert!(url.starts_with("http://") && url.ends_with(&format!(":8006/{path}")), "{report}");
    for command in ["enter", "ask"] {
        assert!(report["ota"][command].as_str().unwrap().contains(url), "{report}");
    }
    let asked = report["ota"]["ask"].to_string();
    assert!(asked.contains("'Device-Id: 02:00:00:dd:ee:ff'"), "a device that is answered: {asked}");
    let ota = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let ask = |mac: &str| {
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: {ota}\r\nDevice-Id: {mac}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        RawClient::round_trip(ota, &head)
    };
    assert_eq!(ask("02:00:01:00:00:0a").status, 403, "not named");
    let told = ask("02:00:00:00:00:0a").json();
    assert_eq!(connack_code(&process, &login(&told["mqtt"])), 0);

    // So are the credentials that are printed for the key, and no others.
    let line = "credentials --mac 02:00:00:00:00:0B --endpoint 192.0.2.1:1883";
    let printed = folder.run(line, &[("MQTT_SIGNATURE_KEY", key)]);
    let mut connect = login(&serde_json::from_slice(&printed.stdout).unwrap());
    assert_eq!(connack_code(&process, &connect), 0);
    connect.password = None;
    assert_eq!(connack_code(&process, &connect), 4);

    // Its token opens the management API, and stands in no line.
    let line = process.wait_for_line("management page: http://");
    let token = report["page"]["token"].as_str().unwrap();
    assert!(!line.contains(token) && line.contains("mqtt-websocket-proxy token"), "{line}");
    let api = SocketAddr::from(([127, 0, 0, 1], process.api().port()));
    assert_eq!(http_call(api, "GET", "/api/sessions", None, None).0, 401);
    assert_eq!(http_call(api, "GET", "/api/sessions", None, Some(token)).0, 200);
}

#[test]
fn init_writes_a_configuration_that_check_accepts_and_overwrites_nothing() {
    let server = ChatServer::start();
    let folder = Folder::new();
    let report = init(&folder, &format!("-c a/b.json --address gw.example --server {}", server.url()));
    assert_eq!(report["file"], "a/b.json");
    assert!(report["start"].as_str().unwrap().ends_with(" --config a/b.json"), "{report}");
    assert!(report["token_command"].as_str().unwrap().ends_with(" token --config a/b.json"), "{report}");
    let before = fs::read(folder.0.join("a/b.json")).unwrap();
    let written: Value = serde_json::from_slice(&before).unwrap();
    assert_eq!(written["udp"]["public_ip"], "gw.example");
    assert!(report["ota"]["url"].as_str().unwrap().starts_with("http://gw.example:8006/"), "{report}");
    // Neither another run nor a link that leads nowhere is written over.
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere.json", folder.0.join("link.json")).unwrap();
    for name in if cfg!(unix) { vec!["a/b.json", "link.json"] } else { vec!["a/b.json"] } {
        let output = folder.run(&format!("init --yes -c {name}"), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(only_line(&output).contains(&format!("{name} exists and is left as it is")));
    }
    assert_eq!(fs::read(folder.0.join("a/b.json")).unwrap(), before);
    assert!(!folder.0.join("nowhere.json").exists());
    // The gateway's own checks of the file find nothing wrong.
    let output = folder.run("check --json -c a/b.json --timeout 1", &[]);
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(checked["problems"], json!([]), "{checked}");
    // Each file has a key of its own. Behind a public address the OTA port answers nobody yet.
    let report = init(&folder, "-c other.json --address 1.2.3.4");
    assert!(
        report["notes"].to_string().contains("name the networks of your devices in ota.allow"),
        "{report}"
    );
    let other: Value = serde_json::from_slice(&fs::read(folder.0.join("other.json")).unwrap()).unwrap();
    assert_ne!(other["mqtt"]["signature_key"], written["mqtt"]["signature_key"]);
}

#[test]
fn init_says_what_to_do_next_and_asks_nothing_without_a_terminal() {
    let folder = Folder::new();
    // There is no `--yes`, and nobody who could answer.
    let output = folder.run("init", &[("API_PORT", "18007"), ("MQTT_PROXY_WORKERS", "3")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "Written: config/gateway.json",
        "the built-in echo server",
        "set by the environment, over the file: API_PORT, MQTT_PROXY_WORKERS",
        "TCP 1883 ",
        "UDP 8884 ",
        "TCP 8006 ",
        ":8006/xiaozhi/ota/\n",
        " ▄▄▄▄▄ █",
        "Xiaozhi-XXXX",
        "http://192.168.4.1",
        "Advanced",
        "curl -H",
        "Device-Id: ",
        "/advanced/submit",
        "TCP 18007 ",
        ":18007/#token=",
        "mqtt-websocket-proxy token",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains('\x1b') && !text.contains('?'), "{text}");
    // The environment may make a configuration that cannot be used.
    let output = folder.run("init -c other.json", &[("API_PORT", "x")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(only_line(&output).contains("environment: API_PORT: found \"x\""), "{output:?}");
}
