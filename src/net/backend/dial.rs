//! A TCP connection to a server, one address of its name after another, and TLS over it if its URL asks for that.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::config::ChatServerConfig;
use crate::net::backend::tls::{TlsClient, TlsError};
use crate::net::event_loop::stream::Stream;
use crate::net::event_loop::tls_handshake::{HandshakeProgress, TlsHandshake};
use crate::session::{BackendFailure, BackendStage};

/// How long to wait for an address before the next address of the same host is tried.
const CONNECT_TIMEOUT_PER_ADDRESS: Duration = Duration::from_secs(1);

/// A connection that is being made.
pub(crate) enum Dial {
    /// Connects to an address. After `until`, the next address of `rest` is tried.
    Connecting { tcp: TcpStream, rest: VecDeque<SocketAddr>, until: Instant },
    /// Waits for the TLS handshake.
    TlsHandshake(Box<TlsHandshake>),
}

/// What a dial requires.
pub(crate) struct DialContext<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) token: Token,
    pub(crate) now: Instant,
    pub(crate) tls: &'a mut TlsClient,
}

/// How far a dial has come.
pub(crate) enum DialProgress {
    /// Advance it again at the socket's next event.
    Blocked(Dial),
    Connected(Stream<TcpStream>),
}

impl Dial {
    /// Starts to connect to the first of these addresses for which the system allows it.
    ///
    /// # Errors
    /// That of the last address.
    pub(crate) fn start(
        addresses: VecDeque<SocketAddr>,
        cx: &DialContext<'_>,
    ) -> Result<Self, BackendFailure> {
        Self::connect(addresses, None, cx)
    }

    /// `last_error` is that of the address before, if any.
    fn connect(
        mut addresses: VecDeque<SocketAddr>,
        mut last_error: Option<io::Error>,
        cx: &DialContext<'_>,
    ) -> Result<Self, BackendFailure> {
        while let Some(address) = addresses.pop_front() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let connected = TcpStream::connect(address).and_then(|mut tcp| {
                cx.registry.register(&mut tcp, cx.token, interest)?;
                Ok(tcp)
            });
            match connected {
                Ok(tcp) => {
                    let until = cx.now + CONNECT_TIMEOUT_PER_ADDRESS;
                    return Ok(Self::Connecting { tcp, rest: addresses, until });
                }
                Err(error) => last_error = Some(error),
            }
        }
        Err(match last_error {
            Some(error) if is_out_of_descriptors(&error) => failure(BackendStage::LocalShortage, error),
            Some(error) => failure(BackendStage::Connect, error),
            None => failure(BackendStage::Connect, "the name has no address"),
        })
    }

    /// Continues as far as the socket allows.
    ///
    /// # Errors
    /// Why there is no connection.
    pub(crate) fn advance(
        self,
        server: &ChatServerConfig,
        cx: &mut DialContext<'_>,
    ) -> Result<DialProgress, BackendFailure> {
        let progress = match self {
            Self::Connecting { tcp, rest, until } => {
                if tcp.peer_addr().is_err() {
                    let error = match tcp.take_error() {
                        Ok(Some(error)) | Err(error) => error,
                        Ok(None) if cx.now < until || rest.is_empty() => {
                            return Ok(DialProgress::Blocked(Self::Connecting { tcp, rest, until }));
                        }
                        Ok(None) => ErrorKind::TimedOut.into(),
                    };
                    drop(tcp);
                    return Self::connect(rest, Some(error), cx).map(DialProgress::Blocked);
                }
                // Whole messages are flushed at once, so Nagle's algorithm would only delay them. An error is harmless.
                let _ = tcp.set_nodelay(true);
                if !server.tls {
                    return Ok(DialProgress::Connected(Stream::Plain(tcp)));
                }
                cx.tls.start(&server.host, tcp)
            }
            Self::TlsHandshake(handshake) => handshake.advance().map_err(TlsError::Handshake),
        };
        match progress {
            Ok(HandshakeProgress::Done(stream)) => Ok(DialProgress::Connected(stream)),
            Ok(HandshakeProgress::Blocked(handshake)) => {
                Ok(DialProgress::Blocked(Self::TlsHandshake(Box::new(handshake))))
            }
            Err(error) => Err(failure(BackendStage::Tls, error)),
        }
    }

    /// The present stage, for a [`BackendFailure`].
    pub(crate) fn stage(&self) -> BackendStage {
        match self {
            Self::Connecting { .. } => BackendStage::Connect,
            Self::TlsHandshake(_) => BackendStage::Tls,
        }
    }

    /// Whether to advance it when its socket is writable but not readable. A TLS handshake may be waiting to write, but on Windows
    /// it is not advanced, because there each attempt to read causes another writable event.
    pub(crate) fn waits_to_write(&self) -> bool {
        match self {
            Self::Connecting { .. } => true,
            Self::TlsHandshake(_) => !cfg!(windows),
        }
    }

    /// When to try the next address although the socket has no event.
    pub(crate) fn next_step_at(&self) -> Option<Instant> {
        match self {
            Self::Connecting { rest, until, .. } if !rest.is_empty() => Some(*until),
            Self::Connecting { .. } | Self::TlsHandshake(_) => None,
        }
    }
}

fn failure(stage: BackendStage, message: impl ToString) -> BackendFailure {
    BackendFailure::new(stage, message.to_string())
}

/// Whether this process or system has no free file descriptor (EMFILE, ENFILE), which is not the server's fault.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}
