//! The count of connections by address is decremented however a connection ends.

use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::net::event_loop::stream::Stream;
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::transport::Transport;
use crate::proto::identity::ClientId;

fn add(gateway: &mut Gateway, connection: MqttConnection) -> Option<SessionId> {
    let Gateway { mqtt, sessions, io, .. } = gateway;
    mqtt.add_connection(connection, HERE, sessions, io)
}

fn has_no_device(id: SessionId) -> impl Fn(&Gateway) -> bool {
    move |gateway| gateway.sessions.get(id).is_none_or(|session| session.mqtt.is_none())
}

#[test]
fn a_take_over_uncounts_the_older_connection() {
    let mut harness = Harness::new(|_| {});
    let (_older, id) = harness.in_call(&client_id(1));
    let (mut newer, other) = harness.connection();
    harness.assert_counted(HERE, 2);
    newer.write_all(&connect(&client_id(1))).unwrap();
    harness.until("the call is taken over", has_no_device(other));
    harness.assert_evictable();
    harness.assert_counted(HERE, 1);
    assert!(harness.gateway.sessions.get(id).unwrap().core.is_online());
}

#[test]
fn a_failed_take_over_uncounts_the_newer_connection() {
    let mut harness = Harness::new(|_| {});
    let (_older, id) = harness.in_call(&client_id(1));
    let (mut newer, other) = harness.connection();
    harness.assert_counted(HERE, 2);
    harness.lose_registration(other);
    newer.write_all(&connect(&client_id(1))).unwrap();
    harness.read_until(other, has_no_device(other));
    harness.assert_evictable();
    harness.assert_counted(HERE, 1);
    assert!(harness.gateway.sessions.get(id).unwrap().core.has_call(), "the older connection keeps its call");
}

#[test]
fn a_closed_or_dropped_connection_is_uncounted() {
    let mut harness = Harness::new(|_| {});
    // One disconnects, one is refused, one is replaced by another connection, one is lost during a call.
    let (mut leaves, _) = harness.online(&client_id(1));
    let (mut refused, _) = harness.connection();
    let (_replaced, _) = harness.online(&client_id(2));
    let (lost, in_call) = harness.in_call(&client_id(3));
    harness.assert_counted(HERE, 4);
    leaves.write_all(&[0xe0, 0]).unwrap();
    refused.write_all(&connect("nonsense")).unwrap();
    harness.until("two have ended", |gateway| gateway.mqtt.by_address.of(HERE) == 2);
    harness.assert_evictable();
    let (_newer, _) = harness.online(&client_id(2));
    harness.assert_counted(HERE, 2);
    drop(lost);
    harness
        .until("its call waits for it", |gateway| !gateway.sessions.get(in_call).unwrap().core.is_online());
    harness.assert_counted(HERE, 1);
    // Dropped without closing, as on an eviction.
    let (_silent, id) = harness.connection();
    let Gateway { sessions, io, .. } = &mut harness.gateway;
    sessions.drop_mqtt(id, io);
    harness.assert_counted(HERE, 1);
}

#[test]
fn a_connection_that_cannot_be_registered_is_not_counted() {
    let mut harness = Harness::new(|_| {});
    let (_client, id) = harness.connection();
    let Transport::Open(Stream::Plain(tcp)) =
        harness.gateway.sessions.live(id).unwrap().mqtt.take().unwrap().transport
    else {
        panic!()
    };
    harness.assert_counted(HERE, 0);
    // It is registered already, so it cannot be registered again.
    let connection = MqttConnection::new(Transport::new(tcp, false, false), 1);
    assert!(add(&mut harness.gateway, connection).is_none());
    harness.assert_counted(HERE, 0);
}

#[test]
fn behind_a_load_balancer_the_client_is_counted_and_uncounted() {
    let mut harness =
        Harness::new(|config| config.mqtt.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()]);
    let client_ip = IpAddr::from([192, 0, 2, 1]);
    let (mut client, id) = harness.connection();
    harness.assert_counted(HERE, 1);
    client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 1883\r\n").unwrap();
    harness.until("the client is known", |gateway| gateway.sessions.get(id).unwrap().core.ip() == client_ip);
    harness.assert_evictable();
    harness.assert_counted(HERE, 0);
    harness.assert_counted(client_ip, 1);
    drop(client);
    harness.until("it has ended", has_no_device(id));
    harness.assert_counted(client_ip, 0);
}

