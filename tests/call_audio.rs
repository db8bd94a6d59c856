//! Audio through a call: UDP and AES-128-CTR on the device's side, headers or raw Opus on the server's, byte for byte.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{ChatServerConfig, Framing};
use mqtt_websocket_proxy::net::Running;
use support::audio::{Audio, Call, aes_ctr};
use support::chat_server::{ChatServer, Message, Peer, audio_frame, frame};
use support::device::{Device, HELLO, client_id};
use support::log_capture::{LogCapture, log_field};
use support::{gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A gateway, its chat server, and a device in a call whose UDP address is known.
struct Fixture {
    _gateway: Running,
    device: Device,
    call: Call,
    peer: Peer,
    _server: ChatServer,
}

fn fixture() -> Fixture {
    fixture_with(|_| {})
}

fn fixture_with(change: impl FnOnce(&mut mqtt_websocket_proxy::config::Config)) -> Fixture {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], change);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58first");
    assert_eq!(peer.binary(), audio_frame(0, b"\x58first"));
    Fixture { _gateway: gateway, device, call, peer, _server: server }
}

impl Fixture {
    /// Nothing sent before was forwarded: the next packet to arrive is a valid one.
    fn assert_dropped(&mut self, what: &str) {
        self.call.send(4711, b"\x58probe");
        assert_eq!(self.peer.binary(), audio_frame(4711, b"\x58probe"), "{what}");
    }
}

/// A packet that has arrived already; does not wait for one.
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

fn opus(len: usize) -> Vec<u8> {
    (0..len).map(|i| if i == 0 { 0x58 } else { (i * 7 + len) as u8 }).collect()
}

#[test]
fn audio_passes_both_ways_byte_for_byte_with_its_timestamps() {
    let mut up = fixture();
    let sizes = [1, 2, 15, 16, 17, 31, 32, 33, 100, 160, 255, 256, 1000, 1275, 1399, 1400];
    let timestamps = [0, 0, 1, 60, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0];
    let packets: Vec<_> = sizes.iter().zip(timestamps.iter().cycle()).collect();
    for (size, timestamp) in &packets {
        up.call.send(**timestamp, &opus(**size));
        assert_eq!(up.peer.binary(), audio_frame(**timestamp, &opus(**size)));
    }
    for (n, (size, timestamp)) in packets.iter().enumerate() {
        up.peer.send_audio(**timestamp, &opus(**size));
        let audio = up.call.receive();
        assert_eq!((audio.timestamp(), audio.sequence()), (**timestamp, n as u32 + 1));
        assert_eq!(audio.payload, opus(**size));
        assert_eq!(audio.ssrc(), up.call.ssrc());
    }
    // Longer ones are dropped, either way, and the call goes on.
    up.peer.send_audio(1, &opus(1401));
    up.call.send(1, &opus(1401));
    up.assert_dropped("1,401 bytes");
    up.peer.send_audio(2, &opus(3));
    assert_eq!(up.call.receive().payload, opus(3));
}

#[test]
fn the_uplink_header_is_version_2_type_0_timestamp_and_length() {
    let mut up = fixture();
    up.call.send(0x0102_0304, b"\x58ab");
    assert_eq!(up.peer.binary(), [&[0, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 3][..], b"\x58ab"].concat());
}

#[test]
fn downlink_headers_of_every_known_server_are_understood() {
    let mut up = fixture();
    // Only bytes 8 to 16 count. Before: zeroes, version 2, or type, length and sequence of the Python server.
    for (sequence, before) in
        [[0; 8], [0, 2, 0, 0, 0, 0, 0, 0], [1, 0, 0, 3, 0, 0, 0, 9], [0xff; 8]].iter().enumerate()
    {
        up.peer.send_binary(&[&before[..], &[0, 0, 1, 0, 0, 0, 0, 3], b"\x58ab"].concat());
        let audio = up.call.receive();
        assert_eq!((audio.timestamp(), audio.sequence()), (256, sequence as u32 + 1));
        assert_eq!(audio.payload, b"\x58ab");
    }
}

#[test]
fn no_two_packets_of_a_call_share_a_counter_block() {
    let mut up = fixture_with(|config| config.udp.downlink_pace = false);
    let mut blocks = std::collections::HashSet::new();
    // Equal lengths and timestamps in both directions: the worst case.
    for sequence in 1..=300 {
        up.peer.send_audio(0, &opus(100));
        let audio = up.call.receive();
        assert_eq!(audio.flags(), 0x80 | (sequence & 0x7f) as u8);
        let first = u128::from_be_bytes(audio.header);
        (0..7).for_each(|block| assert!(blocks.insert(first + block), "sequence {sequence}"));
        let mut uplink = up.call.nonce;
        uplink[3] = 100;
        uplink[12..].copy_from_slice(&(sequence as u32).to_be_bytes());
        assert!(!blocks.contains(&u128::from_be_bytes(uplink)));
    }
}

