//! Calls of this gateway whose devices are connected to another one: they lost their connection in mid-call and came back there.
//!
//! That gateway passes the device's packets on. Here they arrive as if from a connection of the device, whose output is passed back.
//! Audio does not take this way: the device sends it to this gateway as before.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use log::Level;

use crate::cluster::{ConnectionBody, ConnectionMessage, GatewayId};
use crate::logger::log_about;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::transport::Transport;
use crate::proto::identity::Mac;
use crate::session::Core;

/// How long after the end of a call packets of its device are returned that were passed on before the other gateway heard of it.
const RELEASE_TIME: Duration = Duration::from_secs(10);

/// The calls of a worker whose devices are, or may soon be, connected to another gateway.
#[derive(Default)]
pub(crate) struct RemoteDevices {
    devices: HashMap<SessionId, RemoteDevice>,
    by_mac: BTreeSet<(Mac, SessionId)>,
}

/// Where such a device is.
struct RemoteDevice {
    gateway: GatewayId,
    /// That gateway's number of the connection.
    connection: u32,
    mac: Mac,
    state: Attachment,
    /// Bytes that were passed on in each direction, modulo 2^32.
    sent: u32,
    received: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Attachment {
    /// The other gateway was offered the call.
    Offered,
    /// It passes the device's packets on.
    Attached,
    /// The call is over since then, of which the other gateway was told.
    Ended(Instant),
}

impl RemoteDevice {
    fn message(&self, body: ConnectionBody) -> ConnectionMessage {
        ConnectionMessage { mac: self.mac, connection: self.connection, body }
    }
}

impl RemoteDevices {
    /// Whether the device of this session is connected to another gateway.
    pub(crate) fn is_attached(&self, id: SessionId) -> bool {
        self.devices.get(&id).is_some_and(|device| device.state == Attachment::Attached)
    }

    /// The device has connected here again, or its call is over.
    pub(crate) fn forget(&mut self, id: SessionId) {
        self.remove(id);
    }

    fn insert(&mut self, id: SessionId, device: RemoteDevice) {
        self.by_mac.insert((device.mac, id));
        self.devices.insert(id, device);
    }

    fn remove(&mut self, id: SessionId) -> Option<RemoteDevice> {
        let device = self.devices.remove(&id)?;
        self.by_mac.remove(&(device.mac, id));
        Some(device)
    }

    /// The device that was connected to this gateway by the connection with this number of it.
    fn find(
        &mut self,
        mac: Mac,
        gateway: GatewayId,
        connection: u32,
    ) -> Option<(SessionId, &mut RemoteDevice)> {
        let ids = self
            .by_mac
            .range((mac, SessionId { epoch: 0, slot: 0 })..)
            .take_while(|(of, _)| *of == mac)
            .map(|(_, id)| *id);
        let is_it = |device: &RemoteDevice| device.gateway == gateway && device.connection == connection;
        let id = ids.into_iter().find(|id| self.devices.get(id).is_some_and(is_it))?;
        Some((id, self.devices.get_mut(&id)?))
    }
}

impl Gateway {
    /// The device has connected to another gateway, whose number of that connection is `later`. Its call, if it has one here, is
    /// offered to that one; else the connection is closed.
    pub(crate) fn on_connected_elsewhere(&mut self, mac: Mac, connection: u32, by: GatewayId, later: u32) {
        let answer = |body| ConnectionMessage { mac, connection: later, body };
        let Some(id) = self.session_of_connection(mac, connection) else {
            if self.move_left_call(mac, connection, by, later) {
                return;
            }
            return self.send_connection_message(by, answer(ConnectionBody::NoCall));
        };
        if self.move_remote_call(id, by, later) {
            return self.drive(id, Core::on_replaced);
        }
        if !self.offer_call(id, by, later) {
            self.drive(id, Core::on_replaced);
            self.send_connection_message(by, answer(ConnectionBody::NoCall));
        }
    }

