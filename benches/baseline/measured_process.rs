//! The measured process, gateway or baseline, on its own core.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use mqtt_websocket_proxy::tools::device::Login;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::load::{KEY, Outcome};
use super::process::{cpu_time, free_tcp_port, free_udp_port};

/// The cores of the measured process and of the load.
const CORES: [usize; 2] = [0, 1];

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// With the microseconds that it waits before each poll.
    Baseline(u32),
    /// With the most microseconds between two polls, if it gathers packets by the gateway's rule.
    GatheringBaseline(u32),
    /// Another revision of the gateway, with its `udp.coalesce_max_us`.
    Revision(u32),
    /// With its `udp.coalesce_max_us`.
    Gateway(u32),
}

/// The program of [`Subject::Revision`].
pub(crate) static REVISION: OnceLock<PathBuf> = OnceLock::new();

impl Subject {
    /// What it is compared with: the first of these that is measured.
    pub(crate) fn references(self) -> [Self; 3] {
        match self {
            Self::Gateway(0) | Self::Revision(0) => [Self::Revision(0), Self::Baseline(0), Self::Baseline(0)],
            Self::Gateway(most) => [Self::Revision(most), Self::GatheringBaseline(most), Self::Baseline(0)],
            Self::Revision(most) => [Self::GatheringBaseline(most), Self::Baseline(0), Self::Baseline(0)],
            Self::Baseline(_) | Self::GatheringBaseline(_) => [Self::Baseline(0); 3],
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baseline(0) => write!(f, "baseline"),
            Self::Baseline(wait) => write!(f, "baseline, waiting {wait} us"),
            Self::GatheringBaseline(most) => write!(f, "baseline, gathering {most} us"),
            Self::Revision(most) => write!(f, "other revision, coalescing {most} us"),
            Self::Gateway(0) => write!(f, "gateway, not coalescing"),
            Self::Gateway(most) => write!(f, "gateway, coalescing {most} us"),
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, wait) = text.split_once(':').unwrap_or((text, "0"));
        let wait = wait.parse().map_err(|_| format!("{wait:?} is no number of microseconds"))?;
        match kind {
            "baseline" => Ok(Self::Baseline(wait)),
            "gathering" => Ok(Self::GatheringBaseline(wait)),
            "revision" if REVISION.get().is_some() => Ok(Self::Revision(wait)),
            "gateway" => Ok(Self::Gateway(wait)),
            _ => Err(format!(
                "{text:?} is neither baseline:N, gathering:N nor gateway:N, nor with --compare revision:N"
            )),
        }
    }
}

pub(crate) struct MeasuredProcess {
    pub(crate) mqtt: SocketAddr,
    /// From the start of its process to the first CONNACK.
    pub(crate) start_up: Duration,
    api: u16,
    child: Child,
    folder: PathBuf,
}

/// Resident memory of a process: all, and anonymous.
#[derive(Clone, Copy)]
pub(crate) struct ProcessMemory {
    pub(crate) rss_kib: f64,
    pub(crate) anonymous_kib: f64,
}

