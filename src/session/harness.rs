//! What tests, simulations and fuzz targets share: the part of the shell that every core needs, and the packets of a device.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::{
    Action, Admission, CallCredentials, Context, Core, DialRequest, DropReason, Encrypted, EndedCalls,
    FrameSpace, HelloLimiter, RequestIds, ServerHealth, ToolLists, UdpPeer, Uplink,
};
use crate::config::{ChatServerConfig, Config};
use crate::proto::audio::{Cipher, HEADER_LEN, MAX_PAYLOAD, UdpHeader, ws_frame_header};
use crate::proto::mqtt::{Connect, Packet, ProtocolLevel, Publish};

/// A datagram for a device, and where it goes.
pub(crate) type SentDatagram = (Encrypted, Box<[u8]>);

/// What the shell lends to its cores, and the virtual time.
pub(crate) struct TestShell {
    pub(crate) config: Config,
    pub(crate) servers: ServerHealth,
    pub(crate) hellos: HelloLimiter,
    pub(crate) ended_calls: EndedCalls,
    pub(crate) ids: RequestIds,
    pub(crate) tool_lists: ToolLists,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
}

impl TestShell {
    pub(crate) fn new(config: Config) -> Self {
        let now = Instant::now();
        Self {
            config,
            servers: ServerHealth::default(),
            hellos: HelloLimiter::default(),
            ended_calls: EndedCalls::default(),
            ids: RequestIds::new(),
            tool_lists: ToolLists::default(),
            start: now,
            now,
        }
    }

    pub(crate) fn elapsed_ms(&self) -> u64 {
        (self.now - self.start).as_millis() as u64
    }

    /// Lets the core decide. Its actions are appended to `out`.
    pub(crate) fn decide<T>(
        &mut self,
        core: &mut Core,
        out: &mut Vec<Action>,
        decide: impl FnOnce(&mut Core, &mut Context<'_>) -> T,
    ) -> T {
        decide(core, &mut self.context(out))
    }

    /// What a core borrows. Its actions are appended to `out`.
    pub(crate) fn context<'a>(&'a mut self, out: &'a mut Vec<Action>) -> Context<'a> {
        let Self { config, servers, hellos, ended_calls, ids, tool_lists, now, .. } = self;
        Context { now: *now, config, servers, hellos, ended_calls, ids, tool_lists, out }
    }

    /// Lets the core decide, accepts its device if it asks for that, and gives it credentials for a call if it asks for them.
    pub(crate) fn drive<T>(
        &mut self,
        core: &mut Core,
        credentials: impl FnOnce() -> CallCredentials,
        decide: impl FnOnce(&mut Core, &mut Context<'_>) -> T,
    ) -> (T, Vec<Action>) {
        let mut out = Vec::new();
        let result = self.decide(core, &mut out, decide);
        if out.last() == Some(&Action::Admit) {
            self.decide(core, &mut out, |core, cx| core.on_admission(Admission::Accepted, cx));
        }
        if out.last() == Some(&Action::GenerateCredentials) {
            self.decide(core, &mut out, |core, cx| core.on_credentials(credentials(), cx));
        }
        (result, out)
    }

    /// A new connection that has sent its CONNECT and waits for admission.
    pub(crate) fn connect(&mut self, ip: IpAddr, connect: Packet<'_>) -> Core {
        let (mut core, mut out) = (Core::new(ip, self.now), Vec::new());
        self.decide(&mut core, &mut out, |core, cx| core.on_packet(connect, cx));
        assert_eq!(out, [Action::Admit]);
        core
    }

    /// A datagram for the core.
    pub(crate) fn uplink<'b>(
        &self,
        core: &mut Core,
        from: SocketAddr,
        datagram: &'b mut [u8],
    ) -> Result<Uplink<'b>, DropReason> {
        core.uplink(UdpPeer { addr: from, local_ip: None }, datagram, &self.config, self.now)
    }

