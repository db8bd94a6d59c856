//! The metrics of the connections to Redis, if there are any.

use crate::admin::prometheus::MetricFamilies;
use crate::admin::prometheus::MetricType::{Counter, Gauge};
use crate::cluster::{ClusterState, Counters};
use crate::net::cluster::ClusterClient;

/// Nothing without `cluster.redis`.
pub(super) fn write_cluster_metrics(
    cluster: &ClusterClient,
    passed: [(&'static str, u64); 4],
    families: &mut MetricFamilies,
) {
    let Some(round_trips) = cluster.round_trips() else { return };
    let counters = cluster.counters();
    let (devices, registered) = cluster.devices();
    let (bytes, replies) = cluster.queued();
    let connected = u8::from(cluster.state() == ClusterState::Connected);
    families.scalar(Gauge, "gateway_cluster_connected", "1 while Redis can be used.", connected);
    families.scalar(Gauge, "gateway_cluster_peers", "Other gateways.", cluster.peers().count());
    families.labelled(
        Gauge,
        "gateway_cluster_devices",
        "Devices of this gateway that Redis is known to hold, and those that it is not.",
        "state",
        [("registered", registered), ("not_registered", devices - registered)],
    );
    families.labelled(
        Gauge,
        "gateway_cluster_queue",
        "On the way to Redis: bytes, and commands without a reply.",
        "of",
        [("bytes", bytes), ("commands", replies)],
    );
    families.labelled(
        Counter,
        "gateway_cluster_messages_total",
        "Messages to other gateways; frames from them; what was not sent since Redis was slow; what no gateway has written.",
        "result",
        [
            ("published", counters.published),
            ("received", counters.received),
            ("dropped", counters.dropped),
            ("malformed", counters.malformed),
            ("foreign", counters.foreign),
        ],
    );
    families.labelled(
        Counter,
        "gateway_cluster_passed_total",
        "Packets of calls with devices of other gateways, and requests of the API that other gateways answer, and are answered.",
        "what",
        passed,
    );
    families.labelled(
        Counter,
        "gateway_cluster_commands_total",
        "Commands for Redis, and those that it refused.",
        "result",
        [("sent", counters.commands), ("refused", counters.refused)],
    );
    families.histogram(
        "gateway_cluster_round_trip_seconds",
        "Time until Redis answers, measured every 2 s.",
        round_trips,
    );
    write_counters(&counters, families);
}

fn write_counters(counters: &Counters, families: &mut MetricFamilies) {
    for (name, help, value) in [
        (
            "gateway_cluster_published_bytes_total",
            "Bytes of the messages to other gateways.",
            counters.published_bytes,
        ),
        (
            "gateway_cluster_connections_lost_total",
            "Connections to Redis that were lost, and attempts that failed.",
            counters.connections_lost,
        ),
        (
            "gateway_cluster_connected_elsewhere_total",
            "Connections closed here since the device had connected to another gateway.",
            counters.connected_elsewhere,
        ),
    ] {
        families.scalar(Counter, name, help, value);
    }
}