impl MeasuredProcess {
    pub(crate) fn start(subject: Subject, chat: SocketAddr) -> Outcome<Self> {
        let [mqtt, api] = [free_tcp_port()?, free_tcp_port()?];
        let udp = free_udp_port()?;
        let folder = std::env::temp_dir().join(format!("baseline-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut command = match subject {
            Subject::Baseline(time) | Subject::GatheringBaseline(time) => {
                let (wait, gather) = if let Subject::Baseline(_) = subject { (time, 0) } else { (0, time) };
                let ports = [mqtt.to_string(), udp.to_string(), chat.to_string()];
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("relay").args(ports).args([wait.to_string(), gather.to_string()]);
                command
            }
            Subject::Gateway(coalesce) | Subject::Revision(coalesce) => {
                let config = folder.join("gateway.json");
                let text = format!(
                    r#"{{"mqtt":{{"host":"127.0.0.1","port":{mqtt},"max_connections":30000,"signature_key":"{KEY}"}},"udp":{{"host":"127.0.0.1","port":{udp},"coalesce_max_us":{coalesce}}},"websocket":{{"production_servers":["ws://{chat}/"]}},"logging":{{"level":"warn"}},"api":{{"host":"127.0.0.1","port":{api},"metrics_need_token":false}}}}"#
                );
                fs::write(&config, text)?;
                let this = Path::new(env!("CARGO_BIN_EXE_mqtt-websocket-proxy"));
                let other = REVISION.get().filter(|_| matches!(subject, Subject::Revision(_)));
                let mut command = Command::new(other.map_or(this, PathBuf::as_path));
                command.arg("--config").arg(config);
                command
            }
        };
        let log = fs::File::create(folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The child inherits its parent's core.
        pin_to_core(CORES[0]);
        let begin = Instant::now();
        let child = command.spawn()?;
        pin_to_core(CORES[1]);
        let mqtt = SocketAddr::from((Ipv4Addr::LOCALHOST, mqtt));
        let mut target = Self { mqtt, start_up: Duration::ZERO, api, child, folder };
        target.wait_for_login(begin)?;
        target.start_up = begin.elapsed();
        Ok(target)
    }

    /// Retries until a device can log in.
    fn wait_for_login(&mut self, begin: Instant) -> Outcome<()> {
        loop {
            if let Ok(mut stream) = TcpStream::connect(self.mqtt) {
                stream.write_all(
                    &Login::new("02:ff:ff:ff:ff:ff".parse()?, Some(KEY.as_bytes())).connect_packet(),
                )?;
                let mut connack = [0; 4];
                stream.read_exact(&mut connack)?;
                return if connack[3] == 0 { Ok(()) } else { Err("the device was refused".into()) };
            }
            if self.child.try_wait()?.is_some() || begin.elapsed() > Duration::from_secs(5) {
                return Err(format!("it does not start: {}", self.log()).into());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The processor time of all its threads so far, in microseconds: the first number of schedstat is nanoseconds.
    pub(crate) fn cpu_us(&self) -> f64 {
        cpu_time(self.child.id(), None).map_or(f64::NAN, |time| time.as_nanos() as f64 / 1000.0)
    }

    /// The part of it outside the system, in microseconds, of which it has ten thousand: field 14 of proc_pid_stat(5).
    pub(crate) fn user_us(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let behind_name = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let ticks = behind_name.split_whitespace().nth(11).and_then(|ticks| ticks.parse::<f64>().ok());
        ticks.map_or(f64::NAN, |ticks| ticks * 1e4)
    }

    pub(crate) fn memory(&self) -> Outcome<ProcessMemory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|kb| kb.parse().ok()).unwrap_or(f64::NAN)
        };
        Ok(ProcessMemory { rss_kib: value("Rss:"), anonymous_kib: value("Anonymous:") })
    }

    /// The cumulative histogram of the duration of loop iterations, in seconds, from /metrics.
    pub(crate) fn iteration_histogram(&self) -> Outcome<Vec<(f64, f64)>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.api))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let buckets = text.lines().filter(|line| line.starts_with("gateway_turn_seconds_bucket{le=\""));
        let parsed = buckets.filter_map(|line| {
            let (limit, count) = line.split_once("le=\"")?.1.split_once("\"} ")?;
            Some((limit.replace("+Inf", "inf").parse().ok()?, count.parse().ok()?))
        });
        Ok(parsed.collect())
    }

    /// Ends it; an error if it ended before.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        match self.child.try_wait()? {
            Some(status) => Err(format!("it ended early ({status}): {}", self.log()).into()),
            None => Ok(()),
        }
    }
}

impl Drop for MeasuredProcess {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Moves this thread and its children to one core; on a machine with one core all share it.
fn pin_to_core(core: usize) {
    let mut set = CpuSet::new();
    let _ = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}
