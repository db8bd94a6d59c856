//! The two connections to Redis, and what is done over them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::frame::{Frame, kind};
use super::frame_bundles::FrameBundles;
use super::name::{NameStep, OwnName};
use super::peers::Peers;
use super::presence::{CallRecord, Presence};
use super::redis_connection::{Action, Connection, REPLY_TIMEOUT, RedisConnection, no_answer};
use super::resp::Reply;
use super::seal::Seal;
use super::{ClusterState, GatewayId, Kind, Location, MAX_PAYLOAD, Outcome, OwnInfo, Peer, SendError};
use crate::proto::identity::Mac;

/// How often this gateway announces itself.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3);
/// How often it is tested that the own channel delivers, and after how long without that the subscription is made anew.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_LOST: Duration = Duration::from_secs(6);
/// For so long after a probe the own channel counts as one that delivers. Gateways are only missed in that time.
const PROBE_VALID: Duration = Duration::from_secs(3);
/// Replies that may be outstanding.
const EXPECTED_MAX: usize = 16_384;
/// Bytes on their way to Redis above which nothing is accepted any more.
const QUEUE_MAX: usize = 4 << 20;
/// The same for audio.
const AUDIO_QUEUE_MAX: usize = 256 << 10;
/// For so long after Redis may have lost its data, a device without a record may be connected somewhere.
pub(super) const DISTRUST: Duration = Duration::from_secs(30);
/// For so long after a connection was made, other gateways may not have subscribed again.
const SETTLE: Duration = Duration::from_secs(5);
/// How often a refusal is reported at most.
const REFUSED_INTERVAL: Duration = Duration::from_secs(60);

/// What is configured.
#[derive(Clone)]
pub struct Settings {
    /// The name to be used, unless it is taken.
    pub name: String,
    /// In front of every key and channel, without the colon.
    pub prefix: String,
    /// The user of Redis; `None` for its default user.
    pub user: Option<String>,
    /// The password, if one is needed.
    pub password: Option<Vec<u8>>,
    /// The number of the database.
    pub database: u32,
    /// `mqtt.signature_key`, which signs messages between gateways, and keys that are accepted besides. Without any, none is signed.
    pub keys: Vec<Vec<u8>>,
}

impl Settings {
    /// What a connection sends first, as far as it is needed: each command with its name.
    pub(super) fn login(&self, is_subscriber: bool) -> impl Iterator<Item = (&'static str, Vec<Vec<u8>>)> {
        let words = |parts: &[&[u8]]| parts.iter().map(|part| part.to_vec()).collect();
        let auth = match (&self.user, self.password.as_deref()) {
            (Some(user), password) => Some(words(&[b"AUTH", user.as_bytes(), password.unwrap_or_default()])),
            (None, Some(password)) => Some(words(&[b"AUTH", password])),
            (None, None) => None,
        };
        let select = (self.database != 0 && !is_subscriber)
            .then(|| words(&[b"SELECT", self.database.to_string().as_bytes()]));
        [("AUTH", auth), ("SELECT", select)].into_iter().filter_map(|(name, parts)| Some((name, parts?)))
    }
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections to Redis that were lost, and attempts that failed.
    pub connections_lost: u64,
    /// Commands that were sent.
    pub commands: u64,
    /// Commands that Redis refused.
    pub refused: u64,
    /// Messages and their bytes that other gateways were sent.
    pub published: u64,
    /// See `published`.
    pub published_bytes: u64,
    /// Frames that came from other gateways.
    pub received: u64,
    /// Payloads that were not sent because the queue was full.
    pub dropped: u64,
    /// Messages and values in Redis that no gateway of this version has written.
    pub malformed: u64,
    /// Messages that are not signed with a key of this gateway.
    pub foreign: u64,
    /// Connections of devices that were closed since the device connected elsewhere.
    pub connected_elsewhere: u64,
}

