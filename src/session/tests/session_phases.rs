//! Events in phases in which they have no effect, and state that ends with its phase.

use super::*;
use crate::proto::mqtt::ConnectReturnCode;

impl Scenario {
    /// Lets the core decide. The shell does not react to the actions.
    fn drive_only<T>(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>) -> T) -> (T, Vec<Action>) {
        let mut out = Vec::new();
        let value = self.shell.decide(&mut self.core, &mut out, decide);
        (value, out)
    }

    fn admit(&mut self, admission: Admission) -> Vec<Action> {
        self.drive_only(|core, cx| core.on_admission(admission, cx)).1
    }

    fn send_command(&mut self, ticket: u64) -> u32 {
        let actions = self.drive(|core, cx| core.send_command(ticket, "x", "{}", cx));
        message::parse_rpc(texts_to_device(&actions)[0], message::Reader::Device)
            .unwrap()
            .id
            .unwrap()
            .parse()
            .unwrap()
    }
}

fn not_connected(ticket: u64) -> Action {
    Action::CommandResult { ticket, result: Err(CommandError::NotConnected) }
}

#[test]
fn the_proxied_address_can_be_set_until_connect() {
    let client = |n: u8| IpAddr::from([198, 51, 100, n]);
    let mut scenario = Scenario::new();
    scenario.core.set_client_ip(client(1));
    assert_eq!(scenario.core.ip(), client(1));
    scenario.connect();
    scenario.core.set_client_ip(client(2));
    assert_eq!(scenario.core.ip(), client(1));
    let actions = scenario.device_sends(HELLO);
    let Some(Action::Dial(request)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!(request.forwarded_for, client(1));
}

#[test]
fn an_admission_counts_once_and_only_when_requested() {
    for (admission, why) in [
        (Admission::ConnectionLimit, "max_connections is reached"),
        (Admission::PerIpLimit, "max_connections_per_ip is reached"),
        (Admission::MacLimit, "16 client ids with its MAC are connected"),
    ] {
        let mut scenario = Scenario::new();
        assert_eq!(scenario.admit(admission), [], "not asked yet");
        scenario.drive_only(|core, cx| core.on_packet(connect_packet(ID, 60), cx));
        let code = ConnectReturnCode::ServerUnavailable;
        let refused = [Action::RefuseConnect(code), Action::CloseDevice(CloseReason::Refused(code, why))];
        assert_eq!(scenario.admit(admission), refused);
        assert_eq!(scenario.admit(Admission::Accepted), [], "refused");
        let mut scenario = Scenario::with_udp_peer();
        assert_eq!(scenario.admit(admission), [], "let in");
        assert_eq!(scenario.admit(Admission::Accepted), []);
    }
}

#[test]
fn admission_has_no_deadline() {
    let mut scenario = Scenario::new();
    scenario.drive_only(|core, cx| core.on_packet(connect_packet(ID, 60), cx));
    assert_eq!(scenario.wait(20_000), []);
    assert_eq!(scenario.core.deadline(), None);
}

#[test]
fn the_longest_keep_alive_is_timed_at_one_and_a_half() {
    let mut scenario = Scenario::new();
    scenario.packet(connect_packet(ID, 1_000));
    assert_eq!(scenario.core.deadline(), Some(scenario.shell.start + Duration::from_secs(1_500)));
    scenario.packet(Packet::Disconnect);
    assert_eq!(scenario.core.deadline(), None, "who has left is not waited for");
}

#[test]
fn a_call_is_taken_over_with_the_newer_id_and_not_from_a_finished_session() {
    let newer_id = ID.replace("GID_test", "GID_bound");
    for over in [false, true] {
        let mut scenario = Scenario::with_udp_peer();
        if over {
            scenario.packet(Packet::Disconnect);
        }
        let mut newer = Core::new("198.51.100.1".parse().unwrap(), scenario.shell.now);
        let mut asked = Vec::new();
        let mut cx = scenario.shell.context(&mut asked);
        newer.on_packet(connect_packet(&newer_id, 30), &mut cx);
        let actions = scenario.drive(|core, cx| core.take_over(newer, cx));
        let welcome = [Action::AcceptConnect, Action::Log(LogEvent::Connected { resumed: true })];
        assert_eq!(actions, if over { vec![] } else { welcome.into() });
        let id = scenario.core.client_id().unwrap().text();
        assert_eq!((&*id, scenario.core.is_online()), if over { (ID, false) } else { (&*newer_id, true) });
    }
}

#[test]
fn commands_fail_when_the_device_disconnects_whether_its_call_is_kept_or_not() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.send_command(7);
    let kept = scenario.shell.config.mqtt.resume_grace;
    let away = Action::Log(LogEvent::ConnectionLost { kept, why: CloseReason::Disconnected });
    assert_eq!(
        scenario.lose_connection(),
        [not_connected(7), away, Action::CloseDevice(CloseReason::Disconnected)]
    );

    let mut scenario = Scenario::online();
    scenario.send_command(7);
    assert_eq!(
        scenario.packet(Packet::Disconnect),
        [not_connected(7), Action::CloseDevice(CloseReason::Disconnected)]
    );
}

