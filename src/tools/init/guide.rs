//! What to do after `init`, for people and as JSON.

use std::net::Ipv4Addr;
use std::path::Path;

use serde::Serialize;

use super::OTA_PATH;
use crate::config::{self, Config, DEFAULT_FILE, PublicIp, Source, unknown_variables};
use crate::net::media::credentials::local_address;
use crate::net::ota::container_detection::is_container;
use crate::proto::identity::{MacPrefix, MacPrefixes};
use crate::tools::addresses::is_private;
use crate::tools::language::{padded, translated};
use crate::tools::page::Page;
use crate::tools::qr::qr_lines;
use crate::tools::terminal::Terminal;

/// What was written, and what follows.
#[derive(Serialize)]
pub(super) struct Guide {
    file: String,
    /// The command that starts the gateway.
    start: String,
    /// The command that prints the token of the day.
    token_command: String,
    ports: Vec<Port>,
    ota: Option<Ota>,
    page: Option<Page>,
    chat_servers: Vec<String>,
    /// What the operator should know or may have to change.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Port {
    protocol: &'static str,
    port: u16,
    purpose: &'static str,
    /// Who must reach it.
    open_to: &'static str,
}

/// How a device is given the gateway.
#[derive(Serialize)]
struct Ota {
    url: String,
    /// The command that enters the URL in the page of the device's hotspot.
    enter: String,
    /// The command that asks for the answer as a device does.
    ask: String,
}

impl Guide {
    pub(super) fn new(file: &Path, source: &Source, config: &Config) -> Self {
        let program = std::env::args().next().unwrap_or_else(|| "mqtt-websocket-proxy".into());
        let is_default = file == Path::new(DEFAULT_FILE);
        let command = |words: &[&str]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let name = file.display().to_string();
        let named: &[&str] = if is_default { &[] } else { &["--config", &name] };
        let mut notes = Vec::new();
        let variables = source.variables();
        if !variables.is_empty() {
            notes.push(format!("set by the environment, over the file: {}", variables.join(", ")));
        }
        notes.extend(unknown_variables(std::env::vars_os().map(|(name, _)| name)));
        notes.extend(config.warnings());
        notes.extend(doubts(config).into_iter().map(str::to_owned));
        let page = Page::of(config).map_err(|error| notes.push(error)).ok();
        Self {
            start: command(&[&[program.as_str()], named].concat()),
            token_command: command(&[&[program.as_str(), "token"], named].concat()),
            file: name,
            ports: ports(config),
            ota: config.ota.enabled.then(|| Ota::new(&host(config), &config.ota)),
            page,
            chat_servers: config.servers().map(|(_, server)| server.to_string()).collect(),
            notes,
        }
    }

    pub(super) fn print(&self, terminal: &mut Terminal) {
        self.lines(terminal.is_interactive()).iter().for_each(|line| terminal.say(line));
    }

    /// The text. Colours make the QR code right on a light terminal too.
    fn lines(&self, colours: bool) -> Vec<String> {
        let servers = match self.chat_servers.is_empty() {
            true => "the built-in echo server, which answers with the device's own voice".to_owned(),
            false => self.chat_servers.join(", "),
        };
        let mut lines = vec![
            format!("Written: {}. It holds the signature key; only its owner can read it.", self.file),
            format!("Chat server: {servers}"),
        ];
        lines.extend(self.notes.iter().map(|note| format!("Note: {note}")));
        for (number, (title, step)) in (1..).zip(self.steps(colours)) {
            lines.extend([String::new(), format!("{number}. {}", translated(title))]);
            lines.extend(step.iter().map(|line| format!("   {line}")));
        }
        lines
    }

    /// What to do, each step with its title.
    fn steps(&self, colours: bool) -> Vec<(&'static str, Vec<String>)> {
        let mut steps = vec![
            ("Start the gateway:", vec![format!("  {}", self.start)]),
            ("Open these ports to it, in every firewall:", self.ports.iter().map(Port::line).collect()),
        ];
        match &self.ota {
            Some(ota) => steps.extend([
                ("Give the device this OTA URL:", ota.url_lines(colours)),
                ("See what the device gets, asked as it does:", vec![format!("  {}", ota.ask)]),
            ]),
            None => steps.push((
                "Put what this prints into the answer of the device's OTA server:",
                vec![format!(
                    "  mqtt-websocket-proxy credentials --mac MAC --key (mqtt.signature_key in {})",
                    self.file
                )],
            )),
        }
        if let Some(page) = &self.page {
            let mut lines = vec![format!("  {}", page.link)];
            if page.daily {
                let command = &self.token_command;
                lines.push(format!("The token behind # is that of today; `{command}` prints it."));
            }
            steps.push(("Watch it in a browser:", lines));
        }
        steps
    }
}

