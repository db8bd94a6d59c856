//! Checks of the settings that need no network.

use std::path::Path;

use super::report::Finding;
use crate::config::{Config, PublicIp};
use crate::net::mqtt::certificate::Certificate;
use crate::tools::step_report::StepState;

/// A device's list of tools takes up to 8,000 bytes and its envelopes some hundred more; a packet over the limit costs the
/// device its connection.
const MIN_PAYLOAD_SIZE: usize = 16 * 1024;

pub(super) fn check_settings(config: &Config) -> Vec<Finding> {
    let mut findings = vec![servers(config), signature_key(config), payload_limit(config)];
    let plain = if config.mqtt.plain { format!("MQTT {}, ", config.mqtt.port) } else { String::new() };
    let (udp, api) = (config.udp.port, config.api.port);
    let ports = match config.ota.enabled {
        true => format!("{plain}UDP {udp}, management API {api}, OTA {}", config.ota.port),
        false => format!("{plain}UDP {udp}, management API {api}"),
    };
    findings.push(Finding::new("ports", StepState::Ok, ports));
    let (mqtt, api) = (&config.mqtt.tls, &config.api.tls);
    let devices = Some(&config.udp.public_ip);
    findings.extend(certificate("TLS for devices", "mqtt.tls", mqtt.files(), mqtt.port, devices));
    findings.extend(certificate("TLS of the management API", "api.tls", api.files(), config.api.port, None));
    // The key and the address have rows of their own.
    let told = ["mqtt.signature_key", "udp.public_ip"];
    for warning in config.warnings() {
        // So does each chat server.
        let about_server = warning.starts_with("ws://") || warning.starts_with("wss://");
        if !about_server && !told.iter().any(|name| warning.starts_with(name)) {
            findings.push(Finding::new("configuration", StepState::Warn, warning));
        }
    }
    findings
}

fn servers(config: &Config) -> Finding {
    let websocket = &config.websocket;
    let (production, development) = (websocket.production.len(), websocket.development.len());
    if config.servers().next().is_none() {
        let is_node = config.node_config.is_some();
        let key = if is_node { "production.chat_servers" } else { "websocket.production_servers" };
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
    devices: Option<&PublicIp>,
) -> Vec<Finding> {
    let Some((cert_file, key_file)) = files else { return Vec::new() };
    let certificate = match Certificate::load(cert_file, key_file, devices) {
        Ok(certificate) => certificate,
        Err(error) => return vec![Finding::new(name, StepState::Fail, format!("{section}.{error}"))],
    };
    let Some(info) = certificate.info else {
        return vec![Finding::new(name, StepState::Ok, format!("port {port}"))];
    };
    if info.warnings.is_empty() {
        let detail = format!("port {port}, certificate for {}, valid until {}", info.names, info.expires.0);
        return vec![Finding::new(name, StepState::Ok, detail)];
    }
    let finding = |(index, warning)| match info.expired && index == 0 {
        false => Finding::new(name, StepState::Warn, warning),
        true => Finding::new(name, StepState::Fail, warning)
            .with_advice("renew it; the gateway takes the new one from the same files by itself"),
    };
    info.warnings.into_iter().enumerate().map(finding).collect()
}

fn payload_limit(config: &Config) -> Finding {
    let size = config.mqtt.max_payload_size;
    if size >= MIN_PAYLOAD_SIZE {
        return Finding::new("payload limit", StepState::Ok, format!("{size} bytes"));
    }
    Finding::new("payload limit", StepState::Warn, format!("{size} bytes is too small"))
        .with_advice("a device's list of tools takes up to 8,000 bytes and its envelope, and a longer packet costs the device its connection")
        .with_advice("set mqtt.max_payload_size to 65536, the default")
}
