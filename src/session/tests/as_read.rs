//! A message is interpreted as its final reader, the device or the chat server, reads it.

use super::*;

#[test]
fn a_servers_message_is_what_the_device_takes_it_for() {
    // The device uses the first member of a name in any case of its letters, and ends strings at U+0000.
    for (text, ends) in [
        (r#"{"Type":"goodbye","type":"llm"}"#, true),
        (r#"{"TYPE":"goodbye"}"#, true),
        (r#"{"type":"goodbye","type":"llm"}"#, true),
        (r#"{"type\u0000x":"goodbye","type":"llm"}"#, true),
        (r#"{"ty\u0050e":"goodbye\u0000x","type":"llm"}"#, true),
        (r#"{"type":"llm","type":"goodbye"}"#, false),
        (r#"{"type":"llm","Type":"goodbye"}"#, false),
        (r#"{"Type":7,"type":"goodbye"}"#, false),
        (r#"{"type":"Goodbye"}"#, false),
    ] {
        let mut scenario = Scenario::with_udp_peer();
        let actions = scenario.server_sends(text);
        assert_eq!(actions.iter().any(|action| matches!(action, Action::CallEnded(_))), ends, "{text}");
        assert_eq!(texts_to_device(&actions), [format!(r#"{{"session_id":"s1",{}"#, &text[1..])]);
    }
    // A second hello would make the device start another call.
    for text in [r#"{"Type":"hello","type":"llm"}"#, r#"{"type":"hello\u0000","type":"llm"}"#] {
        assert_eq!(
            Scenario::with_udp_peer().server_sends(text),
            [Action::Count(Counter::RepeatedHello)],
            "{text}"
        );
    }
}

#[test]
fn speech_begins_and_ends_as_the_device_takes_it() {
    for (text, speaks) in [
        (r#"{"type":"tts","State":"start","state":"stop"}"#, true),
        (r#"{"Type":"tts","type":"llm","state":"start"}"#, true),
        (r#"{"type":"tts","state":"stop","state":"start"}"#, false),
        (r#"{"type":"llm","type":"tts","state":"start"}"#, false),
    ] {
        let mut scenario = Scenario::with_udp_peer();
        scenario.server_sends(text);
        // The gateway ends speech that a lost server did not end.
        let stops = texts_to_device(&scenario.close_backend(failed(BackendStage::Live))).len();
        assert_eq!(stops, usize::from(speaks), "{text}");
    }
}

#[test]
fn an_mcp_request_is_what_the_device_takes_it_for() {
    let mut scenario = Scenario::new();
    scenario.shell.config.mcp.enabled = true;
    scenario.connect();
    scenario.start_call();
    // The device reads the first payload and the first id: these get an id of the gateway.
    let text = r#"{"session_id":"s1","type":"mcp","Payload":{"ID":"a","id":7,"method":"x"},"payload":{"id":8,"method":"x"}}"#;
    let told_to = scenario.server_sends(text);
    let rpc = message::parse_rpc(texts_to_device(&told_to)[0], message::Reader::Server).unwrap();
    assert_eq!(rpc.id, Some("8"), "untouched");
    let ours = 0x4000_0001;
    assert_eq!(
        texts_to_device(&told_to),
        [text.replace("\"ID\":\"a\",\"id\":7", &format!("\"ID\":{ours},\"id\":{ours}"))]
    );
    let answer = format!(r#"{{"type":"mcp","payload":{{"id":{ours},"result":{{}}}}}}"#);
    assert_eq!(scenario.device_sends(&answer), [send_text(&answer.replace(&ours.to_string(), "\"a\""))]);
}
