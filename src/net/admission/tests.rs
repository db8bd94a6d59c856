//! However a connection leaves, its address gets its count back.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Events;

use super::*;
use crate::config::Config;
use crate::net::device::Device;
use crate::net::gateway::Alarm;
use crate::net::link::Link;
use crate::proto::identity::ClientId;
use crate::proto::mqtt::encode;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A gateway that runs only when told to, and a chat server that never answers.
struct Bench {
    gateway: Gateway,
    events: Events,
    _server: TcpListener,
}

impl Bench {
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
        let gateway = Gateway::bind(config, None).unwrap();
        Self { gateway, events: Events::with_capacity(64), _server: server }
    }

    /// Runs until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Gateway) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done(&self.gateway) {
            assert!(Instant::now() < end, "never: {what}");
            // So that no poll sleeps past the end.
            self.gateway.wheel.arm(Instant::now() + Duration::from_millis(1), Alarm::Stop);
            self.gateway.turn(&mut self.events).unwrap();
        }
    }

    /// A connection that has said nothing.
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
        self.until("the device is let in", |gateway| gateway.sessions.get(id).unwrap().core.is_online());
        (client, id)
    }

    fn in_call(&mut self, client_id: &str) -> (TcpStream, SessionId) {
        let (mut client, id) = self.online(client_id);
        client.write_all(&hello()).unwrap();
        self.until("its call begins", |gateway| gateway.sessions.get(id).unwrap().core.has_call());
        (client, id)
    }

    /// Takes a connection's socket from the poll behind the gateway's back, so that what the gateway asks of the poll fails.
    fn lose_registration(&mut self, id: SessionId) {
        let device = self.gateway.sessions.live(id).unwrap().device.as_mut().unwrap();
        self.gateway.poll.registry().deregister(device.link.tcp_mut().unwrap()).unwrap();
    }

    /// Reads from a connection that no event announces.
    fn pump_until(&mut self, id: SessionId, done: impl Fn(&Gateway) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done(&self.gateway) {
            assert!(Instant::now() < end);
            self.gateway.pump_device(id);
        }
    }

    #[track_caller]
    fn assert_counted(&self, ip: IpAddr, expected: usize) {
        assert_eq!(self.gateway.per_ip.of(ip), expected);
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

fn has_no_device(id: SessionId) -> impl Fn(&Gateway) -> bool {
    move |gateway| gateway.sessions.get(id).is_none_or(|session| session.device.is_none())
}

#[test]
fn a_take_over_gives_the_count_of_the_older_connection_back() {
    let mut bench = Bench::new(|_| {});
    let (_older, id) = bench.in_call(&client_id(1));
    let (mut newer, other) = bench.connection();
    bench.assert_counted(HERE, 2);
    newer.write_all(&connect(&client_id(1))).unwrap();
    bench.until("the call is taken over", has_no_device(other));
    bench.assert_counted(HERE, 1);
    assert!(bench.gateway.sessions.get(id).unwrap().core.is_online());
}

#[test]
fn a_take_over_that_fails_gives_the_count_of_the_newer_connection_back() {
    let mut bench = Bench::new(|_| {});
    let (_older, id) = bench.in_call(&client_id(1));
    let (mut newer, other) = bench.connection();
    bench.assert_counted(HERE, 2);
    bench.lose_registration(other);
    newer.write_all(&connect(&client_id(1))).unwrap();
    bench.pump_until(other, has_no_device(other));
    bench.assert_counted(HERE, 1);
    assert!(bench.gateway.sessions.get(id).unwrap().core.has_call(), "the older connection keeps its call");
}

#[test]
fn a_device_that_is_closed_or_dropped_gives_its_count_back() {
    let mut bench = Bench::new(|_| {});
    // It leaves, it is refused, another connection replaces it, its connection is lost in a call.
    let (mut leaves, _) = bench.online(&client_id(1));
    let (mut refused, _) = bench.connection();
    let (_replaced, _) = bench.online(&client_id(2));
    let (lost, in_call) = bench.in_call(&client_id(3));
    bench.assert_counted(HERE, 4);
    leaves.write_all(&[0xe0, 0]).unwrap();
    refused.write_all(&connect("nonsense")).unwrap();
    bench.until("two have left", |gateway| gateway.per_ip.of(HERE) == 2);
    let (_newer, _) = bench.online(&client_id(2));
    bench.assert_counted(HERE, 2);
    drop(lost);
    bench.until("its call waits for it", |gateway| !gateway.sessions.get(in_call).unwrap().core.is_online());
    bench.assert_counted(HERE, 1);
    // Dropped at once, as one that says nothing while others need the room.
    let (_silent, id) = bench.connection();
    bench.gateway.drop_device(id);
    bench.assert_counted(HERE, 1);
}

#[test]
fn a_connection_that_cannot_be_registered_is_not_counted() {
    let mut bench = Bench::new(|_| {});
    let (_client, id) = bench.connection();
    let Link::Plain(tcp) = bench.gateway.sessions.live(id).unwrap().device.take().unwrap().link else {
        panic!()
    };
    bench.assert_counted(HERE, 0);
    // It is registered already, so it cannot be once more.
    let device = Device::new(Link::new(tcp, false, false), 1);
    assert!(bench.gateway.take_in(device, HERE).is_none());
    bench.assert_counted(HERE, 0);
}

#[test]
fn behind_a_balancer_the_client_is_counted_and_given_back() {
    let mut bench = Bench::new(|config| config.mqtt.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()]);
    let client_ip = IpAddr::from([192, 0, 2, 1]);
    let (mut client, id) = bench.connection();
    bench.assert_counted(HERE, 1);
    client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 1883\r\n").unwrap();
    bench.until("the client is known", |gateway| gateway.sessions.get(id).unwrap().core.ip() == client_ip);
    bench.assert_counted(HERE, 0);
    bench.assert_counted(client_ip, 1);
    drop(client);
    bench.until("it is gone", has_no_device(id));
    bench.assert_counted(client_ip, 0);
}