#[test]
fn the_flags_of_the_downlink_can_be_turned_off() {
    let mut up = fixture_with(|config| config.udp.downlink_flags = false);
    for sequence in 1..=3 {
        up.peer.send_audio(0, b"\x58a");
        let audio = up.call.receive();
        assert_eq!((audio.flags(), audio.sequence(), &audio.payload[..]), (0, sequence, &b"\x58a"[..]));
    }
}

#[test]
fn only_the_flags_of_the_nonce_are_taken_in_the_uplink() {
    let mut up = fixture();
    for (flags, ahead) in [(1, 1), (0x7f, 1), (0x80, 1), (0x81, 2), (0xff, 2), (0, 1), (0xff, 2), (0, 2)] {
        up.call.nonce[1] = flags;
        up.call.send_raw(&up.call.seal(flags.into(), up.call.sequence + ahead, b"\x58abc"));
    }
    for _ in 0..2 {
        assert_eq!(up.peer.binary(), audio_frame(0, b"\x58abc"));
    }
}

fn with_framing(server: &ChatServer, framing: Framing) -> Running {
    gateway_with(&[] as &[&str], |config| {
        let mut one: ChatServerConfig = server.url().parse().unwrap();
        one.framing = framing;
        config.websocket.production = vec![Arc::new(one)];
    })
}

#[test]
fn a_raw_server_gets_and_sends_bare_opus() {
    let server = ChatServer::start();
    let gateway = with_framing(&server, Framing::Raw);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(99, &opus(50));
    assert_eq!(peer.binary(), opus(50));
    let mut last = 0;
    for n in 1..5 {
        // A frame that looks like a header is still Opus.
        let frame = if n == 3 { audio_frame(1, b"\x58x") } else { opus(20 + n) };
        peer.send_binary(&frame);
        let audio = call.receive();
        assert_eq!((&audio.payload, audio.sequence()), (&frame, n as u32));
        // Derived from the time since the session's start: never zero, never decreasing.
        assert!(audio.timestamp() >= last.max(1), "{} after {last}", audio.timestamp());
        last = audio.timestamp();
    }
}

#[test]
fn a_server_fixed_to_headers_is_not_taken_for_raw() {
    let server = ChatServer::start();
    let gateway = with_framing(&server, Framing::Header);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &opus(9));
    assert_eq!(peer.binary(), audio_frame(0, &opus(9)));
    (0..5).for_each(|n| peer.send_binary(&opus(20 + n)));
    peer.send_audio(6, &opus(7));
    let audio = call.receive();
    assert_eq!((audio.sequence(), audio.payload), (1, opus(7)));
}

#[test]
fn auto_learns_raw_from_three_frames_and_remembers_it_for_that_server() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &opus(9));
    assert_eq!(peer.binary(), audio_frame(0, &opus(9)), "headers until it is known better");
    // The first three are held, then released in order.
    (0..5).for_each(|n| peer.send_binary(&opus(20 + n)));
    for n in 0..5 {
        let audio = call.receive();
        assert_eq!((audio.sequence(), audio.payload), (n + 1, opus(20 + n as usize)));
    }
    call.send(0, &opus(10));
    assert_eq!(peer.binary(), opus(10));
    // The next call knows from its first frame on.
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &opus(11));
    assert_eq!(peer.binary(), opus(11));
    peer.send_binary(&opus(30));
    assert_eq!(call.receive().payload, opus(30));
    // A consistent header changes that permanently.
    peer.send_audio(8, &opus(31));
    let Audio { payload, .. } = call.receive();
    assert_eq!(payload, opus(31));
    call.send(0, &opus(12));
    assert_eq!(peer.binary(), audio_frame(0, &opus(12)));
}

/// The protocol versions in the upgrade and the hello of the next dial.
fn versions(server: &ChatServer) -> (Peer, [String; 2]) {
    let mut peer = server.accept();
    let header = peer.upgrade().header("protocol-version").unwrap().to_owned();
    let hello = peer.exchange_hello("server-session")["version"].to_string();
    (peer, [header, hello])
}