#[test]
fn a_connection_that_is_handed_off_is_counted_once_and_uncounted() {
    let mut harness = Harness::new(|config| config.workers = 2);
    let elsewhere = (0..)
        .map(client_id)
        .find(|id| harness.gateway.workers.other_worker_of(ClientId::parse(id).unwrap().mac()).is_some())
        .unwrap();
    // Added without the listener, since the system may give a connection to the other worker's listener.
    let arrive = |harness: &mut Harness| {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let tcp = mio::net::TcpStream::from_std(accepted);
        let id =
            add(&mut harness.gateway, MqttConnection::new(Transport::new(tcp, false, false), 1)).unwrap();
        (client, id)
    };
    let (mut client, id) = arrive(&mut harness);
    harness.assert_counted(HERE, 1);
    client.write_all(&connect(&elsewhere)).unwrap();
    harness.until("it is handed off", has_no_device(id));
    harness.assert_evictable();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut connack = [0; 4];
    std::io::Read::read_exact(&mut client, &mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    harness.assert_counted(HERE, 1);
    drop(client);
    harness.until("it has ended", |gateway| gateway.mqtt.by_address.of(HERE) == 0);
    // A connection that cannot be handed off is dropped.
    let (mut client, id) = arrive(&mut harness);
    harness.lose_registration(id);
    client.write_all(&connect(&elsewhere)).unwrap();
    harness.read_until(id, has_no_device(id));
    harness.assert_evictable();
    harness.assert_counted(HERE, 0);
}

#[test]
fn a_reload_that_sets_or_unsets_the_limit_recounts_open_connections() {
    let mut harness = Harness::new(|config| config.mqtt.max_connections_per_ip = 0);
    let (_one, _) = harness.online(&client_id(1));
    let (mut two, _) = harness.online(&client_id(2));
    harness.assert_counted(HERE, 0);
    for (limit, expected) in [(5, 2), (6, 2), (0, 0), (5, 2)] {
        let mut config = Config::clone(&harness.gateway.io.config);
        config.mqtt.max_connections_per_ip = limit;
        harness.gateway.reload(config).unwrap();
        harness.assert_counted(HERE, expected);
    }
    two.write_all(&[0xe0, 0]).unwrap();
    harness.until("one has ended", |gateway| gateway.mqtt.by_address.of(HERE) == 1);
}

#[test]
fn a_call_over_max_calls_is_a_recent_error() {
    let mut harness = Harness::new(|config| config.websocket.max_calls = 1);
    let (_one, _) = harness.in_call(&client_id(1));
    let (mut two, _) = harness.online(&client_id(2));
    two.write_all(&hello()).unwrap();
    let is_recorded = |gateway: &Gateway| {
        let errors = gateway.admin.shared_recent_errors().lock().unwrap().to_json();
        errors.contains("too_many_calls") && errors.contains("websocket.max_calls is reached")
    };
    harness.until("it is recorded", is_recorded);
    assert_eq!(harness.gateway.sessions.index.calls(), 1);
}

/// A call at another gateway that ended half a second after its device had logged in cost what the device said next.
#[test]
#[cfg(feature = "cluster")]
fn a_wait_for_another_gateway_is_not_cut_short_by_the_timer_of_the_one_before() {
    let mut harness = Harness::new(|_| {});
    let (_client, id) = harness.online(&client_id(1));
    let gateway = &mut harness.gateway;
    let start = gateway.io.now;
    gateway.hold_device(id);
    gateway.stop_holding(id);
    gateway.io.now = start + Duration::from_millis(400);
    gateway.hold_device(id);
    gateway.io.now = start + Duration::from_millis(510);
    gateway.on_hold_timer(id);
    assert!(gateway.cluster.remote_calls.holds(id), "the timer is that of the first wait");
    gateway.io.now = start + Duration::from_millis(900);
    gateway.on_hold_timer(id);
    assert!(!gateway.cluster.remote_calls.holds(id));
}
