//! The view of a call for the management API.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Attachment, Call, CallResult, ChatServerConfig, Context};
use crate::proto::message;
use crate::session::action::{CallState, CallStats, EndReason};
use crate::session::call_quality::CallSituation;
use crate::session::call_report::{CallReport, CallSlice};

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
    /// What the device's packets have lost, for a counter: it never falls.
    pub settled_lost: u64,
    /// Packets, bytes and what went missing.
    pub stats: CallStats,
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
            jitter: self.media.quality.jitter(),
            settled_lost: self.media.quality.settled_lost(),
            stats: self.media.counts.stats(),
        }
    }

    /// The quality of the call, and what was wrong with it: so far, while there is no reason for its end.
    pub(in crate::session) fn report(&self, reason: Option<EndReason>, now: Instant) -> CallReport {
        let is_unheard = self.is_listening && !self.heard_since_listen;
        let is_away = self.attachment != Attachment::Attached;
        self.media.quality.report(
            &self.media.counts.stats(),
            &CallSituation { reason, is_away, is_unheard, age: self.age(now) },
        )
    }

    /// The last ten seconds.
    pub(in crate::session) fn last_slice(&self, now: Instant) -> CallSlice {
        self.media.quality.last_slice(self.media.counts.lost, self.age(now))
    }

    /// Sends an operator's text to the device, with the call's session id.
    pub(in crate::session) fn operator_text(&mut self, text: &str, cx: &mut Context<'_>) -> CallResult {
        self.publish(message::with_session_id(text, self.session_id()).into_owned(), cx)
    }
}
