//! Packets that arrive in parts.

use std::io::Write;

use super::*;
use crate::net::gateway::device_events::READ_SIZE;
use crate::proto::mqtt::encode;

#[test]
fn a_long_packet_is_copied_a_few_times_and_not_once_per_read() {
    const LONG: usize = 1024 * 1024;
    let mut harness = Harness::new(|config| config.mqtt.max_payload_size = 2 * LONG);
    let (mut client, id) = harness.online(&client_id(1));
    let buffered = |gateway: &Gateway| {
        let connection = gateway.sessions.get(id).unwrap().mqtt.as_ref().unwrap();
        (connection.partial_len(), connection.buffered_bytes())
    };
    let mut packet = Vec::new();
    encode::publish(&mut packet, "t", &vec![b' '; LONG]);
    let (last, begin) = packet.split_last().unwrap();
    let (mut received, mut capacity, mut moves) = (0, 0, 0);
    for piece in begin.chunks(READ_SIZE) {
        client.write_all(piece).unwrap();
        received += piece.len();
        harness.until("it is read", |gateway| buffered(gateway).0 == received);
        let now = buffered(&harness.gateway).1;
        moves += usize::from(now != capacity);
        capacity = now;
    }
    assert!(moves <= 12, "moved {moves} times");
    assert_eq!(capacity, packet.len(), "no more than the packet needs");
    // Its last byte arrives together with the next packet and the start of another one.
    client.write_all(&[*last, 0xc0, 0, 0x30, 5]).unwrap();
    harness.until("both are served", |gateway| buffered(gateway).0 == 2);
    assert!(harness.gateway.sessions.get(id).unwrap().core.is_online());
}
