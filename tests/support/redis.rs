//! A real Redis server on a free port.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::process::Folder;
use super::{TIMEOUT, process_loopback_ip};

/// Whether this machine has redis-server. Says so if not.
pub fn is_installed() -> bool {
    let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    let is_installed = !matches!(version, Err(error) if error.kind() == ErrorKind::NotFound);
    if !is_installed {
        let name = thread::current().name().unwrap_or_default().to_owned();
        eprintln!("SKIPPED {name}: redis-server is not installed (./setup.sh test)");
    }
    is_installed
}

/// A Redis server without a file, which ends with the test.
pub struct RedisServer {
    ip: Ipv4Addr,
    pub port: u16,
    settings: Vec<String>,
    folder: Folder,
    /// The user and password of [`RedisServer::command`].
    pub login: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With settings of redis.conf, each an option and its values.
    pub fn start_with(settings: &[&str]) -> Self {
        let mut server = Self::stopped(settings);
        server.restart();
        server
    }

    /// Not started, with a port of its own.
    pub fn stopped(settings: &[&str]) -> Self {
        let ip = process_loopback_ip();
        let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self { ip, port, settings, folder: Folder::new(), login: Vec::new(), child: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    pub fn write_file(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Another process on the same port, without the data of the one before.
    pub fn restart(&mut self) {
        self.kill();
        let mut text = format!(
            "bind {}\nport {}\nsave \"\"\nappendonly no\ndir {}\n",
            self.ip,
            self.port,
            self.folder.0.display()
        );
        self.settings.iter().for_each(|setting| text += &format!("{setting}\n"));
        let file = self.write_file("redis.conf", text.as_bytes());
        let mut command = Command::new("redis-server");
        command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let end = Instant::now() + TIMEOUT;
        while TcpStream::connect(self.addr()).is_err() {
            assert!(Instant::now() < end, "redis-server does not listen: {text}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn addr(&self) -> SocketAddr {
        (self.ip, self.port).into()
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.addr())
    }

    /// The reply to a command, as redis-cli would not change it.
    pub fn command(&self, parts: &[&str]) -> String {
        let mut tcp = TcpStream::connect(self.addr()).unwrap();
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut all: Vec<Vec<&str>> = Vec::new();
        if !self.login.is_empty() {
            all.push([&["AUTH"][..], &self.login.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        }
        all.extend([parts.to_vec(), vec!["QUIT"]]);
        for parts in all {
            let mut bytes = format!("*{}\r\n", parts.len());
            parts.iter().for_each(|part| bytes += &format!("${}\r\n{part}\r\n", part.len()));
            tcp.write_all(bytes.as_bytes()).unwrap();
        }
        let mut reply = Vec::new();
        tcp.read_to_end(&mut reply).unwrap();
        let text = String::from_utf8_lossy(&reply).into_owned();
        let text = text.strip_suffix("+OK\r\n").unwrap_or(&text);
        match self.login.is_empty() {
            true => text.to_owned(),
            false => text.strip_prefix("+OK\r\n").unwrap_or(text).to_owned(),
        }
    }

    /// Publishes bytes on a channel.
    pub fn publish(&self, channel: &str, bytes: &[u8]) {
        let mut tcp = TcpStream::connect(self.addr()).unwrap();
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        let command =
            format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), bytes.len());
        tcp.write_all(&[command.as_bytes(), bytes, b"\r\n"].concat()).unwrap();
        assert_eq!(tcp.read(&mut [0]).unwrap(), 1);
    }

    /// Waits until the reply to a command is as wanted, and returns it.
    pub fn wait_for(&self, parts: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + TIMEOUT;
        loop {
            let reply = self.command(parts);
            if wanted(&reply) {
                return reply;
            }
            assert!(Instant::now() < end, "{parts:?} is still {reply}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Passes connections on, and can stop to deliver what subscribers get.
pub struct Proxy {
    pub addr: SocketAddr,
    /// Those who have subscribed until now get nothing any more.
    pub wedge: Arc<AtomicBool>,
}

impl Proxy {
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let wedge = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&wedge);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(server) else { continue };
                let is_subscriber = Arc::new(AtomicBool::new(false));
                // A connection that is made while others are wedged works.
                let was_wedged = flag.load(Ordering::SeqCst);
                let (flag, from) = (Arc::clone(&flag), Arc::clone(&is_subscriber));
                let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    copy(client, server, |bytes| {
                        if bytes.windows(9).any(|word| word == b"SUBSCRIBE") {
                            from.store(true, Ordering::SeqCst);
                        }
                        true
                    })
                });
                thread::spawn(move || {
                    copy(server2, client2, |_| {
                        was_wedged || !(flag.load(Ordering::SeqCst) && is_subscriber.load(Ordering::SeqCst))
                    })
                });
            }
        });
        Self { addr, wedge }
    }
}

/// Passes on what `passes` agrees to.
fn copy(mut from: TcpStream, mut to: TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 || passes(&buffer[..len]) && to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
