//! The configuration: checked types with the documented defaults, where they come from, and what changes between two of them.
//!
//! [`Config`] is only ever built from values that are allowed, so nothing behind this module checks again.
//! [`Source`] reads one: defaults, then the file, then the environment, then the command line, the later over the earlier.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;

use crate::proto::identity::{ClientId, Mac, MacPrefixes};
use crate::proto::ota::{DEFAULT_GROUP, Endpoint};

mod chat_server;
mod diff;
mod dotenv;
mod environment;
mod error;
mod file;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
#[path = "../../tests/fuzzing/config_parse.rs"]
pub(crate) mod fuzz;
mod keys;
mod network;
mod node_config;
mod ota;
mod public_address;
mod redis_url;
mod route;
mod serialize;
mod signature_key;
mod source;
mod value;
mod value_kind;
mod warnings;
mod webhook;

use chat_server::is_host_name;
pub use chat_server::{ChatServerConfig, Framing, HttpUrl, OnDisconnect, URL_SUFFIX, UrlError, XIAOZHI_PATH};
pub use diff::{Changes, check_reload, diff};
pub use environment::{VARIABLES, unknown_variables};
pub use error::{ConfigError, ConfigErrors};
pub use network::Network;
pub use node_config::NodeConfig;
pub use ota::OtaDenial;
pub use public_address::unreachable_kind;
pub use redis_url::RedisUrl;
pub use route::Route;
pub use signature_key::KeyFingerprint;
pub use source::{DEFAULT_FILE, NODE_FILE, Source};
pub(crate) use value::edit_distance;
pub use value_kind::{LEVELS, parse_level};
pub use webhook::{EventKind, Webhook};

/// Declares the settings of a section, each with its default.
macro_rules! settings {
    (
        $(#[$about:meta])*
        pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty = $default:expr,)* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

settings! {
    /// Every setting. `Default` is what is documented in `config/gateway.json`.
    pub struct Config {
        /// Where devices connect, and their limits.
        pub mqtt: Mqtt = Mqtt::default(),
        /// The audio socket.
        pub udp: Udp = Udp::default(),
        /// The chat servers.
        pub websocket: WebSocket = WebSocket::default(),
        /// What is logged, and where.
        pub logging: Logging = Logging::default(),
        /// The calls that have ended.
        pub history: History = History::default(),
        /// The device's tools.
        pub mcp: Mcp = Mcp::default(),
        /// The management listener.
        pub api: Api = Api::default(),
        /// What devices ask when they start.
        pub ota: Ota = Ota::default(),
        /// Servers that are told of events, at most eight.
        pub webhooks: Vec<Webhook> = Vec::new(),
        /// Other gateways of the same service.
        pub cluster: Cluster = Cluster::default(),
        /// Event loops that serve devices, each on its own thread; 1 to 64.
        pub workers: usize = 1,
        /// Log at debug level at least; see [`Config::log_level`].
        pub debug: bool = false,
        /// Dotted keys that the file holds for another program: accepted, without effect.
        pub unused_keys: Vec<String> = Vec::new(),
        /// What is doubtful about the places the values came from, one sentence each.
        pub source_warnings: Vec<String> = Vec::new(),
        /// Set when the file is one of the Node.js gateway, in that gateway's own shape.
        pub node_config: Option<NodeConfig> = None,
    }
}

settings! {
    /// Section `mqtt`.
    pub struct Mqtt {
        /// The address to listen on.
        pub host: IpAddr = Ipv4Addr::UNSPECIFIED.into(),
        /// The TCP port to listen on; 0 is any free port.
        pub port: u16 = 1883,
        /// Whether to listen on that port; when off, devices can only use TLS.
        pub plain: bool = true,
        /// MQTT over TLS.
        pub tls: Tls = Tls::default(),
        /// Load balancers: every connection from these networks begins with a PROXY protocol header, and no other does.
        pub proxy_protocol_from: Vec<Network> = Vec::new(),
        /// Devices connected at once, at least 1.
        pub max_connections: usize = 10_000,
        /// Devices connected at once from one IP address; 0 is no limit.
        pub max_connections_per_ip: usize = 0,
        /// The longest packet a device may send, in bytes, counted on the remaining length.
        pub max_payload_size: usize = 65_536,
        /// Hellos that a device may send at once, before it is limited to one in two seconds; 0 is no limit.
        pub hello_limit: u32 = 8,
        /// How long a call is kept after its MQTT connection is lost; zero ends it at once.
        pub resume_grace: Duration = Duration::from_secs(35),
        /// Whether client ids of two parts, which carry no signature, are accepted even when there is a key.
        pub allow_legacy_ids: bool = false,
        /// The only devices that may connect; all when it is empty.
        pub allowed_macs: MacPrefixes = MacPrefixes::default(),
        /// Devices that may not connect, whatever `allowed_macs` holds.
        pub denied_macs: MacPrefixes = MacPrefixes::default(),
        /// Devices that an operator has denied since the start. No key of the file: a reload keeps them, a restart does not.
        pub denied_by_operator: BTreeSet<Mac> = BTreeSet::new(),
        /// The key of the devices' passwords; without one every device is accepted.
        pub signature_key: Option<Secret> = None,
        /// Keys of devices' passwords that are accepted besides, while `signature_key` is rolled out. They open nothing else.
        pub previous_signature_keys: Vec<Secret> = Vec::new(),
    }
}

/// Why a device may not connect, whatever its password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MacDenial {
    /// It is in `mqtt.denied_macs`.
    Denied,
    /// It is not in `mqtt.allowed_macs`.
    NotAllowed,
    /// An operator has denied it.
    Operator,
}

impl MacDenial {
    /// In words that follow "refused:" or "closed:".
    pub fn reason(self) -> &'static str {
        match self {
            Self::Denied => "its MAC is in mqtt.denied_macs",
            Self::NotAllowed => "its MAC is not in mqtt.allowed_macs",
            Self::Operator => "an operator has denied it",
        }
    }
}

