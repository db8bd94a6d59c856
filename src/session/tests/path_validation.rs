//! Where a device's datagrams come from: its own address on any port, another one only when it has proved itself.

use super::*;
use crate::config::PeerPolicy;

const AT_HOME: &str = "192.0.2.7:4000";
const ABROAD: &str = "198.51.100.9:5000";
/// One Opus configuration, and another.
const OPUS: &[u8] = b"\x08abc";
const OTHER: &[u8] = b"\x58abc";

impl Story {
    fn foreign(&mut self, from: &str, sequence: u32, payload: &[u8]) {
        let outcome = self.up_from(from, sequence, payload);
        assert_eq!(outcome, Err(Discard::ForeignSource), "{from} {sequence}");
    }

    fn accepted(&mut self, from: &str, sequence: u32) {
        assert!(self.up_from(from, sequence, OPUS).is_ok(), "{from} {sequence}");
    }

    /// Where downlink audio goes.
    fn target(&mut self) -> SocketAddr {
        let actions = self.down(&headed(1, OPUS)).unwrap();
        let [Action::Datagram(sealed, _)] = &actions[..] else { panic!("{actions:?}") };
        sealed.peer.addr
    }
}

#[test]
fn a_new_port_of_the_devices_address_is_followed_at_once() {
    let mut story = Story::in_call();
    story.accepted(AT_HOME, 1);
    assert_eq!(story.target(), addr(AT_HOME));
    story.accepted("192.0.2.7:4001", 2);
    assert_eq!(story.target(), addr("192.0.2.7:4001"));
    // But only by a newer sequence.
    assert_eq!(story.up_from(AT_HOME, 1, OPUS), Err(Discard::Duplicate));
    assert_eq!(story.target(), addr("192.0.2.7:4001"));
}

