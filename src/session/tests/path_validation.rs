//! Whose audio is taken: the rules of `session/media/paths.rs`, one by one.

use super::*;
use crate::config::PeerPolicy;

const FROM_MQTT_IP: &str = "192.0.2.7:4000";
const FROM_OTHER_PORT: &str = "192.0.2.7:4001";
const FROM_OTHER_IP: &str = "198.51.100.9:5000";
const FROM_THIRD_IP: &str = "203.0.113.1:1";
/// Two Opus configurations, and what is none.
const OPUS: &[u8] = b"\x08abc";
const OTHER_CONFIG_OPUS: &[u8] = b"\x58abc";
const NOISE: &[u8] = b"\x0b\x00";

impl Scenario {
    fn with_policy(policy: PeerPolicy) -> Self {
        let mut scenario = Self::in_call();
        scenario.shell.config.udp.peer_policy = policy;
        scenario
    }

    /// A call whose device has sent the sequences up to this one.
    fn with_sequence(last: u32) -> Self {
        let mut scenario = Self::in_call();
        (1..=last).for_each(|n| scenario.assert_accepted(FROM_MQTT_IP, n));
        scenario
    }

    /// Time passes, and no timer expires.
    fn pass(&mut self, ms: u64) {
        self.shell.now += Duration::from_millis(ms);
    }

    fn assert_outcome(&mut self, from: &str, sequence: u32, payload: &[u8], reason: DropReason) {
        let outcome = self.uplink_frames(from, sequence, payload);
        assert_eq!(outcome, Err(reason), "{from} {sequence}");
    }

    fn assert_foreign(&mut self, from: &str, sequence: u32, payload: &[u8]) {
        self.assert_outcome(from, sequence, payload, DropReason::ForeignSource);
    }

    fn assert_held(&mut self, from: &str, sequences: impl IntoIterator<Item = u32>) {
        for sequence in sequences {
            self.assert_outcome(from, sequence, OPUS, DropReason::PathHeld);
        }
    }

    fn assert_accepted(&mut self, from: &str, sequence: u32) {
        assert!(self.uplink_from(from, sequence, OPUS).is_ok(), "{from} {sequence}");
    }

    /// With this packet the source becomes known, and so many packets are forwarded.
    fn assert_taken(&mut self, from: &str, sequence: u32, frames: usize) {
        let (forwarded, _) = self.uplink_frames(from, sequence, OPUS).expect("taken");
        assert_eq!(forwarded.len(), frames, "{from} {sequence}");
        assert_eq!(self.downlink_destination(), addr(from));
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

    fn hang_up(&mut self) -> CallStats {
        summary(&self.device_sends(r#"{"type":"goodbye"}"#)).stats
    }
}

// ----- which source ---------------------------------------------------------------------------------------------------

#[test]
fn another_source_is_taken_with_its_eighth_packet_while_the_known_one_is_silent() {
    use PeerPolicy::{Adaptive, Strict};
    for (from, silence, policies) in
        [(FROM_OTHER_PORT, 1_000, &[Adaptive, Strict][..]), (FROM_OTHER_IP, 2_000, &[Adaptive])]
    {
        for policy in policies {
            let mut scenario = Scenario::with_policy(*policy);
            scenario.assert_accepted(FROM_MQTT_IP, 1);
            scenario.pass(silence - 1);
            scenario.assert_held(from, 2..12);
            assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
            scenario.pass(1);
            scenario.assert_taken(from, 12, 11);
            scenario.assert_accepted(from, 13);
            // Silence alone is not enough.
            let mut scenario = Scenario::with_policy(*policy);
            scenario.assert_accepted(FROM_MQTT_IP, 1);
            scenario.pass(60_000);
            scenario.assert_held(from, 2..9);
            scenario.assert_taken(from, 9, 8);
        }
    }
}

#[test]
fn before_a_source_is_known_the_mqtt_ip_needs_one_packet_and_another_ip_eight() {
    let mut scenario = Scenario::in_call();
    scenario.assert_accepted(FROM_OTHER_PORT, 1);
    assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_PORT));

    // As through Docker's bridge.
    let mut scenario = Scenario::in_call();
    scenario.assert_held(FROM_OTHER_IP, 1..8);
    scenario.downlink(&frame_with_header(1, OPUS)).unwrap();
    let (frames, released) = scenario.uplink_frames(FROM_OTHER_IP, 8, OPUS).unwrap();
    assert_eq!(frames, vec![frame_with_header(7, OPUS); 8], "nothing is lost");
    assert_eq!(scenario.decrypt_datagrams(&released).len(), 1, "what waited for the first datagram");
    assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP));
    scenario.assert_accepted(FROM_OTHER_IP, 9);
    let stats = scenario.hang_up();
    assert_eq!((stats.up_packets, stats.lost, stats.dropped), (9, 0, 0));
}

