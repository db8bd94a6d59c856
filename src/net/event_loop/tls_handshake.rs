//! A TLS handshake on a socket that may be non-blocking, on either side of the connection.

#[cfg(feature = "tls")]
use std::io::{Read, Write};

use mio::net::TcpStream;
#[cfg(feature = "tls")]
use native_tls::{HandshakeError, MidHandshakeTlsStream};
#[cfg(openssl_client)]
use openssl::ssl::{self, MidHandshakeSslStream, SslStream};
#[cfg(openssl_client)]
use openssl::x509::X509VerifyResult;

use crate::net::event_loop::stream::Stream;
#[cfg(feature = "tls")]
use crate::net::event_loop::stream::TlsStream;
#[cfg(openssl_client)]
use crate::net::event_loop::tls_sessions;

/// A handshake that waits for its socket.
#[cfg(feature = "tls")]
pub(crate) enum TlsHandshake<S = TcpStream> {
    /// By native-tls.
    Tls(MidHandshakeTlsStream<S>),
    /// With a server that may resume a session.
    #[cfg(openssl_client)]
    OpenSsl(MidHandshakeSslStream<S>),
}

/// How far a handshake has come.
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS there are no handshakes"))]
pub(crate) enum HandshakeProgress<S = TcpStream> {
    /// The stream is ready.
    Done(Stream<S>),
    /// Continue at the socket's next event, whichever direction that is for.
    Blocked(TlsHandshake<S>),
}

#[cfg(feature = "tls")]
impl<S: Read + Write> HandshakeProgress<S> {
    /// What native-tls returned.
    ///
    /// # Errors
    /// Why the handshake failed, as text. The socket is closed.
    pub(crate) fn from_result(
        result: Result<native_tls::TlsStream<S>, HandshakeError<S>>,
    ) -> Result<Self, String> {
        match result {
            Ok(tls) => Ok(Self::Done(Stream::Tls(Box::new(TlsStream::Native(tls))))),
            Err(HandshakeError::WouldBlock(handshake)) => Ok(Self::Blocked(TlsHandshake::Tls(handshake))),
            Err(HandshakeError::Failure(error)) => Err(error.to_string()),
        }
    }

    /// What OpenSSL returned to a client.
    ///
    /// # Errors
    /// The same text as native-tls's. The socket is closed.
    #[cfg(openssl_client)]
    pub(crate) fn from_openssl(result: Result<SslStream<S>, ssl::HandshakeError<S>>) -> Result<Self, String> {
        let failed = match result {
            Ok(tls) => return Ok(Self::Done(Stream::Tls(Box::new(TlsStream::OpenSsl(tls))))),
            Err(ssl::HandshakeError::WouldBlock(handshake)) => {
                return Ok(Self::Blocked(TlsHandshake::OpenSsl(handshake)));
            }
            Err(ssl::HandshakeError::SetupFailure(error)) => return Err(error.to_string()),
            Err(ssl::HandshakeError::Failure(failed)) => failed,
        };
        tls_sessions::forget(failed.ssl());
        let verified = failed.ssl().verify_result();
        let error = failed.into_error();
        Err(match verified {
            X509VerifyResult::OK => error.to_string(),
            why => format!("{error} ({why})"),
        })
    }
}

#[cfg(feature = "tls")]
impl<S: Read + Write> TlsHandshake<S> {
    /// Continues as far as the socket allows.
    ///
    /// # Errors
    /// Why the handshake failed, as text. The socket is closed.
    pub(crate) fn advance(self) -> Result<HandshakeProgress<S>, String> {
        match self {
            Self::Tls(handshake) => HandshakeProgress::from_result(handshake.handshake()),
            #[cfg(openssl_client)]
            Self::OpenSsl(handshake) => HandshakeProgress::from_openssl(handshake.handshake()),
        }
    }

    pub(crate) fn socket(&self) -> &S {
        match self {
            Self::Tls(handshake) => handshake.get_ref(),
            #[cfg(openssl_client)]
            Self::OpenSsl(handshake) => handshake.get_ref(),
        }
    }

    pub(crate) fn socket_mut(&mut self) -> &mut S {
        match self {
            Self::Tls(handshake) => handshake.get_mut(),
            #[cfg(openssl_client)]
            Self::OpenSsl(handshake) => handshake.get_mut(),
        }
    }
}

/// Never constructed: the program was built without TLS.
#[cfg(not(feature = "tls"))]
pub(crate) struct TlsHandshake<S = TcpStream>(std::convert::Infallible, std::marker::PhantomData<S>);

#[cfg(not(feature = "tls"))]
impl<S> TlsHandshake<S> {
    pub(crate) fn advance(self) -> Result<HandshakeProgress<S>, String> {
        match self.0 {}
    }

    pub(crate) fn socket(&self) -> &S {
        match self.0 {}
    }

    pub(crate) fn socket_mut(&mut self) -> &mut S {
        match self.0 {}
    }
}
