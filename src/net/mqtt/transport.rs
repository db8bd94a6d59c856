//! What carries a device's bytes: TCP, or TLS over it. Before that, the connection may have to deliver a PROXY protocol
//! header and complete a TLS handshake.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;

use mio::net::TcpStream;

use crate::net::event_loop::stream::Stream;
use crate::net::event_loop::tls_handshake::{HandshakeProgress, TlsHandshake};
use crate::net::mqtt::certificate::Certificate;
#[cfg(feature = "cluster")]
use crate::net::mqtt::output_for_other_gateway::PassedOn;
use crate::proto::proxy_protocol::{self, BadProxyHeader, ProxySource};

/// The first byte of every TLS connection: a record that is part of a handshake (RFC 5246, appendix A.1).
const TLS_HANDSHAKE_RECORD: u8 = 22;

/// A device's connection. The state of a handshake is boxed, since tens of thousands of connections have none.
pub(crate) enum Transport {
    /// The device's own bytes are read and written.
    Open(Stream<TcpStream>),
    /// The device is connected to another gateway. Boxed, since few are.
    #[cfg(feature = "cluster")]
    PassedOn(Box<PassedOn>),
    /// Something must precede them.
    Handshake(Box<HandshakeStage>),
}

/// What a connection that is not open waits for.
pub(crate) enum HandshakeStage {
    /// A PROXY protocol header, of which this much has arrived. Then TLS, if `tls`.
    ProxyHeader { tcp: TcpStream, received: Vec<u8>, tls: bool },
    /// The first byte of a TLS handshake.
    BeforeTls(TcpStream),
    /// The rest of a TLS handshake.
    Tls(TlsHandshake),
    /// Nothing: it failed.
    Failed,
}

/// The result of advancing a handshake.
#[derive(Debug)]
pub(crate) enum HandshakeStep {
    /// Try again at the socket's next event.
    Blocked,
    /// The PROXY protocol header named this source.
    ProxiedFor(ProxySource),
    /// The device's own bytes are next.
    Done,
    /// The peer closed the connection before it had sent anything that is worth a log line.
    PeerClosed,
    /// The connection does not begin with a valid PROXY protocol header.
    BadProxyHeader(BadProxyHeader),
    /// The peer does not speak TLS: its connection, and the first byte, which is still unread.
    NotTls(TcpStream, u8),
    /// Why the TLS handshake failed.
    TlsFailed(String),
}

impl Transport {
    /// A new connection: `proxied` ones begin with a PROXY protocol header; then TLS follows, if `tls`.
    pub(crate) fn new(tcp: TcpStream, proxied: bool, tls: bool) -> Self {
        let stage = match (proxied, tls) {
            (false, false) => return Self::Open(Stream::Plain(tcp)),
            (true, _) => HandshakeStage::ProxyHeader { tcp, received: Vec::new(), tls },
            (false, true) => HandshakeStage::BeforeTls(tcp),
        };
        Self::Handshake(Box::new(stage))
    }

