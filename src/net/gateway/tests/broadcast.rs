//! A message to many is sent some devices at a time, and few such messages wait.

use super::*;
use crate::admin::messages::MessageCounts;
use crate::admin::worker_answer::Answer;
use crate::net::gateway::broadcast::{BATCH, MAX_BROADCASTS};

const BODY: &str = r#"{"to":"all","message":{"type":"alert"}}"#;

#[test]
fn some_devices_are_served_at_a_time_and_one_may_leave_meanwhile() {
    let mut harness = Harness::new(|_| {});
    let count = 2 * BATCH + 5;
    let mut devices: Vec<_> = (0..count).map(|n| harness.online(&client_id(n as u8))).collect();
    assert!(matches!(harness.gateway.handle_broadcast(1, BODY), Ok(None)));
    let progress = |harness: &Harness| {
        let broadcast = harness.gateway.broadcasts.0.front();
        broadcast.map(|broadcast| (broadcast.left.len(), broadcast.counts.sent, broadcast.counts.left))
    };
    assert_eq!(progress(&harness), Some((count, 0, 0)));
    harness.gateway.on_broadcast_timer();
    assert_eq!(progress(&harness), Some((BATCH + 5, BATCH, 0)));
    let next = harness.gateway.broadcasts.0[0].left[0];
    devices.retain(|(_, id)| *id != next);
    harness.until("a device has left", |gateway| gateway.sessions.get(next).is_none());
    // The loop has gone on meanwhile.
    harness.until("all are served", |gateway| gateway.broadcasts.0.is_empty());
    for (client, _) in &mut devices {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut connack_and_publish = [0; 5];
        client.read_exact(&mut connack_and_publish).unwrap();
        assert_eq!(connack_and_publish[4] & 0xf0, 0x30, "a PUBLISH follows");
    }
}

#[test]
fn beyond_eight_messages_to_many_the_devices_are_refused() {
    let mut harness = Harness::new(|_| {});
    let _device = harness.online(&client_id(1));
    for id in 0..MAX_BROADCASTS as u64 {
        assert!(matches!(harness.gateway.handle_broadcast(id, BODY), Ok(None)));
    }
    let Ok(Some(Answer::Messages(counts))) = harness.gateway.handle_broadcast(99, BODY) else { panic!() };
    assert_eq!(counts, MessageCounts { refused: 1, ..MessageCounts::default() });
    for left in (0..MAX_BROADCASTS).rev() {
        harness.gateway.on_broadcast_timer();
        assert_eq!(harness.gateway.broadcasts.0.len(), left);
    }
}
