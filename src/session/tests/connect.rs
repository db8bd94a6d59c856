//! The device's connection: CONNECT and its checks, answers, DISCONNECT and protocol errors.

use super::*;
use crate::config::{MacDenial, Secret};
use crate::proto::identity;
use crate::proto::mqtt::{self, Connect, ConnectReturnCode, Malformed};

const KEY: &str = "Signature-Key-1";
const USER: &str = "eyJpcCI6IjEuMi4zLjQifQ==";

fn refuse_actions(code: ConnectReturnCode, why: &'static str) -> [Action; 2] {
    [Action::RefuseConnect(code), Action::CloseDevice(CloseReason::Refused(code, why))]
}

fn login<'a>(client_id: &'a str, user_name: Option<&'a str>, password: Option<&'a str>) -> Packet<'a> {
    let Packet::Connect(connect) = connect_packet(client_id, 60) else { unreachable!() };
    let password = password.map(str::as_bytes);
    Packet::Connect(Connect { user_name, password, ..connect })
}

#[test]
fn without_a_key_every_well_formed_id_is_accepted() {
    for id in [ID, "GID@@@aa_bb_cc_dd_ee_ff", "g@@@AA_BB_CC_DD_EE_FF@@@x"] {
        let mut scenario = Scenario::new();
        let welcome =
            vec![Action::Admit, Action::AcceptConnect, Action::Log(LogEvent::Connected { resumed: false })];
        assert_eq!(scenario.packet(connect_packet(id, 60)), welcome, "{id}");
        assert!(scenario.core.is_online() && !scenario.core.awaits_connect());
        assert_eq!(scenario.core.client_id().unwrap().text(), id);
    }
}

#[test]
fn malformed_client_ids_are_refused_with_code_2() {
    for id in ["", "x", "GID@@@nonsense@@@x", "a@@@b@@@c@@@d", "GID@@@aa_bb_cc_dd_ee_ff@@@"] {
        let mut scenario = Scenario::new();
        let expected =
            refuse_actions(ConnectReturnCode::IdentifierRejected, "client id is not group@@@mac@@@uuid");
        assert_eq!(scenario.packet(connect_packet(id, 60)), expected, "{id}");
        assert!(scenario.core.is_closed() && scenario.core.is_finished() && !scenario.core.accepts_packets());
    }
}

#[test]
fn with_a_key_only_a_valid_signature_is_accepted() {
    use ConnectReturnCode::{BadCredentials, NotAuthorised};
    let good = identity::device_password(KEY.as_bytes(), ID, USER);
    let other = identity::device_password(b"another key", ID, USER);
    let ip_only = identity::device_password(KEY.as_bytes(), ID, "MS4yLjMuNA==");
    let no_base64 = identity::device_password(KEY.as_bytes(), ID, "{}");
    let legacy = "GID@@@aa_bb_cc_dd_ee_ff";
    let signed_legacy = identity::device_password(KEY.as_bytes(), legacy, USER);
    let missing = "user name or password missing";
    let mismatch = "password does not match MQTT_SIGNATURE_KEY";
    let no_object = "user name is not base64 of a JSON object";
    let two_parts = "two-part client ids are not allowed (mqtt.allow_legacy_ids)";
    for (id, user, password, refusal) in [
        (ID, Some(USER), Some(&*good), None),
        (ID, None, None, Some((BadCredentials, missing))),
        (ID, Some(USER), None, Some((BadCredentials, missing))),
        (ID, Some(USER), Some(""), Some((BadCredentials, mismatch))),
        (ID, Some(USER), Some(&*other), Some((BadCredentials, mismatch))),
        (ID, Some("MS4yLjMuNA=="), Some(&*ip_only), Some((BadCredentials, no_object))),
        (ID, Some("{}"), Some(&*no_base64), Some((BadCredentials, no_object))),
        (legacy, None, None, Some((NotAuthorised, two_parts))),
        (legacy, Some(USER), Some(&*signed_legacy), Some((NotAuthorised, two_parts))),
    ] {
        let mut scenario = Scenario::new();
        scenario.shell.config.mqtt.signature_key = Secret::new(KEY);
        let actions = scenario.packet(login(id, user, password));
        match refusal {
            None => assert_eq!(actions[..2], [Action::Admit, Action::AcceptConnect], "{user:?} {password:?}"),
            Some((code, why)) => assert_eq!(actions, refuse_actions(code, why), "{user:?} {password:?}"),
        }
    }
}