impl Port {
    fn line(&self) -> String {
        let Self { protocol, port, purpose, open_to } = self;
        let (purpose, open_to) = (padded(&translated(purpose), 16), translated(open_to));
        format!("  {protocol} {port:<6} {purpose} {open_to}")
    }
}

/// The ports that the gateway will listen on.
fn ports(config: &Config) -> Vec<Port> {
    let Config { mqtt, udp, api, ota, .. } = config;
    let tcp = |is_on: bool, port, purpose, open_to| {
        is_on.then_some(Port { protocol: "TCP", port, purpose, open_to })
    };
    let ports = [
        tcp(mqtt.plain, mqtt.port, "MQTT", "devices"),
        tcp(mqtt.tls.files().is_some(), mqtt.tls.port, "MQTT over TLS", "devices"),
        Some(Port { protocol: "UDP", port: udp.port, purpose: "audio", open_to: "devices" }),
        tcp(ota.enabled, ota.port, "OTA", "devices of your network"),
        tcp(api.enabled, api.port, "management page", "you and the console only"),
    ];
    ports.into_iter().flatten().collect()
}

/// What keeps devices from this machine, as far as it can be known here.
fn doubts(config: &Config) -> Vec<&'static str> {
    let inside = is_container();
    let ota = &config.ota;
    let is_public = host(config).parse().is_ok_and(|ip| !is_private(ip) && !ip.is_loopback());
    let doubts = [
        (
            inside && config.udp.public_ip == PublicIp::Auto,
            "this is a container: unless it uses the host's network, the addresses below are inside of it; give --address, or set \
             udp.public_ip (PUBLIC_IP) to the host's address",
        ),
        (
            ota.enabled
                && inside
                && config.mqtt.signature_key.is_some()
                && ota.macs.is_empty()
                && ota.allow.is_empty(),
            "this is a container, where any device may seem to come from a private network: the OTA port answers nobody before \
             you name your devices with --macs, ota.macs or ota.allow",
        ),
        (
            ota.enabled && is_public && ota.allow.is_empty(),
            "the address is public, and the OTA port answers private networks only: name the networks of your devices in ota.allow",
        ),
    ];
    doubts.into_iter().filter_map(|(applies, doubt)| applies.then_some(doubt)).collect()
}

/// A device that is answered: the first that is named.
fn example_mac(macs: &MacPrefixes) -> String {
    const ANY: &str = "aa:bb:cc:dd:ee:ff";
    let named = macs.as_slice().first().map(MacPrefix::to_string).unwrap_or_default();
    format!("{named}{}", &ANY[named.len()..])
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() }
}

/// The host by which devices reach this machine.
fn host(config: &Config) -> String {
    match &config.udp.public_ip {
        PublicIp::Auto => local_address().unwrap_or(Ipv4Addr::LOCALHOST).to_string(),
        public_ip => public_ip.to_string(),
    }
}

impl Ota {
    fn new(host: &str, ota: &config::Ota) -> Self {
        let url = format!("http://{host}:{}{OTA_PATH}", ota.port);
        let mac = example_mac(&ota.macs);
        let json = "-H 'Content-Type: application/json'";
        Self {
            enter: format!("curl {json} -d '{{\"ota_url\":\"{url}\"}}' http://192.168.4.1/advanced/submit"),
            ask: format!(
                "curl {json} -H 'Device-Id: {mac}' -H 'Client-Id: 00000000-0000-4000-8000-000000000001' -d '{{}}' {url}"
            ),
            url,
        }
    }

    /// The URL, and how it is entered. The words on the page are those of esp-wifi-connect.
    fn url_lines(&self, colours: bool) -> Vec<String> {
        let mut lines = vec![format!("  {}", self.url)];
        let (on, off) = if colours { ("\x1b[97;40m", "\x1b[0m") } else { ("", "") };
        let code = qr_lines(&self.url).unwrap_or_default();
        lines.extend(code.into_iter().map(|line| format!("  {on}{line}{off}")));
        lines.extend(
            [
                "A device without Wi-Fi opens a hotspot of its own; another one does so when its button is pressed",
                "while it starts. With firmware 1.6.2 or later:",
                "  a. With a phone or a computer, join the Wi-Fi Xiaozhi-XXXX and open http://192.168.4.1",
                "  b. Choose Advanced, enter the URL above as custom OTA URL, and save.",
                "  c. Go back, choose your own Wi-Fi with its password, and connect; the device restarts.",
                "Instead of b, from a computer that has joined Xiaozhi-XXXX:",
            ]
            .map(str::to_owned),
        );
        lines.push(format!("  {}", self.enter));
        lines
    }
}
