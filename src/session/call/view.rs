//! The view of a call for the management API.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Call, CallResult, ChatServerConfig, Context};
use crate::proto::message;
use crate::session::labels::labelled_enum;
use crate::session::media::CallStats;

labelled_enum! {
    /// The state of a call.
    pub enum CallState {
        /// The chat server's WebSocket is being opened.
        Dialing => "dialing",
        /// The WebSocket is open, and the server's hello is awaited.
        AwaitingHello => "greeting",
        /// Both hellos were exchanged.
        Live => "live",
        /// The chat server was lost, and another WebSocket is opened after a pause.
        Redialing => "redialing",
        /// The chat server is closed, and another device is being called.
        Ringing => "ringing",
        /// The chat server is closed, and another device is connected.
        InDeviceCall => "bridged",
    }
}

/// A call as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct CallView<'a> {
    /// Its state.
    pub state: CallState,
    /// The session id that the device was given, if it was answered.
    pub session_id: Option<&'a str>,
    /// When the device sent its hello.
    pub started_at: Instant,
    /// The chat server that is connected, being dialled, or lost; none in a call with a device.
    pub server: Option<&'a ChatServerConfig>,
    /// Where the device's audio comes from.
    pub peer: Option<SocketAddr>,
    /// The average deviation of the intervals between the device's packets.
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

    /// Sends an operator's text to the device, with the call's session id.
    pub(in crate::session) fn operator_text(&mut self, text: &str, cx: &mut Context<'_>) -> CallResult {
        self.publish(message::with_session_id(text, self.session_id()).into_owned(), cx)
    }
}
