//! The program as an operator meets it: arguments, files, environment, ports, exit codes, messages and signals.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::thread;

use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::command::{connack_code, error_line, file, only_line};
use support::device::{Device, HELLO, client_id};
use support::mqtt::{Client, Connect, hmac};
use support::process::Folder;
use support::{closed_port, process_loopback_ip};

#[test]
fn help_and_version_are_printed() {
    let folder = Folder::new();
    let version = format!("mqtt-websocket-proxy {}\n", env!("CARGO_PKG_VERSION"));
    for line in ["-v", "-V", "--version", "version"] {
        let output = folder.run(line, &[]);
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stdout).unwrap()),
            (Some(0), version.clone())
        );
    }
    for line in ["-h", "--help", "help"] {
        let output = folder.run(line, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text.contains("MQTT_SIGNATURE_KEY") && text.contains("--config"), "{text}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_one_line() {
    let folder = Folder::new();
    for (line, part) in [
        ("--nonsense", "--nonsense"),
        ("nonsense", "nonsense"),
        ("-c", "-c"),
        ("-l loud", "loud"),
        ("-x", "-x"),
        ("--confg a.json", "the nearest is --config"),
        ("--cofnig=a.json", "the nearest is --config"),
        ("--log-levle info", "the nearest is --log-level"),
        ("--versoin", "the nearest is --version"),
        ("-config a.json", "the nearest is --config"),
        ("chekc", "the nearest is check"),
        ("check --jsno", "the nearest is --json"),
        ("check --confgi=a.json", "the nearest is --config"),
        ("probe 127.0.0.1 --tsl", "the nearest is --tls"),
        ("probe --tsl 127.0.0.1", "the nearest is --tls"),
        ("credentials --mac 02:00:00:00:00:01 --kye x", "the nearest is --key"),
        ("health --raedy", "the nearest is --ready"),
        ("init --sever ws://a/", "the nearest is --server"),
        (
            "init --server http://a/",
            "--server: found a text that is not shown, allowed: a ws:// or wss:// URL",
        ),
        (
            "init --address 2001:db8::1",
            "--address: found \"2001:db8::1\", allowed: an IPv4 address or a host name",
        ),
        ("token --jsno", "the nearest is --json"),
    ] {
        let output = folder.run(line, &[]);
        let error = only_line(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part) && error.contains("--help"), "{error}");
    }
}

