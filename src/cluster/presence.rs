//! The devices that are connected to this gateway, and what Redis is believed to hold of each.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use super::device_record::{DeviceRecord, Origin};
use super::{DeviceConnection, GatewayId};
use crate::proto::identity::Mac;

/// How long a record stays in Redis without being refreshed.
pub(super) const RECORD_TTL_S: &str = "75";
/// In what time each record is refreshed once.
const ROUND: Duration = Duration::from_secs(25);
/// The same after Redis may have lost records.
const FAST_ROUND: Duration = Duration::from_secs(5);
/// Records that one command looks at.
const CHUNK: usize = 100;

/// What Redis holds of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registration {
    /// Nothing that is known to be ours.
    None,
    /// Our record, as soon as Redis has executed the command.
    Pending,
    /// Our record.
    Done(Origin),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) connection: u32,
    pub(super) client: u64,
    pub(super) since: u64,
    pub(super) registration: Registration,
}

impl Entry {
    /// Of which Redis holds nothing.
    pub(super) fn new(device: &DeviceConnection) -> Self {
        let DeviceConnection { connection, client, since, .. } = *device;
        Self { connection, client, since, registration: Registration::None }
    }

    pub(super) fn record(&self, gateway: GatewayId, origin: Origin) -> DeviceRecord {
        let Self { connection, client, since, .. } = *self;
        DeviceRecord { gateway, connection, client, origin, since }
    }
}

/// The record of a call whose device is not connected, while it is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallRecord {
    pub(super) mac: Mac,
    pub(super) connection: u32,
    /// The gateway that the device was connected to, which does not write any more.
    pub(super) gone: Option<GatewayId>,
    pub(super) tries: u8,
}

#[derive(Debug)]
pub(super) struct Presence {
    devices: BTreeMap<Mac, Entry>,
    /// The last device that was refreshed in this round.
    cursor: Option<Mac>,
    /// When the next chunk is due.
    next: Instant,
    fast: bool,
}

impl Presence {
    pub(super) fn new(now: Instant) -> Self {
        Self { devices: BTreeMap::new(), cursor: None, next: now, fast: false }
    }

    pub(super) fn insert(&mut self, mac: Mac, entry: Entry, now: Instant) {
        if self.devices.is_empty() {
            self.next = now + self.round();
        }
        self.devices.insert(mac, entry);
    }

    pub(super) fn remove(&mut self, mac: Mac) {
        self.devices.remove(&mac);
    }

    /// The entry of a device, if this is its connection.
    pub(super) fn of(&mut self, mac: Mac, connection: u32) -> Option<&mut Entry> {
        self.devices.get_mut(&mac).filter(|entry| entry.connection == connection)
    }

    pub(super) fn get_mut(&mut self, mac: Mac) -> Option<&mut Entry> {
        self.devices.get_mut(&mac)
    }

    /// Devices, and those of them of which Redis is known to hold our record.
    pub(super) fn counts(&self) -> (usize, usize) {
        let is_done = |entry: &&Entry| matches!(entry.registration, Registration::Done(_));
        (self.devices.len(), self.devices.values().filter(is_done).count())
    }

    /// Commands that were not answered may have had no effect.
    pub(super) fn forget_pending(&mut self) {
        for entry in self.devices.values_mut().filter(|entry| entry.registration == Registration::Pending) {
            entry.registration = Registration::None;
        }
    }

    /// Begins a round that is done in a short time.
    pub(super) fn begin_fast_round(&mut self, now: Instant) {
        (self.fast, self.cursor, self.next) = (true, None, now);
    }

    pub(super) fn is_fast(&self) -> bool {
        self.fast
    }

    fn round(&self) -> Duration {
        if self.fast { FAST_ROUND } else { ROUND }
    }

    /// When [`Presence::next_chunk`] has one.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.devices.is_empty()).then_some(self.next)
    }

    /// The devices to be refreshed now. Chunks are spread evenly over the round.
    pub(super) fn next_chunk(&mut self, now: Instant) -> Option<Vec<Mac>> {
        if self.devices.is_empty() || now < self.next {
            return None;
        }
        let from = self.cursor.map_or(Unbounded, Excluded);
        let chunk: Vec<Mac> =
            self.devices.range((from, Unbounded)).take(CHUNK).map(|(mac, _)| *mac).collect();
        let chunks = self.devices.len().div_ceil(CHUNK) as u32;
        // A loop that was slow does not send all at once.
        self.next = self.next.max(now - Duration::from_millis(100).min(self.round() / chunks))
            + self.round() / chunks;
        self.cursor = chunk.last().copied();
        let from = self.cursor.map_or(Unbounded, Excluded);
        if self.devices.range((from, Unbounded)).next().is_none() {
            self.cursor = None;
        }
        if self.cursor.is_none() {
            self.fast = false;
        }
        Some(chunk)
    }
}
