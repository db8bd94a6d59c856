//! Real MQTT clients: rumqttc, and mosquitto's where they are installed.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Secret;
use rumqttc::{ConnectReturnCode, Event, Incoming, LastWill, MqttOptions, QoS, SubscribeReasonCode};
use serde_json::Value;
use support::audio::Call;
use support::chat_server::{ChatServer, audio_frame};
use support::device::{HELLO, client_id, mac};
use support::mqtt::{password, user_name};
use support::{TIMEOUT, gateway, gateway_with};

const KEY: &str = "a-Key-of-10";

/// A client of the library, its events read by a thread.
struct RumqttClient {
    client: rumqttc::Client,
    events: mpsc::Receiver<Result<Incoming, rumqttc::ConnectionError>>,
}

impl RumqttClient {
    fn connect(options: MqttOptions) -> Self {
        let (client, mut connection) = rumqttc::Client::new(options, 10);
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            for event in connection.iter() {
                let (event, over) = match event {
                    Ok(Event::Incoming(packet)) => (Ok(packet), false),
                    Ok(Event::Outgoing(_)) => continue,
                    // The library would reconnect for ever.
                    Err(error) => (Err(error), true),
                };
                if sender.send(event).is_err() || over {
                    return;
                }
            }
        });
        Self { client, events }
    }

    #[expect(clippy::result_large_err, reason = "the error is the library's own")]
    fn next_event(&self) -> Result<Incoming, rumqttc::ConnectionError> {
        self.events.recv_timeout(TIMEOUT).expect("no event")
    }

    fn next_json(&self) -> Value {
        match self.next_event().unwrap() {
            Incoming::Publish(publish) => serde_json::from_slice(&publish.payload).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&self, text: &str) {
        self.client.publish("device-server", QoS::AtMostOnce, false, text).unwrap();
    }
}

fn options(gateway: SocketAddr, client_id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(client_id, gateway.ip().to_string(), gateway.port());
    options.set_keep_alive(Duration::from_secs(60));
    options
}

fn assert_accepted(event: Result<Incoming, rumqttc::ConnectionError>) {
    let Ok(Incoming::ConnAck(ack)) = event else { panic!("{event:?}") };
    assert_eq!((ack.code, ack.session_present), (ConnectReturnCode::Success, false));
}

#[test]
fn rumqttc_logs_in_subscribes_pings_and_makes_a_call() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.signature_key = Secret::new(KEY));
    let id = client_id(1);
    let mut login = options(gateway.addresses().mqtt, &id);
    login.set_credentials(user_name(), password(KEY, &id, &user_name()));
    login.set_keep_alive(Duration::from_secs(3));
    login.set_last_will(LastWill::new("a/b", "gone", QoS::AtLeastOnce, true));
    let device = RumqttClient::connect(login);
    assert_accepted(device.next_event());
    device.client.subscribe("devices/p2p/#", QoS::ExactlyOnce).unwrap();
    let Ok(Incoming::SubAck(ack)) = device.next_event() else { panic!() };
    assert_eq!(ack.return_codes, [SubscribeReasonCode::Success(QoS::AtMostOnce)]);
    // Not silent, so that it is not taken for one that is in a call of an earlier gateway.
    device.publish(r#"{"type":"goodbye"}"#);
    device.client.unsubscribe("devices/p2p/#").unwrap();
    assert!(matches!(device.next_event(), Ok(Incoming::UnsubAck(_))));
    assert!(matches!(device.next_event(), Ok(Incoming::PingResp)));

    device.publish(HELLO);
    let mut peer = server.accept();
    let request = peer.upgrade();
    assert_eq!(request.header("device-id"), Some(mac(1).as_str()));
    peer.exchange_hello("by rumqttc");
    let mut reply = device.next_event();
    while matches!(reply, Ok(Incoming::PingResp)) {
        reply = device.next_event();
    }
    let Ok(Incoming::Publish(publish)) = reply else { panic!("{reply:?}") };
    assert_eq!(publish.topic, "devices/p2p/02_00_00_00_00_01");
    let mut call = Call::new(serde_json::from_slice(&publish.payload).unwrap());
    call.send(1, b"\x58x");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58x"));
    device.client.disconnect().unwrap();
    peer.expect_close(1000);
}

#[test]
fn rumqttc_is_told_why_it_is_refused() {
    let gateway = gateway_with(&[] as &[&str], |config| config.mqtt.signature_key = Secret::new(KEY));
    for (id, code) in [
        (client_id(1), ConnectReturnCode::BadUserNamePassword),
        ("x".to_owned(), ConnectReturnCode::BadClientId),
        ("g@@@02_00_00_00_00_01".to_owned(), ConnectReturnCode::NotAuthorized),
    ] {
        let mut login = options(gateway.addresses().mqtt, &id);
        login.set_credentials(user_name(), "wrong");
        let device = RumqttClient::connect(login);
        let event = device.next_event();
        let Err(rumqttc::ConnectionError::ConnectionRefused(found)) = event else { panic!("{event:?}") };
        assert_eq!(found, code, "{id}");
    }
}

