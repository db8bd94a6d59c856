//! The source of the device's datagrams: any port of its own address, and other addresses after their validation.

use super::*;
use crate::config::PeerPolicy;

const FROM_MQTT_IP: &str = "192.0.2.7:4000";
const FROM_OTHER_IP: &str = "198.51.100.9:5000";
/// Two Opus configurations.
const OPUS: &[u8] = b"\x08abc";
const OTHER_CONFIG_OPUS: &[u8] = b"\x58abc";

impl Scenario {
    fn assert_foreign(&mut self, from: &str, sequence: u32, payload: &[u8]) {
        let outcome = self.uplink_from(from, sequence, payload);
        assert_eq!(outcome, Err(DropReason::ForeignSource), "{from} {sequence}");
    }

    fn assert_accepted(&mut self, from: &str, sequence: u32) {
        assert!(self.uplink_from(from, sequence, OPUS).is_ok(), "{from} {sequence}");
    }

    /// These bytes as a datagram.
    fn raw_uplink(&mut self, from: &str, bytes: &[u8]) -> Result<(), DropReason> {
        self.shell.uplink(&mut self.core, addr(from), &mut bytes.to_vec()).map(drop)
    }

    /// The destination of downlink audio.
    fn downlink_destination(&mut self) -> SocketAddr {
        let actions = self.downlink(&frame_with_header(1, OPUS)).unwrap();
        let [Action::SendDatagram(encrypted, _)] = &actions[..] else { panic!("{actions:?}") };
        encrypted.destination.addr
    }
}

#[test]
fn a_new_port_of_the_devices_address_is_followed_at_once() {
    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_MQTT_IP, 1);
    assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
    scenario.assert_accepted("192.0.2.7:4001", 2);
    assert_eq!(scenario.downlink_destination(), addr("192.0.2.7:4001"));
    // An old sequence does not change the address.
    assert_eq!(scenario.uplink_from(FROM_MQTT_IP, 1, OPUS), Err(DropReason::Duplicate));
    assert_eq!(scenario.downlink_destination(), addr("192.0.2.7:4001"));
}

#[test]
fn a_foreign_address_is_validated_by_its_third_packet_when_none_is_known() {
    let mut scenario = Scenario::in_call();
    scenario.assert_foreign(FROM_OTHER_IP, 1, OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 2, OPUS);
    scenario.downlink(&frame_with_header(1, OPUS)).unwrap();
    let (frame, released) = scenario.uplink_from(FROM_OTHER_IP, 3, OPUS).unwrap();
    assert_eq!((frame, scenario.decrypt_datagrams(&released).len()), (frame_with_header(7, OPUS), 1));
    assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP));
    let stats = summary(&scenario.device_sends(r#"{"type":"goodbye"}"#)).stats;
    assert_eq!((stats.up_packets, stats.lost), (1, 2));
}

#[test]
fn a_foreign_address_is_validated_only_while_the_known_one_is_silent() {
    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_MQTT_IP, 1);
    scenario.wait(1_999);
    for n in 2..9 {
        scenario.assert_foreign(FROM_OTHER_IP, n, OPUS);
    }
    assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP), "moves nothing");
    scenario.assert_accepted(FROM_MQTT_IP, 2);
    scenario.wait(2_000);
    scenario.assert_foreign(FROM_OTHER_IP, 3, OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 4, OPUS);
    scenario.assert_accepted(FROM_OTHER_IP, 5);
    assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP));
    // The device's own address is accepted at once.
    scenario.assert_accepted(FROM_MQTT_IP, 6);
    assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
}

