//! The program as an operator meets it: exit codes, messages, log, pid file and signals.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A working directory of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("run-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with_file(self, name: &str, text: &str) -> Self {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// The program with nothing in its environment but `variables`.
    fn command(&self, line: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-websocket-proxy"));
        command.args(line.split_whitespace()).current_dir(&self.0).env_clear();
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    fn run(&self, line: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = self.command(line, variables);
        let mut child = ChildGuard(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let status = child.exit_code();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        child.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        child.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status, stdout, stderr }
    }

    /// Starts the gateway on free ports and waits until it says that it runs.
    fn start(&self, line: &str, variables: &[(&str, &str)]) -> Running {
        let mut command = self.command(line, variables);
        command.env("MQTT_PORT", "0").env("UDP_PORT", "0").env("API_PORT", "0");
        let mut child = ChildGuard(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.0.stderr.take().unwrap());
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut running = Running { child, lines, seen: Vec::new() };
        running.wait_for("MQTT on");
        running
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
    fn exit_code(&mut self) -> std::process::ExitStatus {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the program does not end");
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

struct Running {
    child: ChildGuard,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    fn wait_for(&mut self, part: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(TIMEOUT) else {
                panic!("{part:?} is not in {:#?}", self.seen)
            };
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// All lines, once the program has ended.
    #[cfg(unix)]
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.exit_code().code();
        while let Ok(line) = self.lines.recv_timeout(TIMEOUT) {
            self.seen.push(line);
        }
        (code, self.seen)
    }
}

fn stderr_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    text.trim_end().to_owned()
}

#[test]
fn help_and_version_are_printed() {
    let folder = Folder::new();
    let version = format!("mqtt-websocket-proxy {}\n", env!("CARGO_PKG_VERSION"));
    for line in ["-v", "--version"] {
        let output = folder.run(line, &[]);
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stdout).unwrap()),
            (Some(0), version.clone())
        );
    }
    for line in ["-h", "--help"] {
        let output = folder.run(line, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text.contains("MQTT_SIGNATURE_KEY") && text.contains("--config"), "{text}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_one_line() {
    let folder = Folder::new();
    for (line, part) in [
        ("--nonsense", "--nonsense"),
        ("nonsense", "nonsense"),
        ("-c", "-c"),
        ("-l loud", "loud"),
        ("-x", "-x"),
    ] {
        let output = folder.run(line, &[]);
        let error = stderr_line(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part) && error.contains("--help"), "{error}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_file_field_found_and_allowed() {
    let folder =
        Folder::new().with_file("bad.json", r#"{"mqtt":{"port":"abc"}}"#).with_file("good.json", "{}");
    for (line, variables, expected) in [
        (
            "-c bad.json",
            vec![],
            r#"error: bad.json: mqtt.port: found "abc", allowed: a whole number from 0 to 65535"#,
        ),
        ("", vec![("CONFIG_FILE", "bad.json")], r#"error: bad.json: mqtt.port: found "abc", allowed: "#),
        ("-c absent.json", vec![], "error: absent.json: cannot be read: "),
        ("", vec![("CONFIG_FILE", "absent.json")], "error: absent.json: cannot be read: "),
        ("-c .", vec![], "error: .: cannot be read: "),
        (
            "-c good.json",
            vec![("UDP_PORT", "65536")],
            r#"error: environment: UDP_PORT: found 65536, allowed: a whole number from 0 to 65535"#,
        ),
        ("", vec![("DEBUG", "maybe")], r#"error: environment: DEBUG: found "maybe", allowed: 1, true"#),
    ] {
        let output = folder.run(line, &variables);
        let error = stderr_line(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn the_default_file_is_read_when_it_is_there() {
    let folder = Folder::new().with_file("config/gateway.json", r#"{"udp":{"prot":1}}"#);
    let output = folder.run("", &[]);
    assert_eq!(output.status.code(), Some(2));
    let error = stderr_line(&output);
    assert!(
        error.starts_with(
            "error: config/gateway.json: udp.prot: found an unknown key in udp, allowed: port, "
        ),
        "{error}"
    );
}

#[test]
fn a_port_in_use_ends_with_1_and_one_line_with_port_and_reason() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let file = r#"{"mqtt":{"host":"127.0.0.1"},"logging":{"enabled":false}}"#;
    let folder = Folder::new().with_file("quiet.json", file);
    let variables = [("MQTT_PORT", port.as_str()), ("UDP_PORT", "0"), ("API_PORT", "0")];
    let output = folder.run("-c quiet.json -p gateway.pid", &variables);
    let error = stderr_line(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&port) && error.contains("in use"), "{error}");
    assert!(!folder.0.join("gateway.pid").exists());
}

#[test]
fn an_unopenable_log_or_pid_file_exits_with_1_and_one_line() {
    let log = r#"{"logging":{"enabled":false,"file_path":"file/gateway.log"}}"#;
    let folder = Folder::new().with_file("file", "").with_file("log.json", log);
    let folder = folder.with_file("quiet.json", r#"{"logging":{"enabled":false}}"#);
    let ports = [("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")];
    for (line, part) in [
        ("-c log.json", "the log file file/gateway.log"),
        ("-c quiet.json -p file/pid", "the pid file file/pid"),
    ] {
        let output = folder.run(line, &ports);
        let error = stderr_line(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && error.contains(part), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn it_starts_on_defaults_logs_so_and_exits_with_0_on_either_signal() {
    for signal in ["TERM", "INT"] {
        let folder = Folder::new();
        let running = folder.start("--pid gateway.pid", &[("MQTT_PORT", "0"), ("UDP_PORT", "0")]);
        let pid = fs::read_to_string(folder.0.join("gateway.pid")).unwrap();
        assert_eq!(pid.trim_end(), running.child.0.id().to_string());
        running.signal(signal);
        let (code, lines) = running.end();
        assert_eq!(code, Some(0), "{lines:#?}");
        let text = lines.join("\n");
        for part in ["running on defaults", "built-in echo server", "signature_key", "stopped"] {
            assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
        }
        assert!(text.contains(concat!("mqtt-websocket-proxy ", env!("CARGO_PKG_VERSION"))), "{text}");
        assert!(!folder.0.join("gateway.pid").exists());
    }
}

#[cfg(unix)]
#[test]
fn the_log_goes_to_the_file_too_and_no_line_holds_a_secret() {
    let file = r#"{"websocket":{"production_servers":["ws://127.0.0.1:9/?token=hunter1"],"server_secret":"hunter2"},
        "logging":{"file_path":"logs/deep/gateway.log"},"gateway":{"device_id":"x","client_id":"y"}}"#;
    let folder = Folder::new().with_file("gateway.json", file);
    let running = folder.start("-l debug -c gateway.json", &[("MQTT_SIGNATURE_KEY", "hunter3")]);
    running.signal("TERM");
    let (code, lines) = running.end();
    assert_eq!(code, Some(0), "{lines:#?}");
    let written = fs::read_to_string(folder.0.join("logs/deep/gateway.log")).unwrap();
    assert_eq!(written.lines().collect::<Vec<_>>(), lines);
    assert!(written.contains("chat servers: 1") && written.contains("gateway.device_id"), "{written}");
    assert!(!written.contains("hunter"), "{written}");
    assert!(!written.contains("echo"), "{written}");
}

#[cfg(unix)]
#[test]
fn a_node_gateways_directory_works_unchanged_and_is_reported() {
    let file =
        r#"{"production":{"chat_servers":["ws://127.0.0.1:9/"]},"max_mqtt_payload_size":8192,"debug":false}"#;
    let env = "PUBLIC_IP=192.0.2.7 # mine\nMQTT_SIGNATURE_KEY=hunter$2\nSERVER_SECRET=\"hunter#3\"\nUDP_PORT=1\nDEBUG=x\n";
    let folder = Folder::new().with_file("config/mqtt.json", file).with_file(".env", env);
    let mut running = folder.start("--config config/mqtt.json", &[]);
    let line = running.seen.iter().find(|line| line.contains("config/mqtt.json")).unwrap();
    assert!(line.contains("Node.js") && line.contains(".env gives PUBLIC_IP, MQTT_SIGNATURE_KEY"), "{line}");
    // UDP_PORT is set in the environment, so that of the file does not count.
    assert!(!line.contains("UDP_PORT"), "{line}");
    assert!(running.seen.last().unwrap().contains("public ip 192.0.2.7"), "{:#?}", running.seen);

    fs::write(folder.0.join("new.json"), file.replace(":9/", ":10/").replace("8192", "null")).unwrap();
    fs::rename(folder.0.join("new.json"), folder.0.join("config/mqtt.json")).unwrap();
    running.signal("HUP");
    let line = running.wait_for("applied");
    assert!(
        line.contains("mqtt.max_payload_size") && line.contains("websocket.production_servers"),
        "{line}"
    );
    assert!(!line.contains("signature_key") && !line.contains("server_secret"), "{line}");

    running.signal("TERM");
    let (code, lines) = running.end();
    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!lines.join("\n").contains("hunter") && !lines.join("\n").contains("signature_key is not set"));
}

#[test]
fn the_env_file_counts_for_a_node_file_only() {
    let folder = Folder::new()
        .with_file(".env", "MQTT_PORT=abc\n")
        .with_file("mqtt.json", r#"{"production":{}}"#)
        .with_file("bad.json", r#"{"mqtt":{"port":"abc"}}"#);
    let error = stderr_line(&folder.run("-c mqtt.json", &[]));
    assert!(error.starts_with(r#"error: .env: MQTT_PORT: found "abc", allowed: "#), "{error}");
    let error = stderr_line(&folder.run("-c bad.json", &[]));
    assert!(error.starts_with("error: bad.json: mqtt.port"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_disabled_log_is_silent() {
    let folder = Folder::new().with_file("gateway.json", r#"{"logging":{"enabled":false}}"#);
    let mut child = ChildGuard(
        folder
            .command("-c gateway.json -p pid", &[("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let end = Instant::now() + TIMEOUT;
    // The pid file is written once the signals are watched.
    while !folder.0.join("pid").exists() {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(2));
    }
    let kill = format!("kill -TERM {}", child.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(child.exit_code().code(), Some(0));
    for stream in [&mut child.0.stdout.take().unwrap() as &mut dyn Read, &mut child.0.stderr.take().unwrap()]
    {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "");
    }
}

#[cfg(unix)]
#[test]
fn a_reload_applies_what_it_can_and_refuses_a_bad_file_whole() {
    let path = |folder: &Folder| folder.0.join("gateway.json");
    let folder = Folder::new()
        .with_file("gateway.json", r#"{"websocket":{"production_servers":["ws://127.0.0.1:9/"]}}"#);
    let mut running = folder.start("-c gateway.json", &[]);
    // Replaced by rename, so that nobody ever sees half a file.
    let replace = |text: &str| {
        fs::write(folder.0.join("new.json"), text).unwrap();
        fs::rename(folder.0.join("new.json"), path(&folder)).unwrap();
    };

    replace(r#"{"mqtt":{"max_connections":0}}"#);
    running.signal("HUP");
    let line = running.wait_for("mqtt.max_connections");
    assert!(line.contains("gateway.json") && line.contains("found 0"), "{line}");

    replace("{}");
    running.signal("HUP");
    running.wait_for("websocket.production_servers");

    replace(r#"{"websocket":{"production_servers":["ws://127.0.0.1:10/"]},"udp":{"public_ip":"192.0.2.1"}}"#);
    running.signal("HUP");
    let line = running.wait_for("needs restart");
    let (applied, restart) = line.split_once("needs restart").unwrap();
    assert!(applied.contains("websocket.production_servers") && restart.contains("udp.public_ip"), "{line}");

    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}
