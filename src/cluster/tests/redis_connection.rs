//! The connections to Redis.

use super::*;
use crate::cluster::SendError;

/// What a gateway writes, taken by hand.
fn written(cluster: &mut Cluster, connection: Connection) -> String {
    String::from_utf8_lossy(&cluster.take_output(connection)).replace("\r\n", " ")
}

#[test]
fn a_connection_greets_redis_with_user_password_and_database() {
    let now = Instant::now();
    let settings = Settings {
        name: "gw".to_owned(),
        prefix: "p".to_owned(),
        user: Some("u".to_owned()),
        password: Some(b"secret".to_vec()),
        database: 3,
        keys: Vec::new(),
    };
    let mut cluster = Cluster::new(id(0), settings, now);
    cluster.on_timeout(now);
    assert_eq!(cluster.take_actions(), BOTH.map(Action::Connect));
    cluster.on_connected(Connection::Commands, now);
    cluster.on_connected(Connection::Subscriber, now);
    assert_eq!(
        written(&mut cluster, Connection::Commands),
        "*3 $4 AUTH $1 u $6 secret *2 $6 SELECT $1 3 *3 $6 CLIENT $7 SETNAME $18 p:0000000000001000 *1 $4 PING "
    );
    assert_eq!(
        written(&mut cluster, Connection::Subscriber),
        "*3 $4 AUTH $1 u $6 secret *3 $6 CLIENT $7 SETNAME $18 p:0000000000001000 \
         *3 $9 SUBSCRIBE $21 p:to:0000000000001000 $5 p:all "
    );
}

#[test]
fn it_is_connected_when_its_own_channel_delivers() {
    let mut scenario = Scenario::stopped();
    scenario.add("gw");
    scenario.redis.wedged.insert(0);
    scenario.run_for(1);
    assert_eq!((scenario.state(0), scenario.take(0)), ("unreachable", Vec::new()));
    scenario.redis.wedged.clear();
    scenario.run_for(5);
    assert_eq!(scenario.take(0), [Outcome::Connected { name: "gw".to_owned() }]);
}

#[test]
fn a_redis_that_is_away_is_tried_again_with_growing_pauses_and_reported_once() {
    let mut scenario = Scenario::stopped();
    scenario.add("gw");
    scenario.redis.is_down = true;
    scenario.run_for(60);
    assert_eq!(scenario.take(0), [Outcome::Unreachable("refused".to_owned())]);
    let attempts = scenario.gateways[0].counters().connections_lost;
    assert!((36..=70).contains(&attempts), "{attempts} failures of two connections");
    scenario.redis.is_down = false;
    scenario.run_for(4);
    assert_eq!(scenario.take(0), [Outcome::Connected { name: "gw".to_owned() }]);
    scenario.redis.crash();
    scenario.run_for(1);
    assert_eq!(scenario.take(0), [Outcome::Unreachable("closed".to_owned())]);
}

#[test]
fn a_server_that_answers_nothing_is_left_after_three_seconds() {
    let mut scenario = Scenario::new(1);
    scenario.redis.is_paused = true;
    scenario.gateways[0].locate(mac(1), 5, scenario.now);
    // Before the next probe, which counts from when it is sent.
    let asked = scenario.now;
    scenario.run_until(asked + Duration::from_millis(2_990));
    assert_eq!(scenario.take(0), []);
    scenario.run_until(asked + Duration::from_secs(3));
    assert_eq!(
        scenario.take(0),
        [
            Outcome::Located { token: 5, location: crate::cluster::Location::Unknown },
            Outcome::Unreachable("no answer in 3 s".to_owned()),
        ]
    );
    assert_eq!(scenario.gateways[0].send(id(1), 20, 0, b"x", scenario.now), Err(SendError::Unreachable));
    // Connecting works, and proves nothing.
    scenario.run_for(20);
    assert_eq!(scenario.take(0), []);
    scenario.redis.is_paused = false;
    scenario.run_for(7);
    assert_eq!(scenario.take(0), [Outcome::Connected { name: "gw-0".to_owned() }]);
}

#[test]
fn a_subscription_that_delivers_nothing_is_made_anew_within_ten_seconds() {
    let mut scenario = Scenario::new(2);
    scenario.run_for(10);
    scenario.take(0);
    scenario.redis.wedged.insert(0);
    scenario.run_for(8);
    let outcomes = scenario.take(0);
    let why = "the channel of this gateway delivered nothing for 6 s";
    assert_eq!(outcomes, [Outcome::Unreachable(why.to_owned())]);
    scenario.redis.wedged.clear();
    scenario.run_for(4);
    assert_eq!(scenario.take(0), [Outcome::Connected { name: "gw-0".to_owned() }]);
    assert_eq!(scenario.gateways[0].peer_count(), 1);
}

