//! The command line of `check`.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pico_args::Arguments;

use crate::proto::identity::{ClientId, Mac};

/// Locally administered, and "check" in ASCII.
const DEFAULT_MAC: [u8; 6] = [0x02, 0x63, 0x68, 0x65, 0x63, 0x6b];
/// Where the Node.js gateway keeps its configuration.
const NODE_CONFIG_FILE: &str = "config/mqtt.json";

/// What to check, as whom, and how patiently.
pub(super) struct CheckOptions {
    pub(super) config: Option<PathBuf>,
    pub(super) migrate: bool,
    pub(super) mac: Mac,
    pub(super) uuid: String,
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

impl CheckOptions {
    pub(super) fn parse(mut args: Arguments) -> Result<Self, String> {
        let path = |text: &OsStr| Ok::<_, Infallible>(PathBuf::from(text));
        let config =
            args.opt_value_from_os_str(["-c", "--config"], path).map_err(|error| error.to_string())?;
        let mac = args
            .opt_value_from_str("--mac")
            .map_err(|error| error.to_string())?
            .unwrap_or(Mac::from(DEFAULT_MAC));
        let uuid = args.opt_value_from_str::<_, String>("--uuid").map_err(|error| error.to_string())?;
        let uuid = uuid.unwrap_or_else(|| mac.underscored());
        ClientId::parse(&format!("check@@@{mac}@@@{uuid}")).map_err(|error| format!("--uuid: {error}"))?;
        let timeout = match args
            .opt_value_from_str::<_, String>("--timeout")
            .map_err(|error| error.to_string())?
        {
            None => 5,
            Some(text) => match text.parse() {
                Ok(seconds) if (1..=60).contains(&seconds) => seconds,
                _ => return Err(format!("--timeout: found {text:?}, allowed: a whole number from 1 to 60")),
            },
        };
        let migrate = args.contains("--migrate");
        let json = args.contains("--json");
        if let Some(unknown) = args.finish().first() {
            return Err(format!("unknown argument {}", unknown.to_string_lossy()));
        }
        let node =
            || (migrate && Path::new(NODE_CONFIG_FILE).exists()).then(|| PathBuf::from(NODE_CONFIG_FILE));
        let config = config.or_else(node);
        Ok(Self { config, migrate, mac, uuid, timeout: Duration::from_secs(timeout), json })
    }
}
