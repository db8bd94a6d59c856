//! TLS to chat servers.
//!
//! TLS is the platform's library through native-tls, without helpers in between: a handshake that would block is an ordinary
//! outcome here, and continues at the socket's next event, whichever direction that is for.

use std::fmt;

use mio::net::TcpStream;
#[cfg(feature = "tls")]
use native_tls::{Certificate, HandshakeError, MidHandshakeTlsStream, TlsConnector};

use crate::net::event_loop::stream::Stream;

/// What an attempt to go on came to.
#[derive(Debug)]
pub enum Progress<T> {
    /// The stream is ready.
    Done(Stream<TcpStream>),
    /// Try again at the socket's next edge.
    Blocked(T),
}

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum TlsError {
    /// The program was built without the `tls` feature.
    Absent,
    /// The text given as CA bundle has no certificate in it, or a broken one.
    Bundle(String),
    /// The TLS library could not be set up.
    Setup(String),
    /// The handshake failed: the certificate was refused, the other side does not speak TLS, it hung up ..
    Handshake(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "built without TLS: only ws:// servers can be reached"),
            Self::Bundle(why) => write!(f, "the CA file is not a list of PEM certificates: {why}"),
            Self::Setup(why) => write!(f, "cannot set up TLS: {why}"),
            Self::Handshake(why) => write!(f, "TLS handshake failed: {why}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// Makes TLS connections that all trust the same authorities.
#[cfg(feature = "tls")]
pub struct TlsClient {
    ca_pem: Option<Vec<u8>>,
    insecure: bool,
    /// Loading the system's authorities takes 2 MB and some milliseconds, so it is done once, and only for `wss://`.
    connector: Option<TlsConnector>,
}

#[cfg(feature = "tls")]
impl TlsClient {
    /// Certificates are verified against the system's authorities and those in `ca_pem`, a bundle of PEM certificates.
    /// `insecure` accepts any certificate for any host.
    pub fn new(ca_pem: Option<Vec<u8>>, insecure: bool) -> Self {
        Self { ca_pem, insecure, connector: None }
    }

    /// Loads the authorities, unless they are loaded: at start a bad bundle can still be told to the operator.
    ///
    /// # Errors
    /// [`TlsError::Bundle`] and [`TlsError::Setup`].
    pub fn prepare(&mut self) -> Result<(), TlsError> {
        self.connector().map(|_| ())
    }

    /// Begins a handshake on the connected `tcp` with the server that `host` names. Nothing is sent yet: that is for
    /// [`Handshake::advance`].
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare).
    pub fn start(&mut self, host: &str, tcp: TcpStream) -> Result<Handshake, TlsError> {
        let connector = self.connector()?.clone();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        Ok(Handshake(Stage::Fresh { connector, host: bare.to_owned(), tcp }))
    }

    /// The library's own maker of connections, for blocking sockets.
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare).
    pub(crate) fn connector(&mut self) -> Result<&TlsConnector, TlsError> {
        let connector = match self.connector.take() {
            Some(connector) => connector,
            None => {
                let mut builder = TlsConnector::builder();
                for certificate in self.ca_pem.as_deref().map_or(Ok(Vec::new()), authorities)? {
                    builder.add_root_certificate(certificate);
                }
                builder.danger_accept_invalid_certs(self.insecure);
                builder.danger_accept_invalid_hostnames(self.insecure);
                builder.build().map_err(|error| TlsError::Setup(error.to_string()))?
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

/// A TLS handshake under way.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub struct Handshake(Stage);

#[cfg(feature = "tls")]
#[derive(Debug)]
enum Stage {
    Fresh { connector: TlsConnector, host: String, tcp: TcpStream },
    Midway(MidHandshakeTlsStream<TcpStream>),
}

#[cfg(feature = "tls")]
impl Handshake {
    /// Goes as far as the socket allows.
    ///
    /// # Errors
    /// [`TlsError::Handshake`]; the socket is closed.
    pub fn advance(self) -> Result<Progress<Self>, TlsError> {
        let outcome = match self.0 {
            Stage::Fresh { connector, host, tcp } => connector.connect(&host, tcp),
            Stage::Midway(midway) => midway.handshake(),
        };
        match outcome {
            Ok(tls) => Ok(Progress::Done(Stream::Tls(Box::new(tls)))),
            Err(HandshakeError::WouldBlock(midway)) => Ok(Progress::Blocked(Self(Stage::Midway(midway)))),
            Err(HandshakeError::Failure(error)) => Err(TlsError::Handshake(error.to_string())),
        }
    }
}

/// Refuses every connection: the program was built without TLS.
#[cfg(not(feature = "tls"))]
pub struct TlsClient;

#[cfg(not(feature = "tls"))]
impl TlsClient {
    /// Takes the settings of a build with TLS.
    pub fn new(_: Option<Vec<u8>>, _: bool) -> Self {
        Self
    }

    /// # Errors
    /// Always [`TlsError::Absent`].
    pub fn prepare(&mut self) -> Result<(), TlsError> {
        Err(TlsError::Absent)
    }

    /// # Errors
    /// Always [`TlsError::Absent`].
    pub fn start(&mut self, _: &str, _: TcpStream) -> Result<Handshake, TlsError> {
        Err(TlsError::Absent)
    }
}

/// Never made: the program was built without TLS.
#[cfg(not(feature = "tls"))]
#[derive(Debug)]
pub enum Handshake {}

#[cfg(not(feature = "tls"))]
impl Handshake {
    /// # Errors
    /// None: there is no handshake to call it on.
    pub fn advance(self) -> Result<Progress<Self>, TlsError> {
        match self {}
    }
}

#[cfg(all(test, feature = "tls"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{self, Read, Write};

    use super::*;
    use mio::{Events, Interest, Poll, Token};
    use native_tls::{Identity, TlsAcceptor};
    use std::net::{TcpListener, TcpStream as Accepted};
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};

    // An authority, and a server's certificate for localhost, 127.0.0.1 and ::1 signed by it, both until 2123. Made with
    // `openssl ca`; the authority's key is gone.
    const CA: &[u8] = include_bytes!("../../../tests/data/tls/ca.pem");
    const CERTIFICATE: &[u8] = include_bytes!("../../../tests/data/tls/server.pem");
    const KEY: &[u8] = include_bytes!("../../../tests/data/tls/server.key");

    /// A TLS server for one connection, which greets and then echoes. `wrap` stands between it and the socket.
    fn serve<S: Read + Write + 'static>(
        wrap: impl FnOnce(Accepted) -> S + Send + 'static,
    ) -> (TcpStream, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = thread::spawn(move || {
            let (accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let acceptor = TlsAcceptor::new(Identity::from_pkcs8(CERTIFICATE, KEY).unwrap()).unwrap();
            // A client that refuses the certificate is no failure of this thread.
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
        blocked: usize,
    }

    impl Client {
        fn wait(&mut self) {
            self.poll.poll(&mut Events::with_capacity(8), Some(Duration::from_millis(20))).unwrap();
        }

        /// Drives the handshake by readiness alone.
        fn connect(
            client: &mut TlsClient,
            host: &str,
            mut tcp: TcpStream,
        ) -> Result<(Stream<TcpStream>, Self), TlsError> {
            let mut this = Self { poll: Poll::new().unwrap(), blocked: 0 };
            let both = Interest::READABLE | Interest::WRITABLE;
            this.poll.registry().register(&mut tcp, Token(0), both).unwrap();
            this.wait();
            let mut handshake = client.start(host, tcp)?;
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                match handshake.advance()? {
                    Progress::Done(stream) => return Ok((stream, this)),
                    Progress::Blocked(midway) => handshake = midway,
                }
                assert!(Instant::now() < deadline, "the handshake never ends");
                this.blocked += 1;
                this.wait();
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
    fn bytes_pass_both_ways_behind_a_verified_certificate() {
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
    fn who_may_be_trusted() {
        let verify = "certificate verify failed";
        // CA bundle, insecure, host, what the refusal says.
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
    fn a_stalled_handshake_goes_on_when_the_server_does() {
        let (go, gate) = mpsc::channel::<()>();
        let (tcp, server) = serve(move |tcp| {
            gate.recv().unwrap();
            tcp
        });
        let mut handshake = TlsClient::new(Some(CA.to_vec()), false).start("localhost", tcp).unwrap();
        for _ in 0..100 {
            // Tried for no reason, it stays where it was.
            match handshake.advance().unwrap() {
                Progress::Blocked(midway) => handshake = midway,
                Progress::Done(_) => panic!("done without a server"),
            }
        }
        go.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Progress::Blocked(midway) = handshake.advance().unwrap() {
            handshake = midway;
            assert!(Instant::now() < deadline, "the handshake never ends");
            thread::yield_now();
        }
        server.join().unwrap();
    }

    /// Lets one byte through at a time.
    struct Trickle(Accepted);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Trickle {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.write(&data[..data.len().min(1)])
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    #[test]
    fn a_handshake_may_be_cut_anywhere() {
        let (tcp, server) = serve(|tcp| {
            tcp.set_nodelay(true).unwrap();
            Trickle(tcp)
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
    fn a_bad_bundle_is_told() {
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
