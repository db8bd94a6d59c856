//! One peer's conversation with the echo server: pure, without a socket or a clock.

use std::time::{Duration, Instant};

use tungstenite::{Bytes, Message};

use crate::proto::message::{JsonObject, json_quote};

/// Recording ends this long after the last frame, once it holds [`MIN_FRAMES_BEFORE_SILENCE`] frames.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(700);
const MIN_FRAMES_BEFORE_SILENCE: usize = 5;
/// Recording ends this long after its first frame in mode auto ...
const MAX_RECORDING_AUTO: Duration = Duration::from_secs(5);
/// ... and this long in mode manual.
const MAX_RECORDING_MANUAL: Duration = Duration::from_secs(30);
/// Frames that come faster than real time are recorded up to this duration.
const MAX_RECORDED_AUDIO: Duration = Duration::from_secs(10);
const MAX_RECORDED_BYTES: usize = 256 * 1024;
/// From `tts start` to the first frame: the device's last frames, still on their way when it stopped listening, are
/// echoed before the playback and not into it.
const PLAYBACK_DELAY: Duration = Duration::from_millis(200);
/// Frames sent ahead of real time, as a buffer against jitter.
const PREBUFFER_FRAMES: usize = 5;
/// The text of its `stt` when no audio arrived while it listened.
pub(in crate::tools) const NOTHING_HEARD: &str = "(nothing heard)";
const DEFAULT_PARAMS: &str = r#"{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}"#;

/// One peer's conversation.
pub(super) struct Conversation {
    /// Empty until the hello.
    session_id: String,
    /// The duration of one frame.
    frame_duration: Duration,
    state: ConversationState,
}

enum ConversationState {
    /// Frames are echoed and nothing else.
    Idle,
    Recording(Recording),
    Playing(Playback),
    /// The device listens and plays at once: `tts start` was sent.
    Realtime,
}

struct Recording {
    /// It ends this long after its first frame at the latest.
    max_duration: Duration,
    frames: Vec<Bytes>,
    bytes: usize,
    /// When the first and the last frame came.
    first_and_last_frame: Option<(Instant, Instant)>,
}

struct Playback {
    frames: Vec<Bytes>,
    /// How many of them were sent.
    sent: usize,
    started_at: Instant,
}

impl Recording {
    fn ends_at(&self) -> Option<Instant> {
        let (first, last) = self.first_and_last_frame?;
        let longest = first + self.max_duration;
        let is_silence = self.frames.len() >= MIN_FRAMES_BEFORE_SILENCE;
        Some(if is_silence { longest.min(last + SILENCE_TIMEOUT) } else { longest })
    }
}

impl Playback {
    /// When the next frame goes out, or the end is told. Frames last `frame` each.
    fn next_due(&self, frame: Duration) -> Instant {
        let ahead = if self.sent < self.frames.len() { PREBUFFER_FRAMES - 1 } else { 0 };
        self.started_at + frame * self.sent.saturating_sub(ahead) as u32
    }
}

impl Conversation {
    pub(super) fn new() -> Self {
        Self {
            session_id: String::new(),
            frame_duration: Duration::from_millis(60),
            state: ConversationState::Idle,
        }
    }

    /// A text message came. What is no JSON object, and what needs no answer, is ignored.
    pub(super) fn on_text(&mut self, text: &str, now: Instant, out: &mut Vec<Message>) {
        let Ok(message) = JsonObject::parse(text) else { return };
        let field = |key| message.string(key);
        match field("type").as_deref() {
            Some("hello") => self.on_hello(&message, out),
            Some("listen") => match field("state").as_deref() {
                Some("start") => self.on_listen_start(field("mode").as_deref(), out),
                Some("stop") => self.end_recording(now, out),
                Some("detect") => {
                    let heard = field("text").unwrap_or_default();
                    out.push(self.message("stt", None, Some(&heard)));
                }
                _ => {}
            },
            Some("abort") => self.stop_playback(out),
            _ => {}
        }
    }

