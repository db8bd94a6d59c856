//! The program as an operator meets it: arguments, files, environment, exit codes, messages, pid file and signals.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::unix::fs::PermissionsExt;
#[cfg(unix)]
use std::path::Path;
use std::process::Output;
use std::thread;

use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::device::{Device, HELLO, client_id};
use support::http::{RawClient, http_call};
use support::mqtt::{Client, Connect, hmac};
use support::process::{Folder, Process};
use support::{closed_port, process_loopback_ip};

/// A configuration that listens on loopback, with these keys over it.
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

#[cfg(unix)]
const LOG_FILE: &str = "MQTT_PROXY_LOGGING_FILE_PATH";

fn error_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.lines().find(|line| line.contains("error") || line.contains("ERROR"));
    line.unwrap_or_else(|| panic!("no error in {text}")).to_owned()
}

/// The error, which is all there is on stderr.
fn only_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text:?}");
    text.trim_end().to_owned()
}

fn connack_code(process: &Process, connect: &Connect) -> u8 {
    Client::open(process.mqtt()).connack_code(connect)
}

// ----- the command line ----------------------------------------------------------------------------------------------

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

// ----- files and variables -------------------------------------------------------------------------------------------

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

// ----- ports, pid file and log ---------------------------------------------------------------------------------------

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
fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[cfg(unix)]
#[test]
fn log_and_pid_file_are_not_readable_by_everyone() {
    let folder = Folder::new().with_file("old.log", "before\n").with_file("old.pid", "a long old text\n");
    let old = ["old.log", "old.pid"].map(|name| folder.0.join(name));
    for path in &old {
        fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }
    let running = folder.start("-p new.pid", &[(LOG_FILE, "new/gateway.log")]);
    for name in ["new/gateway.log", "new.pid"] {
        // The umask may take away more.
        let mode = mode(&folder.0.join(name));
        assert_eq!(mode & !0o640, 0, "{name}: {mode:o}");
        assert_eq!(mode & 0o600, 0o600, "{name}: {mode:o}");
    }
    drop(running);
    let running = folder.start("-p old.pid", &[(LOG_FILE, "old.log")]);
    assert_eq!(old.each_ref().map(|path| mode(path)), [0o644; 2], "files that exist keep their mode");
    assert!(fs::read_to_string(&old[0]).unwrap().starts_with("before\n"));
    assert_eq!(fs::read_to_string(&old[1]).unwrap(), format!("{}\n", running.id()));
}

/// A working directory of this mode, with a link in it to a file in another folder.
#[cfg(unix)]
fn folder_with_link(mode: u32) -> (Folder, Folder) {
    let (folder, elsewhere) = (Folder::new(), Folder::new().with_file("target", "before\n"));
    std::os::unix::fs::symlink(elsewhere.0.join("target"), folder.0.join("link")).unwrap();
    fs::set_permissions(&folder.0, PermissionsExt::from_mode(mode)).unwrap();
    (folder, elsewhere)
}

