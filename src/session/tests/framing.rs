//! How a server frames audio: configured, or learnt from what it sends.

use super::*;
use crate::config::Framing;

/// A call whose server is set to this framing; the device has sent a datagram.
fn talking(framing: Framing) -> Story {
    let mut story = Story::online();
    story.config.websocket.production = vec![Arc::new(Server { framing, ..A.parse().unwrap() })];
    story.call();
    story.up(1, b"\x08x").unwrap();
    story
}

fn payloads(story: &Story, actions: &[Action]) -> Vec<Vec<u8>> {
    story.heard(actions).into_iter().map(|(_, _, payload)| payload).collect()
}

#[test]
fn headers_are_taken_off_and_their_timestamps_carried_through() {
    let mut story = Story::talking();
    // Only bytes 8 to 16 count: known servers write other things into the first eight.
    let mut frame = headed(0xfedc_ba98, b"\x08a");
    frame[..8].copy_from_slice(&[1, 0, 0, 2, 9, 9, 9, 9]);
    let heard = story.down(&frame).unwrap();
    assert_eq!(story.heard(&heard), [(1, 0xfedc_ba98, b"\x08a".to_vec())]);
    assert_eq!(story.up(2, b"\x08y"), Ok(headed(7, b"\x08y")));
}

#[test]
fn bad_frames_are_dropped_and_the_call_goes_on() {
    let mut story = talking(Framing::Header);
    let mut long = headed(1, &[8; 1401]);
    for bad in [&b""[..], b"\x08short", &[8; 40], &headed(1, b""), &long] {
        assert_eq!(story.down(bad), Err(Discard::BadFrame), "{} bytes", bad.len());
    }
    long.truncate(0);
    assert!(story.down(&headed(1, &[8; 1400])).is_ok());
    assert_eq!(summary(&story.device(r#"{"type":"goodbye"}"#)).facts.dropped, 5);
}

#[test]
fn raw_servers_get_and_send_bare_opus_with_timestamps_of_ours() {
    let mut story = talking(Framing::Raw);
    assert_eq!(story.up(2, b"\x08y"), Ok(b"\x08y".to_vec()));
    let first = story.down(b"\x08a").unwrap();
    story.wait(60);
    let second = story.down(&headed(1, b"looks like a header")).unwrap();
    assert_eq!(story.heard(&first), [(1, 1, b"\x08a".to_vec())], "never zero");
    assert_eq!(story.heard(&second), [(2, 60, headed(1, b"looks like a header"))]);
    assert_eq!(story.down(b""), Err(Discard::BadFrame));
    assert_eq!(story.down(&[8; 1401]), Err(Discard::BadFrame));
}

#[test]
fn three_frames_without_a_header_show_a_raw_server() {
    let mut story = Story::talking();
    assert_eq!(story.down(b"\x08a"), Ok(vec![]));
    assert_eq!(story.server(TTS_STOP), [], "text behind them waits");
    assert_eq!(story.down(b"\x08b"), Ok(vec![]));
    assert_eq!(story.up(2, b"\x08y"), Ok(headed(7, b"\x08y")), "headers until it is known");
    let let_go = story.down(b"\x08c").unwrap();
    assert_eq!(payloads(&story, &let_go), [b"\x08a", b"\x08b", b"\x08c"]);
    assert_eq!(let_go[1], publish(TTS_STOP));
    assert_eq!(story.up(3, b"\x08y"), Ok(b"\x08y".to_vec()));
    // Remembered for that server, also by the next call.
    story.config.websocket.production = servers(&[A]);
    story.call();
    assert_eq!(story.up(1, b"\x08y"), Ok(b"\x08y".to_vec()));
    let at_once = story.down(b"\x08d").unwrap();
    assert_eq!(payloads(&story, &at_once), [b"\x08d"]);
}

#[test]
fn the_longest_packets_show_a_raw_server_too_and_longer_ones_show_nothing() {
    let longest = [8; audio::MAX_PAYLOAD];
    let mut story = Story::talking();
    assert_eq!(story.down(&[8; audio::MAX_PAYLOAD + 1]), Err(Discard::BadFrame));
    assert_eq!(story.down(&longest), Ok(vec![]));
    assert_eq!(story.down(&longest), Ok(vec![]));
    let let_go = story.down(&longest).unwrap();
    assert_eq!(payloads(&story, &let_go), [longest; 3]);
}

#[test]
fn a_header_settles_it_for_good() {
    let mut story = Story::talking();
    story.down(b"\x08a").unwrap();
    story.down(b"\x08b").unwrap();
    let bad = || Action::Count(Counter::Dropped(Discard::BadFrame));
    let let_go = story.down(&headed(5, b"\x08c")).unwrap();
    assert_eq!(let_go[..2], [bad(), bad()], "the ones without are dropped");
    assert_eq!(payloads(&story, &let_go), [b"\x08c"]);
    for _ in 0..4 {
        assert_eq!(story.down(b"\x08d"), Err(Discard::BadFrame));
    }
    assert_eq!(summary(&story.device(r#"{"type":"goodbye"}"#)).facts.dropped, 6);
}

#[test]
fn a_raw_server_that_sends_a_header_speaks_headers_from_then_on() {
    let mut story = Story::talking();
    for _ in 0..3 {
        story.down(b"\x08a").unwrap();
    }
    let heard = story.down(&headed(5, b"\x08c")).unwrap();
    assert_eq!(story.heard(&heard), [(4, 5, b"\x08c".to_vec())]);
    assert_eq!(story.down(b"\x08d"), Err(Discard::BadFrame));
    assert_eq!(story.up(2, b"\x08y"), Ok(headed(7, b"\x08y")));
    assert_eq!(story.servers.spoken(&server(A)), Some(Spoken::Header));
    story.servers.learn(&server(A), Spoken::Raw);
    assert_eq!(story.servers.spoken(&server(A)), Some(Spoken::Header));
}

#[test]
fn frames_whose_framing_never_shows_wait_2_s() {
    let mut story = Story::talking();
    story.down(b"\x08a").unwrap();
    story.server(TTS_STOP);
    let dropped = Action::Count(Counter::Dropped(Discard::NoPeer));
    assert_eq!(story.wait(2_000), [dropped, Action::Note(Note::HeldDropped(1)), publish(TTS_STOP)]);
    assert_eq!(story.down(b"\x08b"), Err(Discard::NoPeer));
    let third = story.down(b"\x08c").unwrap();
    assert_eq!(payloads(&story, &third), [b"\x08c"], "what is learnt still counts");
}

#[test]
fn framing_is_learnt_before_the_hello_too_and_anew_for_each_server() {
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    for payload in [b"\x08a", b"\x08b", b"\x08c"] {
        assert_eq!(story.down(payload), Ok(vec![]));
    }
    story.server(SERVER_HELLO);
    let (frame, let_go) = story.up_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(frame, b"\x08x");
    assert_eq!(payloads(&story, &let_go), [b"\x08a", b"\x08b", b"\x08c"]);
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    story.server(SERVER_HELLO);
    assert_eq!(story.up(2, b"\x08y"), Ok(headed(7, b"\x08y")), "another server");
}

#[test]
fn flags_of_the_downlink_can_be_turned_off() {
    let mut story = Story::talking();
    let actions = story.down(&headed(5, b"\x08a")).unwrap();
    let [Action::Datagram(_, with)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(with[1], 0x81);
    story.config.udp.downlink_flags = false;
    let actions = story.down(&headed(5, b"\x08a")).unwrap();
    let [Action::Datagram(sealed, without)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((without[1], sealed.len), (0, without.len()));
}

/// The URL and the protocol version of the dial among the actions.
fn dialled(actions: &[Action]) -> (&str, u8) {
    let mut dials = actions.iter().filter_map(|action| match action {
        Action::Dial(request) => Some((&*request.server.url, request.protocol_version)),
        _ => None,
    });
    dials.next().unwrap()
}

fn hello_up(version: u8) -> String {
    HELLO_UP.replace(r#""version":2"#, &format!(r#""version":{version}"#))
}

#[test]
fn a_configured_framing_decides_the_protocol_version_of_upgrade_and_hello() {
    for (framing, version) in [(Framing::Raw, 1), (Framing::Header, 2), (Framing::Auto, 2)] {
        let mut story = Story::online();
        story.config.websocket.production = vec![Arc::new(Server { framing, ..A.parse().unwrap() })];
        assert_eq!(dialled(&story.device(HELLO)), (A, version), "{framing:?}");
        assert_eq!(story.open(), [say(&hello_up(version))], "{framing:?}");
        assert_eq!(story.wait(3_000), [say(&hello_up(version))], "{framing:?}: once more");
        story.server(SERVER_HELLO);
        story.gone(failed("live"));
        assert_eq!(dialled(&story.wait(250)), (A, version), "{framing:?}: a redial");
        assert_eq!(story.open(), [say(&hello_up(version))], "{framing:?}: a redial");
    }
}

#[test]
fn a_learnt_framing_decides_the_protocol_version_of_later_dials() {
    let mut story = Story::talking();
    story.config.websocket.production = servers(&[A, B]);
    for _ in 0..3 {
        story.down(b"\x08a").unwrap();
    }
    // Redials of the same call, each to the next server.
    for (pause, url, version) in [(250, B, 2), (500, A, 1), (1_000, B, 2)] {
        story.gone(failed("live"));
        assert_eq!(dialled(&story.wait(pause)), (url, version));
        assert_eq!(story.open(), [say(&hello_up(version))]);
        story.server(SERVER_HELLO);
    }
    // Later calls, until the server sends a header after all.
    story.config.websocket.production = servers(&[A]);
    assert_eq!(dialled(&story.device(HELLO)), (A, 1));
    assert_eq!(story.open(), [say(&hello_up(1))]);
    story.server(SERVER_HELLO);
    story.down(&headed(5, b"\x08c")).unwrap();
    assert_eq!(dialled(&story.device(HELLO)), (A, 2));
}

#[test]
fn a_hello_says_the_protocol_version_of_its_upgrade_whatever_is_learnt_in_between() {
    let mut story = Story::online();
    story.config.websocket.production = servers(&[A]);
    assert_eq!(dialled(&story.device(HELLO)), (A, 2));
    assert_eq!(story.open(), [say(&hello_up(2))]);
    for _ in 0..3 {
        story.down(b"\x08a").unwrap();
    }
    assert_eq!(story.wait(3_000), [say(&hello_up(2))]);
}
