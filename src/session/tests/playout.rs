//! The pace of audio and speech to the device: what a server sends at once is played, not lost.

use super::*;

const SENTENCE: &str = r#"{"session_id":"s1","type":"tts","state":"sentence_start","text":"hi"}"#;
const MCP: &str = r#"{"session_id":"s1","type":"mcp","payload":{"method":"notifications/x"}}"#;
const ABORT: &str = r#"{"session_id":"s1","type":"abort"}"#;
const GOODBYE: &str = r#"{"session_id":"s1","type":"goodbye"}"#;

/// What the device got, with its time in ms since the speech began.
#[derive(Debug, PartialEq)]
enum Got {
    Text(u64, String),
    Audio(u64, Vec<u8>),
}

/// A device in a call whose address is known, with the defaults of the configuration for audio.
fn in_paced_call() -> Scenario {
    let mut scenario = Scenario::new();
    scenario.shell.config.udp = Config::default().udp;
    scenario.connect();
    scenario.start_call();
    scenario.uplink(1, b"\x08one").unwrap();
    scenario
}

impl Scenario {
    /// The server sends these frames at once; what leaves at once.
    fn say(&mut self, frames: std::ops::Range<u8>) -> Vec<Action> {
        frames.flat_map(|n| self.downlink(&frame_with_header(n.into(), &[8, n])).unwrap()).collect()
    }

    fn got(&self, timed: Vec<(u64, Action)>) -> Vec<Got> {
        let got = timed.into_iter().filter_map(|(at, action)| match action {
            Action::Publish(text) => Some(Got::Text(at, text)),
            Action::SendDatagram(_, bytes) => {
                Some(Got::Audio(at, decrypt(self.credentials_issued, &bytes).2[1..].to_vec()))
            }
            _ => None,
        });
        got.collect()
    }
}

fn text(at: u64, text: &str) -> Got {
    Got::Text(at, text.to_owned())
}

fn audio(at: u64, n: u8) -> Got {
    Got::Audio(at, vec![n])
}

#[test]
fn audio_follows_tts_start_after_the_lead() {
    let mut scenario = in_paced_call();
    assert_eq!(scenario.server_sends(TTS_START), [publish(TTS_START)]);
    assert_eq!(scenario.say(0..6), []);
    let timed = scenario.wait_timed(1_000);
    let got = scenario.got(timed);
    assert_eq!(got, [audio(30, 0), audio(50, 1), audio(70, 2), audio(90, 3), audio(110, 4), audio(130, 5)]);
    // No timer is set when nothing is spoken.
    scenario.server_sends(TTS_STOP);
    let idle = scenario.core.deadline();
    scenario.server_sends(TTS_START);
    assert_eq!(scenario.core.deadline(), idle);
}

#[test]
fn a_whole_reply_in_one_write_is_played_and_tts_stop_is_last() {
    let mut scenario = in_paced_call();
    scenario.server_sends(TTS_START);
    assert_eq!(scenario.say(0..50), []);
    assert_eq!(scenario.server_sends(SENTENCE), []);
    scenario.say(50..100);
    assert_eq!(scenario.server_sends(TTS_STOP), []);
    assert_eq!(scenario.server_sends(MCP), [publish(MCP)], "what is not about speech overtakes audio");
    let timed = scenario.wait_timed(10_000);
    let got = scenario.got(timed);
    assert_eq!(got.len(), 102);
    // The device plays a frame per 60 ms from the first one on, and keeps five beside it.
    let times: Vec<u64> = got.iter().filter(|got| matches!(got, Got::Audio(..))).map(at).collect();
    for (n, at) in times.iter().enumerate() {
        assert!(n as u64 <= 5 + (at - times[0]) / 60, "frame {n} at {at}");
    }
    let Got::Text(sentence_at, _) = &got[50] else { panic!("{:?}", got[50]) };
    assert_eq!(*sentence_at, times[49], "a sentence keeps its place");
    assert_eq!(got[101], text(30 + 100 * 60, TTS_STOP), "when the last frame has had its time");
}

fn at(got: &Got) -> u64 {
    match got {
        Got::Text(at, _) | Got::Audio(at, _) => *at,
    }
}

