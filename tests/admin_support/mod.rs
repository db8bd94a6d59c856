//! What the tests of the management API share: a gateway with an echo chat server, and two HTTP clients.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, Secret, Source};
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use mqtt_websocket_proxy::tools::echo::EchoServer;
use serde_json::Value;

/// What must happen, happens by then.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// A key that may guard the API.
pub const KEY: &str = "A-good-Key-9";
pub const TOKEN: &str = "a-static-token-for-tests";

/// A gateway whose chat server echoes.
pub struct Fixture {
    pub gateway: Running,
    pub echo: EchoServer,
    pub api: SocketAddr,
}

/// On loopback and free ports, with a static token, and what `change` makes of it.
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

    /// A device of this client id.
    pub fn device_with_client_id(&self, client_id: &str) -> SimulatedDevice {
        let login = Login::signed(client_id.to_owned(), "e30=".to_owned(), Some(KEY.as_bytes()));
        SimulatedDevice::connect(self.gateway.addresses().mqtt, &login, TIMEOUT).unwrap()
    }

    /// A call by an HTTP client that is not ours, with the static token.
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
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .build()
            .into();
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.api));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = match body {
            Some(body) => {
                agent.run(request.header("Content-Type", "application/json").body(body.to_owned()).unwrap())
            }
            // A client that is given no body at all sends a chunked one of no length.
            None if method == "POST" => agent.run(request.body(String::new()).unwrap()),
            None => agent.run(request.body(()).unwrap()),
        };
        let mut response = response.unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Calls until the answer is as wanted: for what another socket brings about.
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

/// A bare connection to the API.
pub struct RawClient {
    pub stream: TcpStream,
    inbox: Vec<u8>,
}

/// One answer, read byte for byte.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

impl RawClient {
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, inbox: Vec::new() }
    }

    /// One request on a connection of its own.
    pub fn round_trip(addr: SocketAddr, request: &str) -> Reply {
        let mut raw = Self::open(addr);
        raw.send(request);
        raw.reply().unwrap()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The next answer; `None` at the end of the connection.
    pub fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(end) = self.inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.inbox[..end].to_vec()).unwrap();
                let mut reply = Reply { status: head[9..12].parse().unwrap(), head, body: String::new() };
                let length: usize = reply.field("content-length").unwrap_or("0").parse().unwrap();
                while self.inbox.len() < end + 4 + length {
                    assert!(self.read_more() > 0, "cut off");
                }
                let rest = self.inbox.split_off(end + 4 + length);
                reply.body = String::from_utf8(self.inbox[end + 4..].to_vec()).unwrap();
                self.inbox = rest;
                return Some(reply);
            }
            if self.read_more() == 0 {
                assert!(self.inbox.is_empty(), "{:?}", String::from_utf8_lossy(&self.inbox));
                return None;
            }
        }
    }

    fn read_more(&mut self) -> usize {
        let mut chunk = [0; 4096];
        let n = match self.stream.read(&mut chunk) {
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error}"),
        };
        self.inbox.extend_from_slice(&chunk[..n]);
        n
    }
}

/// A request with the static token.
pub fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
