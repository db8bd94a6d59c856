//! Devices that connect to one gateway and to another.

use super::*;
use crate::cluster::Location::{self, At};
use crate::cluster::device_record::{DeviceRecord, Origin};

fn elsewhere(n: u32, connection: u32, by: usize, later: u32) -> Outcome {
    Outcome::ConnectedElsewhere { mac: mac(n), connection, by: id(by), later }
}

fn record(gateway: usize, connection: u32, origin: Origin) -> String {
    DeviceRecord { gateway: id(gateway), connection, client: CLIENT, origin, since: 1_000 }.to_string()
}

#[test]
fn a_device_is_registered_located_and_deleted() {
    let mut scenario = Scenario::new(2);
    scenario.connect_device(0, mac(1), 5);
    scenario.settle();
    assert_eq!(scenario.redis.record(mac(1)), Some(record(0, 5, Origin::Connected)));
    assert_eq!((scenario.locate(1, mac(1)), scenario.locate(1, mac(2))), (At(id(0)), Location::Nowhere));
    scenario.disconnect_device(0, mac(1), 4);
    assert_eq!(scenario.locate(1, mac(1)), At(id(0)), "it has a newer connection");
    scenario.disconnect_device(0, mac(1), 5);
    scenario.settle();
    assert_eq!((scenario.locate(1, mac(1)), scenario.redis.record(mac(1))), (Location::Nowhere, None));
}

#[test]
fn a_device_that_connects_to_another_gateway_is_closed_at_the_first_and_never_the_other_way_round() {
    let mut scenario = Scenario::new(2);
    for (round, (from, to)) in [(0, 1), (1, 0), (0, 1)].into_iter().enumerate() {
        let connection = 10 + round as u32;
        if round == 0 {
            scenario.connect_device(from, mac(1), connection - 1);
            scenario.settle();
        }
        scenario.connect_device(to, mac(1), connection);
        scenario.settle();
        assert_eq!(scenario.take(from), [elsewhere(1, connection - 1, to, connection)]);
        assert_eq!(scenario.take(to), []);
        // The first closes it, which deletes nothing.
        scenario.disconnect_device(from, mac(1), connection - 1);
        scenario.settle();
        assert_eq!(scenario.redis.record(mac(1)), Some(record(to, connection, Origin::Connected)));
    }
}

#[test]
fn another_client_id_of_the_same_mac_closes_nothing() {
    let mut scenario = Scenario::new(2);
    scenario.connect_device(0, mac(1), 1);
    scenario.settle();
    scenario.gateways[1].device_connected(device(mac(1), 2, CLIENT + 1), scenario.now);
    scenario.run_for(120);
    assert_eq!((scenario.take(0), scenario.take(1)), (Vec::new(), Vec::new()));
    assert_eq!(scenario.locate(0, mac(1)), At(id(1)), "the later one is found");
    scenario.disconnect_device(1, mac(1), 2);
    scenario.run_for(26);
    assert_eq!(scenario.locate(1, mac(1)), At(id(0)), "the other one is found again");
}

#[test]
fn a_connection_that_closes_elsewhere_is_noticed_although_the_message_was_lost() {
    let mut scenario = Scenario::new(2);
    scenario.connect_device(0, mac(1), 1);
    scenario.run_for(30);
    scenario.redis.wedged.insert(0);
    scenario.connect_device(1, mac(1), 2);
    scenario.settle();
    assert_eq!(scenario.take(0), []);
    scenario.run_for(8);
    scenario.redis.wedged.clear();
    scenario.run_for(26);
    let outcomes = scenario.take(0);
    assert!(outcomes.contains(&elsewhere(1, 1, 1, 2)), "{outcomes:?}");
    assert_eq!(scenario.take(1), []);
}

#[test]
fn records_are_refreshed_for_as_long_as_the_device_is_there() {
    let mut scenario = Scenario::new(1);
    scenario.connect_device(0, mac(1), 1);
    scenario.run_for(600);
    assert_eq!(scenario.locate(0, mac(1)), At(id(0)));
    scenario.kill(0);
    scenario.add("gw-1");
    scenario.run_for(76);
    assert_eq!(
        scenario.locate(1, mac(1)),
        Location::Nowhere,
        "the gateway has died, and its records with it"
    );
}