#[test]
fn only_three_consecutive_similar_packets_from_one_address_validate_it() {
    let elsewhere = "203.0.113.1:1";
    let other_port = "198.51.100.9:5001";
    for (what, packets) in [
        ("a gap", [(FROM_OTHER_IP, 1, OPUS), (FROM_OTHER_IP, 2, OPUS), (FROM_OTHER_IP, 4, OPUS)]),
        ("backwards", [(FROM_OTHER_IP, 3, OPUS), (FROM_OTHER_IP, 2, OPUS), (FROM_OTHER_IP, 1, OPUS)]),
        ("twice the same", [(FROM_OTHER_IP, 1, OPUS), (FROM_OTHER_IP, 2, OPUS), (FROM_OTHER_IP, 2, OPUS)]),
        (
            "another Opus configuration",
            [(FROM_OTHER_IP, 1, OPUS), (FROM_OTHER_IP, 2, OPUS), (FROM_OTHER_IP, 3, OTHER_CONFIG_OPUS)],
        ),
        ("no Opus", [(FROM_OTHER_IP, 1, OPUS), (FROM_OTHER_IP, 2, b"\x0b\x00"), (FROM_OTHER_IP, 3, OPUS)]),
        ("two addresses", [(FROM_OTHER_IP, 1, OPUS), (elsewhere, 2, OPUS), (FROM_OTHER_IP, 3, OPUS)]),
        ("two ports", [(FROM_OTHER_IP, 1, OPUS), (other_port, 2, OPUS), (other_port, 3, OPUS)]),
        (
            "far ahead",
            [(FROM_OTHER_IP, 70_001, OPUS), (FROM_OTHER_IP, 70_002, OPUS), (FROM_OTHER_IP, 70_003, OPUS)],
        ),
    ] {
        let mut scenario = Scenario::in_call();
        for (from, sequence, payload) in packets {
            let outcome = scenario.uplink_from(from, sequence, payload);
            assert_eq!(outcome, Err(DropReason::ForeignSource), "{what}");
        }
        scenario.assert_accepted(FROM_MQTT_IP, 1);
        let stats = summary(&scenario.device_sends(r#"{"type":"goodbye"}"#)).stats;
        assert_eq!((stats.up_packets, stats.lost), (1, 0), "{what}: the sequence did not advance");
    }
}

#[test]
fn a_foreign_address_must_use_the_devices_opus_configuration() {
    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_MQTT_IP, 1);
    scenario.wait(3_000);
    for n in 2..6 {
        scenario.assert_foreign(FROM_OTHER_IP, n, OTHER_CONFIG_OPUS);
    }
    scenario.assert_foreign(FROM_OTHER_IP, 6, OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 7, OPUS);
    scenario.assert_accepted(FROM_OTHER_IP, 8);
}

#[test]
fn a_packet_replayed_from_another_address_does_nothing() {
    let mut scenario = Scenario::in_call();
    for n in 1..6 {
        scenario.assert_accepted(FROM_MQTT_IP, n);
    }
    scenario.wait(3_000);
    for n in 3..6 {
        scenario.assert_foreign(FROM_OTHER_IP, n, OPUS);
    }
    assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
}

#[test]
fn the_strict_policy_never_migrates() {
    let mut scenario = Scenario::in_call();
    scenario.shell.config.udp.peer_policy = PeerPolicy::Strict;
    for n in 1..9 {
        scenario.assert_foreign(FROM_OTHER_IP, n, OPUS);
    }
    scenario.assert_accepted("192.0.2.7:9", 1);
    assert_eq!(scenario.downlink_destination(), addr("192.0.2.7:9"));
}

#[test]
fn a_hello_clears_the_address() {
    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_MQTT_IP, 1);
    scenario.start_call();
    assert_eq!(scenario.downlink(&frame_with_header(1, OPUS)), Ok(vec![]), "it waits for the first datagram");
    let (_, released) = scenario.uplink_from("192.0.2.7:4444", 1, OPUS).unwrap();
    let [Action::SendDatagram(encrypted, _)] = &released[..] else { panic!("{released:?}") };
    assert_eq!(encrypted.destination.addr, addr("192.0.2.7:4444"));
}

#[test]
fn the_answer_leaves_from_the_address_the_datagram_reached() {
    let mut scenario = Scenario::in_call();
    let local = Some("10.1.1.1".parse().unwrap());
    let mut datagram = datagram(1, 1, 7, OPUS);
    let peer = UdpPeer { addr: addr(FROM_MQTT_IP), local_ip: local };
    let uplink =
        scenario.core.uplink(peer, &mut datagram, &scenario.shell.config, scenario.shell.now).unwrap();
    assert!(matches!(uplink, Uplink::Server { device_heard: true, .. }), "{uplink:?}");
    let actions = scenario.downlink(&frame_with_header(1, OPUS)).unwrap();
    let [Action::SendDatagram(encrypted, _)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(encrypted.destination, peer);
}

#[test]
fn without_a_call_every_datagram_has_an_unknown_ssrc() {
    let mut scenario = Scenario::online();
    scenario.credentials_issued = 1;
    assert_eq!(scenario.uplink(1, OPUS), Err(DropReason::UnknownSsrc));
    assert_eq!(scenario.downlink(&frame_with_header(1, OPUS)), Err(DropReason::NoPeer));
}

#[test]
fn any_packet_in_between_restarts_the_validation() {
    let noise: &[u8] = b"\x0b\x00";
    for (what, (from, sequence, payload), passes) in [
        ("the device's own packet", (FROM_MQTT_IP, 1, OPUS), true),
        ("no Opus", (FROM_OTHER_IP, 9, noise), false),
        ("no Opus from elsewhere", ("203.0.113.1:1", 9, noise), false),
    ] {
        let mut scenario = Scenario::in_call();
        scenario.assert_foreign(FROM_OTHER_IP, 2, OPUS);
        scenario.assert_foreign(FROM_OTHER_IP, 3, OPUS);
        assert_eq!(scenario.uplink_from(from, sequence, payload).is_ok(), passes, "{what}");
        scenario.wait(2_000);
        scenario.assert_foreign(FROM_OTHER_IP, 4, OPUS);
        scenario.assert_foreign(FROM_OTHER_IP, 5, OPUS);
        scenario.assert_accepted(FROM_OTHER_IP, 6);
    }
    // A packet with another Opus configuration, and packets before the known source was silent long enough, do not count.
    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_MQTT_IP, 1);
    scenario.wait(2_000);
    scenario.assert_foreign(FROM_OTHER_IP, 2, OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 3, OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 9, OTHER_CONFIG_OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 4, OPUS);

    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_MQTT_IP, 1);
    scenario.wait(1_999);
    scenario.assert_foreign(FROM_OTHER_IP, 2, OPUS);
    scenario.wait(1);
    scenario.assert_foreign(FROM_OTHER_IP, 3, OPUS);
    scenario.assert_foreign(FROM_OTHER_IP, 4, OPUS);
    scenario.assert_accepted(FROM_OTHER_IP, 5);
}

