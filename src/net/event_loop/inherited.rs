//! Listening sockets that the process before has handed on, so that no connection is refused while one replaces the other.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpListener;
use serde::{Deserialize, Serialize};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use socket2::Socket;

use crate::net::event_loop::tcp;

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// The management API.
    Api,
    /// Devices' OTA requests.
    Ota,
}

/// A listening socket, and the address that the configuration gives it; its port may be 0.
pub(crate) struct InheritedListener {
    pub(crate) purpose: Purpose,
    pub(crate) addr: SocketAddr,
    pub(crate) socket: Socket,
}

/// The listening sockets that a worker gets from the process before; empty at an ordinary start.
#[derive(Default)]
pub(crate) struct Inherited(pub(crate) Vec<InheritedListener>);

#[cfg(target_os = "linux")]
impl InheritedListener {
    /// Another descriptor of a listener, to be handed on.
    ///
    /// # Errors
    /// There is no free descriptor.
    pub(crate) fn new(purpose: Purpose, addr: SocketAddr, listener: &TcpListener) -> io::Result<Self> {
        Ok(Self { purpose, addr, socket: SockRef::from(listener).try_clone()? })
    }
}

impl Inherited {
    /// The inherited listener with this address, else a new one.
    ///
    /// # Errors
    /// Those of [`tcp::listen`].
    pub(crate) fn listen(
        &mut self,
        purpose: Purpose,
        addr: SocketAddr,
        shared: bool,
    ) -> io::Result<TcpListener> {
        match self.position(purpose, addr) {
            Some(found) => Ok(TcpListener::from_std(self.0.swap_remove(found).socket.into())),
            None => tcp::listen(addr, shared),
        }
    }

    /// Whether this listener is inherited.
    pub(crate) fn has(&self, purpose: Purpose, addr: SocketAddr) -> bool {
        self.position(purpose, addr).is_some()
    }

    fn position(&self, purpose: Purpose, addr: SocketAddr) -> Option<usize> {
        self.0.iter().position(|inherited| inherited.purpose == purpose && inherited.addr == addr)
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_inherited_only_for_its_purpose_and_configured_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let earlier = tcp::listen(any, false).unwrap();
        let mut inherited = Inherited(vec![InheritedListener::new(Purpose::Mqtt, any, &earlier).unwrap()]);
        let mut listen =
            |purpose, addr| inherited.listen(purpose, addr, false).unwrap().local_addr().unwrap();
        let port = earlier.local_addr().unwrap();
        assert_ne!(listen(Purpose::Api, any), port);
        assert_ne!(listen(Purpose::Mqtt, "127.0.0.2:0".parse().unwrap()), port);
        assert_eq!(listen(Purpose::Mqtt, any), port);
        assert_ne!(listen(Purpose::Mqtt, any), port, "it is taken once");
    }
}
