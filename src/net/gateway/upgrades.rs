//! Upgrade in place: starts the program that replaces this one, hands over to it, and lets this one finish its calls.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use log::{error, info};
use socket2::{SockRef, Socket};

use crate::net::event_loop::inherited::InheritedListener;
use crate::net::gateway::Gateway;
use crate::net::gateway::devices_after_upgrade::CallsElsewhere;
use crate::net::gateway::handle::{Handle, Program};
use crate::net::media::steering::{self, GENERATIONS, SharedPort, Steering};
use crate::net::upgrade::Predecessor;
use crate::net::upgrade::channel::{Channel, Offer, OfferedListener};
use crate::net::upgrade::successor::Successor;

/// How long a worker may take for one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The sockets of one worker.
pub(crate) struct WorkerShare {
    worker: usize,
    audio: Socket,
    listeners: Vec<InheritedListener>,
}

/// What the leader knows about the processes before and after this one.
#[derive(Default)]
pub(crate) struct Upgrades {
    /// None where sockets cannot be selected by ssrc.
    port: Option<SharedPort>,
    /// The earlier processes that have calls: their generation, and a channel that ends with them.
    pub(super) predecessors: Vec<(u32, Channel)>,
    /// The sockets of the UDP port that the earlier processes had, when this one has another port: open until those have ended.
    earlier_port: Vec<Socket>,
    /// The devices that have a call with one of them.
    pub(super) calls_elsewhere: Arc<CallsElsewhere>,
    /// The channel that ends with this process: this end, and the one that its successors get.
    pub(super) own: Option<(Arc<Channel>, OwnedFd)>,
    /// Another process has replaced this one.
    is_replaced: bool,
    /// Where the process that serves now is told which devices have a call here; set when it has asked.
    pub(super) reports_to: Option<Arc<Channel>>,
    in_progress: bool,
    /// No connections are accepted, since the successor may begin to.
    paused: bool,
}

/// What the thread of an upgrade works with.
struct Plan {
    program: Program,
    old: Steering,
    new: Steering,
    configured: SocketAddr,
    others: BTreeMap<u32, Socket>,
    predecessors: Vec<(u32, OwnedFd)>,
    leader: Handle,
    workers: Vec<Handle>,
}

impl Upgrades {
    pub(crate) fn new(port: Option<SharedPort>) -> Self {
        Self { port, ..Self::default() }
    }

    pub(crate) fn with_predecessors(self, predecessors: Vec<(u32, OwnedFd)>) -> Self {
        let predecessors = predecessors.into_iter().map(|(generation, end)| (generation, Channel::new(end)));
        Self { predecessors: predecessors.collect(), ..self }
    }

    /// Keeps the sockets of another UDP port, which the earlier processes use.
    pub(crate) fn with_earlier_port(self, sockets: Vec<Socket>) -> Self {
        Self { earlier_port: sockets, ..self }
    }

    /// Whether another process has replaced this one.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// That of another worker.
    pub(crate) fn of_worker(&self) -> Self {
        Self { calls_elsewhere: self.calls_elsewhere.clone(), ..Self::default() }
    }

    /// Opens the sockets that the port does not have yet, for later generations.
    fn complete_port(&mut self, bound: SocketAddr) -> Result<(), String> {
        let port = self.port.as_mut().ok_or("this system cannot select UDP sockets by ssrc")?;
        let Steering { workers, newest, .. } = port.steering;
        for place in 0..port.steering.places() {
            if !port.others.contains_key(&place) && place / workers != newest {
                let socket = steering::open_next(bound).map_err(|error| format!("UDP port: {error}"))?;
                port.others.insert(place, socket);
            }
        }
        Ok(())
    }

    /// What the thread of the upgrade needs.
    fn plan(
        &mut self,
        program: Program,
        bound: SocketAddr,
        leader: Handle,
        workers: Vec<Handle>,
    ) -> Result<Plan, String> {
        if !self.earlier_port.is_empty() {
            return Err(
                "a process still has calls on the earlier UDP port; try again when it has ended".to_owned()
            );
        }
        self.complete_port(bound)?;
        let port = self.port.as_ref().ok_or("there is no UDP port")?;
        let free = (0..GENERATIONS).find(|generation| !port.steering.alive[*generation as usize]);
        let newest = free.ok_or_else(|| {
            format!(
                "{GENERATIONS} processes have calls already, this one and {} that were replaced; try again when one of them has ended",
                GENERATIONS - 1
            )
        })?;
        let mut new = Steering { newest, ..port.steering };
        new.alive[newest as usize] = true;
        let descriptors = |error: io::Error| format!("descriptors: {error}");
        if self.own.is_none() {
            let (own, others) = Channel::pair().map_err(descriptors)?;
            self.own = Some((Arc::new(Channel::new(own)), others));
        }
        let own = self.own.as_ref().map(|(_, others)| (port.steering.newest, others.as_fd()));
        let all = self.predecessors.iter().map(|(generation, end)| (*generation, end.as_fd())).chain(own);
        let predecessors = all.map(|(generation, end)| Ok((generation, end.try_clone_to_owned()?)));
        let others = port.others.iter().map(|(place, socket)| Ok((*place, socket.try_clone()?)));
        Ok(Plan {
            program,
            old: port.steering,
            new,
            configured: port.configured,
            others: others.collect::<io::Result<_>>().map_err(descriptors)?,
            predecessors: predecessors.collect::<io::Result<_>>().map_err(descriptors)?,
            leader,
            workers,
        })
    }
}

