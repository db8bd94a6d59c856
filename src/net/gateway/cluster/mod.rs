//! The other gateways: what devices and Redis do, told to each other. The first worker has the connections to Redis.

mod calls_at_other_gateways;
mod denials;
mod device_calls;
mod devices_at_other_gateways;
mod requests;
mod requests_to_all;

use std::collections::HashMap;
use std::iter;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use getrandom::Error as RandomError;
use log::{info, warn};
use sha2::{Digest, Sha256};

use crate::admin::gateways::{ClusterDto, GatewayDto, GatewayList};
use crate::cluster::{
    Cluster, ClusterState, Connection, ConnectionMessage, DeviceConnection, GatewayId, Kind, Outcome, OwnInfo,
};
use crate::net::cluster::ClusterClient;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{REDIS, SessionId};
use crate::net::gateway::Gateway;
use crate::net::gateway::cluster::calls_at_other_gateways::RemoteCalls;
use crate::net::gateway::cluster::device_calls::CallsWithGateways;
use crate::net::gateway::cluster::devices_at_other_gateways::RemoteDevices;
use crate::net::gateway::cluster::requests::GatewayRequests;
use crate::net::gateway::cluster::requests_to_all::Gathering;
use crate::net::log_limiter::{LogLimiter, suppressed_suffix};
use crate::net::media::credentials::local_address;
use crate::net::sessions::session::Session;
use crate::proto::identity::Mac;

/// Set in the number of a connection that a call waits for, after its device has lost one to another gateway.
const WAITING: u32 = 1 << 31;

/// A worker's part in the cluster.
pub(crate) struct ClusterPart {
    pub(crate) client: ClusterClient,
    /// The number of the last device's connection.
    last_connection: u32,
    /// Devices here whose call may be at another gateway.
    pub(crate) remote_calls: RemoteCalls,
    /// Calls here whose device may be connected to another gateway.
    pub(crate) remote_devices: RemoteDevices,
    /// That of this machine in its network.
    local_ip: Option<Ipv4Addr>,
    /// Why Redis cannot be used, in words; `None` while it can, and before that is known.
    unreachable: Option<String>,
    /// Requests on their way to other gateways, and from them.
    pub(crate) requests: GatewayRequests,
    /// Requests that other gateways answer together with this one, by id.
    pub(crate) gatherings: HashMap<u64, Gathering>,
    /// Calls between devices of this gateway and of others.
    pub(crate) calls: CallsWithGateways,
    /// What operators have decided about devices here.
    decisions: denials::RecentDecisions,
    /// Lines about other gateways, which anybody may announce who can write to Redis.
    peer_log: LogLimiter<()>,
}

impl Default for ClusterPart {
    fn default() -> Self {
        Self {
            client: ClusterClient::default(),
            last_connection: 0,
            local_ip: None,
            remote_calls: RemoteCalls::default(),
            remote_devices: RemoteDevices::default(),
            unreachable: None,
            requests: GatewayRequests::default(),
            gatherings: HashMap::new(),
            calls: CallsWithGateways::default(),
            decisions: denials::RecentDecisions::default(),
            peer_log: LogLimiter::new(10, Duration::from_secs(1)),
        }
    }
}

