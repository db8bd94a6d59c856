//! Tests of the gateway with real sockets and a loop whose iterations the tests run one by one.

mod admission;
mod broadcast;
mod memory;
mod partial_packets;
mod run;
mod worker_relay;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::Events;
use tungstenite::WebSocket;

use crate::config::Config;
use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::sessions::session::Session;
use crate::proto::mqtt::encode;
use crate::session::CallState;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A gateway whose iterations the test runs, and a chat server whose answers the test sends.
struct Harness {
    gateway: Gateway,
    events: Events,
    server: TcpListener,
}

impl Harness {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut config = Config::default();
        (config.mqtt.host, config.mqtt.port) = (HERE, 0);
        (config.udp.host, config.udp.port) = (HERE, 0);
        config.api.enabled = false;
        config.mcp.enabled = false;
        config.mqtt.max_connections_per_ip = 100;
        let url = format!("ws://{}/", server.local_addr().unwrap());
        config.websocket.production = vec![Arc::new(url.parse().unwrap())];
        change(&mut config);
        let mut gateway = Gateway::bind(config, None).unwrap();
        gateway.workers.run_others();
        Self { gateway, events: Events::with_capacity(64), server }
    }

    /// Runs until all that the device has sent so far is served.
    fn serve(&mut self, client: &mut TcpStream) {
        client.write_all(&[0xc0, 0]).unwrap();
        client.set_nonblocking(true).unwrap();
        let answers = Cell::new(Vec::new());
        self.until("a ping is answered", |_| {
            let mut received = answers.take();
            // Ends with WouldBlock.
            let _ = client.read_to_end(&mut received);
            let answered = received.ends_with(&[0xd0, 0]);
            answers.set(received);
            answered
        });
        client.set_nonblocking(false).unwrap();
    }

    /// Runs until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&Gateway) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(&self.gateway) {
            assert!(Instant::now() < end, "never: {what}");
            // So that no poll waits for longer.
            self.gateway.io.timers.arm(Instant::now() + Duration::from_millis(1), TimerKind::Stop);
            self.gateway.run_once(&mut self.events).unwrap();
        }
    }

    /// A connection that has sent nothing.
    fn connection(&mut self) -> (TcpStream, SessionId) {
        let before = self.gateway.sessions.ids();
        let client = TcpStream::connect(self.gateway.addresses().mqtt).unwrap();
        self.until("the connection is accepted", |gateway| gateway.sessions.ids().len() > before.len());
        let id = self.gateway.sessions.ids().into_iter().find(|id| !before.contains(id)).unwrap();
        (client, id)
    }

    fn online(&mut self, client_id: &str) -> (TcpStream, SessionId) {
        let (mut client, id) = self.connection();
        client.write_all(&connect(client_id)).unwrap();
        self.until("the device is logged in", |gateway| gateway.sessions.get(id).unwrap().core.is_online());
        (client, id)
    }

    fn in_call(&mut self, client_id: &str) -> (TcpStream, SessionId) {
        let (mut client, id) = self.online(client_id);
        client.write_all(&hello()).unwrap();
        self.until("its call begins", |gateway| gateway.sessions.get(id).unwrap().core.has_call());
        (client, id)
    }

    /// A device in a call, and its chat server's end of the WebSocket.
    fn live_call(&mut self, client_id: &str) -> (TcpStream, SessionId, WebSocket<TcpStream>) {
        let server = self.server.try_clone().unwrap();
        let answers = thread::spawn(move || {
            let (tcp, _) = server.accept().unwrap();
            tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut socket = tungstenite::accept(tcp).unwrap();
            assert!(socket.read().unwrap().to_text().unwrap().contains("hello"));
            let hello = r#"{"type":"hello","version":1,"transport":"websocket","session_id":"s"}"#;
            socket.send(hello.into()).unwrap();
            socket
        });
        let (client, id) = self.in_call(client_id);
        self.until("its chat server answers", |gateway| {
            gateway.sessions.get(id).unwrap().core.call().is_some_and(|call| call.state == CallState::Live)
        });
        (client, id, answers.join().unwrap())
    }

    /// Deregisters a connection's socket, so that the gateway cannot reregister or deregister it.
    fn lose_registration(&mut self, id: SessionId) {
        let connection = self.gateway.sessions.live(id).unwrap().mqtt.as_mut().unwrap();
        self.gateway.io.registry.deregister(connection.transport.tcp_mut().unwrap()).unwrap();
    }

    /// Reads from a connection for which there are no events.
    fn read_until(&mut self, id: SessionId, done: impl Fn(&Gateway) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(&self.gateway) {
            assert!(Instant::now() < end);
            self.gateway.on_device_readable(id);
        }
    }

    #[track_caller]
    fn assert_counted(&self, ip: IpAddr, expected: usize) {
        assert_eq!(self.gateway.mqtt.by_address.of(ip), expected);
    }

    /// Exactly the connections that have not logged in can be closed to make room.
    #[track_caller]
    fn assert_evictable(&self) {
        let not_logged_in = |session: &&Session| session.mqtt.is_some() && session.core.awaits_connect();
        let expected = self.gateway.sessions.iter().filter(not_logged_in).count();
        assert_eq!(self.gateway.mqtt.unauthenticated.len(), expected);
    }
}

fn connect(client_id: &str) -> Vec<u8> {
    let mut body = vec![0, 4];
    body.extend_from_slice(b"MQTT\x04\x02\x00\x00");
    body.extend((client_id.len() as u16).to_be_bytes());
    body.extend_from_slice(client_id.as_bytes());
    [&[0x10, body.len() as u8], &body[..]].concat()
}

fn hello() -> Vec<u8> {
    let mut hello = Vec::new();
    encode::publish(&mut hello, "t", br#"{"type":"hello","version":3}"#);
    hello
}

fn client_id(n: u8) -> String {
    format!("g@@@02_00_00_00_00_{n:02x}@@@u")
}
