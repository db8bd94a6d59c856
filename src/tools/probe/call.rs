//! The probe's call: sends audio, collects all evidence of what arrived, and reports it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::diagnosis::{
    AudioPath, CALL_END_HINT, Diagnosis, Evidence, announces_speech, diagnose, mentions_audio,
};
use super::error_text;
use super::options::ProbeOptions;
use super::report::{LOSS, PAUSE, ProbeReporter, ROUND_TRIP, RoundTripStats, UDP_DOWN, UDP_UP};
use crate::proto::message::JsonObject;
use crate::tools::device::{
    Call, CallParameters, DeviceError, GREETING, SimulatedDevice, listen_message, message_type,
};
use crate::tools::round_trip::RoundTripTest;
use crate::tools::step_report::StepState;

/// Packets sent to the host itself when the address it advertises gave no audio.
const RETRY_PACKETS: u32 = 10;
/// Packets before the pause: something for the echo server to repeat after it, and not so much that it takes silence for the end.
const PACKETS_BEFORE_PAUSE: u32 = 4;
/// Longer than many relays and routers remember a path that is not used.
const PAUSE_LENGTH: Duration = Duration::from_secs(20);
/// After the last packet: echoes of a slow line still count.
const LINGER: Duration = Duration::from_millis(1000);
/// From `listen` start: the gateway tells a device after 3 s, by default, that none of its audio arrived.
const ALERT_WAIT: Duration = Duration::from_millis(4500);
/// For the chat server to react to the audio once it is over.
const REACTION_WAIT: Duration = Duration::from_millis(2000);
/// For the chat server to speak when asked to.
const SPEECH_WAIT: Duration = Duration::from_millis(5000);
/// From this share of lost packets on, speech is unintelligible.
const MAX_LOSS_RATIO: f64 = 0.1;

/// A call, and what was observed in it.
pub(super) struct ProbeCall {
    pub(super) device: SimulatedDevice,
    pub(super) gateway: SocketAddr,
    pub(super) parameters: CallParameters,
    pub(super) round_trip: RoundTripTest,
    pub(super) evidence: Evidence,
}

impl ProbeCall {
    /// Runs the call and reports the results.
    pub(super) fn run(mut self, reporter: &mut ProbeReporter<'_>) {
        let mut path = AudioPath {
            host: self.gateway.ip(),
            advertised: self.parameters.server.clone(),
            port: self.parameters.port,
            target: None,
        };
        match Call::open(self.parameters.clone()) {
            Ok(mut call) => {
                path.target = call.server_addr().ok().map(|address| address.ip());
                let lost = self.exchange_audio(&mut call, reporter).err();
                self.evidence.connection_lost = lost.map(|failure| failure.kind.to_string());
                (self.evidence.round_trip, self.evidence.counts) = (self.round_trip.clone(), call.counts);
                let RoundTripTest { received, call_ended, .. } = self.round_trip;
                let silent = received == 0 && !call_ended && self.evidence.connection_lost.is_none();
                // The result for the advertised address is final; the host's own address may show the reason.
                if silent && path.target != Some(self.gateway.ip()) {
                    self.evidence.received_via_host = self.retry_at_host(&mut call, reporter).ok();
                }
                self.report_results(&path, reporter);
                if received > 0 && !call_ended && self.evidence.connection_lost.is_none() {
                    self.report_pause(&mut call, reporter);
                }
                // The gateway may have closed the connection already.
                let _ = self.device.goodbye(&call);
            }
            Err(failure) => {
                self.evidence.round_trip.udp_error = Some(failure.kind.to_string());
                self.report_results(&path, reporter);
            }
        }
        let _ = self.device.disconnect();
    }

