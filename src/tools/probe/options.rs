//! The probe's command line.

use std::time::Duration;

use pico_args::Arguments;

use crate::net::backend::tls::TlsClient;
use crate::proto::identity::Mac;
use crate::tools::device::Login;
use crate::tools::round_trip::PACKET_INTERVAL;

/// Locally administered, and "probe" in ASCII.
const DEFAULT_MAC: &str = "02:70:72:6f:62:65";
/// How long to wait for what may not come.
pub(super) struct ProbeTimeouts {
    /// After the last packet: echoes of a slow line still count.
    pub(super) linger: Duration,
    /// From `listen` start: the gateway tells a device after 3 s, by default, that none of its audio arrived.
    pub(super) alert: Duration,
    /// For the chat server to react to the audio once it is over.
    pub(super) reaction: Duration,
    /// For the chat server to speak when asked to.
    pub(super) speech: Duration,
    /// A call that is refused in words is ended within this time of its hello reply.
    pub(super) refusal: Duration,
}

pub(super) const PROBE_TIMEOUTS: ProbeTimeouts = ProbeTimeouts {
    linger: Duration::from_millis(1000),
    alert: Duration::from_millis(4500),
    reaction: Duration::from_millis(2000),
    speech: Duration::from_millis(5000),
    refusal: Duration::from_millis(200),
};

/// What to probe, as whom, and how patiently.
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
    pub(super) timeouts: ProbeTimeouts,
    pub(super) json: bool,
}

impl ProbeOptions {
    pub(super) fn parse(mut args: Arguments) -> Result<Self, String> {
        let mut text = |name: &'static str| {
            args.opt_value_from_str::<_, String>(name).map_err(|error| error.to_string())
        };
        let (key, password) = (text("--key")?, text("--password")?);
        let key = key.or_else(|| std::env::var("MQTT_SIGNATURE_KEY").ok()).filter(|key| !key.is_empty());
        let (uuid, group, client_id) = (text("--uuid")?, text("--group")?, text("--client-id")?);
        let user_name =
            text("--user-name")?.unwrap_or_else(|| data_encoding::BASE64.encode(br#"{"ip":"0.0.0.0"}"#));
        let ca_file = text("--ca-file")?;
        let mac = text("--mac")?.unwrap_or_else(|| DEFAULT_MAC.into());
        let mac = mac.parse::<Mac>().map_err(|error| format!("--mac: found {mac:?}: {error}"))?;
        let seconds = parse_whole_number(&mut args, "--seconds", 3600)?;
        let packets = parse_whole_number(&mut args, "--packets", 60_000)?;
        let timeout = parse_whole_number(&mut args, "--timeout", 60)?.unwrap_or(5);
        let (json, tls) = (args.contains("--json"), args.contains("--tls"));
        if seconds.is_some() && packets.is_some() {
            return Err("--seconds and --packets mean the same: give one of them".into());
        }
        let seconds_as_packets =
            |seconds| (Duration::from_secs(seconds).as_millis() / PACKET_INTERVAL.as_millis()) as u32;
        let packets = packets.unwrap_or_else(|| seconds_as_packets(seconds.unwrap_or(3).into()));

        let target: String =
            args.opt_free_from_str().map_err(|error| error.to_string())?.ok_or("which host?")?;
        if let Some(unknown) = args.finish().first() {
            return Err(format!("unknown argument {}", unknown.to_string_lossy()));
        }
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
        let client_id = client_id.unwrap_or_else(|| {
            format!(
                "{}@@@{mac_}@@@{}",
                group.as_deref().unwrap_or("GID_probe"),
                uuid.as_deref().unwrap_or(&mac_)
            )
        });
        let mut login = Login::signed(client_id, user_name, key.as_deref().map(str::as_bytes));
        login.password = password.or(login.password);
        let timeout = Duration::from_secs(timeout.into());
        Ok(Self {
            host,
            port,
            tls,
            ca_pem,
            login,
            has_key: key.is_some(),
            packets,
            timeout,
            timeouts: PROBE_TIMEOUTS,
            json,
        })
    }

    pub(super) fn target(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn read_ca_file(file: &str) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(file).map_err(|error| format!("--ca-file: cannot read {file}: {error}"))?;
    // A bundle without certificates would look like a certificate that nobody vouches for.
    TlsClient::new(Some(pem.clone()), false)
        .prepare()
        .map_err(|error| format!("--ca-file {file}: {error}"))?;
    Ok(pem)
}

fn parse_whole_number(args: &mut Arguments, name: &'static str, most: u32) -> Result<Option<u32>, String> {
    let Some(text) = args.opt_value_from_str::<_, String>(name).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
        _ => Err(format!("{name}: found {text:?}, allowed: a whole number from 1 to {most}")),
    }
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
