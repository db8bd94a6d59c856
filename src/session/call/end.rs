//! The end of a call: the messages to both sides, and the summary.

use std::time::Instant;

use super::super::action::{Action, CallSummary, DropReason, EndReason, LogEvent};
use super::super::context::Context;
use super::super::queue::{HeldQueue, TextQueue};
use super::text::hello_reply;
use super::{Call, LastWords};
use crate::proto::message;

/// The `audio_params` in a hello reply that only announces a failure, if the device sent none.
const DEFAULT_AUDIO_PARAMS: &str =
    r#"{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}"#;

/// What is left of a call that has ended.
pub(in super::super) struct Finished {
    /// The id that the device was given.
    pub(in super::super) session_id: Option<Box<str>>,
    /// To be shown when the device has handled its goodbye.
    pub(in super::super) alert: Option<String>,
}

impl Call {
    /// The device hangs up. True: the call has to continue until the device's texts are sent.
    pub(in super::super) fn hang_up(&mut self, reason: EndReason) -> bool {
        if self.session_id.is_some()
            || self.cold.as_ref().is_none_or(|cold| cold.pending_server_text.is_empty())
        {
            return false;
        }
        self.closing.get_or_insert(reason);
        self.cold.get_or_insert_default().pending_device_text = Some(TextQueue::default());
        true
    }

    /// Sends goodbye to both sides as the reason requires, and the summary.
    pub(in super::super) fn finish(mut self, reason: EndReason, cx: &mut Context<'_>) -> Finished {
        let mut summary = self.summary(reason, cx.now);
        if self.ending.is_none() {
            let goodbye = (reason != EndReason::ServerClosed).then_some(reason.label());
            self.close_server(goodbye, if reason == EndReason::Shutdown { 1001 } else { 1000 }, cx);
        }
        self.drop_held_audio(DropReason::NoPeer, cx);
        let answered = summary.answered;
        if let (Some(at), EndReason::DeviceLost | EndReason::NotResumed | EndReason::Replaced) =
            (self.attachment.lost_at().map(|at| self.deadlines.instant(at)), reason)
        {
            cx.log(LogEvent::NotResumed(cx.now.saturating_duration_since(at)));
        }
        if self.awaits_reply() && reason.notifies_device() {
            self.send_pending_texts(cx);
        } else if self.awaits_proof() {
            // If the device is in another call, or in none, these are not for it.
            self.held = HeldQueue::default();
            if let Some(cold) = &mut self.cold {
                cold.pending_device_text = None;
            }
        }
        let connected = self.cold.as_ref().is_none_or(|cold| cold.pending_device_text.is_none());
        let told = connected && reason.notifies_device();
        if told {
            // An error cannot occur, since no text is queued for a connected device.
            let _ = self.release_held_texts(cx);
        }
        let id = summary.session_id.clone();
        if told {
            let id = if reason == EndReason::DeviceNotInCall { "" } else { &*id };
            self.notify_device(id, answered, cx);
        } else if connected && reason == EndReason::DeviceGoodbye && self.tts_active {
            // It may have crossed `tts start`, which makes a device speak although it is in no call. Others ignore this.
            cx.publish(message::tts(Some(&id), "stop"));
        }
        let alert = if connected { self.last_alert(&id, answered, reason) } else { None };
        // Of sources that were never taken.
        self.media.drop_candidates();
        summary.stats = self.media.counts.stats();
        cx.out.push(Action::CallEnded(summary));
        Finished { session_id: (answered || told).then_some(id), alert }
    }

    /// What the device shows after its goodbye, which clears the screen.
    fn last_alert(&self, id: &str, answered: bool, reason: EndReason) -> Option<String> {
        use EndReason::{DeviceGoodbye, Overflow, ServerLost};
        let told = reason.notifies_device();
        if told && (!answered || matches!(reason, ServerLost | Overflow)) {
            let (status, why) = reason.alert_text();
            return Some(message::alert(Some(id), status, why, "sad"));
        }
        if let (EndReason::ServerClosed, Some(said)) = (reason, self.server_said()) {
            let (status, _) = reason.alert_text();
            return Some(message::alert(Some(id), status, &crate::text::shown(said), "neutral"));
        }
        let in_call = !matches!(reason, EndReason::NotResumed | EndReason::DeviceNotInCall);
        let never_heard = in_call && self.no_audio_shown && self.media.peer().is_none();
        (never_heard && (told || reason == DeviceGoodbye)).then(|| no_audio_alert(Some(id)))
    }

