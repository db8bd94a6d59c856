use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn in_chinese(message: &str) -> String {
    chinese(message)
}

#[test]
fn the_option_counts_before_the_environment() {
    let of = |set: &[(&str, &str)]| {
        is_chinese_by_environment(|name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        })
    };
    for (set, expected) in [
        (&[][..], false),
        (&[("LANG", "zh_CN.UTF-8")], true),
        (&[("LANG", "zh")], true),
        (&[("LANG", "en_US.UTF-8")], false),
        (&[("LC_ALL", "C"), ("LANG", "zh_CN.UTF-8")], false),
        (&[("LC_ALL", ""), ("LC_MESSAGES", "zh_TW"), ("LANG", "de")], true),
    ] {
        assert_eq!(of(set), expected, "{set:?}");
    }
    let mut args = Arguments::from_vec(["check", "--lang", "fr"].map(OsString::from).to_vec());
    let error = choose(&mut args, |_| None).unwrap_err();
    assert_eq!(error, "--lang: found \"fr\", allowed: en, zh");
}

#[test]
fn a_message_is_translated_with_the_messages_in_it() {
    // The dashboard's script must translate them in the same way: tests/dashboard.rs reads the same file.
    for line in include_str!("../../../tests/data/translations.tsv").lines() {
        let (message, expected) = line.split_once('\t').unwrap();
        assert_eq!(in_chinese(message), expected);
    }
}

#[test]
fn a_message_of_a_peer_costs_little_and_never_panics() {
    for text in [
        ": ".repeat(2000),
        "; ".repeat(2000),
        "{}".repeat(2000),
        " ".repeat(2000),
        " from ".repeat(500) + " to ",
        "。: 语".repeat(300),
    ] {
        in_chinese(&text);
    }
}

#[test]
fn text_is_padded_to_columns() {
    assert_eq!(
        (padded("ab", 4), padded("正常", 5), padded("abc", 2)),
        ("ab  ".into(), "正常 ".into(), "abc".into())
    );
}

/// The files whose texts are shown to people, as messages.
const FILES: [&str; 98] = [
    "admin/auth.rs",
    "admin/body.rs",
    "admin/call_history.rs",
    "admin/response_parser.rs",
    "admin/command_results.rs",
    "admin/device_setup.rs",
    "admin/dto.rs",
    "admin/error.rs",
    "admin/event.rs",
    "admin/http.rs",
    "admin/messages.rs",
    "admin/notify.rs",
    "admin/notify_files.rs",
    "admin/params.rs",
    "admin/recent_errors.rs",
    "admin/routes.rs",
    "args.rs",
    "clock.rs",
    "config/chat_server.rs",
    "config/diff.rs",
    "config/dotenv.rs",
    "config/environment.rs",
    "config/error.rs",
    "config/file.rs",
    "config/value_kind.rs",
    "config/mod.rs",
    "config/node_config.rs",
    "config/ota.rs",
    "config/public_address.rs",
    "config/redis_url.rs",
    "config/signature_key.rs",
    "config/source.rs",
    "config/value.rs",
    "config/warnings.rs",
    "main.rs",
    "net/admin/event_streams.rs",
    "net/admin/server.rs",
    "net/backend/connection.rs",
    "net/backend/health_poll.rs",
    "net/backend/http_client.rs",
    "net/backend/resolver.rs",
    "net/backend/tls.rs",
    "net/backend/upgrade.rs",
    "net/error.rs",
    "net/gateway/admin_handlers.rs",
    "net/gateway/admin_requests.rs",
    "net/gateway/core_actions.rs",
    "net/gateway/call_log.rs",
    "net/gateway/check_requests.rs",
    "net/gateway/dashboard_requests.rs",
    "net/gateway/device_log.rs",
    "net/gateway/login.rs",
    "net/gateway/notify_requests.rs",
    "net/mqtt/certificate.rs",
    "net/mqtt/certificate_chain.rs",
    "net/mqtt/handshake.rs",
    "net/mqtt/watched_certificate.rs",
    "net/ota/upstream_connection.rs",
    "proto/identity.rs",
    "proto/message.rs",
    "proto/message/hello.rs",
    "proto/mqtt.rs",
    "proto/ogg_opus.rs",
    "proto/ota.rs",
    "session/action/display.rs",
    "session/call/dial.rs",
    "session/call/end.rs",
    "session/call/mod.rs",
    "session/call/text.rs",
    "session/core/connection.rs",
    "session/device_calls.rs",
    "session/server_failure_cause.rs",
    "tools/check.rs",
    "tools/check/diagnosis.rs",
    "tools/check/ota.rs",
    "tools/check/ports.rs",
    "tools/check/public_ip.rs",
    "tools/check/redis.rs",
    "tools/check/report.rs",
    "tools/check/server.rs",
    "tools/check/settings.rs",
    "tools/command_line.rs",
    "tools/demo.rs",
    "tools/device.rs",
    "tools/device/call.rs",
    "tools/device/error.rs",
    "tools/device/tls.rs",
    "tools/init.rs",
    "tools/init/guide.rs",
    "tools/init/questions.rs",
    "tools/page.rs",
    "tools/probe.rs",
    "tools/probe/call.rs",
    "tools/probe/diagnosis.rs",
    "tools/probe/options.rs",
    "tools/probe/report.rs",
    "tools/step_report.rs",
    "tools/token.rs",
];

