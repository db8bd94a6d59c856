//! What a device's bytes travel on: plain TCP or TLS over it, and what may have to come first: a balancer's word on whom it
//! speaks for, and the handshake.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;

use mio::net::TcpStream;
#[cfg(feature = "tls")]
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsStream};

use crate::net::event_loop::stream::Stream;
use crate::net::mqtt::certificate::Acceptor;
use crate::proto::proxy_protocol::{self, BadProxyHeader, ProxySource};

/// The first byte of every TLS connection: a record that is part of a handshake (RFC 5246, appendix A.1).
#[cfg(feature = "tls")]
const TLS_HANDSHAKE_RECORD: u8 = 22;

/// A device's connection. What plain ones do without is boxed: there are tens of thousands of them.
pub(crate) enum Transport {
    /// The device's own bytes are read and written.
    Open(Stream<TcpStream>),
    /// Something must come before them.
    Handshake(Box<Handshake>),
}

/// A connection that is not open for the device's bytes yet.
pub(crate) struct Handshake {
    stage: HandshakeStage,
}

enum HandshakeStage {
    /// A balancer's header comes first; so much of it has come. Then TLS, or not.
    ProxyHeader { tcp: TcpStream, seen: Vec<u8>, tls: bool },
    /// TLS, of which no byte has come.
    BeforeTls(TcpStream),
    #[cfg(feature = "tls")]
    Tls(MidHandshakeTlsStream<TcpStream>),
    /// It failed.
    Failed,
}

/// What came of going on with what must come first.
#[derive(Debug)]
pub(crate) enum HandshakeStep {
    /// Try again at the socket's next edge.
    Blocked,
    /// The balancer has said whose connection it is.
    ProxiedFor(ProxySource),
    /// The device's own bytes are next.
    Done,
    /// The peer has left before it said anything worth a word.
    PeerClosed,
    /// What should have been a balancer's header is none.
    BadProxyHeader(BadProxyHeader),
    /// There will be no TLS connection: why.
    TlsFailed(String),
}

impl Transport {
    /// A fresh connection, behind a balancer or not, to be secured or not.
    pub(crate) fn new(tcp: TcpStream, proxied: bool, tls: bool) -> Self {
        let stage = match (proxied, tls) {
            (false, false) => return Self::Open(Stream::Plain(tcp)),
            (true, _) => HandshakeStage::ProxyHeader { tcp, seen: Vec::new(), tls },
            (false, true) => HandshakeStage::BeforeTls(tcp),
        };
        Self::Handshake(Box::new(Handshake { stage }))
    }