#[test]
fn a_known_source_that_is_alive_keeps_the_call_and_ends_the_runs_of_others() {
    let mut scenario = Scenario::with_sequence(1);
    let mut dropped = 0;
    for n in (2..100).step_by(7) {
        scenario.pass(900);
        for from in [FROM_OTHER_IP, FROM_OTHER_PORT, FROM_THIRD_IP] {
            scenario.assert_held(from, n + 1..n + 8);
            dropped += 7;
        }
        scenario.assert_accepted(FROM_MQTT_IP, n);
        assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
    }
    let stats = scenario.hang_up();
    assert_eq!((stats.up_packets, stats.dropped), (15, dropped));
}

#[test]
fn a_first_datagram_without_audio_tells_the_address_and_is_not_passed_on() {
    let ping = b"ping:7e3a9c52-6c0f-4b7e";
    let cases: [&[u8]; 4] = [b"", ping, b"12345678", b"        "];
    for payload in cases {
        let mut scenario = Scenario::in_call();
        scenario.server_sends(TTS_START);
        let (frames, out) = scenario.uplink_frames(FROM_MQTT_IP, 0, payload).unwrap();
        assert_eq!((frames.len(), texts_to_device(&out)), (0, vec![TTS_START]), "{payload:?}");
        let heard = scenario.downlink(&frame_with_header(1, OPUS)).unwrap();
        let Action::SendDatagram(sent, _) = &heard[0] else { panic!("{heard:?}") };
        assert_eq!(sent.destination.addr, addr(FROM_MQTT_IP));
        // Audio may come from another port then.
        assert_eq!(scenario.uplink_from(FROM_OTHER_PORT, 1, OPUS).unwrap().0, frame_with_header(7, OPUS));
    }
    // Opus may look like text: after the first audio it is passed on. Shorter text may be Opus.
    let mut scenario = Scenario::in_call();
    for (sequence, payload) in [(1, &b"1234567"[..]), (2, ping), (3, b"87654321")] {
        assert_eq!(scenario.uplink(sequence, payload), Ok(frame_with_header(7, payload)));
    }
    assert_eq!(scenario.uplink(4, b""), Err(DropReason::EmptyDatagram));
    // What was kept of another source is not passed on by it.
    let mut scenario = Scenario::in_call();
    assert_eq!(scenario.uplink_frames(FROM_OTHER_IP, 1, OPUS), Err(DropReason::PathHeld));
    assert_eq!(scenario.uplink_frames(FROM_MQTT_IP, 0, b"").unwrap().0, Vec::<Vec<u8>>::new());
    // From elsewhere it tells nothing.
    let mut scenario = Scenario::in_call();
    for sequence in 0..20 {
        assert!(scenario.uplink_frames(FROM_OTHER_IP, sequence, ping).is_err());
        assert!(scenario.uplink_frames(FROM_OTHER_IP, sequence, b"").is_err());
    }
    assert!(scenario.uplink(1, OPUS).is_ok());
}

#[test]
fn the_strict_policy_takes_no_other_ip() {
    let mut scenario = Scenario::with_policy(PeerPolicy::Strict);
    (1..99).for_each(|n| scenario.assert_foreign(FROM_OTHER_IP, n, OPUS));
    scenario.assert_accepted("192.0.2.7:9", 1);
    scenario.pass(60_000);
    (2..99).for_each(|n| scenario.assert_foreign(FROM_OTHER_IP, n, OPUS));
    assert_eq!(scenario.downlink_destination(), addr("192.0.2.7:9"));
}