    /// False if there is no call.
    fn offer_call(&mut self, id: SessionId, to: GatewayId, later: u32) -> bool {
        let has_grace = !self.io.config.mqtt.resume_grace.is_zero();
        let Some(session) = self.sessions.live(id).filter(|session| has_grace && session.core.has_call())
        else {
            return false;
        };
        let (Some(client_id), Some(session_id)) = (session.core.client_id(), session.core.session_id())
        else {
            return false;
        };
        let mac = client_id.mac();
        let offer =
            ConnectionBody::Offer { session_id: session_id.to_owned(), is_proven: session.core.is_proven() };
        // The record in Redis is the other gateway's now.
        self.forget_registration(id, mac);
        self.forget_old_remote_devices();
        self.cluster.remote_devices.forget(id);
        self.drive(id, Core::on_connection_lost);
        let device = RemoteDevice {
            gateway: to,
            connection: later,
            mac,
            state: Attachment::Offered,
            sent: 0,
            received: 0,
        };
        let offer = device.message(offer);
        self.cluster.remote_devices.insert(id, device);
        self.send_connection_message(to, offer);
        true
    }

    /// A message of another gateway. False if it is not about a call of this one.
    pub(crate) fn on_message_about_remote_device(
        &mut self,
        from: GatewayId,
        mac: Mac,
        connection: u32,
        body: &ConnectionBody,
    ) -> bool {
        if let ConnectionBody::Moved { to } = body {
            let found = self.sessions.by_mac(mac).find(|id| self.waits_for_device(*id, from));
            match found {
                Some(id) => self.offer_call(id, GatewayId(*to), connection),
                None => false,
            };
            return true;
        }
        let found = self.cluster.remote_devices.find(mac, from, connection);
        let Some((id, device)) = found else { return false };
        match body {
            ConnectionBody::Attach { ip, port } => self.attach_remote_device(id, *ip, *port),
            ConnectionBody::Packets { offset, bytes }
                if device.state == Attachment::Attached && *offset == device.received =>
            {
                device.received = offset.wrapping_add(bytes.len() as u32);
                self.on_device_bytes(id, bytes, Vec::new());
                self.sessions.mark_dirty(id);
                self.sessions.account(id, &mut self.io);
                self.sessions.arm_timer(id, &mut self.io);
            }
            ConnectionBody::Packets { bytes, .. } if matches!(device.state, Attachment::Ended(_)) => {
                let returned = device.message(ConnectionBody::Returned { bytes: bytes.clone() });
                self.send_connection_message(from, returned);
            }
            ConnectionBody::Released => {
                let done = device.message(ConnectionBody::NoCall);
                self.cluster.remote_devices.forget(id);
                self.send_connection_message(from, done);
            }
            ConnectionBody::Packets { .. } => {
                let lost = device.message(ConnectionBody::Lost);
                self.send_connection_message(from, lost);
                self.lose_remote_device(id, None);
            }
            ConnectionBody::Lost => self.lose_remote_device(id, None),
            _ => return false,
        }
        true
    }

    /// Whether the device of this call was connected to that gateway, or its connection is lost.
    fn waits_for_device(&self, id: SessionId, gateway: GatewayId) -> bool {
        let was_there =
            self.cluster.remote_devices.devices.get(&id).is_some_and(|device| device.gateway == gateway);
        was_there || self.sessions.core(id).is_some_and(|core| core.awaits_reconnect())
    }

    fn attach_remote_device(&mut self, id: SessionId, ip: IpAddr, port: u16) {
        let Some(device) = self.cluster.remote_devices.devices.get_mut(&id) else { return };
        if device.state != Attachment::Offered {
            return;
        }
        device.state = Attachment::Attached;
        let gateway = device.gateway;
        let Some(session) = self.sessions.live(id) else { return };
        session.mqtt = Some(MqttConnection::new(Transport::PassedOn(Box::default()), port));
        session.set_linger_until(None);
        if session.core.awaits_reconnect() {
            self.watch_address(id, ip);
        }
        log_about!(
            Level::Info,
            self.sessions.log_subject(id),
            "the device is connected to gateway {gateway}, which passes on what it says"
        );
        self.drive(id, |core, cx| core.continue_through_other_gateway(ip, cx));
    }

