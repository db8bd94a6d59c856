//! What the rest of the gateway says to and hears from the cluster.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::proto::identity::Mac;

/// The longest payload that one gateway sends another, in bytes.
pub const MAX_PAYLOAD: usize = 256 << 10;
/// The first kind of frame that is free for use; those below belong to the cluster itself.
pub const FIRST_KIND: u8 = 16;

/// Identifies one run of a gateway: a random number, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub u64);

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for GatewayId {
    type Err = ();

    /// Reads exactly what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let is_digits =
            text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(())
    }
}

/// Whether Redis can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// `cluster.redis` is empty.
    Off,
    /// Not connected, since then.
    Unreachable(Instant),
    /// Both connections work.
    Connected,
}

/// Where a device is, as far as Redis knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// At this gateway, which may know better.
    At(GatewayId),
    /// At none.
    Nowhere,
    /// Redis cannot be used, or has lost its data a moment ago.
    Unknown,
}

/// A connection of a device to this gateway, or the one that its call here waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConnection {
    /// The MAC of the device.
    pub mac: Mac,
    /// A number that the connections of this device at this gateway do not share.
    pub connection: u32,
    /// A hash of the client id.
    pub client: u64,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// Why a payload was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no connection to Redis.
    Unreachable,
    /// Redis does not take what it is sent. The payload was dropped and counted.
    QueueFull,
    /// It is longer than [`MAX_PAYLOAD`].
    TooLong,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "Redis is not reachable",
            Self::QueueFull => "Redis does not take what it is sent",
            Self::TooLong => "it is too long",
        })
    }
}

/// What a gateway tells the others about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnInfo {
    /// Its name. Filled in by the cluster.
    #[serde(default)]
    pub name: String,
    /// The version of its program.
    #[serde(default)]
    pub version: String,
    /// Where devices connect: address and port.
    #[serde(default)]
    pub mqtt: String,
    /// Where devices send audio: address and port.
    #[serde(default)]
    pub udp: String,
    /// Its management API: address and port; empty if there is none.
    #[serde(default)]
    pub api: String,
    /// Devices that are connected.
    #[serde(default)]
    pub devices: usize,
    /// Calls in progress.
    #[serde(default)]
    pub calls: usize,
    /// It accepts no new connections.
    #[serde(default)]
    pub draining: bool,
}

/// Another gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Identifies it.
    pub id: GatewayId,
    /// What it last told.
    pub info: OwnInfo,
    /// When that was.
    pub last_heard: Instant,
}

/// What has happened, for the gateway to carry out. In order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Redis can be used, under this name.
    Connected {
        /// This gateway's name; another one than was configured if that is taken.
        name: String,
    },
    /// Redis cannot be used any more, or at start; the reason in words.
    Unreachable(String),
    /// Redis refused a command; in its words. At most once a minute.
    Refused(String),
    /// A message on a channel is not signed with a key of this gateway. At most once a minute.
    ForeignMessage,
    /// A device that has connected may have said hello at another gateway a moment ago: its bucket of hellos is full in this time.
    Hellos {
        /// Its MAC.
        mac: Mac,
        /// From now on.
        full_in: Duration,
    },
    /// Another gateway that runs has the name which this one had or wanted, so that this one takes another.
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: GatewayId,
        /// The name instead.
        instead: String,
    },
    /// The name that was configured is free, and this gateway's now.
    NameRegained(String),
    /// Another gateway was heard for the first time.
    PeerJoined(GatewayId),
    /// Another gateway said goodbye, has not been heard for 7 s, or does not receive what it is sent. Also one that never was heard.
    PeerGone {
        /// Which.
        id: GatewayId,
        /// Its name, if it was known.
        name: Option<String>,
        /// In words that follow "gateway NAME: ".
        why: &'static str,
    },
    /// A device with the same client id has connected to another gateway, later than this connection, which is to be closed.
    ConnectedElsewhere {
        /// Its MAC.
        mac: Mac,
        /// The connection, by the number that was given to it.
        connection: u32,
        /// The other gateway.
        by: GatewayId,
        /// The number that it has given to the later connection.
        later: u32,
    },
    /// The record of a device that has connected to this gateway was written.
    Registered {
        /// Its MAC.
        mac: Mac,
        /// The connection, by the number that was given to it.
        connection: u32,
        /// The gateway that had an older connection of it, and has been told to close that.
        asked: Option<GatewayId>,
    },
    /// The answer to a question where a device is.
    Located {
        /// That of the question.
        token: u64,
        /// The answer.
        location: Location,
    },
    /// Another gateway has sent this.
    Received {
        /// Which.
        from: GatewayId,
        /// At least [`FIRST_KIND`].
        kind: u8,
        /// As the sender has chosen it.
        id: u64,
        /// At most [`MAX_PAYLOAD`] bytes.
        payload: Vec<u8>,
    },
}
