//! The sub-commands `demo`, `credentials`, `probe` and `token`, each with its exit code.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::thread;

use serde_json::{Value, json};
use support::command::{connack_code, file, login};
use support::http::http_call;
use support::process::Folder;
use support::refusing_port;

#[test]
fn the_demo_shows_a_call_that_works() {
    let output = Folder::new().run("demo --seconds 1", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let link = text.lines().find(|line| line.contains("http://127.0.0.1:")).unwrap();
    assert!(link.contains("/#token=") && text.contains("management page"), "{text}");
    for part in ["MQTT connected", "call up", "packets up", "packets down", "lost           0", "round trip"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // One screen, and no escapes where stdout is not a terminal.
    assert!(text.lines().count() <= 40 && !text.contains('\x1b'), "{text}");
}

#[test]
fn printed_credentials_let_a_device_log_in() {
    const KEY: &str = "A-strong-Key-17";
    let folder = Folder::new().with_file("gateway.json", file(json!({"mqtt": {"signature_key": KEY}})));
    let process = folder.start("-c gateway.json", &[]);
    let output = folder
        .run("credentials --mac 02:00:00:00:00:0A --endpoint 192.0.2.1:1883", &[("MQTT_SIGNATURE_KEY", KEY)]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let json: Value =
        serde_json::from_str(&text[text.find('{').unwrap()..=text.rfind('}').unwrap()]).unwrap();
    let mqtt = json.get("mqtt").unwrap_or(&json);
    let connect = login(mqtt);
    assert_eq!(connack_code(&process, &connect), 0, "{json}");
    assert!(connect.client_id.contains("@@@02_00_00_00_00_0a@@@"), "{json}");
    assert_eq!(mqtt["endpoint"], "192.0.2.1:1883");
}

#[test]
fn probe_and_its_exit_code_report_what_works() {
    const KEY: &str = "A-strong-Key-17";
    let keyed = json!({"signature_key": KEY});
    let folder = Folder::new()
        .with_file("good.json", file(json!({"mqtt": keyed})))
        // Audio is sent to an address where nothing listens.
        .with_file("lost.json", file(json!({"mqtt": keyed, "udp": {"public_ip": "127.0.0.9"}})));
    let (good_process, lost_process) = (folder.start("-c good.json", &[]), folder.start("-c lost.json", &[]));
    let (good, lost) = (good_process.mqtt(), lost_process.mqtt());
    let probe = |line: String| {
        let output = folder.run(&line, &[("MQTT_SIGNATURE_KEY", KEY)]);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let (code, stdout, stderr) = probe(format!("probe {} --packets 10 --no-pause --json", good));
            assert_eq!(code, Some(0), "{stdout} {stderr}");
            let report: Value = serde_json::from_str(&stdout).unwrap();
            assert!(report.is_object(), "{report}");
        });
        scope.spawn(|| {
            let (code, stdout, _) =
                probe(format!("probe {} --packets 10 --no-pause --mac 02:00:00:00:00:11", good));
            assert_eq!(code, Some(0), "{stdout}");
            for step in ["TCP", "MQTT", "authentication", "hello", "UDP up", "UDP down", "round trip", "loss"]
            {
                assert!(stdout.to_lowercase().contains(&step.to_lowercase()), "{step} is not in {stdout}");
            }
        });
        scope.spawn(|| {
            let (code, stdout, _) = probe(format!("probe {} --packets 10 --no-pause", lost));
            assert_eq!(code, Some(1), "{stdout}");
            assert!(stdout.contains("public_ip") && stdout.contains("UDP up"), "{stdout}");
        });
        scope.spawn(|| {
            let (code, stdout, stderr) =
                probe(format!("probe {} --packets 10 --no-pause --key wrong --mac 02:00:00:00:00:12", good));
            assert_eq!(code, Some(1), "{stdout}{stderr}");
            assert!(stdout.contains('4') && !stdout.contains(KEY), "{stdout}");
        });
        scope.spawn(|| {
            let (code, stdout, _) = probe(format!("probe {}", refusing_port()));
            assert_eq!(code, Some(1), "{stdout}");
            assert!(stdout.contains("refused"), "{stdout}");
        });
        scope.spawn(|| {
            let (code, ..) = probe("probe".to_owned());
            assert_eq!(code, Some(2));
        });
    });
}

#[test]
fn token_prints_what_opens_the_page() {
    const KEY: &str = "A-strong-Key-17";
    let folder = Folder::new()
        .with_file("keyed.json", file(json!({"mqtt": {"signature_key": KEY}})))
        .with_file("open.json", file(json!({})))
        .with_file("weak.json", file(json!({"mqtt": {"signature_key": "weak"}})))
        .with_file("off.json", file(json!({"api": {"enabled": false}})));
    let process = folder.start("-c keyed.json", &[]);
    let api = SocketAddr::from(([127, 0, 0, 1], process.api().port()));
    let run = |line: &str| {
        let output = folder.run(line, &[("API_PORT", &api.port().to_string())]);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, text, _) = run("token -c keyed.json");
    let token = text.lines().find_map(|line| line.strip_prefix("token: ")).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(http_call(api, "GET", "/api/sessions", None, Some(token)).0, 200);
    let (code, json, _) = run("token --json -c keyed.json");
    let report: Value = serde_json::from_str(&json).unwrap();
    let url = report["url"].as_str().unwrap();
    assert_eq!((code, &report["daily"]), (Some(0), &json!(true)));
    assert!(url.starts_with("http://") && url.ends_with(&format!(":{}/", api.port())), "{json}");
    assert_eq!(report["link"], format!("{url}#token={}", report["token"].as_str().unwrap()));
    let (code, text, _) = run("token -c open.json");
    assert_eq!(code, Some(0));
    assert!(text.contains("token: none") && text.contains("page:  http://127.0.0.1:"), "{text}");
    for (file, part) in
        [("weak.json", "is shorter than 8 characters"), ("off.json", "api.enabled must be true")]
    {
        let (code, stdout, stderr) = run(&format!("token -c {file}"));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.contains(part) && stderr.lines().count() == 1, "{stderr}");
    }
}
