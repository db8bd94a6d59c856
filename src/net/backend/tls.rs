//! TLS connections to chat servers, by the platform's TLS library: OpenSSL, or through native-tls.

#[cfg(feature = "tls")]
use std::io::{Read, Write};
use std::{fmt, io};

use mio::net::TcpStream;
#[cfg(all(feature = "tls", not(openssl_client)))]
use native_tls::Certificate;
#[cfg(openssl_client)]
use openssl::error::ErrorStack;
#[cfg(openssl_client)]
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
#[cfg(openssl_client)]
use openssl::x509::X509 as Certificate;

use crate::clock::with_clock_warning;
use crate::net::event_loop::stream::Stream;
use crate::net::event_loop::tls_handshake::HandshakeProgress;

/// Why there is no TLS connection.
#[derive(Debug)]
#[expect(dead_code, reason = "builds with and without TLS have different errors")]
pub(crate) enum TlsError {
    /// The program was built without the `tls` feature.
    Absent,
    /// The CA bundle contains no certificate, or a malformed one.
    Bundle(String),
    /// The TLS library could not be set up.
    Setup(String),
    /// The handshake failed: the certificate was rejected, the peer does not speak TLS, the connection was closed, ...
    Handshake(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "built without TLS: only ws:// servers can be reached"),
            Self::Bundle(why) => write!(f, "the CA file is not a list of PEM certificates: {why}"),
            Self::Setup(why) => write!(f, "cannot set up TLS: {why}"),
            Self::Handshake(why) => {
                // OpenSSL ends some of its messages with a colon, behind which nothing follows.
                let why = with_clock_warning(why.trim_end_matches(':').to_owned());
                write!(f, "TLS handshake failed: {why}")
            }
        }
    }
}

impl std::error::Error for TlsError {}

/// Starts TLS handshakes that all trust the same authorities.
#[cfg(feature = "tls")]
pub(crate) struct TlsClient {
    ca_pem: Option<Vec<u8>>,
    insecure: bool,
    /// Built on first use: loading the system's authorities takes 2 MB and some milliseconds.
    connector: Option<Connector>,
}

#[cfg(openssl_client)]
type Connector = crate::net::event_loop::tls_sessions::ResumingConnector;
#[cfg(all(feature = "tls", not(openssl_client)))]
type Connector = native_tls::TlsConnector;

#[cfg(feature = "tls")]
impl TlsClient {
    /// Verifies certificates against the system's authorities and those in `ca_pem`, a bundle of PEM certificates. With
    /// `insecure`, accepts any certificate for any host.
    pub(crate) fn new(ca_pem: Option<Vec<u8>>, insecure: bool) -> Self {
        Self { ca_pem, insecure, connector: None }
    }

    /// Loads the authorities, unless they are loaded already.
    ///
    /// # Errors
    /// [`TlsError::Bundle`] and [`TlsError::Setup`].
    pub(crate) fn prepare(&mut self) -> Result<(), TlsError> {
        self.connector().map(|_| ())
    }

    /// Starts a handshake on the connected `tcp` with the server named `host`, and advances it as far as the socket allows. Where
    /// OpenSSL connects, it resumes a session of an earlier connection to the same host and port.
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare), and [`TlsError::Handshake`].
    pub(crate) fn start(&mut self, host: &str, tcp: TcpStream) -> Result<HandshakeProgress, TlsError> {
        let port = tcp.peer_addr().map_or(0, |address| address.port());
        self.connect(host, port, tcp)
    }

    /// A handshake on a blocking socket, each of whose reads may take as long as the socket's timeout.
    ///
    /// # Errors
    /// Why there is no TLS connection; that of the socket when it took too long.
    pub(crate) fn connect_blocking(
        &mut self,
        host: &str,
        tcp: std::net::TcpStream,
    ) -> io::Result<Stream<std::net::TcpStream>> {
        let port = tcp.peer_addr().map_or(0, |address| address.port());
        match self.connect(host, port, tcp) {
            Ok(HandshakeProgress::Done(stream)) => Ok(stream),
            Ok(HandshakeProgress::Blocked(_)) => Err(io::ErrorKind::TimedOut.into()),
            Err(TlsError::Handshake(why)) => Err(io::Error::other(with_clock_warning(why))),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn connect<S: Read + Write>(
        &mut self,
        host: &str,
        port: u16,
        socket: S,
    ) -> Result<HandshakeProgress<S>, TlsError> {
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        #[cfg(openssl_client)]
        let progress = HandshakeProgress::from_openssl(self.connector()?.connect(host, port, socket));
        #[cfg(not(openssl_client))]
        let progress = {
            let _ = port;
            HandshakeProgress::from_result(self.connector()?.connect(host, socket))
        };
        progress.map_err(TlsError::Handshake)
    }

    fn connector(&mut self) -> Result<&mut Connector, TlsError> {
        let connector = match self.connector.take() {
            Some(connector) => connector,
            None => {
                let authorities = self.ca_pem.as_deref().map_or(Ok(Vec::new()), authorities)?;
                build(authorities, self.insecure).map_err(|error| TlsError::Setup(error.to_string()))?
            }
        };
        Ok(self.connector.insert(connector))
    }
}

#[cfg(feature = "tls")]
fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, TlsError> {
    match Certificate::stack_from_pem(pem) {
        Ok(all) if all.is_empty() => Err(TlsError::Bundle("there is none in it".to_owned())),
        Ok(all) => Ok(all),
        Err(error) => Err(TlsError::Bundle(error.to_string())),
    }
}

/// The same settings as native-tls's.
#[cfg(openssl_client)]
fn build(authorities: Vec<Certificate>, insecure: bool) -> Result<Connector, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // What cannot be loaded is not trusted; the handshake then says so.
    let system = openssl_probe::probe();
    let files = system.cert_file.iter().map(|file| (Some(&**file), None));
    for (file, folder) in files.chain(system.cert_dir.iter().map(|folder| (None, Some(&**folder)))) {
        let _ = builder.load_verify_locations(file, folder);
    }
    for certificate in authorities {
        let _ = builder.cert_store_mut().add_cert(certificate);
    }
    Ok(Connector::new(builder, insecure))
}