/// What people read is in their language; the log and JSON are English.
#[test]
fn people_are_told_in_their_language() {
    let said =
        |output: &Output| String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap();
    let folder = Folder::new();
    let chinese = [("LC_ALL", ""), ("LANG", "zh_CN.UTF-8")];
    let wrong = [("MQTT_PORT", "99999")];
    for (line, language, code, part) in [
        ("", &chinese[..], 2, "错误：environment：MQTT_PORT：发现 99999，允许：0 到 65535 的整数"),
        ("--lang zh check", &[], 2, "配置无法使用："),
        ("check --lang=zh", &[], 2, "配置无法使用："),
        ("check --lang en", &chinese, 2, "The configuration cannot be used:"),
        ("check --nonsense", &chinese, 2, "check: 未知或重复的参数 \"--nonsense\""),
        ("check", &[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "C")], 2, "The configuration cannot be used:"),
        ("--lang fr", &[], 2, "error: --lang: found \"fr\", allowed: en, zh"),
    ] {
        let output = folder.run(line, &[&wrong[..], language].concat());
        let said = said(&output);
        assert!(output.status.code() == Some(code) && said.contains(part), "{line} {language:?}: {said}");
    }
    let output = folder.run("check --json", &[&wrong[..], &chinese].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["problems"][0],
        "environment: MQTT_PORT: found 99999, allowed: a whole number from 0 to 65535"
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("配置无法使用："));

    // A start that fails once there is a log says so in both.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = folder.with_file("gateway.json", file(json!({})));
    let variables =
        [("MQTT_PORT", port.as_str()), ("UDP_PORT", "0"), ("API_PORT", "0"), ("CONFIG_FILE", "gateway.json")];
    let output = folder.run("--lang zh", &variables);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on MQTT port {port}")), "{said}");
    assert!(
        said.contains(&format!("错误：无法监听 MQTT 端口 {port}")) && said.contains("它已被另一个程序占用"),
        "{said}"
    );
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_file_field_found_and_allowed() {
    let folder =
        Folder::new().with_file("bad.json", r#"{"mqtt":{"port":"abc"}}"#).with_file("good.json", "{}");
    for (line, variables, expected) in [
        (
            "-c bad.json",
            vec![],
            r#"error: bad.json: mqtt.port: found "abc", allowed: a whole number from 0 to 65535"#,
        ),
        ("--config=bad.json", vec![], r#"error: bad.json: mqtt.port: found "abc", allowed: "#),
        ("-c=bad.json", vec![], r#"error: bad.json: mqtt.port: found "abc", allowed: "#),
        ("", vec![("CONFIG_FILE", "bad.json")], r#"error: bad.json: mqtt.port: found "abc", allowed: "#),
        (
            "-c good.json",
            vec![("UDP_PORT", "65536")],
            r#"error: environment: UDP_PORT: found 65536, allowed: a whole number from 0 to 65535"#,
        ),
        ("", vec![("DEBUG", "maybe")], r#"error: environment: DEBUG: found "maybe", allowed: 1, true"#),
    ] {
        let output = folder.run(line, &variables);
        let error = only_line(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn all_errors_of_a_configuration_are_listed_at_start() {
    let text = r#"{"mqtt":{"port":"abc","prt":1,},"websocket":{"production_servers":["http://a"]}} // mine"#;
    let folder = Folder::new().with_file("bad.json", text);
    let output = folder.run("-c bad.json", &[("UDP_PORT", "-1"), ("DEBUG", "maybe")]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    let starts = [
        "error: bad.json: mqtt.port: found",
        "error: bad.json: mqtt.prt: found",
        "error: bad.json: websocket.production_servers[0]: found",
        "error: environment: UDP_PORT: found",
        "error: environment: DEBUG: found",
    ];
    assert_eq!(text.lines().count(), starts.len(), "{text}");
    assert!(text.lines().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
}

#[test]
fn an_unreadable_file_ends_with_2_and_one_line() {
    let folder = Folder::new()
        .with_file("latin1.json", b"{\"debug\": false, \"x\": \"\xe9\"}")
        .with_file("cut.json", r#"{"mqtt":{"#);
    for (line, variables, parts) in [
        ("-c absent.json", vec![], ["error: absent.json: cannot be read: ", "No such file"]),
        (
            "",
            vec![("CONFIG_FILE", "nowhere/absent.json")],
            ["error: nowhere/absent.json: cannot be read: ", "No such file"],
        ),
        ("-c .", vec![], ["error: .: cannot be read: ", "directory"]),
        ("-c latin1.json", vec![], ["latin1.json", "UTF-8"]),
        ("-c cut.json", vec![], ["cut.json", "line 1"]),
        // The command line overrides the environment.
        (
            "-c absent.json",
            vec![("CONFIG_FILE", "latin1.json")],
            ["error: absent.json: cannot be read: ", "No such file"],
        ),
    ] {
        let output = folder.run(line, &variables);
        let error = only_line(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} in {error}");
    }
}

#[test]
fn the_default_file_is_read_when_it_is_there() {
    let folder = Folder::new().with_file("config/gateway.json", r#"{"udp":{"prot":1}}"#);
    let output = folder.run("", &[]);
    assert_eq!(output.status.code(), Some(2));
    let error = only_line(&output);
    assert!(
        error.starts_with(
            "error: config/gateway.json: udp.prot: found an unknown key in udp, allowed: port, "
        ),
        "{error}"
    );
}

#[test]
fn the_environment_overrides_the_file_and_the_command_line_both() {
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

    // The file alone, except for the level, without which nothing would be logged.
    let port = in_file.to_string();
    let process = folder.start("-c gateway.json -l info", &[("MQTT_PORT", &port)]);
    assert_eq!(process.mqtt().port(), in_file);
    assert!(process.seen.iter().any(|line| line.contains("public ip 192.0.2.1")), "{:#?}", process.seen);
    assert_eq!(
        (connack_code(&process, &signed("file-Key")), connack_code(&process, &signed("environment-Key"))),
        (0, 4)
    );
    drop(process);

    // The environment overrides the file.
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

    // The command line overrides both.
    let variables = [("CONFIG_FILE", "silent.json"), ("LOG_LEVEL", "error"), ("MQTT_PORT", "0")];
    let process = folder.start("--config gateway.json --log-level=info", &variables);
    assert!(process.seen.iter().any(|line| line.contains("public ip 192.0.2.1")), "{:#?}", process.seen);
    drop(process);

    // DEBUG lowers the level.
    let mut process = folder.start("-c gateway.json", &[("DEBUG", "1")]);
    let mut client = Client::log_in(process.mqtt(), &signed("file-Key"));
    client.assert_nothing_pending();
    process.wait_for_line("[DEBUG]");
}

#[test]
fn suspect_settings_get_one_warning_each_and_the_gateway_starts() {
    let server = ChatServer::start();
    let to = |more: Value| {
        let mut more = more;
        if more.get("websocket").is_none() {
            more["websocket"] = json!({"production_servers": [server.url()]});
        }
        if more.get("api").is_none() {
            more["api"] = json!({"host": "127.0.0.1"});
        }
        file(more)
    };
    let key = json!({"signature_key": "Fine-And-Long"});
    let cases = [
        (to(json!({})), vec!["signature_key"]),
        (to(json!({"mqtt": key})), vec![]),
        (to(json!({"mqtt": key, "api": {"host": "auto"}})), vec!["clear HTTP on 0.0.0.0"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "127.0.0.1"}})), vec!["loopback"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "::1"}})), vec!["told this machine's IPv4 address"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "0.0.0.0"}})), vec!["unspecified"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "auto"}})), vec![]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "192.168.1.10"}})), vec![]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "192.0.2.1"}})), vec!["for examples"]),
        (to(json!({"mqtt": key, "udp": {"public_ip": "host.docker.internal"}})), vec!["cannot resolve"]),
        (
            to(json!({"mqtt": key, "websocket": {
                "production_servers": [server.url()], "server_secret": "'quoted'"}})),
            vec!["gateway.json: websocket.server_secret begins or ends with a quote"],
        ),
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
                // A name is resolved while the gateway starts; the start does not wait for it.
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