#[test]
fn with_a_key_two_part_ids_are_accepted_only_when_allowed() {
    let mut scenario = Scenario::new();
    scenario.shell.config.mqtt.signature_key = Secret::new(KEY);
    scenario.shell.config.mqtt.allow_legacy_ids = true;
    assert_eq!(
        scenario.packet(connect_packet("GID@@@aa_bb_cc_dd_ee_ff", 60))[..2],
        [Action::Admit, Action::AcceptConnect]
    );
}

fn signed<'a>(password: &'a str) -> Packet<'a> {
    login(ID, Some(USER), Some(password))
}

#[test]
fn a_previous_key_is_accepted_and_told_from_the_current_one() {
    let secret = |key: &str| Secret::new(key).unwrap();
    let password = |key: &str| identity::device_password(key.as_bytes(), ID, USER);
    let mut scenario = Scenario::new();
    scenario.shell.config.mqtt.signature_key = Secret::new(KEY);
    scenario.shell.config.mqtt.previous_signature_keys = vec![secret("old"), secret("older")];
    let current = Some(secret(KEY).fingerprint());
    for (key, expected) in [
        (KEY, Some(LoginKey::Current)),
        ("old", Some(LoginKey::Previous)),
        ("older", Some(LoginKey::Previous)),
        ("x", None),
    ] {
        scenario.core = Core::new(device_ip(), scenario.shell.now);
        scenario.packet(signed(&password(key)));
        assert_eq!(
            (scenario.core.is_online(), scenario.core.is_proven()),
            (expected.is_some(), expected.is_some()),
            "{key}"
        );
        assert_eq!(scenario.core.login_key(current), expected.unwrap_or(LoginKey::None), "{key}");
    }
    // The key is replaced while the device is connected, and replaced back.
    scenario.core = Core::new(device_ip(), scenario.shell.now);
    scenario.packet(signed(&password(KEY)));
    assert_eq!(scenario.core.login_key(Some(secret("new").fingerprint())), LoginKey::Previous);
    assert_eq!(scenario.core.login_key(current), LoginKey::Current);
    // Devices that connected before there was a key have proved nothing.
    let scenario = Scenario::online();
    assert_eq!((scenario.core.login_key(current), scenario.core.is_proven()), (LoginKey::None, false));
}

#[test]
fn the_lists_of_macs_are_asked_after_the_signature_and_denied_wins() {
    let good = identity::device_password(KEY.as_bytes(), ID, USER);
    let not_allowed = Some(MacDenial::NotAllowed);
    for (allowed, denied, refusal) in [
        (&[][..], &[][..], None),
        (&["aa:bb"], &["aa:cc"], None),
        (&["aa:cc"], &[], not_allowed),
        (&[], &["AA-BB-CC-DD-EE-FF"], Some(MacDenial::Denied)),
        (&["aa:bb:cc:dd:ee:ff"], &["aa"], Some(MacDenial::Denied)),
    ] {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>().into();
        let mut scenario = Scenario::new();
        let mqtt = &mut scenario.shell.config.mqtt;
        (mqtt.allowed_macs, mqtt.denied_macs) = (list(allowed), list(denied));
        mqtt.signature_key = Secret::new(KEY);
        let actions = scenario.packet(signed("wrong"));
        assert_eq!(actions[0], Action::RefuseConnect(ConnectReturnCode::BadCredentials));
        scenario.core = Core::new(device_ip(), scenario.shell.now);
        let actions = scenario.packet(signed(&good));
        match refusal {
            None => assert!(scenario.core.is_online()),
            Some(denial) => {
                let [refuse, close] = refuse_actions(ConnectReturnCode::NotAuthorised, denial.reason());
                assert_eq!(actions, [Action::Count(Counter::MacDenied(denial)), refuse, close]);
            }
        }
    }
}

#[test]
fn a_device_that_an_operator_denies_is_refused_until_it_is_allowed_again() {
    let good = identity::device_password(KEY.as_bytes(), ID, USER);
    let mut scenario = Scenario::new();
    scenario.shell.config.mqtt.signature_key = Secret::new(KEY);
    let mac = "aa:bb:cc:dd:ee:ff".parse().unwrap();
    scenario.shell.config.mqtt.denied_by_operator.insert(mac);
    let actions = scenario.packet(signed(&good));
    assert_eq!(actions[0], Action::Count(Counter::MacDenied(MacDenial::Operator)));
    assert_eq!(actions[1], Action::RefuseConnect(ConnectReturnCode::NotAuthorised));
    scenario.shell.config.mqtt.denied_by_operator.remove(&mac);
    scenario.core = Core::new(device_ip(), scenario.shell.now);
    scenario.packet(signed(&good));
    assert!(scenario.core.is_online());
}

