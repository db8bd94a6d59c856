//! What `GET /api/gateways` says about the gateways of the service.

use serde::Serialize;

/// The connection to Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDto {
    /// `off`, `connected` or `unreachable`.
    pub state: &'static str,
    /// The URL, without the password; `None` when it is off.
    pub redis: Option<String>,
    /// Since when it is not reachable, in seconds.
    pub unreachable_seconds: Option<u64>,
    /// Why it is not.
    pub reason: Option<String>,
}

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayDto {
    /// Its name; `None` for one without a cluster.
    pub name: Option<String>,
    /// Its run; `None` for one without a cluster.
    pub run: Option<String>,
    /// Whether it is the one that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
    /// The version of its program.
    pub version: String,
    /// Where devices connect: address and port.
    pub mqtt: String,
    /// Where devices send audio: address and port.
    pub udp: String,
    /// Its management API: address and port; empty if there is none.
    pub api: String,
    /// Devices that are connected.
    pub devices: usize,
    /// Calls in progress.
    pub calls: usize,
    /// It accepts no new connections.
    pub draining: bool,
    /// Seconds since it was last heard.
    pub heard_seconds: u64,
}

/// What `GET /api/gateways` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayList {
    /// The connection to Redis.
    pub cluster: ClusterDto,
    /// The one that answers first.
    pub gateways: Vec<GatewayDto>,
}
