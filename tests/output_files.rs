//! The log and pid file: who can read them, and where no link is followed.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::command::only_line;
use support::process::Folder;

const LOG_FILE: &str = "MQTT_PROXY_LOGGING_FILE_PATH";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn log_and_pid_file_are_not_readable_by_everyone() {
    let folder = Folder::new().with_file("old.log", "before\n").with_file("old.pid", "a long old text\n");
    let old = ["old.log", "old.pid"].map(|name| folder.0.join(name));
    for path in &old {
        fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }
    let running = folder.start("-p new.pid", &[(LOG_FILE, "new/gateway.log")]);
    for name in ["new/gateway.log", "new.pid"] {
        // The umask may take away more.
        let mode = mode(&folder.0.join(name));
        assert_eq!(mode & !0o640, 0, "{name}: {mode:o}");
        assert_eq!(mode & 0o600, 0o600, "{name}: {mode:o}");
    }
    drop(running);
    let running = folder.start("-p old.pid", &[(LOG_FILE, "old.log")]);
    assert_eq!(old.each_ref().map(|path| mode(path)), [0o644; 2], "files that exist keep their mode");
    assert!(fs::read_to_string(&old[0]).unwrap().starts_with("before\n"));
    assert_eq!(fs::read_to_string(&old[1]).unwrap(), format!("{}\n", running.id()));
}

/// A working directory of this mode, with a link in it to a file in another folder.
fn folder_with_link(mode: u32) -> (Folder, Folder) {
    let (folder, elsewhere) = (Folder::new(), Folder::new().with_file("target", "before\n"));
    std::os::unix::fs::symlink(elsewhere.0.join("target"), folder.0.join("link")).unwrap();
    fs::set_permissions(&folder.0, PermissionsExt::from_mode(mode)).unwrap();
    (folder, elsewhere)
}

#[test]
fn a_link_in_a_folder_that_others_can_write_to_is_refused_as_log_and_pid_file() {
    const QUIET: (&str, &str) = ("MQTT_PROXY_LOGGING_ENABLED", "false");
    let ports = [("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")];
    for mode in [0o1777, 0o775, 0o757] {
        let (folder, elsewhere) = folder_with_link(mode);
        let (target, absolute) = (elsewhere.0.join("target"), folder.0.join("link"));
        for path in ["link", "./link", absolute.to_str().unwrap()] {
            for (line, log, what) in
                [(String::new(), path, "log file"), (format!("-p {path}"), "", "pid file")]
            {
                let output = folder.run(&line, &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, log)]);
                let error = only_line(&output);
                assert_eq!(output.status.code(), Some(1), "{error}");
                let start = format!("error: the {what} {path} cannot be ");
                let reason = ": it is a symbolic link in a folder that others can write to";
                assert!(error.starts_with(&start) && error.ends_with(reason), "{error}");
                assert_eq!(fs::read_to_string(&target).unwrap(), "before\n");
            }
        }
        // Nor is a folder entered through a link that others could have placed.
        std::os::unix::fs::symlink(&elsewhere.0, folder.0.join("inner")).unwrap();
        let output = folder.run("", &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, "inner/log")]);
        let error = only_line(&output);
        assert!(error.contains("inner is a symbolic link in a folder that others"), "{error}");
        assert!(!elsewhere.0.join("log").exists());
        // Nor is a second name of another file written.
        fs::hard_link(&target, folder.0.join("second")).unwrap();
        let output = folder.run("", &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, "second")]);
        let error = only_line(&output);
        assert!(
            error.ends_with("it has several names (hard links), and is in a folder that others can write to"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&target).unwrap(), "before\n");
        // Nor is the file made that a link leads to.
        fs::remove_file(&target).unwrap();
        let output = folder.run("", &[QUIET, (LOG_FILE, "link")]);
        assert!(only_line(&output).contains("symbolic link") && !target.exists());
        // Other files there are written as everywhere.
        let running = folder.start("-p gateway.pid", &[(LOG_FILE, "gateway.log")]);
        assert!(folder.0.join("gateway.pid").exists() && folder.0.join("gateway.log").exists());
        drop(running);
    }
    // A folder that belongs to somebody else is one of these, whatever its mode. Only root can try it.
    let (folder, elsewhere) = folder_with_link(0o755);
    if std::os::unix::fs::chown(&folder.0, Some(65534), None).is_ok() {
        let output = folder.run("", &[ports[0], ports[1], ports[2], QUIET, (LOG_FILE, "link")]);
        assert!(only_line(&output).contains("symbolic link"));
        assert_eq!(fs::read_to_string(elsewhere.0.join("target")).unwrap(), "before\n");
    }
}

#[test]
fn a_link_in_a_folder_of_our_own_is_followed_by_log_and_pid_file() {
    let (folder, elsewhere) = folder_with_link(0o755);
    let target = elsewhere.0.join("target");
    let running = folder.start("", &[(LOG_FILE, "link")]);
    running.signal("TERM");
    running.end();
    let text = fs::read_to_string(&target).unwrap();
    assert!(text.starts_with("before\n") && text.contains("MQTT on"), "{text}");
    let running = folder.start("-p link", &[]);
    assert_eq!(fs::read_to_string(&target).unwrap(), format!("{}\n", running.id()));
}

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
