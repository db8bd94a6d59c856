//! Gateways that hear each other, and what they send.

use super::*;
use crate::cluster::frame::{Frame, kind};
use crate::cluster::{FIRST_KIND, Kind, MAX_PAYLOAD, SendError};

fn received(outcomes: &[Outcome]) -> Vec<(GatewayId, u8, u64, usize)> {
    let frames = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Received { from, kind, id, payload } => Some((*from, *kind, *id, payload.len())),
        _ => None,
    });
    frames.collect()
}

fn gone(index: usize, why: &'static str) -> Outcome {
    Outcome::PeerGone { id: id(index), name: Some(format!("gw-{index}")), why }
}

#[test]
fn all_hear_of_each_other_at_once_and_of_one_that_leaves() {
    let mut scenario = Scenario::stopped();
    (0..3).for_each(|index| _ = scenario.add(&format!("gw-{index}")));
    scenario.run_for(1);
    for index in 0..3 {
        let names: Vec<_> = scenario.gateways[index].peers().map(|peer| peer.info.name.clone()).collect();
        let expected: Vec<_> =
            (0..3).filter(|other| *other != index).map(|other| format!("gw-{other}")).collect();
        assert_eq!(names, expected);
        scenario.take(index);
    }
    scenario.run_for(30);
    scenario.gateways[1].leave(scenario.now);
    scenario.settle();
    assert_eq!(scenario.take(0), [gone(1, "it has ended")]);
}

#[test]
fn one_that_is_not_heard_is_gone_after_seven_seconds_or_as_soon_as_it_is_needed() {
    let mut scenario = Scenario::new(3);
    scenario.run_for(30);
    scenario.kill(1);
    scenario.run_for(3);
    assert_eq!(scenario.take(0), []);
    scenario.gateways[0].send(id(1), FIRST_KIND, 0, b"hello", scenario.now).unwrap();
    scenario.settle();
    assert_eq!(scenario.take(0), [gone(1, "nobody receives what it is sent")]);
    scenario.run_for(4);
    assert_eq!((scenario.take(0), scenario.take(2)), (Vec::new(), vec![gone(1, "not heard for 7 s")]));
}

#[test]
fn an_outage_of_redis_takes_no_gateway_away() {
    let mut scenario = Scenario::new(2);
    scenario.run_for(30);
    for seconds in [1, 20] {
        scenario.redis.crash();
        scenario.run_for(seconds);
        scenario.redis.is_down = false;
        // Messages to a gateway that has not subscribed again.
        let until = scenario.now + Duration::from_secs(10);
        while scenario.now < until {
            let _ = scenario.gateways[0].send(id(1), FIRST_KIND, 0, b"hello", scenario.now);
            scenario.run_until(scenario.now + Duration::from_millis(50));
        }
        let outcomes = scenario.take(0);
        assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::PeerGone { .. })), "{outcomes:?}");
        assert_eq!(scenario.gateways[0].peer_count(), 1);
    }
}

#[test]
fn redis_that_ends_all_subscriptions_takes_no_gateway_away() {
    let mut scenario = Scenario::new(2);
    scenario.run_for(30);
    (0..2).for_each(|index| scenario.redis.disconnect(index, Connection::Subscriber));
    scenario.gateways[0].on_lost(Connection::Subscriber, "closed", scenario.now);
    scenario.gateways[0].send(id(1), FIRST_KIND, 0, b"hello", scenario.now).unwrap();
    scenario.settle();
    scenario.gateways[1].on_lost(Connection::Subscriber, "closed", scenario.now);
    scenario.run_for(10);
    let outcomes = scenario.take(0);
    assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::PeerGone { .. })), "{outcomes:?}");
    assert_eq!((scenario.state(0), scenario.gateways[0].peer_count()), ("connected", 1));
}

#[test]
fn a_channel_that_delivers_nothing_takes_no_gateway_away() {
    for after_ms in (0..6_000).step_by(250) {
        let mut scenario = Scenario::new(2);
        scenario.run_until(scenario.now + Duration::from_millis(30_000 + after_ms));
        scenario.redis.wedged.insert(0);
        while scenario.state(0) == "connected" {
            scenario.run_until(scenario.now + Duration::from_millis(10));
        }
        scenario.redis.wedged.clear();
        scenario.run_for(10);
        let outcomes = scenario.take(0);
        assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::PeerGone { .. })), "{outcomes:?}");
        assert_eq!((scenario.state(0), scenario.gateways[0].peer_count()), ("connected", 1));
    }
}

