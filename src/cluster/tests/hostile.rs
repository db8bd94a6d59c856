//! Bytes of any kind from Redis, and messages of any kind from other writers.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::cluster::frame::Frame;

/// Pieces of which replies are made, and bytes at random.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"+OK\r\n".to_vec()),
        Just(b"$-1\r\n".to_vec()),
        Just(b":0\r\n".to_vec()),
        Just(b"-ERR x\r\n".to_vec()),
        Just(b"*3\r\n$7\r\nmessage\r\n$5\r\np:all\r\n".to_vec()),
        Just(b"*3\r\n$9\r\nsubscribe\r\n$5\r\np:all\r\n:2\r\n".to_vec()),
        Just(b"*2\r\n".to_vec()),
        Just(b"$3\r\nabc\r\n".to_vec()),
        vec(any::<u8>(), 0..12),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_redis_sends_the_gateway_is_connected_again_afterwards(
        bytes in pieces(),
        subscriber in any::<bool>(),
        cut in 0_usize..40,
    ) {
        let mut scenario = Scenario::new(2);
        (0..3).for_each(|n| scenario.connect_device(0, mac(n), n));
        scenario.gateways[0].locate(mac(0), 1, scenario.now);
        let connection = if subscriber { Connection::Subscriber } else { Connection::Commands };
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        for part in [first, second] {
            scenario.gateways[0].on_bytes(connection, part, scenario.now);
            scenario.settle();
        }
        scenario.run_for(90);
        assert_eq!(scenario.state(0), "connected");
        assert_eq!(scenario.gateways[0].devices().0, 3);
        assert_eq!(scenario.locate(1, mac(0)), crate::cluster::Location::At(id(0)));
    }

    #[test]
    fn whatever_others_publish_the_gateway_stays_connected(
        messages in vec((any::<bool>(), vec(any::<u8>(), 0..60), 0_u8..20, any::<bool>()), 0..20),
    ) {
        let mut scenario = Scenario::new(2);
        scenario.connect_device(0, mac(0), 0);
        for (to_all, payload, kind, is_frame) in messages {
            let channel = if to_all { "p:all".to_owned() } else { format!("p:to:{}", id(0)) };
            let mut bytes = Vec::new();
            match is_frame {
                true => Frame { from: id(9), kind, id: 1, payload: &payload }.write(&mut bytes),
                false => bytes = payload,
            }
            scenario.redis.publish(&channel, &bytes);
            scenario.settle();
        }
        scenario.run_for(1);
        assert_eq!(scenario.state(0), "connected");
        assert!(scenario.take(0).iter().all(|outcome| !matches!(outcome, Outcome::Unreachable(_))));
    }
}
