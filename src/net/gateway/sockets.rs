//! Opens the UDP port for all workers.

use std::io::ErrorKind;
use std::net::SocketAddr;

use socket2::Socket;

use crate::config::Config;
use crate::net::error::BindError;
use crate::net::media::steering::{self, SsrcShare};

/// What a worker gets from the leader.
pub(crate) struct WorkerSockets {
    /// Its socket of the UDP port.
    pub(crate) audio: Socket,
    /// The ssrcs that reach it.
    pub(crate) share: SsrcShare,
}

/// Opens the UDP port. Returns the sockets of the leader and of the other workers.
///
/// # Errors
/// The port is in use or not permitted, or this system cannot share it between several workers.
pub(super) fn open(config: &Config) -> Result<(WorkerSockets, Vec<WorkerSockets>), BindError> {
    let addr = SocketAddr::new(config.udp.host, config.udp.port);
    let failed = |error| BindError::Port("UDP", addr, error);
    let (sockets, steering) = steering::open_first(addr, config.workers).map_err(failed)?;
    let share = |worker| steering.map_or(SsrcShare::ALL, |steering| steering.share(worker));
    let mut sockets =
        sockets.into_iter().enumerate().map(|(worker, audio)| WorkerSockets { audio, share: share(worker) });
    let leaders = sockets.next().ok_or_else(|| failed(ErrorKind::NotFound.into()))?;
    Ok((leaders, sockets.collect()))
}