#[test]
fn a_server_in_real_time_needs_no_timer_even_five_frames_ahead() {
    let mut scenario = in_paced_call();
    scenario.server_sends(TTS_START);
    scenario.say(0..5);
    for n in 5..60 {
        scenario.wait(60);
        let sent = scenario.say(n..n + 1);
        assert!(n < 8 || sent.len() == 1, "frame {n} waits");
    }
}

#[test]
fn frames_last_as_long_as_the_server_says_or_else_the_device() {
    for (server_says, device_says, expected) in
        [(Some(20), Some(40), 20), (None, Some(40), 40), (None, None, 60)]
    {
        let mut scenario = Scenario::new();
        scenario.shell.config.udp = Config::default().udp;
        scenario.connect();
        let params =
            |ms: Option<u64>| ms.map_or("{}".to_owned(), |ms| format!(r#"{{"frame_duration":{ms}}}"#));
        scenario.device_sends(&format!(
            r#"{{"type":"hello","version":3,"audio_params":{}}}"#,
            params(device_says)
        ));
        scenario.open_backend();
        let server_params =
            server_says.map_or(String::new(), |ms| format!(r#","audio_params":{}"#, params(Some(ms))));
        scenario.server_sends(&format!(r#"{{"type":"hello","session_id":"s1"{server_params}}}"#));
        scenario.uplink(1, b"\x08one").unwrap();
        scenario.server_sends(TTS_START);
        scenario.say(0..100);
        scenario.server_sends(TTS_STOP);
        let timed = scenario.wait_timed(10_000);
        assert_eq!(scenario.got(timed).last(), Some(&text(30 + 100 * expected, TTS_STOP)));
    }
}

#[test]
fn an_abort_silences_the_device_at_once() {
    let mut scenario = in_paced_call();
    scenario.server_sends(TTS_START);
    scenario.say(0..50);
    scenario.wait(500);
    let dropped = |actions: &[Action]| {
        let aborted = Action::Count(Counter::Dropped(DropReason::Aborted));
        actions.iter().filter(|action| **action == aborted).count()
    };
    // The end is not said yet: the rest is dropped until it comes, and it does not wait.
    let actions = scenario.device_sends(ABORT);
    assert!(dropped(&actions) > 30 && actions.contains(&Action::FlushAudio(0x1001)));
    assert_eq!((texts_to_device(&actions), texts_to_server(&actions)), (vec![], vec![ABORT]));
    assert_eq!(scenario.downlink(&frame_with_header(60, b"\x08a")), Err(DropReason::Aborted));
    assert_eq!(scenario.server_sends(TTS_STOP), [publish(TTS_STOP)]);
    assert_eq!(scenario.wait(500), []);
    // The next speech is heard.
    scenario.server_sends(TTS_START);
    scenario.say(0..2);
    let timed = scenario.wait_timed(100);
    assert_eq!(scenario.got(timed).len(), 2);
    // The end waits already: it is sent at once, and what follows is a new speech.
    scenario.say(2..40);
    scenario.server_sends(SENTENCE);
    scenario.server_sends(TTS_STOP);
    let actions = scenario.device_sends(ABORT);
    assert_eq!((dropped(&actions) > 20, texts_to_device(&actions)), (true, vec![TTS_STOP]));
    assert_eq!(scenario.say(0..1).len(), 1);
}

#[test]
fn a_hello_or_goodbye_of_the_device_drops_what_waits() {
    for text in [HELLO, r#"{"type":"goodbye","session_id":"s1"}"#] {
        let mut scenario = in_paced_call();
        scenario.server_sends(TTS_START);
        scenario.say(0..50);
        scenario.server_sends(TTS_STOP);
        let actions = scenario.device_sends(text);
        let stop = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
        let told = if text == HELLO { vec![] } else { vec![stop] };
        assert_eq!((texts_to_device(&actions), scenario.decrypt_datagrams(&actions)), (told, vec![]));
        assert_eq!(texts_to_device(&scenario.wait(1_000)), [""; 0]);
    }
}

#[test]
fn what_was_said_is_played_before_the_servers_end_ends_the_call() {
    let goodbye = |scenario: &mut Scenario| scenario.server_sends(GOODBYE);
    let close =
        |scenario: &mut Scenario| scenario.close_backend(BackendClosed::CloseFrame(Some(1000), "".into()));
    for end in [&goodbye as &dyn Fn(&mut Scenario) -> Vec<Action>, &close] {
        let mut scenario = in_paced_call();
        scenario.server_sends(TTS_START);
        scenario.say(0..20);
        assert_eq!(end(&mut scenario), [Action::CloseBackend(1000)]);
        // What the device says meanwhile has no reader, and nothing is dialled.
        assert_eq!(without_logs_and_counters(scenario.device_sends(LISTEN)), []);
        assert_eq!(scenario.close_backend(failed(BackendStage::Live)), []);
        let timed = scenario.wait_timed(10_000);
        let ended = timed.iter().find(|(_, action)| matches!(action, Action::CallEnded(_))).unwrap().0;
        assert_eq!(ended, 30 + 20 * 60);
        let got = scenario.got(timed);
        let Got::Text(at, text) = &got[20] else { panic!("{got:?}") };
        assert_eq!((got.len(), *at), (21, ended));
        assert!(text.contains(r#""type":"goodbye""#) && text.contains(r#""session_id":"s1""#), "{text}");
        // An abort ends it at once.
        let mut scenario = in_paced_call();
        scenario.server_sends(TTS_START);
        scenario.say(0..20);
        end(&mut scenario);
        assert_eq!(summary(&scenario.device_sends(ABORT)).reason, EndReason::ServerClosed);
    }
}

#[test]
fn a_redial_starts_at_once_while_what_was_said_is_played() {
    let mut scenario = in_paced_call();
    scenario.server_sends(TTS_START);
    scenario.say(0..20);
    let actions = scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(texts_to_device(&actions), [""; 0]);
    let timed = scenario.wait_timed(250);
    assert!(timed.iter().any(|(_, action)| *action == redial(B)), "{timed:?}");
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    scenario.server_sends(TTS_START);
    scenario.say(20..22);
    let stop = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
    let timed = scenario.wait_timed(5_000);
    let got = scenario.got(timed);
    let end = got.iter().position(|got| matches!(got, Got::Text(_, text) if text == stop)).unwrap();
    assert_eq!(at(&got[end]), 30 + 20 * 60, "{got:?}");
    assert!(got[..end].iter().all(|got| matches!(got, Got::Audio(..))), "{got:?}");
    assert_eq!(got[end + 1], text(at(&got[end]), TTS_START));
    assert_eq!(got[end + 2..], [audio(at(&got[end]) + 30, 20), audio(at(&got[end]) + 50, 21)]);
}

#[test]
fn audio_beyond_five_minutes_or_the_memory_is_dropped_and_said_once() {
    let mut scenario = in_paced_call();
    scenario.server_sends(TTS_START);
    for n in 0..5_000 {
        assert_eq!(scenario.downlink(&frame_with_header(n, b"\x08a")), Ok(vec![]));
    }
    for _ in 0..3 {
        assert_eq!(scenario.downlink(&frame_with_header(1, b"\x08a")), Err(DropReason::HeldFull));
    }
    let actions = scenario.wait(100);
    assert_eq!(actions.iter().filter(|action| **action == Action::Log(LogEvent::HeldAudioFull)).count(), 1);
    let mut out = [0; audio::HEADER_LEN + audio::MAX_PAYLOAD];
    let shell = &mut scenario.shell;
    let frame = frame_with_header(1, b"\x08a");
    let refused = scenario.core.downlink(
        &frame,
        FrameSpace { datagram: &mut out, room: 5 },
        &shell.config,
        &mut shell.servers,
        shell.now,
    );
    assert_eq!(refused, Err(DropReason::HeldFull), "no room");
}

#[test]
fn without_pace_and_lead_everything_leaves_at_once() {
    let mut scenario = Scenario::with_udp_peer();
    assert_eq!(scenario.server_sends(TTS_START), [publish(TTS_START)]);
    assert_eq!(scenario.say(0..100).len(), 100);
    assert_eq!(scenario.server_sends(TTS_STOP), [publish(TTS_STOP)]);
    let end = scenario.server_sends(GOODBYE);
    assert_eq!(summary(&end).reason, EndReason::ServerClosed);
}
