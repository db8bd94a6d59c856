//! HTTP clients for the management port: ureq, and one on bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::TIMEOUT;

/// One request by ureq: status and body of the response.
pub fn http_call(
    api: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&str>,
    token: Option<&str>,
) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(TIMEOUT))
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", api));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let response = match body {
        Some(body) => {
            agent.run(request.header("Content-Type", "application/json").body(body.to_owned()).unwrap())
        }
        // Without a body ureq would send an empty chunked one.
        None if method == "POST" => agent.run(request.body(String::new()).unwrap()),
        None => agent.run(request.body(()).unwrap()),
    };
    let mut response = response.unwrap();
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

/// The sum of the samples of `/metrics` that begin with this.
pub fn metric_sum(api: SocketAddr, beginning: &str, token: Option<&str>) -> f64 {
    sum_of_samples(&http_call(api, "GET", "/metrics", None, token).1, beginning)
}

/// The sum of the samples in this text that begin with this.
pub fn sum_of_samples(metrics: &str, beginning: &str) -> f64 {
    let samples = metrics.lines().filter(|line| line.starts_with(beginning));
    let values: Vec<f64> = samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {beginning} in {metrics}");
    values.iter().sum()
}

/// The bytes of a request.
pub fn raw_request(method: &str, path: &str, token: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A connection to the management port that sends what it is told.
pub struct RawClient {
    pub stream: TcpStream,
    inbox: Vec<u8>,
}

/// One response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

impl RawClient {
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, inbox: Vec::new() }
    }

    /// One request on a new connection.
    pub fn round_trip(addr: SocketAddr, request: &str) -> Reply {
        let mut raw = Self::open(addr);
        raw.send(request);
        raw.reply().unwrap()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The next response; `None` at the end of the connection.
    pub fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(end) = self.inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.inbox[..end].to_vec()).unwrap();
                let mut reply = Reply { status: head[9..12].parse().unwrap(), head, body: String::new() };
                let length: usize = reply.field("content-length").unwrap_or("0").parse().unwrap();
                while self.inbox.len() < end + 4 + length {
                    assert!(self.read_more() > 0, "cut off");
                }
                let rest = self.inbox.split_off(end + 4 + length);
                reply.body = String::from_utf8(self.inbox[end + 4..].to_vec()).unwrap();
                self.inbox = rest;
                return Some(reply);
            }
            if self.read_more() == 0 {
                assert!(self.inbox.is_empty(), "{:?}", String::from_utf8_lossy(&self.inbox));
                return None;
            }
        }
    }

    fn read_more(&mut self) -> usize {
        let mut chunk = [0; 4096];
        let n = match self.stream.read(&mut chunk) {
            Ok(n) => n,
            // By a signal, as when the test was stopped for a while.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return self.read_more(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error}"),
        };
        self.inbox.extend_from_slice(&chunk[..n]);
        n
    }
}
