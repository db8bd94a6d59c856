//! Valid settings in file, environment and command line, and the errors for invalid ones.

#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::LevelFilter;
use mqtt_websocket_proxy::config::{
    ChatServerConfig, Config, Framing, PublicIp, Secret, Source, unknown_variables,
};

fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("source-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{count}-{name}"));
    fs::write(&path, bytes).unwrap();
    path
}

fn load_with(bytes: &[u8], level: Option<LevelFilter>, variables: &[(&str, &str)]) -> Result<Config, String> {
    let path = temporary("gateway.json", bytes);
    let variable =
        |name: &str| Some(OsString::from(variables.iter().find(|(variable, _)| *variable == name)?.1));
    let result = Source::new(Some(path.clone()), level, variable).load();
    fs::remove_file(&path).unwrap();
    result.map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
}

fn load(text: &str) -> Result<Config, String> {
    load_with(text.as_bytes(), None, &[])
}

const FIRST_VERSION_CONFIG: &str = r#"{
  "mqtt": { "host": "0.0.0.0", "port": 1883, "max_connections": 10000, "max_payload_size": 8192 },
  "udp": { "host": "0.0.0.0", "port": 8884, "public_ip": "mqtt.xiaozhi.me" },
  "websocket": {
    "development_servers": ["wss://dev-chat.xiaozhi.me/ws"],
    "production_servers": ["wss://chat.xiaozhi.me/ws", "wss://chat2.xiaozhi.me/ws"],
    "development_mac_addresses": ["aa:bb:cc:dd:ee:ff", "11:22:33:44:55:66"]
  },
  "gateway": { "device_id": "your-gateway-device-id", "client_id": "your-gateway-client-id" },
  "logging": { "enabled": true, "level": "info", "file_path": "logs/gateway.log" },
  "mcp": { "enabled": true, "max_tools_count": 32 },
  "debug": false
}"#;

#[test]
fn a_file_of_the_first_version_loads_unchanged() {
    let config = load(FIRST_VERSION_CONFIG).unwrap();
    assert_eq!(config.mqtt.max_payload_size, 8192);
    assert_eq!(config.udp.public_ip, PublicIp::Host("mqtt.xiaozhi.me".to_owned()));
    let urls: Vec<_> = config.websocket.production.iter().map(|server| server.url.as_str()).collect();
    assert_eq!(urls, ["wss://chat.xiaozhi.me/ws", "wss://chat2.xiaozhi.me/ws"]);
    assert_eq!(config.websocket.development[0].url, "wss://dev-chat.xiaozhi.me/ws");
    assert_eq!(config.websocket.development_macs[1].to_string(), "11:22:33:44:55:66");
    assert_eq!(config.logging.file, Some("logs/gateway.log".into()));
    assert_eq!(config.unused_keys, ["gateway.device_id", "gateway.client_id"]);
    assert_eq!(config.warnings().iter().filter(|warning| warning.contains("gateway.device_id")).count(), 1);
}