#[test]
fn a_connection_handed_to_another_worker_is_counted_once_and_given_back() {
    let mut bench = Bench::new(|config| config.workers = 2);
    let elsewhere = (0..)
        .map(client_id)
        .find(|id| bench.gateway.team.elsewhere(ClientId::parse(id).unwrap().mac()).is_some())
        .unwrap();
    // The system may give a connection to the other worker's listener, so this one is let in by hand.
    let arrive = |bench: &mut Bench| {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let tcp = mio::net::TcpStream::from_std(accepted);
        let id = bench.gateway.take_in(Device::new(Link::new(tcp, false, false), 1), HERE).unwrap();
        (client, id)
    };
    let (mut client, id) = arrive(&mut bench);
    bench.assert_counted(HERE, 1);
    client.write_all(&connect(&elsewhere)).unwrap();
    bench.until("it is handed over", has_no_device(id));
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut connack = [0; 4];
    std::io::Read::read_exact(&mut client, &mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    bench.assert_counted(HERE, 1);
    drop(client);
    bench.until("it is gone", |gateway| gateway.per_ip.of(HERE) == 0);
    // One that cannot be handed over is dropped.
    let (mut client, id) = arrive(&mut bench);
    bench.lose_registration(id);
    client.write_all(&connect(&elsewhere)).unwrap();
    bench.pump_until(id, has_no_device(id));
    bench.assert_counted(HERE, 0);
}

#[test]
fn a_reload_that_sets_or_unsets_the_limit_counts_what_is_open() {
    let mut bench = Bench::new(|config| config.mqtt.max_connections_per_ip = 0);
    let (_one, _) = bench.online(&client_id(1));
    let (mut two, _) = bench.online(&client_id(2));
    bench.assert_counted(HERE, 0);
    for (limit, expected) in [(5, 2), (6, 2), (0, 0), (5, 2)] {
        let mut config = Config::clone(&bench.gateway.config);
        config.mqtt.max_connections_per_ip = limit;
        bench.gateway.reload(config).unwrap();
        bench.assert_counted(HERE, expected);
    }
    two.write_all(&[0xe0, 0]).unwrap();
    bench.until("one has left", |gateway| gateway.per_ip.of(HERE) == 1);
}

#[test]
fn a_call_over_max_calls_is_told_to_operators() {
    let mut bench = Bench::new(|config| config.websocket.max_calls = 1);
    let (_one, _) = bench.in_call(&client_id(1));
    let (mut two, _) = bench.online(&client_id(2));
    two.write_all(&hello()).unwrap();
    let said = |gateway: &Gateway| {
        let errors = gateway.admin.notebook().lock().unwrap().to_json();
        errors.contains("too_many_calls") && errors.contains("websocket.max_calls is reached")
    };
    bench.until("it is told", said);
    assert_eq!(bench.gateway.index.calls(), 1);
}