/// A sample's variables, each value as `docker --env-file` leaves it: with its quotes and remarks.
#[test]
fn a_secret_with_its_quotes_is_taken_as_it_is_and_warned_of() {
    let folder = Folder::new().with_file("gateway.json", file(json!({})));
    let key = "\"hunter2\" # \u{5bc6}\u{94a5}";
    let process = folder.start("-c gateway.json", &[("MQTT_SIGNATURE_KEY", key), ("PUBLICIP", "1.2.3.4")]);
    assert_eq!(connack_code(&process, &Connect::signed(&client_id(1), key)), 0);
    let text = process.seen.join("\n");
    let warning = "environment: MQTT_SIGNATURE_KEY begins or ends with a quote and holds a blank and #";
    assert!(text.contains(warning) && !text.contains("hunter2"), "{text}");
    assert!(text.contains("PUBLICIP is not a variable of this gateway; the nearest is PUBLIC_IP"), "{text}");
}

#[test]
fn localhost_answers_on_both_loopback_addresses() {
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    for (variables, on_ipv4) in [
        (vec![], "127.0.0.1"),
        (vec![("MQTT_SIGNATURE_KEY", "Fine-And-Long")], "0.0.0.0"),
        (vec![("API_HOST", "127.0.0.1")], "127.0.0.1"),
    ] {
        let process =
            Folder::new().with_file("gateway.json", file(json!({}))).start("-c gateway.json", &variables);
        let api = process.api();
        assert_eq!(api.ip().to_string(), on_ipv4);
        let ask = |ip: &str| {
            let mut stream = std::net::TcpStream::connect((ip, api.port()))?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
        };
        assert!(ask("127.0.0.1").unwrap());
        let asked = variables.first().is_none_or(|(name, _)| *name != "API_HOST");
        assert_eq!(ask("::1").unwrap_or(false), has_ipv6 && asked, "{variables:?}");
    }
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
        let line = error_line(&output);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
        let lines = String::from_utf8(output.stderr).unwrap();
        assert_eq!(lines.matches("ERROR").count(), 1, "{lines}");
    }
    // The same is said on stderr when the log is disabled, and no pid file is left.
    let quiet = file(json!({"logging": {"enabled": false}}));
    let folder = folder.with_file("quiet.json", quiet);
    let variables = [("MQTT_PORT", tcp_port.as_str()), ("UDP_PORT", "0"), ("API_PORT", "0")];
    let output = folder.run("-c quiet.json -p gateway.pid", &variables);
    let error = only_line(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&tcp_port) && error.contains("in use"), "{error}");
    assert!(!folder.0.join("gateway.pid").exists());
}

