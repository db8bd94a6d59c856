//! The actions of the device: over MQTT, over UDP, and with its connection.

use super::*;
use crate::proto::audio::{ReplayWindow, UdpHeader};
use crate::proto::mqtt::Packet;
use crate::session::harness::encrypt_datagram;
use crate::session::sim::audio_model::DeviceDatagram;

impl Simulation {
    pub(super) fn device_step(&mut self) {
        if self.firmware.is_some() {
            return self.person_step();
        }
        let Some(s) = self.current.filter(|s| self.sessions[*s].model.is_connected()) else {
            return if self.rng.percent(60) { self.connect() } else { self.send_audio() };
        };
        self.sessions[s].core.refresh_keep_alive(self.shell.now);
        match self.rng.below(100) {
            0..12 => self.send_hello(s),
            12..30 => self.send_numbered_text(s, "listen", ""),
            30..34 => self.send_numbered_text(s, "abort", ""),
            34..36 => self.send_numbered_text(s, "iot", ""),
            36..38 => self.send_numbered_text(s, "mcp", ""),
            38..44 => self.send_goodbye(s),
            44..45 => self.send_text_burst(s),
            45..48 => self.disconnect(s),
            48..54 => {
                self.log(format_args!("[{s}] the connection is lost"));
                let blocked = self.rng.percent(20);
                self.drive(
                    s,
                    Input::ConnectionLost,
                    if blocked { Core::on_slow_reader } else { Core::on_connection_lost },
                );
            }
            54..57 => self.connect(),
            57..59 => self.send_invalid_text(s),
            59..60 => {
                self.log(format_args!("[{s}] udp_timeout"));
                self.send_text(s, r#"{"type":"udp_timeout"}"#);
            }
            60..61 => {
                self.log(format_args!("[{s}] a second CONNECT"));
                self.drive(s, Input::Other, |core, cx| core.on_packet(connect_packet(ID, 60), cx));
            }
            _ => self.send_audio(),
        }
    }

    /// A new connection of the same device, which continues the call of the older one or replaces that connection.
    pub(super) fn connect(&mut self) {
        let ip = self.rng.pick(&["192.0.2.7", "192.0.2.7", "192.0.2.8"]).parse().unwrap();
        let newer = self.shell.connect(ip, connect_packet(ID, 60));
        let older = self.current.filter(|s| !self.sessions[*s].core.is_closed());
        let keep = !self.shell.config.mqtt.resume_grace.is_zero();
        if let Some(older) = older.filter(|s| keep && self.sessions[*s].core.has_call()) {
            self.log(format_args!("[{older}] the device connects again from {ip} and takes over"));
            self.drive(older, Input::Reconnected(ip), |core, cx| core.take_over(newer, cx));
            return;
        }
        if let Some(older) = older {
            self.log(format_args!("[{older}] is replaced"));
            self.drive(older, Input::Other, Core::on_replaced);
        }
        let s = self.sessions.len();
        self.sessions.push(ModelledSession { core: newer, model: Model::new(ip) });
        self.current = Some(s);
        self.log(format_args!("[{s}] the device connects from {ip}"));
        self.drive(s, Input::Other, |core, cx| core.on_admission(Admission::Accepted, cx));
    }

    pub(super) fn send_text(&mut self, s: usize, text: &str) {
        let input = self.sessions[s].model.on_device_text(text);
        self.drive(s, input, |core, cx| core.on_packet(publish_packet(text.as_bytes()), cx));
    }

    fn send_hello(&mut self, s: usize) {
        self.log(format_args!("[{s}] hello"));
        self.send_text(s, r#"{"type":"hello","version":3,"transport":"udp"}"#);
    }

    fn send_numbered_text(&mut self, s: usize, kind: &str, filler: &str) {
        let n = self.next_serial();
        let id = self.sessions[s].model.session_id().filter(|_| !self.rng.percent(10));
        let id = id.map(|id| format!(r#","session_id":"{id}""#)).unwrap_or_default();
        self.log(format_args!("[{s}] {kind} {n}"));
        if kind == "abort" {
            self.sessions[s].model.on_abort();
        }
        self.send_text(s, &format!(r#"{{"type":"{kind}","state":"start","n":{n}{id},"x":"{filler}"}}"#));
    }

    /// Too many texts, or too many bytes.
    fn send_text_burst(&mut self, s: usize) {
        let filler = "x".repeat(self.rng.pick(&[0, LONG_TEXT_BYTES]));
        for _ in 0..self.rng.pick(&TEXT_BURST_SIZES) {
            self.send_numbered_text(s, "iot", &filler);
        }
    }

    fn send_goodbye(&mut self, s: usize) {
        self.log(format_args!("[{s}] goodbye"));
        self.send_text(s, r#"{"type":"goodbye"}"#);
    }

    fn disconnect(&mut self, s: usize) {
        self.log(format_args!("[{s}] DISCONNECT"));
        self.sessions[s].model.on_device_disconnect();
        self.coverage.extend(self.sessions[s].model.is_closing().then_some("text of a closing call"));
        self.drive(s, Input::Other, |core, cx| core.on_packet(Packet::Disconnect, cx));
    }

    fn send_invalid_text(&mut self, s: usize) {
        let text = self.rng.pick(&["", "{", "[]", "nonsense"]);
        self.log(format_args!("[{s}] {text:?}"));
        self.drive(s, Input::Other, |core, cx| core.on_packet(publish_packet(text.as_bytes()), cx));
    }

    // ----- audio --------------------------------------------------------------------------------------------------

    pub(super) fn send_audio(&mut self) {
        let Some(s) = self.current else { return };
        let Some(mut datagram) = self.sessions[s].model.next_datagram() else { return };
        match self.rng.below(100) {
            0..55 => {}
            // Packets before it were lost.
            55..65 => datagram.sequence += self.rng.below(5) as u32,
            // A duplicate, or late.
            65..75 => datagram.sequence -= (self.rng.below(80) as u32).min(datagram.sequence - 1),
            // Corrupted.
            75..76 => datagram.sequence += 1_000_000,
            76..77 => return self.send_forged_audio(s, datagram),
            77..87 => return self.send_spoofed_audio(s, datagram.sequence),
            _ => return self.change_address(s, datagram.sequence),
        }
        if !self.sessions[s].model.is_known(datagram.from) {
            return self.send_run(s, datagram.sequence, datagram.from);
        }
        self.log(format_args!("[{s}] datagram {} from {}", datagram.sequence, datagram.from));
        let outcome = self.uplink(s, datagram.sequence, datagram.from);
        self.sessions[s].model.on_uplink(datagram, outcome, self.shell.now);
    }

    /// A packet from the device's own address that jumps: it is forwarded, but the device's next one is taken.
    fn send_forged_audio(&mut self, s: usize, mut datagram: DeviceDatagram) {
        if !self.sessions[s].model.is_confirmed(datagram.from) {
            return;
        }
        datagram.sequence += 65 + self.rng.below(440) as u32;
        self.log(format_args!("[{s}] forged datagram {} from {}", datagram.sequence, datagram.from));
        let outcome = self.uplink(s, datagram.sequence, datagram.from);
        use DropReason::{Duplicate, Late, NoServer};
        assert!(matches!(outcome, Ok(_) | Err(NoServer | Duplicate | Late)), "{outcome:?}");
    }

    /// Each from another port, so that no address is validated.
    fn send_spoofed_audio(&mut self, s: usize, sequence: u32) {
        self.next_serial();
        let from = std::net::SocketAddr::new([203, 0, 113, 9].into(), 1_000 + (self.serial % 60_000) as u16);
        let sequence = sequence + self.rng.below(3) as u32;
        self.log(format_args!("[{s}] spoofed datagram {sequence} from {from}"));
        let outcome = self.uplink(s, sequence, from);
        assert!(matches!(outcome, Err(DropReason::ForeignSource | DropReason::PathHeld)), "{outcome:?}");
        // A downlink packet that is sent back.
        let ModelledSession { core, model } = &mut self.sessions[s];
        let (ssrc, key) = model.ssrc_and_key();
        let mut bytes = encrypt_datagram(&key, ssrc, sequence, 0, b"\x08");
        bytes[1] = 0x80 | (sequence & 0x7f) as u8;
        for from in [from, std::net::SocketAddr::new(core.ip(), 4_000)] {
            assert_eq!(self.shell.uplink(core, from, &mut bytes), Err(DropReason::DatagramFlags));
        }
        // Too short, too long, and of a wrong type.
        for bytes in [&mut [][..], &mut [1; 9], &mut [1; 2_000], &mut [9; 40]] {
            let ModelledSession { core, .. } = &mut self.sessions[s];
            let bad = UdpHeader::parse(bytes).unwrap_err();
            let outcome = self.shell.uplink(core, from, bytes);
            assert_eq!(outcome, Err(bad.into()));
        }
    }

    /// The device's network changes: datagrams from another port or another address.
    fn change_address(&mut self, s: usize, sequence: u32) {
        let from = match self.rng.below(3) {
            0 => std::net::SocketAddr::new(self.sessions[s].model.mqtt_ip, 5_000 + self.rng.below(3) as u16),
            _ => std::net::SocketAddr::new([198, 51, 100, 1].into(), 7_000 + self.rng.below(2) as u16),
        };
        self.send_run(s, sequence, from);
    }

    /// As many datagrams as make a source known, if the known one is silent.
    fn send_run(&mut self, s: usize, sequence: u32, from: std::net::SocketAddr) {
        self.log(format_args!("[{s}] datagrams {sequence}.. from {from}"));
        for sequence in (sequence..).take(ReplayWindow::RUN.into()) {
            let model = &self.sessions[s].model;
            let policy = self.shell.config.udp.peer_policy;
            let (known, may_move) = (model.is_known(from), model.may_move_to(from, policy, self.shell.now));
            let outcome = self.uplink(s, sequence, from);
            let datagram = DeviceDatagram { sequence, from };
            if !known && outcome.is_ok() {
                assert!(may_move, "the known source is alive, or the policy is strict");
                self.coverage.insert("adopted");
                self.sessions[s].model.on_move(datagram, self.shell.now);
            } else if !known {
                assert!(
                    matches!(outcome, Err(DropReason::ForeignSource | DropReason::PathHeld)),
                    "{outcome:?}"
                );
            } else {
                self.sessions[s].model.on_uplink(datagram, outcome, self.shell.now);
            }
        }
    }

    /// Passes one datagram to the core, and returns the frames for the chat server.
    fn uplink(
        &mut self,
        s: usize,
        sequence: u32,
        from: std::net::SocketAddr,
    ) -> Result<Vec<Vec<u8>>, DropReason> {
        let ModelledSession { core, model } = &mut self.sessions[s];
        let (ssrc, key) = model.ssrc_and_key();
        let mut payload = vec![0x08];
        payload.extend_from_slice(&sequence.to_be_bytes());
        let mut datagram = encrypt_datagram(&key, ssrc, sequence, sequence / 3, &payload);
        let (frames, first) = self.shell.uplink_frames(core, from, &mut datagram)?;
        assert!(frames.last().is_none_or(|frame| frame.ends_with(&payload)), "decrypted");
        model.set_peer(from);
        if first {
            self.drive(s, Input::Other, Core::on_device_heard);
        }
        Ok(frames)
    }
}
