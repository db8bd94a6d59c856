//! The fuzz target of the configuration: files and `.env`.

use super::error::Problem;
use super::{ChatServerConfig, Config, dotenv, file};
use crate::net::backend::upgrade;
use crate::session::harness::dial_request;

/// The text of a file: a configuration, and all the same a `.env` and the URL of a server.
pub(crate) fn parse(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    check_config(text);
    check_dotenv(text);
    check_url(text);
}

/// What is read is written, and read again as it was; what is refused is told in one line a time.
fn check_config(text: &str) {
    let mut problems = Vec::new();
    let mut config = file::parse(text, false, &mut problems);
    assert!(problems.len() <= text.len() + 1);
    for problem in problems {
        check_problem(problem, text);
    }
    // Whatever was refused, the rest is a good configuration.
    (config.unused_keys, config.node_config) = (Vec::new(), None);
    let mut problems = Vec::new();
    let again = file::parse(&config.to_file_text(), false, &mut problems);
    assert_eq!((problems, &again), (Vec::new(), &config), "read of write is identity");
    assert!(super::diff(&config, &again).is_empty());
    let _: serde_json::Value = serde_json::from_str(&config.to_masked_file_text()).unwrap();
    let secrets = [&config.mqtt.signature_key, &config.websocket.secret, &config.api.token];
    for secret in secrets.into_iter().flatten().chain(&config.mqtt.previous_signature_keys) {
        let secret = std::str::from_utf8(secret.as_bytes()).unwrap();
        if secret.len() >= 16 && text.matches(secret).count() == 1 {
            assert!(
                !config.to_masked_file_text().contains(secret) && !format!("{config:?}").contains(secret)
            );
        }
    }
    let _ = super::check_reload(&Config::default(), &config);
}

fn check_problem(problem: Problem, text: &str) {
    let line = problem.at("file").to_string();
    assert!(line.starts_with("file: ") && line.len() <= 12 * text.len() + 4_000, "{line}");
}

/// What `.env` assigns can be written so that it is read again.
fn check_dotenv(text: &str) {
    for (name, value) in dotenv::parse(text) {
        assert!(
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        );
        assert!(value.len() <= text.len());
        let quote = ['\'', '`'].into_iter().find(|quote| !value.contains(*quote));
        if let Some(quote) = quote.filter(|_| !value.ends_with('\\')) {
            let line = format!("# before\n{name}={quote}{value}{quote} # behind\nB=1\n");
            let expected = [(name.clone(), value.replace('\r', "\n")), ("B".to_owned(), "1".to_owned())];
            assert_eq!(dotenv::parse(&line), expected, "{line}");
        }
    }
}

/// A URL that is taken leads to one request, with nothing in it that the operator did not mean.
fn check_url(text: &str) {
    let server = match text.parse::<ChatServerConfig>() {
        Ok(server) => server,
        Err(bad) => return assert!(!bad.to_string().contains(char::is_control)),
    };
    assert!(!server.host.is_empty() && server.path.starts_with('/') && server.url == text);
    let scheme = if server.tls { "wss" } else { "ws" };
    let again: ChatServerConfig = format!("{scheme}://{}{}", server.authority, server.path).parse().unwrap();
    assert_eq!((&again.host, again.port, &again.path), (&server.host, server.port, &server.path));
    let dial = dial_request(server);
    let request = upgrade::request(&dial, "Bearer x", "key");
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Request::new(&mut fields);
    let length = parsed.parse(request.as_bytes()).unwrap().unwrap();
    assert_eq!((length, parsed.path), (request.len(), Some(dial.server.path.as_str())));
    assert_eq!(parsed.headers.len(), 10, "no header but our own");
}
