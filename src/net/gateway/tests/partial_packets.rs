//! Packets that arrive in pieces.

use std::io::Write;

use super::*;
use crate::net::gateway::device_events::READ_SIZE;
use crate::proto::mqtt::encode;

#[test]
fn a_long_packet_is_copied_a_few_times_and_not_once_for_each_piece() {
    const LONG: usize = 1024 * 1024;
    let mut harness = Harness::new(|config| config.mqtt.max_payload_size = 2 * LONG);
    let (mut client, id) = harness.online(&client_id(1));
    let device = |gateway: &Gateway| {
        let device = gateway.sessions.get(id).unwrap().mqtt.as_ref().unwrap();
        (device.partial_len(), device.buffered_bytes())
    };
    let mut packet = Vec::new();
    encode::publish(&mut packet, "t", &vec![b' '; LONG]);
    let (last, begin) = packet.split_last().unwrap();
    let (mut came, mut room, mut moves) = (0, 0, 0);
    for piece in begin.chunks(READ_SIZE) {
        client.write_all(piece).unwrap();
        came += piece.len();
        harness.until("it is read", |gateway| device(gateway).0 == came);
        let now = device(&harness.gateway).1;
        moves += usize::from(now != room);
        room = now;
    }
    assert!(moves <= 12, "moved {moves} times");
    assert_eq!(room, packet.len(), "no more room than the packet takes");
    // Its end comes with the next packet, and the start of another.
    client.write_all(&[*last, 0xc0, 0, 0x30, 5]).unwrap();
    harness.until("both are served", |gateway| device(gateway).0 == 2);
    assert!(harness.gateway.sessions.get(id).unwrap().core.is_online());
}
