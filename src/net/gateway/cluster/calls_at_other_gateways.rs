//! Devices that are connected to this gateway and have their call at another one: a device that lost its connection in a call has
//! come back here. Its packets are passed on to the gateway with the call, and that one's to the device, until the call ends.
//!
//! The first packets of a device that has just logged in wait until it is known whether another gateway has a call of it. That takes
//! one question to Redis and, if the device was connected elsewhere before, one to that gateway.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use log::Level;

use crate::cluster::{ConnectionBody, ConnectionMessage, GatewayId, MAX_PAYLOAD};
use crate::logger::log_about;
use crate::net::admin::request::AdminRequest;
use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::proto::identity::Mac;
use crate::proto::message;
use crate::proto::mqtt::{self, Packet};
use crate::session::CloseReason;

/// How long a device's packets wait for another gateway.
const HOLD_TIME: Duration = Duration::from_millis(500);
/// For how long it is remembered where the call of a device is that has lost its connection.
const LEFT_TIME: Duration = Duration::from_secs(5);
/// The first byte of a PUBLISH without its flags.
const PUBLISH: u8 = 3 << 4;
/// The first byte of a DISCONNECT.
const DISCONNECT: u8 = 14 << 4;

/// The devices of a worker that may have their call at another gateway.
#[derive(Default)]
pub(crate) struct RemoteCalls {
    /// Sessions whose packets wait.
    held: HashMap<SessionId, Held>,
    calls: HashMap<SessionId, RemoteCall>,
    /// The calls of devices that have lost their connection here since a short time, and when that was.
    left: VecDeque<(Instant, RemoteCall)>,
}

/// A device whose packets wait.
struct Held {
    until: Instant,
    /// The gateway whose answer is waited for.
    asked: Option<GatewayId>,
    /// Packets that were passed on to it too late, after the end of the call. They come first.
    returned: Vec<u8>,
}

/// The call of such a device.
struct RemoteCall {
    gateway: GatewayId,
    /// That the device knows.
    session_id: String,
    /// The number of the device's connection here.
    connection: u32,
    mac: Mac,
    /// Bytes that were passed on in each direction, modulo 2^32.
    sent: u32,
    received: u32,
}

impl RemoteCall {
    fn message(&self, body: ConnectionBody) -> ConnectionMessage {
        ConnectionMessage { mac: self.mac, connection: self.connection, body }
    }
}

impl RemoteCalls {
    /// Whether the device's packets wait.
    pub(crate) fn holds(&self, id: SessionId) -> bool {
        !self.held.is_empty() && self.held.contains_key(&id)
    }

    /// The gateway that has the call of this device.
    pub(crate) fn gateway_of(&self, id: SessionId) -> Option<GatewayId> {
        self.calls.get(&id).map(|call| call.gateway)
    }

    /// How many devices have their call at another gateway, which shows them and sends them what all get.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether it is one of them.
    pub(crate) fn contains(&self, id: SessionId) -> bool {
        self.calls.contains_key(&id)
    }

    pub(crate) fn hold(&mut self, id: SessionId, until: Instant) {
        self.held.insert(id, Held { until, asked: None, returned: Vec::new() });
    }
}

impl Gateway {
    // ----- until it is known where the call is --------------------------------------------------------------------

    /// The device has logged in: what it says waits until it is known whether another gateway has its call.
    pub(crate) fn hold_device(&mut self, id: SessionId) {
        let until = self.io.now + HOLD_TIME;
        self.cluster.remote_calls.hold(id, until);
        self.io.timers.arm(until, TimerKind::AwaitOtherGateway(id));
    }

    /// The device's packets may have waited long enough. The timer may be that of an earlier wait.
    pub(crate) fn on_hold_timer(&mut self, id: SessionId) {
        let held = self.cluster.remote_calls.held.get(&id);
        if held.is_some_and(|held| held.until <= self.io.now) {
            self.stop_holding(id);
        }
    }

    /// Serves the device's packets from now on.
    pub(crate) fn stop_holding(&mut self, id: SessionId) {
        let Some(Held { mut returned, .. }) = self.cluster.remote_calls.held.remove(&id) else {
            return;
        };
        if let Some(connection) = self.sessions.mqtt(id) {
            returned.append(&mut connection.take_partial(&[]));
        }
        self.on_device_bytes(id, &[], returned);
        self.io.run_queue.push(Task::Device(id));
    }

    /// Redis has the record of this connection. `asked`: the gateway that had an older one, which answers whether it has a call.
    pub(crate) fn on_device_registered(&mut self, mac: Mac, connection: u32, asked: Option<GatewayId>) {
        let Some(id) = self.session_of_connection(mac, connection) else { return };
        match asked {
            None => self.stop_holding(id),
            Some(gateway) => {
                self.cluster.remote_calls.held.entry(id).and_modify(|held| held.asked = Some(gateway));
            }
        }
    }

    pub(crate) fn session_of_connection(&self, mac: Mac, connection: u32) -> Option<SessionId> {
        let is_it = |id: &SessionId| {
            self.sessions.get(*id).is_some_and(|session| session.connection_number == connection)
        };
        self.sessions.by_mac(mac).find(is_it)
    }

