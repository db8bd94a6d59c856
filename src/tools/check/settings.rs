//! Checks of the settings that need no network.

use std::path::Path;

use super::report::Finding;
use crate::config::Config;
use crate::net::mqtt::certificate::Certificate;
use crate::tools::step_report::StepState;

/// A device's list of tools takes up to 8,000 bytes and its envelopes some hundred more; a packet over the limit costs the
/// device its connection.
const MIN_PAYLOAD_SIZE: usize = 16 * 1024;

pub(super) fn check_settings(config: &Config) -> Vec<Finding> {
    let mut findings = vec![servers(config), signature_key(config), payload_limit(config)];
    let plain = if config.mqtt.plain { format!("MQTT {}, ", config.mqtt.port) } else { String::new() };
    let ports = format!("{plain}UDP {}, management API {}", config.udp.port, config.api.port);
    findings.push(Finding::new("ports", StepState::Ok, ports));
    let (mqtt, api) = (&config.mqtt.tls, &config.api.tls);
    findings.extend(certificate("TLS for devices", "mqtt.tls", mqtt.files(), mqtt.port));
    findings.extend(certificate("TLS of the management API", "api.tls", api.files(), config.api.port));
    // The key and the address have rows of their own.
    let told = ["mqtt.signature_key", "udp.public_ip", "PUBLIC_IP"];
    for warning in config.warnings() {
        // So does each chat server.
        let about_server = warning.starts_with("ws://") || warning.starts_with("wss://");
        if !about_server && !told.iter().any(|name| warning.starts_with(name)) {
            findings.push(Finding::new("configuration", StepState::Warn, warning));
        }
    }
    findings
}

/// A key as the file that is checked calls it.
fn key_name(config: &Config, in_node_config: &'static str, own: &'static str) -> &'static str {
    if config.node_config.is_some() { in_node_config } else { own }
}

fn servers(config: &Config) -> Finding {
    let websocket = &config.websocket;
    let (production, development) = (websocket.production.len(), websocket.development.len());
    if config.servers().next().is_none() {
        let key = key_name(config, "production.chat_servers", "websocket.production_servers");
        let detail = "none is configured: the built-in echo server answers with the device's own voice";
        return Finding::new("chat servers", StepState::Warn, detail)
            .with_advice(format!("name yours in {key}"));
    }
    let routed: usize = websocket.routes.iter().map(|route| route.servers.len()).sum();
    let routes = if routed > 0 { format!(", {routed} on routes") } else { String::new() };
    let detail = format!("{production} for production, {development} for development{routes}");
    Finding::new("chat servers", StepState::Ok, detail)
}

fn signature_key(config: &Config) -> Finding {
    let name = "signature key";
    let rule = "take at least 8 characters, upper and lower case, without test, 1234, admin, password, qwerty, xiaozhi; \
                the console (server.mqtt_signature_key) must hold the same";
    match &config.mqtt.signature_key {
        None => {
            Finding::new(name, StepState::Warn, "not set: every device is accepted, whatever its password")
                .with_advice(format!("set MQTT_SIGNATURE_KEY or mqtt.signature_key: {rule}"))
        }
        Some(key) => match key.weakness() {
            Some(why) => {
                Finding::new(name, StepState::Warn, format!("too weak for the management API: it {why}"))
                    .with_advice(rule)
            }
            None => Finding::new(name, StepState::Ok, "set"),
        },
    }
}

fn certificate(
    name: &'static str,
    section: &str,
    files: Option<(&Path, &Path)>,
    port: u16,
) -> Option<Finding> {
    let (cert_file, key_file) = files?;
    let certificate = match Certificate::load(cert_file, key_file) {
        Ok(certificate) => certificate,
        Err(error) => return Some(Finding::new(name, StepState::Fail, format!("{section}.{error}"))),
    };
    let Some(facts) = certificate.info else {
        return Some(Finding::new(name, StepState::Ok, format!("port {port}")));
    };
    Some(match (facts.warnings.first(), facts.expired) {
        (None, _) => {
            let detail =
                format!("port {port}, certificate for {}, valid until {}", facts.names, facts.expires.0);
            Finding::new(name, StepState::Ok, detail)
        }
        (Some(doubt), false) => Finding::new(name, StepState::Warn, doubt.clone()),
        (Some(doubt), true) => Finding::new(name, StepState::Fail, doubt.clone())
            .with_advice("renew it; the gateway takes the new one from the same files by itself"),
    })
}

fn payload_limit(config: &Config) -> Finding {
    let size = config.mqtt.max_payload_size;
    if size >= MIN_PAYLOAD_SIZE {
        return Finding::new("payload limit", StepState::Ok, format!("{size} bytes"));
    }
    let key = key_name(config, "max_mqtt_payload_size", "mqtt.max_payload_size");
    Finding::new("payload limit", StepState::Warn, format!("{size} bytes is too small"))
        .with_advice("a device's list of tools takes up to 8,000 bytes and its envelope, and a longer packet costs the device its connection")
        .with_advice(format!("set {key} to 65536, the default"))
}
