//! Rules that take seconds to show, all side by side, since their time is mostly waiting.

#![allow(clippy::unwrap_used)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::chat_server::ChatServer;
use support::device::{Device, HELLO, client_id, mac};
use support::faulty_server::{STALLING_FAULTS, ServerFault, assert_failure_alert, start_faulty_server};
use support::mqtt::{Client, Connect, PacketError, publish};
use support::{TIMEOUT, gateway, gateway_with};

/// The device gives up 10 s after its hello; the gateway answers before 9 s.
const HELLO_REPLY_DEADLINE: Duration = Duration::from_secs(9);

/// The connection's end, and how long after `since` it came.
fn wait_for_close(client: &mut Client, since: Instant) -> Duration {
    client.read_until_closed();
    since.elapsed()
}

// Each of these waits for seconds to pass, so they wait together.
#[test]
fn keep_alive_is_one_and_a_half_times_on_inbound_bytes_only() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.resume_grace = Duration::ZERO);
    let addr = gateway.addresses().mqtt;
    let connect = |number, keep_alive| {
        let mut connect = Connect::new(&client_id(number));
        connect.keep_alive = keep_alive;
        Client::log_in(addr, &connect)
    };
    let in_time = |passed: Duration, expected: f64| {
        let passed = passed.as_secs_f64();
        assert!(passed >= expected - 0.05 && passed < expected + 2.0, "{passed} s instead of {expected} s");
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let since = Instant::now();
            in_time(wait_for_close(&mut connect(1, 1), since), 1.5);
        });
        scope.spawn(|| {
            let since = Instant::now();
            in_time(wait_for_close(&mut connect(2, 2), since), 3.0);
        });
        scope.spawn(|| {
            // Half a packet is a sign of life: each byte counts.
            let mut client = connect(3, 1);
            let start = Instant::now();
            let bytes = publish("t", &[b'x'; 100]);
            let mut since = start;
            for byte in &bytes[..5] {
                assert_eq!(client.packet_within(Duration::from_secs(1)), Err(PacketError::Deadline));
                since = Instant::now();
                client.send(&[*byte]);
            }
            assert!(start.elapsed() >= Duration::from_secs(4));
            in_time(wait_for_close(&mut client, since), 1.5);
        });
        scope.spawn(|| {
            // No limit: it is there when all others are gone.
            let mut client = connect(4, 0);
            assert_eq!(client.packet_within(Duration::from_secs(5)), Err(PacketError::Deadline));
            client.assert_nothing_pending();
        });
        scope.spawn(move || {
            // What the gateway sends keeps nobody alive.
            let mut connect = Connect::new(&client_id(5));
            connect.keep_alive = 2;
            let mut device =
                Device { mqtt: Client::log_in(addr, &connect), mac: mac(5), client_id: client_id(5) };
            let since = Instant::now();
            let (_call, mut peer) = device.call(&server);
            let mut texts = 0;
            let passed = loop {
                peer.send_text(r#"{"type":"llm","session_id":"x"}"#);
                match device.mqtt.packet_within(TIMEOUT) {
                    Ok(_) => texts += 1,
                    Err(silence) => {
                        assert_eq!(silence, PacketError::Closed);
                        break since.elapsed();
                    }
                }
                assert!(since.elapsed() < TIMEOUT);
                thread::yield_now();
            };
            assert!(texts > 10, "{texts}");
            in_time(passed, 3.0);
            // The call is over too, since nothing is kept.
            while !matches!(
                peer.message(),
                support::chat_server::Message::Close(_) | support::chat_server::Message::End
            ) {}
        });
        scope.spawn(|| {
            // Without CONNECT a connection lasts ten seconds, whatever trickles in.
            let since = Instant::now();
            let mut client = Client::open(addr);
            client.send(&Connect::new(&client_id(6)).packet()[..5]);
            assert_eq!(client.packet_within(Duration::from_secs(5)), Err(PacketError::Deadline));
            client.send(&Connect::new(&client_id(6)).packet()[5..8]);
            in_time(wait_for_close(&mut client, since), 10.0);
        });
    });
}

// Each of these waits for seconds to pass, so they wait together.
#[test]
fn a_stalled_server_is_abandoned_for_the_next_and_the_device_is_answered_before_9_s() {
    thread::scope(|scope| {
        for fault in STALLING_FAULTS {
            // Alone, the server may use all the time there is.
            scope.spawn(move || {
                let (url, _kept) = start_faulty_server(fault);
                let gateway = gateway(&[url]);
                let took = assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 1));
                assert!(
                    took < HELLO_REPLY_DEADLINE && took > Duration::from_secs(5),
                    "{fault:?} alone: {took:?}"
                );
            });
            // With many that stall, the device is still answered.
            scope.spawn(move || {
                let faulty: Vec<_> = (0..4).map(|_| start_faulty_server(fault)).collect();
                let urls: Vec<_> = faulty.iter().map(|(url, _)| url.clone()).collect();
                let gateway = gateway(&urls);
                let took = assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 1));
                assert!(took < HELLO_REPLY_DEADLINE, "{fault:?} four times: {took:?}");
            });
            // With a good one behind it, the call is up.
            scope.spawn(move || {
                let good = ChatServer::start();
                let (url, _kept) = start_faulty_server(fault);
                let gateway = gateway(&[url, good.url()]);
                let mut kept = Vec::new();
                for number in 0..2 {
                    let start = Instant::now();
                    let mut device = Device::connect(gateway.addresses().mqtt, number);
                    let (call, peer) = device.call(&good);
                    kept.push((device, peer));
                    assert_eq!(call.session_id, "server-session", "{fault:?}");
                    assert!(start.elapsed() < HELLO_REPLY_DEADLINE, "{fault:?}: {:?}", start.elapsed());
                }
            });
        }
        // The last one is slow, but within the time.
        scope.spawn(|| {
            let server = ChatServer::start();
            let gateway = gateway(&[server.url()]);
            let mut device = Device::connect(gateway.addresses().mqtt, 1);
            device.send_text(HELLO);
            let mut peer = server.accept();
            peer.upgrade();
            peer.json();
            // Some servers drop a hello that comes too early: it is said once more.
            assert_eq!(peer.json()["type"], "hello");
            assert_eq!(peer.message_within(Duration::from_secs(3)), None);
            peer.send_text(r#"{"type":"hello","session_id":"late"}"#);
            assert_eq!(device.hello_reply().session_id, "late");
        });
        // A server that speaks but says no hello is taken as live: the device hears what it has to say.
        scope.spawn(|| {
            let server = ChatServer::start();
            let gateway = gateway(&[server.url()]);
            let mut device = Device::connect(gateway.addresses().mqtt, 1);
            let start = Instant::now();
            device.send_text(HELLO);
            let mut peer = server.accept();
            peer.upgrade();
            peer.json();
            peer.send_text(r#"{"type":"stt","text":"123456"}"#);
            let call = device.hello_reply();
            assert!(start.elapsed() < HELLO_REPLY_DEADLINE);
            assert_eq!(
                device.json(),
                json!({"type": "stt", "text": "123456", "session_id": call.session_id})
            );
        });
        // Without any server at all, or with names that do not resolve.
        scope.spawn(|| {
            let gateway = gateway(&[] as &[&str]);
            assert!(
                assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 1))
                    < Duration::from_secs(3)
            );
            let (url, _) = start_faulty_server(ServerFault::Unresolvable);
            let gateway = support::gateway(&[url]);
            assert!(
                assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 1))
                    < HELLO_REPLY_DEADLINE
            );
        });
    });
}