    /// Sends audio; when none comes back, waits for messages about it; without any, asks the chat server to speak.
    fn exchange_audio(
        &mut self,
        call: &mut Call,
        reporter: &mut ProbeReporter<'_>,
    ) -> Result<(), DeviceError> {
        let Self { device, round_trip, evidence, .. } = self;
        let ProbeOptions { packets, max_wait, .. } = reporter.options;
        let begin = Instant::now();
        reporter.progress(&format!("sending {packets} packets of audio, one each 60 ms ..."));
        device.start_listening(call, "auto")?;
        let tick = |round_trip: &_| reporter.show_audio_progress(round_trip);
        round_trip.send_audio(device, call, *packets, LINGER.min(*max_wait), tick)?;
        if round_trip.received > 0 || round_trip.call_ended {
            return Ok(());
        }
        reporter.progress("no audio so far; waiting for what the gateway and the chat server say ...");
        device.stop_listening(call)?;
        let until = (begin + ALERT_WAIT.min(*max_wait)).max(Instant::now() + REACTION_WAIT.min(*max_wait));
        let enough = (*packets).min(5);
        let told = |round_trip: &RoundTripTest| {
            round_trip.received > 0
                || gateway_reports_no_audio(round_trip)
                || recognised_text(&round_trip.texts, enough).is_some()
        };
        round_trip.receive_until(device, call, until, |_| {}, told)?;
        evidence.recognised_text = recognised_text(&round_trip.texts, enough);
        let known = evidence.server_heard_nothing() || gateway_reports_no_audio(round_trip);
        if round_trip.received > 0 || round_trip.call_ended || known {
            return Ok(());
        }
        reporter.progress("asking the chat server to speak ...");
        device.send_text(&listen_message(&call.parameters.session_id, GREETING))?;
        let until = Instant::now() + SPEECH_WAIT.min(*max_wait);
        round_trip.receive_until(device, call, until, |_| {}, |round_trip| round_trip.received > 0)
    }

    /// Sends audio to the address that MQTT was reached at; true when audio came back.
    fn retry_at_host(
        &mut self,
        call: &mut Call,
        reporter: &mut ProbeReporter<'_>,
    ) -> Result<bool, DeviceError> {
        let linger = LINGER.min(reporter.options.max_wait);
        reporter.progress(&format!("sending some packets to {} itself ...", self.gateway.ip()));
        call.rebind((self.gateway.ip(), call.parameters.port).into())?;
        self.device.start_listening(call, "auto")?;
        self.round_trip.send_audio(&mut self.device, call, RETRY_PACKETS, linger, |_| {})?;
        Ok(self.round_trip.received > 0)
    }

    /// Reports whether audio still arrives after neither side has sent any for a while.
    fn report_pause(&mut self, call: &mut Call, reporter: &mut ProbeReporter<'_>) {
        if !reporter.options.pause {
            return reporter.skipped(PAUSE, "--no-pause");
        }
        match self.pause(call, reporter) {
            Ok(Some(true)) => reporter.ok(PAUSE, "the path is still open after 20 s without audio", None),
            Ok(Some(false)) => {
                reporter.add_hint("Routers and relays forget the path of a silent call: set udp.keep_alive_s of the gateway below the time after which they do, or raise that time. Some NATs remember a path only for what is sent from inside: no gateway keeps those open.");
                reporter.fail(
                    PAUSE,
                    "the path was forgotten within 20 s: the chat server speaks, and no audio arrives",
                );
            }
            Ok(None) => reporter.skipped(PAUSE, "not measured: the chat server did not speak when it should"),
            Err(failure) => {
                reporter.fail(PAUSE, failure.kind.to_string());
            }
        }
    }

    /// Whether audio arrives after the pause; `None` when the chat server spoke in it, or not after it.
    fn pause(
        &mut self,
        call: &mut Call,
        reporter: &mut ProbeReporter<'_>,
    ) -> Result<Option<bool>, DeviceError> {
        let (device, max_wait) = (&mut self.device, reporter.options.max_wait);
        reporter
            .progress("sending no audio for 20 s, as when a chat server thinks; --no-pause skips this ...");
        let mut round_trip = RoundTripTest::default();
        // For a server that speaks when the button is released.
        device.start_listening(call, "manual")?;
        round_trip.send_audio(device, call, PACKETS_BEFORE_PAUSE, LINGER.min(max_wait), |_| {})?;
        let before = round_trip.received;
        let until = Instant::now() + PAUSE_LENGTH.min(max_wait);
        round_trip.receive_until(device, call, until, |_| {}, |_| false)?;
        if round_trip.received > before || round_trip.call_ended {
            return Ok(None);
        }
        let first_text = round_trip.texts.len();
        let heard = |round_trip: &RoundTripTest| round_trip.received > before;
        device.stop_listening(call)?;
        let until = Instant::now() + REACTION_WAIT.min(max_wait);
        round_trip.receive_until(device, call, until, |_| {}, heard)?;
        if !heard(&round_trip) && !announces_speech(&round_trip.texts[first_text..]) {
            device.send_text(&listen_message(&call.parameters.session_id, GREETING))?;
            let until = Instant::now() + SPEECH_WAIT.min(max_wait);
            round_trip.receive_until(device, call, until, |_| {}, heard)?;
        }
        let speaks = heard(&round_trip) || announces_speech(&round_trip.texts[first_text..]);
        Ok(speaks.then(|| heard(&round_trip)))
    }

