//! A call that is up, for targets that are about its audio.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::proto::audio::Cipher;
use crate::proto::mqtt::{Connect, Packet, ProtocolLevel, Publish};
use crate::session::{
    Action, Admission, CallCredentials, Context, Core, DropReason, Encrypted, RequestIds, ServerHealth,
    UdpPeer, Uplink,
};

pub(super) const SSRC: u32 = 0x0102_0304;
pub(super) const KEY: [u8; 16] = *b"sixteen byte key";
/// Where the device's MQTT connection comes from.
pub(super) const MQTT_IP: [u8; 4] = [192, 0, 2, 7];

/// A device in a call with a chat server, and the least a shell must do for it.
pub(super) struct LiveCall {
    pub(super) core: Core,
    pub(super) config: Config,
    pub(super) now: Instant,
    servers: ServerHealth,
    ids: RequestIds,
}

impl LiveCall {
    pub(super) fn new(config: Config) -> Self {
        let now = Instant::now();
        let core = Core::new(MQTT_IP.into(), now);
        let mut call = Self { core, config, now, servers: ServerHealth::default(), ids: RequestIds::new() };
        call.config.mcp.enabled = false;
        call.config.websocket.production = vec![Arc::new("ws://a/".parse().unwrap())];
        call.drive(|core, cx| core.on_packet(CONNECT_PACKET, cx));
        call.drive(|core, cx| core.on_admission(Admission::Accepted, cx));
        call.drive(|core, cx| core.on_packet(HELLO_PACKET, cx));
        call.drive(|core, cx| core.on_credentials(credentials(SSRC), cx));
        call.drive(Core::on_backend_open);
        call
    }

    /// The chat server says hello, and with it the call is live.
    pub(super) fn server_hello(&mut self) -> Vec<Action> {
        self.drive(|core, cx| core.on_backend_text(r#"{"type":"hello","session_id":"s"}"#, cx))
    }

    pub(super) fn drive(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>)) -> Vec<Action> {
        let mut out = Vec::new();
        let mut cx = Context {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        decide(&mut self.core, &mut cx);
        out
    }

    /// Time passes; what is due is done.
    pub(super) fn advance(&mut self, ms: u64) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        self.core.refresh_keep_alive(self.now);
        self.core.on_backend_activity(self.now);
        self.drive(Core::on_timeout)
    }

    /// What the chat server gets of a datagram.
    pub(super) fn uplink<'b>(
        &mut self,
        from: SocketAddr,
        datagram: &'b mut [u8],
    ) -> Result<&'b [u8], DropReason> {
        match self.core.uplink(UdpPeer { addr: from, local_ip: None }, datagram, &self.config, self.now)? {
            Uplink::Server { frame, .. } => Ok(frame),
            other => panic!("no device was called: {other:?}"),
        }
    }

    pub(super) fn downlink(&mut self, frame: &[u8], out: &mut [u8]) -> Result<Option<Encrypted>, DropReason> {
        self.core.downlink(frame, out, &self.config, &mut self.servers, self.now)
    }
}

pub(super) fn cipher() -> Cipher {
    Cipher::new(&KEY)
}

/// Its key is the same for every call: whose headers differ by their ssrc.
pub(super) fn credentials(ssrc: u32) -> CallCredentials {
    CallCredentials {
        ssrc,
        key: KEY,
        session_id: "own".into(),
        jitter_seed: 1,
        udp_host: "192.0.2.1".into(),
        udp_port: 8884,
        allowed: true,
    }
}

const HELLO_PACKET: Packet<'static> = Packet::Publish(Publish {
    topic: "device-server",
    payload: br#"{"type":"hello","version":3,"transport":"udp"}"#,
    retain: false,
});

/// Lets a device in where no password is asked for.
pub(super) const CONNECT_PACKET: Packet<'static> = Packet::Connect(Connect {
    level: ProtocolLevel::V311,
    client_id: "GID_test@@@aa_bb_cc_dd_ee_ff@@@uuid",
    clean_session: true,
    keep_alive: 0,
    will: None,
    user_name: None,
    password: None,
});
