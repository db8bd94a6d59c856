//! Several gateways that know each other through a real Redis server.
//!
//! Needs redis-server (`./setup.sh test` installs it); without it each test prints a line and passes.

#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::TIMEOUT;
use support::device::{Device, mac};
use support::gateway_with;
use support::http::{http_call, metric_sum};
use support::log_capture::LogCapture;
use support::process::Folder;
use support::redis::{Proxy, RedisServer, is_installed};

/// What docs/security.md says suffices.
const ACL: &str =
    "~p:* &p:* -@all +ping +set +get +mget +expire +pttl +eval +del +publish +subscribe +client|setname";

/// A gateway with this Redis.
fn gateway(url: &str, name: &str, change: impl FnOnce(&mut Config)) -> Running {
    gateway_with(&["ws://127.0.0.1:9"], |config| {
        config.cluster.redis = Some(url.parse().unwrap());
        config.cluster.name = Some(name.to_owned());
        config.cluster.prefix = "p".to_owned();
        change(config);
    })
}

/// Waits until what is asked for is as wanted, and returns it.
fn wait_until(ask: impl Fn() -> Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + TIMEOUT;
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "{answer}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The log lines about this Redis.
fn log_of(redis: &RedisServer) -> LogCapture {
    LogCapture::containing(format!("{}", redis.addr()))
}

fn key(number: u8) -> String {
    format!("p:device:{}", mac(number))
}

/// Waits until Redis has a record of the device, and returns it.
fn record(redis: &RedisServer, number: u8) -> String {
    redis.wait_for(&["GET", &key(number)], |reply| {
        reply.starts_with('$') && reply.contains(":c:") || reply.contains(":r:")
    })
}

fn is_connected(device: &mut Device) -> bool {
    device.mqtt.send(&[0xc0, 0]);
    device.mqtt.packet().first == 0xd0
}

#[test]
fn a_device_that_connects_to_another_gateway_is_closed_at_the_first_with_one_worker_and_with_several() {
    if !is_installed() {
        return;
    }
    for workers in [1, 3] {
        let redis = RedisServer::start();
        let mut log = log_of(&redis);
        let gateways = ["one", "two"].map(|name| {
            let gateway = gateway(&redis.url(), name, |config| config.workers = workers);
            log.wait_for_line(&format!("as {name}"));
            gateway
        });
        for number in 0..6 {
            let [one, two] = gateways.each_ref().map(|gateway| gateway.addresses().mqtt);
            let mut older = Device::connect(one, number);
            let first = record(&redis, number);
            let mut newer = Device::connect(two, number);
            older.mqtt.read_until_closed();
            assert_ne!(record(&redis, number), first);
            assert!(is_connected(&mut newer));
            // And back.
            let mut newest = Device::connect(one, number);
            newer.mqtt.read_until_closed();
            assert!(is_connected(&mut newest));
            newest.mqtt.send(&[0xe0, 0]);
            redis.wait_for(&["GET", &key(number)], |reply| reply == "$-1\r\n");
        }
    }
}

#[test]
fn the_api_lists_all_gateways_and_metrics_say_how_redis_is() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start();
    let mut log = log_of(&redis);
    let gateways = ["one", "two"].map(|name| {
        let gateway = gateway(&redis.url(), name, |_| {});
        log.wait_for_line(&format!("as {name}"));
        gateway
    });
    let api = gateways[0].addresses().api.unwrap();
    let list =
        || serde_json::from_str::<Value>(&http_call(api, "GET", "/api/gateways", None, None).1).unwrap();
    let _device = Device::connect(gateways[1].addresses().mqtt, 1);
    let both = wait_until(list, |list| list["gateways"][1]["devices"] == 1);
    assert_eq!(
        both["cluster"],
        json!({"state": "connected", "redis": redis.url(), "unreachableSeconds": null, "reason": null})
    );
    let [own, other] = [&both["gateways"][0], &both["gateways"][1]];
    assert_eq!((&own["name"], &own["self"], &own["devices"]), (&json!("one"), &json!(true), &json!(0)));
    assert_eq!((&other["name"], &other["self"]), (&json!("two"), &json!(false)));
    assert_eq!(other["mqtt"], gateways[1].addresses().mqtt.to_string());
    let metric = |name: &str| metric_sum(api, name, None);
    assert_eq!((metric("gateway_cluster_connected"), metric("gateway_cluster_peers")), (1.0, 1.0));
    assert!(metric("gateway_cluster_round_trip_seconds_count") >= 1.0);
    redis.kill();
    log.wait_for_line("cannot be used");
    log.wait_for_line("cannot be used");
    let alone = list();
    assert_eq!(alone["cluster"]["state"], "unreachable");
    assert!(!alone["cluster"]["reason"].as_str().unwrap().is_empty());
    assert_eq!(metric("gateway_cluster_connected"), 0.0);
}