#[cfg(all(feature = "tls", not(openssl_client)))]
fn build(authorities: Vec<Certificate>, insecure: bool) -> native_tls::Result<Connector> {
    let mut builder = Connector::builder();
    for certificate in authorities {
        builder.add_root_certificate(certificate);
    }
    builder.danger_accept_invalid_certs(insecure);
    builder.danger_accept_invalid_hostnames(insecure);
    builder.build()
}

/// Refuses every connection: the program was built without TLS.
#[cfg(not(feature = "tls"))]
pub(crate) struct TlsClient;

#[cfg(not(feature = "tls"))]
impl TlsClient {
    /// Ignores the settings.
    pub(crate) fn new(_: Option<Vec<u8>>, _: bool) -> Self {
        Self
    }

    /// # Errors
    /// Always [`TlsError::Absent`].
    pub(crate) fn prepare(&mut self) -> Result<(), TlsError> {
        Err(TlsError::Absent)
    }

    /// # Errors
    /// Always [`TlsError::Absent`].
    pub(crate) fn connect_blocking(
        &mut self,
        _: &str,
        _: std::net::TcpStream,
    ) -> io::Result<Stream<std::net::TcpStream>> {
        Err(io::Error::other(TlsError::Absent))
    }

    /// # Errors
    /// Always [`TlsError::Absent`].
    pub(crate) fn start(&mut self, _: &str, _: TcpStream) -> Result<HandshakeProgress, TlsError> {
        Err(TlsError::Absent)
    }
}