impl Mqtt {
    /// Why the device with this MAC may not connect; `None` when it may.
    pub fn mac_denial(&self, mac: Mac) -> Option<MacDenial> {
        if self.denied_macs.contains(mac) {
            return Some(MacDenial::Denied);
        }
        if self.denied_by_operator.contains(&mac) {
            return Some(MacDenial::Operator);
        }
        let is_allowed = self.allowed_macs.is_empty() || self.allowed_macs.contains(mac);
        (!is_allowed).then_some(MacDenial::NotAllowed)
    }

    /// The current key's.
    pub fn key_fingerprint(&self) -> Option<KeyFingerprint> {
        self.signature_key.as_ref().map(Secret::fingerprint)
    }
}

settings! {
    /// Section `mqtt.tls`. There is TLS when both files are named.
    pub struct Tls {
        /// The TCP port to listen on; 0 is any free port.
        pub port: u16 = 8883,
        /// PEM certificate chain: the gateway's own certificate, then the intermediate ones.
        pub cert_file: Option<PathBuf> = None,
        /// The PEM private key of the first certificate.
        pub key_file: Option<PathBuf> = None,
        /// Handshakes in progress at once, each from its first byte, at least 1; beyond this, one that has stalled is
        /// dropped, else the oldest of the address with the most.
        pub max_handshakes: usize = 256,
    }
}

impl Tls {
    /// Certificate and key, when there is to be TLS.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        self.cert_file.as_deref().zip(self.key_file.as_deref())
    }
}