#[test]
fn a_reload_that_denies_a_device_ends_its_call_and_connection() {
    for away in [false, true] {
        let mut scenario = Scenario::in_call();
        assert_eq!(scenario.drive(Core::on_reload), []);
        if away {
            scenario.lose_connection();
        }
        scenario.shell.config.mqtt.denied_macs = vec!["aa:bb:cc".parse().unwrap()].into();
        let actions = scenario.drive(Core::on_reload);
        assert_eq!(actions[0], Action::Count(Counter::MacDenied(MacDenial::Denied)));
        let ended = |action: &Action| matches!(action, Action::CallEnded(summary) if summary.reason == EndReason::Operator);
        assert!(actions.iter().any(ended), "{actions:?}");
        let goodbye = actions
            .iter()
            .position(|action| matches!(action, Action::Publish(text) if text.contains("goodbye")));
        let close = actions.iter().position(|action| matches!(action, Action::CloseDevice(_))).unwrap();
        if !away {
            assert!(goodbye.unwrap() < close, "{actions:?}");
            assert_eq!(actions[close], Action::CloseDevice(CloseReason::MacDenied(MacDenial::Denied)));
        }
        assert!(scenario.core.is_finished());
        assert_eq!(scenario.drive(Core::on_reload), [], "once");
    }
}

#[test]
fn a_device_that_proved_nothing_gets_no_signed_token_while_there_is_a_key() {
    let good = identity::device_password(KEY.as_bytes(), ID, USER);
    let legacy = connect_packet("GID@@@aa_bb_cc_dd_ee_ff", 60);
    let uuid = Some("11111111-2222-4333-8444-555555555555");
    for (key, connect, expected) in [
        (None, legacy, (true, Some("default-client-id"))),
        (None, connect_packet(ID, 60), (true, uuid)),
        (Secret::new(KEY), legacy, (false, None)),
        (Secret::new(KEY), signed(&good), (true, uuid)),
    ] {
        let mut scenario = Scenario::new();
        scenario.shell.config.mqtt.signature_key = key;
        scenario.shell.config.mqtt.allow_legacy_ids = true;
        scenario.shell.config.websocket.secret = Secret::new("secret");
        scenario.packet(connect);
        let actions = scenario.device_sends(HELLO);
        let Some(Action::Dial(request)) = actions.last() else { panic!("{actions:?}") };
        assert_eq!((request.sign_token, request.client_id.as_deref()), expected, "{connect:?}");
    }
    // One that connected before there was a key has proved nothing either.
    let mut scenario = Scenario::online();
    scenario.shell.config.mqtt.signature_key = Secret::new(KEY);
    let actions = scenario.device_sends(HELLO);
    assert!(matches!(actions.last(), Some(Action::Dial(request)) if !request.sign_token), "{actions:?}");
}

#[test]
fn a_full_gateway_refuses_with_code_3() {
    let mut scenario = Scenario::new();
    let mut out = Vec::new();
    let mut cx = scenario.shell.context(&mut out);
    scenario.core.on_packet(connect_packet(ID, 60), &mut cx);
    assert!(!scenario.core.accepts_packets(), "nothing is served before the shell has found a place");
    scenario.core.on_packet(Packet::PingReq, &mut cx);
    scenario.core.on_admission(Admission::ConnectionLimit, &mut cx);
    let [refuse, close] = refuse_actions(ConnectReturnCode::ServerUnavailable, "max_connections is reached");
    assert_eq!(out, [Action::Admit, refuse, close]);
}

#[test]
fn a_connection_without_connect_is_closed_after_ten_seconds() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.core.max_packet_bytes(&scenario.shell.config), 4096);
    assert_eq!(scenario.wait(9_999), []);
    assert_eq!(scenario.wait(1), [Action::CloseDevice(CloseReason::ConnectTimeout)]);
    assert_eq!(scenario.connect(), [], "what comes later is not served");
    assert_eq!(scenario.core.deadline(), None);
}

#[test]
fn every_packet_is_acknowledged() {
    let mut scenario = Scenario::online();
    assert_eq!(scenario.core.max_packet_bytes(&scenario.shell.config), 65_536);
    let mut bytes = Vec::new();
    mqtt::encode::subscribe(&mut bytes, 7, &[("a", 0), ("b/+", 1), ("#", 2)]);
    let (packet, _) = mqtt::decode(&bytes, 4096).unwrap().unwrap();
    assert_eq!(scenario.packet(packet), [Action::SubAck { packet_id: 7, filters: 3 }]);
    bytes.clear();
    mqtt::encode::unsubscribe(&mut bytes, 8, &["a"]);
    let (packet, _) = mqtt::decode(&bytes, 4096).unwrap().unwrap();
    assert_eq!(scenario.packet(packet), [Action::UnsubAck(8)]);
    assert_eq!(scenario.packet(Packet::PingReq), [Action::PingResp]);
    assert_eq!(scenario.packet(Packet::Disconnect), [Action::CloseDevice(CloseReason::Disconnected)]);
    assert_eq!(scenario.packet(Packet::PingReq), []);
}