#[test]
fn rumqttc_loses_its_connection_when_it_publishes_above_qos_0() {
    let gateway = gateway(&[] as &[&str]);
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let device = RumqttClient::connect(options(gateway.addresses().mqtt, &client_id(1)));
        assert_accepted(device.next_event());
        device.publish("not JSON");
        device.client.publish("device-server", qos, false, "{}").unwrap();
        assert!(device.next_event().is_err());
    }
}

#[test]
fn rumqttc_answers_goodbye_to_a_message_without_a_call() {
    let gateway = gateway(&[] as &[&str]);
    let device = RumqttClient::connect(options(gateway.addresses().mqtt, &client_id(1)));
    assert_accepted(device.next_event());
    device.publish(r#"{"type":"listen","session_id":"s"}"#);
    assert_eq!(device.next_json(), serde_json::json!({"type": "goodbye", "session_id": "s"}));
}

// ----- mosquitto ------------------------------------------------------------------------------------------------------

/// Whether the program is installed; prints a message if not.
fn installed(program: &str) -> bool {
    let found =
        Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!(
            "skipped: {program} is not installed (Debian and Ubuntu: apt-get install mosquitto-clients)"
        );
    }
    found
}

fn mosquitto(program: &str, gateway: SocketAddr, number: u8, more: &[&str]) -> Command {
    let id = client_id(number);
    let mut command = Command::new(program);
    command.args(["-h", &gateway.ip().to_string(), "-p", &gateway.port().to_string(), "-i", &id]);
    command.args(["-u", &user_name(), "-P", &password(KEY, &id, &user_name())]).args(more);
    command.stdin(Stdio::null());
    command
}

/// Ends with its test.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ChildGuard {
    fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("mosquitto does not end");
    }
}

#[test]
fn mosquitto_pub_makes_a_call_by_its_lines() {
    if !installed("mosquitto_pub") {
        return;
    }
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.mqtt.signature_key = Secret::new(KEY);
        // It closes its socket without reading everything: then its system may drop the DISCONNECT that waits for the
        // acknowledgement of what was sent before (Nagle), and the gateway sees a reset alone.
        config.mqtt.resume_grace = Duration::ZERO;
    });
    for version in ["mqttv311", "mqttv31"] {
        let more = ["-V", version, "-t", "device-server", "-l", "-k", "60"];
        let mut command = mosquitto("mosquitto_pub", gateway.addresses().mqtt, 1, &more);
        let mut device = ChildGuard(command.stdin(Stdio::piped()).spawn().unwrap());
        let mut stdin = device.0.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, format!("{HELLO}\n{{\"type\":\"listen\"}}\n").as_bytes())
            .unwrap();
        let mut peer = server.accept();
        assert_eq!(peer.upgrade().header("device-id"), Some(mac(1).as_str()));
        peer.exchange_hello("s");
        assert_eq!(peer.json()["type"], "listen");
        // The end of its input is a DISCONNECT.
        drop(stdin);
        peer.expect_close(1000);
        assert_eq!(device.exit_code(), Some(0));
    }
}

#[test]
fn mosquitto_sub_hears_what_the_gateway_publishes() {
    if !installed("mosquitto_sub") {
        return;
    }
    let gateway = gateway_with(&[] as &[&str], |config| {
        config.mqtt.signature_key = Secret::new(KEY);
        // The gateway's request to every device arrives here too, without a subscription.
        config.mcp.enabled = true;
    });
    // It flushes its output to a pipe at the end, so it ends after a second.
    let more = ["-d", "-t", "devices/p2p/#", "-t", "null", "-q", "2", "-W", "1", "-F", "%t %p"];
    let mut command = mosquitto("mosquitto_sub", gateway.addresses().mqtt, 7, &more);
    let mut child = ChildGuard(command.stdout(Stdio::piped()).spawn().unwrap());
    child.exit_code();
    let mut output = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    for part in ["CONNACK (0)", "Subscribed (mid: 1): 0, 0", "devices/p2p/02_00_00_00_00_07 {"] {
        assert!(output.contains(part), "{part:?} is not in {output}");
    }
}

#[test]
fn mosquitto_is_told_why_it_is_refused() {
    if !installed("mosquitto_pub") {
        return;
    }
    let gateway = gateway_with(&[] as &[&str], |config| config.mqtt.signature_key = Secret::new("another"));
    for (version, code, words) in [
        ("mqttv311", 4, "bad user name or password"),
        ("mqttv31", 4, "bad user name or password"),
        ("mqttv5", 1, "protocol version"),
    ] {
        let more = ["-V", version, "-t", "t", "-m", "{}"];
        let mut command = mosquitto("mosquitto_pub", gateway.addresses().mqtt, 1, &more);
        let mut child = ChildGuard(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let exit = child.exit_code();
        let mut stderr = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(exit != Some(0), "{version}");
        let told = stderr.to_lowercase();
        assert!(told.contains(words) || version == "mqttv5", "{version} {code}: {stderr}");
    }
}