#[test]
fn a_validated_address_becomes_the_known_one() {
    let elsewhere = "203.0.113.1:1";
    let adopted = || {
        let mut scenario = Scenario::in_call();
        scenario.assert_foreign(FROM_OTHER_IP, 1, OPUS);
        scenario.assert_foreign(FROM_OTHER_IP, 2, OPUS);
        scenario.wait(2_000);
        scenario.assert_accepted(FROM_OTHER_IP, 3);
        scenario
    };
    let mut scenario = adopted();
    scenario.wait(1_999);
    (4..9).for_each(|n| scenario.assert_foreign(elsewhere, n, OPUS));
    assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP), "it was heard just now");

    let mut scenario = adopted();
    scenario.wait(2_000);
    (4..9).for_each(|n| scenario.assert_foreign(elsewhere, n, OTHER_CONFIG_OPUS));
    assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP), "and says how the device speaks");
}

/// The gateway's own packets have the call's ssrc and are encrypted with its key.
#[test]
fn downlink_packets_that_are_sent_back_change_nothing() {
    for from in [FROM_MQTT_IP, "192.0.2.7:4001", FROM_OTHER_IP] {
        let mut scenario = Scenario::in_call();
        scenario.assert_accepted(FROM_MQTT_IP, 1);
        let downlink: Vec<_> = (1..=200)
            .map(|_| match &scenario.downlink(&frame_with_header(1, OPUS)).unwrap()[..] {
                [Action::SendDatagram(_, bytes)] => bytes.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        scenario.wait(3_000);
        let (deadline, jitter) = (scenario.core.deadline(), scenario.core.call().unwrap().jitter);
        for bytes in &downlink {
            let outcome = scenario.raw_uplink(from, bytes);
            assert_eq!(outcome, Err(DropReason::DatagramFlags), "{from}");
        }
        assert_eq!(scenario.core.deadline(), deadline, "no activity of the device");
        assert_eq!(scenario.core.call().unwrap().jitter, jitter);
        assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
        scenario.assert_accepted(FROM_MQTT_IP, 2);
        let stats = summary(&scenario.device_sends(r#"{"type":"goodbye"}"#)).stats;
        assert_eq!((stats.up_packets, stats.lost, stats.duplicates, stats.reordered), (2, 0, 0, 0), "{from}");
    }
}

#[test]
fn a_downlink_packet_that_is_sent_back_before_the_first_of_the_device_is_no_source() {
    for from in [FROM_MQTT_IP, FROM_OTHER_IP] {
        let mut scenario = Scenario::in_call();
        for sequence in 1..9 {
            let bytes = with_flags(&datagram(1, sequence, 7, OPUS), 0x80 | sequence as u8);
            assert_eq!(scenario.raw_uplink(from, &bytes), Err(DropReason::DatagramFlags), "{from}");
        }
        assert_eq!(scenario.downlink(&frame_with_header(1, OPUS)), Ok(vec![]), "it waits for the device");
        scenario.assert_accepted(FROM_MQTT_IP, 1);
    }
}

#[test]
fn flags_other_than_those_of_the_nonce_are_refused_before_anything_else() {
    assert_eq!(audio::nonce(1)[1], 0);
    for flags in 1..=255 {
        let mut scenario = Scenario::in_call();
        scenario.assert_foreign(FROM_OTHER_IP, 1, OPUS);
        scenario.assert_foreign(FROM_OTHER_IP, 2, OPUS);
        for (from, sequence) in
            [(FROM_MQTT_IP, 3), (FROM_OTHER_IP, 3), (FROM_OTHER_IP, 9), (FROM_MQTT_IP, 70_001)]
        {
            let bytes = with_flags(&datagram(1, sequence, 7, OPUS), flags);
            assert_eq!(scenario.raw_uplink(from, &bytes), Err(DropReason::DatagramFlags), "{flags} {from}");
        }
        // Neither the sequence nor the validation of the other address was affected.
        scenario.assert_accepted(FROM_OTHER_IP, 3);
    }
}

/// This datagram with other flags, and its payload as their keystream requires it.
fn with_flags(bytes: &[u8], flags: u8) -> Vec<u8> {
    let (header, payload) = decrypt_datagram(&[1; 16], bytes);
    let header = UdpHeader { flags, ..header };
    let mut datagram = [&header.to_bytes()[..], &payload].concat();
    audio::Cipher::new(&[1; 16]).apply(&header.to_bytes(), &mut datagram[audio::HEADER_LEN..]);
    datagram
}