impl Plan {
    /// Leads the upgrade, on a thread of its own, which then waits for the end of the other process.
    fn run(mut self) {
        match self.hand_over() {
            Err(why) => self.leader.run(move |leader| leader.on_upgrade_failed(&why)),
            Ok(mut successor) => {
                let (told, all_told) = mpsc::channel();
                let pid = successor.pid();
                self.leader.run(move |leader| {
                    leader.on_replaced(pid);
                    let _ = told.send(());
                });
                // systemd believes the successor only after this process has named it.
                let _ = all_told.recv_timeout(STEP_TIMEOUT);
                successor.release();
                // The descriptors that were only to be sent.
                drop(self);
                if let Ok(status) = successor.wait()
                    && !status.success()
                {
                    error!("the process that replaced this one, {}, has failed: {status}", successor.pid());
                }
            }
        }
    }

    fn hand_over(&mut self) -> Result<Successor, String> {
        let shares = self.ask_workers(Gateway::share_sockets)?;
        let shares = shares.into_iter().collect::<io::Result<Vec<_>>>();
        let shares = shares.map_err(|error| format!("descriptors: {error}"))?;
        let mut successor = self.start(&shares)?;
        drop(shares);
        successor.wait_until_ready()?;
        self.ask_workers(Gateway::pause_accepting)?;
        successor.let_serve()?;
        Ok(successor)
    }

    fn start(&self, shares: &[WorkerShare]) -> Result<Successor, String> {
        let place = |worker| self.old.share(worker).place;
        let own = shares.iter().map(|share| (place(share.worker), &share.audio));
        let audio: BTreeMap<u32, &Socket> =
            own.chain(self.others.iter().map(|(n, socket)| (*n, socket))).collect();
        let mut sockets: Vec<BorrowedFd<'_>> = audio.values().map(|socket| socket.as_fd()).collect();
        let mut listeners = Vec::new();
        for share in shares {
            for listener in &share.listeners {
                let (purpose, addr) = (listener.purpose, listener.addr);
                listeners.push(OfferedListener { worker: share.worker, purpose, addr });
                sockets.push(listener.socket.as_fd());
            }
        }
        sockets.extend(self.predecessors.iter().map(|(_, end)| end.as_fd()));
        let predecessors = self.predecessors.iter().map(|(generation, _)| *generation).collect();
        let offer = Offer { udp: self.configured, steering: self.new, listeners, predecessors };
        Successor::start(&self.program.path, &self.program.args, offer, &sockets)
    }

    /// Has every worker take a step, and waits for all.
    fn ask_workers<T: Send + 'static>(&self, step: fn(&mut Gateway) -> T) -> Result<Vec<T>, String> {
        let ask = |worker: &Handle| {
            let (sender, receiver) = mpsc::channel();
            worker.run(move |worker| _ = sender.send(step(worker)));
            receiver
        };
        let asked: Vec<Receiver<T>> = self.workers.iter().map(ask).collect();
        asked
            .into_iter()
            .map(|receiver| {
                receiver.recv_timeout(STEP_TIMEOUT).map_err(|_| "a worker does not respond".to_owned())
            })
            .collect()
    }
}

impl Gateway {
    /// Starts this program in the place of this one.
    pub(super) fn upgrade(&mut self, program: Program) {
        if let Err(why) = self.start_upgrade(program) {
            error!("the upgrade is refused: {why}");
        }
    }

