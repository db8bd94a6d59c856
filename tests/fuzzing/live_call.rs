//! A device in a call, for targets that test its audio.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Config;
use crate::proto::audio::Cipher;
use crate::session::harness::{
    SentDatagram, TestShell, call_credentials, connect_packet, publish_packet, servers,
};
use crate::session::{Action, CallCredentials, Context, Core, DropReason};

pub(super) const SSRC: u32 = 0x0102_0304;
pub(super) const KEY: [u8; 16] = *b"sixteen byte key";
/// Where the device's MQTT connection comes from.
pub(super) const MQTT_IP: [u8; 4] = [192, 0, 2, 7];

/// A device in a call with a chat server, and its shell.
pub(super) struct LiveCall {
    pub(super) core: Core,
    pub(super) shell: TestShell,
}

impl LiveCall {
    pub(super) fn new(mut config: Config) -> Self {
        config.mcp.enabled = false;
        config.websocket.production = servers(&["ws://a/"]);
        let shell = TestShell::new(config);
        let mut call = Self { core: Core::new(MQTT_IP.into(), shell.now), shell };
        call.drive(|core, cx| core.on_packet(connect_packet(CLIENT_ID, 0), cx));
        call.drive(|core, cx| core.on_packet(publish_packet(HELLO), cx));
        call.drive(Core::on_backend_open);
        call
    }

    /// The chat server sends its hello: the call is live.
    pub(super) fn server_hello(&mut self) -> Vec<Action> {
        self.drive(|core, cx| core.on_backend_text(r#"{"type":"hello","session_id":"s"}"#, cx))
    }

    pub(super) fn drive(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>)) -> Vec<Action> {
        self.shell.drive(&mut self.core, || credentials(SSRC), decide).1
    }

    /// Time passes, and timers are handled.
    pub(super) fn advance(&mut self, ms: u64) -> Vec<Action> {
        self.shell.now += Duration::from_millis(ms);
        self.core.refresh_keep_alive(self.shell.now);
        self.core.on_backend_activity(self.shell.now);
        self.drive(Core::on_timeout)
    }

    /// Passes a datagram to the core, and returns the frames for the chat server.
    pub(super) fn uplink(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
    ) -> Result<Vec<Vec<u8>>, DropReason> {
        self.shell.uplink_frames(&mut self.core, from, datagram).map(|(frames, _)| frames)
    }

    pub(super) fn downlink(&mut self, frame: &[u8]) -> Result<Option<SentDatagram>, DropReason> {
        self.shell.downlink(&mut self.core, frame)
    }
}

pub(super) fn cipher() -> Cipher {
    Cipher::new(&KEY)
}

/// All calls have the same key; their headers differ by the ssrc.
pub(super) fn credentials(ssrc: u32) -> CallCredentials {
    call_credentials(ssrc, KEY)
}

const HELLO: &[u8] = br#"{"type":"hello","version":3,"transport":"udp"}"#;

/// A valid client id, accepted without a password by the default configuration.
pub(super) const CLIENT_ID: &str = "GID_test@@@aa_bb_cc_dd_ee_ff@@@uuid";