/// Runs the program to its end without privileges; `None` where that is not possible.
#[cfg(unix)]
fn run_unprivileged(folder: &Folder, line: &str, variables: &[(&str, &str)]) -> Option<Output> {
    use std::process::{Command, Stdio};
    if TcpListener::bind("127.0.0.1:1").is_err() {
        return Some(folder.run(line, variables));
    }
    let program = env!("CARGO_BIN_EXE_mqtt-websocket-proxy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]).current_dir(&folder.0);
    command.stdin(Stdio::null()).env_clear().envs(variables.iter().copied());
    let mut check = Command::new("setpriv");
    check.args(["--reuid=65534", "--regid=65534", "--clear-groups", program, "-v"]).current_dir(&folder.0);
    let usable = check.output().is_ok_and(|output| output.status.success());
    if !usable {
        eprintln!("skipped: cannot run without privileges here");
        return None;
    }
    Some(command.args(line.split_whitespace()).output().unwrap())
}

#[cfg(unix)]
#[test]
fn a_port_or_file_that_is_not_permitted_says_so() {
    let folder = Folder::new().with_file("plain.json", file(json!({}))).with_file("secret.json", "{}");
    fs::set_permissions(folder.0.join("secret.json"), PermissionsExt::from_mode(0o000)).unwrap();
    let unprivileged = || fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if unprivileged().is_ok_and(|port| port.trim() == "1024")
        && let Some(output) =
            run_unprivileged(&folder, "-c plain.json", &[("MQTT_PORT", "1"), ("UDP_PORT", "0")])
    {
        let line = error_line(&output);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(line.contains("port 1 ") && line.contains("ermission denied"), "{line}");
    }
    if let Some(output) = run_unprivileged(&folder, "-c secret.json", &[]) {
        let line = error_line(&output);
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
    assert!(error_line(&output).contains(&port));
    let pid = fs::read_to_string(folder.0.join("gateway.pid")).unwrap();
    assert_eq!(pid.trim(), first.id().to_string());
    assert_eq!(connack_code(&first, &Connect::new(&client_id(1))), 0);
}

#[test]
fn an_unopenable_log_or_pid_file_exits_with_1_and_one_line() {
    let log = r#"{"logging":{"enabled":false,"file_path":"file/gateway.log"}}"#;
    let folder = Folder::new().with_file("file", "").with_file("log.json", log);
    let folder = folder.with_file("quiet.json", r#"{"logging":{"enabled":false}}"#);
    let ports = [("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")];
    for (line, part) in [
        ("-c log.json", "the log file file/gateway.log"),
        ("-c quiet.json -p file/pid", "the pid file file/pid"),
    ] {
        let output = folder.run(line, &ports);
        let error = only_line(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && error.contains(part), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn it_starts_on_defaults_and_exits_with_0_on_either_signal() {
    for signal in ["TERM", "INT"] {
        let folder = Folder::new();
        let running = folder.start("--pid gateway.pid", &[("MQTT_PORT", "0"), ("UDP_PORT", "0")]);
        let pid = fs::read_to_string(folder.0.join("gateway.pid")).unwrap();
        assert_eq!(pid.trim_end(), running.id().to_string());
        running.signal(signal);
        let (code, lines) = running.end();
        assert_eq!(code, Some(0), "{lines:#?}");
        let text = lines.join("\n");
        for part in ["running on defaults", "built-in echo server", "signature_key", "stopped"] {
            assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
        }
        assert!(text.contains(concat!("mqtt-websocket-proxy ", env!("CARGO_PKG_VERSION"))), "{text}");
        assert!(!folder.0.join("gateway.pid").exists());
    }
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
    assert_eq!(fs::read_to_string(folder.0.join("gateway.log")).unwrap_or_default(), "");
}

#[test]
fn without_a_chat_server_a_device_gets_its_echo() {
    // No file, and no variable but the ports.
    let folder = Folder::new();
    let process = folder.start("", &[]);
    for part in ["running on defaults", "built-in echo server"] {
        assert_eq!(process.seen.iter().filter(|line| line.contains(part)).count(), 1, "{:#?}", process.seen);
    }
    let mut device = Device::connect(process.mqtt(), 1);
    // By default the gateway asks for the device's tools; this device does not answer.
    device.send_text(HELLO);
    let mut text = device.json();
    while text["type"] == "mcp" {
        text = device.json();
    }
    let mut call = support::audio::Call::new(text);
    call.assert_echo(|text| device.send_text(text));
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