settings! {
    /// Section `udp`.
    pub struct Udp {
        /// The address to receive audio on.
        pub host: IpAddr = Ipv4Addr::UNSPECIFIED.into(),
        /// The UDP port to receive audio on; 0 is any free port.
        pub port: u16 = 8884,
        /// The address devices are told to send audio to.
        pub public_ip: PublicIp = PublicIp::Auto,
        /// Which source addresses a call's audio may come from.
        pub peer_policy: PeerPolicy = PeerPolicy::Adaptive,
        /// Whether downlink packets carry `0x80 | (sequence & 0x7f)` as flags, so that no two packets of a call share
        /// keystream, and none that is sent back is taken for one of the device.
        pub downlink_flags: bool = true,
        /// The least time between `tts start` and the audio behind it, which a device that is not speaking yet throws away.
        pub speech_lead: Duration = Duration::from_millis(30),
        /// Whether audio is sent to devices at the pace at which they play it, however fast the chat server sends it.
        pub downlink_pace: bool = true,
        /// After how long without audio to a device in a call one datagram keeps its path open; zero is never. None is sent without
        /// `downlink_flags`.
        pub keep_alive: Duration = Duration::from_secs(10),
        /// The DSCP (RFC 2474) of audio to devices, 0 to 63: 46 is EF (RFC 3246), which Wi-Fi treats as voice.
        pub dscp: u8 = 46,
        /// How long after each `listen` start of a device missing audio is logged; zero is never.
        pub first_packet_warn: Duration = Duration::from_secs(3),
        /// Whether this is shown on the device too.
        pub first_packet_alert: bool = true,
        /// How long packets are batched under load, at most; zero is never.
        pub coalesce_max: Duration = Duration::from_micros(1_000),
    }
}

/// The address devices are told to send their audio to. Displays as it is written in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicIp {
    /// For each device the local address its own TCP connection reached.
    Auto,
    /// This address.
    Ip(IpAddr),
    /// This name, which the device resolves.
    Host(String),
}

impl PublicIp {
    /// What [`PublicIp::from_str`] reads.
    pub(crate) const ALLOWED: &str = "\"auto\", an IP address or a host name, without a port";
}

impl FromStr for PublicIp {
    /// What is allowed.
    type Err = &'static str;

    /// Reads it as it is written in the file.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.parse() {
            _ if text.eq_ignore_ascii_case("auto") => Ok(Self::Auto),
            Ok(ip) => Ok(Self::Ip(ip)),
            Err(_) if is_host_name(text) => Ok(Self::Host(text.to_owned())),
            Err(_) => Err(Self::ALLOWED),
        }
    }
}

impl fmt::Display for PublicIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Ip(ip) => ip.fmt(f),
            Self::Host(name) => f.write_str(name),
        }
    }
}

/// Which source addresses a call's audio may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerPolicy {
    /// Any port of the MQTT connection's IP; another IP once its path is validated.
    Adaptive,
    /// Any port of the MQTT connection's IP, no other.
    Strict,
}

settings! {
    /// Section `websocket`.
    pub struct WebSocket {
        /// The chat servers of all devices except the listed ones (`production_servers`).
        pub production: Vec<Arc<ChatServerConfig>> = Vec::new(),
        /// The chat servers of the listed devices (`development_servers`).
        pub development: Vec<Arc<ChatServerConfig>> = Vec::new(),
        /// The listed devices (`development_mac_addresses`).
        pub development_macs: Vec<Mac> = Vec::new(),
        /// Further devices with chat servers of their own; the first that fits counts.
        pub routes: Vec<Route> = Vec::new(),
        /// In which order a new call tries the servers of its list.
        pub order: ServerOrder = ServerOrder::Spread,
        /// Whether `production` is the built-in echo server, which stands in when no server was configured at start.
        pub echo: bool = false,
        /// The key of the bearer token sent to chat servers (`server_secret`); without one the fixed text `test-token` is sent.
        pub secret: Option<Secret> = None,
        /// PEM certificates trusted in addition to the system's.
        pub ca_file: Option<PathBuf> = None,
        /// Whether certificates are not verified at all.
        pub insecure: bool = false,
        /// How often a chat server is pinged; zero is never.
        pub ping_interval: Duration = Duration::from_secs(20),
        /// How long a chat server may take to answer a ping.
        pub ping_timeout: Duration = Duration::from_secs(20),
        /// How a call redials a chat server that failed.
        pub reconnect: Reconnect = Reconnect::default(),
        /// Whether the chat server gets a `goodbye` with the call's summary before the close.
        pub send_goodbye: bool = true,
        /// How long a call may stay without audio and text in either direction; zero is without limit.
        pub call_idle: Duration = Duration::from_secs(300),
        /// Calls at once; 0 is no limit.
        pub max_calls: usize = 0,
        /// Connection attempts to chat servers in progress at once, at least 1.
        pub max_dials: usize = 256,
    }
}

