//! One blocking HTTP request, for threads that may wait: its status is all that is read.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Instant;

use crate::config::{ChatServerConfig, WebSocket};
use crate::net::backend::tls_clients::TlsClients;
use crate::net::event_loop::stream::Stream;

/// Sends `request` to the host and port of `target`, by TLS if it says so, and returns the status of the response.
///
/// # Errors
/// That of the name, the connection or TLS; `TimedOut` or `WouldBlock` when it takes longer than `until`. Looking the name up
/// may take longer than that.
pub(crate) fn status(
    target: &ChatServerConfig,
    websocket: &WebSocket,
    request: &[u8],
    until: Instant,
) -> io::Result<u16> {
    let left = || match until.saturating_duration_since(Instant::now()) {
        left if left.is_zero() => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let address = (target.host.as_str(), target.port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::other("the name has no address"))?;
    let tcp = TcpStream::connect_timeout(&address, left()?)?;
    tcp.set_read_timeout(Some(left()?))?;
    tcp.set_write_timeout(Some(left()?))?;
    let mut stream = if target.tls {
        let mut clients = TlsClients::default();
        let client = clients.client(target, websocket).map_err(io::Error::other)?;
        client.connect_blocking(&target.host, tcp)?
    } else {
        Stream::Plain(tcp)
    };
    stream.write_all(request)?;
    let mut head = [0; 12];
    let mut length = 0;
    while length < head.len() {
        stream.socket().set_read_timeout(Some(left()?))?;
        match stream.read(&mut head[length..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => length += n,
        }
    }
    let status = std::str::from_utf8(&head).ok().and_then(|head| head.strip_prefix("HTTP/1."));
    let status = status.and_then(|rest| rest.get(2..)).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other("no HTTP response"))
}
