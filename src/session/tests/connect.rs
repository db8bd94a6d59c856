//! CONNECT to DISCONNECT: who is let in, what is answered, and what ends a connection.

use super::*;
use crate::config::Secret;
use crate::proto::identity;
use crate::proto::mqtt::{self, ConnectCode, Malformed};

const KEY: &str = "Signature-Key-1";
const USER: &str = "eyJpcCI6IjEuMi4zLjQifQ==";

fn refused(code: ConnectCode, why: &'static str) -> [Action; 2] {
    [Action::Refuse(code), Action::Close(Reason::Refused(code, why))]
}

fn login<'a>(client_id: &'a str, user_name: Option<&'a str>, password: Option<&'a str>) -> Packet<'a> {
    let Packet::Connect(connect) = connect(client_id, 60) else { unreachable!() };
    let password = password.map(str::as_bytes);
    Packet::Connect(Connect { user_name, password, ..connect })
}

#[test]
fn without_a_key_every_well_formed_id_is_let_in() {
    for id in [ID, "GID@@@aa_bb_cc_dd_ee_ff", "g@@@AA_BB_CC_DD_EE_FF@@@x"] {
        let mut story = Story::new();
        let welcome = vec![Action::Admit, Action::Welcome, Action::Note(Note::Connected { resumed: false })];
        assert_eq!(story.packet(connect(id, 60)), welcome, "{id}");
        assert!(story.core.is_online() && !story.core.awaits_connect());
        assert_eq!(story.core.client_id().unwrap().as_str(), id);
    }
}

#[test]
fn ids_of_another_shape_are_refused_with_2() {
    for id in ["", "x", "GID@@@nonsense@@@x", "a@@@b@@@c@@@d", "GID@@@aa_bb_cc_dd_ee_ff@@@"] {
        let mut story = Story::new();
        let expected = refused(ConnectCode::ClientId, "client id is not group@@@mac@@@uuid");
        assert_eq!(story.packet(connect(id, 60)), expected, "{id}");
        assert!(story.core.is_gone() && story.core.is_over() && !story.core.is_listening());
    }
}

#[test]
fn with_a_key_nothing_gets_in_without_a_good_signature() {
    use ConnectCode::{Credentials, NotAuthorised};
    let good = identity::password(KEY.as_bytes(), ID, USER);
    let other = identity::password(b"another key", ID, USER);
    let ip_only = identity::password(KEY.as_bytes(), ID, "MS4yLjMuNA==");
    let no_base64 = identity::password(KEY.as_bytes(), ID, "{}");
    let legacy = "GID@@@aa_bb_cc_dd_ee_ff";
    let signed_legacy = identity::password(KEY.as_bytes(), legacy, USER);
    let missing = "user name or password missing";
    let mismatch = "password does not match MQTT_SIGNATURE_KEY";
    let no_object = "user name is not base64 of a JSON object";
    let two_parts = "two-part client ids are not allowed (mqtt.allow_legacy_ids)";
    for (id, user, password, refusal) in [
        (ID, Some(USER), Some(&*good), None),
        (ID, None, None, Some((Credentials, missing))),
        (ID, Some(USER), None, Some((Credentials, missing))),
        (ID, Some(USER), Some(""), Some((Credentials, mismatch))),
        (ID, Some(USER), Some(&*other), Some((Credentials, mismatch))),
        (ID, Some("MS4yLjMuNA=="), Some(&*ip_only), Some((Credentials, no_object))),
        (ID, Some("{}"), Some(&*no_base64), Some((Credentials, no_object))),
        (legacy, None, None, Some((NotAuthorised, two_parts))),
        (legacy, Some(USER), Some(&*signed_legacy), Some((NotAuthorised, two_parts))),
    ] {
        let mut story = Story::new();
        story.config.mqtt.signature_key = Secret::new(KEY);
        let actions = story.packet(login(id, user, password));
        match refusal {
            None => assert_eq!(actions[..2], [Action::Admit, Action::Welcome], "{user:?} {password:?}"),
            Some((code, why)) => assert_eq!(actions, refused(code, why), "{user:?} {password:?}"),
        }
    }
}

#[test]
fn two_part_ids_get_in_with_a_key_only_when_that_is_allowed() {
    let mut story = Story::new();
    story.config.mqtt.signature_key = Secret::new(KEY);
    story.config.mqtt.allow_legacy_ids = true;
    assert_eq!(story.packet(connect("GID@@@aa_bb_cc_dd_ee_ff", 60))[..2], [Action::Admit, Action::Welcome]);
}

#[test]
fn a_full_house_says_so() {
    let mut story = Story::new();
    let mut out = Vec::new();
    let mut cx = Cx {
        now: story.now,
        config: &story.config,
        servers: &mut story.servers,
        ids: &story.ids,
        out: &mut out,
    };
    story.core.packet(connect(ID, 60), &mut cx);
    assert!(!story.core.is_listening(), "nothing is served before the shell has found a place");
    story.core.packet(Packet::PingReq, &mut cx);
    story.core.admitted(Admission::Full, &mut cx);
    let [refuse, close] = refused(ConnectCode::Unavailable, "max_connections is reached");
    assert_eq!(out, [Action::Admit, refuse, close]);
}