    /// Whether the device's own bytes are what is read and written.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self, Self::Handshake(_))
    }

    /// Whether TLS was begun and is not there yet.
    pub(crate) fn is_in_tls_handshake(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Self::Handshake(early) = self {
            return matches!(early.stage, HandshakeStage::Tls(_));
        }
        false
    }

    /// Whether it is to be TLS and is not there yet.
    pub(crate) fn awaits_tls(&self) -> bool {
        match self {
            Self::Handshake(early) => !matches!(early.stage, HandshakeStage::ProxyHeader { tls: false, .. }),
            _ => false,
        }
    }

    /// The socket; none is left once a handshake has failed.
    pub(crate) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Open(stream) => Some(stream.socket()),
            Self::Handshake(early) => match &early.stage {
                HandshakeStage::ProxyHeader { tcp, .. } | HandshakeStage::BeforeTls(tcp) => Some(tcp),
                #[cfg(feature = "tls")]
                HandshakeStage::Tls(midway) => Some(midway.get_ref()),
                HandshakeStage::Failed => None,
            },
        }
    }

    /// The socket of a fresh or an open connection, for registration with the poll.
    pub(crate) fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Open(stream) => Some(stream.socket_mut()),
            Self::Handshake(early) => match &mut early.stage {
                HandshakeStage::ProxyHeader { tcp, .. } | HandshakeStage::BeforeTls(tcp) => Some(tcp),
                #[cfg(feature = "tls")]
                HandshakeStage::Tls(_) => None,
                HandshakeStage::Failed => None,
            },
        }
    }

    /// Ends our side, in TLS's own way too. After an error there is nothing more to end.
    ///
    /// # Errors
    /// WouldBlock: try again when the socket can be written.
    pub(crate) fn shut_down(&mut self) -> io::Result<()> {
        match self {
            Self::Open(stream) => {
                stream.shut_down_tls()?;
                stream.socket().shutdown(Shutdown::Write)
            }
            Self::Handshake(_) => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Goes on with what must come before the device's bytes, as far as the socket allows. `scratch` holds a header at
    /// least.
    pub(crate) fn advance(&mut self, acceptor: Option<&Acceptor>, scratch: &mut [u8]) -> HandshakeStep {
        let Self::Handshake(early) = self else { return HandshakeStep::Done };
        match mem::replace(&mut early.stage, HandshakeStage::Failed) {
            HandshakeStage::ProxyHeader { mut tcp, mut seen, tls } => {
                match read_header(&mut tcp, &mut seen, scratch) {
                    Ok(Some(origin)) => {
                        *self = Self::new(tcp, false, tls);
                        HandshakeStep::ProxiedFor(origin)
                    }
                    Ok(None) => {
                        early.stage = HandshakeStage::ProxyHeader { tcp, seen, tls };
                        HandshakeStep::Blocked
                    }
                    Err(step) => step,
                }
            }
            #[cfg(feature = "tls")]
            HandshakeStage::BeforeTls(tcp) => self.start_tls(tcp, acceptor),
            #[cfg(feature = "tls")]
            HandshakeStage::Tls(midway) => self.on_tls_result(midway.handshake()),
            #[cfg(not(feature = "tls"))]
            HandshakeStage::BeforeTls(_) => match acceptor {
                Some(acceptor) => match *acceptor {},
                None => HandshakeStep::TlsFailed("this program was built without TLS".to_owned()),
            },
            HandshakeStage::Failed => HandshakeStep::PeerClosed,
        }
    }

    /// A connection that says nothing, or anything but TLS, costs no handshake.
    #[cfg(feature = "tls")]
    fn start_tls(&mut self, tcp: TcpStream, acceptor: Option<&Acceptor>) -> HandshakeStep {
        let mut first = [0];
        match (tcp.peek(&mut first), acceptor) {
            (Ok(0), _) => HandshakeStep::PeerClosed,
            (Ok(_), _) if first[0] != TLS_HANDSHAKE_RECORD => {
                HandshakeStep::TlsFailed(format!("it does not begin with TLS: first byte {:#04x}", first[0]))
            }
            (Ok(_), Some(acceptor)) => self.on_tls_result(acceptor.accept(tcp)),
            (Err(error), _) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                *self = Self::new(tcp, false, true);
                HandshakeStep::Blocked
            }
            (Err(_), _) | (Ok(_), None) => HandshakeStep::PeerClosed,
        }
    }

    #[cfg(feature = "tls")]
    fn on_tls_result(
        &mut self,
        outcome: Result<TlsStream<TcpStream>, HandshakeError<TcpStream>>,
    ) -> HandshakeStep {
        match outcome {
            Ok(tls) => {
                *self = Self::Open(Stream::Tls(Box::new(tls)));
                HandshakeStep::Done
            }
            Err(HandshakeError::WouldBlock(midway)) => {
                if let Self::Handshake(early) = self {
                    early.stage = HandshakeStage::Tls(midway);
                }
                HandshakeStep::Blocked
            }
            Err(HandshakeError::Failure(error)) => HandshakeStep::TlsFailed(error.to_string()),
        }
    }
}

/// Takes a balancer's header from the socket, and no byte behind it: that may be TLS.
fn read_header(
    tcp: &mut TcpStream,
    seen: &mut Vec<u8>,
    scratch: &mut [u8],
) -> Result<Option<ProxySource>, HandshakeStep> {
    loop {
        let came = match tcp.peek(&mut scratch[..proxy_protocol::MAX_V2_LEN]) {
            Ok(0) => return Err(HandshakeStep::PeerClosed),
            Ok(came) => came,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return Err(HandshakeStep::PeerClosed),
        };
        let before = seen.len();
        seen.extend_from_slice(&scratch[..came]);
        let header = proxy_protocol::decode(seen).map_err(HandshakeStep::BadProxyHeader)?;
        let taken = header.map_or(came, |(_, length)| length - before);
        tcp.read_exact(&mut scratch[..taken]).map_err(|_| HandshakeStep::PeerClosed)?;
        if let Some((origin, _)) = header {
            return Ok(Some(origin));
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Open(stream) => stream.read(buffer),
            Self::Handshake(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(stream) => stream.write(data),
            Self::Handshake(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Open(stream) => stream.flush(),
            Self::Handshake(_) => Ok(()),
        }
    }
}