#[cfg(all(test, feature = "tls"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use mio::{Events, Interest, Poll, Token};
    use native_tls::{Identity, TlsAcceptor};
    use std::net::{TcpListener, TcpStream as Accepted};
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};

    // An authority, and a server's certificate for localhost, 127.0.0.1 and ::1 signed by it. Both expire in 2123. They were
    // made with `openssl ca`; the authority's key was not kept.
    const CA: &[u8] = include_bytes!("../../../tests/data/tls/ca.pem");
    const CERTIFICATE: &[u8] = include_bytes!("../../../tests/data/tls/server.pem");
    const KEY: &[u8] = include_bytes!("../../../tests/data/tls/server.key");

    /// A TLS server for one connection, which sends "hello" and then echoes 5 bytes. `wrap` wraps its socket.
    fn serve<S: Read + Write + 'static>(
        wrap: impl FnOnce(Accepted) -> S + Send + 'static,
    ) -> (TcpStream, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = thread::spawn(move || {
            let (accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let acceptor = TlsAcceptor::new(Identity::from_pkcs8(CERTIFICATE, KEY).unwrap()).unwrap();
            // A client may reject the certificate.
            let Ok(mut tls) = acceptor.accept(wrap(accepted)) else { return };
            let mut buffer = [0; 5];
            if tls.write_all(b"hello").is_ok() && tls.read_exact(&mut buffer).is_ok() {
                let _ = tls.write_all(&buffer);
            }
        });
        (tcp, server)
    }

    struct Client {
        poll: Poll,
    }

    impl Client {
        fn wait(&mut self) {
            self.poll.poll(&mut Events::with_capacity(8), Some(Duration::from_millis(20))).unwrap();
        }

        /// Advances the handshake after readiness events only.
        fn connect(
            client: &mut TlsClient,
            host: &str,
            mut tcp: TcpStream,
        ) -> Result<(Stream<TcpStream>, Self), TlsError> {
            let mut this = Self { poll: Poll::new().unwrap() };
            let both = Interest::READABLE | Interest::WRITABLE;
            this.poll.registry().register(&mut tcp, Token(0), both).unwrap();
            this.wait();
            let mut progress = client.start(host, tcp)?;
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                let handshake = match progress {
                    HandshakeProgress::Done(stream) => return Ok((stream, this)),
                    HandshakeProgress::Blocked(handshake) => handshake,
                };
                assert!(Instant::now() < deadline, "the handshake never ends");
                this.wait();
                progress = handshake.advance().map_err(TlsError::Handshake)?;
            }
        }

        fn read_exactly(&mut self, stream: &mut Stream<TcpStream>, expected: &[u8]) {
            let (mut got, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
            while got.len() < expected.len() {
                let mut buffer = [0; 64];
                match stream.read(&mut buffer) {
                    Ok(0) => panic!("closed after {got:?}"),
                    Ok(len) => got.extend_from_slice(&buffer[..len]),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        assert!(Instant::now() < deadline, "only {got:?} came");
                        self.wait();
                    }
                }
            }
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn data_passes_both_ways_after_the_certificate_was_verified() {
        let mut client = TlsClient::new(Some(CA.to_vec()), false);
        for host in ["localhost", "127.0.0.1", "[::1]", "::1"] {
            let (tcp, server) = serve(|tcp| tcp);
            let (mut stream, mut io) = Client::connect(&mut client, host, tcp).unwrap();
            assert!(stream.socket_mut().peer_addr().is_ok());
            io.read_exactly(&mut stream, b"hello");
            stream.write_all(b"abcde").unwrap();
            stream.flush().unwrap();
            io.read_exactly(&mut stream, b"abcde");
            server.join().unwrap();
        }
    }

    #[test]
    fn certificates_are_verified_unless_insecure() {
        let verify = "certificate verify failed";
        // CA bundle, insecure, host, the error.
        let table = [
            (Some(CA), false, "localhost", None),
            (None, false, "localhost", Some(verify)),
            (Some(CA), false, "chat.example", Some(verify)),
            (Some(CA), false, "127.0.0.2", Some(verify)),
            (None, true, "localhost", None),
            (None, true, "chat.example", None),
        ];
        for (ca, insecure, host, refusal) in table {
            let (tcp, server) = serve(|tcp| tcp);
            let mut client = TlsClient::new(ca.map(<[u8]>::to_vec), insecure);
            match (Client::connect(&mut client, host, tcp), refusal) {
                (Ok(_), None) => {}
                (Err(TlsError::Handshake(why)), Some(expected)) => {
                    assert!(why.contains(expected), "{host}: {why}")
                }
                (other, _) => panic!("{host}, insecure {insecure}: {:?}", other.map(|_| ())),
            }
            server.join().unwrap();
        }
    }

    #[test]
    fn a_stalled_handshake_continues_when_the_server_answers() {
        let (go, gate) = mpsc::channel::<()>();
        let (tcp, server) = serve(move |tcp| {
            gate.recv().unwrap();
            tcp
        });
        let mut progress = TlsClient::new(Some(CA.to_vec()), false).start("localhost", tcp).unwrap();
        for _ in 0..100 {
            // Without new data, advancing it changes nothing.
            match progress {
                HandshakeProgress::Blocked(handshake) => progress = handshake.advance().unwrap(),
                HandshakeProgress::Done(_) => panic!("done without a server"),
            }
        }
        go.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while let HandshakeProgress::Blocked(handshake) = progress {
            progress = handshake.advance().unwrap();
            assert!(Instant::now() < deadline, "the handshake never ends");
            thread::yield_now();
        }
        server.join().unwrap();
    }

    /// Writes one byte at a time.
    struct OneByteStream(Accepted);

    impl Read for OneByteStream {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for OneByteStream {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.write(&data[..data.len().min(1)])
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    #[test]
    fn a_handshake_may_arrive_in_pieces() {
        let (tcp, server) = serve(|tcp| {
            tcp.set_nodelay(true).unwrap();
            OneByteStream(tcp)
        });
        let mut client = TlsClient::new(Some(CA.to_vec()), false);
        let (mut stream, mut io) = Client::connect(&mut client, "localhost", tcp).unwrap();
        io.read_exactly(&mut stream, b"hello");
        drop(stream);
        server.join().unwrap();
    }

    #[test]
    fn a_server_that_hangs_up_or_speaks_no_tls_is_an_error() {
        for answer in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.accept().unwrap().0.write_all(answer).unwrap();
            let error = Client::connect(&mut TlsClient::new(None, false), "localhost", tcp).err().unwrap();
            assert!(matches!(error, TlsError::Handshake(_)), "{error}");
        }
    }

    #[test]
    fn a_bad_bundle_is_an_error() {
        let broken = CA.iter().map(|byte| if *byte == b'M' { b'!' } else { *byte }).collect();
        for pem in [Vec::new(), b"not PEM".to_vec(), broken] {
            let error = TlsClient::new(Some(pem), false).prepare().unwrap_err();
            assert!(matches!(error, TlsError::Bundle(_)), "{error}");
        }
        TlsClient::new(Some([CA, CERTIFICATE].concat()), false).prepare().unwrap();
    }

    #[test]
    fn a_plain_stream_is_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = Stream::Plain(tcp);
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        stream.write_all(b"up").unwrap();
        let mut buffer = [0; 2];
        accepted.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"up");
    }
}