#[test]
fn a_device_with_a_new_mqtt_address_is_at_home_there() {
    let mut scenario = Scenario::with_sequence(1);
    scenario.lose_connection();
    scenario.reconnect("198.51.100.9");
    scenario.pass(1_000);
    scenario.assert_held(FROM_OTHER_IP, 2..9);
    scenario.assert_taken(FROM_OTHER_IP, 9, 8);
    // Its older address is another IP now.
    scenario.pass(1_999);
    scenario.assert_held(FROM_MQTT_IP, 10..20);
    scenario.pass(1);
    scenario.assert_taken(FROM_MQTT_IP, 20, 11);
}

// ----- plausible packets ----------------------------------------------------------------------------------------------

#[test]
fn only_eight_similar_packets_in_a_row_from_one_source_are_a_run() {
    let other_port = "198.51.100.9:5001";
    let with = |at: usize, (from, sequence, payload): (&'static str, u32, &'static [u8])| {
        let mut packets: Vec<_> = (1..=8).map(|n| (FROM_OTHER_IP, n, OPUS)).collect();
        packets[at] = (from, sequence, payload);
        packets
    };
    for (what, packets) in [
        ("seven", with(7, (FROM_THIRD_IP, 8, OPUS))),
        ("one twice", with(7, (FROM_OTHER_IP, 7, OPUS))),
        ("one backwards", with(4, (FROM_OTHER_IP, 2, OPUS))),
        ("another Opus configuration", with(3, (FROM_OTHER_IP, 4, OTHER_CONFIG_OPUS))),
        ("stereo", with(3, (FROM_OTHER_IP, 4, b"\x0cabc"))),
        ("no Opus", with(6, (FROM_OTHER_IP, 7, NOISE))),
        ("one from another port", with(5, (other_port, 6, OPUS))),
        ("one too far ahead", with(7, (FROM_OTHER_IP, 513, OPUS))),
        ("a step of more than 64", with(7, (FROM_OTHER_IP, 72, OPUS))),
        ("all too far ahead", (513..600).map(|n| (FROM_OTHER_IP, n, OPUS)).collect()),
    ] {
        let mut scenario = Scenario::in_call();
        for (from, sequence, payload) in packets {
            let outcome = scenario.uplink_frames(from, sequence, payload);
            let refused = matches!(outcome, Err(DropReason::ForeignSource | DropReason::PathHeld));
            assert!(refused, "{what}: {sequence} {outcome:?}");
        }
        scenario.assert_accepted(FROM_MQTT_IP, 1);
        let stats = scenario.hang_up();
        assert_eq!((stats.up_packets, stats.lost), (1, 0), "{what}: the sequence did not advance");
    }
    // Gaps are allowed.
    let mut scenario = Scenario::in_call();
    scenario.assert_held(FROM_OTHER_IP, [400, 402, 440, 441, 442, 506, 511]);
    scenario.assert_taken(FROM_OTHER_IP, 512, 8);
    assert_eq!(scenario.hang_up().lost, 504);
}

#[test]
fn a_run_may_have_another_opus_configuration_than_the_known_source() {
    let mut scenario = Scenario::with_sequence(20);
    scenario.pass(2_000);
    for n in 21..28 {
        scenario.assert_outcome(FROM_OTHER_IP, n, OTHER_CONFIG_OPUS, DropReason::PathHeld);
    }
    assert_eq!(scenario.uplink_frames(FROM_OTHER_IP, 28, OTHER_CONFIG_OPUS).unwrap().0.len(), 8);
}

#[test]
fn a_packet_replayed_from_another_address_does_nothing() {
    let mut scenario = Scenario::with_sequence(50);
    scenario.pass(3_000);
    (1..=50).for_each(|n| scenario.assert_foreign(FROM_OTHER_IP, n, OPUS));
    (1..=50).for_each(|n| scenario.assert_foreign(FROM_OTHER_PORT, n, OPUS));
    assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
}

