//! A TLS handshake on a non-blocking socket, on either side of the connection.

use mio::net::TcpStream;
#[cfg(feature = "tls")]
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsStream};

use crate::net::event_loop::stream::Stream;

/// A handshake that waits for its socket.
#[cfg(feature = "tls")]
pub(crate) struct TlsHandshake(MidHandshakeTlsStream<TcpStream>);

/// How far a handshake has come.
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS there are no handshakes"))]
pub(crate) enum HandshakeProgress {
    /// The stream is ready.
    Done(Stream<TcpStream>),
    /// Continue at the socket's next event, whichever direction that is for.
    Blocked(TlsHandshake),
}

#[cfg(feature = "tls")]
impl HandshakeProgress {
    /// What the TLS library returned.
    ///
    /// # Errors
    /// Why the handshake failed, as text. The socket is closed.
    pub(crate) fn from_result(
        result: Result<TlsStream<TcpStream>, HandshakeError<TcpStream>>,
    ) -> Result<Self, String> {
        match result {
            Ok(tls) => Ok(Self::Done(Stream::Tls(Box::new(tls)))),
            Err(HandshakeError::WouldBlock(handshake)) => Ok(Self::Blocked(TlsHandshake(handshake))),
            Err(HandshakeError::Failure(error)) => Err(error.to_string()),
        }
    }
}

#[cfg(feature = "tls")]
impl TlsHandshake {
    /// Continues as far as the socket allows.
    ///
    /// # Errors
    /// Why the handshake failed, as text. The socket is closed.
    pub(crate) fn advance(self) -> Result<HandshakeProgress, String> {
        HandshakeProgress::from_result(self.0.handshake())
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        self.0.get_ref()
    }

    pub(crate) fn socket_mut(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }
}

/// Never constructed: the program was built without TLS.
#[cfg(not(feature = "tls"))]
pub(crate) enum TlsHandshake {}

#[cfg(not(feature = "tls"))]
impl TlsHandshake {
    pub(crate) fn advance(self) -> Result<HandshakeProgress, String> {
        match self {}
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        match *self {}
    }

    pub(crate) fn socket_mut(&mut self) -> &mut TcpStream {
        match *self {}
    }
}
