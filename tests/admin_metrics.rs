//! `/metrics`, read by an independent parser and compared with what happened; and the Grafana dashboard.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::SimulatedDevice;
use prometheus_parse::{Scrape, Value};
use support::TIMEOUT;
use support::admin::{Fixture, TOKEN, fixture};

fn scrape(fixture: &Fixture) -> (String, Scrape) {
    let (status, text) = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN));
    assert_eq!(status, 200);
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    (text, scrape)
}

/// The value of a counter or gauge with these labels; the sum of all, without.
fn labelled_value(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&prometheus_parse::Sample| {
        sample.metric == name && labels.iter().all(|(label, of)| sample.labels.get(label) == Some(of))
    };
    let mut found = scrape.samples.iter().filter(fits).peekable();
    assert!(found.peek().is_some(), "{name} {labels:?}");
    found
        .map(|sample| match sample.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => value,
            ref other => panic!("{name}: {other:?}"),
        })
        .sum()
}

/// The count of a histogram, whose form is checked.
fn unlabelled_value(scrape: &Scrape, name: &str) -> f64 {
    let sample = scrape.samples.iter().find(|sample| sample.metric == name).unwrap();
    let Value::Histogram(buckets) = &sample.value else { panic!("{sample:?}") };
    assert!(
        buckets.len() > 5
            && buckets
                .windows(2)
                .all(|pair| { pair[0].less_than < pair[1].less_than && pair[0].count <= pair[1].count }),
        "{buckets:?}"
    );
    let last = buckets.last().unwrap();
    assert_eq!(last.less_than, f64::INFINITY);
    assert_eq!(labelled_value(scrape, &format!("{name}_count"), &[]), last.count);
    last.count
}

