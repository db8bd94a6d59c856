//! The metrics of the connections to Redis, if there are any.

use crate::admin::prometheus::MetricFamilies;
use crate::cluster::{ClusterState, Counters};
use crate::net::cluster::ClusterClient;

/// Nothing without `cluster.redis`.
pub(super) fn write_cluster_metrics(
    client: &ClusterClient,
    passed: [(&'static str, u64); 4],
    out: &mut MetricFamilies,
) {
    let (Some(cluster), Some(round_trips)) = (client.cluster(), client.round_trips()) else { return };
    let counters = cluster.counters();
    let (devices, registered) = cluster.devices();
    let (bytes, replies) = (cluster.queued(), cluster.outstanding());
    let connected = u8::from(cluster.state() == ClusterState::Connected);
    out.gauge("gateway_cluster_connected", "1 while Redis can be used.").value(connected);
    out.gauge("gateway_cluster_peers", "Other gateways.").value(cluster.peer_count());
    out.gauge(
        "gateway_cluster_devices",
        "Devices of this gateway that Redis is known to hold, and those that it is not.",
    )
    .by("state", [("registered", registered), ("not_registered", devices - registered)]);
    out.gauge("gateway_cluster_queue", "On the way to Redis: bytes, and commands without a reply.")
        .by("of", [("bytes", bytes), ("commands", replies)]);
    let help = "Messages to other gateways; frames from them; what was not sent since Redis was slow; what no gateway has written.";
    out.counter("gateway_cluster_messages_total", help).by(
        "result",
        [
            ("published", counters.published),
            ("received", counters.received),
            ("dropped", counters.dropped),
            ("malformed", counters.malformed),
            ("foreign", counters.foreign),
        ],
    );
    let help = "Packets of calls with devices of other gateways, and requests of the API that other gateways answer, and are answered.";
    out.counter("gateway_cluster_passed_total", help).by("what", passed);
    out.counter("gateway_cluster_commands_total", "Commands for Redis, and those that it refused.")
        .by("result", [("sent", counters.commands), ("refused", counters.refused)]);
    out.histogram("gateway_cluster_round_trip_seconds", "Time until Redis answers, measured every 2 s.")
        .seconds(round_trips);
    write_counters(&counters, out);
}

fn write_counters(counters: &Counters, out: &mut MetricFamilies) {
    out.counter("gateway_cluster_published_bytes_total", "Bytes of the messages to other gateways.")
        .value(counters.published_bytes);
    out.counter(
        "gateway_cluster_connections_lost_total",
        "Connections to Redis that were lost, and attempts that failed.",
    )
    .value(counters.connections_lost);
    out.counter(
        "gateway_cluster_connected_elsewhere_total",
        "Connections closed here since the device had connected to another gateway.",
    )
    .value(counters.connected_elsewhere);
}
