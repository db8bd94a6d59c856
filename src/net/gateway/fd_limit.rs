//! Enlarges the process's table of file descriptors in advance.

/// Enlarges the table for this many devices, half of them in calls, as far as the limit allows. Linux doubles the table
/// whenever it is full, which blocks a process with several threads for 10 to 25 ms and would interrupt the audio of calls.
/// Best called before the first thread starts, when it does not block.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn reserve(devices: usize) {
    use nix::fcntl::{FcntlArg, fcntl};
    let mut count = devices.saturating_add(devices / 2);
    let Ok(file) = std::fs::File::open("/dev/null") else { return };
    // The table grows by doubling, so when the limit refuses a number, half of it is the next size to try.
    while count > 64 {
        let wanted = count.try_into().unwrap_or(i32::MAX);
        match fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(wanted)) {
            Ok(highest) => {
                let _ = nix::unistd::close(highest);
                return;
            }
            Err(_) => count /= 2,
        }
    }
}

/// Other systems do not block.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn reserve(_: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_table_has_room_before_it_is_needed() {
        super::reserve(400);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let room = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(room.trim().parse::<usize>().unwrap() >= 600, "{room}");
    }
}
