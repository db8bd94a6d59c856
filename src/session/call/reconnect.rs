//! The device's connection is lost in a call, and comes back.
//!
//! Firmware up to 2.4 keeps its call when MQTT is lost: a device that speaks goes on speaking, one that listens goes on sending.
//! But after the reconnection it may as well have been rebooted, or its user may have pressed the button, so that the call is
//! over. A device in no call speaks from `tts start` on, and nothing ends that. So a `tts start` that was not delivered waits,
//! with its audio and what follows, until the device has shown that it is still in this call: by a datagram, or by a message
//! with the call's session id.
//!
//! | when the connection was lost | after CONNECT |
//! | --- | --- |
//! | before the hello reply | less than 10 s after its hello: the reply is sent, and what followed it, after half a second in which a device that is in no call says hello again. Later: the call ends, since the device has given up |
//! | in speech: `tts start` was sent, `tts stop` was not | texts are sent at once; audio went on meanwhile |
//! | else | a device that has shown it gets everything. Texts alone wait for half a second at most, in which a device that is in no call says hello |

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::action::{EndReason, LogEvent};
use super::super::context::Context;
use super::super::deadlines::{CallTime, CallTimer};
use super::{Call, CallResult};

/// A datagram that is at most this old when the device reconnects shows that the device is in the call.
const DATAGRAM_IS_PROOF: Duration = Duration::from_secs(2);
/// How long a device waits for its hello reply.
const DEVICE_WAITS: Duration = Duration::from_secs(10);
/// How long texts wait for a device that has reconnected to show whether it is in the call.
const TEXT_DELAY: Duration = Duration::from_millis(500);
/// How long a call is kept while datagrams arrive but the device does not reconnect.
const LOST_MAX: Duration = Duration::from_secs(300);

/// What the device was doing when its connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum AtLoss {
    /// It waited for its hello reply.
    AwaitingReply,
    Speaking,
    Listening,
}

/// Whether messages reach the device, and whether it is known to be in this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// The device is connected, and in the call.
    Attached,
    /// The connection was lost.
    Lost { at: CallTime, device: AtLoss },
    /// The device has reconnected, and has not shown yet that it is in the call.
    Unproven { lost_at: CallTime, back_at: CallTime, device: AtLoss },
}

impl Attachment {
    pub(super) fn lost_at(self) -> Option<CallTime> {
        match self {
            Self::Attached => None,
            Self::Lost { at, .. } | Self::Unproven { lost_at: at, .. } => Some(at),
        }
    }
}

impl Call {
    /// The device's connection was lost: when, and what the device was doing. It may have been lost before, and not have resumed the
    /// call.
    pub(in super::super) fn on_device_lost(&mut self, now: Instant) -> (Instant, AtLoss) {
        let (was_unheard, age) = (self.is_listening && !self.heard_since_listen, self.age(now));
        self.media.quality.on_listen_end(was_unheard, age);
        let now = self.deadlines.time(now);
        let (at, device) = match self.attachment {
            Attachment::Attached if self.session_id.is_none() => (now, AtLoss::AwaitingReply),
            Attachment::Attached if self.tts_active => (now, AtLoss::Speaking),
            Attachment::Attached => (now, AtLoss::Listening),
            Attachment::Lost { at, device } | Attachment::Unproven { lost_at: at, device, .. } => {
                (at, device)
            }
        };
        self.attachment = Attachment::Lost { at, device };
        self.deadlines.clear(CallTimer::Reattach);
        self.cold.get_or_insert_default().pending_device_text.get_or_insert_default();
        (self.deadlines.instant(at), device)
    }

    /// Until when the call is kept for the device to reconnect: longer while its datagrams arrive.
    pub(in super::super) fn kept_until(&self, grace: Duration) -> Option<Instant> {
        let Attachment::Lost { at, .. } = self.attachment else { return None };
        let at = self.deadlines.instant(at);
        Some((self.media.last_accepted().max(at) + grace).min(at + LOST_MAX.max(grace)))
    }