#[test]
fn a_restart_of_redis_costs_no_device_its_connection_and_all_are_registered_again() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start();
    let mut log = log_of(&redis);
    let gateway = gateway(&redis.url(), "one", |_| {});
    log.wait_for_line("as one");
    let mut devices: Vec<_> =
        (0..5).map(|number| Device::connect(gateway.addresses().mqtt, number)).collect();
    (0..5).for_each(|number| _ = record(&redis, number));
    redis.kill();
    log.wait_for_line("cannot be used");
    assert!(devices.iter_mut().all(is_connected));
    devices.push(Device::connect(gateway.addresses().mqtt, 5));
    assert_eq!(log.count("cannot be used"), 0, "one line");
    redis.restart();
    log.wait_for_line("as one");
    for number in 0..6 {
        assert!(record(&redis, number).contains(":r:"), "{number}");
    }
    assert!(devices.iter_mut().all(is_connected));
}

#[test]
fn after_flushall_devices_are_registered_again() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start();
    let mut log = log_of(&redis);
    let gateway = gateway(&redis.url(), "one", |_| {});
    log.wait_for_line("as one");
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    record(&redis, 1);
    redis.command(&["FLUSHALL"]);
    assert!(record(&redis, 1).contains(":r:"));
    redis.wait_for(&["GET", "p:gateway:one"], |reply| reply.starts_with("$16"));
    assert!(is_connected(&mut device));
}

#[test]
fn without_redis_at_its_start_a_gateway_serves_alone_and_connects_when_it_is_there() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::stopped(&[]);
    let mut log = log_of(&redis);
    let gateway = gateway(&redis.url(), "one", |_| {});
    assert!(log.wait_for_line("cannot be used").contains("refused"));
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    assert!(is_connected(&mut device));
    redis.restart();
    log.wait_for_line("as one");
    record(&redis, 1);
}

#[test]
fn a_redis_that_stands_still_is_noticed_and_used_again_afterwards() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start();
    let mut log = log_of(&redis);
    let gateway = gateway(&redis.url(), "one", |_| {});
    log.wait_for_line("as one");
    redis.command(&["CLIENT", "PAUSE", "8000"]);
    assert!(log.wait_for_line("cannot be used").contains("no answer in 3 s"));
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    assert!(is_connected(&mut device));
    log.wait_for_line("as one");
    record(&redis, 1);
}

#[test]
fn a_subscription_that_delivers_nothing_is_made_anew() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.addr());
    let mut log = LogCapture::containing(proxy.addr.to_string());
    let url = format!("redis://{}", proxy.addr);
    let _one = gateway(&url, "one", |_| {});
    log.wait_for_line("as one");
    proxy.wedge.store(true, Ordering::SeqCst);
    assert!(log.wait_for_line("cannot be used").contains("delivered nothing for 6 s"));
    log.wait_for_line("as one");
}

