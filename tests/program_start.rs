//! The program from its command line to its first call: what it reads, what it warns of, what it refuses to start on.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{TcpListener, UdpSocket};
use std::process::Output;
use std::thread;

use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::device::{Device, HELLO, client_id};
use support::mqtt::{Client, Connect, Packet, hmac};
use support::process::{Folder, Process};
use support::{closed_port, process_loopback_ip};

/// A configuration that a test may listen on, with these sections over it.
fn file(more: Value) -> String {
    let mut file =
        json!({"mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false}});
    for (section, keys) in more.as_object().unwrap() {
        match (file.get_mut(section).and_then(Value::as_object_mut), keys) {
            (Some(old), Value::Object(keys)) => old.extend(keys.clone()),
            _ => file[section] = keys.clone(),
        }
    }
    file.to_string()
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.lines().find(|line| line.contains("error") || line.contains("ERROR"));
    line.unwrap_or_else(|| panic!("no error in {text}")).to_owned()
}

/// The code CONNECT is answered with.
fn connack_code(process: &Process, connect: &Connect) -> u8 {
    let mut client = Client::open(process.mqtt());
    client.send(&connect.packet());
    let Packet { first: 0x20, body } = client.packet() else { panic!() };
    body[1]
}

#[test]
fn an_unavailable_port_exits_with_1_and_one_line_with_port_and_reason() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp_port, udp_port) =
        (tcp.local_addr().unwrap().port().to_string(), udp.local_addr().unwrap().port().to_string());
    let folder = Folder::new()
        .with_file("plain.json", file(json!({})))
        .with_file("elsewhere.json", file(json!({"mqtt": {"host": "192.0.2.1"}})))
        .with_file("udp-elsewhere.json", file(json!({"udp": {"host": "192.0.2.1"}})));
    for (name, variables, parts) in [
        (
            "plain.json",
            [("MQTT_PORT", "0"), ("UDP_PORT", udp_port.as_str())],
            ["UDP", udp_port.as_str(), "in use"],
        ),
        (
            "plain.json",
            [("MQTT_PORT", tcp_port.as_str()), ("UDP_PORT", "0")],
            ["MQTT", tcp_port.as_str(), "in use"],
        ),
        ("elsewhere.json", [("MQTT_PORT", "18830"), ("UDP_PORT", "0")], ["MQTT", "18830", "assign"]),
        ("udp-elsewhere.json", [("MQTT_PORT", "0"), ("UDP_PORT", "18840")], ["UDP", "18840", "assign"]),
    ] {
        let output = folder.run(&format!("-c {name}"), &variables);
        let line = one_line(&output);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
        let lines = String::from_utf8(output.stderr).unwrap();
        assert_eq!(lines.matches("ERROR").count(), 1, "{lines}");
    }
}

/// Somebody without privileges runs the program to its end; nothing when that cannot be had here.
#[cfg(unix)]
fn run_unprivileged(folder: &Folder, line: &str, variables: &[(&str, &str)]) -> Option<Output> {
    use std::process::{Command, Stdio};
    if TcpListener::bind("127.0.0.1:1").is_err() {
        return Some(folder.run(line, variables));
    }
    // We are root, or as good as.
    let program = env!("CARGO_BIN_EXE_mqtt-websocket-proxy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]).current_dir(&folder.0);
    command.stdin(Stdio::null()).env_clear().envs(variables.iter().copied());
    let mut check = Command::new("setpriv");
    check.args(["--reuid=65534", "--regid=65534", "--clear-groups", program, "-v"]).current_dir(&folder.0);
    let usable = check.output().is_ok_and(|output| output.status.success());
    if !usable {
        eprintln!("skipped: no way to run as somebody without privileges");
        return None;
    }
    Some(command.args(line.split_whitespace()).output().unwrap())
}

#[cfg(unix)]
#[test]
fn a_port_or_file_that_is_not_permitted_says_so() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new().with_file("plain.json", file(json!({}))).with_file("secret.json", "{}");
    std::fs::set_permissions(folder.0.join("secret.json"), PermissionsExt::from_mode(0o000)).unwrap();
    let unprivileged = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if unprivileged().is_ok_and(|port| port.trim() == "1024")
        && let Some(output) =
            run_unprivileged(&folder, "-c plain.json", &[("MQTT_PORT", "1"), ("UDP_PORT", "0")])
    {
        let line = one_line(&output);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(line.contains("port 1 ") && line.contains("ermission denied"), "{line}");
    }
    if let Some(output) = run_unprivileged(&folder, "-c secret.json", &[]) {
        let line = one_line(&output);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(line.contains("secret.json") && line.contains("ermission denied"), "{line}");
    }
}

