//! The byte stream under a simulated device: TCP, or TLS over it.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::error::DeviceErrorKind;
use crate::net::backend::tls::TlsClient;

/// A blocking connection to a gateway.
#[derive(Debug)]
pub(super) enum DeviceStream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(native_tls::TlsStream<TcpStream>),
}

impl DeviceStream {
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

    /// Says that nothing more comes, where the stream has a word for it.
    pub(super) fn shutdown(&mut self) {
        // The other side may be gone already.
        #[cfg(feature = "tls")]
        if let Self::Tls(tls) = self {
            let _ = tls.shutdown();
        }
    }
}

impl Read for DeviceStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for DeviceStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(data),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
        }
    }
}
