//! Opens the UDP port for all workers, or takes the sockets of the process that this one replaces.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::{io, iter};

use socket2::Socket;

use crate::config::Config;
use crate::net::error::BindError;
use crate::net::event_loop::inherited::Inherited;
use crate::net::gateway::upgrades::Upgrades;
use crate::net::media::steering::{self, SharedPort, SsrcShare, Steering};
#[cfg(target_os = "linux")]
use crate::net::upgrade::Predecessor;
#[cfg(target_os = "linux")]
use crate::net::upgrade::predecessor::Inheritance;

/// What a worker gets from the leader.
pub(crate) struct WorkerSockets {
    /// Its socket of the UDP port.
    pub(crate) audio: Socket,
    /// The ssrcs that reach it.
    pub(crate) share: SsrcShare,
    /// What it inherits.
    pub(crate) listeners: Inherited,
}

/// The sockets of all workers.
pub(crate) struct OpenSockets {
    pub(crate) leaders: WorkerSockets,
    pub(crate) others: Vec<WorkerSockets>,
    pub(crate) upgrades: Upgrades,
}

/// Opens the UDP port.
///
/// # Errors
/// The port is in use or not permitted, or this system cannot share it between several workers.
pub(super) fn open(config: &Config) -> Result<OpenSockets, BindError> {
    open_port(config, Vec::new())
}

fn open_port(config: &Config, listeners: Vec<Inherited>) -> Result<OpenSockets, BindError> {
    let configured = SocketAddr::new(config.udp.host, config.udp.port);
    let failed = |error| BindError::Port("UDP", configured, error);
    let (sockets, steering) = steering::open_first(configured, config.workers).map_err(failed)?;
    let port = steering.map(|steering| SharedPort { configured, steering, others: BTreeMap::new() });
    assign(sockets, steering, listeners, Upgrades::new(port))
}

/// Takes the sockets of the process that this one replaces, as far as they fit the configuration, and opens the others.
///
/// # Errors
/// Those of [`open`], and another number of workers.
#[cfg(target_os = "linux")]
pub(super) fn inherit(config: &Config, predecessor: &mut Predecessor) -> Result<OpenSockets, BindError> {
    let refused = |why: String| BindError::Setup("take over the sockets", io::Error::other(why));
    let Some(inheritance) = predecessor.take_offer() else {
        return Err(refused("they are taken already".to_owned()));
    };
    let Inheritance { udp, steering, audio, listeners, predecessors } = inheritance;
    if config.workers as u32 != steering.workers {
        return Err(refused(format!(
            "`workers` is {}, and {} in the process that runs: an upgrade cannot change it, a restart can",
            config.workers, steering.workers
        )));
    }
    let configured = SocketAddr::new(config.udp.host, config.udp.port);
    if configured != udp {
        let mut opened = open_port(config, listeners)?;
        opened.upgrades = opened.upgrades.with_predecessors(predecessors).with_earlier_port(audio);
        return Ok(opened);
    }
    let first = steering.share(0).place;
    let is_own = |place: &u32| (first..first + steering.workers).contains(place);
    let (own, others): (BTreeMap<_, _>, _) = (0..).zip(audio).partition(|(place, _)| is_own(place));
    let port = SharedPort { configured, steering, others };
    let upgrades = Upgrades::new(Some(port)).with_predecessors(predecessors);
    assign(own.into_values().collect(), Some(steering), listeners, upgrades)
}

/// Gives each worker its sockets.
fn assign(
    audio: Vec<Socket>,
    steering: Option<Steering>,
    inherited: Vec<Inherited>,
    upgrades: Upgrades,
) -> Result<OpenSockets, BindError> {
    let share = |worker| steering.map_or(SsrcShare::ALL, |steering| steering.share(worker));
    let inherited = inherited.into_iter().chain(iter::repeat_with(Inherited::default));
    let workers = audio.into_iter().zip(inherited).zip(0..);
    let mut workers =
        workers.map(|((audio, listeners), worker)| WorkerSockets { audio, share: share(worker), listeners });
    let none = || BindError::Setup("open the UDP port", io::ErrorKind::NotFound.into());
    let leaders = workers.next().ok_or_else(none)?;
    Ok(OpenSockets { leaders, others: workers.collect(), upgrades })
}
