//! What the system reports about this process.

// On other systems, only the tests parse such files.
#![cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(dead_code))]

use std::fs;

/// The standard process metrics of Prometheus. A number is left out when its file cannot be opened, for lack of descriptors for
/// example.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcStats {
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) cpu_seconds: Option<f64>,
}

/// Takes microseconds; before Linux 6.2, longer the more descriptors are open.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn read() -> ProcStats {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ProcStats {
        resident_bytes: kilobytes_as_bytes(&status, "VmRSS:"),
        virtual_bytes: kilobytes_as_bytes(&status, "VmSize:"),
        open_fds: count_open_fds(),
        max_fds: first_number(&limits, "Max open files"),
        threads: first_number(&status, "Threads:"),
        cpu_seconds: cpu_seconds(&stat),
    }
}

/// Other systems have no such files.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn read() -> ProcStats {
    ProcStats::default()
}

/// The first number on the line that begins with `name`.
fn first_number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn kilobytes_as_bytes(text: &str, name: &str) -> Option<u64> {
    Some(first_number(text, name)? * 1024)
}

/// Fields 14 and 15 of proc_pid_stat(5), in hundredths of a second. The second field, a name in parentheses, may contain
/// spaces.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / 100.0)
}

/// Linux 6.2 and later report the number as the size of the directory; before, its entries are counted.
fn count_open_fds() -> Option<u64> {
    let directory = "/proc/self/fd";
    match fs::metadata(directory).ok()?.len() {
        // The directory itself is open while it is read.
        0 => Some(fs::read_dir(directory).ok()?.count().saturating_sub(1) as u64),
        count => Some(count),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_parsed() {
        let status = "Name:\tx\nVmSize:\t  123456 kB\nVmRSS:\t    2048 kB\nThreads:\t4\n";
        assert_eq!(kilobytes_as_bytes(status, "VmRSS:"), Some(2048 * 1024));
        assert_eq!(first_number(status, "Threads:"), Some(4));
        assert_eq!(first_number(status, "Absent:"), None);
        let limits = "Limit      Soft Limit  Hard Limit  Units\nMax open files            1024        4096     files\n";
        assert_eq!(first_number(limits, "Max open files"), Some(1024));
        assert_eq!(first_number("Max open files   unlimited  unlimited files\n", "Max open files"), None);
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_descriptors_and_threads() {
        let process = read();
        assert!(process.resident_bytes.unwrap() > 100_000);
        assert!(process.virtual_bytes >= process.resident_bytes);
        let before = process.open_fds.unwrap();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        assert!(read().open_fds.unwrap() >= before.saturating_sub(20) + 50);
        assert!(process.threads.unwrap() >= 1 && process.cpu_seconds.unwrap() >= 0.0);
        drop(files);
    }
}
