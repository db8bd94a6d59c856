//! Resolves host names on threads of its own.
//!
//! Only getaddrinfo(3) knows the hosts file and the search domains, and it always blocks, so two threads call it. Concurrent
//! lookups of the same host are merged. The threads start when they are first needed, and end after the [`Resolver`] was
//! dropped and the lookup in progress has returned.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;

const THREADS_MAX: usize = 2;
const STACK_SIZE: usize = 256 << 10;
const POSITIVE_TTL: Duration = Duration::from_secs(60);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// Resolves host names, and caches the answers: addresses for 60 s, failures for 5 s.
pub(crate) struct Resolver {
    jobs: Sender<String>,
    answers: Receiver<(String, Answer)>,
    worker: Worker,
    threads: usize,
    cache: HashMap<String, Cached>,
    /// The hosts being looked up, and the lookups that wait for each.
    in_flight: HashMap<String, Vec<Waiter>>,
}

/// The addresses of a host, at least one; or why there are none, as text.
pub(crate) type Answer = Result<Vec<SocketAddr>, String>;

struct Cached {
    until: Instant,
    /// The ports are those of whoever asked first; each lookup sets its own.
    answer: Answer,
}

struct Waiter {
    id: u64,
    port: u16,
}

/// What a thread needs.
#[derive(Clone)]
struct Worker {
    /// Locked by the thread that waits for a job. The event loop never locks it.
    jobs: Arc<Mutex<Receiver<String>>>,
    answers: Sender<(String, Answer)>,
    waker: Arc<Waker>,
    resolve: Arc<Resolve>,
}

type Resolve = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

impl Resolver {
    /// A resolver that asks the system, and wakes `waker` after every answer.
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self::with(waker, |host| Ok((host, 0).to_socket_addrs()?.collect()))
    }

    /// A resolver that asks `resolve`, which may block.
    pub(crate) fn with(
        waker: Arc<Waker>,
        resolve: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let (jobs, work) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        let work = Arc::new(Mutex::new(work));
        Self {
            jobs,
            answers,
            worker: Worker { jobs: work, answers: done, waker, resolve: Arc::new(resolve) },
            threads: 0,
            cache: HashMap::new(),
            in_flight: HashMap::new(),
        }
    }

    /// The addresses of `host`, each with `port`. IP addresses (also `[v6]`) and cached hosts are answered at once; with
    /// `skip_cache`, only failures are taken from the cache. `None`: [`take_finished`](Self::take_finished) will return
    /// the answer with this `id`.
    pub(crate) fn lookup(
        &mut self,
        host: &str,
        port: u16,
        id: u64,
        skip_cache: bool,
        now: Instant,
    ) -> Option<Answer> {
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Some(Ok(vec![SocketAddr::new(ip, port)]));
        }
        if let Some(cached) = self.cache.get(host)
            && now < cached.until
            && !(skip_cache && cached.answer.is_ok())
        {
            return Some(with_port(&cached.answer, port));
        }
        if let Some(waiting) = self.in_flight.get_mut(host) {
            waiting.push(Waiter { id, port });
            return None;
        }
        if let Err(error) = self.start_thread() {
            return Some(Err(format!("cannot resolve {host}: cannot start a thread: {error}")));
        }
        // It does not fail: `self.worker` has the receiver.
        let _ = self.jobs.send(host.to_owned());
        self.in_flight.insert(host.to_owned(), vec![Waiter { id, port }]);
        None
    }

    /// Appends the answers since the last call, each with the id of its lookup. To be called when the waker has fired.
    pub(crate) fn take_finished(&mut self, now: Instant, out: &mut Vec<(u64, Answer)>) {
        while let Ok((host, answer)) = self.answers.try_recv() {
            for Waiter { id, port } in self.in_flight.remove(&host).unwrap_or_default() {
                out.push((id, with_port(&answer, port)));
            }
            self.cache_answer(host, answer, now);
        }
    }

    /// Starts another thread if each has a lookup in progress. An error counts only if there is no thread at all.
    fn start_thread(&mut self) -> io::Result<()> {
        if self.threads == THREADS_MAX || self.threads > self.in_flight.len() {
            return Ok(());
        }
        let worker = self.worker.clone();
        let thread = thread::Builder::new().name("resolver".to_owned()).stack_size(STACK_SIZE);
        match thread.spawn(move || worker.run()) {
            Ok(_) => self.threads += 1,
            Err(error) if self.threads == 0 => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    fn cache_answer(&mut self, host: String, answer: Answer, now: Instant) {
        // The configuration names few hosts, but reloads may have replaced them.
        self.cache.retain(|_, cached| now < cached.until);
        let until = now + if answer.is_ok() { POSITIVE_TTL } else { NEGATIVE_TTL };
        self.cache.insert(host, Cached { until, answer });
    }
}

impl Worker {
    fn run(self) {
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(host) = job else { return };
            // After a panic the lookups still need an answer, and the next host needs this thread.
            let result = panic::catch_unwind(AssertUnwindSafe(|| (self.resolve)(&host)));
            let answer = match result.unwrap_or_else(|_| Err(io::Error::other("the lookup panicked"))) {
                Ok(addresses) if addresses.is_empty() => {
                    Err(format!("cannot resolve {host}: it has no address"))
                }
                Ok(addresses) => Ok(addresses),
                Err(error) => Err(format!("cannot resolve {host}: {error}")),
            };
            if self.answers.send((host, answer)).is_err() {
                return;
            }
            // It fails only when the poll was dropped, and then nobody waits.
            let _ = self.waker.wake();
        }
    }
}

