//! Host names to addresses, off the loop.
//!
//! getaddrinfo(3) blocks and cannot be made not to, so two threads do it: it alone knows the hosts file and the search
//! domains. A host is looked up once however many ask. The threads start with the first name that needs them, and end
//! when the [`Resolver`] is dropped and the lookup under way returns.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;

const THREADS: usize = 2;
const STACK: usize = 256 << 10;
const POSITIVE: Duration = Duration::from_secs(60);
const NEGATIVE: Duration = Duration::from_secs(5);

/// Looks names up and caches the answers: good ones for 60 s, failures for 5 s.
pub struct Resolver {
    jobs: Sender<String>,
    answers: Receiver<(String, Answer)>,
    worker: Worker,
    threads: usize,
    cache: HashMap<String, Cached>,
    /// Hosts being looked up, and who waits for each.
    in_flight: HashMap<String, Vec<Waiter>>,
}

/// What [`Resolver::lookup`] says at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The addresses, never none.
    Ready(Vec<SocketAddr>),
    /// Why there are none.
    Failed(String),
    /// The answer comes by [`Resolver::take_finished`].
    Pending,
}

/// Addresses (never none, their ports meaningless until someone asks for one), or why there are none.
type Answer = Result<Vec<SocketAddr>, String>;

struct Cached {
    until: Instant,
    answer: Answer,
}

struct Waiter {
    id: u64,
    port: u16,
}

/// What each thread needs.
#[derive(Clone)]
struct Worker {
    /// Locked by whichever thread waits for work; the loop never touches it.
    jobs: Arc<Mutex<Receiver<String>>>,
    answers: Sender<(String, Answer)>,
    waker: Arc<Waker>,
    resolve: Arc<Resolve>,
}

type Resolve = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

impl Resolver {
    /// A resolver that asks the system and calls `waker` for every answer.
    pub fn new(waker: Arc<Waker>) -> Self {
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

    /// The addresses of `host`, each with `port`. IP literals, also `[v6]`, are answered at once, and so is what the
    /// cache holds; `fresh` passes over its good answers. Otherwise the answer comes by
    /// [`take_finished`](Self::take_finished) under the ticket `who`, which means nothing to the resolver.
    pub fn lookup(&mut self, host: &str, port: u16, who: u64, fresh: bool, now: Instant) -> Lookup {
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Lookup::Ready(vec![SocketAddr::new(ip, port)]);
        }
        match self.cache.get(host) {
            Some(Cached { until, answer: Ok(addresses) }) if now < *until && !fresh => {
                return Lookup::Ready(with_port(addresses, port));
            }
            Some(Cached { until, answer: Err(why) }) if now < *until => return Lookup::Failed(why.clone()),
            _ => {}
        }
        if let Some(waiting) = self.in_flight.get_mut(host) {
            waiting.push(Waiter { id: who, port });
            return Lookup::Pending;
        }
        if let Err(error) = self.start_thread() {
            return Lookup::Failed(format!("cannot resolve {host}: no thread to do it: {error}"));
        }
        // The other end is in `self.worker`.
        let _ = self.jobs.send(host.to_owned());
        self.in_flight.insert(host.to_owned(), vec![Waiter { id: who, port }]);
        Lookup::Pending
    }

    /// Hands out every ticket whose answer has come since the last call. To be called when the waker has fired.
    pub fn take_finished(&mut self, now: Instant, out: &mut Vec<(u64, Result<Vec<SocketAddr>, String>)>) {
        while let Ok((host, answer)) = self.answers.try_recv() {
            for Waiter { id: who, port } in self.in_flight.remove(&host).unwrap_or_default() {
                out.push((who, answer.as_ref().map(|all| with_port(all, port)).map_err(String::clone)));
            }
            self.cache_answer(host, answer, now);
        }
    }

