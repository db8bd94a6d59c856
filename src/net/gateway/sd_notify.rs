//! Tells the service manager that the gateway is ready, reloads, stops, and that its loop runs (sd_notify(3)).
//!
//! The loop itself sends the notifications, so a loop that hangs sends none and is restarted. The socket is opened once, at
//! start, so that it works after the process has run out of descriptors. It never blocks.

use std::io;
#[cfg(unix)]
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
#[cfg(unix)]
use std::{env, process};

use log::warn;

use crate::net::event_loop::io::TimerKind;
use crate::net::gateway::Gateway;

/// The socket of the service manager, if there is one.
#[derive(Default)]
pub(crate) struct SdNotify {
    #[cfg(unix)]
    socket: Option<UnixDatagram>,
    /// How often to report that the loop runs.
    interval: Option<Duration>,
}

impl SdNotify {
    /// Connects to the socket that the environment names.
    ///
    /// # Errors
    /// Those of connect(2).
    #[cfg(unix)]
    fn from_environment() -> io::Result<Self> {
        let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(Self::default());
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address(&path)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket), interval: watchdog_interval() })
    }

    #[cfg(not(unix))]
    fn from_environment() -> io::Result<Self> {
        Ok(Self::default())
    }

    /// A notification that cannot be sent is dropped: the watchdog and the status are sent again soon.
    #[cfg(unix)]
    fn notify(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }

    #[cfg(not(unix))]
    fn notify(&self, _text: &str) {}

    /// A reload begins. systemd compares the time with that of its request (`Type=notify-reload`).
    pub(crate) fn reloading(&self) {
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()));
    }

    pub(crate) fn reloaded(&self) {
        self.notify("READY=1");
    }

    /// Another process is the one to watch from now on. systemd believes this only from the one that it watches now.
    #[cfg(target_os = "linux")]
    pub(crate) fn set_main_process(&self, pid: u32) {
        self.notify(&format!("MAINPID={pid}"));
    }

    pub(crate) fn stopping(&self) {
        self.notify("STOPPING=1\nSTATUS=stopping");
    }
}

#[cfg(unix)]
fn address(path: &std::ffi::OsStr) -> io::Result<SocketAddr> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        if let Some(name) = path.as_bytes().strip_prefix(b"@") {
            return SocketAddr::from_abstract_name(name);
        }
    }
    SocketAddr::from_pathname(path)
}

/// Half of the manager's watchdog timeout, if it watches this process.
#[cfg(unix)]
fn watchdog_interval() -> Option<Duration> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let is_other = number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(process::id()));
    let usec = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && !is_other)?;
    Some(Duration::from_micros(usec) / 2)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn monotonic_usec() -> u128 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_micros())
}

/// Only systemd, which runs on Linux only, reads this.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn monotonic_usec() -> u128 {
    0
}

impl Gateway {
    /// Reports to the service manager that started this process, if there is one (systemd; `NOTIFY_SOCKET`): that the
    /// gateway is ready, and from now on when it reloads, drains or stops, and, as often as the manager asks for it, that
    /// the loop runs. For a process that is only a gateway: call this right before [`Gateway::run`].
    pub fn notify_service_manager(&mut self) {
        match SdNotify::from_environment() {
            Ok(sd_notify) => self.sd_notify = sd_notify,
            Err(error) => return warn!("the service manager (NOTIFY_SOCKET) cannot be reached: {error}"),
        }
        self.sd_notify.notify(&format!("READY=1\nSTATUS={}", self.status()));
        if let Some(interval) = self.sd_notify.interval {
            self.io.timers.arm(self.io.now + interval, TimerKind::Watchdog);
        }
    }

    pub(super) fn notify_watchdog(&mut self) {
        let Some(interval) = self.sd_notify.interval else { return };
        // One worker that hangs is reason enough for a restart.
        if self.workers.ping() {
            self.sd_notify.notify(&format!("WATCHDOG=1\nSTATUS={}", self.status()));
        }
        self.io.timers.arm(self.io.now + interval, TimerKind::Watchdog);
    }

    pub(super) fn notify_status(&self) {
        self.sd_notify.notify(&format!("STATUS={}", self.status()));
    }

    fn status(&self) -> String {
        let phase = self.lifecycle.phase().label();
        format!("{phase}: {} devices, {} calls", self.all_devices(), self.all_calls())
    }
}
