//! What the echo server says: one peer's conversation, with time handed in and no socket.

use std::time::{Duration, Instant};

use tungstenite::{Bytes, Message};

use crate::proto::message::{Object, quote};

/// Recording ends this long after the last frame, once it holds [`ENOUGH`] frames.
const PAUSE: Duration = Duration::from_millis(700);
const ENOUGH: usize = 5;
/// Recording ends this long after its first frame when nobody says where the speech ends ...
const LONGEST_AUTO: Duration = Duration::from_secs(5);
/// ... and this long when the speaker holds a button meanwhile.
const LONGEST_MANUAL: Duration = Duration::from_secs(10);
/// Frames that come faster than real time are recorded up to this much sound.
const MOST: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 256 * 1024;
/// From `tts start` to the first frame: the device's last frames, still on their way when it stopped listening, are
/// echoed before the playback and not into it.
const LEAD: Duration = Duration::from_millis(200);
/// Frames sent ahead, so that the device has something to play while the network stutters.
const BURST: usize = 5;
/// What it says it recognised when no audio reached it while it listened.
pub(in crate::tools) const NOTHING_HEARD: &str = "(nothing heard)";
const DEFAULT_PARAMS: &str = r#"{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}"#;

/// One peer's conversation.
pub(super) struct Talk {
    /// Empty until the hello.
    session_id: String,
    /// How long one frame sounds.
    frame: Duration,
    stage: Stage,
}

enum Stage {
    /// Frames are echoed and nothing else.
    Idle,
    Recording(Recording),
    Playing(Playback),
    /// The device listens and plays at once: `tts start` was sent.
    Realtime,
}

struct Recording {
    /// It ends this long after its first frame at the latest.
    longest: Duration,
    frames: Vec<Bytes>,
    bytes: usize,
    /// When the first and the last frame came.
    span: Option<(Instant, Instant)>,
}

struct Playback {
    frames: Vec<Bytes>,
    /// How many of them were sent.
    sent: usize,
    start: Instant,
}

impl Recording {
    fn ends(&self) -> Option<Instant> {
        let (first, last) = self.span?;
        let longest = first + self.longest;
        Some(if self.frames.len() < ENOUGH { longest } else { longest.min(last + PAUSE) })
    }
}

impl Playback {
    /// When the next frame goes out, or the end is told. Frames last `frame` each.
    fn due(&self, frame: Duration) -> Instant {
        let ahead = if self.sent < self.frames.len() { BURST - 1 } else { 0 };
        self.start + frame * self.sent.saturating_sub(ahead) as u32
    }
}

impl Talk {
    pub(super) fn new() -> Self {
        Self { session_id: String::new(), frame: Duration::from_millis(60), stage: Stage::Idle }
    }

    /// A text message came. What is no JSON object, and what needs no answer, is ignored.
    pub(super) fn text(&mut self, text: &str, now: Instant, out: &mut Vec<Message>) {
        let Ok(message) = Object::parse(text) else { return };
        let field = |key| message.string(key);
        match field("type").as_deref() {
            Some("hello") => self.hello(&message, out),
            Some("listen") => match field("state").as_deref() {
                Some("start") => self.listen(field("mode").as_deref(), out),
                Some("stop") => self.end_recording(now, out),
                Some("detect") => {
                    let heard = field("text").unwrap_or_default();
                    out.push(self.message("stt", None, Some(&heard)));
                }
                _ => {}
            },
            Some("abort") => self.interrupt(out),
            _ => {}
        }
    }

    /// An audio frame came: it goes back at once, and into the recording.
    pub(super) fn frame(&mut self, frame: Bytes, now: Instant, out: &mut Vec<Message>) {
        if let Stage::Recording(recording) = &mut self.stage {
            let full = self.frame * recording.frames.len() as u32 >= MOST;
            if !full && recording.bytes + frame.len() <= MOST_BYTES {
                recording.bytes += frame.len();
                // A copy, so that a recording does not pin the socket's read buffers.
                recording.frames.push(Bytes::copy_from_slice(&frame));
            }
            recording.span = Some((recording.span.map_or(now, |(first, _)| first), now));
        }
        out.push(Message::Binary(frame));
    }

