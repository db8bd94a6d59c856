//! Binary frames of a chat server: with the 16-byte header, or raw Opus.

use std::collections::{HashSet, VecDeque};

use super::FieldReader;
use super::live_call::{KEY, LiveCall, MQTT_IP, SSRC};
use crate::config::Config;
use crate::proto::audio::{HEADER_LEN, parse_ws_frame, ws_frame_header};
use crate::session::harness::{decrypt_datagram, encrypt_datagram, frame_with_header};
use crate::session::{Action, Core, Counter, DropReason};

/// First a byte of settings, then frames. Each starts with a byte that says how it is made, and a byte for its length:
///
/// | bits | |
/// | --- | --- |
/// | 0, 1 | as it is, with a header, with a header whose length is wrong by one, with a header and 1,390 bytes more |
/// | 2, 3 | 0, 60, 1,000 or 2,500 ms after the last one |
/// | 4 | the device sends a datagram before it |
/// | 5 | the server sends its hello before it |
/// | 6 | four bytes of timestamp follow |
/// | 7 | `tts` start before it |
pub fn ws_audio(data: &[u8]) {
    check_one_frame(data);
    let mut fields = FieldReader(data);
    let settings = fields.byte();
    let mut config = Config::default();
    config.udp.downlink_flags = settings & 1 == 0;
    config.udp.keep_alive = std::time::Duration::ZERO;
    let flags = config.udp.downlink_flags;
    let mut call = LiveCall::new(config);
    let mut device = DownlinkReceiver { flags, ..DownlinkReceiver::default() };
    let mut sequence = 0;
    while !fields.is_empty() {
        let op = fields.byte();
        device.apply(call.advance([0, 60, 1_000, 2_500][usize::from(op >> 2 & 3)]));
        if op & 0x20 != 0 {
            device.apply(call.server_hello());
        }
        if op & 0x10 != 0 {
            sequence += 1;
            device.apply(send_datagram(&mut call, sequence));
        }
        if op & 0x80 != 0 {
            device
                .apply(call.drive(|core, cx| core.on_backend_text(r#"{"type":"tts","state":"start"}"#, cx)));
        }
        let timestamp = if op & 0x40 != 0 { fields.u32() } else { 0 };
        let len = fields.byte().into();
        let frame = build_frame(op & 3, timestamp, fields.bytes(len));
        match call.downlink(&frame) {
            Ok(Some((_, datagram))) => {
                let (timestamp, payload) = device.decrypt(&datagram);
                let headed = parse_ws_frame(&frame).is_some_and(|found| found == (timestamp, &payload[..]));
                assert!(headed || payload == frame, "the device gets what the server sent");
                assert!(device.held.is_empty(), "audio keeps its order");
            }
            Ok(None) => {
                device.held.push_back(frame);
                device.apply(call.drive(Core::release_held));
            }
            Err(why) => assert!(
                matches!(
                    why,
                    DropReason::NoServer | DropReason::BadFrame | DropReason::HeldFull | DropReason::NoPeer
                ),
                "{why:?}"
            ),
        }
        assert!(device.held.len() <= 256, "the number of held frames is bounded");
    }
}

/// The parsed part of a header is written as it was read.
fn check_one_frame(data: &[u8]) {
    let Some((timestamp, payload)) = parse_ws_frame(data) else {
        let len = data.get(12..16).map(|len| u32::from_be_bytes(len.try_into().unwrap()));
        return assert_ne!(len, Some((data.len().saturating_sub(HEADER_LEN)) as u32));
    };
    let again = frame_with_header(timestamp, payload);
    assert_eq!(
        parse_ws_frame(&again),
        Some((timestamp, payload)),
        "a written frame is parsed to the same values"
    );
    assert_eq!(again[8..], data[8..]);
}

fn build_frame(kind: u8, timestamp: u32, bytes: &[u8]) -> Vec<u8> {
    match kind {
        0 => bytes.to_vec(),
        1 => frame_with_header(timestamp, bytes),
        2 => [&ws_frame_header(timestamp, bytes.len() + 1)[..], bytes].concat(),
        _ => frame_with_header(timestamp, &[bytes, &[0; 1_390]].concat()),
    }
}

/// The device sends a datagram, so that its address is known.
fn send_datagram(call: &mut LiveCall, sequence: u32) -> Vec<Action> {
    let mut datagram = encrypt_datagram(&KEY, SSRC, sequence, 0, &[8]);
    // Refused while the chat server has not sent its hello.
    let _ = call.uplink((MQTT_IP, 4_000).into(), &mut datagram);
    call.drive(Core::on_device_heard)
}

/// The device's end of the downlink.
#[derive(Default)]
struct DownlinkReceiver {
    flags: bool,
    sequence: u32,
    headers: HashSet<[u8; HEADER_LEN]>,
    /// Frames that the gateway holds.
    held: VecDeque<Vec<u8>>,
}

impl DownlinkReceiver {
    fn decrypt(&mut self, datagram: &[u8]) -> (u32, Vec<u8>) {
        let (header, payload) = decrypt_datagram(&KEY, datagram);
        self.sequence += 1;
        assert_eq!((header.ssrc, header.sequence), (SSRC, self.sequence), "sequences go up by one");
        let flags = if self.flags { 0x80 | (self.sequence & 0x7f) as u8 } else { 0 };
        assert_eq!(header.flags, flags);
        assert!(self.headers.insert(header.to_bytes()), "no key and header are used twice");
        (header.timestamp, payload)
    }

    /// Held frames are sent or dropped in order.
    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SendDatagram(encrypted, bytes) => {
                    assert_eq!(encrypted.datagram_len, bytes.len());
                    let (_, payload) = self.decrypt(&bytes);
                    let frame = self.held.pop_front().expect("it was held");
                    assert!(frame.ends_with(&payload), "in the order they came");
                }
                Action::Count(Counter::Dropped(_)) => {
                    self.held.pop_front().expect("it was held");
                }
                Action::CloseBackend(_) | Action::CallEnded(_) => self.held.clear(),
                _ => {}
            }
        }
    }
}
