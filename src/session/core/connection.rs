//! The device's connection: letting in, losing, coming back, breaking the protocol.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::action::{Action, Admission, Cx, EndReason, Note, Reason};
use super::super::deadlines::Due;
use super::super::mcp::Tools;
use super::{Core, Phase};
use crate::config::Config;
use crate::proto::identity::{self, BadClientId, ClientId};
use crate::proto::mqtt::{Connect, ConnectCode, Malformed, Packet};

impl Core {
    // ----- the device's connection --------------------------------------------------------------------------------

    /// Bytes came from the device: the only thing that keeps it alive.
    pub fn heard(&mut self, now: Instant) {
        if self.phase == Phase::Online {
            // One and a half keep alives, as MQTT has it.
            let patience = Duration::from_millis(u64::from(self.keep_alive) * 1500);
            self.deadline = if patience.is_zero() { Due::NEVER } else { Due::at(now + patience, self.since) };
        }
    }

    /// One packet of the device.
    pub fn packet(&mut self, packet: Packet<'_>, cx: &mut Cx<'_>) {
        match (self.phase, packet) {
            (Phase::AwaitingConnect, Packet::Connect(connect)) => self.connect(&connect, cx),
            (Phase::AwaitingConnect, _) => self.out_of_place("a packet before CONNECT", cx),
            (Phase::Online, Packet::Connect(_)) => self.out_of_place("a second CONNECT", cx),
            (Phase::Online, Packet::Publish(publish)) => self.publish(publish.payload, cx),
            (Phase::Online, Packet::Subscribe(subscribe)) => {
                let filters = subscribe.filters().count();
                cx.out.push(Action::SubAck { packet_id: subscribe.packet_id, filters });
            }
            (Phase::Online, Packet::Unsubscribe(unsubscribe)) => {
                cx.out.push(Action::UnsubAck(unsubscribe.packet_id));
            }
            (Phase::Online, Packet::PingReq) => cx.out.push(Action::PingResp),
            (Phase::Online, Packet::Disconnect) => {
                self.hang_up(EndReason::DeviceDisconnected, cx);
                self.close(Reason::Left, cx);
            }
            (Phase::Admitting | Phase::Away | Phase::Leaving, _) => {}
        }
    }

    /// A first byte that cannot begin a CONNECT.
    pub fn no_connect(&mut self, first: u8, cx: &mut Cx<'_>) {
        let what = match first {
            22 => "a TLS handshake on the port without TLS",
            _ => "a first byte that is not CONNECT's",
        };
        self.out_of_place(what, cx);
    }

    /// A balancer has said whose connection it is: that address counts from now on.
    pub fn comes_from(&mut self, ip: IpAddr) {
        if self.phase == Phase::AwaitingConnect {
            self.ip = ip;
        }
    }

    /// Bytes that are no packet.
    pub fn malformed(&mut self, malformed: Malformed, cx: &mut Cx<'_>) {
        match (self.phase, malformed) {
            (Phase::AwaitingConnect, Malformed::UnsupportedLevel(_)) => {
                self.refuse(ConnectCode::UnsupportedLevel, "protocol level not supported", cx);
            }
            _ => self.fail(Reason::Protocol(malformed), cx),
        }
    }

    /// The connection ended without DISCONNECT: a call is kept for a while.
    pub fn connection_lost(&mut self, cx: &mut Cx<'_>) {
        self.lost(Reason::Left, cx);
    }

    /// The device does not read what it is sent.
    pub fn blocked(&mut self, cx: &mut Cx<'_>) {
        self.lost(Reason::SlowReader, cx);
    }

    /// The gateway keeps more for the device than it can: its call goes too, and all that waits for it.
    pub fn too_much_kept(&mut self, cx: &mut Cx<'_>) {
        self.fail(Reason::Memory, cx);
    }

    pub(super) fn lost(&mut self, reason: Reason, cx: &mut Cx<'_>) {
        if self.phase == Phase::Leaving || self.phase == Phase::Away {
            return;
        }
        let grace = cx.config.mqtt.resume_grace;
        self.fail_commands(cx);
        if self.has_call()
            && !grace.is_zero()
            && !self.is_draining()
            && let Some(call) = &mut self.call
        {
            call.device_lost();
            self.phase = Phase::Away;
            self.deadline = Due::at(cx.now + grace, self.since);
            cx.out.push(Action::Note(Note::Away(grace)));
            cx.out.push(Action::Close(reason));
            return;
        }
        self.abandon_call(EndReason::DeviceLost, cx);
        self.close(reason, cx);
    }

