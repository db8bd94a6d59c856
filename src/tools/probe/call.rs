//! The probe's call: it speaks, listens for anything that tells how the audio fares, and reports it.

use std::net::SocketAddr;
use std::time::Instant;

use super::diagnosis::{Evidence, Verdict, blames_audio, judge};
use super::options::Options;
use super::report::{Name, Reporter, RoundTrip, State};
use super::{Texts, complaint};
use crate::proto::message::{Object, quote};
use crate::tools::device::{Call, Device, Failure, Grant};
use crate::tools::echo::NOTHING_HEARD;
use crate::tools::round_trip::Exchange;

/// Packets sent to the host itself when the address it advertises gave no audio.
const RETRY_PACKETS: u32 = 10;
/// From this share of lost packets on speech breaks up.
const BAD_LOSS: f64 = 0.1;

/// A call, and what was learnt from it.
pub(super) struct Session {
    device: Device,
    gateway: SocketAddr,
    grant: Grant,
    exchange: Exchange,
    /// What the chat server said it recognised in the audio.
    stt: Option<String>,
}

impl Session {
    /// `early` came before the audio.
    pub(super) fn new(device: Device, gateway: SocketAddr, grant: Grant, early: Texts) -> Self {
        let mut exchange = Exchange::new();
        exchange.texts = early;
        Self { device, gateway, grant, exchange, stt: None }
    }

    /// The whole call, and what it showed.
    pub(super) fn talk(mut self, options: &Options, reporter: &mut Reporter) {
        let mut evidence = Evidence {
            host: self.gateway.ip(),
            advertised: self.grant.server.clone(),
            port: self.grant.port,
            ..Evidence::default()
        };
        match Call::open(self.grant.clone()) {
            Ok(mut call) => {
                evidence.target = call.server_addr().ok().map(|address| address.ip());
                let lost = self.converse(&mut call, options, reporter).err();
                evidence.connection_lost = lost.map(|failure| failure.seen.to_string());
                self.collect(&call, &mut evidence);
                let silent = evidence.heard == 0 && !evidence.ended && evidence.connection_lost.is_none();
                // The verdict on the advertised address is fixed; the host's own address may tell why.
                if silent && evidence.target != Some(self.gateway.ip()) {
                    evidence.heard_at_host = self.try_host(&mut call, options, reporter).ok();
                }
                // The gateway may be gone: then there is nobody to say goodbye to.
                let _ = self.device.goodbye(&call);
            }
            Err(failure) => evidence.udp_error = Some(failure.seen.to_string()),
        }
        self.tell(&evidence, reporter);
        let _ = self.device.disconnect();
    }