    /// When [`Self::timeout`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Idle | Stage::Realtime => None,
            Stage::Recording(recording) => recording.ends(),
            Stage::Playing(playback) => Some(playback.due(self.frame)),
        }
    }

    /// Does what is due at `now`; nothing when called too early.
    pub(super) fn timeout(&mut self, now: Instant, out: &mut Vec<Message>) {
        match &mut self.stage {
            Stage::Idle | Stage::Realtime => {}
            Stage::Recording(recording) => {
                if recording.ends().is_some_and(|end| end <= now) {
                    self.end_recording(now, out);
                }
            }
            Stage::Playing(playback) => {
                while playback.due(self.frame) <= now {
                    let Some(frame) = playback.frames.get(playback.sent) else {
                        return self.interrupt(out);
                    };
                    out.push(Message::Binary(frame.clone()));
                    playback.sent += 1;
                }
            }
        }
    }

    fn hello(&mut self, hello: &Object<'_>, out: &mut Vec<Message>) {
        let params = hello.object("audio_params");
        let frame = params.as_ref().and_then(|params| params.number("frame_duration"));
        // Opus frames last 2.5 to 60 ms, packets up to 120 (RFC 6716 section 2.1.4).
        self.frame = Duration::from_millis(frame.map_or(60.0, |ms| ms.clamp(5.0, 120.0)) as u64);
        self.stage = Stage::Idle;
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

    fn listen(&mut self, mode: Option<&str>, out: &mut Vec<Message>) {
        if mode == Some("realtime") {
            if !matches!(self.stage, Stage::Realtime) {
                out.push(self.message("tts", Some("start"), None));
            }
            self.stage = Stage::Realtime;
        } else {
            self.interrupt(out);
            let longest = if mode == Some("manual") { LONGEST_MANUAL } else { LONGEST_AUTO };
            self.stage = Stage::Recording(Recording { longest, frames: Vec::new(), bytes: 0, span: None });
        }
    }

    /// Stops speaking, if it does.
    fn interrupt(&mut self, out: &mut Vec<Message>) {
        if matches!(self.stage, Stage::Playing(_) | Stage::Realtime) {
            out.push(self.message("tts", Some("stop"), None));
            self.stage = Stage::Idle;
        }
    }

    /// From recording to playing; nothing when it does not record.
    fn end_recording(&mut self, now: Instant, out: &mut Vec<Message>) {
        // `listen` stop while it speaks changes nothing.
        let Stage::Recording(recording) = &mut self.stage else { return };
        let frames = std::mem::take(&mut recording.frames);
        self.stage = Stage::Idle;
        if frames.is_empty() {
            out.push(self.message("stt", None, Some(NOTHING_HEARD)));
            return;
        }
        let seconds = (self.frame * frames.len() as u32).as_secs_f64();
        out.push(self.message("stt", None, Some(&format!("({seconds:.1} s recorded)"))));
        out.push(self.message("tts", Some("start"), None));
        out.push(self.message("tts", Some("sentence_start"), Some("Echo: this is what you said.")));
        self.stage = Stage::Playing(Playback { frames, sent: 0, start: now + LEAD });
    }

    fn message(&self, kind: &str, state: Option<&str>, text: Option<&str>) -> Message {
        let mut json = format!(r#"{{"type":"{kind}","session_id":"{}""#, self.session_id);
        for (key, value) in [("state", state), ("text", text)] {
            if let Some(value) = value {
                json.push_str(&format!(r#","{key}":{}"#, quote(value)));
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
    struct Script {
        talk: Talk,
        start: Instant,
        now: u64,
        said: Vec<(u64, String)>,
    }

    impl Script {
        fn new(hello: &str) -> Self {
            let mut script = Self { talk: Talk::new(), start: Instant::now(), now: 0, said: Vec::new() };
            script.text(hello);
            script.said.clear();
            script
        }

        fn at(&self) -> Instant {
            self.start + Duration::from_millis(self.now)
        }

        fn text(&mut self, text: &str) {
            let mut out = Vec::new();
            self.talk.text(text, self.at(), &mut out);
            self.note(out);
        }

        fn frame(&mut self, byte: u8) {
            let mut out = Vec::new();
            self.talk.frame(Bytes::from(vec![byte]), self.at(), &mut out);
            self.note(out);
        }

        /// Lets time pass, timeouts included.
        fn pass(&mut self, ms: u64) {
            let end = self.now + ms;
            while let Some(due) = self.talk.deadline() {
                let due = due.duration_since(self.start).as_millis() as u64;
                if due > end {
                    break;
                }
                self.now = self.now.max(due);
                let mut out = Vec::new();
                self.talk.timeout(self.at(), &mut out);
                self.note(out);
            }
            self.now = end;
        }

        fn note(&mut self, out: Vec<Message>) {
            for message in out {
                let word = match message {
                    Message::Binary(frame) => format!("frame {}", frame[0]),
                    Message::Text(text) => {
                        let object = Object::parse(&text).unwrap();
                        assert!(object.string("session_id").is_some_and(|id| id.len() == 36), "{text}");
                        format!(
                            "{}{}",
                            object.string("type").unwrap(),
                            object.string("state").map(|state| format!(" {state}")).unwrap_or_default()
                        )
                    }
                    other => panic!("{other:?}"),
                };
                self.said.push((self.now, word));
            }
        }

        fn take(&mut self) -> Vec<(u64, String)> {
            std::mem::take(&mut self.said)
        }
    }

    const HELLO: &str = r#"{"type":"hello","audio_params":{"frame_duration":100}}"#;
    const AUTO: &str = r#"{"type":"listen","state":"start","mode":"auto"}"#;
    const MANUAL: &str = r#"{"type":"listen","state":"start","mode":"manual"}"#;
    const REALTIME: &str = r#"{"type":"listen","state":"start","mode":"realtime"}"#;
    const STOP: &str = r#"{"type":"listen","state":"stop"}"#;

    fn words(said: &[(u64, String)]) -> Vec<(u64, &str)> {
        said.iter().map(|(at, word)| (*at, word.as_str())).collect()
    }

    #[test]
    fn a_stop_plays_the_recording_in_a_burst_and_then_at_pace() {
        let mut script = Script::new(HELLO);
        script.text(MANUAL);
        for i in 0..7 {
            script.frame(i);
        }
        script.take();
        script.text(STOP);
        script.pass(10_000);
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
        assert_eq!(words(&script.take()), expected);
    }

    #[test]
    fn a_pause_ends_a_recording_of_five_frames_but_not_of_four() {
        for (frames, ends) in [(4, 5_000), (5, 700)] {
            let mut script = Script::new(HELLO);
            script.text(AUTO);
            for i in 0..frames {
                script.frame(i);
            }
            script.take();
            script.pass(5_000);
            assert_eq!(words(&script.take())[0], (ends, "stt"), "{frames} frames");
        }
    }

    #[test]
    fn a_recording_ends_by_itself() {
        for (listen, ends) in [(AUTO, 5_000), (MANUAL, 10_000)] {
            let mut script = Script::new(HELLO);
            script.text(listen);
            let mut first = None;
            while first.is_none() {
                script.frame(1);
                script.pass(100);
                first = script.take().into_iter().find(|(_, word)| word == "stt");
            }
            assert_eq!(first, Some((ends, "stt".into())));
        }
    }

    #[test]
    fn a_recording_is_bounded() {
        let mut script = Script::new(HELLO);
        script.text(MANUAL);
        for i in 0..1_000_u32 {
            script.frame(i as u8);
        }
        script.take();
        script.text(STOP);
        script.pass(60_000);
        let frames = script.take().iter().filter(|(_, word)| word.starts_with("frame")).count();
        assert_eq!(frames, 100, "10 s of 100 ms frames");
    }

    #[test]
    fn an_abort_or_a_new_listen_stops_the_playback_once() {
        for interruption in [r#"{"type":"abort"}"#, AUTO] {
            let mut script = Script::new(HELLO);
            script.text(AUTO);
            for i in 0..9 {
                script.frame(i);
            }
            script.text(STOP);
            script.pass(250);
            script.take();
            script.text(interruption);
            script.pass(60_000);
            assert_eq!(words(&script.take()), [(250, "tts stop")], "{interruption}");
        }
    }

    #[test]
    fn realtime_starts_once_and_echoes_at_once() {
        let mut script = Script::new(HELLO);
        script.text(REALTIME);
        script.text(REALTIME);
        script.frame(1);
        script.pass(60_000);
        script.text(STOP);
        script.text(r#"{"type":"abort"}"#);
        script.text(r#"{"type":"abort"}"#);
        assert_eq!(words(&script.take()), [(0, "tts start"), (0, "frame 1"), (60_000, "tts stop")]);
    }

    #[test]
    fn other_messages() {
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
            let mut script = Script::new(HELLO);
            script.text(text);
            assert_eq!(words(&script.take()), *expected, "{text}");
        }
    }

    #[test]
    fn a_stop_with_nothing_recorded_says_so() {
        let mut script = Script::new(HELLO);
        script.text(AUTO);
        script.text(STOP);
        script.pass(60_000);
        assert_eq!(words(&script.take()), [(0, "stt")]);
    }
}
