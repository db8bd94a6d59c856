//! The probe's command line.

use std::time::Duration;

use crate::net::backend::tls::TlsClient;
use crate::proto::identity::Mac;
use crate::tools::command_line::CommandLine;
use crate::tools::device::Login;
use crate::tools::round_trip::packets_in;

/// Locally administered, and "probe" in ASCII.
const DEFAULT_MAC: &str = "02:70:72:6f:62:65";

/// What to probe, as which device, and with which timeout.
pub(super) struct ProbeOptions {
    pub(super) host: String,
    pub(super) port: u16,
    /// MQTT over TLS.
    pub(super) tls: bool,
    /// PEM certificates to trust beside the system's.
    pub(super) ca_pem: Option<Vec<u8>>,
    pub(super) login: Login,
    pub(super) has_key: bool,
    pub(super) packets: u32,
    pub(super) timeout: Duration,
    /// The longest wait for what may not come; shorter in tests.
    pub(super) max_wait: Duration,
    pub(super) json: bool,
    /// Whether to see if the path is still open after a pause.
    pub(super) pause: bool,
}

impl ProbeOptions {
    pub(super) fn parse(mut args: CommandLine) -> Result<Self, String> {
        let (key, password) = (args.signature_key()?, args.text("--password")?);
        let (uuid, group, client_id) =
            (args.text("--uuid")?, args.text("--group")?, args.text("--client-id")?);
        let user_name = args.text("--user-name")?;
        let user_name = user_name.unwrap_or_else(|| data_encoding::BASE64.encode(br#"{"ip":"0.0.0.0"}"#));
        let ca_file = args.text("--ca-file")?;
        let mac = args.text("--mac")?.unwrap_or_else(|| DEFAULT_MAC.into());
        let mac = mac.parse::<Mac>().map_err(|error| format!("--mac: found {mac:?}: {error}"))?;
        let packets = match (args.whole_number("--seconds", 3600)?, args.whole_number("--packets", 60_000)?) {
            (Some(_), Some(_)) => {
                return Err("--seconds and --packets mean the same: give one of them".into());
            }
            (_, Some(packets)) => packets,
            (seconds, None) => packets_in(seconds.unwrap_or(3)),
        };
        let timeout = Duration::from_secs(args.whole_number("--timeout", 60)?.unwrap_or(5).into());
        let (json, tls, pause) = (args.flag("--json"), args.flag("--tls"), !args.flag("--no-pause"));
        let target = args.free()?.ok_or("which host?")?;
        args.finish()?;
        let tls = tls || target.starts_with("mqtts://");
        if tls && !cfg!(feature = "tls") {
            return Err("this program was built without TLS: use a build with the feature \"tls\", which is on by default".into());
        }
        if ca_file.is_some() && !tls {
            return Err("--ca-file is about TLS: give --tls too".into());
        }
        let ca_pem = ca_file.as_deref().map(read_ca_file).transpose()?;
        let (host, port) = split_target(&target)?;
        let port = port.unwrap_or(if tls { 8883 } else { 1883 });
        let mac_ = mac.underscored();
        let (group, uuid) = (group.as_deref().unwrap_or("GID_probe"), uuid.as_deref().unwrap_or(&mac_));
        let client_id = client_id.unwrap_or_else(|| format!("{group}@@@{mac_}@@@{uuid}"));
        let mut login = Login::signed(client_id, user_name, key.as_deref().map(str::as_bytes));
        login.password = password.or(login.password);
        let (has_key, max_wait) = (key.is_some(), Duration::MAX);
        Ok(Self { host, port, tls, ca_pem, login, has_key, packets, timeout, max_wait, json, pause })
    }

    pub(super) fn target(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

fn read_ca_file(file: &str) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(file).map_err(|error| format!("--ca-file: cannot read {file}: {error}"))?;
    // A bundle without certificates would look like a certificate from an unknown authority.
    TlsClient::new(Some(pem.clone()), false)
        .prepare()
        .map_err(|error| format!("--ca-file {file}: {error}"))?;
    Ok(pem)
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address, after a scheme or not.
pub(super) fn split_target(target: &str) -> Result<(String, Option<u16>), String> {
    let bad =
        || format!("found {target:?}, allowed: HOST or HOST:PORT, IPv6 addresses with a port in brackets");
    let text = target.strip_prefix("mqtt://").or(target.strip_prefix("mqtts://")).unwrap_or(target);
    let text = text.trim_end_matches('/');
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(bad)?) })
    } else {
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = port.map(|port| port.parse().map_err(|_| bad())).transpose()?;
    if host.is_empty() || port == Some(0) || host.contains(['/', '@', ' ']) || host.starts_with('-') {
        return Err(bad());
    }
    Ok((host.to_owned(), port))
}