    pub(in super::super) fn on_device_reconnected(&mut self, ip: IpAddr, cx: &mut Context<'_>) -> CallResult {
        let (at, device) = self.on_device_lost(cx.now);
        if device == AtLoss::AwaitingReply && self.device_has_given_up(cx.now) {
            return Err(EndReason::DeviceLost);
        }
        self.media.set_mqtt_ip(ip);
        let last = self.media.last_accepted();
        if last > at && cx.now.saturating_duration_since(last) <= DATAGRAM_IS_PROOF {
            return self.attach(at, cx);
        }
        let (lost_at, back_at) = (self.deadlines.time(at), self.deadlines.time(cx.now));
        self.attachment = Attachment::Unproven { lost_at, back_at, device };
        if device == AtLoss::Speaking {
            self.send_pending_texts(cx);
        }
        self.deadlines.set(CallTimer::Reattach, cx.now + TEXT_DELAY.min(cx.config.mqtt.resume_grace));
        Ok(())
    }

    /// Whether the device waits for its hello reply no more: it is in no call, and `tts start` would make it speak for ever.
    pub(super) fn device_has_given_up(&self, now: Instant) -> bool {
        self.age(now) >= DEVICE_WAITS
    }

    /// Whether the device has reconnected, and has not shown yet that it is in the call.
    pub(super) fn awaits_proof(&self) -> bool {
        matches!(self.attachment, Attachment::Unproven { .. })
    }

    /// Whether the device has reconnected, and waits for its hello reply.
    pub(super) fn awaits_reply(&self) -> bool {
        matches!(self.attachment, Attachment::Unproven { device: AtLoss::AwaitingReply, .. })
    }

    /// Whether a device that says hello now may be speaking: it was told to, or was when its connection was lost.
    pub(in super::super) fn may_be_speaking(&self) -> bool {
        self.tts_active || matches!(self.attachment, Attachment::Unproven { device: AtLoss::Speaking, .. })
    }

    /// The device has shown that it is in this call.
    pub(super) fn on_proof(&mut self, cx: &mut Context<'_>) -> CallResult {
        match self.attachment {
            Attachment::Unproven { lost_at, .. } => self.attach(self.deadlines.instant(lost_at), cx),
            _ => Ok(()),
        }
    }

    fn attach(&mut self, lost_at: Instant, cx: &mut Context<'_>) -> CallResult {
        self.attachment = Attachment::Attached;
        self.deadlines.clear(CallTimer::Reattach);
        let away = cx.now.saturating_duration_since(lost_at);
        self.media.quality.on_resumed(away);
        cx.log(LogEvent::Resumed(away));
        self.send_pending_texts(cx);
        self.release_ready(cx)
    }

    pub(super) fn send_pending_texts(&mut self, cx: &mut Context<'_>) {
        let pending = self.cold.as_mut().and_then(|cold| cold.pending_device_text.take());
        for text in pending.map(|mut pending| pending.take()).unwrap_or_default() {
            cx.publish(text.into_string());
        }
    }

    /// The device has been back for a while, and has not shown that it is in the call.
    pub(super) fn on_reattach_timeout(&mut self, cx: &mut Context<'_>) -> CallResult {
        let Attachment::Unproven { lost_at, back_at, device } = self.attachment else { return Ok(()) };
        let (lost_at, back_at) = (self.deadlines.instant(lost_at), self.deadlines.instant(back_at));
        if device == AtLoss::AwaitingReply && self.device_has_given_up(cx.now) {
            return Err(EndReason::DeviceLost);
        }
        // Datagrams that come while there is no chat server, or in a call with another device, are a proof too.
        if device == AtLoss::AwaitingReply || self.media.last_accepted() > back_at {
            return self.attach(lost_at, cx);
        }
        let grace = cx.config.mqtt.resume_grace;
        let ends_at = back_at + grace;
        // A device that speaks says nothing, so its proof may come after the speech.
        let ends_at = if self.tts_active { ends_at.max(self.playout.ends_at() + grace) } else { ends_at };
        if cx.now < ends_at {
            if self.held.speech_goes_on().is_none() {
                self.send_pending_texts(cx);
            }
            // Datagrams that are not for a chat server are not reported one by one.
            self.deadlines.set(CallTimer::Reattach, ends_at.min(cx.now + TEXT_DELAY));
            return Ok(());
        }
        Err(EndReason::NotResumed)
    }
}