#[test]
fn how_far_a_packet_may_be_ahead_grows_with_time() {
    for (ms, ahead) in [(2_000, 712), (60_000, 6_512)] {
        let mut scenario = Scenario::with_sequence(20);
        scenario.pass(ms);
        scenario.assert_foreign(FROM_OTHER_IP, 20 + ahead + 1, OPUS);
        scenario.assert_held(FROM_OTHER_IP, [20 + ahead]);
        scenario.assert_outcome(FROM_MQTT_IP, 20 + ahead + 1, OPUS, DropReason::Jump);
        scenario.assert_accepted(FROM_MQTT_IP, 20 + ahead);
    }
}

// ----- candidates -----------------------------------------------------------------------------------------------------

/// 5,400 random packets a second, each from another port, and the device's from its new one.
#[test]
fn a_flood_from_many_addresses_does_not_keep_the_device_from_a_place() {
    let random =
        |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    for (device, flood_ip, silence_ms) in
        [(FROM_OTHER_IP, "203.0.113.1", 2_000), (FROM_OTHER_PORT, "192.0.2.7", 1_000)]
    {
        let mut in_time = 0;
        for seed in 0..4 {
            let mut scenario = Scenario::with_sequence(20);
            let taken_ms = (1..5 * 5_400).find_map(|n| {
                scenario.shell.now += Duration::from_micros(185);
                let sequence = 21 + n / 324;
                if n % 324 == 0 {
                    return scenario.uplink_frames(device, sequence, OPUS).is_ok().then_some(n * 185 / 1_000);
                }
                let payload = random(seed << 32 | u64::from(n)).to_le_bytes();
                let from = format!("{flood_ip}:{}", 5_000 + n);
                let outcome = scenario.uplink_frames(&from, sequence, &payload);
                assert!(outcome.is_err(), "{outcome:?}");
                None
            });
            let taken_ms = taken_ms.unwrap_or_else(|| panic!("{device} {seed}: not in 5 s"));
            in_time += u32::from(taken_ms <= silence_ms + 1_000);
        }
        assert!(in_time >= 3, "{device}: {in_time} of 4 in time");
    }
}

#[test]
fn four_candidates_at_most_of_which_the_mqtt_ip_has_one() {
    let mut scenario = Scenario::with_sequence(20);
    scenario.pass(3_000);
    for n in 1..=3 {
        scenario.assert_held(&format!("203.0.113.{n}:1"), [21]);
    }
    scenario.assert_held("203.0.113.1:1", [22]);
    scenario.assert_foreign("203.0.113.4:1", 23, OPUS);
    scenario.assert_held(FROM_OTHER_PORT, [21]);
    scenario.assert_foreign("192.0.2.7:4002", 23, OPUS);
    // Those of one packet lose their place first.
    scenario.pass(99);
    scenario.assert_foreign("203.0.113.4:1", 23, OPUS);
    scenario.pass(1);
    scenario.assert_held("203.0.113.4:1", [23]);
    scenario.assert_held("203.0.113.5:1", [23]);
    scenario.assert_foreign("203.0.113.6:1", 23, OPUS);
    scenario.assert_held("192.0.2.7:4002", [23]);
    scenario.pass(899);
    scenario.assert_held("203.0.113.1:1", [23]);
    for n in 7..=8 {
        scenario.assert_held(&format!("203.0.113.{n}:1"), [24]);
    }
    scenario.pass(999);
    scenario.assert_held("203.0.113.1:1", 24..28);
    scenario.assert_taken("203.0.113.1:1", 28, 8);

    // One of another Opus configuration loses it at once to one of the device's.
    let mut scenario = Scenario::with_sequence(20);
    scenario.pass(3_000);
    scenario.assert_outcome(FROM_OTHER_PORT, 21, OTHER_CONFIG_OPUS, DropReason::PathHeld);
    scenario.assert_foreign("192.0.2.7:4002", 21, OTHER_CONFIG_OPUS);
    scenario.assert_held("192.0.2.7:4002", 21..28);
    scenario.assert_taken("192.0.2.7:4002", 28, 8);
}

