//! Keeps the records of devices in Redis.
//!
//! Which of two connections of a device is newer is decided without clocks. A gateway to which a device connects writes its record
//! over whatever is there and gets that back: it names the older connection, which is closed where it is. A record that is written
//! again later, because Redis has lost it, is only written where there is none, and never closes anything. So of two records that
//! were written at a connect, the one that Redis has is the newer one.

use std::time::{Duration, Instant};

use super::commands::{DELETE, REPLACE};
use super::core::{Cluster, DISTRUST, Expect};
use super::device_record::{DeviceRecord, Origin};
use super::frame::{Frame, kind};
use super::presence::{Entry, RECORD_TTL_S, Registration};
use super::resp::Reply;
use super::{DeviceConnection, GatewayId, Location, Outcome};
use crate::proto::identity::Mac;

/// How long Redis may take to write the record of a device that has connected. Later, the device may have connected elsewhere meanwhile,
/// and its record there may have been overwritten, which is undone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl Cluster {
    /// A device has connected to this gateway.
    pub fn device_connected(&mut self, device: DeviceConnection, now: Instant) {
        let (mac, connection) = (device.mac, device.connection);
        let mut entry = Entry::new(&device);
        if self.can_command() {
            let key = self.hellos_key(mac);
            self.command(&[b"PTTL", key.as_bytes()], Expect::Hellos(mac), now);
            entry.registration = Registration::Pending;
            let (key, record) = (self.device_key(mac), entry.record(self.id, Origin::Connected).to_string());
            let parts: [&[u8]; 6] =
                [b"SET", key.as_bytes(), record.as_bytes(), b"EX", RECORD_TTL_S.as_bytes(), b"GET"];
            self.command(&parts, Expect::Connected(mac, connection), now);
        }
        self.presence.insert(mac, entry, now);
    }

    /// An earlier connection of the device, or its call, is still there after a later connection has ended. Its record is written if
    /// there is none.
    pub fn device_remains(&mut self, device: DeviceConnection, now: Instant) {
        let entry = Entry::new(&device);
        self.presence.insert(device.mac, entry, now);
        if self.can_command() {
            self.restore(device.mac, entry, now);
        }
    }

    /// The bucket of hellos of a device that leaves is full in this time. The next gateway that it connects to asks for that.
    pub fn keep_hellos(&mut self, mac: Mac, full_in: Duration, now: Instant) {
        if self.can_command() {
            let (key, ms) = (self.hellos_key(mac), full_in.as_millis().to_string());
            let parts: [&[u8]; 5] = [b"SET", key.as_bytes(), b"1", b"PX", ms.as_bytes()];
            self.command(&parts, Expect::Anything, now);
        }
    }

    fn hellos_key(&self, mac: Mac) -> String {
        self.key(&format!("hellos:{mac}"))
    }

    /// This connection of the device has ended. Without effect when there is a newer one.
    pub fn device_disconnected(&mut self, mac: Mac, connection: u32, now: Instant) {
        let Some(record) = self.take_record(mac, connection) else { return };
        if self.can_command() {
            let (key, record) = (self.device_key(mac), record.to_string());
            self.script(DELETE, &key, &[record.as_bytes()], Expect::Anything, now);
        }
    }

    /// Forgets this connection of the device. Returns its record, if Redis may have it.
    pub(super) fn take_record(&mut self, mac: Mac, connection: u32) -> Option<DeviceRecord> {
        let entry = self.presence.of(mac, connection).copied()?;
        self.presence.remove(mac);
        match entry.registration {
            Registration::None => None,
            Registration::Pending => Some(entry.record(self.id, Origin::Connected)),
            Registration::Done(origin) => Some(entry.record(self.id, origin)),
        }
    }

    /// The record was written. `reply` is the one before.
    pub(super) fn on_connected_reply(
        &mut self,
        mac: Mac,
        connection: u32,
        reply: &Reply,
        sent: Instant,
        now: Instant,
    ) {
        let before = self.record_of_other(reply);
        let own_id = self.id;
        if self.presence.get_mut(mac).is_none() {
            // It has disconnected meanwhile, and its record was deleted.
            if let Some(before) = before {
                self.replace(mac, b"", before, Expect::Anything, now);
            }
            return;
        }
        // With a newer connection, or one at another gateway, there is another record by now.
        let is_pending = |entry: &&mut Entry| entry.registration == Registration::Pending;
        let Some(entry) = self.presence.of(mac, connection).filter(is_pending) else { return };
        let is_error = matches!(reply, Reply::Error(_));
        entry.registration =
            if is_error { Registration::None } else { Registration::Done(Origin::Connected) };
        let Some(before) = before else {
            return self.outcomes.push(Outcome::Registered { mac, connection, asked: None });
        };
        if now >= sent + CONNECT_TIMEOUT {
            entry.registration = Registration::None;
            let own = entry.record(own_id, Origin::Connected).to_string();
            self.outcomes.push(Outcome::Registered { mac, connection, asked: None });
            return self.replace(mac, own.as_bytes(), before, Expect::Anything, now);
        }
        let is_same = before.client == entry.client;
        let asked = is_same.then_some(before.gateway);
        self.outcomes.push(Outcome::Registered { mac, connection, asked });
        if is_same {
            let payload = [&mac.bytes()[..], &connection.to_be_bytes()].concat();
            let id = before.connection.into();
            let frame = Frame { from: own_id, kind: kind::CLOSE, id, payload: &payload };
            if let Some(bundle) = self.bundles.add(before.gateway, &frame) {
                self.publish(before.gateway, &bundle, now);
            }
        }
    }

    /// The record that Redis has given back, if it is another gateway's.
    fn record_of_other(&mut self, reply: &Reply) -> Option<DeviceRecord> {
        let bytes = reply.bytes()?;
        let record = DeviceRecord::parse(bytes);
        self.counters.malformed += u64::from(record.is_none());
        record.filter(|record| record.gateway != self.id)
    }

    fn set_registration(&mut self, mac: Mac, registration: Registration) {
        if let Some(entry) = self.presence.get_mut(mac) {
            entry.registration = registration;
        }
    }

    /// Writes a record where there is none or this value.
    pub(super) fn replace(
        &mut self,
        mac: Mac,
        expected: &[u8],
        record: DeviceRecord,
        what: Expect,
        now: Instant,
    ) {
        let (key, record) = (self.device_key(mac), record.to_string());
        self.script(REPLACE, &key, &[expected, record.as_bytes(), RECORD_TTL_S.as_bytes()], what, now);
    }

    /// Looks at the records of some devices, when that is due.
    pub(super) fn refresh_presence(&mut self, now: Instant) {
        while self.can_command() {
            let Some(macs) = self.presence.next_chunk(now) else { return };
            // Those behind the last ones have left.
            if macs.is_empty() {
                continue;
            }
            let keys: Vec<String> = macs.iter().map(|mac| self.device_key(*mac)).collect();
            let parts: Vec<&[u8]> =
                [&b"MGET"[..]].into_iter().chain(keys.iter().map(String::as_bytes)).collect();
            self.command(&parts, Expect::Refresh(macs), now);
        }
    }

    pub(super) fn on_refresh_reply(&mut self, macs: &[Mac], reply: Reply, now: Instant) {
        let Reply::Array(values) = reply else { return };
        let mut lost = false;
        for (mac, value) in macs.iter().zip(values) {
            let Some(entry) = self.presence.get_mut(*mac) else { continue };
            if entry.registration == Registration::Pending {
                continue;
            }
            let (entry, had_one) = (*entry, matches!(entry.registration, Registration::Done(_)));
            match (value.bytes(), value.bytes().and_then(DeviceRecord::parse)) {
                (None, _) => {
                    lost |= had_one;
                    self.restore(*mac, entry, now);
                }
                (Some(bytes), None) => {
                    self.counters.malformed += 1;
                    self.restore_over(*mac, entry, bytes, now);
                }
                (Some(bytes), Some(found)) if found.gateway == self.id => {
                    if found.connection != entry.connection {
                        self.restore_over(*mac, entry, bytes, now);
                        continue;
                    }
                    self.set_registration(*mac, Registration::Done(found.origin));
                    let key = self.device_key(*mac);
                    let parts: [&[u8]; 3] = [b"EXPIRE", key.as_bytes(), RECORD_TTL_S.as_bytes()];
                    self.command(&parts, Expect::Anything, now);
                }
                (Some(_), Some(found)) => self.on_record_of_other(*mac, entry, found),
            }
        }
        if lost {
            self.distrusted_until = Some(now + DISTRUST);
            if !self.presence.is_fast() {
                self.presence.begin_fast_round(now);
            }
        }
    }

    /// Another gateway has the device too.
    fn on_record_of_other(&mut self, mac: Mac, entry: Entry, found: DeviceRecord) {
        self.set_registration(mac, Registration::None);
        let was_ours = entry.registration == Registration::Done(Origin::Connected);
        if was_ours && found.origin == Origin::Connected && found.client == entry.client {
            // It was written over ours, so that it is newer.
            self.connected_elsewhere(mac, entry.connection, found.gateway, found.connection);
        }
    }

    fn connected_elsewhere(&mut self, mac: Mac, connection: u32, by: GatewayId, later: u32) {
        self.counters.connected_elsewhere += 1;
        self.outcomes.push(Outcome::ConnectedElsewhere { mac, connection, by, later });
    }

    /// Writes a record where there is none.
    fn restore(&mut self, mac: Mac, entry: Entry, now: Instant) {
        self.set_registration(mac, Registration::None);
        let (key, record) = (self.device_key(mac), entry.record(self.id, Origin::Restored).to_string());
        let parts: [&[u8]; 6] =
            [b"SET", key.as_bytes(), record.as_bytes(), b"NX", b"EX", RECORD_TTL_S.as_bytes()];
        self.command(&parts, Expect::Restored(mac, entry.connection), now);
    }

    /// Writes a record over a value that is of no use.
    fn restore_over(&mut self, mac: Mac, entry: Entry, value: &[u8], now: Instant) {
        self.set_registration(mac, Registration::None);
        let record = entry.record(self.id, Origin::Restored);
        self.replace(mac, value, record, Expect::Restored(mac, entry.connection), now);
    }

    pub(super) fn on_restored_reply(&mut self, mac: Mac, connection: u32, reply: &Reply) {
        let is_written = *reply == Reply::Integer(1) || reply.bytes() == Some(b"OK");
        if let Some(entry) = self.presence.of(mac, connection).filter(|_| is_written) {
            entry.registration = Registration::Done(Origin::Restored);
        }
    }

    pub(super) fn on_locate_reply(&mut self, token: u64, reply: &Reply, now: Instant) {
        let is_distrusted = self.distrusted_until.is_some_and(|until| now < until);
        let location = match (reply, reply.bytes().map(DeviceRecord::parse)) {
            (_, Some(Some(record))) => Location::At(record.gateway),
            (Reply::Null, _) if !is_distrusted => Location::Nowhere,
            _ => Location::Unknown,
        };
        self.outcomes.push(Outcome::Located { token, location });
    }

    /// The device has connected to another gateway.
    pub(super) fn on_close_frame(&mut self, frame: &Frame<'_>) {
        let parts = frame.payload.split_first_chunk().and_then(|(mac, rest)| {
            Some((Mac::from(*mac), u32::from_be_bytes(rest.try_into().ok()?), u32::try_from(frame.id).ok()?))
        });
        let Some((mac, later, connection)) = parts else {
            self.counters.malformed += 1;
            return;
        };
        if let Some(entry) = self.presence.of(mac, connection) {
            // Redis has the record of the other gateway.
            entry.registration = Registration::None;
            self.connected_elsewhere(mac, connection, frame.from, later);
        }
    }
}