    // ----- messages -----------------------------------------------------------------------------------------------

    /// Sends a message to another gateway. If that fails, it is as if that gateway had lost its part.
    pub(crate) fn send_connection_message(&mut self, to: GatewayId, message: ConnectionMessage) {
        if !self.workers.is_leader() {
            return self.at_leader(move |leader| leader.send_connection_message(to, message));
        }
        let (kind, id, payload) = message.encode();
        if self.cluster.client.send(to, kind, id, &payload, &self.io).is_err()
            && matches!(message.body, ConnectionBody::Packets { .. } | ConnectionBody::Attach { .. })
        {
            let (mac, connection) = (message.mac, message.connection);
            let lost = ConnectionMessage { mac, connection, body: ConnectionBody::Lost };
            self.at_worker_of(mac, move |worker| worker.on_connection_message(to, lost));
        }
    }

    pub(crate) fn on_connection_message(&mut self, from: GatewayId, message: ConnectionMessage) {
        let ConnectionMessage { mac, connection, body } = message;
        if self.on_message_about_remote_device(from, mac, connection, &body) {
            return;
        }
        let Some(id) = self.session_of_connection(mac, connection) else {
            if matches!(body, ConnectionBody::Attach { .. } | ConnectionBody::Packets { .. }) {
                let lost = ConnectionMessage { mac, connection, body: ConnectionBody::Lost };
                self.send_connection_message(from, lost);
            }
            return;
        };
        match body {
            ConnectionBody::Offer { session_id, is_proven } => {
                self.on_offer(id, from, session_id, is_proven);
            }
            ConnectionBody::NoCall => self.stop_holding(id),
            ConnectionBody::Packets { offset, bytes } => self.on_packets_for_device(id, from, offset, &bytes),
            ConnectionBody::CallEnded => self.on_remote_call_ended(id, from),
            ConnectionBody::Returned { bytes } => {
                let held = self.cluster.remote_calls.held.get_mut(&id);
                let held = held.filter(|held| held.asked == Some(from));
                if let Some(held) = held.filter(|held| held.returned.len() + bytes.len() <= MAX_PAYLOAD) {
                    held.returned.extend_from_slice(&bytes);
                }
            }
            ConnectionBody::Lost => {
                let calls = &self.cluster.remote_calls.calls;
                if calls.get(&id).is_some_and(|call| call.gateway == from) {
                    self.end_remote_call(id, "its gateway has lost it");
                }
            }
            ConnectionBody::Moved { .. } | ConnectionBody::Attach { .. } | ConnectionBody::Released => {}
        }
    }

    /// This gateway has ended, or does not respond.
    pub(crate) fn on_other_gateway_gone(&mut self, gateway: GatewayId) {
        let RemoteCalls { held, calls, .. } = &self.cluster.remote_calls;
        let waiting: Vec<_> =
            held.iter().filter(|(_, held)| held.asked == Some(gateway)).map(|(id, _)| *id).collect();
        let with_call: Vec<_> =
            calls.iter().filter(|(_, call)| call.gateway == gateway).map(|(id, _)| *id).collect();
        for id in with_call {
            self.end_remote_call(id, "its gateway is gone");
        }
        // They may have had a call there, and do not know that it has ended.
        if !waiting.is_empty() {
            self.recover_calls_of_others();
        }
        for id in waiting {
            self.judge_silence_later(id);
            self.stop_holding(id);
        }
        self.on_gateway_of_devices_gone(gateway);
    }

    // ----- the call -----------------------------------------------------------------------------------------------

    /// The other gateway has a call of this device.
    fn on_offer(&mut self, id: SessionId, from: GatewayId, session_id: String, is_proven: bool) {
        let Some(session) = self.sessions.get(id) else { return };
        let (Some(client_id), Some(connection)) = (session.core.client_id(), &session.mqtt) else { return };
        let (mac, number) = (client_id.mac(), session.connection_number);
        // A call from before there was a key may be a stranger's, and so may a device that proved nothing.
        if session.core.is_idle() && session.core.is_proven() == is_proven {
            let call =
                RemoteCall { gateway: from, session_id, connection: number, mac, sent: 0, received: 0 };
            let attach =
                call.message(ConnectionBody::Attach { ip: session.core.ip(), port: connection.peer_port });
            log_about!(
                Level::Info,
                self.sessions.log_subject(id),
                "comes back to its call at gateway {from}: session={}",
                crate::text::shown(&call.session_id)
            );
            self.cluster.remote_calls.calls.insert(id, call);
            self.send_connection_message(from, attach);
        }
        self.stop_holding(id);
    }