/// In which order a new call tries the chat servers of its list. Those that fail come last in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerOrder {
    /// Each call begins with the next one, so that calls are spread over all.
    Spread,
    /// As they stand in the list: the others stand by.
    First,
}

settings! {
    /// Section `websocket.reconnect`: the n-th pause is `initial` times `multiplier` to the power of n, and `max` at most.
    pub struct Reconnect {
        /// The first pause.
        pub initial: Duration = Duration::from_millis(250),
        /// The longest pause.
        pub max: Duration = Duration::from_secs(30),
        /// How much longer each pause is than the one before, at least 1.
        pub multiplier: f64 = 2.0,
        /// How long after the loss of its chat server a call ends, once a redial has failed; zero is never.
        pub give_up_after: Duration = Duration::from_secs(110),
    }
}

settings! {
    /// Section `logging`.
    pub struct Logging {
        /// Whether anything is logged; an error that ends the program is reported in any case.
        pub enabled: bool = true,
        /// The log level; see [`Config::log_level`] for what is in force.
        pub level: LevelFilter = LevelFilter::Info,
        /// How a line is written.
        pub format: LogFormat = LogFormat::Text,
        /// Which time a line has.
        pub time: LogTime = LogTime::Local,
        /// A file that gets every line in addition to stderr.
        pub file: Option<PathBuf> = None,
        /// The size of this file, in millions of bytes, above which it is renamed and another one is begun; 0 is never.
        pub max_mb: usize = 64,
        /// How many renamed files are kept, at least 1.
        pub keep: usize = 4,
    }
}

/// How the lines of the log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, who it is about, and a text.
    Text,
    /// A JSON object.
    Json,
}

/// The time zone of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTime {
    /// The machine's, or that of `TZ`.
    Local,
    /// UTC.
    Utc,
}

settings! {
    /// Section `history`: the calls that have ended.
    pub struct History {
        /// How many are kept in memory; 0 is none, not in the file either.
        pub calls: usize = 10_000,
        /// A file that gets each of them too, and from which the last are read at start.
        pub file: Option<PathBuf> = None,
        /// What that file and the one before it take at most, in millions of bytes; at least 1.
        pub max_mb: u64 = 64,
        /// How long they are kept there; at least 1.
        pub days: u32 = 30,
        /// Whether only the networks of the devices' addresses are recorded: /24 of IPv4, /48 of IPv6.
        pub mask_addresses: bool = false,
    }
}