#[test]
fn protocol_errors_close_the_connection_once() {
    let mut scenario = Scenario::new();
    let close = Action::CloseDevice(CloseReason::UnexpectedPacket("a packet before CONNECT"));
    assert_eq!(scenario.packet(Packet::PingReq), [close]);
    assert_eq!(scenario.connect(), [], "a packet behind the close is never served");

    let mut scenario = Scenario::new();
    let close = Action::CloseDevice(CloseReason::UnexpectedPacket("the first byte is not that of a CONNECT"));
    assert_eq!(scenario.drive(|core, cx| core.on_invalid_first_byte(0xc0, cx)), [close]);

    let mut scenario = Scenario::new();
    let close = Action::CloseDevice(CloseReason::UnexpectedPacket("a TLS handshake on the port without TLS"));
    assert_eq!(scenario.drive(|core, cx| core.on_invalid_first_byte(22, cx)), [close]);

    let mut scenario = Scenario::online();
    assert_eq!(scenario.connect(), [Action::CloseDevice(CloseReason::UnexpectedPacket("a second CONNECT"))]);
    assert_eq!(scenario.drive(|core, cx| core.on_malformed_packet(Malformed::Utf8, cx)), []);

    let mut scenario = Scenario::online();
    let close = Action::CloseDevice(CloseReason::Protocol(Malformed::QosNotSupported(1)));
    assert_eq!(
        scenario.drive(|core, cx| core.on_malformed_packet(Malformed::QosNotSupported(1), cx)),
        [close]
    );
}

#[test]
fn an_unsupported_protocol_level_is_refused_with_code_1() {
    let mut scenario = Scenario::new();
    let expected = refuse_actions(ConnectReturnCode::UnsupportedLevel, "protocol level not supported");
    assert_eq!(
        scenario.drive(|core, cx| core.on_malformed_packet(Malformed::UnsupportedLevel(5), cx)),
        expected
    );
}

#[test]
fn keep_alive_is_one_and_a_half_times_and_counts_inbound_bytes_only() {
    let mut scenario = Scenario::new();
    scenario.packet(connect_packet(ID, 10));
    assert_eq!(scenario.wait(14_000), []);
    scenario.core.refresh_keep_alive(scenario.shell.now);
    assert_eq!(scenario.wait(14_999), []);
    assert_eq!(scenario.wait(1), [Action::CloseDevice(CloseReason::KeepAlive)]);

    let mut scenario = Scenario::new();
    scenario.packet(connect_packet(ID, 10));
    scenario.start_call();
    for _ in 0..14 {
        scenario.wait(1_000);
        scenario.server_sends(r#"{"type":"llm"}"#);
    }
    let away = [
        Action::Log(LogEvent::ConnectionLost { kept: Duration::from_secs(35), why: CloseReason::KeepAlive }),
        Action::CloseDevice(CloseReason::KeepAlive),
    ];
    assert_eq!(scenario.wait(1_000), away, "what the device is sent does not keep it alive");

    let mut scenario = Scenario::new();
    scenario.packet(connect_packet(ID, 0));
    assert_eq!(scenario.core.deadline(), None, "0 is no limit");
}

#[test]
fn a_newer_connection_replaces_one_without_a_call() {
    let mut scenario = Scenario::online();
    assert_eq!(scenario.drive(Core::on_replaced), [Action::CloseDevice(CloseReason::TakenOver)]);
    assert_eq!(scenario.lose_connection(), []);
    assert!(scenario.core.is_finished());
}

#[test]
fn bad_payloads_never_close_the_connection() {
    let mut scenario = Scenario::online();
    for payload in [&b""[..], b"{", b"[]", b"42", b"\xff\xfe", br#"{"type":"listen","state":"detect""#] {
        assert_eq!(
            scenario.packet(publish_packet(payload)),
            [Action::Count(Counter::BadDeviceText)],
            "{payload:?}"
        );
    }
    assert_eq!(
        scenario.device_sends("{}"),
        [publish(r#"{"type":"goodbye"}"#)],
        "an unknown type is a message"
    );
}

#[test]
fn a_session_marked_closed_ignores_everything() {
    let mut scenario = Scenario::new();
    assert!(scenario.core.accepts_packets() && !scenario.core.is_closed());
    scenario.core.mark_closed();
    assert!(scenario.core.is_closed() && scenario.core.is_finished() && !scenario.core.accepts_packets());
    assert_eq!((scenario.core.deadline(), scenario.wait(20_000)), (None, vec![]));
}
