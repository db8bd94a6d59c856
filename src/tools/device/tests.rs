use super::*;
use crate::proto::audio;
use crate::proto::mqtt::ConnectCode;
use crate::tools::fake_gateway::{Fake, Script};

const WAIT: Duration = Duration::from_secs(10);

fn login() -> Login {
    Login::new("02:00:00:00:00:01".parse().unwrap(), Some(b"key"))
}

#[test]
fn a_call() {
    let gateway = Fake::start(Script::default());
    let mut device = Device::connect(gateway.addr, &login(), WAIT).unwrap();
    let mut call = device.call().unwrap();
    assert_eq!(call.grant.session_id, "the-session");
    for i in 1..=5 {
        call.send(i, &test_audio::packet(i, 0)).unwrap();
        let audio = call.receive(WAIT).unwrap().unwrap();
        assert_eq!((audio.header.sequence, audio.header.timestamp), (i, i));
        assert_eq!(test_audio::parse(&audio.payload), Some((i, 0)));
    }
    assert_eq!(call.counts, Counts { sent: 5, received: 5, ..Counts::default() });
    let kept = device.receive_text(WAIT).unwrap().unwrap();
    assert!(kept.contains("mcp"), "what came before the hello: {kept}");
    device.ping().unwrap();
    assert_eq!(device.receive(WAIT).unwrap(), Some(Incoming::Pong));
    assert_eq!(device.receive(Duration::ZERO).unwrap(), None);
    device.goodbye(&call).unwrap();
    device.disconnect().unwrap();
    gateway.join();
}

#[test]
fn gaps_and_stale_packets_are_counted() {
    let grant = Grant {
        session_id: "s".into(),
        server: "127.0.0.1".into(),
        port: 9,
        key: [1; 16],
        nonce: audio::nonce(5),
        audio_params: None,
    };
    let mut call = Call::open(grant).unwrap();
    let packets: Vec<_> = (0..9).map(|_| call.seal(0, b"x")).collect();
    for i in [0, 3, 2, 3, 8] {
        call.accept(&packets[i]);
    }
    call.accept(&packets[0][..10]);
    assert_eq!(call.counts, Counts { sent: 0, received: 3, lost: 6, stale: 2, bad: 1 });
}

#[test]
fn a_failure_names_the_step_and_what_was_seen() {
    let refused = Script { code: ConnectCode::Credentials, ..Script::default() };
    let http = Script { not_mqtt: Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ..Script::default() };
    let closes = Script { not_mqtt: Some(b""), ..Script::default() };
    let old = Script { reply: Some(r#"{"type":"hello","transport":"websocket"}"#), ..Script::default() };
    let cases = [
        (refused, "login: refused with CONNACK 4: bad user name or password"),
        (http, "MQTT: the answer is not MQTT as a gateway speaks it"),
        (closes, "MQTT: the other side closed the connection"),
        (old, "hello: a device could not use the hello reply: transport is \"websocket\""),
    ];
    for (script, expected) in cases {
        let gateway = Fake::start(script);
        let result = Device::connect(gateway.addr, &login(), WAIT).and_then(|mut device| device.hello(HELLO));
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Device::connect(nobody, &login(), WAIT).unwrap_err();
    assert_eq!(error.step, Step::Tcp, "{error}");
}

#[test]
fn a_grant_is_read_as_strictly_as_the_firmware_reads_it() {
    let good = r#"{"type":"hello","transport":"udp","session_id":"s","audio_params":{"sample_rate":24000},"udp":{"server":"h","port":8884,"key":"000102030405060708090a0b0c0d0e0F","nonce":"01000000000000010000000000000000"}}"#;
    let grant = Grant::parse(good).unwrap();
    assert_eq!((grant.port, grant.key[15]), (8884, 15));
    assert_eq!(grant.audio_params.as_deref(), Some(r#"{"sample_rate":24000}"#));
    for (from, to) in [
        (r#""s""#, r#""""#),
        (r#""s""#, "null"),
        (r#""udp","s"#, r#""tcp","s"#),
        ("8884", "0"),
        ("8884", "65536"),
        ("8884", "\"8884\""),
        ("0001", "00"),
        ("0100", "01xx"),
        (r#""h""#, "7"),
        ("}}", ""),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        assert!(Grant::parse(&bad).is_err(), "{bad}");
    }
}
