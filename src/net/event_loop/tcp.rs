//! Listening sockets and the options of what they accept.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that the system queues while the loop is busy: after a power cut all devices reconnect at once.
const BACKLOG: i32 = 4096;
/// Accepted sockets inherit the listener's options, which saves five system calls per connection.
const OPTIONS_ARE_INHERITED: bool = cfg!(target_os = "linux");
/// How long a socket that we have closed waits for its peer to close.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How long accepting pauses after descriptors ran out.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A non-blocking listener, for IPv4 too when the address is `[::]`. A shared one is one of several on the same port,
/// among which the system spreads connections.
pub(crate) fn listen(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // On Windows the option would let two programs share the port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(shared)?;
    #[cfg(windows)]
    if shared {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "Windows does not share a port: set `workers` to 1",
        ));
    }
    socket.set_nonblocking(true)?;
    if OPTIONS_ARE_INHERITED {
        set_options(&socket);
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// The next connection; none when no more is waiting. Connections that were reset while they waited are skipped.
///
/// # Errors
/// Those of accept(2) that concern this process, most often that descriptors ran out (EMFILE).
pub(crate) fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok(accepted) => return Ok(Some(accepted)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sets the options that an accepted connection has not inherited.
pub(crate) fn set_accepted_options(tcp: &TcpStream) {
    if !OPTIONS_ARE_INHERITED {
        set_options(&SockRef::from(tcp));
    }
}

/// A connection without these options still works.
fn set_options(socket: &Socket) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive());
}

/// Finds devices that vanished without a word while their keep alive is long or none.
fn keepalive() -> TcpKeepalive {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    #[cfg(not(any(windows, target_os = "openbsd")))]
    let keepalive = keepalive.with_retries(3);
    keepalive
}
