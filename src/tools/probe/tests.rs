use std::time::Duration;

use super::options::{WAITS, Waits, split_target};
use super::report::Report;
use super::*;
use crate::proto::mqtt::ConnectCode;
use crate::tools::fake_gateway::{Fake, Script};

fn options(args: &[&str]) -> Result<Options, String> {
    Options::parse(Arguments::from_vec(args.iter().map(Into::into).collect()))
}

fn probed(script: Script, args: &[&str]) -> Report {
    let gateway = Fake::start(script);
    let address = gateway.addr.to_string();
    let mut all = vec![address.as_str(), "--packets", "6", "--key", "secret"];
    all.extend(args);
    let mut options = options(&all).unwrap();
    let soon = Duration::from_millis(400);
    options.waits = Waits { linger: soon, alert: soon, reaction: soon, speech: soon, ..WAITS };
    let mut reporter = Reporter::new(Screen::stderr(), &options);
    let _ = probe(&options, &mut reporter);
    reporter.finish()
}

#[test]
fn a_gateway_that_works() {
    let report = probed(Script::default(), &[]);
    assert!(report.ok, "{}", report.to_json());
    let json = report.to_json();
    assert!(
        json.contains(r#""audio":{"sent":6,"received":6,"echoed":6,"lost_down":0,"round_trip_ms":{"#),
        "{json}"
    );
}

#[test]
fn loss_is_told() {
    let report = probed(Script { lose: 3, ..Script::default() }, &[]);
    assert_eq!(report.state(Name::UdpDown), State::Ok);
    assert_eq!(report.state(Name::Loss), State::Fail);
    assert!(!report.ok);
}

#[test]
fn each_way_that_fails_is_told() {
    const HEARD: (&[&str], &[&str]) = (
        &[r#"{"type":"stt","text":"hello"}"#, r#"{"type":"tts","state":"start"}"#],
        &[r#"{"type":"stt","text":"(nothing heard)"}"#],
    );
    let down = Script { down: false, reaction: HEARD, ..Script::default() };
    let up = Script { up: false, reaction: HEARD, ..Script::default() };
    let deaf = Script {
        up: false,
        after_hello: &[r#"{"type":"alert","status":"x","message":"no UDP audio","emotion":"sad"}"#],
        ..Script::default()
    };
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = Script { advertised: Some(("127.0.0.1", closed.port())), ..Script::default() };
    let silent = Script { lose: 1, ..Script::default() };
    use State::{Fail, Ok, Unknown};
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
            let report = probed(script, &[]);
            let states = (report.state(Name::UdpUp), report.state(Name::UdpDown));
            assert_eq!(states, (up, down), "{name}: {}", report.to_json());
            assert!(!report.ok && !report.hints().is_empty(), "{name}");
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_call_that_ends_early_is_told() {
    let report = probed(Script { hang_up_after: 3, ..Script::default() }, &[]);
    assert_eq!(report.state(Name::UdpDown), State::Ok);
    assert_eq!(report.state(Name::Loss), State::Fail, "{}", report.to_json());
    assert!(!report.ok);
}

// Elsewhere 127.0.0.2 is no address of the machine.
#[cfg(target_os = "linux")]
#[test]
fn a_wrong_public_ip_is_proved() {
    let report = probed(Script { advertised: Some(("127.0.0.2", 0)), ..Script::default() }, &[]);
    let states = [Name::UdpUp, Name::UdpDown, Name::Loss].map(|name| report.state(name));
    assert_eq!(states, [State::Fail, State::Ok, State::Skipped], "{}", report.to_json());
    assert!(report.hints()[0].contains("to 127.0.0.1"), "{:?}", report.hints());
}

#[test]
fn a_server_that_speaks_but_does_not_echo_works() {
    let script = Script { lose: 1, speech: 3, ..Script::default() };
    let report = probed(script, &[]);
    assert!(report.ok, "{}", report.to_json());
    assert_eq!(report.state(Name::RoundTrip), State::Skipped);
}

#[test]
fn the_steps_before_audio_are_told() {
    let refused = Script { code: ConnectCode::NotAuthorised, ..Script::default() };
    let http = Script { not_mqtt: Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ..Script::default() };
    let ended = Script {
        after_hello: &[r#"{"type":"alert","message":"no server"}"#, r#"{"type":"goodbye"}"#],
        ..Script::default()
    };
    for (script, step) in [(refused, Name::Authentication), (http, Name::Mqtt), (ended, Name::Hello)] {
        let report = probed(script, &[]);
        assert_eq!(report.state(step), State::Fail, "{}", report.to_json());
        assert_eq!(report.state(Name::UdpUp), State::Skipped);
        assert!(!report.ok);
    }
}

#[test]
fn targets() {
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
fn arguments() {
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
    let report = probed(Script { down: false, reaction: (HEARD, &[]), ..Script::default() }, &[]);
    assert!(report.to_json().contains(r"a\\u{1b}[31m\\r\\u{85}b"), "{}", report.to_json());
}