/// A command whose reply is outstanding.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) what: Expect,
    pub(super) sent: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Without which nothing works.
    Login,
    /// The last command of the greeting.
    Greeted,
    /// Whatever it is.
    Anything,
    Name(NameStep),
    Probe,
    Published(GatewayId),
    /// The record of a device that has connected.
    Connected(Mac, u32),
    /// The record of a device where there was none, or one of no value.
    Restored(Mac, u32),
    Refresh(Vec<Mac>),
    Locate(u64),
    /// In how many milliseconds the device's bucket of hellos is full.
    Hellos(Mac),
    /// The record of a device whose call waits for it.
    CallRecord(CallRecord),
    CallRecordWritten(CallRecord),
}

/// This gateway's part in a cluster. Its methods never wait. After each call: carry out the [`Action`]s, write the output, apply
/// the [`Outcome`]s, and call [`Cluster::on_timeout`] at [`Cluster::deadline`].
pub struct Cluster {
    pub(super) id: GatewayId,
    pub(super) settings: Settings,
    pub(super) commands: RedisConnection,
    pub(super) subscriber: RedisConnection,
    pub(super) expected: VecDeque<Expected>,
    pub(super) bundles: FrameBundles,
    pub(super) seal: Seal,
    pub(super) name: OwnName,
    pub(super) peers: Peers,
    pub(super) presence: Presence,
    info: OwnInfo,
    next_announce: Instant,
    next_probe: Instant,
    /// When a probe last came back over the present subscription.
    pub(super) probe_heard: Option<Instant>,
    /// Whether [`Outcome::Connected`] or [`Outcome::Unreachable`] was the last; `None` before the first.
    reported: Option<bool>,
    unreachable_since: Instant,
    pub(super) was_connected: bool,
    pub(super) distrusted_until: Option<Instant>,
    refused_until: Option<Instant>,
    foreign_until: Option<Instant>,
    pub(super) actions: Vec<Action>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) counters: Counters,
    pub(super) round_trips: Vec<Duration>,
}

impl Cluster {
    /// Not connected; the first [`Cluster::on_timeout`] begins that. `id` is random.
    pub fn new(id: GatewayId, settings: Settings, now: Instant) -> Self {
        Self {
            id,
            commands: RedisConnection::new(id.0 | 1, now),
            subscriber: RedisConnection::new(id.0.rotate_left(32) | 1, now),
            expected: VecDeque::new(),
            bundles: FrameBundles::default(),
            seal: Seal::new(settings.keys.clone()),
            name: OwnName::new(settings.name.clone(), now),
            settings,
            peers: Peers::default(),
            presence: Presence::new(now),
            info: OwnInfo::default(),
            next_announce: now,
            next_probe: now,
            probe_heard: None,
            reported: None,
            unreachable_since: now,
            was_connected: false,
            distrusted_until: None,
            refused_until: None,
            foreign_until: None,
            actions: Vec::new(),
            outcomes: Vec::new(),
            counters: Counters::default(),
            round_trips: Vec::new(),
        }
    }

    /// This run of this gateway.
    pub fn id(&self) -> GatewayId {
        self.id
    }

    /// The name of this gateway, which is another one than was configured if that is taken.
    pub fn name(&self) -> String {
        self.name.current()
    }

    /// Whether Redis can be used.
    pub fn state(&self) -> ClusterState {
        match self.reported {
            Some(true) => ClusterState::Connected,
            Some(false) | None => ClusterState::Unreachable(self.unreachable_since),
        }
    }

