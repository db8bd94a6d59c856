//! Several gateways, each a process of its own, that know each other through Redis.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::TIMEOUT;
use super::chat_server::ChatServer;
use super::device::Device;
use super::http::http_call;
use super::process::{Folder, Process};
use super::redis::RedisServer;

pub const TOKEN: &str = "a-token-of-the-service";

/// Gateways with one chat server.
pub struct Service {
    pub redis: RedisServer,
    pub server: ChatServer,
    pub gateways: Vec<Gateway>,
}

pub struct Gateway {
    pub process: Process,
    pub name: String,
    _folder: Folder,
}

impl Service {
    /// Gateways of these names, which know each other. `change` adjusts their configuration.
    pub fn start(names: &[&str], change: impl Fn(&mut Value)) -> Self {
        let (redis, server) = (RedisServer::start(), ChatServer::start());
        let gateways = names.iter().map(|name| Gateway::start(name, &redis, &server, &change)).collect();
        let service = Self { redis, server, gateways };
        service.wait_until_all_are_known();
        service
    }

    /// Waits until each gateway can use Redis and knows all others.
    pub fn wait_until_all_are_known(&self) {
        for gateway in &self.gateways {
            gateway.wait_for("GET", "/api/gateways", |(_, list)| {
                let known = list["gateways"].as_array().map_or(0, Vec::len);
                list["cluster"]["state"] == "connected" && known == self.gateways.len()
            });
        }
    }

    /// A device at this gateway, of which Redis knows.
    pub fn device(&self, gateway: usize, number: u8) -> Device {
        let device = Device::connect(self.gateways[gateway].process.mqtt(), number);
        self.redis.wait_for(&["GET", &format!("p:device:{}", device.mac)], |reply| reply.contains(':'));
        device
    }
}

impl Gateway {
    fn start(name: &str, redis: &RedisServer, server: &ChatServer, change: impl Fn(&mut Value)) -> Self {
        let mut config = json!({
            "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
            "websocket": {"production_servers": [server.url()], "send_goodbye": true},
            "api": {"host": "127.0.0.1", "token": TOKEN},
            "cluster": {"redis": redis.url(), "name": name, "prefix": "p"},
        });
        change(&mut config);
        let folder = Folder::new().with_file("gateway.json", config.to_string());
        let mut process = folder.start("-c gateway.json", &[]);
        process.wait_for_line("management page");
        Self { process, name: name.to_owned(), _folder: folder }
    }

    pub fn api(&self) -> SocketAddr {
        self.process.api()
    }

    pub fn call(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        let (status, text) = http_call(self.api(), method, path, body, Some(TOKEN));
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        self.call("GET", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call("POST", path, Some(&body.to_string()))
    }

    /// Waits until the answer is as wanted, and returns it.
    pub fn wait_for(&self, method: &str, path: &str, wanted: impl Fn(&(u16, Value)) -> bool) -> (u16, Value) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let answer = self.call(method, path, None);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "{}: {path} is still {answer:?}", self.name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends the process a signal.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}
