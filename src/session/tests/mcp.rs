//! The device's tools: learnt once per connection, answered from memory, under ids that collide with nobody's.

use super::*;

const FIRST: u32 = 0x4000_0000;

fn online() -> Story {
    let mut story = Story::new();
    story.config.mcp.enabled = true;
    story.config.mcp.client_info = r#"{"name":"gw"}"#.to_owned();
    story
}

fn request(id: u32, method: &str, params: &str) -> Action {
    publish(&message::mcp_request(None, id, method, params))
}

fn note(tools: Result<usize, &'static str>) -> Action {
    Action::Note(Note::Tools(tools))
}

impl Story {
    fn answer(&mut self, id: u32, result: &str) -> Vec<Action> {
        self.device(&message::mcp_result(None, &id.to_string(), result))
    }

    /// Connects and learns these pages of tools.
    fn learn(&mut self, pages: &[&str]) -> Vec<Action> {
        self.connect();
        self.answer(FIRST, r#"{"serverInfo":{}}"#);
        let mut last = Vec::new();
        for (page, id) in pages.iter().zip(FIRST + 1..) {
            last = self.answer(id, page);
        }
        last
    }
}

/// A request of the server, as the server writes it.
fn asks(id: &str, method: &str, params: Option<&str>) -> String {
    let params = params.map(|params| format!(r#","params":{params}"#)).unwrap_or_default();
    format!(
        r#"{{"session_id":"s1","type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"method":"{method}"{params}}}}}"#
    )
}

#[test]
fn all_pages_are_learnt_when_the_device_connects() {
    let mut story = online();
    let initialize = r#"{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"gw"}}"#;
    assert_eq!(story.connect()[3..], [request(FIRST, "initialize", initialize)]);
    let actions = story.answer(FIRST, r#"{"serverInfo":{}}"#);
    let initialized = publish(&message::mcp_notification(None, "notifications/initialized"));
    assert_eq!(actions, [initialized, request(FIRST + 1, "tools/list", r#"{"cursor":""}"#)]);
    let actions = story.answer(FIRST + 1, r#"{"tools":[{"name":"a"},{"name":"b"}],"nextCursor":"c\"1"}"#);
    assert_eq!(actions, [request(FIRST + 2, "tools/list", r#"{"cursor":"c\"1"}"#)]);
    let actions = story.answer(FIRST + 2, r#"{"tools":[{"name":"c"}],"nextCursor":""}"#);
    assert_eq!(actions, [note(Ok(3))]);
    story.call();
    for params in [None, Some("{}"), Some("null"), Some(r#"{"cursor":""}"#), Some(r#"{"cursor":null}"#)] {
        let answer =
            message::mcp_result(Some("s1"), "2", r#"{"tools":[{"name":"a"},{"name":"b"},{"name":"c"}]}"#);
        assert_eq!(story.server(&asks("2", "tools/list", params)), [say(&answer)], "{params:?}");
    }
    for params in [r#"{"cursor":"c"}"#, r#"{"withUserTools":true}"#, "[]"] {
        let text = asks("2", "tools/list", Some(params));
        assert_eq!(story.server(&text), [publish(&text)], "{params}");
    }
}

#[test]
fn a_list_is_cut_at_max_tools_count_and_counts_as_complete() {
    let mut story = online();
    story.config.mcp.max_tools_count = 2;
    let last =
        story.learn(&[r#"{"tools":[{"name":"a"}],"nextCursor":"b"}"#, r#"{"tools":[2,3],"nextCursor":"d"}"#]);
    assert_eq!(last, [note(Ok(2))]);
    story.call();
    let answer = message::mcp_result(Some("s1"), "\"x\"", r#"{"tools":[{"name":"a"},2]}"#);
    assert_eq!(story.server(&asks("\"x\"", "tools/list", None)), [say(&answer)]);
}

#[test]
fn an_alarm_that_rings_early_changes_nothing() {
    let mut story = online();
    story.connect();
    story.wait(9_999);
    assert_eq!(story.drive(Core::timeout), []);
    assert_eq!(story.answer(FIRST, r#"{"serverInfo":{}}"#).len(), 2, "it is still waited for");
    story.wait(9_999);
    assert_eq!(story.drive(Core::timeout), []);
    assert_eq!(story.answer(FIRST + 1, r#"{"tools":[1]}"#), [note(Ok(1))]);
}

#[test]
fn two_hundred_kibibytes_of_tools_are_remembered() {
    let tools: Vec<_> =
        (0..10).map(|n| format!(r#"{{"name":"{n}","much":"{}"}}"#, "x".repeat(20 * 1024))).collect();
    let pages: Vec<_> = tools
        .iter()
        .enumerate()
        .map(|(n, tool)| match n {
            9 => format!(r#"{{"tools":[{tool}]}}"#),
            _ => format!(r#"{{"tools":[{tool}],"nextCursor":"{n}"}}"#),
        })
        .collect();
    let pages: Vec<_> = pages.iter().map(String::as_str).collect();
    assert_eq!(online().learn(&pages), [note(Ok(10))]);
    let most = format!(r#"{{"tools":["{}"]}}"#, "x".repeat(256 * 1024 - 2));
    assert_eq!(online().learn(&[&most]), [note(Ok(1))]);
}

#[test]
fn a_failed_discovery_means_forwarding() {
    let ends = |pages: &[&str], why: &'static str| {
        let mut story = online();
        assert_eq!(story.learn(pages).last(), Some(&note(Err(why))), "{pages:?}");
        story.call();
        let list = asks("2", "tools/list", None);
        assert_eq!(story.server(&list), [publish(&list)], "never an empty list");
    };
    let page = |next: &str| format!(r#"{{"tools":[1],"nextCursor":"{next}"}}"#);
    ends(&[&page("b"), &page("b")], "its pages never end");
    ends(&[&page("b"), &page("c"), &page("b")], "its pages never end");
    ends(&["{}"], "a page of tools that is none");
    ends(&["[]"], "a page of tools that is none");
    let long = format!(r#"{{"tools":["{}"]}}"#, "x".repeat(256 * 1024));
    ends(&[&long], "more tools than are remembered");
    let mut story = online();
    story.config.mcp.max_tools_count = 1_000;
    let pages: Vec<_> = (0..66).map(|n| page(&n.to_string())).collect();
    let pages: Vec<_> = pages.iter().map(|page| page.as_str()).collect();
    story.learn(&pages[..64]);
    assert_eq!(story.answer(FIRST + 65, pages[64]), [note(Err("its pages never end"))]);
}

#[test]
fn a_device_that_answers_with_an_error_or_not_at_all() {
    let mut story = online();
    story.connect();
    let error =
        format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{FIRST},"error":{{"message":"no"}}}}}}"#);
    assert_eq!(story.device(&error), [note(Err("the device answered with an error"))]);
    assert_eq!(story.device(&error), [], "taken, and nothing more");

    let mut story = online();
    story.connect();
    assert_eq!(story.wait(9_999), []);
    assert_eq!(story.wait(1), [note(Err("no answer in 10 s"))]);
    assert_eq!(story.answer(FIRST, "{}"), [], "too late");
    assert_eq!(story.core.deadline(), Some(story.start + Duration::from_secs(90)));
    story.call();
    let initialize = asks("1", "initialize", None);
    assert_eq!(story.server(&initialize), [publish(&initialize)]);
}

#[test]
fn initialize_is_forwarded_when_it_carries_capabilities() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    let bare = asks("1", "initialize", Some(r#"{"capabilities":{}}"#));
    let answer = message::mcp_result(Some("s1"), "1", r#"{"serverInfo":{}}"#);
    assert_eq!(story.server(&bare), [say(&answer)]);
    let initialized = r#"{"session_id":"s1","type":"mcp","payload":{"method":"notifications/initialized"}}"#;
    assert_eq!(story.server(initialized), [], "ours too");
    let vision = asks("1", "initialize", Some(r#"{"capabilities":{"vision":{"url":"http://x"}}}"#));
    assert_eq!(story.server(&vision), [publish(&vision)]);
    assert_eq!(story.server(initialized), [publish(initialized)]);
    let reply = r#"{"session_id":"s1","type":"mcp","payload":{"jsonrpc":"2.0","id":1,"result":{}}}"#;
    assert_eq!(story.device(reply), [say(reply)]);
}

#[test]
fn ids_that_could_be_taken_for_ours_or_are_no_small_numbers_are_translated_both_ways() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    let odd = ["1073741824", "2147483647", "4294967296", "-1", "1.5", "\"abc\""];
    for (id, ours) in odd.into_iter().zip(FIRST + 2..) {
        let translated = asks(&ours.to_string(), "tools/call", Some(r#"{"name":"x"}"#));
        assert_eq!(
            story.server(&asks(id, "tools/call", Some(r#"{"name":"x"}"#))),
            [publish(&translated)],
            "{id}"
        );
        let reply = |id: &str| {
            format!(r#"{{"session_id":"s1", "type":"mcp","payload":{{"id":{id},"result":{{"a": 1}}}}}}"#)
        };
        assert_eq!(story.device(&reply(&ours.to_string())), [say(&reply(id))], "{id}");
        assert_eq!(story.device(&reply(&ours.to_string())), [], "only once");
    }
    for id in ["0", "1", "9999", "1073741823"] {
        let text = asks(id, "tools/call", None);
        assert_eq!(story.server(&text), [publish(&text)], "{id}");
    }
    let notification = r#"{"session_id":"s1","type":"mcp","payload":{"id":null,"method":"x"}}"#;
    assert_eq!(story.server(notification), [publish(notification)]);
    for odd in [r#"{"session_id":"s1","type":"mcp"}"#, r#"{"session_id":"s1","type":"mcp","payload":[]}"#] {
        assert_eq!(story.server(odd), [publish(odd)]);
        assert_eq!(story.device(odd), [say(odd)]);
    }
}

#[test]
fn translations_are_bounded() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    for n in 0..65 {
        story.server(&asks(&format!("\"{n}\""), "tools/call", None));
    }
    assert_eq!(story.answer(FIRST + 2, "{}"), [], "the oldest is forgotten");
    assert_eq!(said(&story.answer(FIRST + 3, "{}")), [message::mcp_result(None, "\"1\"", "{}")]);
    let long = asks(&format!("\"{}\"", "x".repeat(127)), "tools/call", None);
    assert_eq!(story.server(&long), [publish(&long)], "no device answers such an id anyway");
}

#[test]
fn an_answer_to_an_earlier_server_is_not_for_the_next() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    story.server(&asks("\"a\"", "tools/call", None));
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    story.server(SERVER_HELLO);
    assert_eq!(story.answer(FIRST + 2, "{}"), []);
}

#[test]
fn a_taken_over_call_learns_anew_and_loses_no_answer() {
    let mut story = online();
    story.learn(&[r#"{"tools":[1]}"#]);
    story.call();
    story.server(&asks("\"a\"", "tools/call", None));
    story.lost();
    let list = asks("3", "tools/list", None);
    assert_eq!(said(&story.server(&list)).len(), 1, "memory serves an absent device too");
    let actions = story.come_back(HOME);
    assert!(
        told(&actions)[0].contains(
            r#""session_id":"s1","payload":{"jsonrpc":"2.0","id":1073741827,"method":"initialize""#
        )
    );
    assert_eq!(told(&actions).len(), 1);
    assert_eq!(said(&story.answer(FIRST + 2, "{}")).len(), 1);
    assert_eq!(story.server(&list), [publish(&list)], "forwarded until the list is complete again");
}

#[test]
fn discovery_can_be_turned_off_live() {
    let mut story = Story::new();
    assert_eq!(traffic(story.connect()), [Action::Admit, Action::Welcome]);
    let mut story = online();
    story.learn(&[r#"{"tools":[1]}"#]);
    story.call();
    story.config.mcp.enabled = false;
    let list = asks("3", "tools/list", None);
    assert_eq!(story.server(&list), [publish(&list)]);
}

#[test]
fn a_server_that_asks_before_its_hello_is_answered_from_memory() {
    let mut story = online();
    story.learn(&[r#"{"tools":[1]}"#]);
    story.device(HELLO);
    story.open();
    let answer = message::mcp_result(None, "2", r#"{"tools":[1]}"#);
    assert_eq!(story.server(&asks("2", "tools/list", None)), [say(&answer)]);
    let call = asks("3", "tools/call", None);
    assert_eq!(story.server(&call), [], "what the device must answer waits");
    assert_eq!(told(&story.server(SERVER_HELLO))[1], call);
}

#[test]
fn ids_of_ours_end_where_int32_does() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    for (id, ours) in
        [("1073741823", false), ("1073741824", true), ("2147483647", true), ("2147483648", false)]
    {
        let reply = message::mcp_result(Some("s1"), id, "{}");
        let expected = if ours { vec![] } else { vec![say(&reply)] };
        assert_eq!(story.device(&reply), expected, "{id}");
    }
}

#[test]
fn the_servers_word_that_it_is_initialized_is_ours_only_when_we_answered() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    let initialized = r#"{"session_id":"s1","type":"mcp","payload":{"method":"notifications/initialized"}}"#;
    assert_eq!(story.server(initialized), [publish(initialized)]);
}

/// The id of the one request of ours among the actions.
fn asked(actions: &[Action]) -> u32 {
    message::rpc(told(actions)[0], message::Reader::Device).unwrap().id.unwrap().parse().unwrap()
}

#[test]
fn a_late_answer_is_not_taken_for_one_that_a_new_connection_waits_for() {
    let mut story = online();
    let first = asked(&story.connect());
    story.lost();
    let second = asked(&story.connect_anew());
    assert_eq!(story.answer(first, r#"{"late":1}"#), []);
    let actions = story.answer(second, r#"{"serverInfo":{}}"#);
    let first =
        message::rpc(told(&actions)[1], message::Reader::Device).unwrap().id.unwrap().parse().unwrap();
    story.lost();
    let initialize = asked(&story.connect_anew());
    let actions = story.answer(initialize, r#"{"serverInfo":{}}"#);
    let second =
        message::rpc(told(&actions)[1], message::Reader::Device).unwrap().id.unwrap().parse().unwrap();
    assert_eq!(story.answer(first, r#"{"tools":[1,2]}"#), [], "a list of the connection before");
    assert_eq!(story.answer(second, r#"{"tools":[3]}"#), [note(Ok(1))]);
}

#[test]
fn a_late_answer_to_the_gateway_is_not_given_to_a_chat_server() {
    let mut story = online();
    let initialize = asked(&story.connect());
    story.wait(10_000);
    story.call();
    story.server(&asks("\"a\"", "tools/call", None));
    assert_eq!(story.answer(initialize, "{}"), [], "the device was silent for 10 s");

    let mut story = online();
    story.connect();
    story.call();
    let first = asked(&story.server(&asks("\"a\"", "tools/call", None)));
    story.packet(Packet::Disconnect);
    story.connect_anew();
    story.call();
    let second = asked(&story.server(&asks("\"b\"", "tools/call", None)));
    assert_eq!(story.answer(first, "{}"), [], "what the server before asked");
    assert_eq!(said(&story.answer(second, "{}")).len(), 1);
}

#[test]
fn of_two_requests_with_one_id_2_30_apart_the_later_one_is_answered() {
    let mut story = online();
    story.learn(&[r#"{"tools":[]}"#]);
    story.call();
    story.server(&asks("\"a\"", "tools/call", None));
    story.ids = RequestIds::new();
    for _ in 0..2 {
        story.ids.issue();
    }
    story.server(&asks("\"b\"", "tools/call", None));
    let to_b = message::mcp_result(None, "\"b\"", "{}");
    assert_eq!(story.answer(FIRST + 2, "{}"), [say(&to_b)]);
}