#[test]
fn what_redis_refuses_is_said_in_its_words() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start_with(&["requirepass secret"]);
    for (login, error) in [("", "NOAUTH"), (":wrong@", "WRONGPASS"), ("nobody:secret@", "WRONGPASS")] {
        let mut log = log_of(&redis);
        let _gateway = gateway(&format!("redis://{login}{}", redis.addr()), "one", |_| {});
        let line = log.wait_for_line("cannot be used");
        assert!(line.contains(error) && !line.contains("wrong@"), "{line}");
    }
    let mut log = log_of(&redis);
    let _gateway = gateway(&format!("redis://:secret@{}", redis.addr()), "one", |_| {});
    assert!(log.wait_for_line("as one").contains("redis://:***@"));
}

#[test]
fn a_full_redis_is_tried_again() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start();
    let mut log = log_of(&redis);
    // The only client.
    let mut tcp = TcpStream::connect(redis.addr()).unwrap();
    let mut set = |clients: u32| {
        tcp.write_all(format!("CONFIG SET maxclients {clients}\r\n").as_bytes()).unwrap();
        tcp.read_exact(&mut [0; 5]).unwrap();
    };
    set(1);
    let _gateway = gateway(&redis.url(), "one", |_| {});
    log.wait_for_line("cannot be used");
    set(100);
    log.wait_for_line("as one");
}

#[test]
fn a_redis_without_memory_refuses_new_records_keeps_the_others_and_devices_log_in() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start();
    let mut log = LogCapture::containing("Redis refused a command");
    let gateway = gateway(&redis.url(), "one", |_| {});
    let _device = Device::connect(gateway.addresses().mqtt, 1);
    let before = record(&redis, 1);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    assert!(log.wait_for_line("OOM").contains("maxmemory"));
    assert!(is_connected(&mut device));
    assert_eq!(redis.command(&["GET", &key(2)]), "$-1\r\n");
    assert_eq!(record(&redis, 1), before);
}

#[test]
fn the_documented_permissions_suffice() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start_with(&[&format!("user gw on >secret {ACL}")]);
    let url = format!("redis://gw:secret@{}", redis.addr());
    let mut log = log_of(&redis);
    let gateways = [("one", "one"), ("two", "two"), ("two", "two-2")].map(|(name, named)| {
        let gateway = gateway(&url, name, |_| {});
        log.wait_for_line(&format!("as {named}"));
        gateway
    });
    let mut older = Device::connect(gateways[0].addresses().mqtt, 1);
    record(&redis, 1);
    let mut newer = Device::connect(gateways[1].addresses().mqtt, 1);
    older.mqtt.read_until_closed();
    redis.command(&["FLUSHALL"]);
    assert!(record(&redis, 1).contains(":r:"));
    assert!(is_connected(&mut newer));
    assert_eq!(redis.command(&["ACL", "LOG"]), "*0\r\n", "nothing was refused");
}

/// What `check` finds about Redis: state, text and advice.
fn check(url: &str) -> (String, String, String) {
    let config = json!({"cluster": {"redis": url, "prefix": "p"}, "websocket": {"production_servers": []}});
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    let output = folder.run("check -c gateway.json --json --timeout 20", &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = report["settings"].as_array().unwrap();
    let found = settings.iter().find(|finding| finding["name"] == "Redis").unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&found["state"]), text(&found["detail"]), text(&found["advice"][0]))
}

