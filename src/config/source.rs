//! Where a configuration comes from, so that it can be read again.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::LevelFilter;

use super::error::{ConfigError, Problem};
use super::value::{LEVELS, PORT, PUBLIC_IP, parse_level, parse_public_ip};
use super::{Config, Secret, Server, file};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "config/gateway.json";

const CONFIG_FILE: &str = "CONFIG_FILE";

/// The environment variables that are read, and what each sets; an empty one counts as not set.
pub const VARIABLES: [(&str, &str); 9] = [
    (CONFIG_FILE, "the configuration file"),
    ("MQTT_PORT", "mqtt.port"),
    ("UDP_PORT", "udp.port"),
    ("PUBLIC_IP", "udp.public_ip"),
    ("API_PORT", "api.port"),
    ("MQTT_SIGNATURE_KEY", "mqtt.signature_key"),
    ("SERVER_SECRET", "websocket.server_secret"),
    ("LOG_LEVEL", "logging.level"),
    ("DEBUG", "debug"),
];

/// Where a configuration comes from: a file or the defaults, the environment as it was at start, and the command line.
#[derive(Clone)]
pub struct Source {
    path: Option<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
    level: Option<LevelFilter>,
    echo: Option<Arc<Server>>,
}

impl Source {
    /// The source that the command line and the environment name. `config` is the file, over `CONFIG_FILE`, over
    /// `config/gateway.json` if there is one; `level` is the log level, over all others; `variable` looks up the
    /// environment.
    pub fn new(
        config: Option<PathBuf>,
        level: Option<LevelFilter>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let set = |name| Some((name, variable(name).filter(|value| !value.is_empty())?));
        let variables: Vec<_> = VARIABLES.iter().filter_map(|(name, _)| set(*name)).collect();
        let named =
            || variables.iter().find(|(name, _)| *name == CONFIG_FILE).map(|(_, value)| PathBuf::from(value));
        // Whatever else is wrong with the default file is said when it is read.
        let default = || {
            let absent = matches!(Path::new(DEFAULT_FILE).try_exists(), Ok(false));
            (!absent).then(|| PathBuf::from(DEFAULT_FILE))
        };
        let path = config.or_else(named).or_else(default);
        Self { path, variables, level, echo: None }
    }

    /// The file that is read; `None` when the gateway runs on defaults.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Lets the built-in echo server stand in, from the next [`Source::load`] on, when no chat server is configured.
    pub fn set_echo(&mut self, server: Arc<Server>) {
        self.echo = Some(server);
    }

    /// Reads the configuration, all of it or nothing. Blocks on the files it names.
    ///
    /// # Errors
    /// When a file cannot be read, or holds or names what is not allowed.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.path {
            Some(path) => read(path).map_err(|problem| problem.at(path.display().to_string()))?,
            None => Config::default(),
        };
        self.apply_environment(&mut config).map_err(|problem| problem.at("environment"))?;
        if let Some(level) = self.level {
            config.logging.level = level;
            config.debug = false;
        }
        let websocket = &mut config.websocket;
        if let Some(echo) = &self.echo
            && websocket.production.is_empty()
            && websocket.development.is_empty()
        {
            websocket.production.push(Arc::clone(echo));
            websocket.echo = true;
        }
        Ok(config)
    }

    fn apply_environment(&self, config: &mut Config) -> Result<(), Problem> {
        for (name, value) in &self.variables {
            // A path need not be UTF-8.
            if *name == CONFIG_FILE {
                continue;
            }
            let Some(text) = value.to_str() else {
                return Err(Problem::value(*name, "bytes that are not UTF-8", "UTF-8 text"));
            };
            let refuse = |allowed: &str| Problem::value(*name, format!("{text:?}"), allowed);
            let port = || text.trim().parse().map_err(|_| refuse(PORT));
            match *name {
                "MQTT_PORT" => config.mqtt.port = port()?,
                "UDP_PORT" => config.udp.port = port()?,
                "API_PORT" => config.api.port = port()?,
                "PUBLIC_IP" => {
                    config.udp.public_ip = parse_public_ip(text.trim()).ok_or_else(|| refuse(PUBLIC_IP))?;
                }
                "MQTT_SIGNATURE_KEY" => config.mqtt.signature_key = Secret::new(text),
                "SERVER_SECRET" => config.websocket.secret = Secret::new(text),
                "LOG_LEVEL" => {
                    config.logging.level = parse_level(text.trim()).ok_or_else(|| refuse(LEVELS))?;
                    // The file's `debug` would raise it again. DEBUG comes behind, and may.
                    config.debug = false;
                }
                "DEBUG" => config.debug = parse_switch(text.trim()).ok_or_else(|| refuse(SWITCH))?,
                _ => {}
            }
        }
        Ok(())
    }
}

const SWITCH: &str = "1, true, yes, on, 0, false, no, off";

fn parse_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" | "" => Some(false),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Config, Problem> {
    let bytes = fs::read(path).map_err(|error| Problem::Unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Problem::Unreadable(format!("it is not UTF-8 text (byte {at})"))
    })?;
    let config = file::parse(&text)?;
    check_certificates(&config)?;
    Ok(config)
}

/// A certificate file that cannot be used is better told now than by the first call.
fn check_certificates(config: &Config) -> Result<(), Problem> {
    let websocket = &config.websocket;
    let own = |list: &'static str, servers: &[Arc<Server>]| {
        let named = servers.iter().enumerate().filter_map(move |(index, server)| {
            Some((format!("websocket.{list}[{index}].ca_file"), server.ca_file.clone()?))
        });
        named.collect::<Vec<_>>()
    };
    let mut files = own("production_servers", &websocket.production);
    files.extend(own("development_servers", &websocket.development));
    files.extend(websocket.ca_file.clone().map(|path| ("websocket.ca_file".to_owned(), path)));
    for (field, path) in files {
        let found = match fs::read(&path) {
            Err(error) => error.to_string(),
            Ok(bytes) if !contains(&bytes, b"-----BEGIN CERTIFICATE-----") => {
                "no certificate in it".to_owned()
            }
            Ok(_) => continue,
        };
        let found = format!("\"{}\" ({found})", path.display());
        return Err(Problem::value(field, found, "a readable file with PEM certificates"));
    }
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
