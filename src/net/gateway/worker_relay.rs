//! Passes messages and audio of calls between devices to the other workers: one batch per worker and iteration.
//!
//! Messages are never dropped, and there are few: a worker that takes nothing gets no new calls. Audio on its way to a worker is
//! limited by [`RelayBatch::push_audio`], so that a worker that takes nothing costs little memory.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use log::{info, warn};

use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::gateway::Gateway;
use crate::net::gateway::cluster::ClusterPart;
use crate::net::gateway::handle::Command;
use crate::net::gateway::workers::Workers;
use crate::proto::identity::Mac;
use crate::session::{DropReason, FarEnd, Place, RelayBatch, RelayId, RelayMessage, Relayed};

/// How often it is checked that the workers take what they are sent, while devices talk to devices of theirs.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// After so many checks in a row that found nothing taken, the calls with a worker's devices end. Checks are counted, not seconds,
/// since all workers stand still when the process does.
const STALLED_CHECKS: u32 = 5;

/// Between which places the items of a batch pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From a device of the sender to one of the receiver.
    Between,
    /// To a device of this gateway, to which the receiver, the leader, sends them.
    ToGateway(u64),
    /// From a device of this gateway, from which the sender, the leader, has received them.
    #[cfg(feature = "cluster")]
    FromGateway(u64),
}

/// What two workers share about what one sends to the other.
#[derive(Debug, Default)]
pub(crate) struct LinkCounters {
    /// The audio on its way, as [`RelayBatch::audio_bytes`] counts it.
    audio_bytes: AtomicUsize,
    /// How many batches were taken.
    taken: AtomicUsize,
}

/// The way to every worker.
#[derive(Default)]
pub(crate) struct Relay {
    index: usize,
    /// By worker; empty when there is only one.
    links: Vec<Link>,
    /// From each worker, in turn, to each one.
    counters: Arc<[LinkCounters]>,
    /// The timer for the next check is armed.
    armed: bool,
}

/// The way to one worker.
#[derive(Default)]
struct Link {
    /// One for each way with items.
    batches: BTreeMap<Way, RelayBatch>,
    /// Batches sent.
    sent: usize,
    /// Batches taken when last checked.
    taken: usize,
    /// How many checks in a row have found that nothing was taken.
    stalled_checks: u32,
    /// The worker does not respond, or has ended.
    lost: bool,
}

impl Relay {
    pub(crate) fn new(index: usize, counters: Arc<[LinkCounters]>) -> Self {
        let workers = counters.len().isqrt();
        Self { index, links: (0..workers).map(|_| Link::default()).collect(), counters, armed: false }
    }

    /// Counters for so many workers.
    pub(crate) fn counters(workers: usize) -> Arc<[LinkCounters]> {
        (0..workers * workers).map(|_| LinkCounters::default()).collect()
    }

    fn link_counters(&self, from: usize, to: usize) -> Option<&LinkCounters> {
        self.counters.get(from * self.links.len() + to)
    }

    /// Sends a message to a worker at the end of the iteration.
    pub(crate) fn send(&mut self, worker: usize, way: Way, message: RelayMessage, io: &mut Io) {
        if let Some(link) = self.links.get_mut(worker) {
            link.batches.entry(way).or_default().push_message(message);
        }
        if !mem::replace(&mut self.armed, true) {
            io.timers.arm(io.now + CHECK_INTERVAL, TimerKind::Relay);
        }
    }

    /// Sends an Opus packet to a worker at the end of the iteration.
    ///
    /// # Errors
    /// [`DropReason::RelayFull`] when the worker has not taken enough of what it was sent.
    pub(crate) fn send_audio(
        &mut self,
        worker: usize,
        way: Way,
        (call, to): (RelayId, Mac),
        opus: &[u8],
    ) -> Result<(), DropReason> {
        let on_their_way = self.link_counters(self.index, worker).map(|link| link.audio_bytes.load(Relaxed));
        let link = self.links.get_mut(worker).ok_or(DropReason::NoPeer)?;
        let other_ways = link.batches.iter().filter(|(other, _)| **other != way);
        let others: usize = other_ways.map(|(_, batch)| batch.audio_bytes()).sum();
        let batch = link.batches.entry(way).or_default();
        match batch.push_audio(call, to, opus, on_their_way.unwrap_or_default() + others) {
            true => Ok(()),
            false => Err(DropReason::RelayFull),
        }
    }