#[test]
fn a_foreign_address_is_adopted_with_the_third_packet_when_none_is_known() {
    let mut story = Story::in_call();
    story.foreign(ABROAD, 1, OPUS);
    story.foreign(ABROAD, 2, OPUS);
    story.down(&headed(1, OPUS)).unwrap();
    let (frame, let_go) = story.up_from(ABROAD, 3, OPUS).unwrap();
    assert_eq!((frame, story.heard(&let_go).len()), (headed(7, OPUS), 1));
    assert_eq!(story.target(), addr(ABROAD));
    let facts = summary(&story.device(r#"{"type":"goodbye"}"#)).facts;
    assert_eq!((facts.up_packets, facts.lost), (1, 2));
}

#[test]
fn a_foreign_address_is_adopted_only_while_the_known_one_is_silent() {
    let mut story = Story::in_call();
    story.accepted(AT_HOME, 1);
    story.wait(1_999);
    for n in 2..9 {
        story.foreign(ABROAD, n, OPUS);
    }
    assert_eq!(story.target(), addr(AT_HOME), "moves nothing");
    story.accepted(AT_HOME, 2);
    story.wait(2_000);
    story.foreign(ABROAD, 3, OPUS);
    story.foreign(ABROAD, 4, OPUS);
    story.accepted(ABROAD, 5);
    assert_eq!(story.target(), addr(ABROAD));
    // The device's own address wins it back at once.
    story.accepted(AT_HOME, 6);
    assert_eq!(story.target(), addr(AT_HOME));
}

#[test]
fn only_three_consecutive_packets_alike_from_one_address_prove_it() {
    let elsewhere = "203.0.113.1:1";
    let other_port = "198.51.100.9:5001";
    for (what, packets) in [
        ("a gap", [(ABROAD, 1, OPUS), (ABROAD, 2, OPUS), (ABROAD, 4, OPUS)]),
        ("backwards", [(ABROAD, 3, OPUS), (ABROAD, 2, OPUS), (ABROAD, 1, OPUS)]),
        ("twice the same", [(ABROAD, 1, OPUS), (ABROAD, 2, OPUS), (ABROAD, 2, OPUS)]),
        ("another Opus configuration", [(ABROAD, 1, OPUS), (ABROAD, 2, OPUS), (ABROAD, 3, OTHER)]),
        ("no Opus", [(ABROAD, 1, OPUS), (ABROAD, 2, b"\x0b\x00"), (ABROAD, 3, OPUS)]),
        ("two addresses", [(ABROAD, 1, OPUS), (elsewhere, 2, OPUS), (ABROAD, 3, OPUS)]),
        ("two ports", [(ABROAD, 1, OPUS), (other_port, 2, OPUS), (other_port, 3, OPUS)]),
        ("far ahead", [(ABROAD, 70_001, OPUS), (ABROAD, 70_002, OPUS), (ABROAD, 70_003, OPUS)]),
    ] {
        let mut story = Story::in_call();
        for (from, sequence, payload) in packets {
            let outcome = story.up_from(from, sequence, payload);
            assert_eq!(outcome, Err(Discard::ForeignSource), "{what}");
        }
        story.accepted(AT_HOME, 1);
        let facts = summary(&story.device(r#"{"type":"goodbye"}"#)).facts;
        assert_eq!((facts.up_packets, facts.lost), (1, 0), "{what}: the sequence did not advance");
    }
}

#[test]
fn a_foreign_address_must_speak_as_the_device_did() {
    let mut story = Story::in_call();
    story.accepted(AT_HOME, 1);
    story.wait(3_000);
    for n in 2..6 {
        story.foreign(ABROAD, n, OTHER);
    }
    story.foreign(ABROAD, 6, OPUS);
    story.foreign(ABROAD, 7, OPUS);
    story.accepted(ABROAD, 8);
}

#[test]
fn an_old_packet_replayed_from_abroad_does_nothing() {
    let mut story = Story::in_call();
    for n in 1..6 {
        story.accepted(AT_HOME, n);
    }
    story.wait(3_000);
    for n in 3..6 {
        story.foreign(ABROAD, n, OPUS);
    }
    assert_eq!(story.target(), addr(AT_HOME));
}

#[test]
fn strict_never_adopts() {
    let mut story = Story::in_call();
    story.config.udp.peer_policy = PeerPolicy::Strict;
    for n in 1..9 {
        story.foreign(ABROAD, n, OPUS);
    }
    story.accepted("192.0.2.7:9", 1);
    assert_eq!(story.target(), addr("192.0.2.7:9"));
}

#[test]
fn a_hello_clears_the_address() {
    let mut story = Story::in_call();
    story.accepted(AT_HOME, 1);
    story.call();
    assert_eq!(story.down(&headed(1, OPUS)), Ok(vec![]), "it waits for the first datagram");
    let (_, let_go) = story.up_from("192.0.2.7:4444", 1, OPUS).unwrap();
    let [Action::Datagram(sealed, _)] = &let_go[..] else { panic!("{let_go:?}") };
    assert_eq!(sealed.peer.addr, addr("192.0.2.7:4444"));
}

#[test]
fn the_answer_leaves_from_the_address_the_datagram_reached() {
    let mut story = Story::in_call();
    let local = Some("10.1.1.1".parse().unwrap());
    let mut datagram = datagram(1, 1, 7, OPUS);
    let peer = Peer { addr: addr(AT_HOME), local };
    let uplink = story.core.uplink(peer, &mut datagram, &story.config, story.now).unwrap();
    assert!(matches!(uplink, Uplink::Server { first: true, .. }), "{uplink:?}");
    let actions = story.down(&headed(1, OPUS)).unwrap();
    let [Action::Datagram(sealed, _)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(sealed.peer, peer);
}

#[test]
fn without_a_call_no_datagram_is_known() {
    let mut story = Story::online();
    story.grants = 1;
    assert_eq!(story.up(1, OPUS), Err(Discard::UnknownSsrc));
    assert_eq!(story.down(&headed(1, OPUS)), Err(Discard::NoPeer));
}

#[test]
fn whatever_comes_between_begins_the_proof_anew() {
    let noise: &[u8] = b"\x0b\x00";
    for (what, (from, sequence, payload), passes) in [
        ("the device's own packet", (AT_HOME, 1, OPUS), true),
        ("no Opus", (ABROAD, 9, noise), false),
        ("no Opus from elsewhere", ("203.0.113.1:1", 9, noise), false),
    ] {
        let mut story = Story::in_call();
        story.foreign(ABROAD, 2, OPUS);
        story.foreign(ABROAD, 3, OPUS);
        assert_eq!(story.up_from(from, sequence, payload).is_ok(), passes, "{what}");
        story.wait(2_000);
        story.foreign(ABROAD, 4, OPUS);
        story.foreign(ABROAD, 5, OPUS);
        story.accepted(ABROAD, 6);
    }
    // Another Opus configuration than the device's, and what came before it was silent long enough.
    let mut story = Story::in_call();
    story.accepted(AT_HOME, 1);
    story.wait(2_000);
    story.foreign(ABROAD, 2, OPUS);
    story.foreign(ABROAD, 3, OPUS);
    story.foreign(ABROAD, 9, OTHER);
    story.foreign(ABROAD, 4, OPUS);

    let mut story = Story::in_call();
    story.accepted(AT_HOME, 1);
    story.wait(1_999);
    story.foreign(ABROAD, 2, OPUS);
    story.wait(1);
    story.foreign(ABROAD, 3, OPUS);
    story.foreign(ABROAD, 4, OPUS);
    story.accepted(ABROAD, 5);
}

#[test]
fn an_adopted_address_is_the_known_one() {
    let elsewhere = "203.0.113.1:1";
    let adopted = || {
        let mut story = Story::in_call();
        story.foreign(ABROAD, 1, OPUS);
        story.foreign(ABROAD, 2, OPUS);
        story.wait(2_000);
        story.accepted(ABROAD, 3);
        story
    };
    let mut story = adopted();
    story.wait(1_999);
    (4..9).for_each(|n| story.foreign(elsewhere, n, OPUS));
    assert_eq!(story.target(), addr(ABROAD), "it was heard just now");

    let mut story = adopted();
    story.wait(2_000);
    (4..9).for_each(|n| story.foreign(elsewhere, n, OTHER));
    assert_eq!(story.target(), addr(ABROAD), "and says how the device speaks");
}
