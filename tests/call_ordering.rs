//! Order and timing where a call begins, and where text and audio meet.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use support::audio::{Audio, Call, aes_ctr};
use support::chat_server::{ChatServer, Message, Peer, audio_frame};
use support::device::{Device, HELLO, client_id};
use support::log_capture::{LogCapture, log_field};
use support::{gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A packet that has come already, without waiting for it.
fn try_receive(call: &Call) -> Option<Audio> {
    call.udp.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    let found = match call.udp.recv(&mut buffer) {
        Ok(n) => {
            let header: [u8; 16] = buffer[..16].try_into().unwrap();
            Some(Audio { header, payload: aes_ctr(&call.key, &header, &buffer[16..n]) })
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    };
    call.udp.set_nonblocking(false).unwrap();
    found
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[0x80 | opcode, payload.len() as u8], payload].concat()
}

fn text_frame(text: &str) -> Vec<u8> {
    frame(1, text.as_bytes())
}

fn binary_audio_frame(opus: &[u8]) -> Vec<u8> {
    frame(2, &audio_frame(7, opus))
}

/// A greeted call, to which the device has sent no datagram yet.
fn start_call(device: &mut Device, server: &ChatServer) -> (Call, Peer) {
    device.call(server)
}

#[test]
fn what_the_server_sends_before_its_hello_waits_for_the_hello_reply() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    // Some servers send MCP first.
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"capabilities":{"vision":{"url":"x"}}}}}"#);
    peer.send_text(r#"{"type":"stt","text":"1"}"#);
    peer.send_text("not even JSON");
    peer.send_text(r#"{"type":"llm","emotion":"happy"}"#);
    device.mqtt.assert_nothing_pending();
    peer.exchange_hello("s");
    let _call = device.hello_reply();
    for kind in ["mcp", "stt", "llm"] {
        let value = device.json();
        assert_eq!((&value["type"], &value["session_id"]), (&kind.into(), &"s".into()), "{value}");
    }
    peer.send_text(r#"{"type":"stt","text":"2"}"#);
    assert_eq!(device.json()["text"], "2");
}

#[test]
fn what_comes_in_one_write_with_the_upgrade_is_not_lost() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    device.send_text(HELLO);
    let mut peer = server.accept();
    let request = peer.request();
    let mut bytes = support::chat_server::upgrade_response(&request).into_bytes();
    bytes.extend(text_frame(r#"{"type":"stt","text":"early"}"#));
    bytes.extend(binary_audio_frame(b"\x58a"));
    peer.send_raw(&bytes);
    peer.exchange_hello("s");
    let mut call = device.hello_reply();
    assert_eq!(device.json()["text"], "early");
    call.send(0, b"\x58u");
    assert_eq!(call.receive().payload, b"\x58a");
}

#[test]
fn what_the_device_says_before_the_answer_follows_our_hello() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    device.send_text(HELLO);
    device.send_text(r#"{"type":"listen","state":"detect","text":"hi"}"#);
    device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("s");
    assert_eq!(peer.json()["state"], "detect");
    assert_eq!(peer.json()["state"], "start");
    device.hello_reply();
}

#[test]
fn speech_waits_for_the_first_datagram_and_keeps_its_order() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    let (mut call, mut peer) = start_call(&mut device, &server);
    // Other text needs no audio path.
    peer.send_text(r#"{"type":"stt","text":"0"}"#);
    assert_eq!(device.json()["text"], "0");
    for message in [
        text_frame(r#"{"type":"tts","state":"start"}"#),
        text_frame(r#"{"type":"tts","state":"sentence_start","text":"1"}"#),
        binary_audio_frame(b"\x58a"),
        binary_audio_frame(b"\x58b"),
        text_frame(r#"{"type":"tts","state":"stop"}"#),
        text_frame(r#"{"type":"llm","emotion":"x"}"#),
    ] {
        peer.send_raw(&message);
    }
    peer.ping(b"");
    while peer.message() != Message::Pong(Vec::new()) {}
    device.mqtt.assert_nothing_pending();
    call.send(0, b"\x58u");
    for expected in ["start", "sentence_start", "stop"] {
        assert_eq!(device.json()["state"], expected);
    }
    // tts stop was here, so the audio before it is.
    for (n, opus) in [(1, b"\x58a"), (2, b"\x58b")] {
        let audio = try_receive(&call).expect("tts stop overtook audio");
        assert_eq!((audio.sequence(), &audio.payload[..]), (n, &opus[..]));
    }
    assert_eq!(device.json()["type"], "llm");
    assert_eq!(peer.binary(), audio_frame(0, b"\x58u"));
}

#[test]
fn tts_stop_never_overtakes_audio() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 5);
    let (mut call, mut peer) = start_call(&mut device, &server);
    call.send(0, b"\x58u");
    peer.binary();
    // Whole sentences in one write, so that the gateway finds them in one turn.
    let burst: Vec<u8> = [
        text_frame(r#"{"type":"tts","state":"start"}"#),
        binary_audio_frame(b"\x581"),
        binary_audio_frame(b"\x582"),
        text_frame(r#"{"type":"tts","state":"stop"}"#),
        text_frame(r#"{"type":"tts","state":"start"}"#),
        binary_audio_frame(b"\x583"),
        text_frame(r#"{"type":"tts","state":"stop"}"#),
    ]
    .concat();
    for _ in 0..300 {
        peer.send_raw(&burst);
        for expected in [&[][..], &[b"\x581", b"\x582"], &[], &[b"\x583"]] {
            let state = device.json()["state"].clone();
            for opus in expected {
                let audio = try_receive(&call).unwrap_or_else(|| panic!("{state} overtook audio"));
                assert_eq!(audio.payload, opus.as_slice());
            }
        }
    }
}

#[test]
fn abort_flushes_audio_that_waits() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut log = LogCapture::containing(client_id(6));
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let (mut call, mut peer) = start_call(&mut device, &server);
    peer.send_text(r#"{"type":"tts","state":"start"}"#);
    (0..5).for_each(|_| peer.send_audio(1, b"\x58old"));
    peer.ping(b"");
    assert_eq!(peer.message(), Message::Pong(Vec::new()));
    device.send_text(r#"{"type":"abort","reason":"wake_word_detected"}"#);
    assert_eq!(peer.json()["type"], "abort");
    peer.send_text(r#"{"type":"tts","state":"stop"}"#);
    peer.send_audio(2, b"\x58new");
    peer.ping(b"2");
    assert_eq!(peer.message(), Message::Pong(b"2".to_vec()));
    call.send(0, b"\x58u");
    assert_eq!(call.receive().payload, b"\x58new");
    assert_eq!(device.json()["state"], "start");
    assert_eq!(device.json()["state"], "stop");
    device.send_text(r#"{"type":"goodbye"}"#);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "dropped"), "5");
}

#[test]
fn text_behind_the_call_s_end_is_not_lost() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    let (_call, mut peer) = start_call(&mut device, &server);
    peer.send_text(r#"{"type":"tts","state":"start"}"#);
    peer.send_text(r#"{"type":"tts","state":"stop"}"#);
    peer.send_close(Some(1000));
    assert_eq!(device.json()["state"], "start");
    assert_eq!(device.json()["state"], "stop");
    device.expect_goodbye("server-session");
}

#[test]
fn a_second_hello_of_the_server_is_ignored() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    let (_call, mut peer) = start_call(&mut device, &server);
    peer.send_text(r#"{"type":"hello","transport":"websocket","session_id":"other"}"#);
    peer.send_text(r#"{"type":"stt"}"#);
    assert_eq!(device.mqtt.text(), r#"{"session_id":"server-session","type":"stt"}"#);
}

#[test]
fn held_audio_is_bounded_and_no_text_is_lost() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.ping_interval = Duration::ZERO);
    let mut device = Device::connect(gateway.addresses().mqtt, 9);
    let (mut call, mut peer) = start_call(&mut device, &server);
    let began = Instant::now();
    (0..2000).for_each(|_| peer.send_audio(1, b"\x58held"));
    peer.send_text(r#"{"type":"tts","state":"stop"}"#);
    peer.ping(b"");
    assert_eq!(peer.message(), Message::Pong(Vec::new()));
    assert!(began.elapsed() < MS(1900), "too slow a machine for this test");
    call.send(0, b"\x58u");
    assert_eq!(device.json()["state"], "stop");
    let mut held = 0;
    while try_receive(&call).is_some() {
        held += 1;
    }
    assert!((100..1000).contains(&held), "{held} frames were held");
}