    /// Sends what is ready. Returns the workers that have ended, and cannot be sent anything.
    fn flush(&mut self, workers: &Workers, io: &mut Io) -> Vec<usize> {
        let mut ended = Vec::new();
        for worker in 0..self.links.len() {
            let mut has_ended = false;
            for (way, batch) in mem::take(&mut self.links[worker].batches) {
                has_ended |= !self.send_batch(worker, way, batch, workers, io);
            }
            if has_ended {
                ended.push(worker);
            }
        }
        ended
    }

    /// False when the worker has ended.
    fn send_batch(
        &mut self,
        worker: usize,
        way: Way,
        batch: RelayBatch,
        workers: &Workers,
        io: &mut Io,
    ) -> bool {
        self.links[worker].sent += 1;
        if let Some(counters) = self.counters.get(self.index * self.links.len() + worker) {
            counters.audio_bytes.fetch_add(batch.audio_bytes(), Relaxed);
        }
        io.metrics.relay_batches += 1;
        io.metrics.relay_packets += batch.audio_packets() as u64;
        let command = Command::Relay { from: self.index, way, batch: Box::new(batch) };
        let sent = workers.send(worker, command);
        self.links[worker].lost |= !sent;
        sent
    }

    /// This worker has taken a batch.
    fn on_taken(&self, from: usize, batch: &RelayBatch) {
        if let Some(link) = self.link_counters(from, self.index) {
            link.audio_bytes.fetch_sub(batch.audio_bytes(), Relaxed);
            link.taken.fetch_add(1, Relaxed);
        }
    }

    /// Whether the worker has taken all that it was sent.
    fn is_up_to_date(&self, worker: usize) -> bool {
        let taken = self.link_counters(self.index, worker).map_or(0, |link| link.taken.load(Relaxed));
        self.links.get(worker).is_none_or(|link| link.sent == taken)
    }

    /// Whether the worker does not respond, or has ended.
    pub(crate) fn is_lost(&mut self, worker: usize) -> bool {
        if self.is_up_to_date(worker)
            && let Some(link) = self.links.get_mut(worker).filter(|link| link.lost)
        {
            info!("worker {worker} takes calls between devices again");
            (link.lost, link.stalled_checks) = (false, 0);
        }
        self.links.get(worker).is_some_and(|link| link.lost)
    }

    /// Whether the worker has taken nothing for too long, or has ended. One that has taken all is sent an empty batch, which it must
    /// have taken by the next check.
    fn check(&mut self, worker: usize, workers: &Workers, io: &mut Io) -> bool {
        if self.is_up_to_date(worker) {
            self.links[worker].stalled_checks = 0;
            return !self.send_batch(worker, Way::Between, RelayBatch::default(), workers, io);
        }
        let taken = self.link_counters(self.index, worker).map_or(0, |link| link.taken.load(Relaxed));
        let link = &mut self.links[worker];
        let advances = taken != mem::replace(&mut link.taken, taken);
        link.stalled_checks = if advances { 0 } else { link.stalled_checks + 1 };
        link.lost |= link.stalled_checks >= STALLED_CHECKS;
        link.lost
    }
}

/// The way for audio to devices of other places.
pub(crate) struct AudioRelay<'a> {
    pub(crate) relay: &'a mut Relay,
    pub(crate) cluster: &'a mut ClusterPart,
    pub(crate) workers: &'a Workers,
    pub(crate) io: &'a Io,
}

impl AudioRelay<'_> {
    /// Sends an Opus packet to the place of the device that it is for.
    ///
    /// # Errors
    /// [`DropReason::RelayFull`] when the place has not taken enough of what it was sent.
    pub(crate) fn send(&mut self, to: FarEnd, opus: &[u8]) -> Result<(), DropReason> {
        let (worker, way) = match to.place {
            Place::Here => return Err(DropReason::NoPeer),
            Place::Worker(worker) => (worker, Way::Between),
            Place::Gateway(gateway) if self.workers.is_leader() => {
                return self.cluster.send_call_audio(gateway, to.call, to.mac, opus, self.io);
            }
            Place::Gateway(gateway) => (0, Way::ToGateway(gateway)),
        };
        self.relay.send_audio(worker, way, (to.call, to.mac), opus)
    }
}

impl Gateway {
    /// Sends what this iteration has for other workers. Whether one of them has ended.
    pub(super) fn flush_relay(&mut self) -> bool {
        let ended = self.relay.flush(&self.workers, &mut self.io);
        ended.iter().for_each(|worker| self.on_worker_lost(*worker));
        !ended.is_empty()
    }

