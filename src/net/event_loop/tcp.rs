//! Listening sockets, and the options of accepted connections.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that the system queues until they are accepted: after a power cut all devices reconnect at once.
const BACKLOG: i32 = 4096;
/// Accepted sockets inherit the listener's options, which saves five system calls per connection.
const OPTIONS_ARE_INHERITED: bool = cfg!(target_os = "linux");
/// How long a socket that this side has closed waits for the peer to close its side.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How long accepting pauses after descriptors ran out.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A non-blocking listener; `[::]` also accepts IPv4. Several `shared` listeners can have the same port: the system
/// distributes connections over them.
pub(crate) fn listen(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // On Windows this option would let two programs share the port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(shared)?;
    #[cfg(windows)]
    if shared {
        return Err(io::Error::new(
            ErrorKind::Unsupported,
            "several workers cannot share a port on Windows: set `workers` to 1",
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

/// Accepts the next connection; `None` when no more are waiting.
///
/// # Errors
/// Those of accept(2): of the connection, if [`is_of_connection`], else of this process, in most cases EMFILE: no file
/// descriptor is free.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    match listener.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        accepted => accepted.map(Some),
    }
}

/// Whether only one connection failed, which was reset while it waited, or a signal arrived: the next one can be accepted.
/// Callers count it as an attempt, so that their budgets hold.
pub(crate) fn is_of_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

/// Sets the options that an accepted connection has not inherited.
pub(crate) fn set_accepted_options(tcp: &TcpStream) {
    if !OPTIONS_ARE_INHERITED {
        set_options(&SockRef::from(tcp));
    }
}

/// Acknowledges what was read at once. A device that sends two short messages in a row sends the second one after that, which the
/// system would delay by 40 ms. The option does not last, so it is set after each read.
pub(crate) fn acknowledge(_tcp: &TcpStream) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = SockRef::from(_tcp).set_tcp_quickack(true);
}

/// Ignores errors: a connection works without these options.
fn set_options(socket: &Socket) {
    let _ = socket.set_tcp_nodelay(true);
    // Detects devices that disappeared without closing the connection, when their MQTT keep alive is long or 0.
    let _ = socket.set_tcp_keepalive(&keepalive(Duration::from_secs(30), Duration::from_secs(10)));
}

/// Three probes with this interval, after nothing has arrived for this time.
pub(crate) fn keepalive(idle: Duration, interval: Duration) -> TcpKeepalive {
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
    #[cfg(not(any(windows, target_os = "openbsd")))]
    let keepalive = keepalive.with_retries(3);
    keepalive
}