#[test]
fn check_tries_every_command_and_names_the_permission_that_is_missing() {
    if !is_installed() {
        return;
    }
    let mut users = vec![format!("user gw on >secret {ACL}")];
    let commands =
        ["ping", "set", "get", "mget", "expire", "eval", "del", "publish", "subscribe", "client|setname"];
    for (n, command) in commands.iter().enumerate() {
        users.push(format!("user without{n} on >secret {}", ACL.replace(&format!(" +{command}"), "")));
    }
    users.push(format!("user keys on >secret {}", ACL.replace("~p:", "~q:")));
    users.push(format!("user channels on >secret {}", ACL.replace("&p:", "&q:")));
    let redis = RedisServer::start_with(&users.iter().map(String::as_str).collect::<Vec<_>>());
    let check_as = |user: &str| check(&format!("redis://{user}:secret@{}", redis.addr()));
    let (state, detail, _) = check_as("gw");
    assert_eq!(state, "ok", "{detail}");
    assert!(detail.starts_with(&format!("redis://gw:***@{}/0 answers in ", redis.addr())), "{detail}");
    assert_eq!(redis.command(&["KEYS", "*"]), "*0\r\n", "nothing is left");
    for (n, command) in commands.iter().enumerate() {
        let (state, detail, advice) = check_as(&format!("without{n}"));
        let name = command.replace('|', " ").to_uppercase();
        assert!(state == "fail" && detail.contains(&name), "{command}: {detail}");
        assert_eq!(advice, format!("the user needs: {ACL}"), "{detail}");
    }
    for user in ["keys", "channels"] {
        let (state, detail, advice) = check_as(user);
        assert!(state == "fail" && detail.contains("NOPERM") && advice.contains(ACL), "{detail}");
    }
    let (state, detail, _) = check_as("nobody");
    assert!(state == "fail" && detail.contains("AUTH: WRONGPASS"), "{detail}");
    let (state, detail, _) = check(&RedisServer::stopped(&[]).url());
    assert!(state == "fail" && detail.contains("cannot be reached"), "{detail}");
}

#[test]
fn garbage_in_the_keyspace_and_on_the_channels_changes_nothing() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start();
    redis.command(&["SET", "p:gateway:one", "garbage"]);
    let mut log = log_of(&redis);
    let gateway = gateway(&redis.url(), "one", |_| {});
    log.wait_for_line("as one");
    redis.command(&["SET", &key(1), "garbage"]);
    redis.command(&["LPUSH", &key(2), "a list"]);
    let mut devices: Vec<_> =
        (1..4).map(|number| Device::connect(gateway.addresses().mqtt, number)).collect();
    record(&redis, 1);
    let run = redis.command(&["GET", "p:gateway:one"]);
    let channel = format!("p:to:{}", run.lines().nth(1).unwrap());
    for channel in ["p:all", &channel] {
        for payload in ["", "garbage", &"x".repeat(100_000), "\u{1}\u{3}\0\0\0\0\0\u{6}"] {
            assert_eq!(redis.command(&["PUBLISH", channel, payload]), ":1\r\n");
        }
    }
    record(&redis, 3);
    assert!(devices.iter_mut().all(is_connected));
    // Longer than anything that a gateway sends.
    redis.command(&["PUBLISH", &channel, &"x".repeat(1_000_000)]);
    log.wait_for_line("cannot be used");
    log.wait_for_line("as one");
    assert!(devices.iter_mut().all(is_connected));
}

#[test]
#[cfg(feature = "tls")]
fn a_redis_over_tls_is_verified_by_the_ca_file() {
    use support::tls::CertificateAuthority;
    if !is_installed() {
        return;
    }
    let authority = CertificateAuthority::new();
    let mut redis = RedisServer::stopped(&[]);
    let pair = authority.issue(&redis.addr().ip().to_string());
    let tls = redis.addr();
    redis.port = RedisServer::stopped(&[]).port;
    let cert = redis.write_file("cert.pem", &pair.certificate_pem());
    let key = redis.write_file("key.pem", &pair.key_pem());
    let ca = redis.write_file("ca.pem", &authority.pem());
    for setting in [
        format!("tls-port {}", tls.port()),
        format!("tls-cert-file {cert}"),
        format!("tls-key-file {key}"),
        format!("tls-ca-cert-file {ca}"),
        "tls-auth-clients no".to_owned(),
    ] {
        redis.set(&setting);
    }
    redis.restart();
    for (ca_file, expected) in [(None, "certificate verify failed"), (Some(ca), "as one")] {
        let mut log = LogCapture::containing(tls.to_string());
        let url = format!("rediss://{tls}");
        let gateway = gateway(&url, "one", |config| config.cluster.ca_file = ca_file.map(Into::into));
        log.wait_for_line(expected);
        gateway.stop(Duration::ZERO).unwrap();
    }
}
