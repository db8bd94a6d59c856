//! The byte stream of a simulated device: TCP, or TLS over it.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::error::DeviceErrorKind;
use crate::net::backend::transport::TlsClient;

/// A blocking connection to a gateway.
#[derive(Debug)]
pub(super) enum DeviceStream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(native_tls::TlsStream<TcpStream>),
}

/// What both kinds of streams do.
pub(super) trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

impl DeviceStream {
    /// The stream to read from and write to.
    pub(super) fn io(&mut self) -> &mut dyn ReadWrite {
        match self {
            Self::Plain(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls,
        }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_ref(),
        }
    }

    /// A TLS handshake on the plain connection; each of its reads may take as long as the socket's read timeout.
    #[cfg(feature = "tls")]
    pub(super) fn start_tls(self, host: &str, client: &mut TlsClient) -> Result<Self, DeviceErrorKind> {
        use native_tls::HandshakeError;
        let Self::Plain(tcp) = self else { return Ok(self) };
        let waits = tcp.read_timeout().ok().flatten().unwrap_or_default();
        let connector = client.connector().map_err(|error| DeviceErrorKind::TlsFailed(error.to_string()))?;
        match connector.connect(host, tcp) {
            Ok(tls) => Ok(Self::Tls(tls)),
            Err(HandshakeError::WouldBlock(_)) => Err(DeviceErrorKind::Timeout(waits)),
            Err(HandshakeError::Failure(error)) => Err(DeviceErrorKind::TlsFailed(error.to_string())),
        }
    }

    #[cfg(not(feature = "tls"))]
    pub(super) fn start_tls(self, _: &str, client: &mut TlsClient) -> Result<Self, DeviceErrorKind> {
        client.prepare().map(|()| self).map_err(|error| DeviceErrorKind::TlsFailed(error.to_string()))
    }

    /// Sends close_notify on TLS.
    pub(super) fn shutdown(&mut self) {
        // The other side may be gone already.
        #[cfg(feature = "tls")]
        if let Self::Tls(tls) = self {
            let _ = tls.shutdown();
        }
    }
}
