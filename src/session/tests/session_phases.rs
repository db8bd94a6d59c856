//! What comes in a phase that has no use for it, and what does not outlive its phase.

use super::*;
use crate::proto::mqtt::ConnectCode;

impl Story {
    /// Without the shell's part in letting in and granting.
    fn alone<T>(&mut self, decide: impl FnOnce(&mut Core, &mut Cx<'_>) -> T) -> (T, Vec<Action>) {
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        let value = decide(&mut self.core, &mut cx);
        (value, out)
    }

    fn admitted(&mut self, admission: Admission) -> Vec<Action> {
        self.alone(|core, cx| core.admitted(admission, cx)).1
    }

    fn command(&mut self, ticket: u64) -> u32 {
        let actions = self.drive(|core, cx| core.command(ticket, "x", "{}", cx));
        message::rpc(told(&actions)[0], message::Reader::Device).unwrap().id.unwrap().parse().unwrap()
    }
}

fn unanswered(ticket: u64) -> Action {
    Action::Answer { ticket, result: Err(CommandFailed::NotConnected) }
}

#[test]
fn a_balancers_word_counts_until_connect() {
    let client = |n: u8| IpAddr::from([198, 51, 100, n]);
    let mut story = Story::new();
    story.core.comes_from(client(1));
    assert_eq!(story.core.ip(), client(1));
    story.connect();
    story.core.comes_from(client(2));
    assert_eq!(story.core.ip(), client(1));
    let actions = story.device(HELLO);
    let Some(Action::Dial(request)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!(request.forwarded_for, client(1));
}

#[test]
fn the_shells_word_on_a_place_counts_once_and_only_when_asked() {
    for (admission, why) in [
        (Admission::Full, "max_connections is reached"),
        (Admission::Crowded, "max_connections_per_ip is reached"),
    ] {
        let mut story = Story::new();
        assert_eq!(story.admitted(admission), [], "not asked yet");
        story.alone(|core, cx| core.packet(connect(ID, 60), cx));
        let code = ConnectCode::Unavailable;
        let refused = [Action::Refuse(code), Action::Close(Reason::Refused(code, why))];
        assert_eq!(story.admitted(admission), refused);
        assert_eq!(story.admitted(Admission::Welcome), [], "refused");
        let mut story = Story::talking();
        assert_eq!(story.admitted(admission), [], "let in");
        assert_eq!(story.admitted(Admission::Welcome), []);
    }
}

#[test]
fn waiting_for_a_place_has_no_deadline() {
    let mut story = Story::new();
    story.alone(|core, cx| core.packet(connect(ID, 60), cx));
    assert_eq!(story.wait(20_000), []);
    assert_eq!(story.core.deadline(), None);
}

#[test]
fn one_and_a_half_of_a_long_keep_alive() {
    let mut story = Story::new();
    story.packet(connect(ID, 1_000));
    assert_eq!(story.core.deadline(), Some(story.start + Duration::from_secs(1_500)));
    story.packet(Packet::Disconnect);
    assert_eq!(story.core.deadline(), None, "who has left is not waited for");
}

#[test]
fn a_call_is_taken_over_with_the_newer_id_and_not_from_a_session_that_is_over() {
    let newer_id = ID.replace("GID_test", "GID_bound");
    for over in [false, true] {
        let mut story = Story::talking();
        if over {
            story.packet(Packet::Disconnect);
        }
        let mut newer = Core::new("198.51.100.1".parse().unwrap(), story.now);
        let mut asked = Vec::new();
        let mut cx = Cx {
            now: story.now,
            config: &story.config,
            servers: &mut story.servers,
            ids: &story.ids,
            out: &mut asked,
        };
        newer.packet(connect(&newer_id, 30), &mut cx);
        let actions = story.drive(|core, cx| core.take_over(newer, cx));
        let welcome = [Action::Welcome, Action::Note(Note::Connected { resumed: true })];
        assert_eq!(actions, if over { vec![] } else { welcome.into() });
        let id = story.core.client_id().unwrap().as_str();
        assert_eq!((id, story.core.is_online()), if over { (ID, false) } else { (&*newer_id, true) });
    }
}

#[test]
fn commands_fail_when_the_device_leaves_whether_its_call_is_kept_or_not() {
    let mut story = Story::talking();
    story.command(7);
    let away = Action::Note(Note::Away(story.config.mqtt.resume_grace));
    assert_eq!(story.lost(), [unanswered(7), away, Action::Close(Reason::Left)]);

    let mut story = Story::online();
    story.command(7);
    assert_eq!(story.packet(Packet::Disconnect), [unanswered(7), Action::Close(Reason::Left)]);
}

#[test]
fn a_grant_for_a_device_that_has_left_begins_nothing() {
    for leave in [Core::connection_lost as fn(&mut Core, &mut Cx<'_>), Core::shutdown] {
        let mut story = Story::online();
        let (_, actions) = story.alone(|core, cx| core.packet(publication(HELLO.as_bytes()), cx));
        assert_eq!(actions, [Action::Grant]);
        story.alone(leave);
        let (_, actions) = story.alone(|core, cx| core.granted(grant(1), cx));
        assert_eq!(actions, []);
        assert!(story.core.is_over());
    }
}

#[test]
fn an_operator_ends_call_and_connection() {
    let mut story = Story::talking();
    let actions = story.drive(Core::operator_disconnects);
    assert_eq!(actions[..3], [farewell("s1", EndReason::Operator, 0), Action::HangUp(1000), goodbye("s1")]);
    assert_eq!(summary(&actions).reason, EndReason::Operator);
    assert_eq!(actions[4..], [Action::Close(Reason::Operator)]);
    assert!(story.core.is_over());
}

#[test]
fn an_answer_to_a_command_goes_to_the_operator_alone() {
    let answer = |id: u32| message::mcp_result(Some("s1"), &id.to_string(), "{}");
    let mut story = Story::talking();
    let id = story.command(7);
    let never_asked = answer(id + 1);
    assert_eq!(story.device(&never_asked), [say(&never_asked)], "no id of ours");
    assert_eq!(story.device(&answer(id)), [Action::Answer { ticket: 7, result: Ok("{}".into()) }]);
    assert_eq!(story.device(&answer(id)), [], "again");
}

#[test]
fn a_command_outlives_the_hello_behind_it() {
    let mut story = Story::online();
    let id = story.command(7);
    story.call();
    let answer = message::mcp_result(None, &id.to_string(), "{}");
    assert_eq!(story.device(&answer), [Action::Answer { ticket: 7, result: Ok("{}".into()) }]);
}

type Reconnect = fn(&mut Story);

/// Every way a device loses its connection and comes back.
fn reconnections() -> [(&'static str, Reconnect); 3] {
    [
        ("without a call", |story| {
            story.lost();
            story.connect_anew();
        }),
        ("in a call that is kept", |story| {
            story.call();
            story.lost();
            story.come_back(HOME);
        }),
        ("in a call that is over", |story| {
            story.call();
            story.packet(Packet::Disconnect);
            story.connect_anew();
        }),
    ]
}

#[test]
fn a_late_answer_is_not_given_to_another_operators_command() {
    let answer = |id: u32| message::mcp_result(None, &id.to_string(), "{}");
    for mcp in [false, true] {
        for (how, reconnect) in reconnections() {
            let mut story = Story::new();
            story.config.mcp.enabled = mcp;
            story.connect();
            let first = story.command(7);
            reconnect(&mut story);
            let second = story.command(8);
            assert_eq!(story.device(&answer(first)), [], "{how}, mcp {mcp}");
            let answered = [Action::Answer { ticket: 8, result: Ok("{}".into()) }];
            assert_eq!(story.device(&answer(second)), answered, "{how}, mcp {mcp}");
        }
    }
}
