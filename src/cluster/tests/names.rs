//! Two gateways of one name.

use super::*;

#[test]
fn the_second_of_one_name_takes_another_and_gets_the_name_when_it_is_free() {
    let mut scenario = Scenario::stopped();
    scenario.add("gw");
    scenario.run_for(1);
    scenario.take(0);
    scenario.add("gw");
    scenario.run_for(2);
    let taken = Outcome::NameTaken { name: "gw".to_owned(), holder: id(0), instead: "gw-2".to_owned() };
    assert_eq!(scenario.take(1)[..2], [taken, Outcome::Connected { name: "gw-2".to_owned() }]);
    scenario.run_for(60);
    let name = |scenario: &Scenario, index: usize| scenario.gateways[index].name();
    assert_eq!((name(&scenario, 0), name(&scenario, 1)), ("gw".to_owned(), "gw-2".to_owned()));
    // Redis has lost all names: each keeps its own.
    scenario.redis.keys.clear();
    scenario.run_for(60);
    assert_eq!((name(&scenario, 0), name(&scenario, 1)), ("gw".to_owned(), "gw-2".to_owned()));
    scenario.redis.crash();
    scenario.run_for(1);
    scenario.redis.is_down = false;
    scenario.run_for(60);
    assert_eq!((name(&scenario, 0), name(&scenario, 1)), ("gw".to_owned(), "gw-2".to_owned()));
    scenario.gateways[0].leave(scenario.now);
    scenario.settle();
    scenario.kill(0);
    scenario.run_for(6);
    assert_eq!(name(&scenario, 1), "gw");
    assert!(scenario.take(1).contains(&Outcome::NameRegained("gw".to_owned())));
    let names: Vec<_> = scenario.redis.keys.keys().filter(|key| key.contains("gateway")).collect();
    assert_eq!(names, ["p:gateway:gw"]);
}

#[test]
fn a_process_that_is_replaced_gives_its_name_to_its_successor() {
    let mut scenario = Scenario::new(2);
    scenario.run_for(20);
    scenario.connect_device(0, mac(1), 1);
    let successor = scenario.add("gw-0");
    scenario.run_until(scenario.now + Duration::from_millis(20));
    scenario.gateways[0].resign(scenario.now);
    scenario.run_for(4);
    let outcomes = scenario.take(successor);
    assert!(outcomes.contains(&Outcome::Connected { name: "gw-0".to_owned() }), "{outcomes:?}");
    assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::NameTaken { .. })), "{outcomes:?}");
    let mut names: Vec<_> = scenario.gateways[1].peers().map(|peer| peer.info.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["gw-0", "gw-0-old"]);
    assert_eq!(scenario.locate(1, mac(1)), crate::cluster::Location::At(id(0)));
    scenario.redis.crash();
    scenario.run_for(1);
    scenario.redis.is_down = false;
    scenario.run_for(10);
    assert_eq!((scenario.state(0), scenario.gateways[0].name()), ("connected", "gw-0-old".to_owned()));
    assert_eq!(scenario.gateways[successor].name(), "gw-0");
}

#[test]
fn a_gateway_that_was_killed_and_started_again_has_its_name_at_once() {
    let mut scenario = Scenario::new(1);
    scenario.kill(0);
    scenario.add("gw-0");
    scenario.run_for(1);
    assert_eq!(scenario.take(1)[..1], [Outcome::Connected { name: "gw-0".to_owned() }]);
}

#[test]
fn of_three_that_start_at_once_each_has_a_name() {
    let mut scenario = Scenario::stopped();
    (0..3).for_each(|_| _ = scenario.add("gw"));
    scenario.run_for(10);
    let mut names: Vec<_> = scenario.gateways.iter().map(Cluster::name).collect();
    names.sort();
    assert_eq!(names, ["gw", "gw-2", "gw-3"]);
}

#[test]
fn garbage_in_the_key_of_a_name_is_overwritten() {
    for garbage in [&b"somebody"[..], b"", b"\xff\0\r\n"] {
        let mut scenario = Scenario::stopped();
        let until = scenario.now + Duration::from_secs(1_000);
        scenario.redis.keys.insert("p:gateway:gw".to_owned(), (garbage.to_vec(), until));
        scenario.add("gw");
        scenario.run_for(1);
        assert_eq!(scenario.take(0), [Outcome::Connected { name: "gw".to_owned() }]);
    }
}