    /// The other gateways.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.all()
    }

    /// How many there are.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Devices of this gateway, and those of them that Redis is known to hold.
    pub fn devices(&self) -> (usize, usize) {
        self.presence.counts()
    }

    /// Bytes on their way to Redis.
    pub fn queued(&self) -> usize {
        self.commands.queued() + self.bundles.bytes()
    }

    /// Replies that are outstanding.
    pub fn outstanding(&self) -> usize {
        self.expected.len()
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How long Redis took to answer, since the last call.
    pub fn take_round_trips(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.round_trips)
    }

    /// The keys have changed; see [`Settings::keys`].
    pub fn set_keys(&mut self, keys: Vec<Vec<u8>>) {
        self.seal = Seal::new(keys);
    }

    /// What this gateway announces from now on.
    pub fn set_info(&mut self, info: OwnInfo) {
        self.info = info;
    }

    // ----- the shell ----------------------------------------------------------------------------------------------

    /// What is to be done with the sockets, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// What has happened, in order.
    pub fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// Bytes to be written.
    pub fn take_output(&mut self, connection: Connection) -> Vec<u8> {
        std::mem::take(&mut self.link(connection).output)
    }

    /// How many bytes of earlier output the socket has not taken.
    pub fn set_unwritten(&mut self, connection: Connection, bytes: usize) {
        self.link(connection).unwritten = bytes;
    }

    pub(super) fn link(&mut self, connection: Connection) -> &mut RedisConnection {
        match connection {
            Connection::Commands => &mut self.commands,
            Connection::Subscriber => &mut self.subscriber,
        }
    }

    /// The connection that [`Action::Connect`] has asked for is there.
    pub fn on_connected(&mut self, connection: Connection, now: Instant) {
        self.link(connection).connected(now);
        self.greet(connection, now);
    }

    /// It could not be made, or has ended; the reason in words.
    pub fn on_lost(&mut self, connection: Connection, reason: &str, now: Instant) {
        if !self.link(connection).is_open() {
            return;
        }
        self.link(connection).lost(now);
        self.counters.connections_lost += 1;
        match connection {
            Connection::Commands => self.forget_expected(),
            Connection::Subscriber => self.probe_heard = None,
        }
        if self.reported != Some(false) {
            (self.reported, self.unreachable_since) = (Some(false), now);
            self.outcomes.push(Outcome::Unreachable(reason.to_owned()));
        }
    }

    /// What was expected will not come.
    fn forget_expected(&mut self) {
        for Expected { what, .. } in std::mem::take(&mut self.expected) {
            if let Expect::Locate(token) = what {
                self.outcomes.push(Outcome::Located { token, location: Location::Unknown });
            }
        }
        self.presence.forget_pending();
        self.bundles.take();
    }

    /// Ends the connection from this side, unless it has ended.
    pub(super) fn give_up(&mut self, connection: Connection, reason: &str, now: Instant) {
        if !self.link(connection).is_open() {
            return;
        }
        self.actions.push(Action::Close(connection));
        self.on_lost(connection, reason, now);
    }

    /// These bytes were read.
    pub fn on_bytes(&mut self, connection: Connection, bytes: &[u8], now: Instant) {
        let link = self.link(connection);
        if !link.is_open() {
            return;
        }
        link.read(bytes);
        let (replies, bad) = link.replies();
        for reply in replies {
            // It may have been given up meanwhile.
            if !self.link(connection).is_open() {
                return;
            }
            match connection {
                Connection::Commands => self.on_reply(reply, now),
                Connection::Subscriber => self.on_message(reply, now),
            }
            self.report(now);
        }
        if let Some(found) = bad {
            self.give_up(connection, &format!("Redis sent {found}"), now);
        }
    }

    /// When to call [`Cluster::on_timeout`] next. It may be called too early.
    pub fn deadline(&self) -> Instant {
        let is_ready = self.commands.is_ready();
        let lists = [
            self.commands.deadline(),
            self.subscriber.deadline(),
            self.expected.front().map(|expected| expected.sent + REPLY_TIMEOUT),
            is_ready.then_some(self.name.next),
            (is_ready && self.subscriber.is_ready()).then_some(self.next_probe),
            (self.reported == Some(true)).then_some(self.next_announce),
            self.presence.deadline().filter(|_| self.can_command()),
            self.probe_deadline(),
            self.peers.deadline(self.hears_until()).filter(|_| self.reported == Some(true)),
        ];
        // One of the links has a deadline, or both are ready and probes are due.
        lists.into_iter().flatten().min().unwrap_or(self.next_probe)
    }

    /// When the subscription counts as one that delivers nothing.
    fn probe_deadline(&self) -> Option<Instant> {
        let ready = self.commands.ready_since()?.max(self.subscriber.ready_since()?);
        Some(self.probe_heard.map_or(ready, |heard| heard.max(ready)) + PROBE_LOST)
    }

    /// Until when silence of others is theirs.
    fn hears_until(&self) -> Option<Instant> {
        self.probe_heard.map(|heard| heard + PROBE_VALID)
    }

    /// Does what is due.
    pub fn on_timeout(&mut self, now: Instant) {
        for connection in Connection::ALL {
            if let Some(reason) = self.link(connection).is_late(now) {
                self.give_up(connection, &reason, now);
            }
            if self.link(connection).starts(now) {
                self.actions.push(Action::Connect(connection));
            }
        }
        if self.expected.front().is_some_and(|expected| expected.sent + REPLY_TIMEOUT <= now) {
            self.give_up(Connection::Commands, &no_answer(), now);
        }
        if self.probe_deadline().is_some_and(|at| at <= now) {
            let reason =
                format!("the channel of this gateway delivered nothing for {} s", PROBE_LOST.as_secs());
            self.give_up(Connection::Subscriber, &reason, now);
        }
        if !self.commands.is_ready() {
            return;
        }
        if self.name.next <= now {
            self.refresh_name(now);
        }
        if self.subscriber.is_ready() && self.next_probe <= now {
            self.next_probe = now + PROBE_INTERVAL;
            self.probe(now);
        }
        self.refresh_presence(now);
        if self.reported == Some(true) {
            for id in self.peers.stale(now, self.hears_until()) {
                self.peer_gone(id, "not heard for 7 s");
            }
            if self.next_announce <= now {
                self.announce(now);
            }
        }
    }

    /// Reports that everything works, when it does.
    fn report(&mut self, now: Instant) {
        let works = self.commands.is_ready() && self.name.is_held && self.probe_heard.is_some();
        if !works || self.reported == Some(true) {
            return;
        }
        self.reported = Some(true);
        self.peers.wait_again(now);
        self.outcomes.push(Outcome::Connected { name: self.name.current() });
        self.announce(now);
    }

    /// Both connections were made, so that a probe may come back.
    pub(super) fn probe_now(&mut self, now: Instant) {
        if self.commands.is_ready() && self.subscriber.is_ready() {
            self.next_probe = now + PROBE_INTERVAL;
            self.probe(now);
        }
    }

    pub(super) fn announce(&mut self, now: Instant) {
        self.next_announce = now + ANNOUNCE_INTERVAL;
        let info = OwnInfo { name: self.name.current(), ..self.info.clone() };
        let payload = serde_json::to_vec(&info).unwrap_or_default();
        self.publish_to_all(kind::ANNOUNCE, &payload, now);
    }

    /// Another gateway was heard for the first time, and shall not wait for the next announcement.
    pub(super) fn announce_soon(&mut self, now: Instant) {
        self.next_announce = self.next_announce.min(now + Duration::from_millis(50));
    }

    // ----- the gateway --------------------------------------------------------------------------------------------

    /// Asks where a device is. [`Outcome::Located`] follows, at once if there is no connection.
    pub fn locate(&mut self, mac: Mac, token: u64, now: Instant) {
        if !self.can_command() {
            return self.outcomes.push(Outcome::Located { token, location: Location::Unknown });
        }
        let key = self.device_key(mac);
        self.command(&[b"GET", key.as_bytes()], Expect::Locate(token), now);
    }

    /// Sends a payload that must not be lost unnoticed: it arrives, or this connection or that gateway is lost, which is an outcome.
    /// Only audio is dropped, and counted, while Redis is slow. Payloads for a gateway arrive in order. They leave at
    /// [`Cluster::flush`].
    ///
    /// # Errors
    /// Why it is not sent.
    pub fn send(
        &mut self,
        to: GatewayId,
        kind: u8,
        id: u64,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), SendError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(SendError::TooLong);
        }
        if !self.commands.is_ready() {
            return Err(SendError::Unreachable);
        }
        let queue_max = if kind == Kind::CallAudio as u8 { AUDIO_QUEUE_MAX } else { QUEUE_MAX };
        if self.queued() + payload.len() > queue_max || self.expected.len() >= EXPECTED_MAX {
            self.counters.dropped += 1;
            return Err(SendError::QueueFull);
        }
        if let Some(bundle) = self.bundles.add(to, &Frame { from: self.id, kind, id, payload }) {
            self.publish(to, &bundle, now);
        }
        Ok(())
    }

    /// Sends what was queued in this iteration.
    pub fn flush(&mut self, now: Instant) {
        for (to, bundle) in self.bundles.take() {
            self.publish(to, &bundle, now);
        }
    }

    /// Another process of this gateway has taken its place: that one gets the name. This one goes on for the calls that it has.
    pub fn resign(&mut self, now: Instant) {
        if self.commands.is_ready() {
            self.release_name(&self.name.current(), now);
        }
        self.name.resign();
        self.announce_soon(now);
    }

    /// This gateway ends: the others are told, and its name is free. Devices' records are left to the gateways that their devices
    /// connect to.
    pub fn leave(&mut self, now: Instant) {
        if self.commands.is_ready() {
            self.flush(now);
            self.publish_to_all(kind::LEAVE, b"", now);
            self.release_name(&self.name.current(), now);
        }
    }

    // ----- helpers of the other files -----------------------------------------------------------------------------

    /// Whether there is a connection that can take more commands.
    pub(super) fn can_command(&self) -> bool {
        self.commands.is_ready() && self.expected.len() < EXPECTED_MAX && self.commands.queued() < QUEUE_MAX
    }

    pub(super) fn command(&mut self, parts: &[&[u8]], what: Expect, now: Instant) {
        self.commands.command(parts);
        self.expected.push_back(Expected { what, sent: now });
        self.counters.commands += 1;
    }

    /// Runs a script on one key.
    pub(super) fn script(&mut self, script: &[u8], key: &str, args: &[&[u8]], what: Expect, now: Instant) {
        let parts = [&[b"EVAL", script, b"1", key.as_bytes()], args].concat();
        self.command(&parts, what, now);
    }

    pub(super) fn key(&self, rest: &str) -> String {
        format!("{}:{rest}", self.settings.prefix)
    }

    pub(super) fn device_key(&self, mac: Mac) -> String {
        self.key(&format!("device:{mac}"))
    }

    pub(super) fn channel_of(&self, id: GatewayId) -> String {
        self.key(&format!("to:{id}"))
    }

    /// Redis has refused a command.
    pub(super) fn refused(&mut self, reply: &Reply, now: Instant) {
        let Reply::Error(text) = reply else { return };
        self.counters.refused += 1;
        if self.refused_until.is_none_or(|until| until <= now) {
            self.refused_until = Some(now + REFUSED_INTERVAL);
            self.outcomes.push(Outcome::Refused(text.clone()));
        }
    }

    /// A message has no valid signature.
    pub(super) fn on_foreign_message(&mut self, now: Instant) {
        self.counters.foreign += 1;
        if self.foreign_until.is_none_or(|until| until <= now) {
            self.foreign_until = Some(now + REFUSED_INTERVAL);
            self.outcomes.push(Outcome::ForeignMessage);
        }
    }

    pub(super) fn peer_gone(&mut self, id: GatewayId, why: &'static str) {
        let name = self.peers.remove(id).map(|peer| peer.info.name);
        self.outcomes.push(Outcome::PeerGone { id, name, why });
    }

    /// Whether other gateways have had the time to subscribe after this one has. What ends its subscription may have ended theirs.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        [&self.commands, &self.subscriber]
            .iter()
            .all(|link| link.ready_since().is_some_and(|since| now >= since + SETTLE))
    }
}
