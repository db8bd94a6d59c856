//! Binary frames of a chat server: with the 16-byte header, or raw Opus.

use std::collections::{HashSet, VecDeque};

use super::Fields;
use super::live_call::{Call, HOME, SSRC, cipher};
use crate::config::Config;
use crate::proto::audio::{HEADER, Header, MAX_PAYLOAD, parse_ws, ws_header};
use crate::session::{Action, Core, Counter, Discard};

/// First a byte of settings, then frames, each behind a byte that says how it is made and one for its length:
///
/// | bits | |
/// | --- | --- |
/// | 0, 1 | as it stands, with a header, with a header one byte off, with a header and 1,390 bytes more |
/// | 2, 3 | 0, 60, 1,000 or 2,500 ms after the last one |
/// | 4 | the device sends a datagram before it |
/// | 5 | the server says hello before it |
/// | 6 | four bytes of timestamp follow |
/// | 7 | `tts` start before it |
pub fn ws_audio(data: &[u8]) {
    one_frame(data);
    let mut fields = Fields(data);
    let settings = fields.byte();
    let mut config = Config::default();
    config.udp.downlink_flags = settings & 1 == 0;
    let flags = config.udp.downlink_flags;
    let mut call = Call::new(config);
    let mut device = Device { flags, ..Device::default() };
    let mut voice = 0;
    while !fields.is_empty() {
        let op = fields.byte();
        device.act(call.advance([0, 60, 1_000, 2_500][usize::from(op >> 2 & 3)]));
        if op & 0x20 != 0 {
            device.act(call.greet());
        }
        if op & 0x10 != 0 {
            voice += 1;
            device.act(speak(&mut call, voice));
        }
        if op & 0x80 != 0 {
            device.act(call.drive(|core, cx| core.backend_text(r#"{"type":"tts","state":"start"}"#, cx)));
        }
        let timestamp = if op & 0x40 != 0 { fields.u32() } else { 0 };
        let len = fields.byte().into();
        let frame = frame(op & 3, timestamp, fields.bytes(len));
        let mut out = [0; HEADER + MAX_PAYLOAD];
        match call.downlink(&frame, &mut out) {
            Ok(Some(sealed)) => {
                let (timestamp, payload) = device.hear(&out[..sealed.len]);
                let headed = parse_ws(&frame).is_some_and(|found| found == (timestamp, &payload[..]));
                assert!(headed || payload == frame, "what the server sent is what the device hears");
                assert!(device.held.is_empty(), "audio keeps its order");
            }
            Ok(None) => {
                device.held.push_back(frame);
                device.act(call.drive(Core::audible));
            }
            Err(why) => assert!(
                matches!(why, Discard::NoServer | Discard::BadFrame | Discard::HeldFull | Discard::NoPeer),
                "{why:?}"
            ),
        }
        assert!(device.held.len() <= 256, "what waits has a bound");
    }
}

/// A consistent header is read, and written again as far as it is read.
fn one_frame(data: &[u8]) {
    let Some((timestamp, payload)) = parse_ws(data) else {
        let len = data.get(12..16).map(|len| u32::from_be_bytes(len.try_into().unwrap()));
        return assert_ne!(len, Some((data.len().saturating_sub(HEADER)) as u32));
    };
    let again = [&ws_header(timestamp, payload.len())[..], payload].concat();
    assert_eq!(parse_ws(&again), Some((timestamp, payload)), "parse of print is identity");
    assert_eq!(again[8..], data[8..]);
}

fn frame(kind: u8, timestamp: u32, bytes: &[u8]) -> Vec<u8> {
    match kind {
        0 => bytes.to_vec(),
        1 => [&ws_header(timestamp, bytes.len())[..], bytes].concat(),
        2 => [&ws_header(timestamp, bytes.len() + 1)[..], bytes].concat(),
        _ => {
            let bytes = [bytes, &[0; 1_390]].concat();
            [&ws_header(timestamp, bytes.len())[..], &bytes].concat()
        }
    }
}

/// A datagram of the device, by which its address is known.
fn speak(call: &mut Call, sequence: u32) -> Vec<Action> {
    let header = Header { flags: 0, len: 1, ssrc: SSRC, timestamp: 0, sequence };
    let mut datagram = [&header.bytes()[..], &[8]].concat();
    cipher().apply(&header.bytes(), &mut datagram[HEADER..]);
    // A chat server that is not there yet gets nothing.
    let _ = call.uplink((HOME, 4_000).into(), &mut datagram);
    call.drive(Core::audible)
}

/// The device's end of the downlink.
#[derive(Default)]
struct Device {
    flags: bool,
    sequence: u32,
    headers: HashSet<[u8; HEADER]>,
    /// Frames that wait in the gateway.
    held: VecDeque<Vec<u8>>,
}

impl Device {
    fn hear(&mut self, datagram: &[u8]) -> (u32, Vec<u8>) {
        let header = Header::parse(datagram).expect("a good datagram");
        self.sequence += 1;
        assert_eq!((header.ssrc, header.sequence), (SSRC, self.sequence), "strictly one after the other");
        let flags = if self.flags { 0x80 | (self.sequence & 0x7f) as u8 } else { 0 };
        assert_eq!(header.flags, flags);
        assert!(self.headers.insert(header.bytes()), "no key and header are used twice");
        let mut payload = datagram[HEADER..].to_vec();
        cipher().apply(&header.bytes(), &mut payload);
        (header.timestamp, payload)
    }

    /// Held frames leave, or are dropped, one after the other.
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Datagram(sealed, bytes) => {
                    assert_eq!(sealed.len, bytes.len());
                    let (_, payload) = self.hear(&bytes);
                    let frame = self.held.pop_front().expect("it was held");
                    assert!(frame.ends_with(&payload), "in the order they came");
                }
                Action::Count(Counter::Dropped(_)) => {
                    self.held.pop_front().expect("it was held");
                }
                Action::HangUp(_) | Action::Ended(_) => self.held.clear(),
                _ => {}
            }
        }
    }
}
