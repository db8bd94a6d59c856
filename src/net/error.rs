//! Why a gateway cannot start.

use std::net::SocketAddr;
use std::{fmt, io};

/// Why a gateway cannot start: one line for the operator.
#[derive(Debug)]
pub enum BindError {
    /// A port cannot be listened on: its purpose, its address, and the system's error.
    Port(&'static str, SocketAddr, io::Error),
    /// A certificate cannot be used: the section of the configuration that names it, and why.
    Certificate(&'static str, String),
    /// The system refused something else: what was tried, and its error.
    Setup(&'static str, io::Error),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(what, addr, error) => {
                write!(f, "cannot listen on {what} port {} ({addr}): {error}", addr.port())?;
                match error.kind() {
                    io::ErrorKind::AddrInUse => f.write_str("; another program uses it"),
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; ports below 1024 need a privilege: choose another port or grant the privilege",
                    ),
                    _ => Ok(()),
                }
            }
            Self::Certificate(section, error) => write!(f, "{section}.{error}"),
            Self::Setup(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}
