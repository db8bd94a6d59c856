//! As much of Redis as the gateways use, in virtual time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::super::Connection;
use super::super::commands::{DELETE, HOLD, REPLACE};
use super::super::resp::{self, Reply};

/// Identifies a connection.
type Client = (usize, Connection);

#[derive(Default)]
struct Session {
    input: Vec<u8>,
    output: Vec<u8>,
    channels: BTreeSet<String>,
    closed: bool,
}

pub(super) struct RedisModel {
    now: Instant,
    pub(super) keys: BTreeMap<String, (Vec<u8>, Instant)>,
    sessions: HashMap<Client, Session>,
    /// Nobody can connect.
    pub(super) is_down: bool,
    /// It takes commands, and executes them later.
    pub(super) is_paused: bool,
    /// Their subscriber gets nothing.
    pub(super) wedged: BTreeSet<usize>,
    /// Gateways that do not run any more.
    pub(super) dead: BTreeSet<usize>,
    /// The error that some commands get.
    pub(super) refused: BTreeMap<&'static str, &'static str>,
    /// Every command but probes, announcements and those of the greeting.
    pub(super) log: Vec<String>,
}

impl RedisModel {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            now,
            keys: BTreeMap::new(),
            sessions: HashMap::new(),
            is_down: false,
            is_paused: false,
            wedged: BTreeSet::new(),
            dead: BTreeSet::new(),
            refused: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self, gateway: usize, connection: Connection) -> Result<(), &'static str> {
        if self.is_down {
            return Err("refused");
        }
        self.sessions.insert((gateway, connection), Session::default());
        Ok(())
    }

    pub(super) fn disconnect(&mut self, gateway: usize, connection: Connection) {
        self.sessions.remove(&(gateway, connection));
    }

    /// It has ended, and with it all connections; with its data.
    pub(super) fn crash(&mut self) {
        self.is_down = true;
        self.keys.clear();
        self.sessions.values_mut().for_each(|session| session.closed = true);
    }

    pub(super) fn take_closed(&mut self, gateway: usize, connection: Connection) -> bool {
        let is_closed = self.sessions.get(&(gateway, connection)).is_some_and(|session| session.closed);
        if is_closed {
            self.disconnect(gateway, connection);
        }
        is_closed
    }

    pub(super) fn take_output(&mut self, gateway: usize, connection: Connection) -> Vec<u8> {
        if self.is_paused || connection == Connection::Subscriber && self.wedged.contains(&gateway) {
            return Vec::new();
        }
        let session = self.sessions.get_mut(&(gateway, connection));
        session.map(|session| std::mem::take(&mut session.output)).unwrap_or_default()
    }

    pub(super) fn receive(&mut self, gateway: usize, connection: Connection, bytes: &[u8], now: Instant) {
        self.now = now;
        self.keys.retain(|_, (_, until)| *until > now);
        let client = (gateway, connection);
        let Some(session) = self.sessions.get_mut(&client) else { return };
        session.input.extend_from_slice(bytes);
        while !self.is_paused
            && let Some(session) = self.sessions.get_mut(&client)
            && let Some((Reply::Array(parts), len)) = resp::reply(&session.input).unwrap()
        {
            session.input.drain(..len);
            let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.bytes().unwrap().to_vec()).collect();
            let reply = self.execute(client, &parts);
            if let Some(session) = self.sessions.get_mut(&client) {
                session.output.extend_from_slice(&reply);
            }
        }
    }

    fn execute(&mut self, client: Client, parts: &[Vec<u8>]) -> Vec<u8> {
        let text = |at: usize| String::from_utf8_lossy(parts.get(at).map_or(b"", Vec::as_slice)).into_owned();
        let name = text(0);
        if let Some((_, error)) = self.refused.iter().find(|(command, _)| **command == name) {
            return format!("-{error}\r\n").into_bytes();
        }
        match name.as_str() {
            "AUTH" | "SELECT" | "CLIENT" => b"+OK\r\n".to_vec(),
            "PING" => b"+PONG\r\n".to_vec(),
            "SUBSCRIBE" => self.subscribe(client, parts),
            "PUBLISH" => self.publish(&text(1), &parts[2]),
            "GET" => bulk(self.get(&text(1))),
            "MGET" => {
                self.log.push(format!("MGET {}", parts.len() - 1));
                let values = parts[1..].iter().flat_map(|key| bulk(self.get(&String::from_utf8_lossy(key))));
                [format!("*{}\r\n", parts.len() - 1).into_bytes(), values.collect()].concat()
            }
            "EXPIRE" => {
                let until = self.now + seconds(&text(2));
                let entry = self.keys.get_mut(&text(1));
                integer(entry.map(|entry| entry.1 = until).is_some().into())
            }
            "PTTL" => match self.keys.get(&text(1)) {
                Some((_, until)) => integer((*until - self.now).as_millis() as i64),
                None => integer(-2),
            },
            "SET" => self.set(parts),
            "EVAL" => self.eval(parts),
            other => panic!("{other} is not in the minimal ACL"),
        }
    }

    fn set(&mut self, parts: &[Vec<u8>]) -> Vec<u8> {
        let words: Vec<String> =
            parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        self.log.push(words[..3].join(" ") + if words.iter().any(|word| word == "NX") { " NX" } else { "" });
        let before = self.get(&words[1]).cloned();
        if words.iter().any(|word| word == "NX") && before.is_some() {
            return bulk(None);
        }
        let ttl = words.iter().position(|word| word == "EX" || word == "PX").expect("every key has a TTL");
        let ttl = seconds(&words[ttl + 1]) / if words[ttl] == "PX" { 1_000 } else { 1 };
        self.keys.insert(words[1].clone(), (parts[2].clone(), self.now + ttl));
        match words.iter().any(|word| word == "GET") {
            true => bulk(before.as_ref()),
            false => b"+OK\r\n".to_vec(),
        }
    }

    fn eval(&mut self, parts: &[Vec<u8>]) -> Vec<u8> {
        assert_eq!(parts[2], b"1");
        let key = String::from_utf8_lossy(&parts[3]).into_owned();
        let before = self.get(&key).cloned();
        let until = |ttl: &[u8]| self.now + seconds(&String::from_utf8_lossy(ttl));
        match parts[1].as_slice() {
            HOLD => match before {
                Some(before) if before != parts[4] => bulk(Some(&before)),
                _ => {
                    self.keys.insert(key, (parts[4].clone(), until(&parts[5])));
                    bulk(Some(&Vec::new()))
                }
            },
            REPLACE => {
                let replaces = before.is_none_or(|before| before == parts[4]);
                if replaces {
                    self.keys.insert(key, (parts[5].clone(), until(&parts[6])));
                }
                integer(replaces.into())
            }
            DELETE => {
                let deletes = before.is_some_and(|before| before == parts[4]);
                if deletes {
                    self.keys.remove(&key);
                }
                integer(deletes.into())
            }
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }

    fn get(&self, key: &str) -> Option<&Vec<u8>> {
        self.keys.get(key).map(|(value, _)| value)
    }

    fn subscribe(&mut self, client: Client, parts: &[Vec<u8>]) -> Vec<u8> {
        let session = self.sessions.get_mut(&client).unwrap();
        let mut reply = Vec::new();
        for (count, channel) in parts[1..].iter().enumerate() {
            session.channels.insert(String::from_utf8_lossy(channel).into_owned());
            reply.extend_from_slice(b"*3\r\n$9\r\nsubscribe\r\n");
            reply.extend_from_slice(&bulk(Some(channel)));
            reply.extend_from_slice(&integer(count as i64 + 1));
        }
        reply
    }

    pub(super) fn publish(&mut self, channel: &str, payload: &[u8]) -> Vec<u8> {
        let mut receivers = 0;
        for session in self.sessions.values_mut().filter(|session| session.channels.contains(channel)) {
            receivers += 1;
            resp::command(&mut session.output, &[b"message", channel.as_bytes(), payload]);
        }
        integer(receivers)
    }

    /// Bytes that no Redis sends.
    pub(super) fn inject(&mut self, gateway: usize, connection: Connection, bytes: &[u8]) {
        self.sessions.get_mut(&(gateway, connection)).unwrap().output.extend_from_slice(bytes);
    }

    /// The value of a device's key.
    pub(super) fn record(&self, mac: crate::proto::identity::Mac) -> Option<String> {
        let value = self.get(&format!("p:device:{mac}"))?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

fn bulk(value: Option<&Vec<u8>>) -> Vec<u8> {
    match value {
        Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
        None => b"$-1\r\n".to_vec(),
    }
}

fn integer(number: i64) -> Vec<u8> {
    format!(":{number}\r\n").into_bytes()
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.parse().unwrap())
}
