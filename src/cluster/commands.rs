//! Commands to Redis and what follows from their replies, and the messages of the channels.

use std::time::{Duration, Instant};

use super::core::{Cluster, DISTRUST, Expect, Expected};
use super::frame::{self, Frame, kind};
use super::name::{NAME_TTL_S, NameStep, REFRESH};
use super::redis_connection::Connection;
use super::resp::Reply;
use super::{FIRST_KIND, GatewayId, Outcome};

/// The longest time that a bucket of hellos may need: what is in Redis may be anybody's.
const HELLOS_MAX: Duration = Duration::from_secs(600);

/// Takes a key for a value unless it has another one. Returns an empty text, or that other one.
pub(super) const HOLD: &[u8] = b"local v=redis.call('GET',KEYS[1]) if v and v~=ARGV[1] then return v end \
    redis.call('SET',KEYS[1],ARGV[1],'EX',ARGV[2]) return ''";
/// Replaces one value by another; also where there is none.
pub(super) const REPLACE: &[u8] = b"local v=redis.call('GET',KEYS[1]) if v and v~=ARGV[1] then return 0 end \
    redis.call('SET',KEYS[1],ARGV[2],'EX',ARGV[3]) return 1";
/// Deletes a key while it has this value.
pub(super) const DELETE: &[u8] =
    b"if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";