#[test]
fn two_gateways_do_not_share_a_port_or_a_pid_file() {
    let folder = Folder::new().with_file("plain.json", file(json!({})));
    let first = folder.start("-c plain.json -p gateway.pid", &[]);
    let port = first.mqtt().port().to_string();
    let output = folder.run("-c plain.json -p gateway.pid", &[("MQTT_PORT", &port), ("UDP_PORT", "0")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains(&port));
    let pid = std::fs::read_to_string(folder.0.join("gateway.pid")).unwrap();
    assert_eq!(pid.trim(), first.id().to_string());
    assert_eq!(connack_code(&first, &Connect::new(&client_id(1))), 0);
}

#[test]
fn a_file_that_cannot_be_read_ends_it_with_2_and_one_line() {
    let folder = Folder::new()
        .with_file("latin1.json", b"{\"debug\": false, \"x\": \"\xe9\"}")
        .with_file("cut.json", r#"{"mqtt":{"#);
    for (line, variables, parts) in [
        ("-c absent.json", vec![], ["absent.json", "No such file"]),
        ("", vec![("CONFIG_FILE", "nowhere/absent.json")], ["nowhere/absent.json", "No such file"]),
        ("-c .", vec![], [".: ", "directory"]),
        ("-c latin1.json", vec![], ["latin1.json", "UTF-8"]),
        ("-c cut.json", vec![], ["cut.json", "line 1"]),
        // The command line goes over the environment, wrong or not.
        ("-c absent.json", vec![("CONFIG_FILE", "latin1.json")], ["absent.json", "No such file"]),
    ] {
        let output = folder.run(line, &variables);
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text}");
    }
}

#[test]
fn the_environment_goes_over_the_file_and_the_command_line_over_both() {
    let server = ChatServer::start();
    let (in_file, in_environment) = (closed_port().port(), closed_port().port());
    let folder = Folder::new().with_file(
        "gateway.json",
        file(json!({
            "mqtt": {"host": process_loopback_ip(), "port": in_file, "signature_key": "file-Key"},
            "udp": {"public_ip": "192.0.2.1"},
            "websocket": {"production_servers": [server.url()], "server_secret": "file-Secret"},
            "logging": {"level": "error"},
        })),
    );
    let folder = folder.with_file("silent.json", file(json!({"logging": {"enabled": false}})));
    let signed = |key| Connect::signed(&client_id(1), key);

    // The file alone, but for the level: else nothing would be seen.
    let port = in_file.to_string();
    let process = folder.start("-c gateway.json -l info", &[("MQTT_PORT", &port)]);
    assert_eq!(process.mqtt().port(), in_file);
    assert!(process.seen.iter().any(|line| line.contains("public ip 192.0.2.1")), "{:#?}", process.seen);
    assert_eq!(
        (connack_code(&process, &signed("file-Key")), connack_code(&process, &signed("environment-Key"))),
        (0, 4)
    );
    drop(process);

    // The environment over the file.
    let port = in_environment.to_string();
    let variables = [
        ("CONFIG_FILE", "gateway.json"),
        ("MQTT_PORT", port.as_str()),
        ("PUBLIC_IP", "198.51.100.7"),
        ("MQTT_SIGNATURE_KEY", "environment-Key"),
        ("SERVER_SECRET", "environment-Secret"),
        ("LOG_LEVEL", "info"),
    ];
    let process = folder.start("", &variables);
    assert_eq!(process.mqtt().port(), in_environment);
    assert!(process.seen.iter().any(|line| line.contains("public ip 198.51.100.7")), "{:#?}", process.seen);
    assert_eq!(
        (connack_code(&process, &signed("file-Key")), connack_code(&process, &signed("environment-Key"))),
        (4, 0)
    );
    let mut client = Client::log_in(process.mqtt(), &signed("environment-Key"));
    client.send_text(HELLO);
    let request = server.accept().upgrade();
    let token = request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap().to_owned();
    let (signature, seconds) = token.split_once('.').unwrap();
    let uuid = support::device::uuid(1);
    let text = format!("{uuid}|{}|{seconds}", support::device::mac(1));
    let expected = openssl::base64::encode_block(&hmac("environment-Secret", &text));
    assert_eq!(signature, expected.replace('+', "-").replace('/', "_").trim_end_matches('='));
    drop(process);

    // The command line over both.
    let variables = [("CONFIG_FILE", "silent.json"), ("LOG_LEVEL", "error"), ("MQTT_PORT", "0")];
    let process = folder.start("--config gateway.json --log-level=info", &variables);
    assert!(process.seen.iter().any(|line| line.contains("public ip 192.0.2.1")), "{:#?}", process.seen);
    drop(process);

    // DEBUG shows more.
    let mut process = folder.start("-c gateway.json", &[("DEBUG", "1")]);
    let mut client = Client::log_in(process.mqtt(), &signed("file-Key"));
    client.assert_nothing_pending();
    process.wait_for_line("[DEBUG]");
}

#[test]
fn doubtful_settings_get_one_warning_and_stop_nothing() {
    let server = ChatServer::start();
    let to = |more: Value| {
        let mut more = more;
        if more.get("websocket").is_none() {
            more["websocket"] = json!({"production_servers": [server.url()]});
        }
        file(more)
    };
    let key = json!({"signature_key": "Fine-And-Long"});
    let cases = [
        (to(json!({})), vec!["signature_key"]),
        (to(json!({"mqtt": key})), vec![]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "127.0.0.1"}})), vec!["loopback"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "::1"}})), vec!["loopback"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "0.0.0.0"}})), vec!["unspecified"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "auto"}})), vec![]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "192.0.2.1"}})), vec![]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "does-not-exist.invalid"}})), vec!["does not resolve"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "localhost"}})), vec!["loopback"]),
        (
            to(json!({"mqtt": key, "gateway": {"device_id": "a", "client_id": "b"}})),
            vec!["gateway.device_id"],
        ),
        (
            to(json!({"mqtt": key, "websocket": {
                "production_servers": [server.url()], "development_mac_addresses": ["02:00:00:00:00:01"]}})),
            vec!["development_servers is empty"],
        ),
    ];
    thread::scope(|scope| {
        for (text, expected) in cases {
            scope.spawn(move || {
                let folder = Folder::new().with_file("gateway.json", &text);
                let mut process = folder.start("-c gateway.json", &[]);
                // A name is resolved beside the start, which does not wait for it.
                expected.iter().for_each(|part| process.wait_for_line_from_start(part));
                let connect = Connect::signed(&client_id(1), "Fine-And-Long");
                assert_eq!(connack_code(&process, &connect), 0, "{text}");
                #[cfg(unix)]
                {
                    process.signal("TERM");
                    let (code, lines) = process.end();
                    assert_eq!(code, Some(0));
                    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("[WARN ]")).collect();
                    assert_eq!(warnings.len(), expected.len(), "{text}: {warnings:#?}");
                    for (warning, part) in warnings.iter().zip(expected) {
                        assert!(warning.contains(part), "{warning}");
                    }
                }
            });
        }
    });
}

