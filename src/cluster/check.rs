//! The commands with which `check` finds out whether this gateway may do with Redis what it needs.

use super::commands::{DELETE, HOLD};
use super::frame::{Frame, kind};
use super::resp::{self, Reply};
use super::{GatewayId, Settings};

/// What a user of Redis needs, with `PREFIX` for the configured one; the database 0.
pub const PERMISSIONS: &str = "~PREFIX:* &PREFIX:* -@all +ping +set +get +mget +expire +pttl +eval +del +publish +subscribe +client|setname";

/// A command to be tried.
pub struct CheckCommand {
    /// Its name.
    pub name: &'static str,
    /// What to send.
    pub bytes: Vec<u8>,
}

fn command(name: &'static str, parts: &[&[u8]]) -> CheckCommand {
    let mut bytes = Vec::new();
    resp::command(&mut bytes, parts);
    CheckCommand { name, bytes }
}

/// The first commands of a connection.
pub fn login(settings: &Settings, is_subscriber: bool) -> Vec<CheckCommand> {
    let login = settings
        .login(is_subscriber)
        .map(|(name, parts)| command(name, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    login.chain([command("CLIENT SETNAME", &[b"CLIENT", b"SETNAME", b"check"])]).collect()
}

/// What the subscriber sends then. Its reply is the first of the channel.
pub fn subscribe(settings: &Settings, id: GatewayId) -> CheckCommand {
    command("SUBSCRIBE", &[b"SUBSCRIBE", channel(settings, id).as_bytes()])
}

/// What the other connection sends, with a key of its own that is gone afterwards.
pub fn commands(settings: &Settings, id: GatewayId) -> Vec<CheckCommand> {
    let key = format!("{}:check:{id}", settings.prefix);
    let key = key.as_bytes();
    let mut frame = Vec::new();
    Frame { from: id, kind: kind::PROBE, id: 0, payload: b"" }.write(&mut frame);
    vec![
        command("PING", &[b"PING"]),
        command("SET with GET", &[b"SET", key, b"1", b"EX", b"15", b"GET"]),
        command("SET with NX", &[b"SET", key, b"1", b"NX", b"EX", b"15"]),
        command("GET", &[b"GET", key]),
        command("MGET", &[b"MGET", key]),
        command("EXPIRE", &[b"EXPIRE", key, b"15"]),
        command("PTTL", &[b"PTTL", key]),
        command("EVAL", &[b"EVAL", HOLD, b"1", key, b"1", b"15"]),
        command("DEL in EVAL", &[b"EVAL", DELETE, b"1", key, b"1"]),
        command("PUBLISH", &[b"PUBLISH", channel(settings, id).as_bytes(), &frame]),
    ]
}

fn channel(settings: &Settings, id: GatewayId) -> String {
    format!("{}:to:{id}", settings.prefix)
}

/// How many bytes the first reply in `input` takes; `None` while it is incomplete.
///
/// # Errors
/// The error that it is, in Redis's words, or that it is none.
pub fn reply(input: &[u8]) -> Result<Option<usize>, String> {
    match resp::reply(input)? {
        Some((Reply::Error(text), _)) => Err(text),
        Some((_, len)) => Ok(Some(len)),
        None => Ok(None),
    }
}