#[test]
fn a_server_is_a_url_or_an_object() {
    let ca = temporary("ca.pem", b"# a comment\n-----BEGIN CERTIFICATE-----\n");
    let text = format!(
        r#"{{"websocket":{{"production_servers":["ws://a/x",
            {{"url":"wss://b","framing":"RAW","insecure":false,"ca_file":{ca:?}}},{{"url":"ws://c"}}]}}}}"#
    );
    let servers = load(&text).unwrap().websocket.production;
    let facts: Vec<_> = servers.iter().map(|s| (s.framing, s.insecure, s.ca_file.clone())).collect();
    let plain = (Framing::Auto, None, None);
    assert_eq!(facts, [plain.clone(), (Framing::Raw, Some(false), Some(ca)), plain]);
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark_and_leave_everything_out() {
    assert_eq!(load("\u{feff}{ }"), Ok(Config::default()));
    assert_eq!(load(r#"{"$schema":"x","mqtt":{},"websocket":{"reconnect":{}}}"#), Ok(Config::default()));
    let grace = load(r#"{"mqtt":{"resume_grace_s":0.25}}"#).unwrap().mqtt.resume_grace;
    assert_eq!(grace, Duration::from_millis(250));
}

#[test]
fn a_bad_file_is_refused_in_one_line_with_file_field_found_and_allowed() {
    for (text, expected) in [
        (
            r#"{"mqtt":{"port":"abc"}}"#,
            r#"FILE: mqtt.port: found "abc", allowed: a whole number from 0 to 65535"#,
        ),
        (r#"{"mqtt":{"port":-1}}"#, "FILE: mqtt.port: found -1, allowed: "),
        (
            r#"{"mqtt":{"max_connections":1e3}}"#,
            "FILE: mqtt.max_connections: found 1e3, allowed: a whole number from 1",
        ),
        (r#"{"mqtt":{"prt":1}}"#, "FILE: mqtt.prt: found an unknown key in mqtt, allowed: port, "),
        (r#"{"mqt":{}}"#, "FILE: mqt: found an unknown key in the file, allowed: mqtt, "),
        (r#"{"a\nb":1}"#, r"FILE: a\nb: found an unknown key in the file, allowed: "),
        (r#"{"websocket":{"reconnect":{"x":1}}}"#, "FILE: websocket.reconnect.x: found an unknown key"),
        (r#"{"gateway":{"name":1}}"#, "FILE: gateway.name: found an unknown key in gateway, allowed: "),
        (r#"{"mqtt":1}"#, "FILE: mqtt: found 1, allowed: an object"),
        (r"[]", "FILE: the whole file: found an array, allowed: an object"),
        (r#"{"mqtt":{"port":1,"port":2}}"#, "FILE: mqtt.port: found the key twice, allowed: each key once"),
        (r#"{"debug":true,"debug":true}"#, "FILE: debug: found the key twice, allowed: "),
        (
            r#"{"mqtt":{"host":"localhost"}}"#,
            r#"FILE: mqtt.host: found "localhost", allowed: an IPv4 or IPv6 address"#,
        ),
        (
            r#"{"udp":{"public_ip":"1.2.3.4:8884"}}"#,
            r#"FILE: udp.public_ip: found "1.2.3.4:8884", allowed: "auto", an IP"#,
        ),
        (r#"{"udp":{"public_ip":""}}"#, r#"FILE: udp.public_ip: found "", allowed: "auto""#),
        (
            r#"{"udp":{"peer_policy":"loose"}}"#,
            r#"FILE: udp.peer_policy: found "loose", allowed: "adaptive", "strict""#,
        ),
        (
            r#"{"logging":{"level":"loud"}}"#,
            r#"FILE: logging.level: found "loud", allowed: off, error, warn, info"#,
        ),
        (r#"{"logging":{"format":"xml"}}"#, r#"FILE: logging.format: found "xml", allowed: "text", "json""#),
        (r#"{"logging":{"keep":0}}"#, "FILE: logging.keep: found 0, allowed: a whole number from 1 to 1000"),
        (
            r#"{"webhooks":[{"secret":"hidden"}]}"#,
            r#"FILE: webhooks[0]: found no url, allowed: an object with a "url""#,
        ),
        (
            r#"{"webhooks":[{"url":"ftp://hidden/"}]}"#,
            "FILE: webhooks[0].url: found a text that is not shown, allowed: an http:// or https:// URL",
        ),
        (
            r#"{"webhooks":[{"url":"http://a/","events":["call.over"]}]}"#,
            r#"FILE: webhooks[0].events[0]: found "call.over", allowed: one of device.online, "#,
        ),
        (r#"{"debug":"yes"}"#, r#"FILE: debug: found "yes", allowed: true or false"#),
        (
            r#"{"websocket":{"production_servers":["ws://a","http://b/"]}}"#,
            r#"FILE: websocket.production_servers[1]: found "http://b/", allowed: a ws:// or wss:// URL; did you mean ws://"#,
        ),
        (
            r#"{"websocket":{"production_servers":"ws://a"}}"#,
            r#"FILE: websocket.production_servers: found "ws://a", allowed: a list"#,
        ),
        (
            r#"{"websocket":{"production_servers":[{}]}}"#,
            "FILE: websocket.production_servers[0]: found an object, allowed: ",
        ),
        (
            r#"{"websocket":{"development_servers":[{"url":"ws://a","framing":"x"}]}}"#,
            r#"FILE: websocket.development_servers[0].framing: found "x", allowed: "auto", "header", "raw""#,
        ),
        (
            r#"{"websocket":{"development_servers":[{"url":"ws://a","frame":"x"}]}}"#,
            "FILE: websocket.development_servers[0].frame: found an unknown key in websocket.development_servers[0], allowed: framing",
        ),
        (
            r#"{"websocket":{"development_mac_addresses":["aa:bb:cc:dd:ee"]}}"#,
            r#"FILE: websocket.development_mac_addresses[0]: found "aa:bb:cc:dd:ee", allowed: a MAC address"#,
        ),
        (
            r#"{"websocket":{"ca_file":"absent.pem"}}"#,
            r#"FILE: websocket.ca_file: found "absent.pem" (No such file"#,
        ),
        (
            r#"{"websocket":{"routes":[{"name":"r","groups":["g"],"servers":[{"url":"wss://a"},{"url":"wss://b","ca_file":"absent.pem"}]}]}}"#,
            r#"FILE: websocket.routes[0].servers[1].ca_file: found "absent.pem" (No such file"#,
        ),
        (r#"{"mcp":{"capabilities":[]}}"#, "FILE: mcp.capabilities: found an array, allowed: an object"),
        ("{} {}", "FILE: line 1, column 4: not JSON: trailing characters"),
    ] {
        let error = load(text).expect_err(text);
        assert!(error.starts_with(expected), "{error}\nfor {text}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = load_with(b"{\"debug\":\xff}", None, &[]).unwrap_err();
    assert!(error.starts_with("FILE: cannot be read: it is not UTF-8"), "{error}");
}

#[test]
fn hostile_nesting_is_refused_and_nothing_else_happens() {
    let nested = format!("{{\"mqtt\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let error = load(&nested).unwrap_err();
    assert!(error.len() < 200, "{error}");
}

#[test]
fn a_message_never_holds_a_secret() {
    for text in [
        r#"{"mqtt":{"signature_key":732201}}"#,
        r#"{"mqtt":{"previous_signature_keys":"732201"}}"#,
        r#"{"mqtt":{"previous_signature_keys":["732201",732201]}}"#,
        r#"{"mqtt":{"previous_signature_keys":["732201",""]}}"#,
        r#"{"mqtt":{"previous_signature_keys":["732201"]}}"#,
        r#"{"websocket":{"server_secret":["732201"]}}"#,
        r#"{"websocket":{"production_servers":["ws://user:732201@a/"]}}"#,
        r#"{"websocket":{"production_servers":["ws://user:732201/@a/"]}}"#,
        r#"{"websocket":{"production_servers":["http://a/?token=732201"]}}"#,
        r#"{"mqtt":{"signature_kye":"732201"}}"#,
        r#"{"api":{"token":"732201"}}"#,
        r#"{"api":{"token":["732201"]}}"#,
    ] {
        let error = load(text).expect_err(text);
        assert!(!error.contains("732201"), "{error}");
    }
    let config = load(
        r#"{"mqtt":{"signature_key":"732201","previous_signature_keys":["732201"]},"websocket":{"production_servers":["ws://a/?t=732201"]}}"#,
    );
    assert!(!format!("{config:?}").contains("732201"));
}

#[test]
fn the_environment_goes_over_the_file_and_the_command_line_over_both() {
    let file = br#"{"mqtt":{"port":1,"signature_key":"file"},"udp":{"port":2},"logging":{"level":"warn"},"debug":true}"#;
    let variables = [
        ("MQTT_PORT", "11"),
        ("UDP_PORT", "12"),
        ("API_PORT", "13"),
        ("API_TOKEN", "a-token-of-the-environment"),
        ("PUBLIC_IP", "192.0.2.1"),
        ("MQTT_SIGNATURE_KEY", "environment"),
        ("SERVER_SECRET", "secret"),
        ("LOG_LEVEL", "Error"),
    ];
    let config = load_with(file, None, &variables).unwrap();
    assert_eq!((config.mqtt.port, config.udp.port, config.api.port), (11, 12, 13));
    assert_eq!(config.udp.public_ip, PublicIp::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))));
    assert_eq!(config.api.token, Secret::new("a-token-of-the-environment"));
    assert_eq!(config.mqtt.signature_key, Secret::new("environment"));
    assert_eq!(config.websocket.secret, Secret::new("secret"));
    assert_eq!(config.log_level(), LevelFilter::Error);

    let config = load_with(file, Some(LevelFilter::Info), &variables).unwrap();
    assert_eq!(config.log_level(), LevelFilter::Info);

    let empty = variables.map(|(name, _)| (name, ""));
    assert_eq!(load_with(file, None, &empty), load_with(file, None, &[]));
}

#[test]
fn debug_and_level_follow_source_precedence() {
    for (file, variables, expected) in [
        (r#"{"debug":true}"#, &[][..], LevelFilter::Debug),
        (r#"{"debug":true}"#, &[("DEBUG", "off")], LevelFilter::Info),
        (r#"{"debug":true}"#, &[("LOG_LEVEL", "warning")], LevelFilter::Warn),
        ("{}", &[("LOG_LEVEL", "warn"), ("DEBUG", "1")], LevelFilter::Debug),
        ("{}", &[("DEBUG", "YES")], LevelFilter::Debug),
        ("{}", &[("DEBUG", "0")], LevelFilter::Info),
        ("{}", &[("DEBUG", "")], LevelFilter::Info),
    ] {
        let config = load_with(file.as_bytes(), None, variables).unwrap();
        assert_eq!(config.log_level(), expected, "{file} {variables:?}");
    }
}

#[test]
fn a_bad_variable_is_refused_with_its_name() {
    for (name, value, allowed) in [
        ("MQTT_PORT", "abc", "a whole number from 0 to 65535"),
        ("UDP_PORT", "1e", "a whole number from 0 to 65535"),
        ("API_PORT", "0x10", "a whole number from 0 to 65535"),
        ("PUBLIC_IP", "a b", "\"auto\", an IP address or a host name"),
        ("LOG_LEVEL", "loud", "off, error, warn, info, debug, trace"),
        ("DEBUG", "2", "1, true, yes, on, 0, false, no, off"),
    ] {
        let error = load_with(b"{}", None, &[(name, value)]).unwrap_err();
        let expected = format!("environment: {name}: found {value:?}, allowed: {allowed}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_container_needs_no_file() {
    let ca = temporary("ca.pem", b"-----BEGIN CERTIFICATE-----\n");
    let list = r#"["ws://c/?t=1,2", {"url": "wss://d", "framing": "raw"}]"#;
    let config = load_with(
        br#"{"websocket":{"production_servers":["ws://file"],"max_calls":5},"debug":true}"#,
        None,
        &[
            ("MQTT_PROXY_WEBSOCKET_PRODUCTION_SERVERS", " ws://a/x , wss://b?from=mqtt_gateway,"),
            ("MQTT_PROXY_WEBSOCKET_DEVELOPMENT_SERVERS", list),
            ("MQTT_PROXY_WEBSOCKET_DEVELOPMENT_MAC_ADDRESSES", "aa:bb:cc:dd:ee:ff"),
            ("MQTT_PROXY_WEBSOCKET_RECONNECT_GIVE_UP_AFTER_S", "1.5"),
            ("MQTT_PROXY_WEBSOCKET_CA_FILE", ca.to_str().unwrap()),
            ("MQTT_PROXY_MCP_CLIENT_INFO", r#"{"name": "n"}"#),
            ("MQTT_PROXY_UDP_DOWNLINK_FLAGS", "off"),
            ("MQTT_PROXY_LOGGING_LEVEL", "warn"),
            // The longer name wins.
            ("PUBLIC_IP", "192.0.2.1"),
            ("MQTT_PROXY_UDP_PUBLIC_IP", "gw.example"),
        ],
    )
    .unwrap();
    let urls = |servers: &[Arc<_>]| {
        servers.iter().map(|server: &Arc<ChatServerConfig>| server.url.clone()).collect::<Vec<_>>()
    };
    assert_eq!(urls(&config.websocket.production), ["ws://a/x", "wss://b?from=mqtt_gateway"]);
    assert_eq!(urls(&config.websocket.development), ["ws://c/?t=1,2", "wss://d"]);
    assert_eq!(config.websocket.development[1].framing, Framing::Raw);
    assert_eq!(config.websocket.development_macs.len(), 1);
    assert_eq!(config.websocket.reconnect.give_up_after, Duration::from_millis(1500));
    assert_eq!(config.websocket.ca_file, Some(ca));
    assert_eq!((config.mcp.client_info.as_str(), config.udp.downlink_flags), (r#"{"name":"n"}"#, false));
    assert_eq!((config.log_level(), config.websocket.max_calls), (LevelFilter::Warn, 5));
    assert_eq!(config.udp.public_ip, PublicIp::Host("gw.example".to_owned()));
}

#[test]
fn a_secret_may_be_read_from_a_file_of_its_own() {
    let key = temporary("key", "päss word\r\n".as_bytes());
    let (empty, key) = (temporary("empty", b"\n"), key.to_str().unwrap());
    for name in ["MQTT_SIGNATURE_KEY_FILE", "MQTT_PROXY_MQTT_SIGNATURE_KEY_FILE"] {
        let config = load_with(b"{}", None, &[(name, key)]).unwrap();
        assert_eq!(config.mqtt.signature_key, Secret::new("päss word"));
    }
    let previous = temporary("previous", "a key\r\nanother,third\n".as_bytes());
    let variables = [
        ("MQTT_SIGNATURE_KEY", "k"),
        ("MQTT_PROXY_MQTT_PREVIOUS_SIGNATURE_KEYS_FILE", previous.to_str().unwrap()),
    ];
    let keys = ["a key", "another", "third"].map(|key| Secret::new(key).unwrap());
    assert_eq!(load_with(b"{}", None, &variables).unwrap().mqtt.previous_signature_keys, keys);
    for (variables, expected) in [
        (
            vec![("MQTT_SIGNATURE_KEY_FILE", key), ("MQTT_SIGNATURE_KEY", "x")],
            "environment: MQTT_SIGNATURE_KEY_FILE: found a value beside MQTT_SIGNATURE_KEY, allowed: one of",
        ),
        (
            vec![("SERVER_SECRET_FILE", "/absent")],
            "environment: SERVER_SECRET_FILE: found \"/absent\" (No such file",
        ),
        (vec![("API_TOKEN_FILE", empty.to_str().unwrap())], "environment: API_TOKEN_FILE: found \""),
        (
            vec![("API_TOKEN_FILE", key)],
            "environment: API_TOKEN_FILE: found a text that is not shown, allowed: 16",
        ),
    ] {
        let error = load_with(b"{}", None, &variables).unwrap_err();
        assert!(error.starts_with(expected) && !error.contains("word"), "{error}");
    }
}

#[test]
fn a_bad_variable_of_any_key_is_refused_with_its_name() {
    for (name, value, expected) in [
        ("MQTT_PROXY_MQTT_PORT", "65536", "found 65536, allowed: a whole number from 0 to 65535"),
        ("MQTT_PROXY_WEBSOCKET_INSECURE", "maybe", "found \"maybe\", allowed: 1, true, yes"),
        ("MQTT_PROXY_UDP_PEER_POLICY", "loose", "found \"loose\", allowed: \"adaptive\", \"strict\""),
        ("MQTT_PROXY_MCP_CAPABILITIES", "{", "found a text that is not JSON, allowed: a JSON object"),
        ("MQTT_PROXY_MCP_CAPABILITIES", "[1]", "found an array, allowed: an object"),
        ("MQTT_PROXY_WEBSOCKET_PRODUCTION_SERVERS", "[1", "found a text that begins like a JSON list"),
        ("MQTT_PROXY_WEBSOCKET_CA_FILE", "/absent.pem", "found \"/absent.pem\" (No such file"),
    ] {
        let error = load_with(b"{}", None, &[(name, value)]).unwrap_err();
        assert!(error.starts_with(&format!("environment: {name}: {expected}")), "{error}");
    }
    let error =
        load_with(b"{}", None, &[("MQTT_PROXY_WEBSOCKET_PRODUCTION_SERVERS", "ws://a,http://b?s=732201")]);
    let error = error.unwrap_err();
    let expected =
        "environment: MQTT_PROXY_WEBSOCKET_PRODUCTION_SERVERS[1]: found a URL with parts that are not shown";
    assert!(error.starts_with(expected) && !error.contains("732201"), "{error}");
}

#[test]
fn a_misspelt_variable_is_reported_with_the_nearest_name() {
    for (name, nearest) in [
        ("MQTT_PROXY_UPD_PORT", "MQTT_PROXY_UDP_PORT"),
        ("MQTT_PROXY_UDP_PROT_X", "MQTT_PROXY_UDP_PORT"),
        ("MQTT_PROX_UDP_PORT", "MQTT_PROXY_UDP_PORT"),
        ("PUBLICIP", "PUBLIC_IP"),
        ("PUBLIC_IPS", "PUBLIC_IP"),
        ("MQTT_SIGNATURE_KY", "MQTT_SIGNATURE_KEY"),
        ("MQTT_SIGNATURE_KYE", "MQTT_SIGNATURE_KEY"),
        ("SEVER_SECRET", "SERVER_SECRET"),
        ("API_TOKEN_FLIE", "API_TOKEN_FILE"),
        ("CONFIGFILE", "CONFIG_FILE"),
    ] {
        assert_eq!(
            unknown_variables([OsString::from(name)]),
            [format!("environment: {name} is not a variable of this gateway; the nearest is {nearest}")]
        );
    }
    let others = [
        "MQTT_PROXY_UDP_PORT",
        "API_TOKEN_FILE",
        "CONFIG_FILE",
        "HTTP_PORT",
        "PATH",
        "APP_PORT",
        "HTTPS_PORT",
        "MQTT_SERVICE_PORT",
        "MQTT_PORT_1883_TCP",
        "LANG",
        "HOME",
        "TCP_PORT",
    ];
    assert_eq!(unknown_variables(others.map(OsString::from)), Vec::<String>::new());
}

#[test]
fn the_echo_server_is_used_only_without_a_configured_server() {
    let echo = Arc::new("ws://127.0.0.1:4/".parse().unwrap());
    for (text, stands_in) in [
        ("{}", true),
        (r#"{"websocket":{"production_servers":["ws://a"]}}"#, false),
        (r#"{"websocket":{"development_servers":["ws://a"]}}"#, false),
    ] {
        let path = temporary("gateway.json", text.as_bytes());
        let mut source = Source::new(Some(path.clone()), None, |_| None);
        assert_eq!(source.path(), Some(path.as_path()));
        assert!(!source.load().unwrap().websocket.echo);
        source.set_echo(Arc::clone(&echo));
        let config = source.load().unwrap();
        assert_eq!(config.websocket.echo, stands_in, "{text}");
        assert_eq!(config.websocket.production.contains(&echo), stands_in, "{text}");
    }
}

#[test]
fn the_file_is_the_one_of_the_command_line_then_of_the_environment() {
    let named = |name: &str| (name == "CONFIG_FILE").then(|| OsString::from("environment.json"));
    let path = |config: Option<&str>| {
        let source = Source::new(config.map(PathBuf::from), None, named);
        source.path().map(|path| path.display().to_string())
    };
    assert_eq!(path(Some("argument.json")).as_deref(), Some("argument.json"));
    assert_eq!(path(None).as_deref(), Some("environment.json"));
}

const NODE: &str = r#"{
    "production": { "chat_servers": ["ws://127.0.0.1:8000/xiaozhi/v1/?from=mqtt_gateway", "http://b:8080", "HTTPS://c/x"] },
    "development": { "chat_servers": ["ws://d:8180"], "mac_addresss": ["aa:bb:cc:dd:ee:ff", "your-mac", 7] },
    "debug": true,
    "max_mqtt_payload_size": 8192,
    "mcp_client": {
        "capabilities": { "roots": {} },
        "client_info": { "name": "xiaozhi-mqtt-client", "version": "1.0.0" },
        "max_tools_count": 128
    },
    "backend_connect_timeout_ms": 2500
}"#;

#[test]
fn a_file_of_the_node_gateway_loads_unchanged() {
    let config = load(NODE).unwrap();
    let urls: Vec<_> = config.websocket.production.iter().map(|server| server.url.as_str()).collect();
    assert_eq!(urls, ["ws://127.0.0.1:8000/xiaozhi/v1/?from=mqtt_gateway", "ws://b:8080", "wss://c/x"]);
    assert_eq!(config.websocket.development[0].url, "ws://d:8180");
    assert_eq!(config.websocket.development_macs, ["aa:bb:cc:dd:ee:ff".parse().unwrap()]);
    // That file's limit would end the connection of a device with many tools; a variable of ours stays exact.
    assert_eq!((config.debug, config.mqtt.max_payload_size, config.mcp.max_tools_count), (true, 65_536, 128));
    let variable = [("MQTT_PROXY_MQTT_MAX_PAYLOAD_SIZE", "8192")];
    assert_eq!(load_with(NODE.as_bytes(), None, &variable).unwrap().mqtt.max_payload_size, 8192);
    let larger = load(&NODE.replace("8192", "100000")).unwrap();
    assert_eq!(larger.mqtt.max_payload_size, 100_000);
    assert_eq!(config.mcp.capabilities, r#"{"roots":{}}"#);
    assert_eq!(config.mcp.client_info, r#"{"name":"xiaozhi-mqtt-client","version":"1.0.0"}"#);
    // Without settings in file and environment: the Node.js gateway's defaults.
    assert_eq!((config.mqtt.port, config.udp.port, config.api.port), (1883, 1883, 8007));
    assert_eq!(config.udp.public_ip, PublicIp::Host("mqtt.xiaozhi.me".to_owned()));
    assert_eq!(
        config.unused_keys,
        ["development.mac_addresss[1]", "development.mac_addresss[2]", "backend_connect_timeout_ms"]
    );
    let warnings = config.warnings().join("\n");
    assert!(warnings.contains("PUBLIC_IP is not set") && warnings.contains("backend_connect_timeout_ms"));
    assert!(config.node_config.is_some_and(|node| node.env_file.is_none()));
}

#[test]
fn the_udp_port_of_the_node_gateway_is_its_mqtt_port_unless_it_is_set() {
    for (variables, expected) in [
        (vec![], (1883, 1883)),
        (vec![("MQTT_PORT", "2000")], (2000, 2000)),
        (vec![("UDP_PORT", "8884")], (1883, 8884)),
        (vec![("MQTT_PORT", "2000"), ("UDP_PORT", "")], (2000, 2000)),
    ] {
        let config = load_with(NODE.as_bytes(), None, &variables).unwrap();
        assert_eq!((config.mqtt.port, config.udp.port), expected, "{variables:?}");
    }
    let ours = load_with(br#"{"mqtt":{"port":2000}}"#, None, &[]).unwrap();
    assert_eq!(ours.udp.port, 8884);
}

#[test]
fn falsy_values_count_as_absent_in_a_node_file() {
    let text = r#"{"production":{"chat_servers":["ws://a"]},"development":null,"debug":0,"max_mqtt_payload_size":0,
        "mcp_client":{"capabilities":null,"max_tools_count":0}}"#;
    let (config, bare) =
        (load(text).unwrap(), load(r#"{"production":{"chat_servers":["ws://a"]}}"#).unwrap());
    assert_eq!(config, bare);
}

#[test]
fn the_file_format_is_detected_by_its_keys() {
    for name in ["mqtt.json", "gateway.json"] {
        for (text, is_node) in [
            ("{}", true),
            (r#"{"debug":true}"#, true),
            (r#"{"mqtt":{}}"#, false),
            (r#"{"logging":{}}"#, false),
        ] {
            let folder = temporary(&format!("{name}.folder"), b"").with_extension("d");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), text).unwrap();
            let config = Source::new(Some(folder.join(name)), None, |_| None).load().unwrap();
            assert_eq!(config.node_config.is_some(), is_node && name == "mqtt.json", "{name}: {text}");
        }
    }
    for (text, is_node) in [
        ("{}", false),
        (r#"{"debug":true}"#, false),
        (r#"{"production":{}}"#, true),
        (r#"{"development":{}}"#, true),
        (r#"{"mcp_client":{}}"#, true),
        (r#"{"max_mqtt_payload_size":1}"#, true),
        (r#"{"mqtt":{}}"#, false),
    ] {
        assert_eq!(load(text).unwrap().node_config.is_some(), is_node, "{text}");
    }
    let mixed = load(r#"{"mqtt":{},"production":{}}"#).unwrap_err();
    assert!(mixed.starts_with("FILE: production: found an unknown key in the file"), "{mixed}");
}

#[test]
fn a_bad_node_file_is_refused_with_its_field() {
    for (text, expected) in [
        (
            r#"{"production":{"chat_servers":"ws://a"}}"#,
            r#"FILE: production.chat_servers: found "ws://a", allowed: a list of chat servers"#,
        ),
        (
            r#"{"production":{"chat_servers":["ftp://a"]}}"#,
            r#"FILE: production.chat_servers[0]: found "ftp://a", allowed: a ws:// or wss:// URL"#,
        ),
        (r#"{"production":[]}"#, "FILE: production: found an array, allowed: an object"),
        (
            r#"{"max_mqtt_payload_size":"8192"}"#,
            r#"FILE: max_mqtt_payload_size: found "8192", allowed: a whole"#,
        ),
        (r#"{"production":{"chat_servers":["ws://a",,]}}"#, "FILE: line 1, column 41: not JSON: "),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

/// Files as people write them, each with the MQTT port it sets, or with the error it gets.
#[test]
fn thirty_files_as_people_write_them() {
    let cases: [(&str, Result<u16, &str>); 32] = [
        // What is read: comments and trailing commas anywhere, and whatever editors put around it.
        ("{}", Ok(1883)),
        ("\u{feff}{\r\n  \"mqtt\": { \"port\": 1 }\r\n}\r\n", Ok(1)),
        ("// mine\n{\"mqtt\": {\"port\": 2}}", Ok(2)),
        ("{\"mqtt\": {\"port\": 3}} // the end", Ok(3)),
        ("{\"mqtt\": {\"port\": 4 // 端口\n}}", Ok(4)),
        ("/* 多行\n 注释 */{\"mqtt\": {/**/\"port\"/* a */:/* b */5/***/}}", Ok(5)),
        ("{\"mqtt\": {\"port\": 6,},}", Ok(6)),
        ("{\"mqtt\": {\"port\": 7, // last\n /* really */ }\n,\n}", Ok(7)),
        (
            r#"{"mqtt": {"port": 8}, "websocket": {"production_servers": ["ws://a", ], "development_servers": []}}"#,
            Ok(8),
        ),
        // What looks like a comment or a comma in a string is none.
        (r#"{"mqtt": {"port": 9}, "websocket": {"production_servers": ["ws://a//b/*c*/,"]}}"#, Ok(9)),
        (r#"{"mqtt": {"port": 10, "signature_key": "\"//,}"}}"#, Ok(10)),
        ("{\"production\": {\"chat_servers\": [\"ws://a\",], /* x */},} // Node.js", Ok(1883)),
        // What is refused, with what it is.
        ("", Err("FILE: the file is empty; ")),
        ("\u{feff}", Err("FILE: the file is empty; ")),
        (" \r\n\t\n", Err("FILE: the file is empty; ")),
        ("// nothing but a remark\n", Err("FILE: the file is empty; ")),
        (
            "{“mqtt”: {}}",
            Err(
                "FILE: line 1, column 2: not JSON: key must be a string; the line holds the typographic quote “",
            ),
        ),
        (
            "{\n\"mqtt”: {}}",
            Err(
                "FILE: line 2, column 13: not JSON: EOF while parsing a string; the line holds the typographic quote ”",
            ),
        ),
        (
            "{\"mqtt\": ‘x’}",
            Err("FILE: line 1, column 10: not JSON: expected value; the line holds the typographic quote ‘"),
        ),
        (
            "{\"debug\": ＂x＂}",
            Err("FILE: line 1, column 11: not JSON: expected value; the line holds the typographic quote ＂"),
        ),
        ("{'mqtt': {}}", Err("FILE: line 1, column 2: not JSON: key must be a string")),
        ("{mqtt: {}}", Err("FILE: line 1, column 2: not JSON: key must be a string")),
        ("# remark\n{}", Err("FILE: line 1, column 1: not JSON: expected value")),
        // Positions are those of the file, whatever comments stand before.
        (
            "{ /* 一\n二 */ // 三\n\"mqtt\": {\"port\": 1x}}",
            Err("FILE: line 3, column 19: not JSON: expected `,` or `}`"),
        ),
        ("{\"mqtt\": {,}}", Err("FILE: line 1, column 11: not JSON: key must be a string")),
        ("{\"mqtt\": {\"port\": 1,,}}", Err("FILE: line 1, column 21: not JSON: key must be a string")),
        (
            r#"{"websocket": {"production_servers": [,]}}"#,
            Err("FILE: line 1, column 39: not JSON: expected value"),
        ),
        ("{\"mqtt\": {\"port\": 0x10}}", Err("FILE: line 1, column 20: not JSON: expected `,` or `}`")),
        ("{\"mqtt\": {\"port\": +1}}", Err("FILE: line 1, column 19: not JSON: expected value")),
        ("{\"mqtt\": {\"port\": 1 /* open }}", Err("FILE: line 1, column 21: not JSON: expected `,` or `}`")),
        ("{\"mqtt\": {\"port\": 1}},", Err("FILE: line 1, column 22: not JSON: trailing characters")),
        ("{\"mqtt\": {\"port\": 1}", Err("FILE: line 1, column 20: not JSON: EOF")),
    ];
    for (text, expected) in cases {
        match (load(text), expected) {
            (Ok(config), Ok(port)) => assert_eq!(config.mqtt.port, port, "{text}"),
            (Err(error), Err(start)) => assert!(error.starts_with(start), "{error}\nfor {text}"),
            (found, _) => panic!("{found:?}, expected {expected:?} for {text}"),
        }
    }
    let digits = r#"{"mcp":{"client_info":{"n":18446744073709551615,"m":0.12345678901234568,/* all */},}}"#;
    assert_eq!(
        load(digits).unwrap().mcp.client_info,
        r#"{"m":0.12345678901234568,"n":18446744073709551615}"#
    );
    let variable = [("MQTT_PROXY_MCP_CAPABILITIES", "{\"a\": {}, /* none */}")];
    assert_eq!(load_with(b"{}", None, &variable).unwrap().mcp.capabilities, r#"{"a":{}}"#);
}

#[test]
fn a_secret_with_quotes_blanks_or_a_remark_is_used_as_it_is_and_warned_of() {
    let hash = "holds a blank and #";
    let (quote, blank) = ("begins or ends with a quote", "begins or ends with a blank");
    for (secret, parts) in [
        ("a-Good-Key-of-732201", vec![]),
        ("a Good Key of 732201", vec![]),
        ("a-Good-Key#732201", vec![]),
        ("it's-a-Good\"Key-732201", vec![]),
        ("\"a-Good-Key-732201\"", vec![quote]),
        ("'a-Good-Key-732201", vec![quote]),
        ("a-Good-Key-732201`", vec![quote]),
        ("“a-Good-Key-732201”", vec![quote]),
        (" a-Good-Key-732201", vec![blank]),
        ("a-Good-Key-732201\r", vec![blank]),
        ("a-Good-Key-732201\t", vec![blank]),
        ("a-Good-Key-732201 # 密钥", vec![hash]),
        ("a-Good-Key-732201\t#remark", vec![hash]),
        ("\"a-Good-Key-732201\" # remark ", vec![quote, blank, hash]),
    ] {
        let in_file = serde_json::json!({"websocket": {"server_secret": secret}}).to_string();
        let secret_file = temporary("secret", secret.trim_end_matches('\r').as_bytes());
        for (file, variables, name) in [
            (in_file.as_str(), vec![], "gateway.json: websocket.server_secret"),
            ("{}", vec![("SERVER_SECRET", secret)], "environment: SERVER_SECRET"),
            (
                in_file.as_str(),
                vec![("MQTT_PROXY_WEBSOCKET_SERVER_SECRET", secret)],
                "environment: MQTT_PROXY_WEBSOCKET_SERVER_SECRET",
            ),
            (
                "{}",
                vec![("SERVER_SECRET_FILE", secret_file.to_str().unwrap())],
                "environment: SERVER_SECRET_FILE",
            ),
        ] {
            if name.ends_with("_FILE") && secret.ends_with('\r') {
                continue;
            }
            let config = load_with(file.as_bytes(), None, &variables).unwrap();
            assert_eq!(config.websocket.secret, Secret::new(secret), "{name}");
            let warnings = config.warnings();
            let doubts: Vec<_> = warnings.iter().filter(|warning| warning.contains(name)).collect();
            assert_eq!(doubts.len(), usize::from(!parts.is_empty()), "{secret:?} {warnings:#?}");
            for warning in doubts {
                assert_eq!(
                    warning.matches(" and ").count(),
                    parts.len() + usize::from(parts.contains(&hash)),
                    "{warning}"
                );
                assert!(
                    parts.iter().all(|part| warning.contains(part)) && !warning.contains("732201"),
                    "{warning}"
                );
            }
        }
    }
    let keys =
        [("MQTT_PROXY_MQTT_PREVIOUS_SIGNATURE_KEYS", r#"["fine", "'quoted'"]"#), ("MQTT_SIGNATURE_KEY", "k")];
    let warnings = load_with(b"{}", None, &keys).unwrap().warnings();
    assert_eq!(
        warnings.iter().filter(|warning| warning.contains("_KEYS begins or ends with a quote")).count(),
        1
    );
}

#[test]
fn the_variables_of_forks_bind_what_they_name() {
    let hosts = [
        ("MQTT_HOST", "127.0.0.2"),
        ("UDP_HOST", "127.0.0.3"),
        ("HTTP_HOST", "127.0.0.4"),
        ("HTTP_PORT", "8"),
    ];
    let config = load_with(b"{}", None, &hosts).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!((config.mqtt.host, config.udp.host), (ip("127.0.0.2"), ip("127.0.0.3")));
    assert_eq!((config.api.host, config.api.port), (Some(ip("127.0.0.4")), 8));
    // This gateway's own names win.
    let both = [hosts[2], hosts[3], ("API_HOST", "::1"), ("API_PORT", "9")];
    let config = load_with(b"{}", None, &both).unwrap();
    assert_eq!((config.api.host, config.api.port), (Some(ip("::1")), 9));
    let error = load_with(b"{}", None, &[("UDP_HOST", "gateway")]).unwrap_err();
    assert!(
        error.starts_with("environment: UDP_HOST: found \"gateway\", allowed: an IPv4 or IPv6"),
        "{error}"
    );
}

#[test]
fn a_public_address_of_a_sample_is_warned_of_whoever_set_it() {
    for (public_ip, part) in [
        ("mqtt.xiaozhi.me", "public XiaoZhi service"),
        ("host.docker.internal", "cannot resolve"),
        ("your-server.com", "placeholder"),
        ("gateway", "without a dot"),
        ("192.0.2.1", "for examples"),
    ] {
        let file = format!(r#"{{"udp":{{"public_ip":"{public_ip}"}}}}"#);
        let configs = [
            load(&file),
            load_with(b"{}", None, &[("PUBLIC_IP", public_ip)]),
            load_with(NODE.as_bytes(), None, &[("PUBLIC_IP", public_ip)]),
        ];
        for config in configs {
            let warnings = config.unwrap().warnings();
            let found: Vec<_> =
                warnings.iter().filter(|warning| warning.starts_with("udp.public_ip: ")).collect();
            assert!(found.len() == 1 && found[0].contains(part), "{warnings:#?}");
        }
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let text = r#"{"mqtt":{"port":"x","prt":1},"websocket":{"production_servers":["http://a","ws://b","c"],"insecure":1},"x":0}"#;
    let path = temporary("gateway.json", text.as_bytes());
    let source = Source::new(Some(path.clone()), None, |name| (name == "UDP_PORT").then(|| "-1".into()));
    let (_, errors) = source.load_with_errors();
    fs::remove_file(&path).unwrap();
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let parts =
        ["mqtt.port", "mqtt.prt", "_servers[0]", "_servers[2]", "websocket.insecure", ": x: ", "UDP_PORT"];
    assert_eq!(errors.len(), parts.len(), "{errors:#?}");
    for (error, part) in errors.iter().zip(parts) {
        assert!(error.contains(part), "{error}");
    }
}
