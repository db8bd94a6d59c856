//! `credentials`: the `mqtt` object that a device's OTA answer must carry.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use pico_args::Arguments;

use super::command_line::{self, CommandLine};
use super::terminal::Terminal;
use crate::net::media::credentials::local_address;
use crate::proto::identity::{ClientId, Mac};
use crate::proto::ota::{DEFAULT_GROUP, ENDPOINT_ALLOWED, Endpoint, MqttSection};

/// Seconds.
const KEEP_ALIVE: u16 = 90;

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
        Ok(ExitCode::SUCCESS)
    })
}

/// The object as JSON, and what its reader should know.
fn mqtt_credentials(mut args: CommandLine) -> Result<(String, Vec<String>), String> {
    let mac: Mac = args.value("--mac")?.ok_or("--mac is missing")?;
    let (uuid, group) = (args.text("--uuid")?, args.text("--group")?);
    let (key, endpoint) = (args.signature_key()?, args.text("--endpoint")?);
    args.finish()?;
    let mut notes = Vec::new();
    let group = group.unwrap_or_else(|| DEFAULT_GROUP.into());
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
    let key = key.as_deref().map(str::as_bytes);
    let mqtt = MqttSection::new(endpoint, mac, &group, uuid.as_deref(), key, KEEP_ALIVE);
    ClientId::parse(&mqtt.client_id).map_err(|error| format!("client id {:?}: {error}", mqtt.client_id))?;
    let json = serde_json::to_string_pretty(&mqtt).map_err(|error| error.to_string())?;
    Ok((json, notes))
}

/// The endpoint as it was given. A missing port is one on which devices speak TLS.
fn checked_endpoint(text: String, notes: &mut Vec<String>) -> Result<String, String> {
    let endpoint: Endpoint =
        text.parse().map_err(|_| format!("--endpoint: found {text:?}, allowed: {ENDPOINT_ALLOWED}"))?;
    if endpoint.is_tls() {
        notes.push("devices speak TLS on port 8883, and this is what a missing port means to them".into());
    }
    Ok(text)
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