settings! {
    /// Section `mcp`.
    pub struct Mcp {
        /// Whether the gateway requests a device's tools when it connects, and answers `tools/list` from its cache.
        pub enabled: bool = true,
        /// Tools cached per device, at least 1.
        pub max_tools_count: usize = 128,
        /// The capabilities the gateway declares to a device: the text of a JSON object.
        pub capabilities: String = "{}".to_owned(),
        /// The name and version the gateway gives to a device: the text of a JSON object.
        pub client_info: String = concat!( r#"{"name":"mqtt-websocket-proxy","version":""#, env!("CARGO_PKG_VERSION"), r#""}"# ) .to_owned(),
    }
}

settings! {
    /// Section `api`.
    pub struct Api {
        /// Whether there is a management listener.
        pub enabled: bool = true,
        /// The address to listen on; `None` leaves it to [`Config::api_host`], and adds `[::1]`.
        pub host: Option<IpAddr> = None,
        /// The TCP port of the management listener; 0 is any free port.
        pub port: u16 = 8007,
        /// TLS on that port.
        pub tls: ApiTls = ApiTls::default(),
        /// A token without expiry, in addition to the daily one derived from `mqtt.signature_key`.
        pub token: Option<Secret> = None,
        /// How long a device may take to answer a command. Consoles wait 10 s for the whole request.
        pub command_timeout: Duration = Duration::from_secs(9),
        /// Whether `/metrics` requires a token too.
        pub metrics_need_token: bool = true,
        /// Whether whoever has a token is told the credentials of a device. They outlive every token.
        pub issue_credentials: bool = true,
        /// Proxies that may forward requests of this machine when there is neither a key nor a token.
        pub trusted_proxies: Vec<Network> = Vec::new(),
    }
}

settings! {
    /// Section `api.tls`.
    pub struct ApiTls {
        /// Whether the port speaks TLS instead of clear HTTP.
        pub enabled: bool = false,
        /// PEM certificate chain of its own; without one, that of `mqtt.tls` is used.
        pub cert_file: Option<PathBuf> = None,
        /// The PEM private key of the first certificate.
        pub key_file: Option<PathBuf> = None,
    }
}

impl ApiTls {
    /// The API's own certificate and key.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        self.cert_file.as_deref().zip(self.key_file.as_deref())
    }
}

settings! {
    /// Section `ota`.
    pub struct Ota {
        /// Whether there is a listener for devices' OTA requests. [`Source`] switches it on where there is neither a file nor a key.
        pub enabled: bool = false,
        /// The address to listen on.
        pub host: IpAddr = Ipv4Addr::UNSPECIFIED.into(),
        /// The TCP port to listen on; 0 is any free port.
        pub port: u16 = 8006,
        /// The networks whose devices are answered; private, link-local and loopback networks when it is empty.
        pub allow: Vec<Network> = Vec::new(),
        /// The only devices that are answered; all when it is empty.
        pub macs: MacPrefixes = MacPrefixes::default(),
        /// Where devices are told to reach this gateway; `None` leaves it to each request.
        pub endpoint: Option<Endpoint> = None,
        /// The MQTT keep alive that devices are told, in seconds.
        pub keepalive: u16 = 60,
        /// The first part of the client ids that devices are told.
        pub group: String = DEFAULT_GROUP.to_owned(),
        /// Another OTA server, whose answer is passed on with this gateway's `mqtt` section.
        pub upstream: Option<HttpUrl> = None,
    }
}

settings! {
    /// Section `cluster`: the other gateways of the same service.
    pub struct Cluster {
        /// The Redis server through which they know each other; without one, this gateway is on its own.
        pub redis: Option<RedisUrl> = None,
        /// The name of this gateway; `None` for the host name.
        pub name: Option<String> = None,
        /// What all its keys and channels in Redis begin with, in front of a colon. The same for all gateways.
        pub prefix: String = "mqtt-websocket-proxy".to_owned(),
        /// PEM certificates trusted in addition to the system's.
        pub ca_file: Option<PathBuf> = None,
    }
}

