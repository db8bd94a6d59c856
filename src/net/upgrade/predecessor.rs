//! The new process: what it takes from the one that serves.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::socket_type;
use socket2::Socket;

use super::channel::{Channel, Message, Offer};
use crate::net::event_loop::inherited::{Inherited, InheritedListener};
use crate::net::media::steering::Steering;

/// The variable that tells a new process to take over from the process at its stdin.
pub(crate) const VARIABLE: &str = "MQTT_WEBSOCKET_PROXY_UPGRADE";
/// How long the process that serves may take for each step.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The process that this one is to replace.
pub struct Predecessor {
    channel: Channel,
    offer: Option<Inheritance>,
}

/// What a process inherits.
pub(crate) struct Inheritance {
    /// The configured address of the UDP port.
    pub(crate) udp: SocketAddr,
    pub(crate) steering: Steering,
    /// The sockets of the UDP port by their place.
    pub(crate) audio: Vec<Socket>,
    /// Of each worker.
    pub(crate) listeners: Vec<Inherited>,
    /// The earlier processes: their generation, and a channel that ends with them.
    pub(crate) predecessors: Vec<(u32, OwnedFd)>,
}

impl Predecessor {
    /// The process that has started this one to replace it, with its sockets. None when this one was started in another way.
    ///
    /// # Errors
    /// The variable is set, but stdin leads to no such process, or it sends no sockets.
    pub fn from_environment() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        if socket_type(&stdin).ok() != Some(rustix::net::SocketType::SEQPACKET) {
            let why = format!("{VARIABLE} is only for a process that is started by an upgrade: unset it");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let channel = Channel::new(stdin);
        let offer = Some(receive_offer(&channel)?);
        Ok(Some(Self { channel, offer }))
    }

    pub(crate) fn take_offer(&mut self) -> Option<Inheritance> {
        self.offer.take()
    }

    /// Tells the other process that this one could start, and waits until it accepts no connections any more.
    ///
    /// # Errors
    /// The other process does not answer, or has ended: it was stopped.
    pub(crate) fn wait_to_serve(&self) -> io::Result<()> {
        self.send(&Message::Ready);
        match self.channel.receive(Some(TIMEOUT)) {
            Ok((Message::Go, _)) => Ok(()),
            Ok(_) => Err(invalid("it answers with what this version does not know")),
            Err(error) => Err(error),
        }
    }

    /// Tells the other process that nothing can fail here any more, and waits until it has told the service manager so.
    pub(crate) fn report_serving(&self) {
        self.send(&Message::Serving);
        // If it has ended meanwhile, there is nothing to wait for.
        let _ = self.channel.receive(Some(TIMEOUT));
    }

    /// Tells the other process why this one cannot start.
    pub fn report_failure(&self, why: &str) {
        self.send(&Message::Failed(why.to_owned()));
    }

    /// When the other process has ended, nobody needs to know.
    fn send(&self, message: &Message) {
        let _ = self.channel.send(message, &[]);
    }
}

fn receive_offer(channel: &Channel) -> io::Result<Inheritance> {
    let (Message::Offer(offer), mut descriptors) = channel.receive(Some(TIMEOUT))? else {
        return Err(invalid("no offer of sockets came"));
    };
    while descriptors.len() < offer.descriptors() {
        let (Message::Descriptors, more) = channel.receive(Some(TIMEOUT))? else {
            return Err(invalid("fewer sockets came than were offered"));
        };
        descriptors.extend(more);
    }
    assign(offer, descriptors.into())
}

/// Gives each descriptor its purpose.
fn assign(offer: Offer, mut descriptors: VecDeque<OwnedFd>) -> io::Result<Inheritance> {
    let mut next = || descriptors.pop_front().ok_or_else(|| invalid("fewer sockets came than were offered"));
    let audio = (0..offer.steering.places()).map(|_| Ok(next()?.into())).collect::<io::Result<_>>()?;
    let mut listeners: Vec<Inherited> = (0..offer.steering.workers).map(|_| Inherited::default()).collect();
    for offered in offer.listeners {
        let of_worker = listeners.get_mut(offered.worker).ok_or_else(|| invalid("it has fewer workers"))?;
        let socket = next()?.into();
        of_worker.0.push(InheritedListener { purpose: offered.purpose, addr: offered.addr, socket });
    }
    let predecessors = offer.predecessors.into_iter().map(|n| Ok((n, next()?))).collect::<io::Result<_>>()?;
    Ok(Inheritance { udp: offer.udp, steering: offer.steering, audio, listeners, predecessors })
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