    /// The summary of the call, if it ends now.
    pub(in super::super) fn summary(&self, reason: EndReason, now: Instant) -> Box<CallSummary> {
        let id = self.session_id().unwrap_or_else(|| self.own_session_id());
        Box::new(CallSummary {
            session_id: id.into(),
            reason,
            duration: self.age(now),
            answered: self.session_id.is_some(),
            state: self.view().state,
            server: self.server.clone(),
            ssrc: Some(self.media.ssrc()),
            stats: self.media.counts.stats(),
            settled_lost: self.media.quality.settled_lost(),
            report: self.report(Some(reason), now),
            series: self.media.quality.series(self.media.counts.lost),
        })
    }

    /// Closes the chat server's WebSocket, after a goodbye with this reason, or abandons the dial.
    pub(super) fn close_server(&self, goodbye: Option<&str>, code: u16, cx: &mut Context<'_>) {
        let own = self.server.as_ref().and_then(|server| server.send_goodbye);
        let wanted = own.unwrap_or(cx.config.websocket.send_goodbye);
        if let Some(reason) = goodbye.filter(|_| self.has_server() && wanted) {
            let id = self.server_session_id().unwrap_or(self.own_session_id());
            let duration = self.age(cx.now).as_millis() as u64;
            cx.out.push(Action::SendText(message::server_goodbye(Some(id), reason, duration)));
        }
        cx.out.push(Action::CloseBackend(code));
    }

    /// Sends one goodbye. A device that waits for its hello reply gets one before, since nothing else ends its wait.
    fn notify_device(&mut self, id: &str, answered: bool, cx: &mut Context<'_>) {
        if let (false, Some(credentials)) = (answered, self.credentials()) {
            let audio_params = self.hello.audio_params();
            let audio_params = audio_params.as_deref().unwrap_or(DEFAULT_AUDIO_PARAMS);
            cx.publish(hello_reply(credentials, id, Some(audio_params)));
        }
        let words = self.cold.as_mut().map(|cold| &mut cold.last_words);
        let goodbye = words.and_then(|words| words.take_if(|words| matches!(words, LastWords::Goodbye(_))));
        cx.publish(match goodbye {
            Some(LastWords::Goodbye(goodbye)) => goodbye.into_string(),
            _ => message::goodbye(Some(id)),
        });
    }
}

impl EndReason {
    /// Whether the device is told: it did not cause the end itself.
    fn notifies_device(self) -> bool {
        use EndReason::{DeviceDisconnected, DeviceError, DeviceGoodbye, DeviceLost, Replaced};
        !matches!(self, DeviceGoodbye | DeviceDisconnected | DeviceLost | DeviceError | Replaced)
    }

    /// Status and message for the device's screen, in Chinese and English.
    fn alert_text(self) -> (&'static str, &'static str) {
        match self {
            Self::NoServer => (
                "连接失败 / Call failed",
                "聊天服务器无法连接，请稍后再试 / No chat server can be reached, try again later",
            ),
            Self::ServerLost => (
                "连接中断 / Call lost",
                "与聊天服务器的连接中断 / The connection to the chat server was lost",
            ),
            Self::Refused => {
                ("忙 / Busy", "网关通话数已满，请稍后再试 / The gateway has no free line, try again later")
            }
            Self::HelloLimit => (
                "呼叫太频繁 / Too many calls",
                "设备发起通话太频繁，请稍后再试 / The device starts calls too often, try again later",
            ),
            Self::Shutdown => {
                ("网关重启 / Restart", "网关正在重启，请稍后再试 / The gateway restarts, try again later")
            }
            _ => ("通话结束 / Call ended", "通话无法继续 / The call cannot go on"),
        }
    }
}

/// What a device shows whose audio does not arrive.
pub(super) fn no_audio_alert(session_id: Option<&str>) -> String {
    message::alert(
        session_id,
        "没有声音 / No audio",
        "网关收不到设备的 UDP 音频，请检查防火墙和 UDP 端口 / The gateway receives no UDP audio: check firewall and UDP port",
        "sad",
    )
}
