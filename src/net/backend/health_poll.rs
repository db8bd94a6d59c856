//! Asks the `health_url`s of chat servers in the background, on threads of its own: no call waits for an answer.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use log::error;

use crate::admin::event::Event;
use crate::config::{ChatServerConfig, Config, HttpUrl};
use crate::net::backend::http_client;
use crate::net::backend::upgrade::USER_AGENT;

/// The time from one round of questions to the next.
const INTERVAL: Duration = Duration::from_secs(2);
/// A server that has not answered after this time is not well.
const TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 3_000 } else { 500 });
/// Servers that are asked at the same time.
const MAX_CONCURRENT: usize = 8;
const STACK_SIZE: usize = 256 << 10;

/// Asks while it exists, if a server has a `health_url`.
#[derive(Default)]
pub(crate) struct HealthPoller(Arc<Mutex<Option<Arc<Config>>>>);

impl HealthPoller {
    /// Asks for the servers of `config` from now on. `tell` gets the URLs of those that are not well, whenever they change, and
    /// what has changed.
    pub(crate) fn poll(
        &self,
        config: &Arc<Config>,
        tell: impl Fn(HashSet<String>, Vec<Event>) + Send + 'static,
    ) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = current.is_some();
        if !runs && !config.servers().any(|(_, server)| server.health_url.is_some()) {
            return;
        }
        *current = Some(config.clone());
        if runs {
            return;
        }
        let shared = Arc::downgrade(&self.0);
        let run = move || run(&shared, &tell);
        let spawned = thread::Builder::new().name("health".to_owned()).stack_size(STACK_SIZE).spawn(run);
        if let Err(error) = spawned {
            *current = None;
            error!("health_url is not asked: no thread can be started: {error}");
        }
    }
}

fn run(shared: &Weak<Mutex<Option<Arc<Config>>>>, tell: &dyn Fn(HashSet<String>, Vec<Event>)) {
    let mut unwell = HashSet::new();
    loop {
        let Some(config) = shared.upgrade() else { return };
        let Some(config) = config.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        let (now_unwell, changes) = ask_all(&config, &unwell);
        if now_unwell != unwell {
            unwell.clone_from(&now_unwell);
            tell(now_unwell, changes);
        }
        drop(config);
        thread::sleep(INTERVAL);
    }
}

/// The URLs of the servers that are not well, and what has changed since `before`.
fn ask_all(config: &Config, before: &HashSet<String>) -> (HashSet<String>, Vec<Event>) {
    let servers: Vec<_> =
        config.servers().filter_map(|(_, server)| Some((server, server.health_url.as_ref()?))).collect();
    let (mut unwell, mut changes) = (HashSet::new(), Vec::new());
    for some in servers.chunks(MAX_CONCURRENT) {
        let answers: Vec<_> = thread::scope(|scope| {
            let ask = |&(server, health): &(&Arc<ChatServerConfig>, &HttpUrl)| {
                let (server, target) = (server.clone(), health.target.clone());
                let asked = move || ask(&server, &target, config);
                thread::Builder::new().stack_size(STACK_SIZE).spawn_scoped(scope, asked)
            };
            let threads: Vec<_> = some.iter().map(ask).collect();
            threads.into_iter().map(|thread| thread.ok().and_then(|thread| thread.join().ok())).collect()
        });
        for ((server, _), answer) in some.iter().zip(answers) {
            let url = &server.url;
            match answer {
                Some(Err(why)) if unwell.insert(url.clone()) && !before.contains(url) => {
                    changes.push(Event::server_unwell(&server.to_string(), &why));
                }
                Some(Err(_)) => {}
                // Nothing is known when it could not be asked.
                None if before.contains(url) => drop(unwell.insert(url.clone())),
                None => {}
                Some(Ok(())) if before.contains(url) => changes.push(Event::server_well(&server.to_string())),
                Some(Ok(())) => {}
            }
        }
    }
    (unwell, changes)
}