    /// Takes what another worker has sent.
    pub(super) fn on_relay(&mut self, from: usize, way: Way, batch: RelayBatch) {
        self.relay.on_taken(from, &batch);
        let from = match way {
            Way::Between => Place::Worker(from),
            #[cfg(feature = "cluster")]
            Way::FromGateway(gateway) => Place::Gateway(gateway),
            Way::ToGateway(gateway) => return self.pass_batch_on(gateway, batch),
        };
        batch.take_all(|item| match item {
            Relayed::Message(message) => self.on_relay_message(from, message),
            Relayed::Audio(call, _, opus) => self.on_relayed_audio(from, call, opus),
        });
    }

    /// Passes on what another worker has for devices of another gateway.
    fn pass_batch_on(&mut self, gateway: u64, batch: RelayBatch) {
        batch.take_all(|item| match item {
            Relayed::Message(message) => self.send_relay_message(Place::Gateway(gateway), message),
            Relayed::Audio(call, to, opus) => {
                if let Err(reason) = self.cluster.send_call_audio(gateway, call, to, opus, &self.io) {
                    self.io.metrics.discarded(reason);
                }
            }
        });
    }

    /// Sends a message to the place of the device that it is for.
    pub(super) fn send_relay_message(&mut self, place: Place, message: RelayMessage) {
        let (worker, way) = match place {
            Place::Here => return self.on_relay_message(Place::Here, message),
            Place::Worker(worker) => (worker, Way::Between),
            Place::Gateway(gateway) if self.workers.is_leader() => {
                return self.send_call_message(gateway, &message);
            }
            Place::Gateway(gateway) => (0, Way::ToGateway(gateway)),
        };
        self.relay.send(worker, way, message, &mut self.io);
    }

    /// Looks after the workers with whose devices devices of this one talk.
    pub(super) fn on_relay_timer(&mut self) {
        let mut goes_on = false;
        for worker in 0..self.relay.links.len() {
            if !self.relay.is_lost(worker) && !self.has_calls_with(worker) {
                continue;
            }
            goes_on = true;
            if self.relay.check(worker, &self.workers, &mut self.io) {
                self.on_worker_lost(worker);
            }
        }
        self.relay.armed = goes_on;
        if goes_on {
            self.io.timers.arm(self.io.now + CHECK_INTERVAL, TimerKind::Relay);
        }
    }