#[test]
fn at_most_32_packets_and_8_kib_are_kept() {
    let mut scenario = Scenario::with_sequence(1);
    let before = scenario.core.retained_bytes();
    scenario.assert_held(FROM_OTHER_IP, 2..102);
    assert_eq!(scenario.core.retained_bytes() - before, 32 * (audio::HEADER_LEN + OPUS.len()));
    scenario.pass(2_000);
    scenario.assert_taken(FROM_OTHER_IP, 102, 32);
    assert_eq!(scenario.core.retained_bytes(), before);
    let stats = scenario.hang_up();
    assert_eq!((stats.up_packets, stats.lost, stats.dropped), (33, 0, 69));

    let mut scenario = Scenario::with_sequence(20);
    let long = [OPUS, &[0; 1_000]].concat();
    for (from, n) in (21..60).map(|n| ([FROM_OTHER_IP, FROM_OTHER_PORT][n % 2], n as u32)) {
        scenario.assert_outcome(from, n, &long, DropReason::PathHeld);
        assert!(scenario.core.retained_bytes() - before <= 8 * 1024);
    }
    scenario.assert_accepted(FROM_MQTT_IP, 21);
    assert_eq!(scenario.core.retained_bytes(), before, "dropped when the known source is alive");
}

// ----- take-back ------------------------------------------------------------------------------------------------------

/// A call whose device reached 20, and that another IP has taken with 21 to 500.
fn moved_away() -> Scenario {
    let mut scenario = Scenario::with_sequence(20);
    scenario.pass(2_000);
    scenario.assert_held(FROM_OTHER_IP, 21..28);
    scenario.assert_taken(FROM_OTHER_IP, 28, 8);
    (29..=500).for_each(|n| scenario.assert_accepted(FROM_OTHER_IP, n));
    scenario
}

#[test]
fn the_device_takes_its_call_back_with_its_second_packet_in_a_row() {
    for first in [21, 30, 600] {
        let mut scenario = moved_away();
        scenario.assert_held(FROM_MQTT_IP, [first]);
        scenario.assert_accepted(FROM_OTHER_IP, 501);
        scenario.assert_taken(FROM_MQTT_IP, first + 2, 2);
        for n in first + 3..first + 30 {
            scenario.assert_accepted(FROM_MQTT_IP, n);
        }
        // The other IP is a stranger again.
        scenario.assert_held(FROM_OTHER_IP, [first + 31]);
        assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
    }
}

#[test]
fn only_two_plausible_packets_in_a_row_from_the_port_it_had_take_a_call_back() {
    let mut scenario = moved_away();
    scenario.assert_foreign(FROM_MQTT_IP, 20, OPUS);
    scenario.assert_held(FROM_MQTT_IP, [21]);
    scenario.assert_foreign(FROM_MQTT_IP, 22, NOISE);
    scenario.assert_held(FROM_MQTT_IP, [23]);
    scenario.assert_foreign(FROM_MQTT_IP, 24, OTHER_CONFIG_OPUS);
    scenario.assert_held(FROM_MQTT_IP, [25]);
    scenario.assert_held(FROM_MQTT_IP, [25]);
    for n in 501..520 {
        scenario.assert_held(FROM_OTHER_PORT, [n + 1]);
        scenario.assert_accepted(FROM_OTHER_IP, n);
    }
    scenario.assert_taken(FROM_MQTT_IP, 26, 2);
    // The MQTT peer has another address: the port it had there is nobody's.
    let mut scenario = moved_away();
    scenario.lose_connection();
    scenario.reconnect("192.0.2.8");
    for n in 501..520 {
        scenario.assert_held(FROM_MQTT_IP, [n + 1]);
        scenario.assert_accepted(FROM_OTHER_IP, n);
    }
}

// ----- the known source -----------------------------------------------------------------------------------------------