    /// Whether the device's own bytes are what is read and written.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self, Self::Handshake(_))
    }

    /// What is to be passed on to another gateway, if the device is connected there.
    #[cfg(feature = "cluster")]
    pub(crate) fn take_passed_on(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::PassedOn(output) => Some(output.take()),
            _ => None,
        }
    }

    /// Whether it is TCP without TLS, and no PROXY header is to come.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Open(Stream::Plain(_)))
    }

    /// The socket of a connection without TLS.
    #[cfg(target_os = "linux")]
    pub(crate) fn into_plain_tcp(self) -> Option<TcpStream> {
        match self {
            Self::Open(Stream::Plain(tcp)) => Some(tcp),
            _ => None,
        }
    }

    /// Whether a TLS handshake has begun and not finished.
    pub(crate) fn is_in_tls_handshake(&self) -> bool {
        matches!(self, Self::Handshake(stage) if matches!(**stage, HandshakeStage::Tls(_)))
    }

    /// The socket; none after a handshake has failed, and of a device that is connected to another gateway.
    pub(crate) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Open(stream) => Some(stream.socket()),
            #[cfg(feature = "cluster")]
            Self::PassedOn(_) => None,
            Self::Handshake(stage) => match &**stage {
                HandshakeStage::ProxyHeader { tcp, .. } | HandshakeStage::BeforeTls(tcp) => Some(tcp),
                HandshakeStage::Tls(handshake) => Some(handshake.socket()),
                HandshakeStage::Failed => None,
            },
        }
    }

    /// As [`Self::tcp`], for registration with the poll.
    pub(crate) fn tcp_mut(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Open(stream) => Some(stream.socket_mut()),
            #[cfg(feature = "cluster")]
            Self::PassedOn(_) => None,
            Self::Handshake(stage) => match &mut **stage {
                HandshakeStage::ProxyHeader { tcp, .. } | HandshakeStage::BeforeTls(tcp) => Some(tcp),
                HandshakeStage::Tls(handshake) => Some(handshake.socket_mut()),
                HandshakeStage::Failed => None,
            },
        }
    }

    /// Closes this side for writing, over TLS with a close_notify before.
    ///
    /// # Errors
    /// After WouldBlock, call it again when the socket is writable. After other errors there is nothing left to close.
    pub(crate) fn shut_down(&mut self) -> io::Result<()> {
        match self {
            Self::Open(stream) => {
                stream.shut_down_tls()?;
                stream.socket().shutdown(Shutdown::Write)
            }
            #[cfg(feature = "cluster")]
            Self::PassedOn(_) => Ok(()),
            Self::Handshake(_) => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Advances the handshake by one stage, as far as the socket allows. `scratch` has room for a PROXY protocol header.
    pub(crate) fn advance(&mut self, certificate: Option<&Certificate>, scratch: &mut [u8]) -> HandshakeStep {
        let Self::Handshake(stage) = self else { return HandshakeStep::Done };
        match mem::replace(&mut **stage, HandshakeStage::Failed) {
            HandshakeStage::ProxyHeader { mut tcp, mut received, tls } => {
                match read_proxy_header(&mut tcp, &mut received, scratch) {
                    Ok(Some(source)) => {
                        *self = Self::new(tcp, false, tls);
                        HandshakeStep::ProxiedFor(source)
                    }
                    Ok(None) => {
                        **stage = HandshakeStage::ProxyHeader { tcp, received, tls };
                        HandshakeStep::Blocked
                    }
                    Err(step) => step,
                }
            }
            HandshakeStage::BeforeTls(tcp) => self.start_tls(tcp, certificate),
            HandshakeStage::Tls(handshake) => self.on_tls_progress(handshake.advance()),
            HandshakeStage::Failed => HandshakeStep::PeerClosed,
        }
    }

    /// Starts the TLS handshake when the first byte is there. A peer that sends nothing, or something else than TLS, costs
    /// no handshake.
    fn start_tls(&mut self, tcp: TcpStream, certificate: Option<&Certificate>) -> HandshakeStep {
        let mut first = [0];
        match (tcp.peek(&mut first), certificate) {
            (Ok(0), _) => HandshakeStep::PeerClosed,
            (Ok(_), _) if first[0] != TLS_HANDSHAKE_RECORD => HandshakeStep::NotTls(tcp, first[0]),
            (Ok(_), Some(certificate)) => self.on_tls_progress(certificate.accept(tcp)),
            (Err(error), _) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                *self = Self::new(tcp, false, true);
                HandshakeStep::Blocked
            }
            (Err(_), _) | (Ok(_), None) => HandshakeStep::PeerClosed,
        }
    }

    fn on_tls_progress(&mut self, progress: Result<HandshakeProgress, String>) -> HandshakeStep {
        match progress {
            Ok(HandshakeProgress::Done(stream)) => {
                *self = Self::Open(stream);
                HandshakeStep::Done
            }
            Ok(HandshakeProgress::Blocked(handshake)) => {
                if let Self::Handshake(stage) = self {
                    **stage = HandshakeStage::Tls(handshake);
                }
                HandshakeStep::Blocked
            }
            Err(why) => HandshakeStep::TlsFailed(why),
        }
    }
}

/// Reads a PROXY protocol header, and no byte behind it: the TLS library reads what follows from the socket itself.
fn read_proxy_header(
    tcp: &mut TcpStream,
    received: &mut Vec<u8>,
    scratch: &mut [u8],
) -> Result<Option<ProxySource>, HandshakeStep> {
    loop {
        let arrived = match tcp.peek(&mut scratch[..proxy_protocol::MAX_V2_LEN]) {
            Ok(0) => return Err(HandshakeStep::PeerClosed),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return Err(HandshakeStep::PeerClosed),
        };
        let previous = received.len();
        received.extend_from_slice(&scratch[..arrived]);
        let header = proxy_protocol::decode(received).map_err(HandshakeStep::BadProxyHeader)?;
        let consumed = header.map_or(arrived, |(_, length)| length - previous);
        tcp.read_exact(&mut scratch[..consumed]).map_err(|_| HandshakeStep::PeerClosed)?;
        if let Some((source, _)) = header {
            return Ok(Some(source));
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Open(stream) => stream.read(buffer),
            #[cfg(feature = "cluster")]
            Self::PassedOn(_) => Err(ErrorKind::WouldBlock.into()),
            Self::Handshake(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(stream) => stream.write(data),
            #[cfg(feature = "cluster")]
            Self::PassedOn(output) => output.write(data),
            Self::Handshake(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Open(stream) => stream.flush(),
            #[cfg(feature = "cluster")]
            Self::PassedOn(output) => output.flush(),
            Self::Handshake(_) => Ok(()),
        }
    }
}