    fn report_results(&self, path: &AudioPath, reporter: &mut ProbeReporter<'_>) {
        let Self { round_trip, evidence, .. } = self;
        let lost_down = evidence.counts.lost;
        let Diagnosis { uplink: up, downlink: down, hints } = diagnose(path, evidence);
        let works = down.0 == StepState::Ok && up.0 == StepState::Ok;
        reporter.add_step(UDP_UP, up.0, up.1, None);
        reporter.add_step(UDP_DOWN, down.0, down.1, None);
        for hint in hints {
            reporter.add_hint(hint);
        }
        reporter.set_audio(round_trip, lost_down);
        let why = if works { "not measured: the chat server does not echo" } else { "not measured" };
        if round_trip.echoed == 0 {
            reporter.skipped(ROUND_TRIP, why);
        } else {
            let RoundTripStats { median, worst, .. } = RoundTripStats::of(round_trip);
            let detail = format!("{median:.1} ms median, {worst:.1} ms worst, chat server included");
            reporter.ok(ROUND_TRIP, detail, None);
        }
        if works && (evidence.round_trip.call_ended || evidence.connection_lost.is_some()) {
            let how = evidence.connection_lost.clone().or(evidence.error_text());
            let how = how.unwrap_or_else(|| "the gateway said goodbye".to_owned());
            reporter.add_hint(CALL_END_HINT);
            reporter.fail(LOSS, format!("the call ended after {} packets: {how}", round_trip.sent));
        } else if round_trip.echoed == 0 {
            reporter.skipped(LOSS, why);
        } else if works {
            self.report_loss(lost_down, reporter);
        } else {
            let why = "not measured: most of the audio went to the advertised address";
            reporter.skipped(LOSS, why);
        }
    }

    fn report_loss(&self, lost_down: u64, reporter: &mut ProbeReporter<'_>) {
        let RoundTripTest { sent, echoed, .. } = self.round_trip;
        let lost = sent - echoed;
        if lost == 0 {
            return reporter.ok(LOSS, format!("none of {sent} packets"), None);
        }
        let share = f64::from(lost) / f64::from(sent);
        let down = lost_down.min(lost.into());
        let ways = format!("about {} on the way up and {down} on the way down", u64::from(lost) - down);
        let detail = format!("{lost} of {sent} packets ({:.1} %), {ways}", 100.0 * share);
        if share < MAX_LOSS_RATIO {
            return reporter.ok(LOSS, detail, None);
        }
        reporter.add_hint("With this much loss speech is unintelligible: look at the Wi-Fi or mobile connection here first, then at the gateway's own network.");
        reporter.fail(LOSS, detail);
    }
}

/// Whether the gateway reported that no audio arrives.
fn gateway_reports_no_audio(round_trip: &RoundTripTest) -> bool {
    round_trip.texts.iter().filter_map(|(_, text)| error_text(text)).any(|words| mentions_audio(&words))
}

/// What the chat server recognised, once enough audio was sent. A server may send such a text right after the hello, which
/// proves nothing.
fn recognised_text(texts: &[(u32, String)], enough: u32) -> Option<String> {
    texts.iter().filter(|(sent, _)| *sent >= enough).find_map(|(_, text)| {
        let object = JsonObject::parse(text).ok().filter(|_| message_type(text) == "stt")?;
        Some(object.string("text").unwrap_or_default().into_owned())
    })
}
