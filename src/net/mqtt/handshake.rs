//! Advances the handshakes of connections: the PROXY protocol header and TLS.

use std::net::IpAddr;

use log::{Level, warn};

use crate::logger::log_about;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::SessionId;
use crate::net::metrics::TurnedAway;
use crate::net::mqtt::listener::{EXTRA_PER_ADDRESS, Listeners};
use crate::net::mqtt::transport::HandshakeStep;
use crate::net::sessions::table::Sessions;
use crate::proto::proxy_protocol::ProxySource;

/// The result of advancing a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeOutcome {
    /// Try again at the socket's next event. This connection must be closed, to make room for a TLS handshake that has begun.
    Blocked { evicted: Option<SessionId> },
    /// A stage is complete. There may be more to read.
    Advanced,
    /// The connection has failed, or is refused; what the log says about its TLS handshake, if it says anything.
    Failed(Option<String>),
}

impl Listeners {
    /// Advances the handshake of this session's connection. `scratch` holds at least one PROXY header.
    pub(crate) fn drive_handshake(
        &mut self,
        id: SessionId,
        sessions: &mut Sessions,
        io: &mut Io,
        scratch: &mut [u8],
    ) -> HandshakeOutcome {
        let blocked = HandshakeOutcome::Blocked { evicted: None };
        let Some(session) = sessions.live(id) else { return blocked };
        let ip = session.core.ip();
        let Some(connection) = &mut session.mqtt else { return blocked };
        let had_begun = connection.transport.is_in_tls_handshake();
        let certificate = self.certificate.as_ref().map(|watched| &watched.certificate);
        match connection.transport.advance(certificate, scratch) {
            HandshakeStep::Blocked if !had_begun && connection.transport.is_in_tls_handshake() => {
                self.add_handshake(id, ip, io)
            }
            HandshakeStep::Blocked => blocked,
            HandshakeStep::ProxiedFor(source) => self.set_proxied_address(id, source, sessions, io),
            HandshakeStep::Done => {
                io.metrics.tls_handshakes += 1;
                self.handshakes.remove(id);
                self.unauthenticated.insert(id, ip, io.now);
                HandshakeOutcome::Advanced
            }
            HandshakeStep::PeerClosed => HandshakeOutcome::Failed(None),
            HandshakeStep::BadProxyHeader(bad) => {
                if let Some(more) = self.refusals().log.allows(ip, io) {
                    warn!(
                        "[{ip}] refused a connection from an address in mqtt.proxy_protocol_from: {bad}{more}"
                    );
                }
                HandshakeOutcome::Failed(None)
            }
            HandshakeStep::NotTls(_, byte) => {
                let why = format!("the peer does not speak TLS: its first byte is {byte:#04x}");
                self.log_tls_failure(id, &why, sessions, io)
            }
            HandshakeStep::TlsFailed(why) => self.log_tls_failure(id, &why, sessions, io),
        }
    }

    fn log_tls_failure(
        &mut self,
        id: SessionId,
        why: &str,
        sessions: &Sessions,
        io: &mut Io,
    ) -> HandshakeOutcome {
        io.metrics.tls_failed += 1;
        let (level, more) = self.tls_failure_log.level((), io.now);
        log_about!(level, sessions.log_subject(id), "no TLS connection: {why}{more}");
        HandshakeOutcome::Failed((level == Level::Info).then(|| format!("no TLS connection: {why}")))
    }

    /// A connection has sent the first byte of its TLS handshake, and takes a place from now on.
    fn add_handshake(&mut self, id: SessionId, ip: IpAddr, io: &mut Io) -> HandshakeOutcome {
        let full = self.handshakes.len() >= io.config.mqtt.tls.max_handshakes;
        let evicted = self.handshakes.first(io.now).filter(|_| full).map(|(id, why)| {
            io.metrics.turned_away(why);
            self.forget(id);
            id
        });
        self.unauthenticated.insert(id, ip, io.now);
        self.handshakes.insert(id, ip, io.now);
        HandshakeOutcome::Blocked { evicted }
    }

    /// Replaces the load balancer's address by the client's. Refuses the connection if the client has too many.
    fn set_proxied_address(
        &mut self,
        id: SessionId,
        source: ProxySource,
        sessions: &mut Sessions,
        io: &mut Io,
    ) -> HandshakeOutcome {
        let ProxySource::Client(client) = source else { return HandshakeOutcome::Advanced };
        let ip = client.ip().to_canonical();
        let Some(session) = sessions.live(id) else { return HandshakeOutcome::Failed(None) };
        session.core.set_client_ip(ip);
        let Some(connection) = &mut session.mqtt else { return HandshakeOutcome::Failed(None) };
        connection.peer_port = client.port();
        connection.counted = None;
        self.unauthenticated.insert(id, ip, io.now);
        let limit = io.config.mqtt.max_connections_per_ip;
        if limit == 0 {
            return HandshakeOutcome::Advanced;
        }
        let crowded = self.by_address.of(ip) >= limit + EXTRA_PER_ADDRESS;
        connection.counted = Some(self.by_address.count(ip));
        if crowded {
            io.metrics.turned_away(TurnedAway::AddressLimit);
            return HandshakeOutcome::Failed(None);
        }
        HandshakeOutcome::Advanced
    }
}
