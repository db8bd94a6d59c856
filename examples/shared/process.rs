//! Free ports, and what /proc reports about a process: shared by the examples `load` and `soak` and the bench `baseline`.
#![allow(dead_code)] // Not each of them uses everything.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

/// A port that is free now, for a process that listens on it a moment later.
pub(crate) fn free_tcp_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

pub(crate) fn free_udp_port() -> io::Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The resident set of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The private memory of a process, in KiB.
pub(crate) fn anonymous_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The processor time of a process's threads so far, or only of those with this name.
pub(crate) fn cpu_time(pid: u32, thread: Option<&str>) -> Option<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if thread.is_none_or(|name| read("comm").trim_end() == name) {
            // The thread may have ended. The first number is the time spent running.
            nanoseconds += read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        }
    }
    Some(Duration::from_nanos(nanoseconds))
}