    /// A packet of the device. True if the gateway that has its call gets it instead of this one.
    pub(crate) fn pass_packet_on(&mut self, id: SessionId, packet: &Packet<'_>, bytes: &[u8]) -> bool {
        if self.cluster.remote_calls.calls.is_empty() {
            return false;
        }
        let Some(call) = self.cluster.remote_calls.calls.get_mut(&id) else { return false };
        let is_publish = matches!(packet, Packet::Publish(_));
        // It ends the call, and the connection here.
        if !is_publish && !matches!(packet, Packet::Disconnect) {
            return false;
        }
        if bytes.len() > MAX_PAYLOAD - 10 {
            self.end_remote_call(id, "a packet is too long to be passed on");
            return true;
        }
        let packets = call.message(ConnectionBody::Packets { offset: call.sent, bytes: bytes.to_vec() });
        call.sent = call.sent.wrapping_add(bytes.len() as u32);
        let gateway = call.gateway;
        self.send_connection_message(gateway, packets);
        is_publish
    }

    /// What the gateway with the call has for the device.
    fn on_packets_for_device(&mut self, id: SessionId, from: GatewayId, offset: u32, bytes: &[u8]) {
        let Some(call) = self.cluster.remote_calls.calls.get_mut(&id).filter(|call| call.gateway == from)
        else {
            return;
        };
        if call.received != offset {
            let lost = call.message(ConnectionBody::Lost);
            self.send_connection_message(from, lost);
            return self.end_remote_call(id, "some of what its gateway sent was lost");
        }
        call.received = offset.wrapping_add(bytes.len() as u32);
        let mut rest = bytes;
        while let Some((packet, after)) = mqtt::packet_len(rest).and_then(|len| rest.split_at_checked(len)) {
            rest = after;
            // CONNACK is not for the device: it has one.
            if packet[0] & 0xf0 == PUBLISH {
                self.write_mqtt(id, |out| out.extend_from_slice(packet));
            }
        }
    }

    /// The call is over, and the device has been told. What was passed on too late is waited for.
    fn on_remote_call_ended(&mut self, id: SessionId, from: GatewayId) {
        let calls = &mut self.cluster.remote_calls.calls;
        if calls.get(&id).is_none_or(|call| call.gateway != from) {
            return;
        }
        let Some(call) = calls.remove(&id) else { return };
        self.hold_device(id);
        self.cluster.remote_calls.held.entry(id).and_modify(|held| held.asked = Some(from));
        self.send_connection_message(from, call.message(ConnectionBody::Released));
    }

    /// The call cannot go on: the device is told that it is over.
    fn end_remote_call(&mut self, id: SessionId, why: &str) {
        let Some(call) = self.cluster.remote_calls.calls.remove(&id) else { return };
        log_about!(
            Level::Warn,
            self.sessions.log_subject(id),
            "the call at gateway {} has ended, {why}: session={}",
            call.gateway,
            crate::text::shown(&call.session_id)
        );
        self.publish(id, &message::goodbye(Some(&call.session_id)));
    }

    /// The run id of the gateway that has the call of the device that a request is about.
    pub(crate) fn gateway_with_call_of(&self, request: &AdminRequest) -> Option<u64> {
        if self.cluster.remote_calls.calls.is_empty() {
            return None;
        }
        let mac = request.device_mac()?;
        let gateway_of = |id| self.cluster.remote_calls.gateway_of(id);
        self.sessions.by_mac(mac).find_map(gateway_of).map(|gateway| gateway.0)
    }

    /// The device's connection is closing. The gateway with the call keeps that for a while, unless the connection is closed on purpose.
    pub(crate) fn leave_remote_call(&mut self, id: SessionId, reason: &CloseReason) {
        self.cluster.remote_calls.held.remove(&id);
        if matches!(reason, CloseReason::Operator | CloseReason::MacDenied(_)) {
            self.pass_packet_on(id, &Packet::Disconnect, &[DISCONNECT, 0]);
        }
        if let Some(call) = self.cluster.remote_calls.calls.remove(&id) {
            self.send_connection_message(call.gateway, call.message(ConnectionBody::Lost));
            let now = self.io.now;
            let left = &mut self.cluster.remote_calls.left;
            left.retain(|(at, _)| now < *at + LEFT_TIME);
            left.push_back((now, call));
        }
    }

    /// The device has connected to another gateway, whose number of that connection is `later`, while its call is not here. False if
    /// there is no such call.
    pub(crate) fn move_remote_call(&mut self, id: SessionId, to: GatewayId, later: u32) -> bool {
        let Some(call) = self.cluster.remote_calls.calls.remove(&id) else { return false };
        self.send_moved(&call, to, later)
    }

    /// As [`Self::move_remote_call`], of a connection that was lost a moment ago.
    pub(crate) fn move_left_call(&mut self, mac: Mac, connection: u32, to: GatewayId, later: u32) -> bool {
        let left = &mut self.cluster.remote_calls.left;
        let found = left.iter().position(|(_, call)| call.mac == mac && call.connection == connection);
        let Some((_, call)) = found.and_then(|at| left.remove(at)) else { return false };
        self.send_moved(&call, to, later)
    }

    fn send_moved(&mut self, call: &RemoteCall, to: GatewayId, later: u32) -> bool {
        if call.gateway == to {
            return false;
        }
        let body = ConnectionBody::Moved { to: to.0 };
        let moved = ConnectionMessage { mac: call.mac, connection: later, body };
        self.send_connection_message(call.gateway, moved);
        true
    }
}