/// Texts in these files that are no messages, or are the same in every language.
const SAME_IN_EVERY_LANGUAGE: [&str; 31] = [
    "builds with and without TLS have different errors",
    "Bearer test-token",
    "Bearer {}",
    "hung up",
    "{} by an operator",
    "text/plain; charset=utf-8",
    "is denied until the gateway restarts",
    "may connect again",
    "start_ms {}",
    "1.1 mqtt-websocket-proxy",
    "not {}",
    "  {} init",
    "init: {}",
    "it asks for api.token, or for the token that `mqtt-websocket-proxy token` prints",
    "it asks for the token that `mqtt-websocket-proxy token` prints",
    "only this machine is served, as there is neither a signature key nor api.token",
    "-H 'Content-Type: application/json'",
    "curl {} -d '{\"ota_url\":\"{}\"}' http://192.168.4.1/advanced/submit",
    "curl {} -H 'Device-Id: {}' -H 'Client-Id: 00000000-0000-4000-8000-000000000001' -d '{}' {}",
    "  mqtt-websocket-proxy credentials --mac MAC --key (mqtt.signature_key in {})",
    " ({} ms)",
    "  {} credentials --mac aa:bb:cc:dd:ee:ff",
    "  {} probe HOST",
    " at line ",
    "1, true, yes, on, 0, false, no, off",
    "check {} {}",
    "off, error, warn, info, debug, trace",
    "plain HTTP request was sent to HTTPS port",
    "sent an HTTP request to an HTTPS server",
    "speaking plain HTTP to an SSL-enabled server port",
    "{} ms",
];

/// What the system, its C library and OpenSSL say.
const OF_THE_SYSTEM: [&str; 27] = [
    "error:{}:SSL routines:{}:certificate verify failed:{}: ({})",
    "error:{}:SSL routines:{}:wrong version number:{}",
    "unable to get local issuer certificate",
    "unable to get issuer certificate",
    "self-signed certificate",
    "self-signed certificate in certificate chain",
    "certificate has expired",
    "certificate is not yet valid",
    "hostname mismatch",
    "IP address mismatch",
    "{} (os error {})",
    "Connection refused",
    "Connection reset by peer",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Host is down",
    "Broken pipe",
    "Too many open files",
    "Permission denied",
    "No such file or directory",
    "Address already in use",
    "Cannot assign requested address",
    "failed to lookup address information: {}",
    "Name or service not known",
    "Temporary failure in name resolution",
    "No address associated with hostname",
];

#[test]
fn the_catalogue_is_complete_and_has_nothing_else() {
    let file = compressed_texts::CHINESE.text();
    let catalogue = read_catalogue(&file);
    let translations: BTreeMap<_, _> =
        catalogue.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    assert_eq!(translations.len(), catalogue.len(), "an entry occurs twice");
    assert_eq!(catalogue.len(), file.lines().filter(|line| line.starts_with("msgid ")).count());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut missing = BTreeSet::new();
    for file in FILES {
        let messages = literals(&source.join(file)).into_iter().filter(|text| is_message(text));
        missing.extend(messages.filter(|text| {
            !translations.contains_key(text.as_str()) && !SAME_IN_EVERY_LANGUAGE.contains(&text.as_str())
        }));
    }
    assert!(missing.is_empty(), "messages.zh.po lacks {missing:#?}");
    let known: BTreeSet<_> = rust_files(&source).iter().flat_map(|file| literals(file)).collect();
    for (id, text) in translations {
        assert!(known.contains(id) || OF_THE_SYSTEM.contains(&id), "no message is {id:?}");
        let count = id.matches(PLACEHOLDER).count();
        let values: Vec<_> = (1..=count).map(|number| format!("<{number}>")).collect();
        let filled = filled(text, &values);
        assert!(values.iter().all(|value| filled.matches(value.as_str()).count() == 1), "{id:?}: {filled:?}");
        assert_eq!(text.matches('{').count(), id.matches('{').count(), "{id:?}: {text:?}");
        assert!(text.chars().any(is_wide), "{id:?} is not translated: {text:?}");
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    let is_tests = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == "tests");
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs") && !is_tests(path))
        .collect()
}

