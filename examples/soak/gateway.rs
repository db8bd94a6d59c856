//! The gateway as a separate process: its configuration, its figures from /proc, and its end.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::context::mac;
use crate::process::{self, free_tcp_port, free_udp_port};

/// The signature key, and the token of the API.
pub(crate) const KEY: &str = "Soak-signature-Key-7";
pub(crate) const TOKEN: &str = "a-static-token-for-the-soak";
/// The MAC group whose calls use the chat server without faults.
pub(crate) const STEADY: u8 = 1;

pub(crate) struct Gateway {
    pub(crate) mqtt: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) api: SocketAddr,
    pub(crate) config: Config,
    child: Child,
    folder: PathBuf,
}

/// The configuration file, in harmless variations.
pub(crate) struct Config {
    path: PathBuf,
    ports: [u16; 3],
    steady_server: String,
    transient_servers: [String; 2],
    steady: usize,
}

/// Figures of the process at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) memory_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) cpu: Duration,
}

impl Config {
    /// Replaces the file like an editor: writes a new file and renames it.
    pub(crate) fn write(&self, variation: u64) -> std::io::Result<()> {
        let macs: Vec<_> = (0..self.steady).map(|n| mac(STEADY, n)).collect();
        let [mqtt, udp, api] = self.ports;
        let mut transient = self.transient_servers.clone();
        transient.rotate_left((variation % 2) as usize);
        let config = serde_json::json!({
            "mqtt": {
                "host": "127.0.0.1", "port": mqtt, "signature_key": KEY, "resume_grace_s": 5, "hello_limit": 0,
                "max_connections": 2000 + variation % 10,
            },
            "udp": {"host": "127.0.0.1", "port": udp},
            "websocket": {
                "production_servers": transient,
                "development_servers": [&self.steady_server],
                "development_mac_addresses": macs,
                "ping_interval_s": 5, "ping_timeout_s": 5 + variation % 2, "call_idle_s": 60 + variation % 5,
                "reconnect": {"initial_ms": 100, "max_ms": 1000, "give_up_after_s": 60},
            },
            "logging": {"level": "info", "file_path": "gateway.log"},
            "api": {"host": "127.0.0.1", "port": api, "token": TOKEN},
        });
        self.replace(&config.to_string())
    }

    pub(crate) fn write_invalid(&self) -> std::io::Result<()> {
        self.replace(r#"{"mqtt": {"port": "many"#)
    }

    fn replace(&self, text: &str) -> std::io::Result<()> {
        let beside = self.path.with_extension("new");
        fs::write(&beside, text)?;
        fs::rename(beside, &self.path)
    }
}

impl Gateway {
    pub(crate) fn spawn(
        binary: &Path,
        steady_server: String,
        transient: &[String; 2],
        steady: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let folder = std::env::temp_dir().join(format!("soak-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let ports = [free_tcp_port()?, free_udp_port()?, free_tcp_port()?];
        let config = Config {
            path: folder.join("gateway.json"),
            ports,
            steady_server,
            transient_servers: transient.clone(),
            steady,
        };
        config.write(0)?;
        let binary = binary.canonicalize().map_err(|error| format!("{}: {error}", binary.display()))?;
        let child = Command::new(binary)
            .args(["--config", "gateway.json"])
            .current_dir(&folder)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("stderr"))?)
            .spawn()?;
        let [mqtt, udp, api] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let gateway = Self { mqtt, udp, api, config, child, folder };
        let begin = Instant::now();
        while TcpStream::connect(mqtt).is_err() {
            if begin.elapsed() > Duration::from_secs(10) {
                return Err(format!("the gateway does not start: {}", gateway.stderr()).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        // Let the gateway handle this connection and its end.
        thread::sleep(Duration::from_millis(300));
        Ok(gateway)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn sample(&self) -> Result<Sample, Box<dyn std::error::Error>> {
        Ok(Sample {
            memory_kib: process::resident_kib(self.pid()).ok_or("the gateway has ended")?,
            descriptors: fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count(),
            cpu: process::cpu_time(self.pid(), None).ok_or("the gateway has ended")?,
        })
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.folder.join("stderr")).unwrap_or_default()
    }

    /// Where its configuration and its log are.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// Stops it, and reads what it logged.
    pub(crate) fn end(mut self) -> Result<(), String> {
        let early = self.child.try_wait().map_err(|error| error.to_string())?;
        if let Some(status) = early {
            return Err(format!("it ended early ({status}): {}", self.stderr()));
        }
        let _ = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        let begin = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                _ if begin.elapsed() > Duration::from_secs(10) => {
                    let _ = self.child.kill();
                    return Err("it did not end within 10 s".to_owned());
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        };
        if !status.success() {
            return Err(format!("{status}: {}", self.stderr()));
        }
        let log = fs::read_to_string(self.folder.join("gateway.log")).map_err(|error| error.to_string())?;
        let bad = |line: &&str| {
            line.contains("panicked") || line.contains("[ERROR]") && !line.contains("gateway.json")
        };
        if let Some(line) = log.lines().chain(self.stderr().lines()).find(bad) {
            return Err(format!("it logged {line}"));
        }
        Ok(())
    }
}
