//! Shared parts of the tests of the management API: a gateway with an echo chat server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, Secret, Source};
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use mqtt_websocket_proxy::tools::echo::EchoServer;
use serde_json::Value;

use super::TIMEOUT;
use super::http::{http_call, raw_request};
use super::mqtt::LEAVE_UNKNOWN_CALL;

/// A signature key that is strong enough for the API.
pub const KEY: &str = "A-good-Key-9";
pub const TOKEN: &str = "a-static-token-for-tests";

/// A gateway whose chat server echoes.
pub struct Fixture {
    pub gateway: Running,
    pub echo: EchoServer,
    pub api: SocketAddr,
}

/// Loopback, free ports and a static token; `change` adjusts it.
pub fn config(echo: &EchoServer, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    (config.mqtt.host, config.mqtt.port) = (loopback, 0);
    (config.udp.host, config.udp.port) = (loopback, 0);
    (config.api.host, config.api.port) = (Some(loopback), 0);
    config.api.token = Secret::new(TOKEN);
    config.mqtt.signature_key = Secret::new(KEY);
    config.mcp.enabled = false;
    config.websocket.production = vec![Arc::new(echo.url().parse().unwrap())];
    change(&mut config);
    config
}

pub fn fixture(change: impl FnOnce(&mut Config)) -> Fixture {
    fixture_with_source(None, change)
}

pub fn fixture_with_source(source: Option<Source>, change: impl FnOnce(&mut Config)) -> Fixture {
    let echo = EchoServer::start().unwrap();
    let gateway = Running::start(config(&echo, change), source).unwrap();
    let api = gateway.addresses().api.unwrap();
    Fixture { gateway, echo, api }
}

impl Fixture {
    pub fn device(&self, mac: &str) -> SimulatedDevice {
        let login = Login::new(mac.parse().unwrap(), Some(KEY.as_bytes()));
        SimulatedDevice::connect(self.gateway.addresses().mqtt, &login, TIMEOUT).unwrap()
    }

    /// A device with this client id.
    pub fn device_with_client_id(&self, client_id: &str) -> SimulatedDevice {
        let login = Login::signed(client_id.to_owned(), "e30=".to_owned(), Some(KEY.as_bytes()));
        SimulatedDevice::connect(self.gateway.addresses().mqtt, &login, TIMEOUT).unwrap()
    }

    /// A request with the static token.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        let (status, text) = self.request_with_token(method, path, body, Some(TOKEN));
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
    }

    pub fn request_with_token(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
        token: Option<&str>,
    ) -> (u16, String) {
        http_call(self.api, method, path, body, token)
    }

    /// Repeats a request until the condition holds.
    pub fn poll_until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + TIMEOUT;
        loop {
            let (_, answer) = self.request("GET", path, None);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "{answer}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// No text has arrived, except for the one that a slow test may get.
pub fn assert_no_text(device: &mut SimulatedDevice) {
    while let Some(text) = device.receive_text(Duration::from_millis(50)).unwrap() {
        assert_eq!(text, LEAVE_UNKNOWN_CALL);
    }
}

/// A request with the static token.
pub fn request(method: &str, path: &str, body: &str) -> String {
    raw_request(method, path, TOKEN, body)
}

/// The MAC of device `n`.
pub fn mac(n: u16) -> String {
    format!("aa:bb:cc:00:{:02x}:{:02x}", n >> 8, n & 255)
}