#[test]
fn replies_that_are_none_end_the_connection() {
    for (connection, bytes, reason) in [
        (Connection::Commands, &b"HTTP/1.1 400 Bad Request\r\n"[..], "Redis sent what no Redis sends"),
        (Connection::Commands, b"+OK\r\n", "Redis sent a reply without a command"),
        (
            Connection::Commands,
            b"-ERR max number of clients reached\r\n",
            "ERR max number of clients reached",
        ),
        (Connection::Subscriber, b"$999999999\r\n", "Redis sent a string that has not 0 to 270336 bytes"),
        (Connection::Subscriber, b"*1\r\n*1\r\n", "Redis sent what no Redis sends"),
        (Connection::Subscriber, b"-NOAUTH Authentication required.\r\n", "NOAUTH Authentication required."),
    ] {
        let mut scenario = Scenario::new(1);
        scenario.redis.inject(0, connection, bytes);
        scenario.settle();
        assert_eq!(scenario.take(0), [Outcome::Unreachable(reason.to_owned())]);
        scenario.run_for(10);
        assert_eq!(scenario.state(0), "connected", "{reason}");
    }
}

#[test]
fn a_login_that_fails_says_why_and_a_refused_command_once_a_minute() {
    let mut scenario = Scenario::stopped();
    scenario.add("gw");
    scenario.redis.refused.insert("PING", "NOAUTH Authentication required.");
    scenario.run_for(1);
    assert_eq!(scenario.take(0), [Outcome::Unreachable("NOAUTH Authentication required.".to_owned())]);
    scenario.redis.refused.clear();
    scenario.redis.refused.insert("SET", "OOM command not allowed when used memory > 'maxmemory'.");
    scenario.run_for(10);
    assert_eq!(scenario.take(0), [Outcome::Connected { name: "gw".to_owned() }]);
    for n in 0..50 {
        scenario.connect_device(0, mac(n), n);
    }
    scenario.run_for(20);
    assert_eq!(scenario.take(0).len(), 1, "one line");
    assert!(scenario.gateways[0].counters().refused >= 50);
    scenario.redis.refused.clear();
    scenario.run_for(26);
    assert_eq!(scenario.gateways[0].devices(), (50, 50), "they are registered as soon as there is memory");
}

#[test]
fn a_replica_is_left() {
    let mut scenario = Scenario::new(1);
    scenario.redis.refused.insert("SET", "READONLY You can't write against a read only replica.");
    scenario.connect_device(0, mac(1), 1);
    scenario.settle();
    let expected = "READONLY You can't write against a read only replica.";
    assert_eq!(scenario.take(0), [Outcome::Unreachable(expected.to_owned())]);
}

#[test]
fn messages_without_a_signature_are_ignored_and_gateways_with_one_key_hear_each_other() {
    let mut scenario = Scenario::stopped();
    let add = |scenario: &mut Scenario, name: &str, keys: &[&str]| {
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        let (prefix, name) = ("p".to_owned(), name.to_owned());
        scenario.add_with(Settings { name, prefix, user: None, password: None, database: 0, keys })
    };
    let one = add(&mut scenario, "one", &["new", "old"]);
    let two = add(&mut scenario, "two", &["old", "new"]);
    let stranger = add(&mut scenario, "stranger", &[]);
    scenario.run_for(5);
    let peers = |gateway: usize| scenario.gateways[gateway].peers().map(|peer| peer.id).collect::<Vec<_>>();
    assert_eq!((peers(one), peers(two)), (vec![id(two)], vec![id(one)]));
    assert!(scenario.gateways[one].counters().foreign > 0);
    let foreign = |outcomes: Vec<Outcome>| outcomes.iter().filter(|o| **o == Outcome::ForeignMessage).count();
    assert_eq!(foreign(scenario.take(one)), 1, "once a minute");
    let now = scenario.now;
    assert_eq!(scenario.gateways[stranger].send(id(one), crate::cluster::FIRST_KIND, 1, b"x", now), Ok(()));
    assert_eq!(scenario.gateways[two].send(id(one), crate::cluster::FIRST_KIND, 2, b"y", now), Ok(()));
    scenario.settle();
    let received =
        Outcome::Received { from: id(two), kind: crate::cluster::FIRST_KIND, id: 2, payload: b"y".to_vec() };
    assert_eq!(scenario.take(one), [received]);
}
