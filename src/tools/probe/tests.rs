use super::options::split_target;
use super::report::{LOSS, PAUSE, ProbeReport, ROUND_TRIP, UDP_DOWN, UDP_UP};
use super::*;
use crate::proto::mqtt::ConnectReturnCode;
use crate::tools::command_line::CommandLine;
use crate::tools::step_report::StepState;
use crate::tools::tests::fake_gateway::{FakeGateway, GatewayScript};

fn options(args: &[&str]) -> Result<ProbeOptions, String> {
    ProbeOptions::parse(CommandLine::new(args))
}

fn probe_report(script: GatewayScript, args: &[&str]) -> ProbeReport {
    let gateway = FakeGateway::start(script);
    let address = gateway.addr.to_string();
    let mut all = vec![address.as_str(), "--packets", "6", "--key", "secret"];
    all.extend(args);
    let mut options = options(&all).unwrap();
    options.max_wait = Duration::from_secs(1);
    let mut reporter = ProbeReporter::new(Terminal::stderr(), &options);
    let _ = probe(&mut reporter);
    reporter.finish()
}

#[test]
fn a_working_gateway_passes_every_step() {
    let report = probe_report(GatewayScript::default(), &[]);
    assert!(report.ok, "{}", report.to_json());
    let json = report.to_json();
    assert!(
        json.contains(r#""audio":{"sent":6,"received":6,"echoed":6,"lost_down":0,"round_trip_ms":{"#),
        "{json}"
    );
}

#[test]
fn a_path_that_is_forgotten_in_a_pause_is_reported() {
    use StepState::{Fail, Ok, Skipped};
    const SPEAKS: &[&str] = &[r#"{"type":"tts","state":"start"}"#];
    let cases = [
        (false, SPEAKS, &[][..], Ok),
        (true, SPEAKS, &[], Fail),
        (true, &[], &[], Skipped),
        (true, SPEAKS, &["--no-pause"], Skipped),
    ];
    let threads = cases.map(|(forgets_path, on_detect, args, expected)| {
        std::thread::spawn(move || {
            let speech_packets = on_detect.len();
            let script =
                GatewayScript { forgets_path, on_detect, speech_packets, ..GatewayScript::default() };
            let report = probe_report(script, args);
            assert_eq!(report.state(PAUSE), expected, "{}", report.to_json());
            assert_eq!((report.ok, report.hints().is_empty()), (expected != Fail, expected != Fail));
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn loss_is_reported() {
    let report = probe_report(GatewayScript { drop_every: 3, ..GatewayScript::default() }, &[]);
    assert_eq!(report.state(UDP_DOWN), StepState::Ok);
    assert_eq!(report.state(LOSS), StepState::Fail);
    assert!(!report.ok);
}

#[test]
fn each_failing_direction_is_reported() {
    const HEARD: (&[&str], &[&str]) = (
        &[r#"{"type":"stt","text":"hello"}"#, r#"{"type":"tts","state":"start"}"#],
        &[r#"{"type":"stt","text":"(nothing heard)"}"#],
    );
    let down = GatewayScript { sends_audio: false, on_listen_stop: HEARD, ..GatewayScript::default() };
    let up = GatewayScript { receives_audio: false, on_listen_stop: HEARD, ..GatewayScript::default() };
    let deaf = GatewayScript {
        receives_audio: false,
        after_hello: &[r#"{"type":"alert","status":"x","message":"no UDP audio","emotion":"sad"}"#],
        ..GatewayScript::default()
    };
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused =
        GatewayScript { advertised_udp: Some(("127.0.0.1", closed.port())), ..GatewayScript::default() };
    let silent = GatewayScript { drop_every: 1, ..GatewayScript::default() };
    use StepState::{Fail, Ok, Unknown};
    let cases = [
        ("down", down, Ok, Fail),
        ("up", up, Fail, Unknown),
        ("deaf", deaf, Fail, Unknown),
        ("refused", refused, Fail, Unknown),
        ("silent", silent, Unknown, Unknown),
    ];
    // Each waits for what a silent side may still say: all at once.
    let threads = cases.map(|(name, script, up, down)| {
        std::thread::spawn(move || {
            let report = probe_report(script, &[]);
            let states = (report.state(UDP_UP), report.state(UDP_DOWN));
            assert_eq!(states, (up, down), "{name}: {}", report.to_json());
            assert!(!report.ok && !report.hints().is_empty(), "{name}");
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_call_that_ends_early_is_reported() {
    let report = probe_report(GatewayScript { hang_up_after: 3, ..GatewayScript::default() }, &[]);
    assert_eq!(report.state(UDP_DOWN), StepState::Ok);
    assert_eq!(report.state(LOSS), StepState::Fail, "{}", report.to_json());
    assert!(!report.ok);
}

// Elsewhere 127.0.0.2 is no address of the machine.
#[cfg(target_os = "linux")]
#[test]
fn a_wrong_public_ip_is_confirmed_at_the_host_address() {
    let report = probe_report(
        GatewayScript { advertised_udp: Some(("127.0.0.2", 0)), ..GatewayScript::default() },
        &[],
    );
    let states = [UDP_UP, UDP_DOWN, LOSS].map(|name| report.state(name));
    assert_eq!(states, [StepState::Fail, StepState::Ok, StepState::Skipped], "{}", report.to_json());
    assert!(report.hints()[0].contains("to 127.0.0.1"), "{:?}", report.hints());
}

#[test]
fn a_server_that_speaks_but_does_not_echo_passes() {
    let script = GatewayScript { drop_every: 1, speech_packets: 3, ..GatewayScript::default() };
    let report = probe_report(script, &[]);
    assert!(report.ok, "{}", report.to_json());
    assert_eq!(report.state(ROUND_TRIP), StepState::Skipped);
}

#[test]
fn failures_before_audio_are_reported() {
    let refused =
        GatewayScript { connack_code: ConnectReturnCode::NotAuthorised, ..GatewayScript::default() };
    let http =
        GatewayScript { raw_reply: Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ..GatewayScript::default() };
    let ended = GatewayScript {
        after_hello: &[r#"{"type":"alert","message":"no server"}"#, r#"{"type":"goodbye"}"#],
        ..GatewayScript::default()
    };
    for (script, step) in [(refused, AUTHENTICATION), (http, MQTT), (ended, HELLO)] {
        let report = probe_report(script, &[]);
        assert_eq!(report.state(step), StepState::Fail, "{}", report.to_json());
        assert_eq!(report.state(UDP_UP), StepState::Skipped);
        assert!(!report.ok);
    }
}

#[test]
fn targets_are_parsed() {
    let good = [
        ("gw", "gw", None),
        ("gw:1", "gw", Some(1)),
        ("mqtt://gw:99/", "gw", Some(99)),
        ("mqtts://gw", "gw", None),
        ("10.0.0.1:65535", "10.0.0.1", Some(65535)),
        ("[::1]:5", "::1", Some(5)),
        ("[::1]", "::1", None),
        ("fe80::1", "fe80::1", None),
    ];
    for (text, host, port) in good {
        assert_eq!(split_target(text), Ok((host.to_owned(), port)));
    }
    for bad in
        ["", ":1", "gw:", "gw:x", "gw:0", "gw:65536", "[::1", "[::1]x", "http://gw", "a b", "u@h", "-x"]
    {
        assert!(split_target(bad).is_err(), "{bad}");
    }
}

#[test]
fn arguments_are_parsed() {
    let parsed =
        options(&["--key", "k", "gw", "--mac", "AA-bb-CC-dd-EE-ff", "--group", "g", "--seconds", "6"])
            .unwrap();
    assert_eq!(parsed.login.client_id, "g@@@aa_bb_cc_dd_ee_ff@@@aa_bb_cc_dd_ee_ff");
    assert_eq!((parsed.packets, parsed.has_key), (100, true));
    let parsed =
        options(&["gw", "--client-id", "c", "--user-name", "u", "--password", "p", "--json"]).unwrap();
    let login = parsed.login;
    assert_eq!(
        (&*login.client_id, login.user_name.as_deref(), login.password.as_deref()),
        ("c", Some("u"), Some("p"))
    );
    assert!(parsed.json && !parsed.tls);
    #[cfg(feature = "tls")]
    for (args, port) in [(&["gw", "--tls"][..], 8883), (&["mqtts://gw"], 8883), (&["--tls", "gw:1"], 1)] {
        let parsed = options(args).unwrap();
        assert_eq!((parsed.tls, parsed.port), (true, port), "{args:?}");
    }
    #[cfg(not(feature = "tls"))]
    assert!(options(&["gw", "--tls"]).is_err_and(|error| error.contains("built without TLS")));
    for bad in [
        &[][..],
        &["gw", "extra"],
        &["gw", "--frob"],
        &["gw", "--mac", "x"],
        &["gw", "--seconds", "0"],
        &["gw", "--seconds", "1", "--packets", "1"],
        &["gw", "--timeout", "-1"],
        &["gw", "--key"],
        &["gw", "--ca-file", "Cargo.toml"],
        &["gw", "--tls", "--ca-file", "Cargo.toml"],
        &["gw", "--tls", "--ca-file", "nowhere.pem"],
    ] {
        assert!(options(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn what_a_chat_server_recognised_cannot_steer_the_terminal() {
    const HEARD: &[&str] = &[r#"{"type":"stt","text":"a\u001b[31m\r\u0085b"}"#];
    let report = probe_report(
        GatewayScript { sends_audio: false, on_listen_stop: (HEARD, &[]), ..GatewayScript::default() },
        &[],
    );
    assert!(report.to_json().contains(r"a\\u{1b}[31m\\r\\u{85}b"), "{}", report.to_json());
}
