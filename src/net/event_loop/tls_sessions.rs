//! TLS connections to servers that resume the session of an earlier connection to the same server: no certificate is sent and
//! verified then, and TLS 1.2 needs one round trip less (RFC 5246 section 7.3, RFC 8446 section 2.2). A server that does not
//! know a session makes a full handshake in the same connection.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openssl::ex_data::Index;
use openssl::ssl::{
    ConnectConfiguration, HandshakeError, Ssl, SslConnector, SslConnectorBuilder, SslRef, SslSession,
    SslSessionCacheMode, SslStream, SslVerifyMode,
};

/// How many servers' sessions are kept.
const SERVERS_MAX: usize = 64;
/// How many sessions of one server are kept, the newest. With TLS 1.3 a server sends one or two for each connection.
const SESSIONS_MAX: usize = 4;
/// Longer sessions are not kept. They have a server's certificate and its ticket, and are usually of 1 to 3 KB.
const SESSION_BYTES_MAX: usize = 16 * 1024;
/// A session is not resumed when the server last proved its identity, by its certificate, longer ago than this.
const VERIFIED_FOR: Duration = Duration::from_secs(3600);

/// Where OpenSSL keeps the server of a connection, and when that was started. `None` when memory is short: nothing is resumed then.
static SERVER: LazyLock<Option<Index<Ssl, (Server, Instant)>>> = LazyLock::new(|| Ssl::new_ex_index().ok());

/// Makes TLS connections with the same settings, and resumes their sessions.
pub(crate) struct ResumingConnector {
    connector: SslConnector,
    insecure: bool,
    /// By host and port. A host's certificate is only verified in a full handshake, so no other host may use its sessions.
    servers: HashMap<(String, u16), Server>,
}

/// The sessions of one server, which its connections share.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Sessions>>);

#[derive(Default)]
struct Sessions {
    /// The newest last; in OpenSSL's own format, because it makes a session in memory useless when its connection ends without
    /// close_notify and, with TLS 1.3, when it was used.
    kept: VecDeque<Vec<u8>>,
    /// The start of the last connection with a full handshake.
    verified: Option<Instant>,
}

impl ResumingConnector {
    /// With `insecure`, accepts any certificate for any host.
    pub(crate) fn new(mut builder: SslConnectorBuilder, insecure: bool) -> Self {
        if insecure {
            builder.set_verify(SslVerifyMode::NONE);
        }
        builder.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL_STORE);
        // With TLS 1.3 sessions come after the handshake, while the connection is read.
        builder.set_new_session_callback(|ssl, session| {
            if let (Some((server, started)), Ok(session)) = (server(ssl), session.to_der())
                && session.len() <= SESSION_BYTES_MAX
            {
                server.lock().add(session, (!ssl.session_reused()).then_some(*started));
            }
        });
        Self { connector: builder.build(), insecure, servers: HashMap::new() }
    }

    /// Starts a handshake with this server, or makes it if the socket blocks.
    ///
    /// # Errors
    /// Those of OpenSSL.
    pub(crate) fn connect<S: Read + Write>(
        &mut self,
        host: &str,
        port: u16,
        socket: S,
    ) -> Result<SslStream<S>, HandshakeError<S>> {
        let mut ssl = self.connector.configure()?.verify_hostname(!self.insecure);
        self.offer_session(&mut ssl, host, port);
        ssl.connect(host, socket)
    }

    #[allow(unsafe_code)]
    fn offer_session(&mut self, ssl: &mut ConnectConfiguration, host: &str, port: u16) {
        let Some(index) = *SERVER else { return };
        let key = (host.to_owned(), port);
        if self.servers.len() >= SERVERS_MAX && !self.servers.contains_key(&key) {
            self.servers.clear();
        }
        let (server, now) = (self.servers.entry(key).or_default(), Instant::now());
        if let Some(session) = server.lock().next(now).and_then(|der| SslSession::from_der(&der).ok()) {
            // SAFETY: it must belong to no other context than that of `ssl`. It was just created, so it belongs to none. If OpenSSL
            // refuses it, the handshake is a full one.
            let _ = unsafe { ssl.set_session(&session) };
        }
        ssl.set_ex_data(index, (server.clone(), now));
    }
}

/// Drops the sessions of a server with which a handshake has failed: perhaps it cannot deal with one of them.
pub(crate) fn forget(ssl: &SslRef) {
    if let Some((server, _)) = server(ssl) {
        server.lock().kept.clear();
    }
}

