//! The program in its own folder.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{TIMEOUT, remaining};

/// A working directory, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// With a file in it.
    pub fn with_file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// The program, with nothing in its environment but these variables.
    pub fn command(&self, line: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-websocket-proxy"));
        command.args(line.split_whitespace()).current_dir(&self.0).env_clear();
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, line: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = self.command(line, variables);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut child = ChildGuard(child);
        let status = child.wait();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        child.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        child.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status, stdout, stderr }
    }

    /// Starts the gateway on free ports and waits until it runs. The configuration must log at info level.
    pub fn start(&self, line: &str, variables: &[(&str, &str)]) -> Process {
        let mut process = self.spawn(line, &[&PORTS, variables].concat());
        process.wait_for_line("MQTT on");
        process
    }

    /// Starts the program.
    pub fn spawn(&self, line: &str, variables: &[(&str, &str)]) -> Process {
        Process::spawn(self.command(line, variables))
    }

    /// Like [`Folder::start`], with a resource limit: an option of `ulimit` and its value.
    #[cfg(unix)]
    pub fn start_with_ulimit(&self, limit: &str, line: &str) -> Process {
        let gateway = self.command(line, &[]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]);
        command.arg(gateway.get_program()).args(gateway.get_args());
        command.current_dir(&self.0).env_clear().envs(PORTS).stdin(Stdio::null());
        let mut process = Process::spawn(command);
        process.wait_for_line("MQTT on");
        process
    }
}

const PORTS: [(&str, &str); 3] = [("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")];

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = ChildGuard(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let (sender, lines) = mpsc::channel();
        let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
        let stderr_pause = Arc::new(Mutex::new(()));
        let pause = Arc::clone(&stderr_pause);
        thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|n| n > 0) {
                drop(pause.lock());
                if sender.send(line.trim_end_matches('\n').to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self { child, lines, seen: Vec::new(), stderr_pause }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive its test.
struct ChildGuard(Child);

impl ChildGuard {
    fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the program does not end");
            // The standard library has no wait with a timeout.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running gateway, and what it logged.
pub struct Process {
    child: ChildGuard,
    lines: Receiver<String>,
    pub seen: Vec<String>,
    /// While this is locked, stderr is not read.
    stderr_pause: Arc<Mutex<()>>,
}

impl Process {
    /// Where devices connect.
    pub fn mqtt(&self) -> SocketAddr {
        let line = self.seen.iter().find(|line| line.contains("MQTT on")).unwrap();
        let address = line.split("MQTT on ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        let address: SocketAddr = address.parse().unwrap();
        match address.ip().is_unspecified() {
            true => SocketAddr::from(([127, 0, 0, 1], address.port())),
            false => address,
        }
    }

    /// Where the management API listens.
    pub fn api(&self) -> SocketAddr {
        self.address_behind("management API on ")
    }

    /// Where audio arrives.
    pub fn udp(&self) -> SocketAddr {
        self.address_behind("UDP on ")
    }

    /// Where devices ask for their settings.
    pub fn ota(&self) -> SocketAddr {
        let rest = self.seen.iter().find_map(|line| line.split_once("http://HOST:")).unwrap().1;
        SocketAddr::from(([127, 0, 0, 1], rest.split('/').next().unwrap().parse().unwrap()))
    }

    fn address_behind(&self, words: &str) -> SocketAddr {
        let rest = self.seen.iter().find_map(|line| line.split_once(words)).unwrap().1;
        rest.split(',').next().unwrap().parse().unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// The next line with this text.
    pub fn wait_for_line(&mut self, part: &str) -> String {
        let end = Instant::now() + TIMEOUT;
        loop {
            let Ok(line) = self.lines.recv_timeout(remaining(end)) else {
                panic!("no {part:?} in {:#?}", self.seen)
            };
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Polls until the condition holds.
    pub fn wait_until(&mut self, done: impl Fn() -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !done() {
            assert!(Instant::now() < end && self.child.0.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until a line with this in it was logged, now or before.
    pub fn wait_for_line_from_start(&mut self, part: &str) {
        if !self.seen.iter().any(|line| line.contains(part)) {
            self.wait_for_line(part);
        }
    }

    /// The lines logged since the last one that was returned.
    pub fn lines(&mut self) -> Vec<String> {
        let lines: Vec<String> = self.lines.try_iter().collect();
        self.seen.extend_from_slice(&lines);
        lines
    }

    /// Sends a signal, such as `TERM`.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// While this is locked, stderr is not read.
    pub fn pause_reading(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.stderr_pause)
    }

    /// Waits for the end.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().code()
    }

    /// Waits for the end: the exit code, and all lines. The gateway writes them to stderr, and nothing to stdout.
    pub fn end(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().code();
        let mut stdout = String::new();
        self.child.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        assert_eq!(stdout, "");
        while let Ok(line) = self.lines.recv_timeout(TIMEOUT) {
            self.seen.push(line);
        }
        (code, self.seen)
    }
}