/// A key that no log line and no debug output shows: there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// The secret of this text; `None` when it is empty, which means that there is none.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.into()))
    }

    /// The secret itself.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Config {
    /// The chat servers of the device with this client id: the development list when its MAC is listed and that list has
    /// servers, else those of the first route that fits, else the production list.
    pub fn servers_for(&self, id: &ClientId) -> &[Arc<ChatServerConfig>] {
        self.list_for(id).1
    }

    /// The name of the list or route that [`servers_for`](Self::servers_for) takes.
    pub fn route_name(&self, id: &ClientId) -> &str {
        self.list_for(id).0
    }

    fn list_for(&self, id: &ClientId) -> (&str, &[Arc<ChatServerConfig>]) {
        let websocket = &self.websocket;
        if !websocket.development.is_empty() && websocket.development_macs.contains(&id.mac()) {
            return ("development", &websocket.development);
        }
        let route = websocket.routes.iter().find(|route| route.matches(id));
        route.map_or(("production", &websocket.production), |route| (&route.name, &route.servers))
    }

    /// Every chat server, with the name of its list or route.
    pub fn servers(&self) -> impl Iterator<Item = (&str, &Arc<ChatServerConfig>)> {
        let websocket = &self.websocket;
        let lists = [("production", &websocket.production), ("development", &websocket.development)];
        let routes = websocket.routes.iter().map(|route| (route.name.as_str(), &route.servers));
        lists.into_iter().chain(routes).flat_map(|(name, list)| list.iter().map(move |server| (name, server)))
    }

    /// The address of the management listener: as configured, else every address when callers need a token, else loopback.
    pub fn api_host(&self) -> IpAddr {
        let closed = self.mqtt.signature_key.is_some() || self.api.token.is_some();
        let default = if closed { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        self.api.host.unwrap_or(default.into())
    }

    /// The log level in force, from section `logging` and `debug`.
    pub fn log_level(&self) -> LevelFilter {
        match (self.logging.enabled, self.debug) {
            (false, _) => LevelFilter::Off,
            (true, true) => self.logging.level.max(LevelFilter::Debug),
            (true, false) => self.logging.level,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn servers(urls: &[&str]) -> Vec<Arc<ChatServerConfig>> {
        urls.iter().map(|url| Arc::new(url.parse().unwrap())).collect()
    }

    #[test]
    fn listed_devices_use_the_development_servers_if_configured() {
        let listed = ClientId::parse("GID_a@@@aa_bb_cc_dd_ee_ff@@@u").unwrap();
        let other = ClientId::parse("GID_b@@@11_22_33_44_55_66@@@u").unwrap();
        let mut config = Config::default();
        config.websocket.production = servers(&["ws://production"]);
        config.websocket.development = servers(&["ws://development"]);
        config.websocket.development_macs = vec![listed.mac()];
        assert_eq!(config.servers_for(&listed), config.websocket.development);
        assert_eq!(config.servers_for(&other), config.websocket.production);

        let route = |group: &str, url| Route {
            groups: vec![group.to_owned()],
            servers: servers(&[url]),
            ..Route::default()
        };
        config.websocket.routes = vec![route("GID_*", "ws://first"), route("GID_b", "ws://second")];
        assert_eq!(config.servers_for(&listed), config.websocket.development);
        assert_eq!(config.servers_for(&other), config.websocket.routes[0].servers);
        config.websocket.routes.remove(0);
        assert_eq!(config.servers_for(&other), config.websocket.routes[0].servers);
        assert_eq!(config.servers().count(), 3);

        config.websocket.development.clear();
        assert_eq!(config.servers_for(&listed), config.websocket.production);
    }

    #[test]
    fn debug_raises_the_level_and_disabled_silences_it() {
        for (enabled, debug, level, expected) in [
            (true, false, LevelFilter::Warn, LevelFilter::Warn),
            (true, true, LevelFilter::Warn, LevelFilter::Debug),
            (true, true, LevelFilter::Trace, LevelFilter::Trace),
            (false, true, LevelFilter::Trace, LevelFilter::Off),
        ] {
            let logging = Logging { enabled, level, ..Logging::default() };
            let config = Config { logging, debug, ..Config::default() };
            assert_eq!(config.log_level(), expected, "{enabled} {debug} {level}");
        }
    }

    #[test]
    fn without_a_key_or_token_the_api_listens_on_localhost() {
        let secret = || Secret::new("a secret");
        for (key, token, host, expected) in [
            (None, None, None, "127.0.0.1"),
            (secret(), None, None, "0.0.0.0"),
            (None, secret(), None, "0.0.0.0"),
            (None, None, Some("::"), "::"),
            (secret(), None, Some("127.0.0.1"), "127.0.0.1"),
        ] {
            let mut config = Config::default();
            config.mqtt.signature_key = key;
            config.api.token = token;
            config.api.host = host.map(|host| host.parse().unwrap());
            assert_eq!(config.api_host().to_string(), expected);
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2").unwrap();
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(secret.as_bytes(), b"hunter2");
        assert_eq!(Secret::new(""), None);
    }
}
