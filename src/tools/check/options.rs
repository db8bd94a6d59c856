//! The command line of `check`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proto::identity::{ClientId, Mac};
use crate::tools::command_line::CommandLine;

/// Locally administered, and "check" in ASCII.
const DEFAULT_MAC: [u8; 6] = [0x02, 0x63, 0x68, 0x65, 0x63, 0x6b];
/// Where the Node.js gateway keeps its configuration.
const NODE_CONFIG_FILE: &str = "config/mqtt.json";

/// What to check, as which device, and with which timeout.
pub(super) struct CheckOptions {
    pub(super) config: Option<PathBuf>,
    pub(super) migrate: bool,
    pub(super) mac: Mac,
    pub(super) uuid: String,
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

impl CheckOptions {
    pub(super) fn parse(mut args: CommandLine) -> Result<Self, String> {
        let config = args.config()?;
        let mac = args.value("--mac")?.unwrap_or(Mac::from(DEFAULT_MAC));
        let uuid = args.text("--uuid")?.unwrap_or_else(|| mac.underscored());
        ClientId::parse(&format!("check@@@{mac}@@@{uuid}")).map_err(|error| format!("--uuid: {error}"))?;
        let timeout = Duration::from_secs(args.whole_number("--timeout", 60)?.unwrap_or(5).into());
        let (migrate, json) = (args.flag("--migrate"), args.flag("--json"));
        args.finish()?;
        let node =
            || (migrate && Path::new(NODE_CONFIG_FILE).exists()).then(|| PathBuf::from(NODE_CONFIG_FILE));
        let config = config.or_else(node);
        Ok(Self { config, migrate, mac, uuid, timeout, json })
    }
}
