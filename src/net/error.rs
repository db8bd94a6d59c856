//! Why a gateway cannot start.

use std::net::SocketAddr;
use std::{fmt, io};

use crate::net::mqtt::certificate::CertificateError;

/// Why a gateway cannot start: one line for the operator.
#[derive(Debug)]
pub enum BindError {
    /// A port cannot be listened on: what for, where, and the system's word.
    Port(&'static str, SocketAddr, io::Error),
    /// There is no certificate to use for devices.
    Certificate(CertificateError),
    /// Something else was refused by the system.
    Setup(&'static str, io::Error),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(what, addr, error) => {
                write!(f, "cannot listen on {what} port {} ({addr}): {error}", addr.port())?;
                match error.kind() {
                    io::ErrorKind::AddrInUse => f.write_str("; another program uses it"),
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("; ports below 1024 need a privilege: choose another or grant it")
                    }
                    _ => Ok(()),
                }
            }
            Self::Certificate(error) => error.fmt(f),
            Self::Setup(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

impl From<CertificateError> for BindError {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(error)
    }
}