#[test]
fn a_forged_jump_from_the_known_source_does_not_stall_the_call() {
    for policy in [PeerPolicy::Adaptive, PeerPolicy::Strict] {
        for known in [1, 7, 20] {
            for jump in [65, 100, 512] {
                let mut scenario = Scenario::with_policy(policy);
                (1..=known).for_each(|n| scenario.assert_accepted(FROM_MQTT_IP, n));
                scenario.assert_accepted(FROM_MQTT_IP, known + jump);
                (known + 1..known + 600).for_each(|n| {
                    let outcome = scenario.uplink_from(FROM_MQTT_IP, n, OPUS);
                    assert!(outcome.is_ok(), "{known} {jump} {n}: {outcome:?}");
                });
                assert_eq!(scenario.hang_up().lost, 0);
            }
        }
        for run in [3, 7, 100] {
            let mut scenario = Scenario::with_policy(policy);
            (1..=20).for_each(|n| scenario.assert_accepted(FROM_MQTT_IP, n));
            for n in 0..run {
                scenario.assert_outcome(FROM_MQTT_IP, 70_000 + n, OPUS, DropReason::Jump);
                let random = [(n * 89 % 64) as u8 * 4, 1, 2, 3];
                assert!(scenario.uplink_from(FROM_MQTT_IP, 300 + n, &random).is_ok(), "it passes");
            }
            scenario.assert_accepted(FROM_MQTT_IP, 21);
        }
    }
}

/// Random packets that continue the sequence of the device, from its own address.
#[test]
fn forged_packets_of_other_configurations_do_not_stall_the_call() {
    let mut scenario = Scenario::with_sequence(20);
    let mut forged = 0_u32;
    for n in 21..200 {
        for ahead in [1, 3, 30, 63] {
            forged += 1;
            let config = 4 * (3 + forged * 89 % 61) as u8;
            let _ = scenario.uplink_frames(FROM_MQTT_IP, n + ahead, &[config, 1, 2, 3]);
        }
        scenario.pass(60);
        scenario.assert_accepted(FROM_MQTT_IP, n);
    }
}

#[test]
fn a_device_whose_packets_were_lost_goes_on_behind_the_gap() {
    for gap in [65, 500, 1_000, 6_000] {
        let mut scenario = Scenario::with_sequence(20);
        scenario.pass(u64::from(gap) * 20);
        for n in 20 + gap..20 + gap + 30 {
            scenario.pass(20);
            scenario.assert_accepted(FROM_MQTT_IP, n);
        }
        assert_eq!(scenario.hang_up().lost, u64::from(gap) - 1);
    }
}

#[test]
fn a_device_may_change_its_opus_configuration() {
    let mut scenario = Scenario::with_sequence(20);
    for n in 21..60 {
        let payload = if n % 20 < 10 { OPUS } else { OTHER_CONFIG_OPUS };
        assert!(scenario.uplink_from(FROM_MQTT_IP, n, payload).is_ok(), "{n}");
    }
    let stats = scenario.hang_up();
    assert_eq!((stats.up_packets, stats.lost), (59, 0));
}

/// One of 80 forged packets looks like the device's.
#[test]
fn forged_packets_that_look_like_the_devices_cost_it_five_packets() {
    for forged in [&[84][..], &[84, 148], &[84, 148, 212, 276, 340, 404, 468, 532, 596, 660], &[22, 86, 90]] {
        let mut scenario = Scenario::with_sequence(20);
        forged.iter().for_each(|n| scenario.assert_accepted(FROM_MQTT_IP, *n));
        let heard: Vec<_> = (21..200)
            .filter(|n| {
                scenario.pass(60);
                if n % 5 == 0 {
                    let _ = scenario.uplink_frames(FROM_MQTT_IP, n + 40, OPUS);
                }
                scenario.uplink_from(FROM_MQTT_IP, *n, OPUS).is_ok()
            })
            .collect();
        assert!(heard.len() >= 171, "{forged:?}: {heard:?}");
        assert!(heard[0] <= 31, "{forged:?}: {heard:?}");
    }
}

/// A device that says nothing for a while, as while it speaks, meets what was forged meanwhile.
#[test]
fn a_device_that_was_silent_is_heard_whatever_was_forged_meanwhile() {
    let mut scenario = Scenario::with_sequence(20);
    for n in 1..200 {
        scenario.pass(1_000);
        let _ = scenario.uplink_frames(FROM_MQTT_IP, 20 + n * 50, OPUS);
    }
    let heard = (21..100).position(|n| {
        scenario.pass(60);
        scenario.uplink_from(FROM_MQTT_IP, n, OPUS).is_ok()
    });
    assert_eq!(heard, Some(5));
}