#[test]
fn connect_comes_within_ten_seconds_or_never() {
    let mut story = Story::new();
    assert_eq!(story.core.max_packet(&story.config), 4096);
    assert_eq!(story.wait(9_999), []);
    assert_eq!(story.wait(1), [Action::Close(Reason::ConnectTimeout)]);
    assert_eq!(story.connect(), [], "what comes later is not served");
    assert_eq!(story.core.deadline(), None);
}

#[test]
fn every_packet_has_its_answer() {
    let mut story = Story::online();
    assert_eq!(story.core.max_packet(&story.config), 65_536);
    let mut bytes = Vec::new();
    mqtt::encode::subscribe(&mut bytes, 7, &[("a", 0), ("b/+", 1), ("#", 2)]);
    let (packet, _) = mqtt::decode(&bytes, 4096).unwrap().unwrap();
    assert_eq!(story.packet(packet), [Action::SubAck { packet_id: 7, filters: 3 }]);
    bytes.clear();
    mqtt::encode::unsubscribe(&mut bytes, 8, &["a"]);
    let (packet, _) = mqtt::decode(&bytes, 4096).unwrap().unwrap();
    assert_eq!(story.packet(packet), [Action::UnsubAck(8)]);
    assert_eq!(story.packet(Packet::PingReq), [Action::PingResp]);
    assert_eq!(story.packet(Packet::Disconnect), [Action::Close(Reason::Left)]);
    assert_eq!(story.packet(Packet::PingReq), []);
}

#[test]
fn what_breaks_the_protocol_closes_once() {
    let mut story = Story::new();
    let close = Action::Close(Reason::OutOfPlace("a packet before CONNECT"));
    assert_eq!(story.packet(Packet::PingReq), [close]);
    assert_eq!(story.connect(), [], "a packet behind the close is never served");

    let mut story = Story::new();
    let close = Action::Close(Reason::OutOfPlace("a first byte that is not CONNECT's"));
    assert_eq!(story.drive(|core, cx| core.no_connect(0xc0, cx)), [close]);

    let mut story = Story::new();
    let close = Action::Close(Reason::OutOfPlace("a TLS handshake on the port without TLS"));
    assert_eq!(story.drive(|core, cx| core.no_connect(22, cx)), [close]);

    let mut story = Story::online();
    assert_eq!(story.connect(), [Action::Close(Reason::OutOfPlace("a second CONNECT"))]);
    assert_eq!(story.drive(|core, cx| core.malformed(Malformed::Utf8, cx)), []);

    let mut story = Story::online();
    let close = Action::Close(Reason::Protocol(Malformed::QosNotSupported(1)));
    assert_eq!(story.drive(|core, cx| core.malformed(Malformed::QosNotSupported(1), cx)), [close]);
}

#[test]
fn another_protocol_level_is_answered_with_1() {
    let mut story = Story::new();
    let expected = refused(ConnectCode::UnsupportedLevel, "protocol level not supported");
    assert_eq!(story.drive(|core, cx| core.malformed(Malformed::UnsupportedLevel(5), cx)), expected);
}

#[test]
fn keep_alive_is_one_and_a_half_times_and_counts_inbound_bytes_only() {
    let mut story = Story::new();
    story.packet(connect(ID, 10));
    assert_eq!(story.wait(14_000), []);
    story.core.heard(story.now);
    assert_eq!(story.wait(14_999), []);
    assert_eq!(story.wait(1), [Action::Close(Reason::KeepAlive)]);

    let mut story = Story::new();
    story.packet(connect(ID, 10));
    story.call();
    for _ in 0..14 {
        story.wait(1_000);
        story.server(r#"{"type":"llm"}"#);
    }
    let away = [Action::Note(Note::Away(Duration::from_secs(20))), Action::Close(Reason::KeepAlive)];
    assert_eq!(story.wait(1_000), away, "what the device is sent does not keep it alive");

    let mut story = Story::new();
    story.packet(connect(ID, 0));
    assert_eq!(story.core.deadline(), None, "0 is no limit");
}

#[test]
fn a_newer_connection_replaces_one_without_a_call() {
    let mut story = Story::online();
    assert_eq!(story.drive(Core::replaced), [Action::Close(Reason::TakenOver)]);
    assert_eq!(story.lost(), []);
    assert!(story.core.is_over());
}

#[test]
fn bad_payloads_never_cost_a_device_its_connection() {
    let mut story = Story::online();
    for payload in [&b""[..], b"{", b"[]", b"42", b"\xff\xfe", br#"{"type":"listen","state":"detect""#] {
        assert_eq!(
            story.packet(publication(payload)),
            [Action::Count(Counter::BadDeviceText)],
            "{payload:?}"
        );
    }
    assert_eq!(story.device("{}"), [publish(r#"{"type":"goodbye"}"#)], "an unknown type is a message");
}

#[test]
fn a_session_that_is_retired_decides_nothing_more() {
    let mut story = Story::new();
    assert!(story.core.is_listening() && !story.core.is_gone());
    story.core.retire();
    assert!(story.core.is_gone() && story.core.is_over() && !story.core.is_listening());
    assert_eq!((story.core.deadline(), story.wait(20_000)), (None, vec![]));
}
