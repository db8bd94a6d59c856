//! What operators see of a call.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Call, CallResult, ChatServerConfig, Context};
use crate::proto::message;
use crate::session::labels::labelled_enum;
use crate::session::media::CallStats;

labelled_enum! {
    /// How far a call is.
    pub enum CallState {
        /// A chat server is being resolved, connected to and upgraded.
        Dialing => "dialing",
        /// It is open, its hello is awaited.
        AwaitingHello => "greeting",
        /// Both sides talk.
        Live => "live",
        /// The chat server was lost; the call waits to dial the next.
        Redialing => "redialing",
        /// The chat server was left; another device is called.
        Ringing => "ringing",
        /// The chat server was left; another device talks.
        InDeviceCall => "bridged",
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
    pub started_at: Instant,
    /// The chat server, or the one being dialled, or the one that was lost; none in a call with a device.
    pub server: Option<&'a ChatServerConfig>,
    /// Where the device's audio comes from.
    pub peer: Option<SocketAddr>,
    /// Average deviation of the gaps between the device's packets.
    pub jitter: Duration,
    /// Packets, bytes and what went missing.
    pub stats: &'a CallStats,
}

impl Call {
    pub(in crate::session) fn view(&self) -> CallView<'_> {
        let redial = self.session_id.is_some();
        CallView {
            state: match self.state {
                CallState::Dialing | CallState::AwaitingHello if redial => CallState::Redialing,
                state => state,
            },
            session_id: self.session_id.as_deref(),
            started_at: self.started_at(),
            server: self.server.as_deref().filter(|_| !self.is_in_device_call()),
            peer: self.media.peer().map(|peer| peer.addr),
            jitter: self.media.jitter(),
            stats: &self.media.stats,
        }
    }

    /// An operator's text for the device, with the call's session id.
    pub(in crate::session) fn operator_text(&mut self, text: &str, cx: &mut Context<'_>) -> CallResult {
        self.publish(message::with_session_id(text, self.session_id()).into_owned(), cx)
    }
}