    fn on_worker_lost(&mut self, worker: usize) {
        if self.has_calls_with(worker) {
            warn!("worker {worker} does not respond: the calls with its devices end");
            self.end_calls_with(worker);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::Receiver;

    use mio::{Poll, Token, Waker};

    use super::*;
    use crate::net::gateway::handle::Handle;
    use crate::session::{EndReason, RelayBody};

    /// The ways of worker 0 to worker 1 and back, without their loops.
    struct TwoWorkers {
        workers: Workers,
        /// Of worker 0 and of worker 1.
        relays: [Relay; 2],
        /// What worker 1 is sent. None when it has ended.
        received: Option<Receiver<Command>>,
        io: Io,
        _poll: Poll,
    }

    impl TwoWorkers {
        fn new() -> Self {
            let poll = Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
            let (own, _) = Handle::new(waker.clone());
            let (other, received) = Handle::new(waker);
            let counters = Relay::counters(2);
            Self {
                workers: Workers::for_test(0, vec![own, other]),
                relays: [0, 1].map(|index| Relay::new(index, counters.clone())),
                received: Some(received),
                io: Io::for_test(),
                _poll: poll,
            }
        }

        fn flush(&mut self) -> Vec<usize> {
            self.relays[0].flush(&self.workers, &mut self.io)
        }

        /// Worker 1 takes the oldest batch that it was sent. Returns what is in it.
        fn take(&mut self) -> Option<Vec<String>> {
            let Ok(Command::Relay { from: 0, batch, .. }) = self.received.as_ref()?.try_recv() else {
                return None;
            };
            self.relays[1].on_taken(0, &batch);
            let mut items = Vec::new();
            batch.take_all(|item| {
                items.push(match item {
                    Relayed::Message(message) => format!("message {}", message.call.number),
                    Relayed::Audio(call, _, opus) => format!("audio {} {}", call.number, opus.len()),
                });
            });
            Some(items)
        }

        fn message(&mut self, number: u64) {
            let [from, to] = [1, 2].map(|n| Mac::from([2, 0, 0, 0, 0, n]));
            let body = RelayBody::End(EndReason::PeerLeft);
            self.relays[0].send(
                1,
                Way::Between,
                RelayMessage { call: call(number), from, to, body },
                &mut self.io,
            );
        }

        fn check(&mut self) -> bool {
            self.relays[0].check(1, &self.workers, &mut self.io)
        }
    }

    fn call(number: u64) -> RelayId {
        RelayId { caller: Mac::from([2, 0, 0, 0, 0, 1]), number }
    }

    /// A call and its target.
    fn target(number: u64) -> (RelayId, Mac) {
        (call(number), Mac::from([2, 0, 0, 0, 0, 2]))
    }

    #[test]
    fn an_iteration_sends_one_batch_in_order() {
        let mut two = TwoWorkers::new();
        assert_eq!(two.flush(), [0_usize; 0]);
        assert_eq!(two.take(), None, "nothing is sent without need");
        for number in [1, 2, 1] {
            two.relays[0].send_audio(1, Way::Between, target(number), &[7; 100]).unwrap();
        }
        two.message(2);
        two.relays[0].send_audio(1, Way::Between, target(1), &[7; 50]).unwrap();
        assert_eq!(two.flush(), [0_usize; 0]);
        let expected = ["audio 1 100", "audio 2 100", "audio 1 100", "message 2", "audio 1 50"];
        assert_eq!(two.take(), Some(expected.map(str::to_owned).into()));
        assert_eq!(two.take(), None);
        assert_eq!((two.io.metrics.relay_batches, two.io.metrics.relay_packets), (1, 4));
        assert_eq!(two.relays[0].send_audio(7, Way::Between, target(1), &[7]), Err(DropReason::NoPeer));
    }

    #[test]
    fn audio_is_dropped_while_the_worker_takes_nothing_and_messages_never() {
        let mut two = TwoWorkers::new();
        let mut accepted = 0;
        while two.relays[0].send_audio(1, Way::Between, target(1), &[7; 1000]).is_ok() {
            accepted += 1;
            if accepted % 10 == 0 {
                two.flush();
            }
        }
        assert!((100..=262).contains(&accepted), "{accepted}");
        (0..1000).for_each(|number| two.message(number));
        two.flush();
        assert_eq!(
            two.relays[0].send_audio(1, Way::Between, target(1), &[7; 1000]),
            Err(DropReason::RelayFull)
        );
        let (mut audio, mut messages) = (0, 0);
        while let Some(items) = two.take() {
            audio += items.iter().filter(|item| item.starts_with("audio")).count();
            messages += items.iter().filter(|item| item.starts_with("message")).count();
        }
        assert_eq!((audio, messages), (accepted, 1000));
        assert_eq!(
            two.relays[0].send_audio(1, Way::Between, target(1), &[7; 1000]),
            Ok(()),
            "it has taken all"
        );
    }

    #[test]
    fn a_worker_that_takes_nothing_is_lost_after_five_checks_and_back_when_it_has_taken_all() {
        let mut two = TwoWorkers::new();
        // The first check sends an empty batch, which the next one looks for.
        for _ in 0..3 {
            assert!(!two.check());
            assert_eq!(two.take(), Some(Vec::new()));
        }
        two.message(1);
        two.flush();
        let lost: Vec<bool> = (0..6).map(|_| two.check()).collect();
        assert_eq!(lost.iter().position(|lost| *lost), Some(5), "the first sees what was taken before");
        assert!(two.relays[0].is_lost(1));
        two.message(2);
        two.flush();
        assert_eq!(two.take(), Some(vec!["message 1".to_owned()]));
        assert!(two.relays[0].is_lost(1), "it has not taken all");
        assert_eq!(two.take(), Some(vec!["message 2".to_owned()]));
        assert!(!two.relays[0].is_lost(1) && !two.check());
    }

    #[test]
    fn a_slow_worker_is_not_lost() {
        let mut two = TwoWorkers::new();
        for number in 0..20 {
            two.message(number);
            two.flush();
        }
        for _ in 0..20 {
            assert!(!two.check());
            assert!(two.take().is_some());
        }
    }

    #[test]
    fn a_worker_that_has_ended_is_lost_at_once() {
        let mut two = TwoWorkers::new();
        two.received = None;
        two.message(1);
        assert_eq!(two.flush(), [1]);
        assert!(two.relays[0].is_lost(1));
    }
}
