//! Keeps the record of a device whose call is at one gateway while it connects to others.
//!
//! While such a device is connected, the record names the gateway with its connection; while it is not, the one with its call. So the
//! next gateway that it connects to finds its call.

use std::time::Instant;

use super::core::{Cluster, Expect};
use super::device_record::{DeviceRecord, Origin};
use super::presence::{CallRecord, Entry, Registration};
use super::resp::Reply;
use super::{DeviceConnection, GatewayId, Outcome};
use crate::proto::identity::Mac;

/// How often a record is read again that has changed meanwhile.
const TRIES: u8 = 3;

impl Cluster {
    /// This connection of the device has ended, and its call is at another gateway, which gives the number `number` to the connection
    /// that it waits for.
    pub fn device_left_call(
        &mut self,
        mac: Mac,
        connection: u32,
        call_at: GatewayId,
        number: u32,
        now: Instant,
    ) {
        let Some(own) = self.take_record(mac, connection) else { return };
        if self.can_command() {
            let theirs =
                DeviceRecord { connection: number, gateway: call_at, origin: Origin::Connected, ..own };
            self.replace(mac, own.to_string().as_bytes(), theirs, Expect::Anything, now);
        }
    }

    /// The device of a call of this gateway was connected to another one, and has lost that connection. `gone`: that gateway, if it is gone.
    /// [`Outcome::ConnectedElsewhere`] follows if it is connected already.
    pub fn call_waits(&mut self, device: DeviceConnection, gone: Option<GatewayId>, now: Instant) {
        let DeviceConnection { mac, connection, .. } = device;
        self.presence.insert(mac, Entry::new(&device), now);
        self.read_call_record(CallRecord { mac, connection, gone, tries: TRIES }, now);
    }

    fn read_call_record(&mut self, record: CallRecord, now: Instant) {
        if self.can_command() {
            let key = self.device_key(record.mac);
            self.command(&[b"GET", key.as_bytes()], Expect::CallRecord(record), now);
        }
    }

    pub(super) fn on_call_record_reply(&mut self, record: CallRecord, reply: &Reply, now: Instant) {
        let CallRecord { mac, connection, gone, .. } = record;
        let Some(entry) = self.presence.of(mac, connection).copied() else { return };
        let found = reply.bytes();
        match found.and_then(DeviceRecord::parse) {
            Some(found) if found.gateway == self.id => {}
            Some(found) if Some(found.gateway) != gone => {
                if found.client == entry.client {
                    self.outcomes.push(Outcome::ConnectedElsewhere {
                        mac,
                        connection,
                        by: found.gateway,
                        later: found.connection,
                    });
                }
            }
            _ => {
                let own = entry.record(self.id, Origin::Restored);
                let what = Expect::CallRecordWritten(record);
                self.replace(mac, found.unwrap_or_default(), own, what, now);
            }
        }
    }

    pub(super) fn on_call_record_written(&mut self, record: CallRecord, reply: &Reply, now: Instant) {
        let CallRecord { mac, connection, tries, .. } = record;
        match reply {
            Reply::Integer(1) => {
                if let Some(entry) = self.presence.of(mac, connection) {
                    entry.registration = Registration::Done(Origin::Restored);
                }
            }
            // It has changed meanwhile.
            Reply::Integer(_) if tries > 0 => {
                self.read_call_record(CallRecord { tries: tries - 1, ..record }, now);
            }
            _ => {}
        }
    }
}
