//! After an upgrade in place: a device that loses its connection in a call of an earlier process connects to this one. Its connection
//! is passed on to that process, where it takes the call over as if it had connected there.
//!
//! An earlier process reports the devices that have a call with it. A connection over TLS cannot be passed on, since its keys are in the
//! memory of this process.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use log::{debug, info};
use mio::Interest;
use mio::net::TcpStream;
use mio::unix::SourceFd;

use crate::net::event_loop::token::{self, OWN_CHANNEL, PREDECESSOR, SessionId};
use crate::net::gateway::Gateway;
use crate::net::gateway::workers::HandOff;
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::transport::Transport;
use crate::net::upgrade::channel::{Channel, Message};
use crate::proto::identity::{ClientId, Mac};

/// Devices named in one message.
const DEVICES_PER_MESSAGE: usize = 1_000;
/// How long a process that begins to serve waits until the earlier ones have reported; one that hangs has no working calls.
const REPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest beginning of a connection that is passed on: a CONNECT with a will and long credentials.
const MAX_BYTES: usize = 16 << 10;

/// The devices that have a call with an earlier process, and its generation. All workers share it.
#[derive(Default)]
pub(crate) struct CallsElsewhere {
    /// So that a login takes the lock only after an upgrade.
    count: AtomicUsize,
    by_mac: Mutex<HashMap<Mac, u32>>,
}

/// A connection of such a device.
struct ReturningDevice {
    generation: u32,
    tcp: OwnedFd,
    ip: IpAddr,
    port: u16,
    /// Its CONNECT, and the bytes after it.
    bytes: Vec<u8>,
}

/// The report of all workers, to the process that has asked. Its end is sent when the last worker has dropped it: it has reported, or it
/// has ended since it has no calls.
struct Report(Arc<Channel>);

impl Drop for Report {
    fn drop(&mut self) {
        let _ = self.0.try_send(&Message::AllReported, None);
    }
}

impl CallsElsewhere {
    fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    fn generation_of(&self, mac: Mac) -> Option<u32> {
        self.lock().get(&mac).copied()
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Mac, u32>)) {
        let mut by_mac = self.lock();
        change(&mut by_mac);
        self.count.store(by_mac.len(), Relaxed);
    }

    /// It is consistent after every change.
    fn lock(&self) -> MutexGuard<'_, HashMap<Mac, u32>> {
        self.by_mac.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// The process that serves.
impl Gateway {
    /// Registers the channels to the earlier processes, and asks for the devices that have a call with them.
    pub(super) fn ask_predecessors(&mut self) -> io::Result<()> {
        self.upgrades.predecessors.iter().try_for_each(|(generation, channel)| {
            let token = token::fixed(PREDECESSOR + *generation as usize);
            self.io.registry.register(
                &mut SourceFd(&channel.as_fd().as_raw_fd()),
                token,
                Interest::READABLE,
            )?;
            // If it has ended, the next event says so.
            let _ = channel.try_send(&Message::ReportCalls, None);
            Ok(())
        })
    }

    /// Waits until all of them have reported: a device that connects before that would lose its call. Call it before the loop runs.
    pub(super) fn await_reports(&self) {
        let deadline = Instant::now() + REPORT_TIMEOUT;
        for (generation, channel) in &self.upgrades.predecessors {
            loop {
                let remaining = deadline.saturating_duration_since(Instant::now());
                // What has ended is noticed by the loop. A timeout of zero would be none.
                match channel.receive(Some(remaining.max(Duration::from_millis(1)))) {
                    Ok((Message::AllReported, _)) | Err(_) => break,
                    Ok((message, _)) => self.on_report(*generation, message),
                }
            }
        }
    }

    fn on_report(&self, generation: u32, message: Message) {
        let calls = &self.upgrades.calls_elsewhere;
        match message {
            Message::CallsHere(devices) => {
                let macs =
                    devices.iter().filter_map(|mac| mac.parse().ok()).map(|mac: Mac| (mac, generation));
                calls.change(|all| all.extend(macs));
            }
            Message::CallEnded(device) => {
                if let Ok(mac) = device.parse::<Mac>() {
                    calls.change(|all| {
                        all.remove(&mac);
                    });
                }
            }
            _ => {}
        }
    }

    /// Reads no more from the earlier processes.
    pub(super) fn ignore_predecessors(&mut self) {
        for (_, channel) in &self.upgrades.predecessors {
            let _ = self.io.registry.deregister(&mut SourceFd(&channel.as_fd().as_raw_fd()));
        }
    }

    pub(super) fn forget_predecessors(&mut self) {
        self.upgrades.predecessors.clear();
        self.upgrades.calls_elsewhere.change(HashMap::clear);
    }

