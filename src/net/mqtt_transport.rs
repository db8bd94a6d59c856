//! What a device's bytes travel on: plain TCP or TLS over it, and what may have to come first: a balancer's word on whom it
//! speaks for, and the handshake.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;

use mio::net::TcpStream;
#[cfg(feature = "tls")]
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsStream};

use super::certificate::Acceptor;
use crate::proto::proxy_protocol::{self, BadProxyHeader, ProxySource};

/// The first byte of every TLS connection: a record that is part of a handshake (RFC 5246, appendix A.1).
#[cfg(feature = "tls")]
const HANDSHAKE: u8 = 22;

/// A device's connection. What plain ones do without is boxed: there are tens of thousands of them.
pub(super) enum Link {
    /// TCP, and nothing else.
    Plain(TcpStream),
    /// TLS. Bytes may wait in the TLS library after the socket was read empty: read until WouldBlock.
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<TcpStream>>),
    /// Something must come before the device's own bytes.
    Early(Box<Early>),
}

/// A connection that is not open for the device's bytes yet.
pub(super) struct Early {
    stage: Stage,
}

enum Stage {
    /// A balancer's header comes first; so much of it has come. Then TLS, or not.
    Header { tcp: TcpStream, seen: Vec<u8>, tls: bool },
    /// TLS, of which no byte has come.
    Silent(TcpStream),
    #[cfg(feature = "tls")]
    Handshake(MidHandshakeTlsStream<TcpStream>),
    /// It failed.
    Over,
}

/// What came of going on with what must come first.
#[derive(Debug)]
pub(super) enum Step {
    /// Try again at the socket's next edge.
    Blocked,
    /// The balancer has said whose connection it is.
    From(ProxySource),
    /// The device's own bytes are next.
    Open,
    /// The peer has left before it said anything worth a word.
    Left,
    /// What should have been a balancer's header is none.
    BadHeader(BadProxyHeader),
    /// There will be no TLS connection: why.
    NoTls(String),
}

impl Link {
    /// A fresh connection, behind a balancer or not, to be secured or not.
    pub(super) fn new(tcp: TcpStream, proxied: bool, tls: bool) -> Self {
        let stage = match (proxied, tls) {
            (false, false) => return Self::Plain(tcp),
            (true, _) => Stage::Header { tcp, seen: Vec::new(), tls },
            (false, true) => Stage::Silent(tcp),
        };
        Self::Early(Box::new(Early { stage }))
    }