    /// Starts a thread more, up to as many as there are lookups under way. One is enough to go on with.
    fn start_thread(&mut self) -> io::Result<()> {
        if self.threads == THREADS || self.threads > self.in_flight.len() {
            return Ok(());
        }
        let worker = self.worker.clone();
        let thread = thread::Builder::new().name("resolver".to_owned()).stack_size(STACK);
        match thread.spawn(move || worker.run()) {
            Ok(_) => self.threads += 1,
            Err(error) if self.threads == 0 => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    fn cache_answer(&mut self, host: String, answer: Answer, now: Instant) {
        // Hosts come from the configuration, so there are few; a reload may have left some behind.
        self.cache.retain(|_, cached| now < cached.until);
        let until = now + if answer.is_ok() { POSITIVE } else { NEGATIVE };
        self.cache.insert(host, Cached { until, answer });
    }
}

impl Worker {
    fn run(self) {
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(host) = job else { return };
            // Whoever waits must hear of it, and the next host needs this thread.
            let asked = panic::catch_unwind(AssertUnwindSafe(|| (self.resolve)(&host)));
            let answer = match asked.unwrap_or_else(|_| Err(io::Error::other("the lookup panicked"))) {
                Ok(addresses) if addresses.is_empty() => {
                    Err(format!("cannot resolve {host}: it has no address"))
                }
                Ok(addresses) => Ok(addresses),
                Err(error) => Err(format!("cannot resolve {host}: {error}")),
            };
            if self.answers.send((host, answer)).is_err() {
                return;
            }
            // Fails only when the poll is gone, and then nobody waits.
            let _ = self.waker.wake();
        }
    }
}

fn with_port(addresses: &[SocketAddr], port: u16) -> Vec<SocketAddr> {
    addresses
        .iter()
        .map(|address| {
            let mut address = *address;
            address.set_port(port);
            address
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};

    type Answers = Vec<(u64, Result<Vec<SocketAddr>, String>)>;

    /// A resolver with a name service of its own, which reports every question on `asked` and keeps names that begin with
    /// "slow" waiting for a word on `slow`.
    struct Bench {
        poll: Poll,
        resolver: Resolver,
        asked: Receiver<String>,
        slow: Sender<()>,
        start: Instant,
    }

    impl Bench {
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

        fn lookup(&mut self, host: &str, who: u64, at: u64) -> Lookup {
            self.resolver.lookup(host, 80, who, false, self.start + Duration::from_secs(at))
        }

        fn fresh(&mut self, host: &str, who: u64, at: u64) -> Lookup {
            self.resolver.lookup(host, 80, who, true, self.start + Duration::from_secs(at))
        }

        /// Waits until `count` tickets have been handed out.
        fn finished(&mut self, count: usize, at: u64) -> Answers {
            let (mut all, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
            while all.len() < count {
                assert!(Instant::now() < deadline, "{} of {count} answers came", all.len());
                self.poll.poll(&mut Events::with_capacity(8), Some(Duration::from_millis(100))).unwrap();
                self.resolver.take_finished(self.start + Duration::from_secs(at), &mut all);
            }
            all.sort_by_key(|(who, _)| *who);
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
        let mut bench = Bench::new();
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
            ("[2001:db8::5]", "[2001:db8::5]:80"),
        ] {
            assert_eq!(bench.lookup(host, 1, 0), Lookup::Ready(vec![expected.parse().unwrap()]));
        }
        assert_eq!(bench.resolver.threads, 0, "a thread was started for nothing");
    }

    #[test]
    fn one_lookup_serves_all_who_ask_each_with_its_port() {
        let mut bench = Bench::new();
        assert_eq!(bench.lookup("slow.test", 1, 0), Lookup::Pending);
        assert_eq!(bench.fresh("slow.test", 2, 0), Lookup::Pending);
        let now = bench.start;
        assert_eq!(bench.resolver.lookup("slow.test", 443, 3, false, now), Lookup::Pending);
        bench.slow.send(()).unwrap();
        assert_eq!(bench.finished(3, 0), [(1, Ok(good(80))), (2, Ok(good(80))), (3, Ok(good(443)))]);
        assert_eq!(bench.asked(), ["slow.test"]);
        let mut more = Vec::new();
        bench.resolver.take_finished(bench.start, &mut more);
        assert_eq!(more, [], "a ticket is handed out once");
    }

    #[test]
    fn good_answers_last_a_minute_unless_a_fresh_one_is_wanted() {
        let mut bench = Bench::new();
        assert_eq!(bench.lookup("a.test", 1, 0), Lookup::Pending);
        bench.finished(1, 0);
        assert_eq!(bench.lookup("a.test", 2, 59), Lookup::Ready(good(80)));
        assert_eq!(bench.fresh("a.test", 3, 59), Lookup::Pending);
        assert_eq!(bench.finished(1, 59), [(3, Ok(good(80)))]);
        assert_eq!(bench.lookup("a.test", 4, 118), Lookup::Ready(good(80)));
        assert_eq!(bench.lookup("a.test", 5, 119), Lookup::Pending);
        bench.finished(1, 119);
        assert_eq!(bench.asked().len(), 3);
    }

    #[test]
    fn bad_answers_last_five_seconds_also_for_those_who_want_a_fresh_one() {
        for (host, why) in [("bad.test", "no such name"), ("none.test", "it has no address")] {
            let mut bench = Bench::new();
            let expected = format!("cannot resolve {host}: {why}");
            assert_eq!(bench.lookup(host, 1, 0), Lookup::Pending);
            assert_eq!(bench.finished(1, 0), [(1, Err(expected.clone()))]);
            assert_eq!(bench.lookup(host, 2, 4), Lookup::Failed(expected.clone()));
            assert_eq!(bench.fresh(host, 3, 4), Lookup::Failed(expected));
            assert_eq!(bench.lookup(host, 4, 5), Lookup::Pending);
        }
    }

    #[test]
    fn a_lookup_that_panics_is_answered_and_takes_no_thread_with_it() {
        let mut bench = Bench::new();
        for round in 0..THREADS as u64 + 1 {
            assert_eq!(bench.lookup("panic.test", round, round * 5), Lookup::Pending);
            let expected = "cannot resolve panic.test: the lookup panicked".to_owned();
            assert_eq!(bench.finished(1, round * 5), [(round, Err(expected))]);
        }
        assert_eq!(bench.lookup("a.test", 9, 0), Lookup::Pending);
        assert_eq!(bench.finished(1, 0), [(9, Ok(good(80)))]);
    }

    #[test]
    fn one_name_that_hangs_does_not_hold_up_another() {
        let mut bench = Bench::new();
        assert_eq!(bench.lookup("slow.test", 1, 0), Lookup::Pending);
        for n in 0..20 {
            assert_eq!(bench.lookup(&format!("{n}.test"), 100 + n, 0), Lookup::Pending);
        }
        let all = bench.finished(20, 0);
        assert!(all.iter().all(|(who, answer)| *who >= 100 && *answer == Ok(good(80))));
        // Its answer, when it comes at last, still reaches who asked, and the cache.
        bench.slow.send(()).unwrap();
        assert_eq!(bench.finished(1, 30), [(1, Ok(good(80)))]);
        assert_eq!(bench.lookup("slow.test", 2, 89), Lookup::Ready(good(80)));
    }

    #[test]
    fn expired_answers_are_removed_from_the_cache() {
        let mut bench = Bench::new();
        for n in 0..100 {
            bench.lookup(&format!("{n}.test"), n, 0);
            bench.finished(1, 0);
        }
        assert_eq!(bench.resolver.cache.len(), 100);
        bench.lookup("new.test", 1, 61);
        bench.finished(1, 61);
        assert_eq!(bench.resolver.cache.len(), 1);
    }

    #[test]
    fn the_threads_end_with_the_resolver() {
        let Bench { resolver, asked, slow, .. } = Bench::new();
        let mut resolver = resolver;
        let now = Instant::now();
        resolver.lookup("slow.test", 80, 1, false, now);
        resolver.lookup("a.test", 80, 2, false, now);
        drop(resolver);
        drop(slow);
        // The threads hold the other end, so it closes with the last of them.
        let deadline = Duration::from_secs(5);
        while let Ok(_host) = asked.recv_timeout(deadline) {}
        assert_eq!(asked.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    #[test]
    fn the_system_knows_localhost() {
        let mut bench = Bench::new();
        let waker = Arc::clone(&bench.resolver.worker.waker);
        bench.resolver = Resolver::new(waker);
        assert_eq!(bench.lookup("localhost", 1, 0), Lookup::Pending);
        let all = bench.finished(1, 0);
        let addresses = all[0].1.as_ref().unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 80));
    }
}