#[test]
fn an_attacker_who_was_first_at_the_mqtt_ip_does_not_keep_the_call() {
    // Random packets: as many for each of the device's, and how far ahead of it.
    for (packets, ahead) in [(1, 40), (1, 1), (2, 1), (10, 1), (10, 30)] {
        let mut scenario = Scenario::in_call();
        let (mut taken, mut forged) = (None, 0_u32);
        for step in 0..40_u32 {
            for n in 0..packets {
                forged += 1;
                let random = [4 * (forged * 23 % 64) as u8, 1, 2, 3];
                let _ = scenario.uplink_frames(FROM_OTHER_PORT, 1 + step + ahead + n, &random);
            }
            scenario.pass(60);
            if scenario.uplink_frames(FROM_MQTT_IP, 1 + step, OPUS).is_ok() && taken.is_none() {
                taken = Some(step * 60);
            }
        }
        assert!(taken.is_some_and(|ms| ms < 2_000), "{packets} {ahead}: {taken:?}");
        assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
    }
}

// ----- downlink -------------------------------------------------------------------------------------------------------

#[test]
fn audio_for_another_ip_stops_when_nothing_comes_from_it() {
    let at_other_ip = || {
        let mut scenario = Scenario::in_call();
        scenario.assert_held(FROM_OTHER_IP, 1..8);
        scenario.assert_taken(FROM_OTHER_IP, 8, 8);
        scenario
    };
    let listen_stop = LISTEN.replace("start", "stop");
    for (what, limit, texts) in [
        ("it has not listened", 120_000, &[][..]),
        ("it listens", 10_000, &[LISTEN]),
        ("it has stopped listening", 120_000, &[LISTEN, &listen_stop]),
        ("it speaks", 120_000, &[LISTEN, TTS_START]),
        ("it listens again", 10_000, &[LISTEN, TTS_START, TTS_STOP, LISTEN]),
    ] {
        let mut scenario = at_other_ip();
        for text in texts {
            if text.contains("tts") {
                scenario.server_sends(text)
            } else {
                scenario.device_sends(text)
            };
        }
        scenario.pass(limit - 1);
        assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP), "{what}");
        scenario.pass(1);
        let outcome = scenario.downlink(&frame_with_header(1, OPUS));
        assert_eq!(outcome, Err(DropReason::PeerSilent), "{what}");
        scenario.assert_accepted(FROM_OTHER_IP, 9);
        assert_eq!(scenario.downlink_destination(), addr(FROM_OTHER_IP), "{what}");
        assert_eq!(scenario.hang_up().dropped, 1);
    }
    // A replay does not prolong it.
    let mut scenario = at_other_ip();
    scenario.device_sends(LISTEN);
    scenario.pass(10_000);
    scenario.assert_outcome(FROM_OTHER_IP, 8, OPUS, DropReason::Duplicate);
    assert_eq!(scenario.downlink(&frame_with_header(1, OPUS)), Err(DropReason::PeerSilent));
    // The MQTT peer's own address is no victim of somebody else.
    let mut scenario = Scenario::with_sequence(1);
    scenario.device_sends(LISTEN);
    scenario.pass(300_000);
    assert_eq!(scenario.downlink_destination(), addr(FROM_MQTT_IP));
}

// ----- one call, and packets that are never the device's --------------------------------------------------------------

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
        scenario.pass(3_000);
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
        scenario.assert_held(FROM_OTHER_IP, 1..8);
        for (from, sequence) in
            [(FROM_MQTT_IP, 8), (FROM_OTHER_IP, 8), (FROM_OTHER_IP, 9), (FROM_MQTT_IP, 70_001)]
        {
            let bytes = with_flags(&datagram(1, sequence, 7, OPUS), flags);
            assert_eq!(scenario.raw_uplink(from, &bytes), Err(DropReason::DatagramFlags), "{flags} {from}");
        }
        // Neither the sequence nor the validation of the other address was affected.
        scenario.assert_taken(FROM_OTHER_IP, 8, 8);
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