    /// Speaks; when no audio comes, waits for words; when there are none, asks for some.
    fn converse(
        &mut self,
        call: &mut Call,
        options: &Options,
        reporter: &mut Reporter,
    ) -> Result<(), Failure> {
        let Self { device, exchange, .. } = self;
        let begin = Instant::now();
        reporter.progress(&format!("sending {} packets of audio, one each 60 ms ...", options.packets));
        device.listen(call, "auto")?;
        let tick = |exchange: &Exchange| reporter.live(exchange.sent, options.packets, exchange.heard);
        exchange.speak(device, call, options.packets, options.waits.linger, tick)?;
        if exchange.heard > 0 || exchange.ended {
            return Ok(());
        }
        reporter.progress("no audio so far; waiting for what the gateway and the chat server say ...");
        device.stop_listening(call)?;
        let until = (begin + options.waits.alert).max(Instant::now() + options.waits.reaction);
        let enough = options.packets.min(5);
        let told = |exchange: &Exchange| {
            exchange.heard > 0 || is_blamed(exchange) || speech(&exchange.texts, enough).is_some()
        };
        exchange.listen(device, call, until, |_| {}, told)?;
        self.stt = speech(&exchange.texts, enough);
        let known = self.stt.as_deref() == Some(NOTHING_HEARD) || is_blamed(exchange);
        if exchange.heard > 0 || exchange.ended || known {
            return Ok(());
        }
        reporter.progress("asking the chat server to speak ...");
        let id = quote(&call.grant.session_id);
        let ask = format!(r#"{{"session_id":{id},"type":"listen","state":"detect","text":"你好"}}"#);
        device.send_text(&ask)?;
        let until = Instant::now() + options.waits.speech;
        exchange.listen(device, call, until, |_| {}, |exchange| exchange.heard > 0)
    }

    /// Speaks to the address that MQTT was reached at; whether audio came.
    fn try_host(
        &mut self,
        call: &mut Call,
        options: &Options,
        reporter: &mut Reporter,
    ) -> Result<bool, Failure> {
        reporter.progress(&format!("sending some packets to {} itself ...", self.gateway.ip()));
        call.rebind((self.gateway.ip(), call.grant.port).into())?;
        self.device.listen(call, "auto")?;
        self.exchange.speak(&mut self.device, call, RETRY_PACKETS, options.waits.linger, |_| {})?;
        Ok(self.exchange.heard > 0)
    }

    fn collect(&self, call: &Call, evidence: &mut Evidence) {
        let exchange = &self.exchange;
        evidence.heard = exchange.heard;
        evidence.bad = call.counts.bad;
        evidence.lost_down = call.counts.lost;
        evidence.refused = exchange.refused;
        evidence.udp_error = exchange.udp_error.clone();
        evidence.ended = exchange.ended;
        evidence.nothing_heard = self.stt.as_deref() == Some(NOTHING_HEARD);
        evidence.recognised = self.stt.clone().filter(|_| !evidence.nothing_heard);
        evidence.complaint = exchange.texts.iter().find_map(|(_, text)| complaint(text));
        evidence.speaks = exchange.texts.iter().any(|(_, text)| {
            let Ok(object) = Object::parse(text) else { return false };
            object.string("type").as_deref() == Some("tts")
                && object.string("state").as_deref() == Some("start")
        });
    }

    fn tell(&self, evidence: &Evidence, reporter: &mut Reporter) {
        let Verdict { up, down, hints } = judge(evidence);
        let works = down.0 == State::Ok && up.0 == State::Ok;
        reporter.step(Name::UdpUp, up.0, up.1, None);
        reporter.step(Name::UdpDown, down.0, down.1, None);
        for hint in hints {
            reporter.hint(hint);
        }
        let exchange = &self.exchange;
        reporter.audio(exchange, evidence.lost_down);
        let why = if works { "not measured: the chat server does not echo" } else { "not measured" };
        if exchange.echoed == 0 {
            reporter.step(Name::RoundTrip, State::Skipped, why.into(), None);
        } else {
            reporter.step(Name::RoundTrip, State::Ok, RoundTrip::of(exchange).to_string(), None);
        }
        if works && (evidence.ended || evidence.connection_lost.is_some()) {
            let how = evidence.connection_lost.as_deref().or(evidence.complaint.as_deref());
            let how = how.unwrap_or("the gateway said goodbye");
            reporter.hint("The gateway's log has a line for the end of the call, with the reason.".into());
            let cut = format!("the call ended after {} packets: {how}", exchange.sent);
            reporter.step(Name::Loss, State::Fail, cut, None);
        } else if exchange.echoed == 0 {
            reporter.step(Name::Loss, State::Skipped, why.into(), None);
        } else if works {
            self.tell_loss(evidence.lost_down, reporter);
        } else {
            let why = "not measured: most of the audio went to the advertised address";
            reporter.step(Name::Loss, State::Skipped, why.into(), None);
        }
    }

    fn tell_loss(&self, lost_down: u64, reporter: &mut Reporter) {
        let Exchange { sent, echoed, .. } = self.exchange;
        let lost = sent - echoed;
        let share = f64::from(lost) / f64::from(sent);
        let down = lost_down.min(lost.into());
        let up = u64::from(lost) - down;
        let percent = 100.0 * share;
        let detail = match lost {
            0 => format!("none of {sent} packets"),
            _ => format!(
                "{lost} of {sent} packets ({percent:.1} %), about {up} on the way up and {down} on the way down"
            ),
        };
        let state = if share < BAD_LOSS { State::Ok } else { State::Fail };
        if state == State::Fail {
            reporter.hint("So much loss breaks speech up: look at the Wi-Fi or mobile line here first, then at the gateway's own network.".into());
        }
        reporter.step(Name::Loss, state, detail, None);
    }
}

/// The gateway said that no audio arrives.
fn is_blamed(exchange: &Exchange) -> bool {
    exchange.texts.iter().filter_map(|(_, text)| complaint(text)).any(|words| blames_audio(&words))
}

/// What the chat server said it recognised, once enough audio was sent for that. A server may say such a thing unasked
/// right after the hello, which proves nothing.
fn speech(texts: &[(u32, String)], enough: u32) -> Option<String> {
    texts.iter().filter(|(sent, _)| *sent >= enough).find_map(|(_, text)| {
        let object = Object::parse(text).ok()?;
        let is_stt = object.string("type").as_deref() == Some("stt");
        is_stt.then(|| object.string("text").unwrap_or_default().into_owned())
    })
}