/// Asks one server: anything other than 2xx in time is an error, in words.
fn ask(server: &ChatServerConfig, target: &ChatServerConfig, config: &Config) -> Result<(), String> {
    let until = Instant::now() + TIMEOUT;
    let late = || format!("no answer in {} ms", TIMEOUT.as_millis());
    let status = status(server, target, config, until).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => error.to_string(),
    })?;
    match status {
        _ if Instant::now() > until => Err(late()),
        200..=299 => Ok(()),
        status => Err(format!("HTTP {status}")),
    }
}

fn status(
    server: &ChatServerConfig,
    target: &ChatServerConfig,
    config: &Config,
    until: Instant,
) -> io::Result<u16> {
    // What is trusted for the server is trusted for its health.
    let target =
        ChatServerConfig { insecure: server.insecure, ca_file: server.ca_file.clone(), ..target.clone() };
    let (path, host) = (&target.path, &target.authority);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n\r\n"
    );
    http_client::status(&target, &config.websocket, request.as_bytes(), until)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    /// A server whose health answers so, one connection after another.
    fn server(answers: &'static [&'static str]) -> Arc<ChatServerConfig> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server: ChatServerConfig = "ws://a/".parse().unwrap();
        server.health_url =
            Some(format!("http://{}/h?key=x", listener.local_addr().unwrap()).parse().unwrap());
        server.url = format!("ws://a/{}", listener.local_addr().unwrap().port());
        thread::spawn(move || {
            let mut silent = Vec::new();
            for answer in answers {
                let (mut peer, _) = listener.accept().unwrap();
                let mut request = [0; 256];
                let length = peer.read(&mut request).unwrap();
                let request = std::str::from_utf8(&request[..length]).unwrap();
                assert!(request.starts_with("GET /h?key=x HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
                assert!(request.contains(USER_AGENT));
                peer.write_all(answer.as_bytes()).unwrap();
                if answer.is_empty() {
                    silent.push(peer);
                }
            }
            thread::park();
        });
        Arc::new(server)
    }

    #[test]
    fn only_2xx_in_time_is_well() {
        for (answer, expected) in [
            (&["HTTP/1.1 204 No Content\r\n\r\n"], Ok(())),
            (&["HTTP/1.0 200 OK\r\n\r\n"], Ok(())),
            (&["HTTP/1.1 503 Service Unavailable\r\n\r\n"], Err("HTTP 503")),
            (&["HTTP/1.1 302 Found\r\n\r\n"], Err("HTTP 302")),
            (&["SSH-2.0-OpenSSH"], Err("no HTTP response")),
            (&[""], Err("no answer in 3000 ms")),
        ] {
            let server = server(answer);
            let target = &server.health_url.as_ref().unwrap().target;
            let found = ask(&server, target, &Config::default());
            assert_eq!(found, expected.map_err(str::to_owned), "{answer:?}");
        }
    }

    #[test]
    fn a_change_is_told_once_and_the_thread_ends_with_its_owner() {
        const WELL: &str = "HTTP/1.1 200 OK\r\n\r\n";
        const UNWELL: &str = "HTTP/1.1 500 No\r\n\r\n";
        // More answers than there are questions on a slow machine.
        const RECOVERS: [&str; 40] = {
            let mut answers = [WELL; 40];
            (answers[0], answers[1]) = (UNWELL, UNWELL);
            answers
        };
        let servers = [server(&RECOVERS), server(&[WELL; 40])];
        let mut config = Config::default();
        config.websocket.production = servers.to_vec();
        let (told, changes) = mpsc::channel();
        let poller = HealthPoller::default();
        poller.poll(&Arc::new(Config::default()), |_, _| panic!("there is nothing to ask"));
        let config = Arc::new(config);
        let tell = told.clone();
        poller.poll(&config, move |unwell, changes| tell.send((unwell, changes)).unwrap());
        poller.poll(&config, move |_, _| drop(told.clone()));
        let shown = servers[0].to_string();
        let failed = Event::server_unwell(&shown, "HTTP 500");
        assert_eq!(changes.recv().unwrap(), (HashSet::from([servers[0].url.clone()]), vec![failed]));
        assert_eq!(changes.recv().unwrap(), (HashSet::new(), vec![Event::server_well(&shown)]));
        drop(poller);
        assert!(changes.recv().is_err(), "its sender is dropped");
    }
}