#[cfg(unix)]
#[test]
fn a_link_in_a_folder_that_others_can_write_to_is_refused_as_log_and_pid_file() {
    const QUIET: (&str, &str) = ("MQTT_PROXY_LOGGING_ENABLED", "false");
    let ports = [("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")];
    for mode in [0o1777, 0o775, 0o757] {
        let (folder, elsewhere) = folder_with_link(mode);
        let (target, absolute) = (elsewhere.0.join("target"), folder.0.join("link"));
        for path in ["link", "./link", absolute.to_str().unwrap()] {
            for (line, log, what) in
                [(String::new(), path, "log file"), (format!("-p {path}"), "", "pid file")]
            {
                let output = folder.run(&line, &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, log)]);
                let error = only_line(&output);
                assert_eq!(output.status.code(), Some(1), "{error}");
                let start = format!("error: the {what} {path} cannot be ");
                let reason = ": it is a symbolic link in a folder that others can write to";
                assert!(error.starts_with(&start) && error.ends_with(reason), "{error}");
                assert_eq!(fs::read_to_string(&target).unwrap(), "before\n");
            }
        }
        // Nor is a folder entered through a link that others could have placed.
        std::os::unix::fs::symlink(&elsewhere.0, folder.0.join("inner")).unwrap();
        let output = folder.run("", &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, "inner/log")]);
        let error = only_line(&output);
        assert!(error.contains("inner is a symbolic link in a folder that others"), "{error}");
        assert!(!elsewhere.0.join("log").exists());
        // Nor is a second name of another file written.
        fs::hard_link(&target, folder.0.join("second")).unwrap();
        let output = folder.run("", &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, "second")]);
        let error = only_line(&output);
        assert!(
            error.ends_with("it has several names (hard links), and is in a folder that others can write to"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&target).unwrap(), "before\n");
        // Nor is the file made that a link leads to.
        fs::remove_file(&target).unwrap();
        let output = folder.run("", &[QUIET, (LOG_FILE, "link")]);
        assert!(only_line(&output).contains("symbolic link") && !target.exists());
        // Other files there are written as everywhere.
        let running = folder.start("-p gateway.pid", &[(LOG_FILE, "gateway.log")]);
        assert!(folder.0.join("gateway.pid").exists() && folder.0.join("gateway.log").exists());
        drop(running);
    }
    // A folder that belongs to somebody else is one of these, whatever its mode. Only root can try it.
    let (folder, elsewhere) = folder_with_link(0o755);
    if std::os::unix::fs::chown(&folder.0, Some(65534), None).is_ok() {
        let output = folder.run("", &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, "link")]);
        assert!(only_line(&output).contains("symbolic link"));
        assert_eq!(fs::read_to_string(elsewhere.0.join("target")).unwrap(), "before\n");
    }
}

#[cfg(unix)]
#[test]
fn a_link_in_a_folder_of_our_own_is_followed_by_log_and_pid_file() {
    let (folder, elsewhere) = folder_with_link(0o755);
    let target = elsewhere.0.join("target");
    let running = folder.start("", &[(LOG_FILE, "link")]);
    running.signal("TERM");
    running.end();
    let text = fs::read_to_string(&target).unwrap();
    assert!(text.starts_with("before\n") && text.contains("MQTT on"), "{text}");
    let running = folder.start("-p link", &[]);
    assert_eq!(fs::read_to_string(&target).unwrap(), format!("{}\n", running.id()));
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

#[cfg(unix)]
#[test]
fn the_log_goes_to_the_file_too_and_no_line_holds_a_secret() {
    let file = r#"{"websocket":{"production_servers":["ws://127.0.0.1:9/?token=hunter1"],"server_secret":"hunter2"},
        "logging":{"file_path":"logs/deep/gateway.log"},"gateway":{"device_id":"x","client_id":"y"}}"#;
    let folder = Folder::new().with_file("gateway.json", file);
    let running = folder.start("-l debug -c gateway.json", &[("MQTT_SIGNATURE_KEY", "hunter3")]);
    running.signal("TERM");
    let (code, lines) = running.end();
    assert_eq!(code, Some(0), "{lines:#?}");
    let written = fs::read_to_string(folder.0.join("logs/deep/gateway.log")).unwrap();
    assert_eq!(written.lines().collect::<Vec<_>>(), lines);
    assert!(written.contains("chat servers: 1") && written.contains("gateway.device_id"), "{written}");
    assert!(!written.contains("hunter"), "{written}");
    assert!(!written.contains("echo"), "{written}");
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

// ----- the echo server -----------------------------------------------------------------------------------------------

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

// ----- the subcommands -----------------------------------------------------------------------------------------------

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
    assert_eq!(mode(&path), 0o600);
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

/// How a device logs in with the `mqtt` object of an OTA answer.
fn login(mqtt: &Value) -> Connect {
    let text = |key: &str| mqtt[key].as_str().unwrap_or_else(|| panic!("{key} in {mqtt}")).to_owned();
    let mut connect = Connect::new(&text("client_id"));
    connect.user_name = Some(text("username"));
    connect.password = Some(text("password").into_bytes());
    connect
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