#[test]
fn many_are_refreshed_100_at_a_time_spread_over_the_round() {
    let mut scenario = Scenario::new(1);
    scenario.run_for(10);
    for n in 0..1_000 {
        scenario.connect_device(0, mac(n), n);
    }
    scenario.run_for(30);
    scenario.redis.log.clear();
    let mut per_second = Vec::new();
    for _ in 0..50 {
        scenario.run_for(1);
        per_second.push(scenario.redis.log.drain(..).filter(|line| line == "MGET 100").count());
    }
    assert_eq!(per_second.iter().sum::<usize>(), 20, "each twice in 50 s: {per_second:?}");
    assert!(per_second.iter().all(|chunks| *chunks <= 1), "{per_second:?}");
    assert_eq!(scenario.redis.log, [""; 0]);
}

#[test]
fn after_flushall_all_are_registered_again_and_none_is_said_to_be_offline() {
    let mut scenario = Scenario::new(2);
    for n in 0..500 {
        scenario.connect_device(0, mac(n), n);
    }
    scenario.run_for(60);
    assert_eq!(scenario.gateways[0].devices(), (500, 500));
    scenario.redis.keys.clear();
    scenario.redis.log.clear();
    scenario.run_for(26 + 5);
    assert_eq!(scenario.gateways[0].devices(), (500, 500));
    assert_eq!(
        scenario.redis.log.iter().filter(|line| line.contains(":r:") && line.ends_with(" NX")).count(),
        500
    );
    assert!(scenario.redis.log.iter().all(|line| line.starts_with("MGET") || line.ends_with(" NX")));
    assert_eq!((scenario.take(0), scenario.take(1)), (Vec::new(), Vec::new()));
    assert_eq!(scenario.locate(0, mac(7)), At(id(0)));
    assert_eq!(scenario.locate(0, mac(9_999)), Location::Unknown, "some may not be registered again");
    scenario.run_for(31);
    assert_eq!(scenario.locate(0, mac(9_999)), Location::Nowhere);
}

#[test]
fn after_flushall_the_newer_connection_still_wins() {
    let mut scenario = Scenario::new(2);
    // The device has left gateway 0, which has not noticed, since the message was lost and nothing was refreshed yet.
    scenario.connect_device(0, mac(1), 1);
    scenario.settle();
    scenario.redis.wedged.insert(0);
    scenario.connect_device(1, mac(1), 2);
    scenario.settle();
    scenario.redis.keys.clear();
    scenario.run_for(120);
    scenario.redis.wedged.clear();
    scenario.run_for(120);
    assert_eq!(
        scenario
            .take(1)
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::ConnectedElsewhere { .. }))
            .count(),
        0
    );
}

#[test]
fn after_an_outage_all_are_registered_again_within_seconds() {
    let mut scenario = Scenario::new(2);
    for n in 0..500 {
        scenario.connect_device(0, mac(n), n);
    }
    scenario.run_for(30);
    scenario.redis.crash();
    scenario.run_for(1);
    for n in 500..600 {
        scenario.connect_device(0, mac(n), n);
    }
    scenario.disconnect_device(0, mac(0), 0);
    scenario.run_for(20);
    scenario.take(1);
    assert_eq!(scenario.locate(1, mac(5)), Location::Unknown);
    scenario.redis.is_down = false;
    scenario.run_for(10);
    assert_eq!(scenario.gateways[0].devices(), (599, 599));
    assert_eq!(scenario.locate(1, mac(550)), At(id(0)));
    assert_eq!(scenario.locate(1, mac(0)), Location::Unknown);
}

#[test]
fn a_record_that_was_written_late_is_taken_back() {
    let mut scenario = Scenario::new(2);
    scenario.redis.is_paused = true;
    scenario.connect_device(0, mac(1), 1);
    scenario.settle();
    // Redis executes the newer one first.
    scenario.run_until(scenario.now + Duration::from_millis(2_100));
    scenario.redis.is_paused = false;
    scenario.connect_device(1, mac(1), 2);
    scenario.exchange(1);
    scenario.settle();
    assert_eq!(scenario.redis.record(mac(1)), Some(record(1, 2, Origin::Connected)));
    scenario.run_for(60);
    assert_eq!(
        (scenario.take(1), scenario.redis.record(mac(1))),
        (Vec::new(), Some(record(1, 2, Origin::Connected)))
    );
}

#[test]
fn a_device_that_has_left_before_its_record_was_written_takes_none_away() {
    let mut scenario = Scenario::new(2);
    scenario.redis.is_paused = true;
    scenario.connect_device(0, mac(1), 1);
    scenario.disconnect_device(0, mac(1), 1);
    scenario.settle();
    scenario.redis.is_paused = false;
    scenario.connect_device(1, mac(1), 2);
    scenario.exchange(1);
    scenario.settle();
    assert_eq!((scenario.take(0), scenario.take(1)), (Vec::new(), Vec::new()));
    assert_eq!(scenario.redis.record(mac(1)), Some(record(1, 2, Origin::Connected)));
}

