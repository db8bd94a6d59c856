//! A session over its share of the memory budget loses the connection that buffers most.

use std::io::Write;
use std::net::TcpStream;

use super::*;
use crate::net::event_loop::run_queue::Task;
use crate::net::sessions::memory_budget::{BUDGET, FREE_PER_CONNECTION};
use crate::proto::mqtt::encode;

/// Sends a text of a device.
fn send_text(client: &mut TcpStream, length: usize) {
    let text = format!(r#"{{"type":"custom","filler":"{}"}}"#, "x".repeat(length));
    let mut packet = Vec::new();
    encode::publish(&mut packet, "t", text.as_bytes());
    client.write_all(&packet).unwrap();
}

/// Sends text for a chat server that does not read, until `done`. The system buffers some megabytes before the gateway does.
fn fill(harness: &mut Harness, client: &mut TcpStream, done: impl Fn(&Gateway) -> bool) {
    for _ in 0..500 {
        if done(&harness.gateway) {
            return;
        }
        send_text(client, 40_000);
        harness.serve(client);
    }
    panic!("nothing is buffered for the server");
}

/// Makes other sessions use so much of the budget that hardly any share is left. Returns their bytes.
fn fill_budget(harness: &mut Harness) -> u32 {
    let others = (BUDGET - 1024) as u32;
    harness.gateway.sessions.memory.fill(others);
    others
}

#[track_caller]
fn assert_websocket_lost(harness: &mut Harness, id: SessionId, others: u32) {
    harness.until("its WebSocket is lost", |gateway| {
        gateway.sessions.get(id).unwrap().backend.as_ref().is_none_or(|backend| !backend.is_open())
    });
    let session = harness.gateway.sessions.get(id).unwrap();
    assert!(session.core.is_online() && session.mqtt.as_ref().is_some_and(|connection| !connection.closing));
    assert!(session.core.has_call(), "it redials");
    assert_eq!(harness.gateway.sessions.memory.used(), others as usize);
}

#[test]
fn a_server_that_does_not_read_costs_its_websocket_and_not_the_device() {
    let mut harness = Harness::new(|_| {});
    let (mut client, id, _socket) = harness.live_call(&client_id(1));
    let buffered = |gateway: &Gateway| gateway.sessions.get(id).unwrap().bytes_for_backend();
    fill(&mut harness, &mut client, |gateway| buffered(gateway) >= 2 * FREE_PER_CONNECTION);
    assert!(
        harness.gateway.sessions.memory.used() >= FREE_PER_CONNECTION,
        "{} bytes",
        harness.gateway.sessions.memory.used()
    );
    let others = fill_budget(&mut harness);
    send_text(&mut client, 100);
    assert_websocket_lost(&mut harness, id, others);
}

#[test]
fn an_unfinished_message_costs_the_server_its_websocket_and_not_the_device() {
    const PART: usize = 50_000;
    let mut harness = Harness::new(|_| {});
    let (_client, id, mut socket) = harness.live_call(&client_id(1));
    let buffered = |gateway: &Gateway| gateway.sessions.get(id).unwrap().bytes_for_backend();
    let mut part = |first: u8| {
        let head = [first, 126, (PART >> 8) as u8, PART as u8];
        socket.get_mut().write_all(&[&head[..], &[b' '; PART]].concat()).unwrap();
    };
    part(0x01);
    harness.until("its start is buffered", |gateway| buffered(gateway) >= PART);
    assert!(
        harness.gateway.sessions.memory.used() >= PART - FREE_PER_CONNECTION,
        "{} bytes",
        harness.gateway.sessions.memory.used()
    );
    part(0x80);
    harness.until("it is whole", |gateway| gateway.sessions.memory.used() == 0);
    let others = fill_budget(&mut harness);
    part(0x01);
    assert_websocket_lost(&mut harness, id, others);
}

#[test]
fn a_session_that_is_within_its_share_again_loses_nothing() {
    let mut harness = Harness::new(|_| {});
    let (mut client, id, _socket) = harness.live_call(&client_id(1));
    fill_budget(&mut harness);
    harness.gateway.io.run_queue.push(Task::OverBudget(id));
    send_text(&mut client, 10);
    harness.serve(&mut client);
    let session = harness.gateway.sessions.get(id).unwrap();
    assert!(session.core.is_online() && session.backend.as_ref().is_some_and(|backend| backend.is_open()));
}

#[test]
fn a_closing_websocket_is_accounted_while_it_lingers() {
    let mut harness = Harness::new(|_| {});
    let (mut client, id, _socket) = harness.live_call(&client_id(1));
    fill(&mut harness, &mut client, |gateway| gateway.sessions.memory.used() >= FREE_PER_CONNECTION);
    let before = harness.gateway.sessions.memory.used();
    let mut goodbye = Vec::new();
    encode::publish(&mut goodbye, "t", br#"{"type":"goodbye"}"#);
    client.write_all(&goodbye).unwrap();
    harness.until("the call is over", |gateway| !gateway.sessions.get(id).unwrap().core.has_call());
    assert!(
        harness.gateway.sessions.memory.used() >= before,
        "{} and not {before}",
        harness.gateway.sessions.memory.used()
    );
    harness.until("the WebSocket has stopped lingering", |gateway| gateway.sessions.memory.used() == 0);
}
