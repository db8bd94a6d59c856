use super::*;
use crate::proto::audio;
use crate::proto::mqtt::ConnectReturnCode;
use crate::tools::tests::fake_gateway::{FakeGateway, GatewayScript};

const WAIT: Duration = Duration::from_secs(10);

fn login() -> Login {
    Login::new("02:00:00:00:00:01".parse().unwrap(), Some(b"key"))
}

#[test]
fn a_call_with_audio_in_both_directions() {
    let gateway = FakeGateway::start(GatewayScript::default());
    let mut device = SimulatedDevice::connect(gateway.addr, &login(), WAIT).unwrap();
    let mut call = device.call().unwrap();
    assert_eq!(call.parameters.session_id, "the-session");
    for i in 1..=5 {
        call.send(i, &test_audio::packet(i, 0)).unwrap();
        let audio = call.receive(WAIT).unwrap().unwrap();
        assert_eq!((audio.header.sequence, audio.header.timestamp), (i, i));
        assert_eq!(test_audio::parse(&audio.payload), Some((i, 0)));
    }
    assert_eq!(call.counts, PacketCounts { sent: 5, received: 5, ..PacketCounts::default() });
    let kept = device.receive_text(WAIT).unwrap().unwrap();
    assert!(kept.contains("mcp"), "what came before the hello: {kept}");
    device.ping().unwrap();
    assert_eq!(device.receive(WAIT).unwrap(), Some(Incoming::PingResp));
    assert_eq!(device.receive(Duration::ZERO).unwrap(), None);
    device.goodbye(&call).unwrap();
    device.disconnect().unwrap();
    gateway.join();
}

#[test]
fn gaps_and_stale_packets_are_counted() {
    let parameters = CallParameters {
        session_id: "s".into(),
        server: "127.0.0.1".into(),
        port: 9,
        key: [1; 16],
        nonce: audio::nonce(5),
        audio_params: None,
    };
    let mut call = Call::open(parameters).unwrap();
    let packets: Vec<_> = (0..9).map(|_| call.encrypt(0, b"x")).collect();
    for i in [0, 3, 2, 3, 8] {
        call.on_datagram(&packets[i]);
    }
    call.on_datagram(&packets[0][..10]);
    assert_eq!(call.counts, PacketCounts { sent: 0, received: 3, lost: 6, stale: 2, malformed: 1 });
}

#[test]
fn an_error_names_the_step_and_the_cause() {
    let refused =
        GatewayScript { connack_code: ConnectReturnCode::BadCredentials, ..GatewayScript::default() };
    let http =
        GatewayScript { raw_reply: Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ..GatewayScript::default() };
    let closes = GatewayScript { raw_reply: Some(b""), ..GatewayScript::default() };
    let old = GatewayScript {
        hello_reply: Some(r#"{"type":"hello","transport":"websocket"}"#),
        ..GatewayScript::default()
    };
    let cases = [
        (refused, "login: refused with CONNACK 4: bad user name or password"),
        (http, "MQTT: the answer is not MQTT as a gateway speaks it"),
        (closes, "MQTT: the other side closed the connection"),
        (old, "hello: a device could not use the hello reply: transport is \"websocket\""),
    ];
    for (script, expected) in cases {
        let gateway = FakeGateway::start(script);
        let result =
            SimulatedDevice::connect(gateway.addr, &login(), WAIT).and_then(|mut device| device.hello(HELLO));
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = SimulatedDevice::connect(nobody, &login(), WAIT).unwrap_err();
    assert_eq!(error.step, DeviceStep::Tcp, "{error}");
}

#[test]
fn the_hello_reply_is_parsed_as_strictly_as_by_the_firmware() {
    let good = r#"{"type":"hello","transport":"udp","session_id":"s","audio_params":{"sample_rate":24000},"udp":{"server":"h","port":8884,"key":"000102030405060708090a0b0c0d0e0F","nonce":"01000000000000010000000000000000"}}"#;
    let parameters = CallParameters::parse(good).unwrap();
    assert_eq!((parameters.port, parameters.key[15]), (8884, 15));
    assert_eq!(parameters.audio_params.as_deref(), Some(r#"{"sample_rate":24000}"#));
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
        assert!(CallParameters::parse(&bad).is_err(), "{bad}");
    }
}

/// A socket takes less than a microsecond for no limit at all.
#[test]
fn a_wait_of_less_than_a_microsecond_ends() {
    let mut socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for wait in [Duration::ZERO, Duration::from_nanos(1), Duration::from_nanos(999)] {
        let received = call::receive_within(
            &mut socket,
            |socket| socket.into(),
            wait,
            |socket| {
                let is_limited = wait.is_zero() || socket.read_timeout()?.is_some();
                assert!(is_limited, "{wait:?}");
                socket.recv(&mut [0])
            },
        );
        assert!(matches!(received, Ok(None)), "{received:?}");
    }
}
