//! A byte stream: a socket, or TLS over it.

use std::io::{self, Read, Write};

#[cfg(feature = "tls")]
use native_tls::TlsStream;
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
    /// TLS with a server that may resume a session. Likewise.
    #[cfg(openssl_client)]
    OpenSsl(Box<SslStream<S>>),
}

impl<S: Read + Write> Stream<S> {
    /// The socket.
    pub(crate) fn socket(&self) -> &S {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_ref(),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.get_ref(),
        }
    }

    /// The socket, for registration with the poll.
    pub(crate) fn socket_mut(&mut self) -> &mut S {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_mut(),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.get_mut(),
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
            Self::Tls(tls) => tls.shutdown(),
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
            Self::Tls(tls) => tls.read(buffer),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.read(buffer),
        }
    }
}

impl<S: Read + Write> Write for Stream<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(data),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(data),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
            #[cfg(openssl_client)]
            Self::OpenSsl(tls) => tls.flush(),
        }
    }
}
