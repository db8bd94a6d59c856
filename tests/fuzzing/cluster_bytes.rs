//! What Redis sends to a gateway of a cluster.

use std::time::{Duration, Instant};

use super::FieldReader;
use crate::admin::requests_between_gateways::{PassedOn, decode_answer, encode_answer};
use crate::cluster::{
    Action, Cluster, Connection, DeviceConnection, FIRST_KIND, GatewayId, MAX_PAYLOAD, Outcome, Settings,
};
use crate::proto::identity::Mac;
use crate::session::{RelayMessage, decode_audio, encode_audio};

/// A script: bytes of both connections, with time and events of devices in between.
pub fn cluster_bytes(data: &[u8]) {
    let now = Instant::now();
    let whole = run(data, usize::MAX, now);
    for size in [1, 7] {
        assert_eq!(run(data, size, now), whole, "in pieces of {size} bytes");
    }
}

/// All that the gateway does, when it reads at most this many bytes at once.
fn run(data: &[u8], piece: usize, mut now: Instant) -> Vec<String> {
    let settings = Settings {
        name: "gw".to_owned(),
        prefix: "p".to_owned(),
        user: None,
        password: Some(b"secret".to_vec()),
        database: 1,
        keys: Vec::new(),
    };
    let mut cluster = Cluster::new(GatewayId(0x1000), settings, now);
    let (mut reader, mut trace) = (FieldReader(data), Vec::new());
    settle(&mut cluster, now, &mut trace);
    while !reader.is_empty() {
        let (choice, count) = (reader.byte() % 8, reader.byte());
        let mac = Mac::from([2, 0, 0, 0, 0, count % 4]);
        match choice {
            0..3 => feed(&mut cluster, Connection::Commands, reader.bytes(count.into()), piece, now),
            3..6 => feed(&mut cluster, Connection::Subscriber, reader.bytes(count.into()), piece, now),
            6 => now += Duration::from_millis(u64::from(count) * 50),
            _ => match count / 4 % 5 {
                0 => {
                    let connection = u32::from(count / 20);
                    cluster.device_connected(DeviceConnection { mac, connection, client: 7, since: 1 }, now);
                }
                1 => cluster.device_disconnected(mac, u32::from(count / 20), now),
                2 => cluster.locate(mac, count.into(), now),
                3 => _ = cluster.send(GatewayId(count.into()), FIRST_KIND, 1, b"x", now),
                _ => cluster.leave(now),
            },
        }
        settle(&mut cluster, now, &mut trace);
    }
    trace
}

/// Whatever its kind says.
fn check_payload(payload: &[u8]) {
    if let Some(message) = RelayMessage::decode(payload) {
        assert_eq!(message.encode(), payload);
    }
    if let Some((call, to, opus)) = decode_audio(payload) {
        let mut bytes = Vec::new();
        encode_audio(call, to, opus, &mut bytes);
        assert_eq!(bytes, payload);
    }
    if let Ok(request) = PassedOn::decode(payload) {
        assert_eq!(PassedOn::decode(&request.encode()).as_ref(), Ok(&request));
    }
    assert!(decode_answer(payload).is_none_or(|answer| encode_answer(&answer) == payload));
}

fn feed(cluster: &mut Cluster, connection: Connection, bytes: &[u8], piece: usize, now: Instant) {
    for bytes in bytes.chunks(piece) {
        cluster.on_bytes(connection, bytes, now);
    }
}

/// Carries out what the gateway wants. Each attempt to connect succeeds.
fn settle(cluster: &mut Cluster, now: Instant, trace: &mut Vec<String>) {
    for round in 0.. {
        cluster.on_timeout(now);
        cluster.flush(now);
        let actions = cluster.take_actions();
        for action in &actions {
            if let Action::Connect(connection) = action {
                cluster.on_connected(*connection, now);
            }
        }
        let outcomes = cluster.take_outcomes();
        for outcome in &outcomes {
            if let Outcome::Received { kind, payload, .. } = outcome {
                assert!(*kind >= FIRST_KIND && payload.len() <= MAX_PAYLOAD);
                check_payload(payload);
            }
        }
        trace.push(format!("{actions:?} {outcomes:?}"));
        for connection in [Connection::Commands, Connection::Subscriber] {
            trace.push(String::from_utf8_lossy(&cluster.take_output(connection)).into_owned());
        }
        if actions.is_empty() && cluster.deadline() > now {
            break;
        }
        assert!(round < 100, "it does not come to rest");
    }
    assert!(cluster.queued() <= 4 << 20 && cluster.outstanding() <= 20_000 && cluster.peer_count() <= 1_000);
    trace.retain(|line| !line.is_empty() && line != "[] []");
}