/// Errors after which the connection is of no use: a replica after a failover, a server that starts.
const FATAL_ERRORS: [&str; 5] = ["READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "UNKILLABLE"];

impl Expect {
    /// Whether it can be the reply to this command.
    fn fits(&self, reply: &Reply) -> bool {
        match (self, reply) {
            (_, Reply::Error(_)) => true,
            (Self::Refresh(macs), Reply::Array(values)) => values.len() == macs.len(),
            (Self::Refresh(_), _) | (_, Reply::Array(_)) => false,
            (Self::Login | Self::Greeted, reply) => matches!(reply, Reply::Text(_) | Reply::Bulk(_)),
            (Self::Probe | Self::Published(_) | Self::Hellos(_) | Self::CallRecordWritten(_), reply) => {
                matches!(reply, Reply::Integer(_))
            }
            (Self::Connected(..) | Self::CallRecord(_) | Self::Locate(_), reply) => {
                matches!(reply, Reply::Bulk(_) | Reply::Null)
            }
            (Self::Anything | Self::Name(_) | Self::Restored(..), _) => true,
        }
    }
}

impl Cluster {
    /// The first commands of a connection.
    pub(super) fn greet(&mut self, connection: Connection, now: Instant) {
        let (own, all) = (self.channel_of(self.id), self.key("all"));
        let client = self.key(&self.id.to_string());
        let login: Vec<_> = self.settings.login(connection == Connection::Subscriber).collect();
        let mut add = |parts: &[&[u8]], what| match connection {
            Connection::Commands => self.command(parts, what, now),
            // Its replies are told apart by what they are.
            Connection::Subscriber => self.subscriber.command(parts),
        };
        for (_, parts) in &login {
            add(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), Expect::Login);
        }
        add(&[b"CLIENT", b"SETNAME", client.as_bytes()], Expect::Anything);
        match connection {
            Connection::Commands => add(&[b"PING"], Expect::Greeted),
            Connection::Subscriber => {
                add(&[b"SUBSCRIBE", own.as_bytes(), all.as_bytes()], Expect::Anything);
            }
        }
    }

    /// The reply to the oldest command without one.
    pub(super) fn on_reply(&mut self, reply: Reply, now: Instant) {
        let Some(Expected { what, sent }) = self.expected.pop_front() else {
            // An error without a command: too many clients, for one.
            let reason = match reply {
                Reply::Error(text) => text,
                _ => "Redis sent a reply without a command".to_owned(),
            };
            return self.give_up(Connection::Commands, &reason, now);
        };
        if let Reply::Error(text) = &reply {
            let is_fatal = matches!(what, Expect::Login | Expect::Greeted)
                || FATAL_ERRORS.iter().any(|fatal| text.starts_with(fatal))
                || text.contains("max number of clients");
            if is_fatal {
                return self.give_up(Connection::Commands, &text.clone(), now);
            }
            if what != Expect::Anything {
                self.refused(&reply, now);
            }
        }
        if !what.fits(&reply) {
            // All that follow would be taken for others too.
            let reason = "Redis sent a reply that does not fit its command";
            return self.give_up(Connection::Commands, reason, now);
        }
        match what {
            Expect::Login | Expect::Anything => {}
            Expect::Greeted => self.accepted(now),
            Expect::Name(step) => self.on_name_reply(step, &reply, now),
            Expect::Probe => {
                self.round_trips.push(now.saturating_duration_since(sent));
                if reply == Reply::Integer(0) && self.subscriber.is_ready() {
                    self.give_up(Connection::Subscriber, "Redis has no subscription of this gateway", now);
                }
            }
            Expect::Published(to) => {
                if reply == Reply::Integer(0) && self.is_settled(now) {
                    self.peer_gone(to, "nobody receives what it is sent");
                }
            }
            Expect::Connected(mac, connection) => {
                self.on_connected_reply(mac, connection, &reply, sent, now);
            }
            Expect::Restored(mac, connection) => self.on_restored_reply(mac, connection, &reply),
            Expect::Refresh(macs) => self.on_refresh_reply(&macs, reply, now),
            Expect::CallRecord(record) => self.on_call_record_reply(record, &reply, now),
            Expect::CallRecordWritten(record) => self.on_call_record_written(record, &reply, now),
            Expect::Hellos(mac) => {
                if let Reply::Integer(ms @ 1..) = reply {
                    let full_in = Duration::from_millis(ms.unsigned_abs()).min(HELLOS_MAX);
                    self.outcomes.push(Outcome::Hellos { mac, full_in });
                }
            }
            Expect::Locate(token) => self.on_locate_reply(token, &reply, now),
        }
    }

    /// Redis has accepted the connection for commands.
    fn accepted(&mut self, now: Instant) {
        self.commands.accepted(now);
        self.name.next = now;
        self.refresh_name(now);
        self.presence.begin_fast_round(now);
        if std::mem::replace(&mut self.was_connected, true) {
            self.distrusted_until = Some(now + DISTRUST);
        }
        self.probe_now(now);
    }

    // ----- the name -----------------------------------------------------------------------------------------------

    pub(super) fn refresh_name(&mut self, now: Instant) {
        self.name.next = now + REFRESH;
        if self.name.is_resigned() {
            return;
        }
        let current = self.name.current();
        // It may be free by now. While its holder is heard, Redis has lost the key.
        let wanted = self.name.wanted().to_owned();
        let is_free = self.is_settled(now) && !self.peers.all().any(|peer| peer.info.name == wanted);
        if self.name.is_held && current != wanted && is_free {
            self.hold_name(wanted, now);
        }
        self.hold_name(current, now);
    }

    fn hold_name(&mut self, name: String, now: Instant) {
        let (key, id) = (self.key(&format!("gateway:{name}")), self.id.to_string());
        let args = [id.as_bytes(), NAME_TTL_S.as_bytes()];
        self.script(HOLD, &key, &args, Expect::Name(NameStep::Hold(name)), now);
    }

    pub(super) fn release_name(&mut self, name: &str, now: Instant) {
        let (key, id) = (self.key(&format!("gateway:{name}")), self.id.to_string());
        self.script(DELETE, &key, &[id.as_bytes()], Expect::Anything, now);
    }

    fn on_name_reply(&mut self, step: NameStep, reply: &Reply, now: Instant) {
        if self.name.is_resigned() {
            return;
        }
        match (step, reply) {
            // A name that cannot be written is used without that.
            (NameStep::Hold(name), Reply::Error(_)) => self.name_is_held(&name, now),
            (NameStep::Hold(name), reply) => match reply.bytes() {
                Some(b"") => self.name_is_held(&name, now),
                Some(holder) => self.probe_holder(name, holder, now),
                None => {}
            },
            (NameStep::Probe(name, holder), Reply::Integer(0)) => self.take_name_over(name, &holder, now),
            (NameStep::Probe(name, holder), _) if name == self.name.current() => {
                let holder = std::str::from_utf8(&holder).ok().and_then(|text| text.parse().ok());
                let Some(holder) = holder else { return };
                let Some(instead) = self.name.take_next(now) else { return };
                self.outcomes.push(Outcome::NameTaken { name, holder, instead });
                self.refresh_name(now);
            }
            (NameStep::Probe(..), _) => {}
            (NameStep::TakeOver(name), Reply::Integer(1)) => self.name_is_held(&name, now),
            // Somebody was faster.
            (NameStep::TakeOver(_), _) => self.name.next = now,
        }
    }

    fn name_is_held(&mut self, name: &str, now: Instant) {
        if let Some(before) = self.name.hold(name) {
            self.release_name(&before, now);
            self.outcomes.push(Outcome::NameRegained(name.to_owned()));
            self.announce_soon(now);
        }
    }

    /// Another run of a gateway has the name: one that runs, or one that has ended a moment ago.
    fn probe_holder(&mut self, name: String, holder: &[u8], now: Instant) {
        let id: Option<GatewayId> = std::str::from_utf8(holder).ok().and_then(|text| text.parse().ok());
        let Some(id) = id else {
            self.counters.malformed += 1;
            return self.take_name_over(name, holder, now);
        };
        let (channel, frame) = (self.channel_of(id), self.frame(kind::PROBE, b""));
        let what = Expect::Name(NameStep::Probe(name, holder.to_vec()));
        self.publish_on(&channel, &frame, what, now);
    }

    fn take_name_over(&mut self, name: String, from: &[u8], now: Instant) {
        let (key, id) = (self.key(&format!("gateway:{name}")), self.id.to_string());
        let args = [from, id.as_bytes(), NAME_TTL_S.as_bytes()];
        self.script(REPLACE, &key, &args, Expect::Name(NameStep::TakeOver(name)), now);
    }

    // ----- channels -----------------------------------------------------------------------------------------------

    fn frame(&self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame { from: self.id, kind, id: 0, payload }.write(&mut bytes);
        bytes
    }

    pub(super) fn probe(&mut self, now: Instant) {
        let (channel, frame) = (self.channel_of(self.id), self.frame(kind::PROBE, b""));
        self.publish_on(&channel, &frame, Expect::Probe, now);
    }

    pub(super) fn publish_to_all(&mut self, kind: u8, payload: &[u8], now: Instant) {
        let (channel, frame) = (self.key("all"), self.frame(kind, payload));
        self.publish_on(&channel, &frame, Expect::Anything, now);
    }

    fn publish_on(&mut self, channel: &str, message: &[u8], what: Expect, now: Instant) {
        let message = self.seal.seal(channel.as_bytes(), message);
        self.command(&[b"PUBLISH", channel.as_bytes(), &message], what, now);
    }

    pub(super) fn publish(&mut self, to: GatewayId, bundle: &[u8], now: Instant) {
        self.counters.published += 1;
        self.counters.published_bytes += bundle.len() as u64;
        let channel = self.channel_of(to);
        self.publish_on(&channel, bundle, Expect::Published(to), now);
    }

    /// What the subscriber got.
    pub(super) fn on_message(&mut self, reply: Reply, now: Instant) {
        let parts = match reply {
            Reply::Error(text) if text.contains("SETNAME") || text.contains("setname") => return,
            Reply::Error(text) => return self.give_up(Connection::Subscriber, &text, now),
            Reply::Array(parts) => parts,
            Reply::Text(_) | Reply::Integer(_) | Reply::Bulk(_) | Reply::Null => return,
        };
        match &parts[..] {
            // The number of channels.
            [kind, _, Reply::Integer(2)] if kind.bytes() == Some(b"subscribe") => {
                self.subscriber.accepted(now);
                self.probe_now(now);
            }
            [kind, channel, payload] if kind.bytes() == Some(b"message") => {
                let (Some(channel), Some(payload)) = (channel.bytes(), payload.bytes()) else { return };
                let to_all = channel == self.key("all").as_bytes();
                match self.seal.open(channel, payload).map(<[u8]>::to_vec) {
                    Some(message) => self.on_frames(to_all, &message, now),
                    None => self.on_foreign_message(now),
                }
            }
            _ => {}
        }
    }

    fn on_frames(&mut self, to_all: bool, mut message: &[u8], now: Instant) {
        while !message.is_empty() {
            let Some(frame) = frame::take(&mut message) else {
                self.counters.malformed += 1;
                return;
            };
            if frame.from == self.id {
                if !to_all && frame.kind == kind::PROBE {
                    self.probe_heard = Some(now);
                }
                continue;
            }
            self.counters.received += 1;
            match (to_all, frame.kind) {
                (false, kind::PROBE) => {}
                (false, kind::CLOSE) => self.on_close_frame(&frame),
                (true, kind::ANNOUNCE) => match self.peers.heard(frame.from, frame.payload, now) {
                    Some(true) => {
                        self.outcomes.push(Outcome::PeerJoined(frame.from));
                        self.announce_soon(now);
                    }
                    Some(false) => {}
                    None => self.counters.malformed += 1,
                },
                (true, kind::LEAVE) => self.peer_gone(frame.from, "it has ended"),
                (false, FIRST_KIND..) => self.outcomes.push(Outcome::Received {
                    from: frame.from,
                    kind: frame.kind,
                    id: frame.id,
                    payload: frame.payload.to_vec(),
                }),
                _ => self.counters.malformed += 1,
            }
        }
    }
}