#[test]
fn payloads_arrive_in_order_and_together() {
    let mut scenario = Scenario::new(2);
    let published = scenario.gateways[0].counters().published;
    let sizes = [0, 1, 100, 4_000, 100, MAX_PAYLOAD, 5, 6];
    for (n, size) in sizes.iter().enumerate() {
        let payload = vec![7; *size];
        let sent = match n % 2 {
            0 => scenario.gateways[0].send(id(1), FIRST_KIND, n as u64, &payload, scenario.now),
            _ => scenario.gateways[0].send(id(1), Kind::CallAudio as u8, n as u64, &payload, scenario.now),
        };
        match *size == MAX_PAYLOAD {
            true => assert_eq!(sent, Err(SendError::QueueFull), "as audio"),
            false => assert_eq!(sent, Ok(())),
        }
    }
    scenario.gateways[0].send(id(1), FIRST_KIND, 99, &[7; MAX_PAYLOAD], scenario.now).unwrap();
    let too_long = scenario.gateways[0].send(id(1), FIRST_KIND, 0, &[7; MAX_PAYLOAD + 1], scenario.now);
    assert_eq!(too_long, Err(SendError::TooLong));
    scenario.settle();
    let expected =
        [(0, 16, 0), (1, 20, 1), (2, 16, 100), (3, 20, 4_000), (4, 16, 100), (6, 16, 5), (7, 20, 6)];
    let mut expected: Vec<_> = expected.iter().map(|(n, kind, len)| (id(0), *kind, *n, *len)).collect();
    expected.push((id(0), 16, 99, MAX_PAYLOAD));
    assert_eq!(received(&scenario.take(1)), expected);
    assert_eq!(scenario.gateways[0].counters().published - published, 4);
}

#[test]
fn while_redis_takes_nothing_audio_is_dropped_first_and_the_queue_is_bounded() {
    let mut scenario = Scenario::new(2);
    let (now, payload) = (scenario.now, [7; 1000]);
    let gateway = &mut scenario.gateways[0];
    gateway.set_unwritten(Connection::Commands, 0);
    let mut audio = 0;
    while gateway.send(id(1), Kind::CallAudio as u8, 0, &payload, now).is_ok() {
        audio += 1;
    }
    assert!((240..=257).contains(&audio), "{audio} packets of 1,000 bytes in 256 KiB");
    let mut control = 0;
    while gateway.send(id(1), FIRST_KIND, 0, &payload, now).is_ok() {
        control += 1;
    }
    assert!((3_700..=4_000).contains(&control), "{control} messages of 1,000 bytes in 4 MiB");
    assert!(gateway.queued() <= 4 << 20);
    assert_eq!(gateway.counters().dropped, 2);
    // What the socket has not taken counts too.
    gateway.take_output(Connection::Commands);
    gateway.set_unwritten(Connection::Commands, 4 << 20);
    assert_eq!(gateway.send(id(1), FIRST_KIND, 0, b"x", now), Err(SendError::QueueFull));
}

#[test]
fn what_no_gateway_sends_is_counted_and_changes_nothing() {
    let mut scenario = Scenario::new(2);
    let own = format!("p:to:{}", id(0));
    let frame = |from: usize, kind: u8, payload: &[u8]| {
        let mut bytes = Vec::new();
        Frame { from: id(from), kind, id: 1, payload }.write(&mut bytes);
        bytes
    };
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(200));
    let before = scenario.gateways[0].counters().malformed;
    let hostile = [
        (own.as_str(), vec![0; 100]),
        (&own, b"GET / HTTP/1.1".to_vec()),
        (&own, frame(8, kind::CLOSE, b"short")),
        (&own, frame(8, kind::ANNOUNCE, br#"{"name":"x"}"#)),
        (&own, frame(8, kind::LEAVE, b"")),
        (&own, frame(8, 9, b"")),
        ("p:all", frame(8, kind::ANNOUNCE, b"{}")),
        ("p:all", frame(8, kind::ANNOUNCE, b"no JSON")),
        ("p:all", frame(8, kind::ANNOUNCE, br#"{"name":"a\nb"}"#)),
        ("p:all", frame(8, kind::ANNOUNCE, br#"{"name":"a","devices":-1}"#)),
        ("p:all", frame(8, kind::ANNOUNCE, long.as_bytes())),
        ("p:all", frame(8, kind::CLOSE, &[2, 0, 0, 0, 0, 1])),
        ("p:all", frame(8, FIRST_KIND, b"")),
    ];
    for (channel, payload) in &hostile {
        scenario.redis.publish(channel, payload);
    }
    scenario.settle();
    assert_eq!(scenario.take(0), []);
    assert_eq!(scenario.gateways[0].counters().malformed - before, hostile.len() as u64);
    assert_eq!(scenario.state(0), "connected");
    // Names without end.
    for n in 0..3_000 {
        scenario.redis.publish("p:all", &frame(100 + n, kind::ANNOUNCE, br#"{"name":"x"}"#));
    }
    scenario.settle();
    assert_eq!(scenario.gateways[0].peer_count(), 1_000);
    scenario.run_for(8);
    assert_eq!(scenario.gateways[0].peer_count(), 1, "those that are not heard again are forgotten");
}
