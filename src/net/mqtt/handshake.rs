//! What comes before a device's own bytes, in the loop: a balancer's word on whom it speaks for, the TLS handshake.

use log::{Level, log, warn};

use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::mqtt::listener::EXTRA_PER_ADDRESS;
use crate::net::mqtt::transport::HandshakeStep;
use crate::proto::proxy_protocol::ProxySource;
use crate::session::Core;

impl Gateway {
    /// Goes on with what comes first. False when there is nothing more to do now.
    pub(in crate::net) fn drive_handshake(&mut self, id: SessionId, scratch: &mut [u8]) -> bool {
        let Some(device) = self.sessions.live(id).and_then(|session| session.mqtt.as_mut()) else {
            return false;
        };
        match device.transport.advance(self.tls_listener.as_ref().map(|door| door.acceptor()), scratch) {
            HandshakeStep::Blocked => return false,
            HandshakeStep::ProxiedFor(origin) => return self.set_proxied_address(id, origin),
            HandshakeStep::Done => {
                self.metrics.tls_handshakes += 1;
                return true;
            }
            HandshakeStep::PeerClosed => {}
            HandshakeStep::BadProxyHeader(bad) => {
                let Some(ip) = self.sessions.get(id).map(|session| session.core.ip()) else { return false };
                if let Some(suppressed) = self.auth_throttle.log_worthy(ip, self.now) {
                    warn!(
                        "[{ip}] is in mqtt.proxy_protocol_from, but its connection is refused: it {bad}{}",
                        suppressed_suffix(suppressed)
                    );
                }
            }
            HandshakeStep::TlsFailed(why) => {
                self.metrics.tls_failed += 1;
                let suppressed = self.tls_failures.worthy(self.now);
                let level = if suppressed.is_some() { Level::Info } else { Level::Debug };
                log!(
                    level,
                    "{} no TLS connection: {why}{}",
                    self.log_prefix(id),
                    suppressed_suffix(suppressed.unwrap_or_default())
                );
            }
        }
        self.drive(id, Core::on_connection_lost);
        false
    }

    /// From now on it is the client's address that counts. False when that one has too many connections.
    fn set_proxied_address(&mut self, id: SessionId, origin: ProxySource) -> bool {
        let ProxySource::Client(client) = origin else { return true };
        let ip = client.ip().to_canonical();
        let Some(session) = self.sessions.live(id) else { return false };
        session.core.set_client_ip(ip);
        let Some(device) = &mut session.mqtt else { return false };
        device.peer_port = client.port();
        device.counted = None;
        let limit = self.config.mqtt.max_connections_per_ip;
        if limit == 0 {
            return true;
        }
        let crowded = self.connections_by_address.of(ip) >= limit + EXTRA_PER_ADDRESS;
        device.counted = Some(self.connections_by_address.count(ip));
        if crowded {
            self.metrics.turned_away += 1;
            self.drive(id, Core::on_connection_lost);
        }
        !crowded
    }

    /// Makes room for one more handshake: the one that has had the most time goes, never the newcomer.
    pub(in crate::net) fn limit_handshakes(&mut self) {
        let most = self.config.mqtt.tls.max_handshakes;
        if self.handshakes.len() < most {
            return;
        }
        let sessions = &self.sessions;
        self.handshakes.retain(|id| {
            let device = sessions.get(*id).and_then(|session| session.mqtt.as_ref());
            device.is_some_and(|device| device.transport.awaits_tls())
        });
        while self.handshakes.len() >= most
            && let Some(id) = self.handshakes.pop_front()
        {
            self.metrics.turned_away += 1;
            self.drive(id, Core::on_connection_lost);
            self.drop_device(id);
        }
    }
}

fn suppressed_suffix(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        n => format!(" ({n} more were not logged)"),
    }
}
