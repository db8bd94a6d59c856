//! MCP: the tools are discovered once per connection and answered from the cache, and request ids are translated.

use super::*;

const FIRST_REQUEST_ID: u32 = 0x4000_0000;

fn online_with_mcp() -> Scenario {
    let mut scenario = Scenario::new();
    scenario.shell.config.mcp.enabled = true;
    scenario.shell.config.mcp.client_info = r#"{"name":"gw"}"#.to_owned();
    scenario
}

fn request(id: u32, method: &str, params: &str) -> Action {
    publish(&message::mcp_request(None, id, method, params))
}

fn discovery_log(tools: Result<usize, &'static str>) -> Action {
    Action::Log(LogEvent::ToolDiscovery(tools.map(|cached| ToolCount { cached, forwarded: 0 })))
}

impl Scenario {
    fn answer_request(&mut self, id: u32, result: &str) -> Vec<Action> {
        self.device_sends(&message::mcp_result(None, &id.to_string(), result))
    }

    /// Connects and answers the discovery with these pages of tools.
    fn discover(&mut self, pages: &[&str]) -> Vec<Action> {
        self.connect();
        self.answer_request(FIRST_REQUEST_ID, r#"{"serverInfo":{}}"#);
        let mut last = Vec::new();
        for (page, id) in pages.iter().zip(FIRST_REQUEST_ID + 1..) {
            last = self.answer_request(id, page);
        }
        last
    }
}

/// A request of the server.
fn server_request(id: &str, method: &str, params: Option<&str>) -> String {
    let params = params.map(|params| format!(r#","params":{params}"#)).unwrap_or_default();
    format!(
        r#"{{"session_id":"s1","type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"method":"{method}"{params}}}}}"#
    )
}

#[test]
fn all_pages_are_fetched_when_the_device_connects() {
    let mut scenario = online_with_mcp();
    let initialize = r#"{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"gw"}}"#;
    assert_eq!(scenario.connect()[3..], [request(FIRST_REQUEST_ID, "initialize", initialize)]);
    let actions = scenario.answer_request(FIRST_REQUEST_ID, r#"{"serverInfo":{}}"#);
    let initialized = publish(&message::mcp_notification(None, "notifications/initialized"));
    assert_eq!(actions, [initialized, request(FIRST_REQUEST_ID + 1, "tools/list", r#"{"cursor":""}"#)]);
    let actions = scenario
        .answer_request(FIRST_REQUEST_ID + 1, r#"{"tools":[{"name":"a"},{"name":"b"}],"nextCursor":"c\"1"}"#);
    assert_eq!(actions, [request(FIRST_REQUEST_ID + 2, "tools/list", r#"{"cursor":"c\"1"}"#)]);
    let actions =
        scenario.answer_request(FIRST_REQUEST_ID + 2, r#"{"tools":[{"name":"c"}],"nextCursor":""}"#);
    assert_eq!(actions, [discovery_log(Ok(3))]);
    scenario.start_call();
    for params in [None, Some("{}"), Some("null"), Some(r#"{"cursor":""}"#), Some(r#"{"cursor":null}"#)] {
        let answer =
            message::mcp_result(Some("s1"), "2", r#"{"tools":[{"name":"a"},{"name":"b"},{"name":"c"}]}"#);
        assert_eq!(
            scenario.server_sends(&server_request("2", "tools/list", params)),
            [send_text(&answer)],
            "{params:?}"
        );
    }
    for params in [r#"{"cursor":"c"}"#, r#"{"withUserTools":true}"#, "[]"] {
        let text = server_request("2", "tools/list", Some(params));
        assert_eq!(scenario.server_sends(&text), [publish(&text)], "{params}");
    }
}

#[test]
fn of_more_tools_than_are_cached_the_whole_pages_that_fit_are_answered_with_the_devices_cursor() {
    let pages = [
        r#"{"tools":[1],"nextCursor":"b\"1"}"#,
        r#"{"tools":[2,3],"nextCursor":"c"}"#,
        r#"{"tools":[4],"nextCursor":"d"}"#,
        r#"{"tools":[5,6]}"#,
    ];
    for (max, cached, tools) in [
        (6, 6, "[1,2,3,4,5,6]}"),
        (5, 4, r#"[1,2,3,4],"nextCursor":"d"}"#),
        (4, 4, r#"[1,2,3,4],"nextCursor":"d"}"#),
        (3, 3, r#"[1,2,3],"nextCursor":"c"}"#),
        // The third page would fit, but nothing may be left out.
        (2, 1, r#"[1],"nextCursor":"b\"1"}"#),
    ] {
        let mut scenario = online_with_mcp();
        scenario.shell.config.mcp.max_tools_count = max;
        let count = ToolCount { cached, forwarded: 6 - cached };
        assert_eq!(scenario.discover(&pages), [Action::Log(LogEvent::ToolDiscovery(Ok(count)))]);
        scenario.start_call();
        let answer = message::mcp_result(Some("s1"), "\"x\"", &format!(r#"{{"tools":{tools}"#));
        assert_eq!(scenario.server_sends(&server_request("\"x\"", "tools/list", None)), [send_text(&answer)]);
        let next = server_request("2", "tools/list", Some(r#"{"cursor":"c"}"#));
        assert_eq!(scenario.server_sends(&next), [publish(&next)], "the device knows its cursors");
    }
    let long = format!(r#"{{"tools":["{}"]}}"#, "x".repeat(256 * 1024));
    for (max, first) in [(1, r#"{"tools":[1,2]}"#), (9, &long)] {
        let mut scenario = online_with_mcp();
        scenario.shell.config.mcp.max_tools_count = max;
        let count = ToolCount { cached: 0, forwarded: if max == 1 { 2 } else { 1 } };
        assert_eq!(scenario.discover(&[first]), [Action::Log(LogEvent::ToolDiscovery(Ok(count)))]);
        scenario.start_call();
        let list = server_request("2", "tools/list", None);
        assert_eq!(scenario.server_sends(&list), [publish(&list)], "never an empty list");
    }
}

/// As the QuecPython client does.
#[test]
fn a_response_that_repeats_the_method_is_a_response() {
    let mut scenario = online_with_mcp();
    scenario.connect();
    let answer = |id: u32, member: &str| {
        format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"method":"tools/list",{member}}}}}"#)
    };
    let asked = scenario.device_sends(&answer(FIRST_REQUEST_ID, r#""result":{}"#));
    assert_eq!(texts_to_device(&asked).len(), 2);
    let tools = answer(FIRST_REQUEST_ID + 1, r#""result":{"tools":[1]}"#);
    assert_eq!(scenario.device_sends(&tools), [discovery_log(Ok(1))]);
    scenario.start_call();
    scenario.server_sends(&server_request("\"a\"", "tools/call", None));
    let error = answer(FIRST_REQUEST_ID + 2, r#""error":{"message":"no"}"#);
    let forwarded = error.replace(&(FIRST_REQUEST_ID + 2).to_string(), "\"a\"");
    assert_eq!(scenario.device_sends(&error), [send_text(&forwarded)]);
    let request = answer(FIRST_REQUEST_ID, r#""params":{}"#);
    assert_eq!(scenario.device_sends(&request), [send_text(&request)], "the device's own");
}

#[test]
fn a_notification_of_an_idle_device_is_counted_and_shown_and_gets_no_goodbye() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    let notification = r#"{"session_id":"","type":"mcp","payload":{"jsonrpc":"2.0","method":"notifications/battery","params":{"level": 7}}}"#;
    let shown = r#"notifications/battery {"level": 7}"#;
    let seen =
        [Action::Count(Counter::DeviceNotification), Action::Log(LogEvent::DeviceNotification(shown.into()))];
    assert_eq!(scenario.device_sends(notification), seen);
    let long = format!(r#"{{"type":"mcp","payload":{{"method":"{}"}}}}"#, "é".repeat(4000));
    let Action::Log(LogEvent::DeviceNotification(text)) = &scenario.device_sends(&long)[1] else { panic!() };
    assert_eq!(text.len(), 300);
    for quiet in [r#"{"type":"mcp","payload":{"id":1,"method":"x"}}"#, r#"{"type":"mcp"}"#] {
        assert_eq!(scenario.device_sends(quiet), [], "{quiet}");
    }
    scenario.start_call();
    assert_eq!(
        texts_to_server(&scenario.device_sends(notification)).len(),
        1,
        "in a call it is the server's"
    );
}

#[test]
fn an_early_timeout_changes_nothing() {
    let mut scenario = online_with_mcp();
    scenario.connect();
    scenario.wait(9_999);
    assert_eq!(scenario.drive(Core::on_timeout), []);
    assert_eq!(
        scenario.answer_request(FIRST_REQUEST_ID, r#"{"serverInfo":{}}"#).len(),
        2,
        "it is still waited for"
    );
    scenario.wait(9_999);
    assert_eq!(scenario.drive(Core::on_timeout), []);
    assert_eq!(scenario.answer_request(FIRST_REQUEST_ID + 1, r#"{"tools":[1]}"#), [discovery_log(Ok(1))]);
}

#[test]
fn two_hundred_kibibytes_of_tools_are_cached() {
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
    assert_eq!(online_with_mcp().discover(&pages), [discovery_log(Ok(10))]);
    let most = format!(r#"{{"tools":["{}"]}}"#, "x".repeat(256 * 1024 - 2));
    assert_eq!(online_with_mcp().discover(&[&most]), [discovery_log(Ok(1))]);
}

#[test]
fn after_a_failed_discovery_requests_are_forwarded() {
    let ends = |pages: &[&str], why: &'static str| {
        let mut scenario = online_with_mcp();
        assert_eq!(scenario.discover(pages).last(), Some(&discovery_log(Err(why))), "{pages:?}");
        scenario.start_call();
        let list = server_request("2", "tools/list", None);
        assert_eq!(scenario.server_sends(&list), [publish(&list)], "never an empty list");
    };
    let page = |next: &str| format!(r#"{{"tools":[1],"nextCursor":"{next}"}}"#);
    ends(&[&page("b"), &page("b")], "the pages do not end");
    ends(&[&page("b"), &page("c"), &page("b")], "the pages do not end");
    ends(&["{}"], "invalid page of tools");
    ends(&["[]"], "invalid page of tools");
    let mut scenario = online_with_mcp();
    scenario.shell.config.mcp.max_tools_count = 1_000;
    let pages: Vec<_> = (0..66).map(|n| page(&n.to_string())).collect();
    let pages: Vec<_> = pages.iter().map(|page| page.as_str()).collect();
    scenario.discover(&pages[..64]);
    assert_eq!(
        scenario.answer_request(FIRST_REQUEST_ID + 65, pages[64]),
        [discovery_log(Err("the pages do not end"))]
    );
}

#[test]
fn an_error_or_no_answer_fails_the_discovery() {
    let mut scenario = online_with_mcp();
    scenario.connect();
    let error = format!(
        r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{FIRST_REQUEST_ID},"error":{{"message":"no"}}}}}}"#
    );
    assert_eq!(scenario.device_sends(&error), [discovery_log(Err("the device answered with an error"))]);
    assert_eq!(scenario.device_sends(&error), [], "taken, and nothing more");

    let mut scenario = online_with_mcp();
    scenario.connect();
    assert_eq!(scenario.wait(9_999), []);
    assert_eq!(scenario.wait(1), [discovery_log(Err("no answer in 10 s"))]);
    assert_eq!(scenario.answer_request(FIRST_REQUEST_ID, "{}"), [], "too late");
    assert_eq!(scenario.core.deadline(), Some(scenario.shell.start + Duration::from_secs(90)));
    scenario.start_call();
    let initialize = server_request("1", "initialize", None);
    assert_eq!(scenario.server_sends(&initialize), [publish(&initialize)]);
}

#[test]
fn initialize_is_forwarded_when_it_carries_capabilities() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    let bare = server_request("1", "initialize", Some(r#"{"capabilities":{}}"#));
    let answer = message::mcp_result(Some("s1"), "1", r#"{"serverInfo":{}}"#);
    assert_eq!(scenario.server_sends(&bare), [send_text(&answer)]);
    let initialized = r#"{"session_id":"s1","type":"mcp","payload":{"method":"notifications/initialized"}}"#;
    assert_eq!(scenario.server_sends(initialized), [], "ours too");
    let vision = server_request("1", "initialize", Some(r#"{"capabilities":{"vision":{"url":"http://x"}}}"#));
    assert_eq!(scenario.server_sends(&vision), [publish(&vision)]);
    assert_eq!(scenario.server_sends(initialized), [publish(initialized)]);
    let reply = r#"{"session_id":"s1","type":"mcp","payload":{"jsonrpc":"2.0","id":1,"result":{}}}"#;
    assert_eq!(scenario.device_sends(reply), [send_text(reply)]);
}

#[test]
fn colliding_or_non_numeric_ids_are_translated_both_ways() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    let odd = ["1073741824", "2147483647", "4294967296", "-1", "1.5", "\"abc\""];
    for (id, ours) in odd.into_iter().zip(FIRST_REQUEST_ID + 2..) {
        let translated = server_request(&ours.to_string(), "tools/call", Some(r#"{"name":"x"}"#));
        assert_eq!(
            scenario.server_sends(&server_request(id, "tools/call", Some(r#"{"name":"x"}"#))),
            [publish(&translated)],
            "{id}"
        );
        let reply = |id: &str| {
            format!(r#"{{"session_id":"s1", "type":"mcp","payload":{{"id":{id},"result":{{"a": 1}}}}}}"#)
        };
        assert_eq!(scenario.device_sends(&reply(&ours.to_string())), [send_text(&reply(id))], "{id}");
        assert_eq!(scenario.device_sends(&reply(&ours.to_string())), [], "only once");
    }
    for id in ["0", "1", "9999", "1073741823"] {
        let text = server_request(id, "tools/call", None);
        assert_eq!(scenario.server_sends(&text), [publish(&text)], "{id}");
    }
    let notification = r#"{"session_id":"s1","type":"mcp","payload":{"id":null,"method":"x"}}"#;
    assert_eq!(scenario.server_sends(notification), [publish(notification)]);
    for odd in [r#"{"session_id":"s1","type":"mcp"}"#, r#"{"session_id":"s1","type":"mcp","payload":[]}"#] {
        assert_eq!(scenario.server_sends(odd), [publish(odd)]);
        assert_eq!(scenario.device_sends(odd), [send_text(odd)]);
    }
}

#[test]
fn translations_are_bounded() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    for n in 0..65 {
        scenario.server_sends(&server_request(&format!("\"{n}\""), "tools/call", None));
    }
    assert_eq!(scenario.answer_request(FIRST_REQUEST_ID + 2, "{}"), [], "the oldest is forgotten");
    assert_eq!(
        texts_to_server(&scenario.answer_request(FIRST_REQUEST_ID + 3, "{}")),
        [message::mcp_result(None, "\"1\"", "{}")]
    );
    let long = server_request(&format!("\"{}\"", "x".repeat(127)), "tools/call", None);
    assert_eq!(scenario.server_sends(&long), [publish(&long)], "no device answers such an id anyway");
}

#[test]
fn a_response_to_a_previous_server_is_not_forwarded_to_the_next() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    scenario.server_sends(&server_request("\"a\"", "tools/call", None));
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    assert_eq!(scenario.answer_request(FIRST_REQUEST_ID + 2, "{}"), []);
}

#[test]
fn a_taken_over_call_repeats_discovery_and_loses_no_response() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[1]}"#]);
    scenario.start_call();
    scenario.server_sends(&server_request("\"a\"", "tools/call", None));
    scenario.lose_connection();
    let list = server_request("3", "tools/list", None);
    assert_eq!(texts_to_server(&scenario.server_sends(&list)).len(), 1, "memory serves an absent device too");
    let actions = scenario.reconnect(DEVICE_IP);
    assert!(
        texts_to_device(&actions)[0].contains(
            r#""session_id":"s1","payload":{"jsonrpc":"2.0","id":1073741827,"method":"initialize""#
        )
    );
    assert_eq!(texts_to_device(&actions).len(), 1);
    assert_eq!(texts_to_server(&scenario.answer_request(FIRST_REQUEST_ID + 2, "{}")).len(), 1);
    scenario.wait(500);
    assert_eq!(scenario.server_sends(&list), [publish(&list)], "forwarded until the list is complete again");
}

#[test]
fn discovery_can_be_turned_off_live() {
    let mut scenario = Scenario::new();
    assert_eq!(without_logs_and_counters(scenario.connect()), [Action::Admit, Action::AcceptConnect]);
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[1]}"#]);
    scenario.start_call();
    scenario.shell.config.mcp.enabled = false;
    let list = server_request("3", "tools/list", None);
    assert_eq!(scenario.server_sends(&list), [publish(&list)]);
}

#[test]
fn a_request_before_the_servers_hello_is_answered_from_the_cache() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[1]}"#]);
    scenario.device_sends(HELLO);
    scenario.open_backend();
    let answer = message::mcp_result(None, "2", r#"{"tools":[1]}"#);
    assert_eq!(scenario.server_sends(&server_request("2", "tools/list", None)), [send_text(&answer)]);
    let call = server_request("3", "tools/call", None);
    assert_eq!(scenario.server_sends(&call), [], "what the device must answer waits");
    assert_eq!(texts_to_device(&scenario.server_sends(SERVER_HELLO))[1], call);
}

#[test]
fn our_request_ids_wrap_at_the_int32_maximum() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    for (id, ours) in
        [("1073741823", false), ("1073741824", true), ("2147483647", true), ("2147483648", false)]
    {
        let reply = message::mcp_result(Some("s1"), id, "{}");
        let expected = if ours { vec![] } else { vec![send_text(&reply)] };
        assert_eq!(scenario.device_sends(&reply), expected, "{id}");
    }
}

#[test]
fn the_initialized_notification_is_consumed_only_when_we_answered_initialize() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    let initialized = r#"{"session_id":"s1","type":"mcp","payload":{"method":"notifications/initialized"}}"#;
    assert_eq!(scenario.server_sends(initialized), [publish(initialized)]);
}

/// The id of the gateway's only request among the actions.
fn asked(actions: &[Action]) -> u32 {
    message::parse_rpc(texts_to_device(actions)[0], message::Reader::Device)
        .unwrap()
        .id
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn a_late_answer_is_not_taken_for_one_that_a_new_connection_waits_for() {
    let mut scenario = online_with_mcp();
    let first = asked(&scenario.connect());
    scenario.lose_connection();
    let second = asked(&scenario.connect_anew());
    assert_eq!(scenario.answer_request(first, r#"{"late":1}"#), []);
    let actions = scenario.answer_request(second, r#"{"serverInfo":{}}"#);
    let first = message::parse_rpc(texts_to_device(&actions)[1], message::Reader::Device)
        .unwrap()
        .id
        .unwrap()
        .parse()
        .unwrap();
    scenario.lose_connection();
    let initialize = asked(&scenario.connect_anew());
    let actions = scenario.answer_request(initialize, r#"{"serverInfo":{}}"#);
    let second = message::parse_rpc(texts_to_device(&actions)[1], message::Reader::Device)
        .unwrap()
        .id
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(scenario.answer_request(first, r#"{"tools":[1,2]}"#), [], "a list of the connection before");
    assert_eq!(scenario.answer_request(second, r#"{"tools":[3]}"#), [discovery_log(Ok(1))]);
}

#[test]
fn a_late_answer_to_the_gateway_is_not_given_to_a_chat_server() {
    let mut scenario = online_with_mcp();
    let initialize = asked(&scenario.connect());
    scenario.wait(10_000);
    scenario.start_call();
    scenario.server_sends(&server_request("\"a\"", "tools/call", None));
    assert_eq!(scenario.answer_request(initialize, "{}"), [], "the device was silent for 10 s");

    let mut scenario = online_with_mcp();
    scenario.connect();
    scenario.start_call();
    let first = asked(&scenario.server_sends(&server_request("\"a\"", "tools/call", None)));
    scenario.packet(Packet::Disconnect);
    scenario.connect_anew();
    scenario.start_call();
    let second = asked(&scenario.server_sends(&server_request("\"b\"", "tools/call", None)));
    assert_eq!(scenario.answer_request(first, "{}"), [], "what the server before asked");
    assert_eq!(texts_to_server(&scenario.answer_request(second, "{}")).len(), 1);
}

#[test]
fn of_two_requests_with_one_id_2_30_apart_the_later_one_is_answered() {
    let mut scenario = online_with_mcp();
    scenario.discover(&[r#"{"tools":[]}"#]);
    scenario.start_call();
    scenario.server_sends(&server_request("\"a\"", "tools/call", None));
    scenario.shell.ids = RequestIds::new();
    for _ in 0..2 {
        scenario.shell.ids.issue();
    }
    scenario.server_sends(&server_request("\"b\"", "tools/call", None));
    let to_b = message::mcp_result(None, "\"b\"", "{}");
    assert_eq!(scenario.answer_request(FIRST_REQUEST_ID + 2, "{}"), [send_text(&to_b)]);
}