fn with_port(answer: &Answer, port: u16) -> Answer {
    let mut answer = answer.clone();
    answer.iter_mut().flatten().for_each(|address| address.set_port(port));
    answer
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};

    type Answers = Vec<(u64, Answer)>;

    /// A resolver with a fake name service, which reports every query on `asked`, and delays names that begin with "slow"
    /// until a message on `slow`.
    struct Harness {
        poll: Poll,
        resolver: Resolver,
        asked: Receiver<String>,
        slow: Sender<()>,
        start: Instant,
    }

    impl Harness {
        fn new() -> Self {
            let poll = Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
            let (ask, asked) = mpsc::channel();
            let (slow, gate) = mpsc::channel();
            let gate = Mutex::new(gate);
            let resolver = Resolver::with(waker, move |host| {
                ask.send(host.to_owned()).unwrap();
                if host.starts_with("slow") {
                    let _ = gate.lock().unwrap().recv();
                }
                match host {
                    "none.test" => Ok(Vec::new()),
                    "bad.test" => Err(io::Error::other("no such name")),
                    "panic.test" => panic!("injected"),
                    _ => Ok(vec!["192.0.2.1:0".parse().unwrap(), "[2001:db8::1]:0".parse().unwrap()]),
                }
            });
            Self { poll, resolver, asked, slow, start: Instant::now() }
        }

        fn lookup(&mut self, host: &str, id: u64, at: u64) -> Option<Answer> {
            self.resolver.lookup(host, 80, id, false, self.start + Duration::from_secs(at))
        }

        fn lookup_uncached(&mut self, host: &str, id: u64, at: u64) -> Option<Answer> {
            self.resolver.lookup(host, 80, id, true, self.start + Duration::from_secs(at))
        }

        /// Waits for `count` answers.
        fn finished(&mut self, count: usize, at: u64) -> Answers {
            let (mut all, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
            while all.len() < count {
                assert!(Instant::now() < deadline, "{} of {count} answers arrived", all.len());
                self.poll.poll(&mut Events::with_capacity(8), Some(Duration::from_millis(100))).unwrap();
                self.resolver.take_finished(self.start + Duration::from_secs(at), &mut all);
            }
            all.sort_by_key(|(id, _)| *id);
            all
        }

        fn asked(&self) -> Vec<String> {
            self.asked.try_iter().collect()
        }
    }

    fn good(port: u16) -> Vec<SocketAddr> {
        vec![format!("192.0.2.1:{port}").parse().unwrap(), format!("[2001:db8::1]:{port}").parse().unwrap()]
    }

    #[test]
    fn literals_need_no_lookup() {
        let mut harness = Harness::new();
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
            ("[2001:db8::5]", "[2001:db8::5]:80"),
        ] {
            assert_eq!(harness.lookup(host, 1, 0), Some(Ok(vec![expected.parse().unwrap()])));
        }
        assert_eq!(harness.resolver.threads, 0, "no thread is needed");
    }

    #[test]
    fn concurrent_lookups_are_merged_and_each_has_its_port() {
        let mut harness = Harness::new();
        assert_eq!(harness.lookup("slow.test", 1, 0), None);
        assert_eq!(harness.lookup_uncached("slow.test", 2, 0), None);
        let now = harness.start;
        assert_eq!(harness.resolver.lookup("slow.test", 443, 3, false, now), None);
        harness.slow.send(()).unwrap();
        assert_eq!(harness.finished(3, 0), [(1, Ok(good(80))), (2, Ok(good(80))), (3, Ok(good(443)))]);
        assert_eq!(harness.asked(), ["slow.test"]);
        let mut more = Vec::new();
        harness.resolver.take_finished(harness.start, &mut more);
        assert_eq!(more, [], "each answer is returned once");
    }

    #[test]
    fn addresses_are_cached_for_a_minute_and_can_be_skipped() {
        let mut harness = Harness::new();
        assert_eq!(harness.lookup("a.test", 1, 0), None);
        harness.finished(1, 0);
        assert_eq!(harness.lookup("a.test", 2, 59), Some(Ok(good(80))));
        assert_eq!(harness.lookup_uncached("a.test", 3, 59), None);
        assert_eq!(harness.finished(1, 59), [(3, Ok(good(80)))]);
        assert_eq!(harness.lookup("a.test", 4, 118), Some(Ok(good(80))));
        assert_eq!(harness.lookup("a.test", 5, 119), None);
        harness.finished(1, 119);
        assert_eq!(harness.asked().len(), 3);
    }

    #[test]
    fn failures_are_cached_for_five_seconds_and_cannot_be_skipped() {
        for (host, why) in [("bad.test", "no such name"), ("none.test", "it has no address")] {
            let mut harness = Harness::new();
            let expected = format!("cannot resolve {host}: {why}");
            assert_eq!(harness.lookup(host, 1, 0), None);
            assert_eq!(harness.finished(1, 0), [(1, Err(expected.clone()))]);
            assert_eq!(harness.lookup(host, 2, 4), Some(Err(expected.clone())));
            assert_eq!(harness.lookup_uncached(host, 3, 4), Some(Err(expected)));
            assert_eq!(harness.lookup(host, 4, 5), None);
        }
    }

    #[test]
    fn a_lookup_that_panics_fails_and_its_thread_survives() {
        let mut harness = Harness::new();
        for round in 0..THREADS_MAX as u64 + 1 {
            assert_eq!(harness.lookup("panic.test", round, round * 5), None);
            let expected = "cannot resolve panic.test: the lookup panicked".to_owned();
            assert_eq!(harness.finished(1, round * 5), [(round, Err(expected))]);
        }
        assert_eq!(harness.lookup("a.test", 9, 0), None);
        assert_eq!(harness.finished(1, 0), [(9, Ok(good(80)))]);
    }

    #[test]
    fn a_name_that_hangs_does_not_delay_another() {
        let mut harness = Harness::new();
        assert_eq!(harness.lookup("slow.test", 1, 0), None);
        for n in 0..20 {
            assert_eq!(harness.lookup(&format!("{n}.test"), 100 + n, 0), None);
        }
        let all = harness.finished(20, 0);
        assert!(all.iter().all(|(id, answer)| *id >= 100 && *answer == Ok(good(80))));
        // The late answer is still returned and cached.
        harness.slow.send(()).unwrap();
        assert_eq!(harness.finished(1, 30), [(1, Ok(good(80)))]);
        assert_eq!(harness.lookup("slow.test", 2, 89), Some(Ok(good(80))));
    }

    #[test]
    fn expired_answers_are_removed_from_the_cache() {
        let mut harness = Harness::new();
        for n in 0..100 {
            harness.lookup(&format!("{n}.test"), n, 0);
            harness.finished(1, 0);
        }
        assert_eq!(harness.resolver.cache.len(), 100);
        harness.lookup("new.test", 1, 61);
        harness.finished(1, 61);
        assert_eq!(harness.resolver.cache.len(), 1);
    }

    #[test]
    fn the_threads_end_with_the_resolver() {
        let Harness { mut resolver, asked, slow, .. } = Harness::new();
        let now = Instant::now();
        resolver.lookup("slow.test", 80, 1, false, now);
        resolver.lookup("a.test", 80, 2, false, now);
        drop(resolver);
        drop(slow);
        // Each thread holds a sender, so the channel closes when the last one ends.
        let deadline = Duration::from_secs(60);
        while let Ok(_host) = asked.recv_timeout(deadline) {}
        assert_eq!(asked.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    #[test]
    fn localhost_is_resolved_by_the_system() {
        let mut harness = Harness::new();
        let waker = Arc::clone(&harness.resolver.worker.waker);
        harness.resolver = Resolver::new(waker);
        assert_eq!(harness.lookup("localhost", 1, 0), None);
        let all = harness.finished(1, 0);
        let addresses = all[0].1.as_ref().unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 80));
    }
}
