//! The management API over TLS: its certificate, and handshakes.

use log::{Level, log};

use crate::admin::error::{ApiError, ErrorStyle};
use crate::config::Api;
use crate::net::admin::connection::{Progress, connection_mut};
use crate::net::admin::server::AdminServer;
use crate::net::error::BindError;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::AdminId;
use crate::net::log_limiter::suppressed_suffix;
use crate::net::mqtt::certificate::Certificate;
use crate::net::mqtt::transport::{HandshakeStep, Transport};
use crate::net::mqtt::watched_certificate::{CertificateProblems, WatchedCertificate};

impl AdminServer {
    /// Loads the certificate that `new` names, unless `old` named the same files.
    ///
    /// # Errors
    /// A certificate that cannot be used.
    pub(crate) fn load_certificate(
        &self,
        old: Option<&Api>,
        new: &Api,
    ) -> Result<Option<WatchedCertificate>, BindError> {
        let is_used = self.has_listener() && old.is_none_or(|old| old.tls.files() != new.tls.files());
        WatchedCertificate::load("api.tls", new.tls.files().filter(|_| is_used), None)
    }

    /// Uses the `loaded` certificate from now on; without one, reads the files of the current one again, if `new` names it.
    pub(crate) fn set_certificate(
        &mut self,
        new: &Api,
        loaded: Option<WatchedCertificate>,
    ) -> CertificateProblems {
        if loaded.is_none() && new.tls.files().is_some() {
            return self.certificate.as_mut().map(WatchedCertificate::renew).unwrap_or_default();
        }
        self.certificate = loaded;
        self.certificate.as_ref().map(WatchedCertificate::describe).unwrap_or_default()
    }

    /// Whether this connection has not finished its TLS handshake.
    pub(crate) fn is_in_handshake(&self, id: AdminId) -> bool {
        self.connections.get(id.slot as usize).is_some_and(|conn| !conn.transport.is_open())
    }

    /// Advances the handshake with the API's own certificate, or else with that of MQTT.
    pub(super) fn advance_handshake(
        &mut self,
        id: AdminId,
        mqtt_certificate: Option<&WatchedCertificate>,
        io: &mut Io,
    ) -> Progress {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
        let certificate = self.certificate.as_ref().or(mqtt_certificate);
        let certificate: Option<&Certificate> = certificate.map(|watched| &watched.certificate);
        match conn.transport.advance(certificate, &mut self.scratch) {
            HandshakeStep::Done => {
                io.metrics.api_tls_handshakes += 1;
                Progress::Continue
            }
            HandshakeStep::Blocked => Progress::Wait,
            HandshakeStep::NotTls(tcp, _) => {
                io.metrics.api_tls_failed += 1;
                conn.transport = Transport::new(tcp, false, false);
                let refusal = ApiError::new(400, "https_required", "This port speaks TLS: use https://.");
                self.respond(id, &refusal.response(ErrorStyle::Coded), false, false, io)
            }
            HandshakeStep::TlsFailed(why) => {
                io.metrics.api_tls_failed += 1;
                let suppressed = self.tls_failure_log.allows((), io.now);
                let level = if suppressed.is_some() { Level::Info } else { Level::Debug };
                let more = suppressed_suffix(suppressed.unwrap_or_default());
                log!(level, "management API: [{}] no TLS connection: {why}{more}", conn.peer);
                Progress::Close
            }
            HandshakeStep::PeerClosed | HandshakeStep::ProxiedFor(_) | HandshakeStep::BadProxyHeader(_) => {
                Progress::Close
            }
        }
    }
}
