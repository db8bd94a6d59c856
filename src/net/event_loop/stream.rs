//! A byte stream: a socket, or TLS over it.

use std::io::{self, Read, Write};

#[cfg(openssl_client)]
use openssl::ssl::{ErrorCode, SslStream};

/// A connection over the socket `S`.
#[derive(Debug)]
pub(crate) enum Stream<S> {
    /// The socket itself.
    Plain(S),
    /// TLS. The TLS library may still hold bytes when the socket is empty: read until WouldBlock.
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<S>>),
}

/// A connection over TLS. Its kinds are no variants of [`Stream`]: with a single one beside the socket, that takes no more memory than a
/// socket.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub(crate) enum TlsStream<S> {
    /// By native-tls.
    Native(native_tls::TlsStream<S>),
    /// With a server that may resume a session.
    #[cfg(openssl_client)]
    OpenSsl(SslStream<S>),
}

impl<S: Read + Write> Stream<S> {
    /// The socket.
    pub(crate) fn socket(&self) -> &S {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_ref(),
        }
    }

    /// The socket, for registration with the poll.
    pub(crate) fn socket_mut(&mut self) -> &mut S {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_mut(),
        }
    }

    /// Sends close_notify, over TLS.
    ///
    /// # Errors
    /// Those of the socket. After WouldBlock, call it again when the socket is writable.
    pub(crate) fn shut_down_tls(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.shut_down(),
        }
    }
}

#[cfg(feature = "tls")]
trait Bytes: Read + Write {}

#[cfg(feature = "tls")]
impl<T: Read + Write> Bytes for T {}

#[cfg(feature = "tls")]
impl<S: Read + Write> TlsStream<S> {
    fn get_ref(&self) -> &S {
        match self {
            Self::Native(tls) => tls.get_ref(),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.get_ref(),
        }
    }

    fn get_mut(&mut self) -> &mut S {
        match self {
            Self::Native(tls) => tls.get_mut(),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.get_mut(),
        }
    }

    /// Reads and writes.
    fn bytes(&mut self) -> &mut dyn Bytes {
        match self {
            Self::Native(tls) => tls,
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls,
        }
    }

    fn shut_down(&mut self) -> io::Result<()> {
        match self {
            Self::Native(tls) => tls.shutdown(),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => match tls.shutdown() {
                Err(error) if error.code() != ErrorCode::ZERO_RETURN => {
                    Err(error.into_io_error().unwrap_or_else(io::Error::other))
                }
                Ok(_) | Err(_) => Ok(()),
            },
        }
    }
}

impl<S: Read + Write> Read for Stream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.bytes().read(buffer),
        }
    }
}

impl<S: Read + Write> Write for Stream<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(data),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.bytes().write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.bytes().flush(),
        }
    }
}
