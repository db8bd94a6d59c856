//! What operators see of a call.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Call, Cx, Flow, Server, Stage};
use crate::proto::message;
use crate::session::media::Facts;

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallState {
    /// A chat server is being resolved, connected to and upgraded.
    Dialing,
    /// It is open, its hello is awaited.
    Greeting,
    /// Both sides talk.
    Live,
    /// The chat server was lost; the call waits to dial the next.
    Redialing,
    /// The chat server was left; another device is called.
    Ringing,
    /// The chat server was left; another device talks.
    Bridged,
}

impl CallState {
    /// All, in the order of a call's life.
    pub const ALL: [Self; 6] =
        [Self::Dialing, Self::Greeting, Self::Live, Self::Redialing, Self::Ringing, Self::Bridged];

    /// Stable name, for metrics and the management API.
    pub fn label(self) -> &'static str {
        match self {
            Self::Dialing => "dialing",
            Self::Greeting => "greeting",
            Self::Live => "live",
            Self::Redialing => "redialing",
            Self::Ringing => "ringing",
            Self::Bridged => "bridged",
        }
    }
}

/// What operators see of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallView<'a> {
    /// How far it is.
    pub state: CallState,
    /// The id the device was given, once it was.
    pub session_id: Option<&'a str>,
    /// When the device said hello.
    pub began: Instant,
    /// The chat server, or the one being dialled, or the one that was lost; none in a call with a device.
    pub server: Option<&'a Server>,
    /// Where the device's audio comes from.
    pub peer: Option<SocketAddr>,
    /// Average deviation of the gaps between the device's packets.
    pub jitter: Duration,
    /// Packets, bytes and what went missing.
    pub facts: &'a Facts,
}

impl Call {
    pub(in crate::session) fn view(&self) -> CallView<'_> {
        let redial = self.id.is_some();
        CallView {
            state: match self.stage {
                Stage::Dialing { .. } | Stage::Greeting if redial => CallState::Redialing,
                Stage::Dialing { .. } => CallState::Dialing,
                Stage::Greeting => CallState::Greeting,
                Stage::Live => CallState::Live,
                Stage::Backoff => CallState::Redialing,
                Stage::Ringing => CallState::Ringing,
                Stage::Bridged => CallState::Bridged,
            },
            session_id: self.id.as_deref(),
            began: self.began(),
            server: self.server.as_deref().filter(|_| !self.is_with_device()),
            peer: self.media.peer().map(|peer| peer.addr),
            jitter: self.media.jitter(),
            facts: &self.media.facts,
        }
    }

    /// An operator's text for the device, with the call's session id.
    pub(in crate::session) fn operator_text(&mut self, text: &str, cx: &mut Cx<'_>) -> Flow {
        self.publish(message::with_session_id(text, self.session_id()).into_owned(), cx)
    }
}