#[test]
fn an_unresolvable_public_ip_name_is_sent_to_devices_anyway() {
    let server = ChatServer::start();
    let text = file(json!({
        "websocket": {"production_servers": [server.url()]}, "udp": {"public_ip": "does-not-exist.invalid"},
    }));
    let folder = Folder::new().with_file("gateway.json", text);
    let process = folder.start("-c gateway.json", &[]);
    let mut device = Device::connect(process.mqtt(), 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("s");
    assert_eq!(device.json()["udp"]["server"], "does-not-exist.invalid");
}

#[test]
fn without_a_chat_server_a_device_gets_its_echo() {
    // Nothing but the program: no file, no variable that matters.
    let folder = Folder::new();
    let process = folder.start("", &[]);
    for part in ["running on defaults", "built-in echo server"] {
        assert_eq!(process.seen.iter().filter(|line| line.contains(part)).count(), 1, "{:#?}", process.seen);
    }
    let mut device = Device::connect(process.mqtt(), 1);
    // On defaults the gateway asks for the device's tools; this one has none to tell.
    device.send_text(HELLO);
    let mut text = device.json();
    while text["type"] == "mcp" {
        text = device.json();
    }
    let mut call = support::audio::Call::new(text);
    device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    let said: Vec<Vec<u8>> = (0..20).map(|n| [&[0x58, n][..], &[n; 40]].concat()).collect();
    for (n, packet) in said.iter().enumerate() {
        call.send(n as u32 * 60, packet);
    }
    device.send_text(r#"{"type":"listen","state":"stop"}"#);
    let heard: Vec<Vec<u8>> = said.iter().map(|_| call.receive().payload).collect();
    assert_eq!(heard, said);
    device.send_text(r#"{"type":"goodbye"}"#);
}

#[test]
fn an_empty_list_of_servers_is_the_same_as_none() {
    let folder = Folder::new()
        .with_file("config/gateway.json", file(json!({"websocket": {"production_servers": []}})));
    let process = folder.start("", &[]);
    assert!(process.seen.iter().any(|line| line.contains("config/gateway.json")), "{:#?}", process.seen);
    assert!(process.seen.iter().any(|line| line.contains("built-in echo server")), "{:#?}", process.seen);
}

#[test]
fn a_call_is_silent_when_the_log_is_disabled() {
    let server = ChatServer::start();
    let address = closed_port();
    let text = file(json!({
        "mqtt": {"host": address.ip(), "port": address.port()}, "websocket": {"production_servers": [server.url()]},
        "logging": {"enabled": false, "level": "trace", "file_path": "gateway.log"}, "debug": true,
    }));
    let folder = Folder::new().with_file("gateway.json", text);
    let mut process = folder.spawn("-c gateway.json -p pid", &[("UDP_PORT", "0"), ("API_PORT", "0")]);
    process.wait_until(|| folder.0.join("pid").exists());
    let mut device = Device::connect(address, 1);
    let (_call, mut peer) = device.call(&server);
    peer.send_close(Some(1000));
    device.expect_goodbye("server-session");
    #[cfg(unix)]
    {
        process.signal("TERM");
        let (code, lines) = process.end();
        assert_eq!((code, lines), (Some(0), Vec::new()));
    }
    assert_eq!(std::fs::read_to_string(folder.0.join("gateway.log")).unwrap_or_default(), "");
}

// ----- the tools ------------------------------------------------------------------------------------------------------

#[test]
fn the_demo_shows_a_call_that_works() {
    let output = Folder::new().run("demo --seconds 1", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in ["MQTT connected", "call up", "packets up", "packets down", "lost           0", "round trip"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // One screen, and plain text where no terminal is.
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
    let text = |key: &str| mqtt[key].as_str().unwrap_or_else(|| panic!("{key} in {json}")).to_owned();
    let mut connect = Connect::new(&text("client_id"));
    connect.user_name = Some(text("username"));
    connect.password = Some(text("password").into_bytes());
    assert_eq!(connack_code(&process, &connect), 0, "{json}");
    assert!(connect.client_id.contains("@@@02_00_00_00_00_0a@@@"), "{json}");
    assert_eq!(text("endpoint"), "192.0.2.1:1883");
}

#[test]
fn probe_and_its_exit_code_report_what_works() {
    const KEY: &str = "A-strong-Key-17";
    let keyed = json!({"signature_key": KEY});
    let folder = Folder::new()
        .with_file("good.json", file(json!({"mqtt": keyed})))
        // Audio is sent to where nobody is.
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
            let (code, stdout, stderr) = probe(format!("probe {} --packets 10 --json", good));
            assert_eq!(code, Some(0), "{stdout} {stderr}");
            let report: Value = serde_json::from_str(&stdout).unwrap();
            assert!(report.is_object(), "{report}");
        });
        scope.spawn(|| {
            let (code, stdout, _) = probe(format!("probe {} --packets 10 --mac 02:00:00:00:00:11", good));
            assert_eq!(code, Some(0), "{stdout}");
            for step in ["TCP", "MQTT", "authentication", "hello", "UDP up", "UDP down", "round trip", "loss"]
            {
                assert!(stdout.to_lowercase().contains(&step.to_lowercase()), "{step} is not in {stdout}");
            }
        });
        scope.spawn(|| {
            let (code, stdout, _) = probe(format!("probe {} --packets 10", lost));
            assert_eq!(code, Some(1), "{stdout}");
            assert!(stdout.contains("public_ip") && stdout.contains("UDP up"), "{stdout}");
        });
        scope.spawn(|| {
            let (code, stdout, stderr) =
                probe(format!("probe {} --packets 10 --key wrong --mac 02:00:00:00:00:12", good));
            assert_eq!(code, Some(1), "{stdout}{stderr}");
            assert!(stdout.contains('4') && !stdout.contains(KEY), "{stdout}");
        });
        scope.spawn(|| {
            let (code, stdout, _) = probe(format!("probe {}", closed_port()));
            assert_eq!(code, Some(1), "{stdout}");
            assert!(stdout.contains("refused"), "{stdout}");
        });
        scope.spawn(|| {
            let (code, ..) = probe("probe".to_owned());
            assert_eq!(code, Some(2));
        });
    });
}