    /// An audio frame came: it goes back at once, and into the recording.
    pub(super) fn on_frame(&mut self, frame: Bytes, now: Instant, out: &mut Vec<Message>) {
        if let ConversationState::Recording(recording) = &mut self.state {
            let full = self.frame_duration * recording.frames.len() as u32 >= MAX_RECORDED_AUDIO;
            if !full && recording.bytes + frame.len() <= MAX_RECORDED_BYTES {
                recording.bytes += frame.len();
                // A copy, so that a recording does not pin the socket's read buffers.
                recording.frames.push(Bytes::copy_from_slice(&frame));
            }
            recording.first_and_last_frame =
                Some((recording.first_and_last_frame.map_or(now, |(first, _)| first), now));
        }
        out.push(Message::Binary(frame));
    }

    /// When [`Self::on_timeout`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            ConversationState::Idle | ConversationState::Realtime => None,
            ConversationState::Recording(recording) => recording.ends_at(),
            ConversationState::Playing(playback) => Some(playback.next_due(self.frame_duration)),
        }
    }

    /// Does what is due at `now`; nothing when called too early.
    pub(super) fn on_timeout(&mut self, now: Instant, out: &mut Vec<Message>) {
        while self.deadline().is_some_and(|due| due <= now) {
            match &mut self.state {
                ConversationState::Playing(playback) => match playback.frames.get(playback.sent) {
                    Some(frame) => {
                        out.push(Message::Binary(frame.clone()));
                        playback.sent += 1;
                    }
                    None => self.stop_playback(out),
                },
                _ => self.end_recording(now, out),
            }
        }
    }

    fn on_hello(&mut self, hello: &JsonObject<'_>, out: &mut Vec<Message>) {
        let params = hello.object("audio_params");
        let frame = params.as_ref().and_then(|params| params.number("frame_duration"));
        // Opus frames last 2.5 to 60 ms, packets up to 120 (RFC 6716 section 2.1.4).
        self.frame_duration = Duration::from_millis(frame.map_or(60.0, |ms| ms.clamp(5.0, 120.0)) as u64);
        self.state = ConversationState::Idle;
        let mut random = [0; 16];
        if getrandom::fill(&mut random).is_err() {
            return;
        }
        self.session_id = uuid::Builder::from_random_bytes(random).into_uuid().to_string();
        let params = params.and_then(|_| hello.raw("audio_params")).unwrap_or(DEFAULT_PARAMS);
        out.push(Message::text(format!(
            r#"{{"type":"hello","transport":"websocket","session_id":"{}","audio_params":{params}}}"#,
            self.session_id
        )));
    }

    fn on_listen_start(&mut self, mode: Option<&str>, out: &mut Vec<Message>) {
        if mode == Some("realtime") {
            if !matches!(self.state, ConversationState::Realtime) {
                out.push(self.message("tts", Some("start"), None));
            }
            self.state = ConversationState::Realtime;
        } else {
            self.stop_playback(out);
            let longest = if mode == Some("manual") { MAX_RECORDING_MANUAL } else { MAX_RECORDING_AUTO };
            let (frames, first_and_last_frame) = (Vec::new(), None);
            let recording = Recording { max_duration: longest, frames, bytes: 0, first_and_last_frame };
            self.state = ConversationState::Recording(recording);
        }
    }

    /// Stops speaking, if it does.
    fn stop_playback(&mut self, out: &mut Vec<Message>) {
        if matches!(self.state, ConversationState::Playing(_) | ConversationState::Realtime) {
            out.push(self.message("tts", Some("stop"), None));
            self.state = ConversationState::Idle;
        }
    }

    /// From recording to playing; nothing when it does not record.
    fn end_recording(&mut self, now: Instant, out: &mut Vec<Message>) {
        // `listen` stop while it speaks changes nothing.
        let ConversationState::Recording(recording) = &mut self.state else { return };
        let frames = std::mem::take(&mut recording.frames);
        self.state = ConversationState::Idle;
        if frames.is_empty() {
            out.push(self.message("stt", None, Some(NOTHING_HEARD)));
            return;
        }
        let seconds = (self.frame_duration * frames.len() as u32).as_secs_f64();
        out.push(self.message("stt", None, Some(&format!("({seconds:.1} s recorded)"))));
        out.push(self.message("tts", Some("start"), None));
        out.push(self.message("tts", Some("sentence_start"), Some("Echo: this is what you said.")));
        self.state =
            ConversationState::Playing(Playback { frames, sent: 0, started_at: now + PLAYBACK_DELAY });
    }

    fn message(&self, kind: &str, state: Option<&str>, text: Option<&str>) -> Message {
        let mut json = format!(r#"{{"type":"{kind}","session_id":"{}""#, self.session_id);
        for (key, value) in [("state", state), ("text", text)] {
            if let Some(value) = value {
                json.push_str(&format!(r#","{key}":{}"#, json_quote(value)));
            }
        }
        json.push('}');
        Message::text(json)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A conversation in virtual time: what was said, as short words, with the milliseconds it was said at.
    struct ConversationTest {
        conversation: Conversation,
        start: Instant,
        now_ms: u64,
        sent: Vec<(u64, String)>,
    }

    impl ConversationTest {
        fn new(hello: &str) -> Self {
            let mut script = Self {
                conversation: Conversation::new(),
                start: Instant::now(),
                now_ms: 0,
                sent: Vec::new(),
            };
            script.text(hello);
            script.sent.clear();
            script
        }

        fn instant(&self) -> Instant {
            self.start + Duration::from_millis(self.now_ms)
        }

        fn text(&mut self, text: &str) {
            let mut out = Vec::new();
            self.conversation.on_text(text, self.instant(), &mut out);
            self.record(out);
        }

        fn frame(&mut self, byte: u8) {
            let mut out = Vec::new();
            self.conversation.on_frame(Bytes::from(vec![byte]), self.instant(), &mut out);
            self.record(out);
        }

        /// Lets time pass, timeouts included.
        fn advance_ms(&mut self, ms: u64) {
            let end = self.now_ms + ms;
            while let Some(due) = self.conversation.deadline() {
                let due = due.duration_since(self.start).as_millis() as u64;
                if due > end {
                    break;
                }
                self.now_ms = self.now_ms.max(due);
                let mut out = Vec::new();
                self.conversation.on_timeout(self.instant(), &mut out);
                self.record(out);
            }
            self.now_ms = end;
        }

        fn record(&mut self, out: Vec<Message>) {
            for message in out {
                let word = match message {
                    Message::Binary(frame) => format!("frame {}", frame[0]),
                    Message::Text(text) => {
                        let object = JsonObject::parse(&text).unwrap();
                        assert!(object.string("session_id").is_some_and(|id| id.len() == 36), "{text}");
                        format!(
                            "{}{}",
                            object.string("type").unwrap(),
                            object.string("state").map(|state| format!(" {state}")).unwrap_or_default()
                        )
                    }
                    other => panic!("{other:?}"),
                };
                self.sent.push((self.now_ms, word));
            }
        }

        fn take_sent(&mut self) -> Vec<(u64, String)> {
            std::mem::take(&mut self.sent)
        }
    }

    const HELLO: &str = r#"{"type":"hello","audio_params":{"frame_duration":100}}"#;
    const AUTO: &str = r#"{"type":"listen","state":"start","mode":"auto"}"#;
    const MANUAL: &str = r#"{"type":"listen","state":"start","mode":"manual"}"#;
    const REALTIME: &str = r#"{"type":"listen","state":"start","mode":"realtime"}"#;
    const STOP: &str = r#"{"type":"listen","state":"stop"}"#;

    fn as_strs(said: &[(u64, String)]) -> Vec<(u64, &str)> {
        said.iter().map(|(at, word)| (*at, word.as_str())).collect()
    }

    #[test]
    fn a_stop_plays_the_recording_in_a_burst_and_then_in_real_time() {
        let mut script = ConversationTest::new(HELLO);
        script.text(MANUAL);
        for i in 0..7 {
            script.frame(i);
        }
        script.take_sent();
        script.text(STOP);
        script.advance_ms(10_000);
        let expected = [
            (0, "stt"),
            (0, "tts start"),
            (0, "tts sentence_start"),
            (200, "frame 0"),
            (200, "frame 1"),
            (200, "frame 2"),
            (200, "frame 3"),
            (200, "frame 4"),
            (300, "frame 5"),
            (400, "frame 6"),
            (900, "tts stop"),
        ];
        assert_eq!(as_strs(&script.take_sent()), expected);
    }

    #[test]
    fn a_pause_ends_a_recording_of_five_frames_but_not_of_four() {
        for (frames, ends) in [(4, 5_000), (5, 700)] {
            let mut script = ConversationTest::new(HELLO);
            script.text(AUTO);
            for i in 0..frames {
                script.frame(i);
            }
            script.take_sent();
            script.advance_ms(5_000);
            assert_eq!(as_strs(&script.take_sent())[0], (ends, "stt"), "{frames} frames");
        }
    }

    #[test]
    fn a_recording_ends_by_itself() {
        for (listen, ends) in [(AUTO, 5_000), (MANUAL, 30_000)] {
            let mut script = ConversationTest::new(HELLO);
            script.text(listen);
            let mut first = None;
            while first.is_none() {
                script.frame(1);
                script.advance_ms(100);
                first = script.take_sent().into_iter().find(|(_, word)| word == "stt");
            }
            assert_eq!(first, Some((ends, "stt".into())));
        }
    }

    #[test]
    fn a_recording_is_bounded() {
        let mut script = ConversationTest::new(HELLO);
        script.text(MANUAL);
        for i in 0..1_000_u32 {
            script.frame(i as u8);
        }
        script.take_sent();
        script.text(STOP);
        script.advance_ms(60_000);
        let frames = script.take_sent().iter().filter(|(_, word)| word.starts_with("frame")).count();
        assert_eq!(frames, 100, "10 s of 100 ms frames");
    }

    #[test]
    fn an_abort_or_a_new_listen_stops_the_playback_once() {
        for interruption in [r#"{"type":"abort"}"#, AUTO] {
            let mut script = ConversationTest::new(HELLO);
            script.text(AUTO);
            for i in 0..9 {
                script.frame(i);
            }
            script.text(STOP);
            script.advance_ms(250);
            script.take_sent();
            script.text(interruption);
            script.advance_ms(60_000);
            assert_eq!(as_strs(&script.take_sent()), [(250, "tts stop")], "{interruption}");
        }
    }

    #[test]
    fn realtime_starts_once_and_echoes_at_once() {
        let mut script = ConversationTest::new(HELLO);
        script.text(REALTIME);
        script.text(REALTIME);
        script.frame(1);
        script.advance_ms(60_000);
        script.text(STOP);
        script.text(r#"{"type":"abort"}"#);
        script.text(r#"{"type":"abort"}"#);
        assert_eq!(as_strs(&script.take_sent()), [(0, "tts start"), (0, "frame 1"), (60_000, "tts stop")]);
    }

    #[test]
    fn other_messages_are_answered_or_ignored() {
        let cases: &[(&str, &[(u64, &str)])] = &[
            (r#"{"type":"listen","state":"detect","text":"hi \"you\""}"#, &[(0, "stt")]),
            (r#"{"type":"goodbye"}"#, &[]),
            (r#"{"type":"mcp","payload":{"id":1}}"#, &[]),
            (r#"{"type":"listen"}"#, &[]),
            (r#"{"type":"listen","state":"stop"}"#, &[]),
            (r#"{"type":[]}"#, &[]),
            ("not json", &[]),
        ];
        for (text, expected) in cases {
            let mut script = ConversationTest::new(HELLO);
            script.text(text);
            assert_eq!(as_strs(&script.take_sent()), *expected, "{text}");
        }
    }

    #[test]
    fn a_stop_with_nothing_recorded_says_so() {
        let mut script = ConversationTest::new(HELLO);
        script.text(AUTO);
        script.text(STOP);
        script.advance_ms(60_000);
        assert_eq!(as_strs(&script.take_sent()), [(0, "stt")]);
    }
}