impl Gateway {
    /// Begins to connect to Redis, if one is configured. Only the first worker does.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn start_cluster(&mut self) -> Result<(), RandomError> {
        let id = GatewayId(getrandom::u64()?);
        let host_name = host_name();
        self.cluster.client.start(id, &host_name, self.handle.waker(), &self.io);
        self.cluster.local_ip = local_address();
        self.announce_info();
        // Arms the first timer.
        self.advance_cluster();
        Ok(())
    }

    /// This gateway, which is `own`, and the others that are heard through Redis.
    pub(crate) fn list_gateways(&self, own: GatewayDto) -> GatewayList {
        let (client, now) = (&self.cluster.client, self.io.now);
        let own = GatewayDto { name: client.name(), run: client.id().map(|id| id.to_string()), ..own };
        let others = client.peers().map(|peer| GatewayDto {
            name: Some(peer.info.name.clone()),
            run: Some(peer.id.to_string()),
            is_self: false,
            version: peer.info.version.clone(),
            mqtt: peer.info.mqtt.clone(),
            udp: peer.info.udp.clone(),
            api: peer.info.api.clone(),
            devices: peer.info.devices,
            calls: peer.info.calls,
            draining: peer.info.draining,
            heard_seconds: now.saturating_duration_since(peer.last_heard).as_secs(),
        });
        let (state, since) = match client.state() {
            ClusterState::Off => ("off", None),
            ClusterState::Connected => ("connected", None),
            ClusterState::Unreachable(since) => ("unreachable", Some(since)),
        };
        let cluster = ClusterDto {
            state,
            redis: self.io.config.cluster.redis.as_ref().map(ToString::to_string),
            unreachable_seconds: since.map(|since| now.saturating_duration_since(since).as_secs()),
            reason: self.cluster.unreachable.clone(),
        };
        GatewayList { cluster, gateways: iter::once(own).chain(others).collect() }
    }

    fn announce_info(&mut self) {
        let (devices, calls) = (self.all_devices(), self.all_calls());
        let [mqtt, udp, api] = self.reachable_addresses(self.cluster.local_ip);
        let draining = self.lifecycle.is_draining();
        let name = String::new();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let info = OwnInfo { name, version, mqtt, udp, api, devices, calls, draining };
        self.cluster.client.tell(&self.io, |cluster, _| cluster.set_info(info));
    }

    /// An event of one of the connections to Redis. False when it is of another source.
    pub(crate) fn on_cluster_event(&mut self, slot: usize) -> bool {
        let connection = slot.checked_sub(REDIS).and_then(|index| Connection::ALL.get(index).copied());
        let Some(connection) = connection else { return false };
        // What is to be written is written at the end of each iteration.
        if !self.io.run_queue.contains(Task::Redis(connection)) {
            self.on_redis_ready(connection);
        }
        true
    }

    pub(crate) fn on_redis_ready(&mut self, connection: Connection) {
        self.cluster.client.on_ready(connection, &mut self.io);
    }

    pub(crate) fn on_redis_timer(&mut self, tick: u64) {
        self.announce_info();
        self.cluster.client.on_timer(tick, &mut self.io);
        if self.cluster.client.state() == ClusterState::Connected {
            self.repeat_decisions();
        }
    }

    /// At the end of an iteration, before all else is written.
    pub(crate) fn advance_cluster(&mut self) {
        self.tell_all_calls_lost();
        loop {
            // Also what the outcomes have caused.
            self.flush_remote_devices();
            let outcomes = self.cluster.client.advance(&mut self.io);
            if outcomes.is_empty() {
                return;
            }
            for outcome in outcomes {
                self.on_cluster_outcome(outcome);
            }
        }
    }

    /// Another process has taken this one's place, and its name.
    #[cfg(target_os = "linux")]
    pub(crate) fn resign_from_cluster(&mut self) {
        self.cluster.client.tell(&self.io, Cluster::resign);
    }

    /// The gateway ends.
    pub(crate) fn leave_cluster(&mut self) {
        self.cluster.client.leave(&mut self.io);
    }

    fn on_cluster_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Connected { name } => self.on_redis_connected(&name),
            Outcome::Unreachable(reason) => self.on_redis_unreachable(reason),
            Outcome::Refused(text) => warn!("cluster: Redis refused a command: {text}"),
            Outcome::NameTaken { name, holder, instead } => {
                warn!("cluster: another gateway (run {holder}) has the name {name}; this one is {instead}");
            }
            Outcome::NameRegained(name) => info!("cluster: this gateway is {name} now"),
            Outcome::PeerJoined(id) => {
                self.tell_all_denied(id);
                let peer = self.cluster.client.peers().find(|peer| peer.id == id).cloned();
                if let (Some(peer), Some(more)) = (peer, self.cluster.peer_log.allows((), self.io.now)) {
                    let more = suppressed_suffix(more);
                    info!(
                        "cluster: gateway {} is there: version {}, {} devices{more}",
                        peer.info.name, peer.info.version, peer.info.devices
                    );
                }
            }
            Outcome::PeerGone { id, name, why } => {
                self.at_all_workers(move |worker| worker.on_other_gateway_gone(id));
                self.on_asked_gateway_gone(id);
                self.on_gateways_lost(Some(id));
                if let (Some(name), Some(more)) = (name, self.cluster.peer_log.allows((), self.io.now)) {
                    info!("cluster: gateway {name} is gone: {why}{}", suppressed_suffix(more));
                }
            }
            Outcome::ConnectedElsewhere { mac, connection, by, later } => {
                self.at_worker_of(mac, move |worker| {
                    worker.on_connected_elsewhere(mac, connection, by, later);
                })
            }
            Outcome::Registered { mac, connection, asked } => self.at_worker_of(mac, move |worker| {
                worker.on_device_registered(mac, connection, asked);
            }),
            Outcome::Hellos { mac, full_in } => self.at_worker_of(mac, move |worker| {
                worker.hellos.delay(mac, full_in, worker.io.now);
            }),
            Outcome::ForeignMessage => warn!(
                "cluster: a message of another gateway is ignored, which is not signed with mqtt.signature_key: \
                 all gateways need the same key"
            ),
            Outcome::Received { from, kind, id, payload } if ConnectionMessage::is_kind(kind) => {
                if let Some(message) = ConnectionMessage::decode(kind, id, &payload) {
                    self.at_worker_of(message.mac, move |worker| worker.on_connection_message(from, message));
                }
            }
            Outcome::Located { token, location } => self.on_request_located(token, location),
            Outcome::Received { from, kind, id, payload } => self.on_frame(from, kind, id, &payload),
        }
    }

    /// Another gateway has sent something.
    fn on_frame(&mut self, from: GatewayId, kind: u8, id: u64, payload: &[u8]) {
        match Kind::from_number(kind) {
            Some(Kind::Request) => self.on_request_of_gateway(from, id, payload),
            Some(Kind::AnswerPart) => self.on_answer_of_gateway(from, id, payload, false),
            Some(Kind::Answer) => self.on_answer_of_gateway(from, id, payload, true),
            Some(Kind::CallMessage) => self.on_call_message(from, payload),
            Some(Kind::CallAudio) => self.on_call_audio(from, payload),
            Some(Kind::Denied) => self.on_denied_elsewhere(payload, true, id),
            Some(Kind::Allowed) => self.on_denied_elsewhere(payload, false, id),
            Some(Kind::CallsLost) => self.on_gateways_lost(Some(from)),
            // Of a later version, or of nobody who belongs here.
            None => {}
        }
    }

    fn on_redis_unreachable(&mut self, reason: String) {
        let redis = self.io.config.cluster.redis.as_ref().map(ToString::to_string).unwrap_or_default();
        warn!(
            "cluster: {redis} cannot be used: {reason}; this gateway serves its own devices and keeps trying"
        );
        self.on_asked_redis_lost();
        self.on_gateways_lost(None);
        self.cluster.unreachable = Some(reason);
    }

    fn on_redis_connected(&mut self, name: &str) {
        let redis = self.io.config.cluster.redis.as_ref().map(ToString::to_string).unwrap_or_default();
        info!("cluster: connected to {redis} as {name}");
        self.cluster.unreachable = None;
        self.on_calls_redis_connected();
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    /// A device was admitted, or has continued its call with another connection.
    pub(crate) fn register_device(&mut self, id: SessionId) {
        if self.io.config.cluster.redis.is_none() || self.cluster.remote_devices.is_attached(id) {
            return;
        }
        let number = self.next_connection_number();
        let Some(session) = self.sessions.live(id) else { return };
        session.connection_number = number;
        let Some(device) = connection_of(session) else { return };
        self.hold_device(id);
        self.at_leader(move |leader| {
            let DeviceConnection { mac, connection, .. } = device;
            leader.cluster.client.tell(&leader.io, |cluster, now| cluster.device_connected(device, now));
            if leader.cluster.client.state() != ClusterState::Connected {
                // Nobody else will answer.
                leader.at_worker_of(mac, move |worker| worker.on_device_registered(mac, connection, None));
            }
        });
    }

    fn next_connection_number(&mut self) -> u32 {
        self.cluster.last_connection = (self.cluster.last_connection.wrapping_add(1) & !WAITING).max(1);
        self.cluster.last_connection
    }

    /// The device of this call was connected to another gateway, which had given this number to the connection, and has lost that. Its
    /// next gateway finds the call by the record in Redis.
    pub(crate) fn register_call(&mut self, id: SessionId, number: u32, gone: Option<GatewayId>) {
        let Some(session) = self.sessions.live(id).filter(|session| session.core.has_call()) else { return };
        session.connection_number = number | WAITING;
        let Some(device) = connection_of(session) else { return };
        self.tell_redis(move |cluster, now| cluster.call_waits(device, gone, now));
    }

    /// Redis has another gateway's record of the device.
    pub(crate) fn forget_registration(&mut self, id: SessionId, mac: Mac) {
        let Some(session) = self.sessions.live(id) else { return };
        let connection = std::mem::take(&mut session.connection_number);
        if connection != 0 {
            self.tell_redis(move |cluster, now| cluster.device_disconnected(mac, connection, now));
        }
    }

    /// The session of a device has ended, and is not found by its MAC any more.
    pub(crate) fn unregister_device(&mut self, id: SessionId, mac: Mac) {
        let Some(connection) = self.sessions.get(id).map(|session| session.connection_number) else { return };
        if connection == 0 {
            return;
        }
        let full_in = self.hellos.full_in(mac, self.io.now);
        if !full_in.is_zero() {
            self.tell_redis(move |cluster, now| cluster.keep_hellos(mac, full_in, now));
        }
        let call_at = self.cluster.remote_calls.gateway_of(id);
        self.tell_redis(move |cluster, now| match call_at {
            Some(gateway) => cluster.device_left_call(mac, connection, gateway, connection | WAITING, now),
            None => cluster.device_disconnected(mac, connection, now),
        });
        let others = self.sessions.by_mac(mac).filter_map(|other| self.sessions.get(other));
        let registered = others.filter(|other| other.connection_number != 0);
        let latest = registered.max_by_key(|other| other.connection_number);
        if let Some(device) = latest.and_then(connection_of) {
            self.tell_redis(move |cluster, now| cluster.device_remains(device, now));
        }
    }

    /// Tells the core of the cluster something, at the worker that has it.
    fn tell_redis(&mut self, tell: impl FnOnce(&mut Cluster, Instant) + Send + 'static) {
        self.at_leader(move |leader| leader.cluster.client.tell(&leader.io, tell));
    }
}

/// The connection of this session, as Redis knows it from now on.
fn connection_of(session: &Session) -> Option<DeviceConnection> {
    let client_id = session.core.client_id()?;
    let digest = Sha256::digest(&*client_id.text());
    let client = digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (mac, connection) = (client_id.mac(), session.connection_number);
    Some(DeviceConnection { mac, connection, client, since: unix.as_secs() })
}

/// The name of this machine, as far as it can be that of a gateway.
fn host_name() -> String {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").unwrap_or_default();
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let name: String = name.chars().filter(is_allowed).take(60).collect();
    if name.is_empty() { "gateway".to_owned() } else { name }
}
