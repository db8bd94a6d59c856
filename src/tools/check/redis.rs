//! Tries the Redis of `cluster.redis` with every command that a gateway sends.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::report::Finding;
use crate::cluster::check::{self, CheckCommand};
use crate::cluster::{GatewayId, Settings};
use crate::config::{Cluster, RedisUrl};
use crate::net::backend::tls::TlsClient;
use crate::net::event_loop::stream::Stream;
use crate::tools::step_report::{StepState, milliseconds};

const NAME: &str = "Redis";

/// What is wrong, and with which command.
enum Failure {
    /// There is no connection.
    Connect(String),
    /// This command failed, or its reply did not come.
    Command(&'static str, String),
}

/// Whether Redis can be used; none when there is no `cluster.redis`.
pub(super) fn check_redis(cluster: &Cluster, timeout: Duration) -> Option<Finding> {
    let redis = cluster.redis.as_ref()?;
    Some(match try_all(redis, cluster, timeout) {
        Ok(took) => {
            let found = format!("{redis} answers in {:.1} ms and permits every command", milliseconds(took));
            Finding::new(NAME, StepState::Ok, found)
        }
        Err(Failure::Connect(why)) => {
            Finding::new(NAME, StepState::Fail, format!("{redis} cannot be reached: {why}"))
        }
        Err(Failure::Command(name, why)) => {
            let finding = Finding::new(NAME, StepState::Fail, format!("{redis}: {name}: {why}"));
            if why.starts_with("NOPERM") || why.contains("can't run this command") {
                let permissions = check::PERMISSIONS.replace("PREFIX", &cluster.prefix);
                finding.with_advice(format!("the user needs: {permissions}"))
            } else if why.contains("syntax error") {
                finding.with_advice("Redis 6.2 or later is needed")
            } else {
                finding
            }
        }
    })
}

/// How long Redis takes to answer.
fn try_all(redis: &RedisUrl, cluster: &Cluster, timeout: Duration) -> Result<Duration, Failure> {
    let settings = Settings {
        name: String::new(),
        prefix: cluster.prefix.clone(),
        user: redis.user.clone(),
        password: redis.password.as_ref().map(|password| password.as_bytes().to_vec()),
        database: redis.database,
        keys: Vec::new(),
    };
    let id = GatewayId(getrandom::u64().map_err(|error| Failure::Connect(error.to_string()))?);
    let connect = || connect(redis, cluster, timeout).map_err(|error| Failure::Connect(error.to_string()));
    let (mut subscriber, mut commands) = (Client::new(connect()?), Client::new(connect()?));
    let subscribe = check::login(&settings, true).into_iter().chain([check::subscribe(&settings, id)]);
    for command in subscribe {
        subscriber.run(&command)?;
    }
    let mut took = Duration::ZERO;
    for command in check::login(&settings, false).iter().chain(&check::commands(&settings, id)) {
        let start = Instant::now();
        commands.run(command)?;
        if command.name == "PING" {
            took = start.elapsed();
        }
    }
    // The message that was published.
    subscriber.reply().map_err(|why| Failure::Command("SUBSCRIBE", why))?;
    Ok(took)
}

fn connect(redis: &RedisUrl, cluster: &Cluster, timeout: Duration) -> io::Result<Stream<TcpStream>> {
    let target = &redis.target;
    let mut tcp = Err(io::Error::other("the name has no address"));
    for address in (target.host.as_str(), target.port).to_socket_addrs()? {
        tcp = TcpStream::connect_timeout(&address, timeout);
        if tcp.is_ok() {
            break;
        }
    }
    let tcp = tcp?;
    tcp.set_read_timeout(Some(timeout))?;
    tcp.set_write_timeout(Some(timeout))?;
    if !target.tls {
        return Ok(Stream::Plain(tcp));
    }
    let ca = cluster.ca_file.as_ref().map(fs::read).transpose()?;
    TlsClient::new(ca, false).connect_blocking(&target.host, tcp)
}

/// A connection, and what was read of it and is not used up.
struct Client {
    stream: Stream<TcpStream>,
    input: Vec<u8>,
}

impl Client {
    fn new(stream: Stream<TcpStream>) -> Self {
        Self { stream, input: Vec::new() }
    }

    fn run(&mut self, command: &CheckCommand) -> Result<(), Failure> {
        let sent = self.stream.write_all(&command.bytes).map_err(|error| error.to_string());
        sent.and_then(|()| self.reply()).map_err(|why| Failure::Command(command.name, why))
    }

    /// Waits for a reply.
    ///
    /// # Errors
    /// The error that it is; why there is none.
    fn reply(&mut self) -> Result<(), String> {
        loop {
            if let Some(len) = check::reply(&self.input)? {
                self.input.drain(..len);
                return Ok(());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("Redis has closed the connection".to_owned()),
                Ok(len) => self.input.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err("no answer".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
