//! `credentials`: the `mqtt` object that a device's OTA answer must carry.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use pico_args::Arguments;
use serde::Serialize;

use super::command_line::{self, CommandLine};
use super::device::Login;
use super::terminal::Terminal;
use crate::net::media::credentials::local_address;
use crate::proto::identity::{ClientId, Mac};

const HELP: &str = "\
Print the \"mqtt\" object that the OTA answer for a device must carry.

Usage: mqtt-websocket-proxy credentials --mac MAC [options]

Options:
  --mac MAC             the device's MAC address, aa:bb:cc:dd:ee:ff
  --uuid UUID           last part of the client id (default: the MAC)
  --group GROUP         first part of the client id (default: GID_default)
  --key KEY             the gateway's signature key (default: MQTT_SIGNATURE_KEY)
  --endpoint HOST:PORT  where devices reach the gateway (default: this machine's
                        address, port 1883)
  -h, --help            show this help

Environment:
  MQTT_SIGNATURE_KEY    the signature key, so that it is on no command line

Exit code: 0 printed, 2 wrong usage.";

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("credentials", HELP, args, mqtt_credentials, |(json, notes)| {
        for note in notes {
            Terminal::stderr().print_line(&format!("note: {note}"));
        }
        Terminal::stdout().print_line(&json);
        ExitCode::SUCCESS
    })
}

#[derive(Serialize)]
struct MqttCredentials<'a> {
    endpoint: &'a str,
    client_id: &'a str,
    username: &'a str,
    password: &'a str,
    publish_topic: &'a str,
    subscribe_topic: &'a str,
    /// Seconds. The firmware's default is 240, and a dead device is noticed after 1.5 times that.
    keepalive: u16,
}

/// The object as JSON, and what its reader should know.
fn mqtt_credentials(mut args: CommandLine) -> Result<(String, Vec<String>), String> {
    let mac: Mac = args.value("--mac")?.ok_or("--mac is missing")?;
    let (uuid, group) = (args.text("--uuid")?, args.text("--group")?);
    let (key, endpoint) = (args.signature_key()?, args.text("--endpoint")?);
    args.finish()?;
    let mut notes = Vec::new();
    let mac_ = mac.underscored();
    let group = group.unwrap_or_else(|| "GID_default".into());
    let client_id = format!("{group}@@@{mac_}@@@{}", uuid.as_deref().unwrap_or(&mac_));
    ClientId::parse(&client_id).map_err(|error| format!("client id {client_id:?}: {error}"))?;
    if key.is_none() {
        notes.push("no --key and no MQTT_SIGNATURE_KEY: the password is empty, and only a gateway without a signature key accepts it".into());
    }
    let endpoint = match endpoint {
        Some(endpoint) => checked_endpoint(endpoint, &mut notes)?,
        None => {
            let host = local_address().unwrap_or(Ipv4Addr::LOCALHOST);
            notes.push(format!(
                "{host} is this machine's address; give --endpoint if devices reach the gateway elsewhere"
            ));
            format!("{host}:1883")
        }
    };
    let user_name = data_encoding::BASE64.encode(br#"{"ip":"0.0.0.0"}"#);
    let login = Login::signed(client_id, user_name, key.as_deref().map(str::as_bytes));
    let mqtt = MqttCredentials {
        endpoint: &endpoint,
        client_id: &login.client_id,
        username: login.user_name.as_deref().unwrap_or_default(),
        password: login.password.as_deref().unwrap_or_default(),
        publish_topic: super::device::PUBLISH_TOPIC,
        subscribe_topic: &format!("devices/p2p/{mac_}"),
        keepalive: login.keep_alive,
    };
    let json = serde_json::to_string_pretty(&mqtt).map_err(|error| error.to_string())?;
    Ok((json, notes))
}

/// The firmware splits at the first colon and takes a missing port as 8883, which it speaks TLS on.
fn checked_endpoint(endpoint: String, notes: &mut Vec<String>) -> Result<String, String> {
    let bad = || {
        format!("--endpoint: found {endpoint:?}, allowed: HOST or HOST:PORT, no scheme and no IPv6 literal")
    };
    let (host, port) = match endpoint.split_once(':') {
        None => (endpoint.as_str(), 8883),
        Some((host, port)) => (host, port.parse::<u16>().map_err(|_| bad())?),
    };
    if host.is_empty() || port == 0 || host.contains(['/', '[', ' ', '@']) {
        return Err(bad());
    }
    if port == 8883 {
        notes.push("devices speak TLS on port 8883, and this is what a missing port means to them".into());
    }
    Ok(endpoint)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::message::JsonObject;

    fn credentials(args: &[&str]) -> Result<(String, Vec<String>), String> {
        mqtt_credentials(CommandLine::new(args))
    }

    #[test]
    fn a_gateway_with_the_key_accepts_the_credentials() {
        let args = [
            "--mac",
            "AA:BB:CC:DD:EE:FF",
            "--key",
            "Secret1",
            "--endpoint",
            "gw.example.com:1883",
            "--group",
            "GID_x",
        ];
        let (json, notes) = credentials(&args).unwrap();
        assert_eq!(notes, [""; 0]);
        let mqtt = JsonObject::parse(&json).unwrap();
        let field = |key| mqtt.string(key).unwrap();
        assert_eq!(field("endpoint"), "gw.example.com:1883");
        assert_eq!(field("client_id"), "GID_x@@@aa_bb_cc_dd_ee_ff@@@aa_bb_cc_dd_ee_ff");
        assert_eq!(field("publish_topic"), "device-server");
        assert_eq!(field("subscribe_topic"), "devices/p2p/aa_bb_cc_dd_ee_ff");
        assert_eq!(mqtt.number("keepalive"), Some(90.0));
        use crate::proto::identity::{is_valid_user_name, verify_password};
        assert!(is_valid_user_name(&field("username")));
        let password = field("password");
        assert!(verify_password(b"Secret1", &field("client_id"), &field("username"), password.as_bytes()));
    }

    #[test]
    fn bad_arguments_are_named() {
        let cases: &[(&[&str], &str)] = &[
            (&[], "--mac"),
            (&["--mac", "nonsense"], "nonsense"),
            (&["--mac", "aa:bb:cc:dd:ee:ff", "--frob"], "--frob"),
            (&["--mac", "aa:bb:cc:dd:ee:ff", "--group", "a@@@b"], "a@@@b"),
            (&["--mac", "aa:bb:cc:dd:ee:ff", "--endpoint", "mqtt://gw"], "mqtt://gw"),
            (&["--mac", "aa:bb:cc:dd:ee:ff", "--endpoint", "[::1]:1883"], "[::1]:1883"),
            (&["--mac", "aa:bb:cc:dd:ee:ff", "--endpoint", "gw:0"], "gw:0"),
        ];
        for (args, named) in cases {
            let error = credentials(args).unwrap_err();
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }
}
