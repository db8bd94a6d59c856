//! Controls a running gateway from other threads.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use log::error;
use mio::Waker;

use crate::config::{Config, Source};
use crate::net::error::BindError;
use crate::net::gateway::Gateway;
use crate::net::gateway::worker_relay::Way;
use crate::session::RelayBatch;

/// What other threads send to the loop.
pub(crate) enum Command {
    /// What this loop is to do.
    Run(Box<dyn FnOnce(&mut Gateway) + Send>),
    /// From another worker, by its number: what it has for calls between devices.
    Relay { from: usize, way: Way, batch: Box<RelayBatch> },
}

/// Controls a running gateway from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
}

impl Handle {
    pub(crate) fn new(waker: Arc<Waker>) -> (Self, Receiver<Command>) {
        let (commands, receiver) = mpsc::channel();
        (Self { commands, waker }, receiver)
    }

    /// Wakes the loop.
    #[cfg(feature = "cluster")]
    pub(crate) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Stops the gateway: devices in a call get a goodbye, WebSockets are closed with code 1001, and [`Gateway::run`]
    /// returns when all data is written or `grace` has passed.
    pub fn stop(&self, grace: Duration) {
        self.run(move |gateway| gateway.stop(grace));
    }

    /// Drains the gateway: it accepts no new connections, disconnects devices without a call over some seconds, and lets
    /// calls finish. [`Gateway::run`] returns when the last call has ended. A second drain has no effect; [`Handle::stop`]
    /// ends it sooner.
    pub fn drain(&self) {
        self.run(|gateway| gateway.drain(None));
    }

    /// As [`Handle::drain`], and the calls that go on after this time are ended as by [`Handle::stop`]. Given again, it counts from
    /// then on.
    pub fn drain_within(&self, within: Duration) {
        self.run(move |gateway| gateway.drain(Some(within)));
    }

    /// Upgrade in place: starts `program`, which must be this one or another version of it, with the sockets of this gateway. When it
    /// serves, this gateway lets its devices without a call go, and [`Gateway::run`] returns when its last call has ended. When it does
    /// not start, this gateway goes on. The log says how it went. Linux only.
    pub fn upgrade(&self, program: Program) {
        self.run(move |gateway| gateway.upgrade(program));
    }

    /// Applies another configuration: all of it, or nothing if it would empty a server list that is in use.
    pub fn reload(&self, config: Config) {
        // The outcome is in the log.
        self.run(move |gateway| _ = gateway.reload(config));
    }

    /// Reads the configuration file again, as SIGHUP does.
    pub fn reload_file(&self) {
        self.run(|gateway| _ = gateway.reload_file());
    }

    /// Has the loop do this. Without effect once the gateway has ended: nobody receives commands.
    pub(crate) fn run(&self, action: impl FnOnce(&mut Gateway) + Send + 'static) {
        self.send(Command::Run(Box::new(action)));
    }

    /// False once the gateway has ended.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        if sent {
            let _ = self.waker.wake();
        }
        sent
    }
}

/// A program to start.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
}

/// The addresses a gateway listens on, with the ports the system chose where 0 was configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// MQTT over TCP; over TLS when `mqtt.plain` is off.
    pub mqtt: SocketAddr,
    /// MQTT over TLS; none when it was off at start.
    pub mqtts: Option<SocketAddr>,
    /// Audio over UDP.
    pub udp: SocketAddr,
    /// The management API; none when it is switched off.
    pub api: Option<SocketAddr>,
    /// Devices' OTA requests; none when that is switched off.
    pub ota: Option<SocketAddr>,
}

/// A gateway on its own thread. Dropping this stops it.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    handle: Handle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    /// Binds a gateway on a new thread and runs it there.
    ///
    /// # Errors
    /// Those of [`Gateway::bind`].
    pub fn start(config: Config, source: Option<Source>) -> Result<Self, BindError> {
        let (bound, bound_receiver) = mpsc::channel();
        let thread = thread::Builder::new().name("gateway".to_owned()).spawn(move || {
            let gateway = match Gateway::bind(config, source) {
                Ok(gateway) => gateway,
                Err(error) => {
                    let _ = bound.send(Err(error));
                    return Ok(());
                }
            };
            let _ = bound.send(Ok((gateway.addresses(), gateway.handle())));
            // Logged here, since the caller may never ask for the result.
            gateway.run().inspect_err(|error| error!("the gateway failed: {error}"))
        });
        let thread = thread.map_err(|error| BindError::Setup("start a thread", error))?;
        let ended = || BindError::Setup("start", io::Error::other("the thread ended"));
        let (addresses, handle) = bound_receiver.recv().map_err(|_| ended())??;
        Ok(Self { addresses, handle, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Controls it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops it and waits until it has ended.
    ///
    /// # Errors
    /// Those of [`Gateway::run`].
    pub fn stop(self, grace: Duration) -> io::Result<()> {
        self.handle.stop(grace);
        self.wait()
    }

    /// Waits until it has ended: it was stopped or drained, or it failed.
    ///
    /// # Errors
    /// Those of [`Gateway::run`].
    pub fn wait(mut self) -> io::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(io::Error::other("the gateway's thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop(Duration::ZERO);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