fn server(ssl: &SslRef) -> Option<&(Server, Instant)> {
    ssl.ex_data((*SERVER)?)
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// The session for the next connection. Each is used once (RFC 8446 appendix C.4), except the last, so that many connections at
    /// once are resumed as well: what reuse shows an observer, that both came from the same client, their addresses show too.
    fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.verified.is_none_or(|at| now.saturating_duration_since(at) > VERIFIED_FOR) {
            self.kept.clear();
        }
        match self.kept.len() {
            0 | 1 => self.kept.back().cloned(),
            _ => self.kept.pop_back(),
        }
    }

    /// `verified` is the start of its connection, if the certificate was verified in it.
    fn add(&mut self, session: Vec<u8>, verified: Option<Instant>) {
        if verified > self.verified {
            // The server took none of the earlier ones: it may have been restarted.
            self.kept.clear();
            self.verified = verified;
        }
        if self.kept.len() == SESSIONS_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(session);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use openssl::pkey::PKey;
    use openssl::ssl::{SslAcceptor, SslMethod, SslVersion};
    use openssl::x509::X509;

    use super::*;
    use crate::net::event_loop::tls_handshake::HandshakeProgress;

    const CA: &[u8] = include_bytes!("../../../tests/data/tls/ca.pem");
    // For localhost, 127.0.0.1 and ::1.
    const CERTIFICATE: &[u8] = include_bytes!("../../../tests/data/tls/server.pem");
    const KEY: &[u8] = include_bytes!("../../../tests/data/tls/server.key");
    const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

    fn client() -> ResumingConnector {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.cert_store_mut().add_cert(X509::from_pem(CA).unwrap()).unwrap();
        ResumingConnector::new(builder, false)
    }

    fn server(version: SslVersion) -> SslAcceptor {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        builder.set_max_proto_version(Some(version)).unwrap();
        builder.set_certificate(&X509::from_pem(CERTIFICATE).unwrap()).unwrap();
        builder.set_private_key(&PKey::private_key_from_pem(KEY).unwrap()).unwrap();
        builder.build()
    }

    /// Connects to the server, under this name and port.
    fn connect(
        client: &mut ResumingConnector,
        server: &SslAcceptor,
        host: &str,
        port: u16,
    ) -> SslStream<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| server.accept(listener.accept().unwrap().0).unwrap().write_all(b"x").unwrap());
            client.connect(host, port, tcp).unwrap()
        })
    }

    /// The same, and reads, which takes the sessions that come after the handshake with TLS 1.3. Whether a session was resumed.
    fn resumes(client: &mut ResumingConnector, server: &SslAcceptor, host: &str, port: u16) -> bool {
        let mut tls = connect(client, server, host, port);
        tls.read_exact(&mut [0]).unwrap();
        tls.ssl().session_reused()
    }

    #[test]
    fn only_the_same_host_and_port_get_a_session() {
        for version in VERSIONS {
            let (mut client, server) = (client(), server(version));
            let mut resumes = |host, port| resumes(&mut client, &server, host, port);
            assert!(!resumes("localhost", 443));
            assert!(!resumes("127.0.0.1", 443), "another host");
            assert!(!resumes("localhost", 8443), "another port");
            for _ in 0..10 {
                assert!(resumes("localhost", 443) && resumes("127.0.0.1", 443) && resumes("localhost", 8443));
            }
        }
    }

    #[test]
    fn many_connections_at_once_resume_though_few_sessions_are_kept() {
        for version in VERSIONS {
            let (mut client, server) = (client(), server(version));
            for n in 0..10 {
                assert_eq!(resumes(&mut client, &server, "localhost", 443), n > 0);
                let kept = client.servers[&("localhost".to_owned(), 443)].lock().kept.len();
                assert!((1..=SESSIONS_MAX).contains(&kept), "{kept}");
            }
            for _ in 0..10 {
                assert!(connect(&mut client, &server, "localhost", 443).ssl().session_reused());
            }
        }
    }

    #[test]
    fn each_session_is_used_once_while_there_are_others() {
        let (mut client, server) = (client(), server(SslVersion::TLS1_3));
        // It gets two.
        connect(&mut client, &server, "localhost", 443).read_exact(&mut [0]).unwrap();
        let server = client.servers.values().next().unwrap();
        let [first, second, third] = [(); 3].map(|()| server.lock().next(Instant::now()).unwrap());
        assert_ne!(first, second);
        assert_eq!(second, third, "the last one is left");
    }

    #[test]
    fn the_certificate_is_verified_again_after_an_hour_of_resumed_sessions() {
        for version in VERSIONS {
            let (mut client, server) = (client(), server(version));
            let start = Instant::now();
            assert!(!resumes(&mut client, &server, "localhost", 443));
            let end = Instant::now();
            assert!(resumes(&mut client, &server, "localhost", 443));
            let sessions = client.servers[&("localhost".to_owned(), 443)].clone();
            assert!(sessions.lock().next(start + VERIFIED_FOR).is_some());
            assert!(sessions.lock().next(end + VERIFIED_FOR + Duration::from_nanos(1)).is_none());
            assert!(!resumes(&mut client, &server, "localhost", 443));
            assert!(resumes(&mut client, &server, "localhost", 443));
        }
    }

    #[test]
    fn a_failed_handshake_drops_the_sessions() {
        let (mut client, server) = (client(), server(SslVersion::TLS1_3));
        for _ in 0..3 {
            assert!(!resumes(&mut client, &server, "localhost", 443));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            let result = client.connect("localhost", 443, tcp);
            assert!(HandshakeProgress::from_openssl(result).is_err());
        }
    }

    #[test]
    fn few_servers_have_sessions() {
        let mut client = client();
        for port in 0..1000 {
            let mut ssl = client.connector.configure().unwrap();
            client.offer_session(&mut ssl, "localhost", port);
            assert!(client.servers.len() <= SERVERS_MAX);
        }
    }
}