    fn out_of_place(&mut self, what: &'static str, cx: &mut Cx<'_>) {
        self.fail(Reason::OutOfPlace(what), cx);
    }

    pub(super) fn fail(&mut self, reason: Reason, cx: &mut Cx<'_>) {
        self.end_call(EndReason::DeviceError, cx);
        self.close(reason, cx);
    }

    pub(super) fn close(&mut self, reason: Reason, cx: &mut Cx<'_>) {
        if self.phase == Phase::Leaving {
            return;
        }
        self.phase = Phase::Leaving;
        self.deadline = Due::NEVER;
        self.fail_commands(cx);
        self.mcp = Tools::Off;
        cx.out.push(Action::Close(reason));
    }

    // ----- letting in ---------------------------------------------------------------------------------------------

    fn connect(&mut self, connect: &Connect<'_>, cx: &mut Cx<'_>) {
        let id = match ClientId::parse(connect.client_id) {
            Ok(id) => id,
            Err(bad) => {
                let why = match bad {
                    BadClientId::Long => "client id is longer than 256 bytes",
                    _ => "client id is not group@@@mac@@@uuid",
                };
                return self.refuse(ConnectCode::ClientId, why, cx);
            }
        };
        let verdict = authenticate(&id, connect, cx.config);
        // A refused device too is named in the log.
        self.id = Some(id);
        if let Err((code, why)) = verdict {
            return self.refuse(code, why, cx);
        }
        self.keep_alive = connect.keep_alive;
        self.phase = Phase::Admitting;
        cx.out.push(Action::Admit);
    }

    fn refuse(&mut self, code: ConnectCode, why: &'static str, cx: &mut Cx<'_>) {
        cx.out.push(Action::Refuse(code));
        self.close(Reason::Refused(code, why), cx);
    }

    /// The shell's answer to [`Action::Admit`].
    pub fn admitted(&mut self, admission: Admission, cx: &mut Cx<'_>) {
        if self.phase != Phase::Admitting {
            return;
        }
        let full = match admission {
            Admission::Welcome => return self.welcome(false, cx),
            Admission::Full => "max_connections is reached",
            Admission::Crowded => "max_connections_per_ip is reached",
        };
        self.refuse(ConnectCode::Unavailable, full, cx);
    }

    fn welcome(&mut self, resumed: bool, cx: &mut Cx<'_>) {
        self.phase = Phase::Online;
        self.since = cx.now;
        self.heard(cx.now);
        cx.out.push(Action::Welcome);
        cx.out.push(Action::Note(Note::Connected { resumed }));
        let session_id = self.call.as_ref().and_then(|call| call.session_id());
        let earlier = std::mem::replace(&mut self.mcp, Tools::Off);
        self.mcp = Tools::begin(earlier, session_id, cx);
    }

    /// Another connection with this client id was let in, and this core has a call: it becomes that connection's.
    pub fn take_over(&mut self, newer: Core, cx: &mut Cx<'_>) {
        if self.phase == Phase::Leaving {
            return;
        }
        self.ip = newer.ip;
        self.id = newer.id;
        self.keep_alive = newer.keep_alive;
        self.welcome(true, cx);
        if let Some(call) = &mut self.call {
            call.device_back(newer.ip, cx);
        }
    }

    /// Another connection with this client id was let in, and there is no call to keep.
    pub fn replaced(&mut self, cx: &mut Cx<'_>) {
        self.abandon_call(EndReason::Replaced, cx);
        self.close(Reason::TakenOver, cx);
    }
}

fn authenticate(
    id: &ClientId,
    connect: &Connect<'_>,
    config: &Config,
) -> Result<(), (ConnectCode, &'static str)> {
    let Some(key) = &config.mqtt.signature_key else { return Ok(()) };
    if id.uuid().is_none() {
        return match config.mqtt.allow_legacy_ids {
            true => Ok(()),
            false => Err((
                ConnectCode::NotAuthorised,
                "two-part client ids are not allowed (mqtt.allow_legacy_ids)",
            )),
        };
    }
    let (Some(user_name), Some(password)) = (connect.user_name, connect.password) else {
        return Err((ConnectCode::Credentials, "user name or password missing"));
    };
    if !identity::password_matches(key.as_bytes(), id.as_str(), user_name, password) {
        return Err((ConnectCode::Credentials, "password does not match MQTT_SIGNATURE_KEY"));
    }
    if !identity::is_user_name(user_name) {
        return Err((ConnectCode::Credentials, "user name is not base64 of a JSON object"));
    }
    Ok(())
}
