//! The gateway under load, started here or elsewhere, and its figures from /proc.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::echo::EchoServer;

use crate::process::{self, free_tcp_port, free_udp_port};

/// The name that [`Running`] gives to the gateway's thread.
const THREAD: &str = "gateway";

/// A gateway to load.
pub(crate) struct Gateway {
    pub(crate) mqtt: SocketAddr,
    /// From its start to the first accepted connection; only for a spawned one.
    pub(crate) start_up: Option<Duration>,
    kind: GatewayKind,
    _echo: Option<EchoServer>,
}

enum GatewayKind {
    Spawned { child: Child, folder: PathBuf },
    External { pid: Option<u32> },
    InProcess(Running),
}

impl Gateway {
    /// Starts `binary` with its own configuration.
    pub(crate) fn spawn(binary: &Path, devices: usize) -> Result<Self, Box<dyn Error>> {
        let echo = EchoServer::start()?;
        let (mqtt, udp, api) = (free_tcp_port()?, free_udp_port()?, free_tcp_port()?);
        let folder = std::env::temp_dir().join(format!("load-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let config = folder.join("gateway.json");
        fs::write(
            &config,
            format!(
                r#"{{"mqtt":{{"host":"127.0.0.1","port":{mqtt},"max_connections":{}}},"udp":{{"host":"127.0.0.1","port":{udp}}},"websocket":{{"production_servers":["{}"]}},"logging":{{"level":"warn"}}}}"#,
                devices + 100,
                echo.url()
            ),
        )?;
        let begin = Instant::now();
        let mut child = Command::new(binary)
            .arg("--config")
            .arg(&config)
            .env("API_PORT", api.to_string())
            .env_remove("MQTT_SIGNATURE_KEY")
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.join("gateway.log"))?)
            .spawn()
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, mqtt));
        while TcpStream::connect(address).is_err() {
            if child.try_wait()?.is_some() || begin.elapsed() > Duration::from_secs(10) {
                let _ = child.kill();
                let log = fs::read_to_string(folder.join("gateway.log")).unwrap_or_default();
                return Err(format!("the gateway does not start: {log}").into());
            }
            thread::sleep(Duration::from_micros(200));
        }
        let start_up = Some(begin.elapsed());
        Ok(Self { mqtt: address, start_up, kind: GatewayKind::Spawned { child, folder }, _echo: Some(echo) })
    }

    /// A gateway that runs already.
    pub(crate) fn external(mqtt: SocketAddr, pid: Option<u32>) -> Self {
        Self { mqtt, start_up: None, kind: GatewayKind::External { pid }, _echo: None }
    }

    /// A gateway in a thread of this process.
    pub(crate) fn in_process(devices: usize) -> Result<Self, Box<dyn Error>> {
        let echo = EchoServer::start()?;
        let mut config = Config::default();
        config.websocket.production = vec![Arc::new(echo.url().parse()?)];
        (config.mqtt.host, config.mqtt.port) = (Ipv4Addr::LOCALHOST.into(), 0);
        (config.udp.host, config.udp.port) = (Ipv4Addr::LOCALHOST.into(), 0);
        (config.mqtt.max_connections, config.api.port) = (devices + 100, 0);
        let running = Running::start(config, None)?;
        let mqtt = running.addresses().mqtt;
        Ok(Self { mqtt, start_up: None, kind: GatewayKind::InProcess(running), _echo: Some(echo) })
    }

    pub(crate) fn name(&self) -> String {
        match &self.kind {
            GatewayKind::Spawned { child, .. } => format!("{} in process {}", self.mqtt, child.id()),
            GatewayKind::External { pid: Some(pid) } => format!("{} in process {pid}", self.mqtt),
            GatewayKind::External { pid: None } => format!("{}, process unknown", self.mqtt),
            GatewayKind::InProcess(_) => format!("{} in this process", self.mqtt),
        }
    }

    fn pid(&self) -> Option<u32> {
        match &self.kind {
            GatewayKind::Spawned { child, .. } => Some(child.id()),
            GatewayKind::External { pid } => *pid,
            GatewayKind::InProcess(_) => Some(std::process::id()),
        }
    }

    /// True if its memory is not shared with the load.
    pub(crate) fn is_separate_process(&self) -> bool {
        !matches!(self.kind, GatewayKind::InProcess(_))
    }

    /// Its private memory in KiB: without the parts of its program file that happen to be loaded.
    pub(crate) fn private_kib(&self) -> Option<u64> {
        process::anonymous_kib(self.pid()?)
    }

    /// The processor time of its threads so far; only of the gateway's thread if it runs in this process.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        process::cpu_time(self.pid()?, (!self.is_separate_process()).then_some(THREAD))
    }

    /// Ends what was started here.
    pub(crate) fn stop(self) -> Result<(), Box<dyn Error>> {
        match self.kind {
            GatewayKind::External { .. } => {}
            GatewayKind::InProcess(running) => running.stop(Duration::from_secs(1))?,
            GatewayKind::Spawned { mut child, folder } => {
                let early = child.try_wait()?;
                // Its memory and CPU were read; a clean end is not needed.
                let _ = child.kill();
                child.wait()?;
                let log = fs::read_to_string(folder.join("gateway.log")).unwrap_or_default();
                let _ = fs::remove_dir_all(folder);
                if let Some(status) = early {
                    return Err(format!("the gateway ended before the load did ({status}): {log}").into());
                }
            }
        }
        Ok(())
    }
}

/// Restarts this program with the highest allowed limit of descriptors if it may need more than most
/// systems allow. The gateway inherits the limit.
pub(crate) fn raise_descriptor_limit(sockets: usize) {
    const MARK: &str = "LOAD_LIMIT_RAISED";
    if sockets < 800 || std::env::var_os(MARK).is_some() {
        return;
    }
    #[cfg(unix)]
    if let Ok(this) = std::env::current_exe() {
        use std::os::unix::process::CommandExt;
        let script = r#"ulimit -n "$(ulimit -H -n)"; exec "$0" "$@""#;
        let error = Command::new("sh")
            .args(["-c", script])
            .arg(this)
            .args(std::env::args_os().skip(1))
            .env(MARK, "1")
            .exec();
        eprintln!("load: the limit of open files stays as it is: {error}");
    }
}