    /// The other gateway does not pass the device's packets on any more: as when a connection is lost.
    fn lose_remote_device(&mut self, id: SessionId, gone: Option<GatewayId>) {
        let Some(device) = self.cluster.remote_devices.remove(id) else { return };
        if device.state == Attachment::Attached {
            self.on_device_eof(id);
            self.sessions.drop_mqtt(id, &mut self.io);
            self.register_call(id, device.connection, gone);
        }
    }

    pub(crate) fn on_gateway_of_devices_gone(&mut self, gateway: GatewayId) {
        let devices = self.cluster.remote_devices.devices.iter();
        let there: Vec<_> =
            devices.filter(|(_, device)| device.gateway == gateway).map(|(id, _)| *id).collect();
        for id in there {
            self.lose_remote_device(id, Some(gateway));
        }
    }

    /// At the end of an iteration: passes on what was written to such devices, and lets those go whose call is over.
    pub(crate) fn flush_remote_devices(&mut self) {
        if self.cluster.remote_devices.devices.is_empty() {
            return;
        }
        let is_attached = |id: &SessionId| self.cluster.remote_devices.is_attached(*id);
        let ids: Vec<_> = self.sessions.dirty().filter(is_attached).collect();
        for id in ids {
            self.flush_remote_device(id);
        }
    }

    /// Calls that were offered and are over, and those of which nobody asks any more.
    fn forget_old_remote_devices(&mut self) {
        let has_call = |id| self.sessions.core(id).is_some_and(|core| core.has_call());
        let now = self.io.now;
        let is_old = |id: SessionId, device: &RemoteDevice| match device.state {
            Attachment::Offered => !has_call(id),
            Attachment::Attached => false,
            Attachment::Ended(at) => now >= at + RELEASE_TIME,
        };
        let RemoteDevices { devices, by_mac } = &mut self.cluster.remote_devices;
        for (id, device) in devices.extract_if(|id, device| is_old(*id, device)) {
            by_mac.remove(&(device.mac, id));
        }
    }

    fn flush_remote_device(&mut self, id: SessionId) {
        let Some(gateway) = self.cluster.remote_devices.devices.get(&id).map(|device| device.gateway) else {
            return;
        };
        let mut is_closing = true;
        while let Some(mqtt) = self.sessions.mqtt(id) {
            if mqtt.flush(id, &mut self.io) {
                self.sessions.drop_mqtt(id, &mut self.io);
                break;
            }
            is_closing = mqtt.closing;
            let bytes = mqtt.transport.take_passed_on().unwrap_or_default();
            let Some(device) = self.cluster.remote_devices.devices.get_mut(&id).filter(|_| !bytes.is_empty())
            else {
                break;
            };
            let offset = device.sent;
            device.sent = offset.wrapping_add(bytes.len() as u32);
            let packets = device.message(ConnectionBody::Packets { offset, bytes });
            self.send_connection_message(gateway, packets);
        }
        let core = self.sessions.core(id);
        if core.is_some_and(Core::has_call_or_notice) && !is_closing {
            return;
        }
        let has_call = core.is_some_and(Core::has_call);
        let Some(device) = self.cluster.remote_devices.devices.get_mut(&id) else { return };
        if has_call {
            // The device reads too slowly.
            let lost = device.message(ConnectionBody::Lost);
            self.send_connection_message(gateway, lost);
            return self.lose_remote_device(id, None);
        }
        device.state = Attachment::Ended(self.io.now);
        let end = device.message(ConnectionBody::CallEnded);
        self.send_connection_message(gateway, end);
        self.drive(id, Core::leave_to_other_gateway);
        self.sessions.drop_mqtt(id, &mut self.io);
    }
}