#[test]
fn credentials_for_a_disconnected_device_start_no_call() {
    for leave in [Core::on_connection_lost as fn(&mut Core, &mut Context<'_>), Core::shutdown] {
        let mut scenario = Scenario::online();
        let (_, actions) =
            scenario.drive_only(|core, cx| core.on_packet(publish_packet(HELLO.as_bytes()), cx));
        assert_eq!(actions, [Action::GenerateCredentials]);
        scenario.drive_only(leave);
        let (_, actions) = scenario.drive_only(|core, cx| core.on_credentials(credentials(1), cx));
        assert_eq!(actions, []);
        assert!(scenario.core.is_finished());
    }
}

#[test]
fn an_operator_ends_call_and_connection() {
    let mut scenario = Scenario::with_udp_peer();
    let actions = scenario.drive(Core::operator_disconnect);
    assert_eq!(
        actions[..3],
        [server_goodbye("s1", EndReason::Operator, 0), Action::CloseBackend(1000), goodbye("s1")]
    );
    assert_eq!(summary(&actions).reason, EndReason::Operator);
    assert_eq!(actions[4..], [Action::CloseDevice(CloseReason::Operator)]);
    assert!(scenario.core.is_finished());
}

#[test]
fn an_answer_to_a_command_goes_to_the_operator_alone() {
    let answer = |id: u32| message::mcp_result(Some("s1"), &id.to_string(), "{}");
    let mut scenario = Scenario::with_udp_peer();
    let id = scenario.send_command(7);
    let never_asked = answer(id + 1);
    assert_eq!(scenario.device_sends(&never_asked), [send_text(&never_asked)], "no id of ours");
    assert_eq!(
        scenario.device_sends(&answer(id)),
        [Action::CommandResult { ticket: 7, result: Ok("{}".into()) }]
    );
    assert_eq!(scenario.device_sends(&answer(id)), [], "again");
}

#[test]
fn a_command_outlives_the_hello_behind_it() {
    let mut scenario = Scenario::online();
    let id = scenario.send_command(7);
    scenario.start_call();
    let answer = message::mcp_result(None, &id.to_string(), "{}");
    assert_eq!(
        scenario.device_sends(&answer),
        [Action::CommandResult { ticket: 7, result: Ok("{}".into()) }]
    );
}

type Reconnect = fn(&mut Scenario);

/// All ways to lose the connection and to reconnect.
fn reconnections() -> [(&'static str, Reconnect); 3] {
    [
        ("without a call", |scenario| {
            scenario.lose_connection();
            scenario.connect_anew();
        }),
        ("in a call that is kept", |scenario| {
            scenario.start_call();
            scenario.lose_connection();
            scenario.reconnect(DEVICE_IP);
        }),
        ("in a call that is over", |scenario| {
            scenario.start_call();
            scenario.packet(Packet::Disconnect);
            scenario.connect_anew();
        }),
    ]
}

#[test]
fn a_late_answer_is_not_given_to_another_operators_command() {
    let answer = |id: u32| message::mcp_result(None, &id.to_string(), "{}");
    for mcp in [false, true] {
        for (how, reconnect) in reconnections() {
            let mut scenario = Scenario::new();
            scenario.shell.config.mcp.enabled = mcp;
            scenario.connect();
            let first = scenario.send_command(7);
            reconnect(&mut scenario);
            let second = scenario.send_command(8);
            assert_eq!(scenario.device_sends(&answer(first)), [], "{how}, mcp {mcp}");
            let answered = [Action::CommandResult { ticket: 8, result: Ok("{}".into()) }];
            assert_eq!(scenario.device_sends(&answer(second)), answered, "{how}, mcp {mcp}");
        }
    }
}
