//! Shared parts of the integration tests: a gateway on free loopback ports, and its peers, which use none of
//! its code.
//!
//! The gateway runs in its own thread; a test acts as device and chat server in turn, on blocking sockets,
//! so the order is always known. Every wait has a deadline, and tests do not wait for time to pass. A test does not
//! expect that something is quick, since a slow machine is not: it looks for what would be there if it were late.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{ChatServerConfig, Config, PublicIp};
use mqtt_websocket_proxy::net::Running;

pub mod admin;
pub mod audio;
pub mod browser;
pub mod byte_table;
pub mod chat_server;
pub mod command;
pub mod device;
pub mod faulty_server;
pub mod firmware;
pub mod host;
pub mod http;
pub mod log_capture;
#[path = "../../src/session/sim/firmware.rs"]
pub mod model;
pub mod mqtt;
pub mod ota;
pub mod parallel;
pub mod process;
pub mod real_time;
pub mod redis;
pub mod service;
pub mod tls;

/// The time limit for anything that should happen: only what hangs takes as long, also on a slow and busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A configuration for tests: free loopback ports, these chat servers, and no tool discovery.
pub fn config<U: AsRef<str>>(urls: &[U]) -> Config {
    let mut config = Config::default();
    config.logging.level = log::LevelFilter::Debug;
    config.mqtt.host = [127, 0, 0, 1].into();
    config.mqtt.port = 0;
    config.udp.host = [127, 0, 0, 1].into();
    config.udp.port = 0;
    config.api.port = 0;
    config.udp.public_ip = PublicIp::Auto;
    config.mcp.enabled = false;
    // A slow test would meet them, or not answer a ping in time.
    config.websocket.ping_interval = Duration::ZERO;
    config.udp.keep_alive = Duration::ZERO;
    // Applying a configuration sets the level of the whole process, and other tests read its log.
    config.logging.level = log::LevelFilter::Debug;
    let server = |url: &U| Arc::new(url.as_ref().parse::<ChatServerConfig>().unwrap());
    config.websocket.production = urls.iter().map(server).collect();
    config
}

/// A gateway in this process, with these chat servers.
pub fn gateway<U: AsRef<str>>(urls: &[U]) -> Running {
    gateway_with(urls, |_| {})
}

/// A gateway in this process, with these chat servers and settings of its own.
pub fn gateway_with<U: AsRef<str>>(urls: &[U], change: impl FnOnce(&mut Config)) -> Running {
    let mut config = config(urls);
    change(&mut config);
    Running::start(config, None).unwrap()
}

/// A loopback address that only this process uses, so that a free port on it stays free.
pub fn process_loopback_ip() -> Ipv4Addr {
    if !cfg!(target_os = "linux") {
        return Ipv4Addr::LOCALHOST;
    }
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | a, b, c)
}

/// The address of a port on which nothing listens yet, for a program that is to.
pub fn closed_port() -> SocketAddr {
    TcpListener::bind((process_loopback_ip(), 0)).unwrap().local_addr().unwrap()
}

/// The address of a port that refuses connections. It stays bound without listening, so that no gateway of another test gets it.
pub fn refusing_port() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((process_loopback_ip(), 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    addr
}

/// The time left until `end`, never zero, which would mean no timeout for sockets.
pub fn remaining(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