    /// Whether the device's own bytes are what is read and written.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self, Self::Early(_))
    }

    /// Whether TLS was begun and is not there yet.
    pub(super) fn shakes_hands(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Self::Early(early) = self {
            return matches!(early.stage, Stage::Handshake(_));
        }
        false
    }

    /// Whether it is to be TLS and is not there yet.
    pub(super) fn is_unsecured(&self) -> bool {
        match self {
            Self::Early(early) => !matches!(early.stage, Stage::Header { tls: false, .. }),
            _ => false,
        }
    }

    /// The socket; none is left once a handshake has failed.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => Some(tls.get_ref()),
            Self::Early(early) => match &early.stage {
                Stage::Header { tcp, .. } | Stage::Silent(tcp) => Some(tcp),
                #[cfg(feature = "tls")]
                Stage::Handshake(midway) => Some(midway.get_ref()),
                Stage::Over => None,
            },
        }
    }

    /// The socket of a fresh or an open connection, for registration with the poll.
    pub(super) fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => Some(tls.get_mut()),
            Self::Early(early) => match &mut early.stage {
                Stage::Header { tcp, .. } | Stage::Silent(tcp) => Some(tcp),
                #[cfg(feature = "tls")]
                Stage::Handshake(_) => None,
                Stage::Over => None,
            },
        }
    }

    /// Ends our side, in TLS's own way too. After an error there is nothing more to end.
    ///
    /// # Errors
    /// WouldBlock: try again when the socket can be written.
    pub(super) fn shut_down(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.shutdown(Shutdown::Write),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                tls.shutdown()?;
                tls.get_ref().shutdown(Shutdown::Write)
            }
            Self::Early(_) => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Goes on with what must come before the device's bytes, as far as the socket allows. `scratch` holds a header at
    /// least.
    pub(super) fn advance(&mut self, acceptor: Option<&Acceptor>, scratch: &mut [u8]) -> Step {
        let Self::Early(early) = self else { return Step::Open };
        match mem::replace(&mut early.stage, Stage::Over) {
            Stage::Header { mut tcp, mut seen, tls } => match read_header(&mut tcp, &mut seen, scratch) {
                Ok(Some(origin)) => {
                    *self = Self::new(tcp, false, tls);
                    Step::From(origin)
                }
                Ok(None) => {
                    early.stage = Stage::Header { tcp, seen, tls };
                    Step::Blocked
                }
                Err(step) => step,
            },
            #[cfg(feature = "tls")]
            Stage::Silent(tcp) => self.begin(tcp, acceptor),
            #[cfg(feature = "tls")]
            Stage::Handshake(midway) => self.shaken(midway.handshake()),
            #[cfg(not(feature = "tls"))]
            Stage::Silent(_) => match acceptor {
                Some(acceptor) => match *acceptor {},
                None => Step::NoTls("this program was built without TLS".to_owned()),
            },
            Stage::Over => Step::Left,
        }
    }

    /// A connection that says nothing, or anything but TLS, costs no handshake.
    #[cfg(feature = "tls")]
    fn begin(&mut self, tcp: TcpStream, acceptor: Option<&Acceptor>) -> Step {
        let mut first = [0];
        match (tcp.peek(&mut first), acceptor) {
            (Ok(0), _) => Step::Left,
            (Ok(_), _) if first[0] != HANDSHAKE => {
                Step::NoTls(format!("it does not begin with TLS: first byte {:#04x}", first[0]))
            }
            (Ok(_), Some(acceptor)) => self.shaken(acceptor.accept(tcp)),
            (Err(error), _) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                *self = Self::new(tcp, false, true);
                Step::Blocked
            }
            (Err(_), _) | (Ok(_), None) => Step::Left,
        }
    }

    #[cfg(feature = "tls")]
    fn shaken(&mut self, outcome: Result<TlsStream<TcpStream>, HandshakeError<TcpStream>>) -> Step {
        match outcome {
            Ok(tls) => {
                *self = Self::Tls(Box::new(tls));
                Step::Open
            }
            Err(HandshakeError::WouldBlock(midway)) => {
                if let Self::Early(early) = self {
                    early.stage = Stage::Handshake(midway);
                }
                Step::Blocked
            }
            Err(HandshakeError::Failure(error)) => Step::NoTls(error.to_string()),
        }
    }
}

/// Takes a balancer's header from the socket, and no byte behind it: that may be TLS.
fn read_header(
    tcp: &mut TcpStream,
    seen: &mut Vec<u8>,
    scratch: &mut [u8],
) -> Result<Option<ProxySource>, Step> {
    loop {
        let came = match tcp.peek(&mut scratch[..proxy_protocol::MAX_V2_LEN]) {
            Ok(0) => return Err(Step::Left),
            Ok(came) => came,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return Err(Step::Left),
        };
        let before = seen.len();
        seen.extend_from_slice(&scratch[..came]);
        let header = proxy_protocol::decode(seen).map_err(Step::BadHeader)?;
        let taken = header.map_or(came, |(_, length)| length - before);
        tcp.read_exact(&mut scratch[..taken]).map_err(|_| Step::Left)?;
        if let Some((origin, _)) = header {
            return Ok(Some(origin));
        }
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.read(buffer),
            Self::Early(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Link {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(data),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(data),
            Self::Early(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
            Self::Early(_) => Ok(()),
        }
    }
}