/// Whether a text in the source is words for a reader: two or more, on one line.
fn is_message(text: &str) -> bool {
    let words = text.replace(PLACEHOLDER, "");
    let has_word = words.as_bytes().windows(2).any(|pair| pair.iter().all(u8::is_ascii_lowercase));
    // A text in both languages needs no translation.
    let is_english = !text.chars().any(is_wide);
    text.trim().contains(' ') && !text.contains('\n') && !text.starts_with("{\"") && has_word && is_english
}

/// Calls whose texts are not shown, or go to the log.
const OTHER_CALLS: [&str; 14] = [
    "log_about!(",
    "info!(",
    "warn!(",
    "error!(",
    "debug!(",
    "panic!(",
    "assert!(",
    "assert_eq!(",
    "unreachable!(",
    ".expect(",
    ".contains(",
    ".starts_with(",
    ".find(",
    "debug_assert!(",
];

/// The string literals of a file without its tests, as they are at run time, with `{}` for each value.
fn literals(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap().replace('\r', "");
    let tests =
        ["#[cfg(test)]\nmod ", "#[cfg(test)]\n#[allow", "#[cfg(all(test"].map(|start| text.find(start));
    let text = &text[..tests.into_iter().flatten().min().unwrap_or(text.len())];
    let (mut found, mut rest, mut depth, mut skipped_above) = (Vec::new(), text, 0, None);
    while let Some(c) = rest.chars().next() {
        let raw = rest
            .strip_prefix('r')
            .map(|rest| rest.trim_start_matches('#'))
            .filter(|rest| rest.starts_with('"'));
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(behind) = raw {
            let end = format!("\"{}", "#".repeat(rest.len() - behind.len() - 1));
            rest = behind[1..].split_once(&end).unwrap().1;
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let end = end.unwrap() + 1;
            if skipped_above.is_none() {
                found.push(at_run_time(&rest[1..end]));
            }
            rest = &rest[end + 1..];
        } else if let Some(char_literal) = char_literal(rest) {
            rest = &rest[char_literal..];
        } else if let Some(call) = OTHER_CALLS.iter().find(|call| rest.starts_with(**call)) {
            skipped_above.get_or_insert(depth);
            depth += 1;
            rest = &rest[call.len()..];
        } else {
            depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
            skipped_above = skipped_above.filter(|above| depth > *above);
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// The length of a character literal that the text begins with; a lifetime is none.
fn char_literal(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    let first = inner.chars().next()?;
    let length = if first == '\\' { 2 + inner[2..].find('\'')? } else { first.len_utf8() };
    inner[length..].starts_with('\'').then_some(length + 2)
}

fn at_run_time(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal;
    while let Some((before, behind)) = rest.split_once(['\\', '{', '}']) {
        text.push_str(before);
        let special = rest.as_bytes()[before.len()];
        rest = match special {
            b'\\' if behind.starts_with('\n') => behind.trim_start(),
            b'\\' => {
                text.push(if behind.starts_with('n') { '\n' } else { behind.chars().next().unwrap() });
                &behind[1..]
            }
            special if behind.as_bytes().first() == Some(&special) => {
                text.push(special.into());
                &behind[1..]
            }
            b'{' => match behind.split_once('}').filter(|(value, _)| is_value(value)) {
                Some((_, behind)) => {
                    text.push_str(PLACEHOLDER);
                    behind
                }
                None => {
                    text.push('{');
                    behind
                }
            },
            special => {
                text.push(special.into());
                behind
            }
        };
    }
    text + rest
}

/// Whether this stands between the braces of a value: a name or number, and a format.
fn is_value(text: &str) -> bool {
    let name = text.split(':').next().unwrap_or_default();
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b)) && !text.contains('"')
}