#[test]
fn bare_opus_is_protocol_version_1_and_the_header_is_2() {
    for (framing, version) in [(Framing::Raw, "1"), (Framing::Header, "2"), (Framing::Auto, "2")] {
        let server = ChatServer::start();
        let gateway = with_framing(&server, framing);
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        device.send_text(HELLO);
        let (peer, said) = versions(&server);
        assert_eq!(said, [version; 2], "{framing:?}");
        let _call = device.hello_reply();
        peer.reset();
        assert_eq!(versions(&server).1, [version; 2], "{framing:?}: a redial");
    }
}

#[test]
fn a_server_that_was_learnt_to_be_raw_is_told_protocol_version_1() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &opus(9));
    (0..3).for_each(|n| peer.send_binary(&opus(20 + n)));
    (0..3).for_each(|_| drop(call.receive()));
    peer.reset();
    assert_eq!(versions(&server).1, ["1"; 2], "a redial");
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    device.send_text(HELLO);
    let (mut peer, said) = versions(&server);
    assert_eq!(said, ["1"; 2], "a later call");
    let mut call = device.hello_reply();
    call.send(0, &opus(9));
    assert_eq!(peer.binary(), opus(9));
    peer.send_audio(8, &opus(31));
    assert_eq!(call.receive().payload, opus(31));
    peer.reset();
    assert_eq!(versions(&server).1, ["2"; 2], "it speaks headers after all");
}

#[test]
fn auto_drops_what_it_held_when_a_header_comes() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &opus(9));
    peer.binary();
    peer.send_binary(&opus(20));
    peer.send_binary(&opus(21));
    peer.send_audio(5, &opus(22));
    let audio = call.receive();
    assert_eq!((audio.sequence(), audio.timestamp(), audio.payload), (1, 5, opus(22)));
    // From now on bare frames are invalid.
    (0..4).for_each(|n| peer.send_binary(&opus(20 + n)));
    peer.send_audio(6, &opus(23));
    assert_eq!(call.receive().payload, opus(23));
}

