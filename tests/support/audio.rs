//! The device's side of a call's audio, with OpenSSL's AES.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use openssl::symm::{Cipher, Crypter, Mode};
use serde_json::Value;

use super::{TIMEOUT, remaining};

/// A packet from the gateway, decrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audio {
    pub header: [u8; 16],
    pub payload: Vec<u8>,
}

impl Audio {
    pub fn flags(&self) -> u8 {
        self.header[1]
    }

    pub fn ssrc(&self) -> u32 {
        word(&self.header[4..])
    }

    pub fn timestamp(&self) -> u32 {
        word(&self.header[8..])
    }

    pub fn sequence(&self) -> u32 {
        word(&self.header[12..])
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// The parameters of a hello reply, and a socket to use them.
#[derive(Debug)]
pub struct Call {
    pub reply: Value,
    pub session_id: String,
    pub key: [u8; 16],
    pub nonce: [u8; 16],
    pub gateway: SocketAddr,
    pub udp: UdpSocket,
    pub sequence: u32,
}

impl Call {
    /// Parses the hello reply as strictly as the firmware.
    pub fn new(reply: Value) -> Self {
        assert_eq!((&reply["type"], &reply["transport"]), (&"hello".into(), &"udp".into()), "{reply}");
        let udp = &reply["udp"];
        assert_eq!(udp["encryption"], "aes-128-ctr", "{reply}");
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
        let port = u16::try_from(udp["port"].as_u64().unwrap()).unwrap();
        let call = Self {
            session_id: text(&reply["session_id"]),
            key: hex(&text(&udp["key"])),
            nonce: hex(&text(&udp["nonce"])),
            gateway: SocketAddr::new(text(&udp["server"]).parse().unwrap(), port),
            udp: UdpSocket::bind(("127.0.0.1", 0)).unwrap(),
            sequence: 0,
            reply: reply.clone(),
        };
        assert!(!call.session_id.is_empty(), "{reply}");
        assert_eq!((call.nonce[0], &call.nonce[8..]), (1, &[0; 8][..]), "{reply}");
        call
    }

    pub fn ssrc(&self) -> u32 {
        word(&self.nonce[4..])
    }

    /// The datagram the firmware would send: the nonce with length, timestamp and sequence written over it, and the
    /// payload encrypted under it.
    pub fn seal(&self, timestamp: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut header = self.nonce;
        header[2..4].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        header[8..12].copy_from_slice(&timestamp.to_be_bytes());
        header[12..].copy_from_slice(&sequence.to_be_bytes());
        let mut datagram = header.to_vec();
        datagram.extend(aes_ctr(&self.key, &header, payload));
        datagram
    }

    /// Sends the next packet.
    pub fn send(&mut self, timestamp: u32, payload: &[u8]) {
        self.sequence += 1;
        self.send_raw(&self.seal(timestamp, self.sequence, payload));
    }

    /// Goes on from this socket, with a packet in 60 ms as a device, until `heard` gets one within that time: the last 32 must
    /// arrive.
    pub fn move_to(&mut self, udp: UdpSocket, mut heard: impl FnMut(Duration) -> Option<Vec<u8>>) {
        self.udp = udp;
        let (start, first) = (Instant::now(), self.sequence + 1);
        let payload = |sequence: u32| [&[0x58][..], &sequence.to_be_bytes()].concat();
        let mut next = loop {
            self.send(0, &payload(self.sequence + 1));
            if let Some(opus) = heard(Duration::from_millis(60)) {
                break Some(opus);
            }
            assert!(start.elapsed() < TIMEOUT, "the new source is not taken");
        };
        for sequence in first.max(self.sequence.saturating_sub(31))..=self.sequence {
            let opus = next.take().or_else(|| heard(TIMEOUT)).expect("lost");
            assert!(opus.ends_with(&payload(sequence)), "{opus:?} instead of {sequence}");
        }
    }

    /// The device says twenty packets, and hears them again: the gateway's echo server is in the call.
    pub fn assert_echo(&mut self, mut send_text: impl FnMut(&str)) {
        send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
        let said: Vec<Vec<u8>> = (0..20).map(|n| [&[0x58, n][..], &[n; 40]].concat()).collect();
        for (n, packet) in said.iter().enumerate() {
            self.send(n as u32 * 60, packet);
        }
        send_text(r#"{"type":"listen","state":"stop"}"#);
        let heard: Vec<Vec<u8>> = said.iter().map(|_| self.receive().payload).collect();
        assert_eq!(heard, said);
    }

    pub fn send_raw(&self, datagram: &[u8]) {
        self.udp.send_to(datagram, self.gateway).unwrap();
    }

    /// The next packet of the gateway.
    pub fn receive(&self) -> Audio {
        self.receive_within(TIMEOUT).expect("no audio")
    }

    pub fn receive_within(&self, limit: Duration) -> Option<Audio> {
        let end = Instant::now() + limit;
        let mut buffer = [0; 2048];
        loop {
            self.udp.set_read_timeout(Some(remaining(end))).unwrap();
            match self.udp.recv_from(&mut buffer) {
                Ok((n, from)) => {
                    // The firmware's socket is connected: packets from elsewhere do not reach it.
                    assert_eq!(from, self.gateway);
                    let header: [u8; 16] = buffer[..16].try_into().unwrap();
                    assert_eq!(header[0], 1, "type");
                    assert_eq!(
                        usize::from(u16::from_be_bytes([header[2], header[3]])),
                        n - 16,
                        "exact length"
                    );
                    return Some(Audio { header, payload: aes_ctr(&self.key, &header, &buffer[16..n]) });
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return None;
                    }
                }
                // By a signal, as when the test was stopped for a while.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// AES-128-CTR with the whole header as the initial counter block.
pub fn aes_ctr(key: &[u8; 16], iv: &[u8; 16], data: &[u8]) -> Vec<u8> {
    let mut crypter = Crypter::new(Cipher::aes_128_ctr(), Mode::Encrypt, key, Some(iv)).unwrap();
    let mut out = vec![0; data.len() + 16];
    let n = crypter.update(data, &mut out).unwrap();
    let n = n + crypter.finalize(&mut out[n..]).unwrap();
    out.truncate(n);
    out
}

fn hex(text: &str) -> [u8; 16] {
    assert_eq!(text.len(), 32, "{text}");
    let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
    std::array::from_fn(byte)
}
