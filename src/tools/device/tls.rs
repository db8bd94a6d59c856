//! TLS between a simulated device and its gateway.

use std::net::TcpStream;

use super::error::DeviceErrorKind;
use crate::net::backend::tls::TlsClient;
use crate::net::event_loop::stream::Stream;

/// A TLS handshake on a plain connection. Each of its reads may take as long as the socket's read timeout.
#[cfg(feature = "tls")]
pub(in crate::tools) fn start_tls(
    stream: Stream<TcpStream>,
    host: &str,
    client: &mut TlsClient,
) -> Result<Stream<TcpStream>, DeviceErrorKind> {
    use native_tls::HandshakeError;
    let Stream::Plain(tcp) = stream else { return Ok(stream) };
    let timeout = tcp.read_timeout().ok().flatten().unwrap_or_default();
    let connector = client.connector().map_err(|error| DeviceErrorKind::Other(error.to_string()))?;
    match connector.connect(host, tcp) {
        Ok(tls) => Ok(Stream::Tls(Box::new(tls))),
        Err(HandshakeError::WouldBlock(_)) => Err(DeviceErrorKind::Timeout(timeout)),
        Err(HandshakeError::Failure(error)) => Err(DeviceErrorKind::Other(error.to_string())),
    }
}

#[cfg(not(feature = "tls"))]
pub(in crate::tools) fn start_tls(
    stream: Stream<TcpStream>,
    _: &str,
    client: &mut TlsClient,
) -> Result<Stream<TcpStream>, DeviceErrorKind> {
    client.prepare().map(|()| stream).map_err(|error| DeviceErrorKind::Other(error.to_string()))
}
