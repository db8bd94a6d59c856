//! What an operator hands to whoever helps: the log's last lines, the check's report, and the file with everything, without secrets.

#![allow(clippy::unwrap_used)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use mqtt_websocket_proxy::tools::echo::EchoServer;
use serde_json::{Value, json};
use support::TIMEOUT;
use support::browser::{Browser, assert_accessible};
use support::http::http_call;
use support::process::{Folder, Process};

const KEY: &str = "A-secret-Key-1";
const TOKEN: &str = "a-secret-token-of-the-api";
/// All of these are in the configuration.
const SECRETS: [&str; 7] = [
    KEY,
    TOKEN,
    "An-old-secret-Key-2",
    "a-secret-of-the-server",
    "a-secret-in-the-url",
    "a-secret-of-its-own",
    "a-secret-of-the-webhook",
];

/// A gateway with secrets everywhere, at the most talkative level, after a call, a refused login and a wrong token.
fn gateway(echo: &EchoServer) -> (Folder, Process, SimulatedDevice) {
    let [_, _, old_key, server_secret, in_url, own_token, webhook] = SECRETS;
    let file = json!({
        "mqtt": { "host": "127.0.0.1", "signature_key": KEY, "previous_signature_keys": [old_key] },
        "udp": { "host": "127.0.0.1" },
        "api": { "token": TOKEN },
        "websocket": {
            "server_secret": server_secret,
            "production_servers": [
                format!("{}?token={in_url}", echo.url()),
                { "url": echo.url(), "token": own_token },
            ],
        },
        "webhooks": [{ "url": format!("http://127.0.0.1:9/{webhook}?key={webhook}"), "secret": webhook }],
        "logging": { "level": "trace" },
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let process = folder.start("-c gateway.json", &[]);
    let connect = |key: &str| {
        let login = Login::new("aa:bb:cc:dd:ee:01".parse().unwrap(), Some(key.as_bytes()));
        SimulatedDevice::connect(process.mqtt(), &login, TIMEOUT)
    };
    let mut device = connect(KEY).unwrap();
    for _ in 0..2 {
        device.call().unwrap();
    }
    assert!(connect("Another-Key-3").is_err());
    assert_eq!(http_call(process.api(), "GET", "/api/errors", None, Some("wrong")).0, 401);
    (folder, process, device)
}

fn ask(process: &Process, method: &str, path: &str) -> (u16, Value) {
    let (status, text) = http_call(process.api(), method, path, None, Some(TOKEN));
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
}

fn assert_no_secret(text: &str) {
    for secret in SECRETS {
        let place = text.find(secret).map(|at| text.get(at.saturating_sub(80)..at + 80));
        assert_eq!(place, None, "{secret}");
    }
}

#[test]
fn the_last_lines_of_the_log_are_available_without_secrets() {
    let echo = EchoServer::start().unwrap();
    let (_folder, mut process, _device) = gateway(&echo);
    process.wait_for_line("refused with return code");
    let (_, all) = ask(&process, "GET", "/api/log");
    let lines = all["lines"].as_array().unwrap();
    // They are those of stderr.
    let text = |line: &Value| line["line"].as_str().unwrap().to_owned();
    let refused = lines.iter().find(|line| text(line).contains("refused with return code")).unwrap();
    assert!(process.seen.contains(&text(refused)), "{refused}");
    assert_eq!(lines[0]["id"], 1);
    assert_eq!(all["last"], lines.last().unwrap()["id"]);
    assert_no_secret(&all.to_string());
    // By level, and from a place on.
    let (_, serious) = ask(&process, "GET", "/api/log?level=warn");
    let serious = serious["lines"].as_array().unwrap();
    let levels: Vec<_> = serious.iter().map(|line| line["level"].as_str().unwrap()).collect();
    assert!(levels.iter().all(|level| ["warn", "error"].contains(level)) && !levels.is_empty(), "{levels:?}");
    let place = refused["id"].as_u64().unwrap();
    let (_, rest) = ask(&process, "GET", &format!("/api/log?after={place}"));
    assert!(rest["lines"].as_array().unwrap().iter().all(|line| line["id"].as_u64().unwrap() > place));
    for query in ["level=all", "after=-1", "after=x"] {
        let (status, error) = ask(&process, "GET", &format!("/api/log?{query}"));
        assert_eq!((status, &error["code"]), (400, &json!("bad_parameter")), "{query}");
    }
    assert_eq!(http_call(process.api(), "GET", "/api/log", None, None).0, 401);
}

#[test]
fn an_operator_has_the_chat_servers_checked() {
    let echo = EchoServer::start().unwrap();
    let (_folder, process, _device) = gateway(&echo);
    assert_eq!(
        ask(&process, "GET", "/api/check").1,
        json!({ "running": false, "finishedAt": null, "report": null })
    );
    assert_eq!(ask(&process, "POST", "/api/check"), (202, json!({ "running": true })));
    let end = Instant::now() + TIMEOUT;
    let told = loop {
        let (_, told) = ask(&process, "GET", "/api/check");
        if told["running"] == false {
            break told;
        }
        assert!(Instant::now() < end, "{told}");
        thread::sleep(Duration::from_millis(20));
    };
    let report = &told["report"];
    assert!(told["finishedAt"].is_string() && report["ok"] == true, "{told}");
    assert_eq!(report["servers"].as_array().unwrap().len(), 2);
    let upgrade =
        report["servers"][0]["steps"].as_array().unwrap().iter().find(|step| step["step"] == "hello");
    assert_eq!(upgrade.unwrap()["state"], "ok", "{told}");
    assert!(report["settings"].as_array().unwrap().iter().any(|setting| setting["name"] == "signature key"));
    assert_no_secret(&told.to_string());
}

#[test]
fn the_file_for_whoever_helps_has_everything_but_secrets() {
    let Some(mut browser) = Browser::start() else { return };
    let echo = EchoServer::start().unwrap();
    let (_folder, process, _device) = gateway(&echo);
    browser.open_at(process.api());
    browser.log_in_with(TOKEN);
    browser.click("#tabs [name=log]");
    browser.until("$('logLines').textContent.includes('refused with return code')");
    assert_accessible(&mut browser, "the log");
    browser.screenshot("log");
    browser.fill("logLevel", "warn");
    browser.until("$('logLines').children.length > 0 && [...$('logLines').children].every((line) => ['warn', 'bad'].includes(line.className))");
    browser.fill("logLevel", "trace");
    browser.fill("logText", "REFUSED");
    browser.until("$('logLines').children.length > 0 && [...$('logLines').children].every((line) => line.textContent.includes('refused'))");
    browser.click("#tabs [name=gateway]");
    browser.click("#check");
    browser.click("#confirm");
    browser.until("$('outcome').textContent.includes('Nothing fails.') && $('outcome').textContent.includes('signature key')");
    assert_accessible(&mut browser, "the check's report");
    browser.screenshot("check");
    browser.click("#cancel");

    let bundle: Value = serde_json::from_str(&browser.text("diagnostics()")).unwrap();
    assert_eq!(bundle["check"]["ok"], true, "{bundle}");
    assert!(bundle["log"]["lines"].as_array().unwrap().len() > 5, "{bundle}");
    assert_eq!(bundle["calls"]["calls"].as_array().unwrap().len(), 1, "{bundle}");
    assert_eq!(bundle["sessions"]["devices"], 1);
    assert_eq!(bundle["servers"]["servers"].as_array().unwrap().len(), 2);
    assert!(bundle["config"]["mqtt"].is_object() && bundle["errors"]["errors"].is_array());
    assert!(bundle["metrics"].as_str().unwrap().contains("gateway_devices_online 1"));
    assert!(bundle["ready"]["status"].is_string() && bundle["findings"].is_array());
    assert_no_secret(&bundle.to_string());
    browser.click("#bundle");
    browser.until("$('bundled').textContent.includes('saved')");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