fn scrape_until(fixture: &Fixture, wanted: impl Fn(&Scrape) -> bool) -> Scrape {
    let end = Instant::now() + TIMEOUT;
    loop {
        let (text, scrape) = scrape(fixture);
        if wanted(&scrape) {
            return scrape;
        }
        assert!(Instant::now() < end, "{text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn metrics_match_what_happened() {
    let fixture = fixture(|_| {});
    let (_, before) = scrape(&fixture);
    assert_eq!(labelled_value(&before, "gateway_devices_online", &[]), 0.0);
    assert_eq!(labelled_value(&before, "gateway_calls", &[]), 0.0);

    let mut device = fixture.device("aa:bb:cc:dd:ee:01");
    let mut call = device.call().unwrap();
    for _ in 0..10 {
        call.send(0, b"\x08n Opus packet").unwrap();
        assert!(call.receive(TIMEOUT).unwrap().is_some());
    }
    device.send_text("no JSON").unwrap();
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    other.send_to(&[1; 20], fixture.gateway.addresses().udp).unwrap();
    other.send_to(&[], fixture.gateway.addresses().udp).unwrap();

    let during = scrape_until(&fixture, |scrape| {
        labelled_value(scrape, "gateway_audio_discarded_total", &[("reason", "unknown_ssrc")]) == 2.0
            && labelled_value(scrape, "gateway_bad_texts_total", &[("from", "device")]) == 1.0
    });
    for (name, labels, expected) in [
        ("gateway_devices_online", &[][..], 1.0),
        ("gateway_logins_total", &[], 1.0),
        ("gateway_mqtt_connections_total", &[], 1.0),
        ("gateway_calls", &[("state", "live")], 1.0),
        ("gateway_calls", &[], 1.0),
        ("gateway_calls_ended_total", &[], 0.0),
        ("gateway_dials_total", &[], 1.0),
        ("gateway_dials_opened_total", &[], 1.0),
        ("gateway_dials", &[], 0.0),
        ("gateway_audio_packets_total", &[("direction", "up")], 10.0),
        ("gateway_audio_packets_total", &[("direction", "down")], 10.0),
        ("gateway_audio_bytes_total", &[("direction", "up")], 140.0),
        ("gateway_datagrams_total", &[("outcome", "received")], 12.0),
        ("gateway_datagrams_total", &[("outcome", "sent")], 10.0),
        ("gateway_queue_length", &[], 0.0),
        ("gateway_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    ] {
        assert_eq!(labelled_value(&during, name, labels), expected, "{name} {labels:?}");
    }
    assert_eq!(unlabelled_value(&during, "gateway_hello_to_reply_seconds"), 1.0);
    assert!(unlabelled_value(&during, "gateway_turn_seconds") > 10.0);
    #[cfg(target_os = "linux")]
    {
        assert!(labelled_value(&during, "process_resident_memory_bytes", &[]) > 1e5);
        assert!(labelled_value(&during, "process_open_fds", &[]) > 5.0);
        assert!(labelled_value(&during, "process_max_fds", &[]) > 5.0);
        assert!(labelled_value(&during, "process_start_time_seconds", &[]) > 1.7e9);
    }

    device.goodbye(&call).unwrap();
    let after = scrape_until(&fixture, |scrape| labelled_value(scrape, "gateway_calls", &[]) == 0.0);
    assert_eq!(labelled_value(&after, "gateway_calls_ended_total", &[("reason", "device_goodbye")]), 1.0);
    assert_eq!(labelled_value(&after, "gateway_calls_ended_total", &[]), 1.0);
    // A call's counts are kept after its end.
    assert_eq!(labelled_value(&after, "gateway_audio_packets_total", &[("direction", "up")]), 10.0);
}

#[test]
fn refused_devices_and_failed_servers_are_counted_by_reason() {
    let fixture = fixture(|config| {
        // A port that was free a moment ago: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        config.websocket.production =
            vec![std::sync::Arc::new(format!("ws://127.0.0.1:{port}/").parse().unwrap())];
    });
    let wrong =
        mqtt_websocket_proxy::tools::device::Login::new("aa:bb:cc:dd:ee:02".parse().unwrap(), Some(b"wrong"));
    assert!(SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &wrong, TIMEOUT).is_err());
    let mut device = fixture.device("aa:bb:cc:dd:ee:01");
    let _ = device.call();
    let scrape = scrape_until(&fixture, |scrape| {
        labelled_value(scrape, "gateway_calls_ended_total", &[("reason", "no_server")]) == 1.0
    });
    assert_eq!(labelled_value(&scrape, "gateway_server_failures_total", &[("stage", "connect")]), 1.0);
    assert_eq!(labelled_value(&scrape, "gateway_server_failures_total", &[]), 1.0);
    assert_eq!(labelled_value(&scrape, "gateway_logins_refused_total", &[]), 1.0);
    assert_eq!(unlabelled_value(&scrape, "gateway_hello_to_reply_seconds"), 0.0);
}

#[test]
fn every_metric_has_a_type_a_help_text_and_bounded_labels() {
    let fixture = fixture(|_| {});
    let devices: Vec<_> = (0..20).map(|n| fixture.device(&format!("aa:bb:cc:dd:ee:{n:02x}"))).collect();
    let (text, scrape) = scrape(&fixture);
    let mut names = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(names.insert(name.to_owned()), "{name} twice");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(name.starts_with("gateway_") || name.starts_with("process_"), "{name}");
    }
    assert!(!text.contains("aa:bb") && !text.contains("aa_bb"), "no device is a label");
    assert!(scrape.samples.len() < 200, "{}", scrape.samples.len());
    drop(devices);
}

/// Only with `cluster.redis`.
const CLUSTER_METRICS: &str = include_str!("../src/net/admin/collect_cluster.rs");

const WITH_TLS_ONLY: [&str; 2] = [
    "gateway_tls_certificate_expires_timestamp_seconds",
    "gateway_api_tls_certificate_expires_timestamp_seconds",
];

#[test]
fn the_grafana_dashboard_queries_existing_metrics_only() {
    let fixture = fixture(|_| {});
    let text = scrape(&fixture).0;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/grafana.json");
    let dashboard: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(
            panel["title"].is_string() && panel["gridPos"]["w"].as_u64().is_some_and(|w| w <= 24),
            "{panel}"
        );
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            for name in words.filter(|word| word.starts_with("gateway_") || word.starts_with("process_")) {
                let exists = text.lines().any(|line| line.starts_with(name));
                let of_cluster =
                    CLUSTER_METRICS.contains(&format!("\"{}\"", name.trim_end_matches("_bucket")));
                assert!(exists || of_cluster || WITH_TLS_ONLY.contains(&name), "{name} in {expression}");
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked}");
}
