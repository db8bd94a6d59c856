//! TLS between a simulated device and its gateway.

use std::io::ErrorKind;
use std::net::TcpStream;

use super::error::DeviceErrorKind;
use crate::net::backend::tls::TlsClient;
use crate::net::event_loop::stream::Stream;

/// A TLS handshake on a plain connection. Each of its reads may take as long as the socket's read timeout.
pub(in crate::tools) fn start_tls(
    stream: Stream<TcpStream>,
    host: &str,
    client: &mut TlsClient,
) -> Result<Stream<TcpStream>, DeviceErrorKind> {
    #[cfg_attr(not(feature = "tls"), expect(irrefutable_let_patterns, reason = "there is no TLS then"))]
    let Stream::Plain(tcp) = stream else { return Ok(stream) };
    let timeout = tcp.read_timeout().ok().flatten().unwrap_or_default();
    client.connect_blocking(host, tcp).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => DeviceErrorKind::Timeout(timeout),
        _ => DeviceErrorKind::Other(error.to_string()),
    })
}