#[test]
fn garbage_in_the_key_of_a_device_is_overwritten() {
    let mut scenario = Scenario::new(2);
    let until = scenario.now + Duration::from_secs(10_000);
    let garbage = [&b"somebody"[..], b"", b"\xff\0\r\n", b"1:0:0:0:c:0"];
    for (n, garbage) in garbage.iter().enumerate() {
        let key = format!("p:device:{}", mac(n as u32));
        scenario.redis.keys.insert(key.clone(), (garbage.to_vec(), until));
        assert_eq!(scenario.locate(1, mac(n as u32)), Location::Unknown);
        scenario.connect_device(0, mac(n as u32), 1);
        scenario.settle();
        assert_eq!(scenario.locate(1, mac(n as u32)), At(id(0)));
        scenario.redis.keys.insert(key, (garbage.to_vec(), until));
    }
    scenario.run_for(30);
    assert_eq!(scenario.gateways[0].devices(), (4, 4));
    assert_eq!(scenario.redis.record(mac(2)), Some(record(0, 1, Origin::Restored)));
    assert_eq!(scenario.take(0), []);
}

#[test]
fn an_earlier_connection_of_the_device_is_registered_when_the_later_one_has_ended() {
    let mut scenario = Scenario::new(2);
    scenario.connect_device(0, mac(1), 1);
    scenario.gateways[0].device_connected(device(mac(1), 2, CLIENT + 1), scenario.now);
    scenario.settle();
    scenario.disconnect_device(0, mac(1), 2);
    scenario.gateways[0].device_remains(device(mac(1), 1, CLIENT), scenario.now);
    scenario.run_for(26);
    assert_eq!(scenario.redis.record(mac(1)), Some(record(0, 1, Origin::Restored)));
}

#[test]
fn the_record_follows_a_device_that_is_away_from_its_call() {
    let mut scenario = Scenario::new(3);
    scenario.connect_device(0, mac(1), 5);
    scenario.settle();
    scenario.connect_device(1, mac(1), 6);
    scenario.settle();
    assert_eq!(scenario.take(0), [elsewhere(1, 5, 1, 6)]);
    let registered = [(5, None), (6, Some(id(0)))];
    let registered =
        registered.map(|(connection, asked)| Outcome::Registered { mac: mac(1), connection, asked });
    assert_eq!(scenario.registered, registered);
    // It loses that connection: the gateway with the call waits for it, and the next gateway finds that one.
    let now = scenario.now;
    scenario.gateways[1].device_left_call(mac(1), 6, id(0), 60, now);
    scenario.settle();
    let waiting = |connection| device(mac(1), connection, CLIENT);
    scenario.gateways[0].call_waits(waiting(60), None, now);
    scenario.settle();
    assert_eq!(scenario.locate(2, mac(1)), At(id(0)));
    scenario.connect_device(2, mac(1), 7);
    scenario.settle();
    assert_eq!(scenario.take(0), [elsewhere(1, 60, 2, 7)]);
    // The gateway with the call hears too late of another loss.
    scenario.gateways[0].call_waits(waiting(70), None, now);
    scenario.settle();
    assert_eq!(scenario.take(0), [elsewhere(1, 70, 2, 7)]);
    assert_eq!(scenario.redis.record(mac(1)), Some(record(2, 7, Origin::Connected)));
    // That gateway is gone, and its record with it.
    scenario.gateways[0].call_waits(waiting(80), Some(id(2)), now);
    scenario.settle();
    assert_eq!(scenario.take(0), []);
    assert_eq!(scenario.redis.record(mac(1)), Some(record(0, 80, Origin::Restored)));
}

#[test]
fn the_bucket_of_hellos_of_a_device_that_leaves_is_asked_for_by_the_next_gateway() {
    let mut scenario = Scenario::new(2);
    scenario.connect_device(0, mac(1), 5);
    scenario.settle();
    scenario.gateways[0].keep_hellos(mac(1), Duration::from_secs(14), scenario.now);
    scenario.disconnect_device(0, mac(1), 5);
    scenario.run_for(4);
    scenario.connect_device(1, mac(1), 6);
    scenario.settle();
    assert_eq!(scenario.take(1), [Outcome::Hellos { mac: mac(1), full_in: Duration::from_secs(10) }]);
    scenario.run_for(11);
    scenario.connect_device(0, mac(1), 7);
    scenario.settle();
    assert_eq!(scenario.take(0), []);
}