    /// An earlier process reports, or has ended.
    pub(super) fn on_predecessor_readable(&mut self, generation: u32) {
        let Some(at) = self.upgrades.predecessors.iter().position(|(of, _)| *of == generation) else {
            return;
        };
        loop {
            let (_, channel) = &self.upgrades.predecessors[at];
            match channel.try_receive() {
                Ok((message, _)) => self.on_report(generation, message),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        let (_, channel) = self.upgrades.predecessors.swap_remove(at);
        let _ = self.io.registry.deregister(&mut SourceFd(&channel.as_fd().as_raw_fd()));
        self.upgrades.calls_elsewhere.change(|all| all.retain(|_, of| *of != generation));
        self.on_predecessor_ended(generation);
    }

    /// Takes the connection out of its session when its device has a call with an earlier process. False when it has none.
    pub(super) fn return_to_predecessor(&mut self, id: SessionId, client_id: &str, bytes: &[u8]) -> bool {
        if self.upgrades.calls_elsewhere.is_empty() {
            return false;
        }
        let Ok(client_id) = ClientId::parse(client_id) else { return false };
        let Some(generation) = self.upgrades.calls_elsewhere.generation_of(client_id.mac()) else {
            return false;
        };
        let can_be_passed_on =
            |connection: &MqttConnection| connection.transport.is_plain() && bytes.len() <= MAX_BYTES;
        let Some((ip, connection)) = self.take_connection(id, can_be_passed_on) else { return false };
        let port = connection.peer_port;
        let Some(mut tcp) = connection.transport.into_plain_tcp() else { return true };
        if self.io.registry.deregister(&mut tcp).is_err() {
            return true;
        }
        let bytes = bytes.to_vec();
        let device = ReturningDevice { generation, tcp: tcp.into(), ip, port, bytes };
        self.at_leader(move |leader| leader.pass_back(&device));
        true
    }

    /// If it cannot be passed on, the connection is closed, and the device tries again.
    fn pass_back(&mut self, device: &ReturningDevice) {
        let ReturningDevice { generation, tcp, ip, port, bytes } = device;
        let predecessor = self.upgrades.predecessors.iter().find(|(of, _)| of == generation);
        let Some((_, channel)) = predecessor else { return };
        let message = Message::Connection { ip: *ip, port: *port, bytes: BASE64.encode(bytes) };
        match channel.try_send(&message, Some(tcp.as_fd())) {
            Ok(()) => info!(
                "[{ip}] the device comes back to a call of the process before, which gets its connection"
            ),
            Err(error) => debug!("[{ip}] the connection is not passed on: {error}"),
        }
    }
}

// A process that was replaced.
impl Gateway {
    /// Watches the channel on which the process that serves now passes connections on.
    pub(super) fn await_returning_devices(&mut self) {
        let Some((channel, _)) = &self.upgrades.own else { return };
        let token = token::fixed(OWN_CHANNEL);
        let _ =
            self.io.registry.register(&mut SourceFd(&channel.as_fd().as_raw_fd()), token, Interest::READABLE);
        self.on_own_channel_readable();
    }

    pub(super) fn on_own_channel_readable(&mut self) {
        let Some((channel, _)) = &self.upgrades.own else { return };
        let channel = channel.clone();
        while let Ok((message, mut descriptors)) = channel.try_receive() {
            match message {
                Message::ReportCalls => {
                    let report = Arc::new(Report(channel.clone()));
                    self.at_all_workers(move |worker| worker.report_calls(&report));
                }
                Message::Connection { ip, port, bytes } => {
                    let (Some(tcp), Ok(bytes)) = (descriptors.pop(), BASE64.decode(bytes.as_bytes())) else {
                        continue;
                    };
                    let tcp = TcpStream::from_std(tcp.into());
                    let connection = MqttConnection::new(Transport::new(tcp, false, false), port);
                    self.accept_hand_off(HandOff { connection, ip, bytes });
                }
                _ => {}
            }
        }
    }

    /// Reports the devices that have a call with this worker, now and from now on.
    fn report_calls(&mut self, report: &Report) {
        let Report(channel) = report;
        let with_call = self.sessions.iter_mut().filter(|session| session.core.has_call());
        let macs = with_call.filter_map(|session| Some(session.core.client_id()?.mac().to_string()));
        let macs: Vec<String> = macs.collect();
        for some in macs.chunks(DEVICES_PER_MESSAGE) {
            // What does not fit is a device that cannot come back to its call.
            let _ = channel.try_send(&Message::CallsHere(some.to_vec()), None);
        }
        self.upgrades.reports_to = Some(channel.clone());
    }

    pub(super) fn report_call_started(&self, mac: Mac) {
        if let Some(channel) = &self.upgrades.reports_to {
            let _ = channel.try_send(&Message::CallsHere(vec![mac.to_string()]), None);
        }
    }

    pub(super) fn report_call_ended(&self, mac: Mac) {
        if let Some(channel) = &self.upgrades.reports_to {
            let _ = channel.try_send(&Message::CallEnded(mac.to_string()), None);
        }
    }
}