#[test]
fn audio_before_the_devices_first_datagram_waits_and_keeps_its_place() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    let (mut call, mut peer) = device.call(&server);
    // Text before the speech is not held.
    peer.send_text(r#"{"type":"stt","text":"0"}"#);
    assert_eq!(device.json()["text"], "0");
    peer.send_text(r#"{"type":"tts","state":"start"}"#);
    peer.send_text(r#"{"type":"tts","state":"sentence_start","text":"1"}"#);
    peer.send_audio(7, b"\x58a");
    peer.send_audio(7, b"\x58b");
    peer.send_text(r#"{"type":"tts","state":"stop"}"#);
    peer.send_text(r#"{"type":"llm","emotion":"x"}"#);
    peer.ping(b"");
    while peer.message() != Message::Pong(Vec::new()) {}
    device.mqtt.assert_nothing_pending();
    call.send(0, b"\x58u");
    for expected in ["start", "sentence_start", "stop"] {
        assert_eq!(device.json()["state"], expected);
    }
    // tts stop has arrived, so the audio before it has too.
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
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58u");
    peer.binary();
    // Whole sentences in one write, so that the gateway reads them at once.
    let text = |state: &str| frame(1, format!(r#"{{"type":"tts","state":"{state}"}}"#).as_bytes());
    let audio = |opus: &[u8]| frame(2, &audio_frame(7, opus));
    let first = [text("start"), audio(b"\x581"), audio(b"\x582"), text("stop")].concat();
    let second = [text("start"), audio(b"\x583"), text("stop")].concat();
    let burst = [first, second].concat();
    for _ in 0..30 {
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
fn a_whole_reply_in_one_write_arrives_at_the_pace_of_speech_and_tts_stop_is_last() {
    let mut up = fixture();
    let text = |state: &str| frame(1, format!(r#"{{"type":"tts","state":"{state}"}}"#).as_bytes());
    let audio: Vec<u8> = (0..40).flat_map(|n| frame(2, &audio_frame(n, b"\x58ab"))).collect();
    // Not after anything that the gateway does, since a slow machine may tell this test late.
    let started = Instant::now();
    up.peer.send_raw(&[text("start"), audio, text("stop")].concat());
    assert_eq!(up.device.json()["state"], "start");
    let mut arrivals = Vec::new();
    for n in 0..40 {
        assert_eq!(up.call.receive().timestamp(), n);
        arrivals.push(started.elapsed());
    }
    assert!(arrivals[0] >= MS(20), "the first follows tts start after {:?}", arrivals[0]);
    for (n, at) in arrivals.iter().enumerate() {
        let played = at.as_millis() / 60;
        assert!(n as u128 <= played + 6, "{n} frames after {at:?}");
    }
    assert_eq!(up.device.json()["state"], "stop");
    assert!(started.elapsed() >= arrivals[39], "tts stop is last");
}

#[test]
fn an_abort_in_the_middle_of_a_reply_is_silence_and_tts_stop_at_once() {
    let mut up = fixture();
    let text = |state: &str| frame(1, format!(r#"{{"type":"tts","state":"{state}"}}"#).as_bytes());
    let audio: Vec<u8> = (0..100).flat_map(|n| frame(2, &audio_frame(n, b"\x58ab"))).collect();
    up.peer.send_raw(&[text("start"), audio, text("stop")].concat());
    assert_eq!(up.device.json()["state"], "start");
    (0..10).for_each(|n| assert_eq!(up.call.receive().timestamp(), n));
    up.device.send_text(r#"{"type":"abort"}"#);
    assert_eq!(up.device.json()["state"], "stop");
    while try_receive(&up.call).is_some() {}
    // The next speech is the next that is heard.
    up.peer.send_raw(&[text("start"), frame(2, &audio_frame(500, b"\x58ab"))].concat());
    assert_eq!(up.call.receive().timestamp(), 500);
}

#[test]
fn abort_discards_held_audio() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut log = LogCapture::containing(client_id(6));
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let (mut call, mut peer) = device.call(&server);
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
fn held_audio_is_bounded_to_five_minutes_and_no_text_is_lost() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.websocket.ping_interval = Duration::ZERO;
        config.udp.downlink_pace = false;
    });
    let mut log = LogCapture::containing(client_id(9));
    let mut device = Device::connect(gateway.addresses().mqtt, 9);
    let (mut call, mut peer) = device.call(&server);
    let began = Instant::now();
    (0..5_100).for_each(|_| peer.send_audio(1, b"\x58held"));
    peer.send_text(r#"{"type":"tts","state":"stop"}"#);
    peer.ping(b"");
    assert_eq!(peer.message(), Message::Pong(Vec::new()));
    if began.elapsed() > MS(1900) {
        return eprintln!("SKIPPED: this machine is too slow: audio is held for two seconds");
    }
    call.send(0, b"\x58u");
    assert_eq!(device.json()["state"], "stop");
    device.send_text(r#"{"type":"goodbye"}"#);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "dropped"), "100");
}

#[test]
fn a_steady_stream_both_ways_arrives_whole_and_in_order() {
    const PACKETS: u32 = 2_000;
    // Many times faster than real time.
    let Fixture { _gateway, device: _device, mut call, mut peer, .. } =
        fixture_with(|config| config.udp.downlink_pace = false);
    let echo = thread::scope(|scope| {
        let echo = scope.spawn(move || {
            for sequence in 0..PACKETS {
                let frame = peer.binary();
                assert_eq!(frame, audio_frame(sequence, &stream_payload(sequence)));
                peer.send_binary(&frame);
            }
        });
        // A window of a few packets: as fast as possible without overflowing the system's buffers.
        let mut next = 0;
        for expected in 0..PACKETS {
            while next < PACKETS && next < expected + 16 {
                call.send(next, &stream_payload(next));
                next += 1;
            }
            let audio = call.receive();
            assert_eq!((audio.timestamp(), audio.sequence()), (expected, expected + 1));
            assert_eq!(audio.payload, stream_payload(expected));
        }
        echo.join()
    });
    echo.unwrap();
}

fn stream_payload(n: u32) -> Vec<u8> {
    [&[0x58][..], &n.to_be_bytes(), &vec![n as u8; (n % 200) as usize]].concat()
}

#[test]
fn a_server_that_does_not_read_loses_audio_only() {
    // It does not read pings either.
    let mut up = fixture_with(|config| config.websocket.ping_interval = Duration::ZERO);
    up.peer.shrink_receive_buffer();
    // More than all buffers on the way usually hold.
    const PACKETS: u32 = 3_600;
    for n in 0..PACKETS {
        up.call.send(n, &opus(1400));
        if n % 50 == 0 {
            up.device.mqtt.assert_nothing_pending();
        }
    }
    // The frames that arrive are whole and in order, and the call goes on.
    let (mut last, mut count) = (None, 0);
    while let Some(message) = up.peer.message_within(Duration::from_secs(2)) {
        let Message::Binary(frame) = message else { panic!("{message:?}") };
        assert_eq!(frame.len(), 1416);
        let timestamp = u32::from_be_bytes(frame[8..12].try_into().unwrap());
        assert!(last.is_none_or(|last| timestamp > last));
        last = Some(timestamp);
        count += 1;
    }
    assert!((100..=PACKETS).contains(&count), "{count}");
    up.assert_dropped("what did not fit");
}
