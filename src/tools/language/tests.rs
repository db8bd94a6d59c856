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
        of_environment(|name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        })
    };
    for (set, expected) in [
        (&[][..], Language::English),
        (&[("LANG", "zh_CN.UTF-8")], Language::Chinese),
        (&[("LANG", "zh")], Language::Chinese),
        (&[("LANG", "en_US.UTF-8")], Language::English),
        (&[("LC_ALL", "C"), ("LANG", "zh_CN.UTF-8")], Language::English),
        (&[("LC_ALL", ""), ("LC_MESSAGES", "zh_TW"), ("LANG", "de")], Language::Chinese),
    ] {
        assert_eq!(of(set), expected, "{set:?}");
    }
    let mut args = Arguments::from_vec(["check", "--lang", "fr"].map(OsString::from).to_vec());
    let error = choose(&mut args, |_| None).unwrap_err();
    assert_eq!(error, "--lang: found \"fr\", allowed: en, zh");
}

#[test]
fn a_message_is_translated_with_the_messages_in_it() {
    for (message, expected) in [
        ("Everything works.", "一切正常。"),
        ("the name chat.lan does not resolve: no such host", "域名 chat.lan 无法解析：no such host"),
        (
            "config/gateway.json: mqtt.port: found an object, allowed: a whole number from 0 to 65535",
            "config/gateway.json：mqtt.port：发现 对象，允许：0 到 65535 的整数",
        ),
        (
            "unknown or repeated argument \"--jso\"; the nearest is --json; see check --help",
            "未知或重复的参数 \"--jso\"；最接近的是 --json；见 check --help",
        ),
        (
            "cannot listen on MQTT port 1883 (0.0.0.0:1883): in use; another program uses it",
            "无法监听 MQTT 端口 1883（0.0.0.0:1883）：in use；它已被另一个程序占用",
        ),
        (
            "3 of 50 packets (6.0 %), about 1 on the way up and 2 on the way down",
            "50 个数据包中丢失 3 个（6.0 %），上行约 1 个，下行 2 个",
        ),
        (
            "mqtt.tls.key_file: the key in /k is encrypted; convert it with: openssl pkcs8 -topk8 -nocrypt -in /k -out /k.pk8",
            "mqtt.tls.key_file：/k 中的私钥已加密；请转换：openssl pkcs8 -topk8 -nocrypt -in /k -out /k.pk8",
        ),
        (
            "The certificate for a.b expires on 1 May, in 3 days: renew it.",
            "a.b 的证书将于 1 May 过期，还剩 3 天：请更新。",
        ),
        ("    port 1883", "    端口 1883"),
        (
            "--timeout: found \"999\", allowed: a whole number from 1 to 60; see check --help",
            "--timeout：发现 \"999\"，允许：1 到 60 的整数；见 check --help",
        ),
        ("error: a.json: cannot be read: gone", "错误：a.json：无法读取：gone"),
        (
            "MQTT 1883, UDP 8884, management API 8007, OTA 8006",
            "MQTT 1883，UDP 8884，管理 API 8007，OTA 8006",
        ),
        (
            "a device is told to connect to gw.lan port 1883, and this machine cannot: no route",
            "设备得到的连接地址是 gw.lan，端口 1883，但这台机器连接不上：no route",
        ),
        ("     MQTT connected in 2 ms", "     MQTT 已连接，用时 2 ms"),
        ("what nobody has translated", "what nobody has translated"),
        (
            "the file is empty; with nothing but {} in it, everything has its default",
            "文件是空的；只写 {} 时所有键都取默认值",
        ),
    ] {
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
const FILES: [&str; 49] = [
    "admin/client_response.rs",
    "args.rs",
    "clock.rs",
    "config/chat_server.rs",
    "config/dotenv.rs",
    "config/environment.rs",
    "config/error.rs",
    "config/file.rs",
    "config/kind.rs",
    "config/node_config.rs",
    "config/public_address.rs",
    "config/redis_url.rs",
    "config/signature_key.rs",
    "config/source.rs",
    "config/value.rs",
    "config/warnings.rs",
    "main.rs",
    "net/error.rs",
    "net/mqtt/certificate.rs",
    "net/mqtt/certificate_chain.rs",
    "proto/identity.rs",
    "proto/ota.rs",
    "session/server_cause.rs",
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
const SAME_IN_EVERY_LANGUAGE: [&str; 22] = [
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

#[test]
fn the_catalogue_is_complete_and_has_nothing_else() {
    let catalogue = read_catalogue(CHINESE);
    let translations: BTreeMap<_, _> =
        catalogue.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    assert_eq!(translations.len(), catalogue.len(), "an entry occurs twice");
    assert_eq!(catalogue.len(), CHINESE.lines().filter(|line| line.starts_with("msgid ")).count());
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
        assert!(known.contains(id), "no message is {id:?}");
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
    text.trim().contains(' ') && !text.contains('\n') && !text.starts_with("{\"") && has_word
}

/// Calls whose texts are not shown, or go to the log.
const OTHER_CALLS: [&str; 13] = [
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