    fn start_upgrade(&mut self, program: Program) -> Result<(), String> {
        if !self.lifecycle.is_serving() {
            return Err(format!("the gateway is {}", self.lifecycle.phase().label()));
        }
        if self.upgrades.in_progress {
            return Err("one is in progress".to_owned());
        }
        let workers = match self.workers.handles() {
            [] => vec![self.handle()],
            all => all.to_vec(),
        };
        let plan = self.upgrades.plan(program, self.addresses.udp, self.handle(), workers)?;
        info!("upgrade: starting {}", plan.program.path.display());
        let spawned = thread::Builder::new().name("upgrade".to_owned()).spawn(|| plan.run());
        spawned.map_err(|error| format!("its thread cannot be started: {error}"))?;
        self.upgrades.in_progress = true;
        Ok(())
    }

    fn share_sockets(&mut self) -> io::Result<WorkerShare> {
        let config = &self.io.config;
        let mut listeners = self.mqtt.share(config)?;
        listeners.extend(self.admin.share(config)?);
        listeners.extend(self.ota.share(config)?);
        let audio = SockRef::from(&*self.audio.socket.source()).try_clone()?;
        Ok(WorkerShare { worker: self.workers.index(), audio, listeners })
    }

    fn pause_accepting(&mut self) {
        self.upgrades.paused = true;
        self.mqtt.pause(&self.io.registry);
        self.admin.pause(&self.io.registry);
        self.ota.pause(&self.io.registry);
        // Their answers are for the successor from now on.
        self.ignore_predecessors();
    }

    fn on_upgrade_failed(&mut self, why: &str) {
        error!("the upgrade failed, this process goes on: {why}");
        self.upgrades.in_progress = false;
        self.resume_after_upgrade();
        self.workers.broadcast(Self::resume_after_upgrade);
    }

    fn resume_after_upgrade(&mut self) {
        if !std::mem::take(&mut self.upgrades.paused) || !self.lifecycle.is_serving() {
            return;
        }
        let Self { mqtt, admin, ota, io, .. } = self;
        let registry = &io.registry;
        if let Err(error) = mqtt
            .register(registry)
            .and_then(|()| admin.register(registry))
            .and_then(|()| ota.register(registry))
        {
            error!("connections are not accepted any more: {error}");
        }
        mqtt.resume(io);
        if self.workers.is_leader()
            && let Err(error) = self.ask_predecessors()
        {
            error!("devices cannot come back to calls of earlier processes: {error}");
        }
        // The successor may have changed that.
        if let Err(error) = self.steer() {
            error!("audio is not received any more: {error}");
        }
    }

    /// The other process serves now.
    fn on_replaced(&mut self, successor: u32) {
        self.upgrades.in_progress = false;
        info!("upgraded: process {successor} serves now; {} calls to finish here", self.all_calls());
        // Only the process that it watches now may name another one.
        self.sd_notify.set_main_process(successor);
        self.sd_notify = super::sd_notify::SdNotify::default();
        // All sockets of the UDP port stay open, since the system numbers them anew when one closes.
        self.forget_predecessors();
        self.await_returning_devices();
        self.resign_from_cluster();
        self.admin.retire();
        self.at_all_workers(Self::retire);
    }

    fn retire(&mut self) {
        self.upgrades.is_replaced = true;
        self.let_devices_go();
    }

    /// A predecessor has ended: what has the ssrcs of its calls comes here now.
    pub(super) fn on_predecessor_ended(&mut self, generation: u32) {
        if !self.upgrades.earlier_port.is_empty() {
            if self.upgrades.predecessors.is_empty() {
                self.upgrades.earlier_port.clear();
            }
        } else if let Some(port) = &mut self.upgrades.port {
            port.steering.alive[generation as usize] = false;
            if let Err(error) = self.steer() {
                error!("datagrams of calls that have ended are not received: {error}");
            }
        }
        info!("upgrade: a process that was replaced has finished its calls");
    }

    /// Has datagrams without a call come to this process.
    fn steer(&mut self) -> io::Result<()> {
        let Some(port) = &self.upgrades.port else { return Ok(()) };
        port.steering.attach(self.audio.socket.source())
    }

    /// Waits until the process that this one replaces accepts no connections any more; call [`Gateway::begin_to_serve`]
    /// then.
    ///
    /// # Errors
    /// The other process does not answer, or the system refuses to change which socket gets a datagram.
    pub fn replace(&mut self, predecessor: &Predecessor) -> io::Result<()> {
        predecessor.wait_to_serve()?;
        self.steer()?;
        // Not before, since the other process had the name of this gateway.
        self.start_cluster()?;
        self.ask_predecessors()
    }

    /// Tells the process that this one replaces that nothing can fail here any more, and waits until it and the earlier ones have
    /// reported which devices have a call with them; call [`Gateway::run`] then.
    pub fn begin_to_serve(&self, predecessor: &Predecessor) {
        predecessor.report_serving();
        self.await_reports();
    }
}
