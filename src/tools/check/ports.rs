//! Whether the gateway's ports can be opened, and who has them.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use super::report::Finding;
use crate::config::Config;
use crate::net::event_loop::tcp;
use crate::tools::health;
use crate::tools::step_report::StepState;

/// The title of the gateway's status page.
const PAGE_TITLE: &str = "<title>mqtt-websocket-proxy</title>";

/// One finding for each port that cannot be opened.
pub(super) fn check_ports(config: &Config) -> Vec<Finding> {
    let Config { mqtt, udp, api, ota, .. } = config;
    let tcp_ports = [
        mqtt.plain.then_some(("MQTT", "mqtt.port", mqtt.host, mqtt.port)),
        mqtt.tls.files().map(|_| ("MQTT over TLS", "mqtt.tls.port", mqtt.host, mqtt.tls.port)),
        api.enabled.then(|| ("management API", "api.port", config.api_host(), api.port)),
        ota.enabled.then_some(("OTA", "ota.port", ota.host, ota.port)),
    ];
    let tcp_ports = tcp_ports.into_iter().flatten().map(|(what, key, host, port)| {
        let opened = tcp::listen(SocketAddr::new(host, port), false).map(drop);
        (format!("TCP port {port} ({what})"), key, opened)
    });
    let audio = UdpSocket::bind((udp.host, udp.port)).map(drop);
    let ports = tcp_ports.chain([(format!("UDP port {} (audio)", udp.port), "udp.port", audio)]);
    ports.filter_map(|(port, key, opened)| Some(finding(&port, key, opened.err()?.kind(), config))).collect()
}

fn finding(port: &str, key: &str, error: ErrorKind, config: &Config) -> Finding {
    let warn = |what: String| Finding::new("ports", StepState::Warn, what);
    if error != ErrorKind::AddrInUse {
        return warn(format!("{port} cannot be opened here: {error}"));
    }
    if gateway_runs(config) {
        return Finding::new(
            "ports",
            StepState::Ok,
            format!("{port} is in use by this gateway, which runs already"),
        );
    }
    let by =
        if config.api.enabled { "another program" } else { "another program, or this gateway runs already" };
    warn(format!("{port} is in use by {by}")).with_advice(format!(
        "stop that program before this gateway is started, or set {key} to another port"
    ))
}

/// Whether this program answers on the management port.
fn gateway_runs(config: &Config) -> bool {
    config.api.enabled
        && health::http_request(config, "GET", "/", None).is_ok_and(|answer| answer.contains(PAGE_TITLE))
}