    /// A datagram for a core whose call has a chat server: the frames for that, and whether it is the first of the device.
    pub(crate) fn uplink_frames(
        &self,
        core: &mut Core,
        from: SocketAddr,
        datagram: &mut [u8],
    ) -> Result<(Vec<Vec<u8>>, bool), DropReason> {
        let device_heard = match self.uplink(core, from, datagram)? {
            Uplink::Server { frame, device_heard, .. } => return Ok((vec![frame.to_vec()], device_heard)),
            Uplink::Path { device_heard } => device_heard,
            other => panic!("no device was called: {other:?}"),
        };
        let (mut frames, mut released) = (Vec::new(), Vec::new());
        while let Some(uplink) = core.next_released(&mut released) {
            match uplink {
                Ok(Uplink::Server { frame, .. }) => frames.push(frame.to_vec()),
                other => assert_eq!(other, Err(DropReason::NoServer)),
            }
        }
        Ok((frames, device_heard))
    }

    /// A binary frame of the chat server: the datagram that leaves at once, or `None` when the frame has to wait.
    pub(crate) fn downlink(
        &mut self,
        core: &mut Core,
        frame: &[u8],
    ) -> Result<Option<SentDatagram>, DropReason> {
        let mut out = [0; HEADER_LEN + MAX_PAYLOAD];
        let encrypted = core.downlink(
            frame,
            FrameSpace { datagram: &mut out, room: usize::MAX },
            &self.config,
            &mut self.servers,
            self.now,
        )?;
        Ok(encrypted.map(|encrypted| (encrypted, out[..encrypted.datagram_len].into())))
    }
}

/// Credentials of a call with this ssrc and key.
pub(crate) fn call_credentials(ssrc: u32, key: [u8; 16]) -> CallCredentials {
    CallCredentials {
        ssrc,
        key,
        session_id: "own".into(),
        udp_host: "192.0.2.1".into(),
        udp_port: 8884,
        allowed: true,
    }
}

/// A request for the upgrade to this chat server.
pub(crate) fn dial_request(server: ChatServerConfig) -> DialRequest {
    DialRequest {
        server: Arc::new(server),
        mac: [1, 2, 3, 4, 5, 6].into(),
        client_id: None,
        sign_token: true,
        forwarded_for: [192, 0, 2, 7].into(),
        protocol_version: 2,
        skip_dns_cache: false,
    }
}

pub(crate) fn servers(urls: &[&str]) -> Vec<Arc<ChatServerConfig>> {
    urls.iter().map(|url| Arc::new(url.parse().unwrap())).collect()
}

pub(crate) fn connect_packet(client_id: &str, keep_alive: u16) -> Packet<'_> {
    Packet::Connect(Connect {
        level: ProtocolLevel::V311,
        client_id,
        clean_session: true,
        keep_alive,
        will: None,
        user_name: None,
        password: None,
    })
}

pub(crate) fn publish_packet(payload: &[u8]) -> Packet<'_> {
    Packet::Publish(Publish { topic: "device-server", payload, retain: false })
}

/// A datagram as a device sends it.
pub(crate) fn encrypt_datagram(
    key: &[u8; 16],
    ssrc: u32,
    sequence: u32,
    timestamp: u32,
    payload: &[u8],
) -> Vec<u8> {
    let header = UdpHeader { flags: 0, payload_len: payload.len() as u16, ssrc, timestamp, sequence };
    let mut datagram = [&header.to_bytes()[..], payload].concat();
    Cipher::new(key).apply(&header.to_bytes(), &mut datagram[HEADER_LEN..]);
    datagram
}

/// Header and payload of a datagram as a device reads them.
pub(crate) fn decrypt_datagram(key: &[u8; 16], datagram: &[u8]) -> (UdpHeader, Vec<u8>) {
    let header = UdpHeader::parse(datagram).unwrap();
    let mut payload = datagram[HEADER_LEN..].to_vec();
    Cipher::new(key).apply(&header.to_bytes(), &mut payload);
    (header, payload)
}

/// A binary frame of a chat server, with the 16-byte header.
pub(crate) fn frame_with_header(timestamp: u32, payload: &[u8]) -> Vec<u8> {
    [&ws_frame_header(timestamp, payload.len()), payload].concat()
}
