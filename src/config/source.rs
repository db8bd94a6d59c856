//! Where a configuration comes from, so that it can be read again.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::LevelFilter;

use super::error::{ConfigError, Problem};
use super::node::{self, Node};
use super::value::{LEVELS, PORT, PUBLIC_IP, TOKEN, parse_level, parse_public_ip, parse_token};
use super::{Config, Secret, Server, dotenv, file};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "config/gateway.json";

const CONFIG_FILE: &str = "CONFIG_FILE";

/// The Node.js gateway's own variables, in the working directory.
const ENV_FILE: &str = ".env";

/// The environment variables that are read, and what each sets; an empty one counts as not set.
pub const VARIABLES: [(&str, &str); 10] = [
    (CONFIG_FILE, "the configuration file"),
    ("MQTT_PORT", "mqtt.port"),
    ("UDP_PORT", "udp.port"),
    ("PUBLIC_IP", "udp.public_ip"),
    ("API_PORT", "api.port"),
    ("API_TOKEN", "api.token"),
    ("MQTT_SIGNATURE_KEY", "mqtt.signature_key"),
    ("SERVER_SECRET", "websocket.server_secret"),
    ("LOG_LEVEL", "logging.level"),
    ("DEBUG", "debug"),
];

/// Where a configuration comes from: a file or the defaults, the environment as it was at start, and the command line.
///
/// For a file in the shape of the Node.js gateway the environment includes `.env` in the working directory, which gives
/// variables that are not set. As in that gateway it is read once, at start.
#[derive(Clone)]
pub struct Source {
    path: Option<PathBuf>,
    variables: Vec<Variable>,
    /// What `.env` assigns, if there is one; or why it cannot be read.
    env_file: Option<Result<Vec<Variable>, String>>,
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
        Self { path, variables, env_file: read_env_file(), level, echo: None }
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
    /// When a file cannot be read, or holds or names what is not allowed: the first of [`Source::examine`]'s errors.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let (config, errors) = self.examine();
        errors.into_iter().next().map_or(Ok(config), Err)
    }

    /// Reads the configuration as far as it goes, and tells everything that is wrong with it. Blocks on the files it names.
    pub fn examine(&self) -> (Config, Vec<ConfigError>) {
        let mut errors = Vec::new();
        let mut config = match &self.path {
            Some(path) => {
                let mut problems = Vec::new();
                let config = read(path, &mut problems);
                errors.extend(problems.into_iter().map(|problem| problem.at(path.display().to_string())));
                config
            }
            None => Config::default(),
        };
        let variables = self.variables(config.node.as_mut(), &mut errors);
        for (place, (name, value)) in &variables {
            errors.extend(apply_variable(&mut config, name, value).err().map(|problem| problem.at(*place)));
        }
        if config.node.is_some() && !variables.iter().any(|(_, (name, _))| *name == "UDP_PORT") {
            config.udp.port = config.mqtt.port;
        }
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
        (config, errors)
    }

    /// The variables that count, each with the place that sets it. A file of the Node.js gateway brings its `.env` along.
    fn variables(
        &self,
        node: Option<&mut Node>,
        errors: &mut Vec<ConfigError>,
    ) -> Vec<(&'static str, &Variable)> {
        let mut variables: Vec<_> = self.variables.iter().map(|variable| ("environment", variable)).collect();
        match (node, &self.env_file) {
            (Some(node), Some(Ok(given))) => {
                let unset = |name| !self.variables.iter().any(|(set, _)| *set == name);
                let taken =
                    given.iter().filter(|(name, _)| unset(*name)).map(|variable| (ENV_FILE, variable));
                node.env_file = Some(taken.clone().map(|(_, (name, _))| *name).collect());
                variables.extend(taken);
            }
            (Some(_), Some(Err(error))) => errors.push(Problem::Unreadable(error.clone()).at(ENV_FILE)),
            (Some(_), None) | (None, _) => {}
        }
        variables
    }
}

/// A variable and its value, which is never empty.
type Variable = (&'static str, OsString);

fn apply_variable(config: &mut Config, name: &'static str, value: &OsStr) -> Result<(), Problem> {
    // A path need not be UTF-8.
    if name == CONFIG_FILE {
        return Ok(());
    }
    let Some(text) = value.to_str() else {
        return Err(Problem::value(name, "bytes that are not UTF-8", "UTF-8 text"));
    };
    let refuse = |allowed: &str| Problem::value(name, format!("{text:?}"), allowed);
    let port = || text.trim().parse().map_err(|_| refuse(PORT));
    match name {
        "MQTT_PORT" => config.mqtt.port = port()?,
        "UDP_PORT" => config.udp.port = port()?,
        "API_PORT" => config.api.port = port()?,
        "PUBLIC_IP" => {
            config.udp.public_ip = parse_public_ip(text.trim()).ok_or_else(|| refuse(PUBLIC_IP))?;
        }
        "API_TOKEN" => {
            config.api.token =
                parse_token(text).ok_or_else(|| Problem::value(name, "a text that is not shown", TOKEN))?;
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
    Ok(())
}

/// What `.env` in the working directory assigns to the Node.js gateway's variables, if there is such a file.
fn read_env_file() -> Option<Result<Vec<Variable>, String>> {
    let text = match fs::read_to_string(ENV_FILE) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(error.to_string())),
    };
    let assigned = dotenv::parse(&text);
    let last = |name: &'static str| {
        let (_, value) = assigned.iter().rev().find(|(assigned, _)| assigned == name)?;
        (!value.is_empty()).then(|| (name, OsString::from(value)))
    };
    Some(Ok(node::VARIABLES.into_iter().filter_map(last).collect()))
}

const SWITCH: &str = "1, true, yes, on, 0, false, no, off";

fn parse_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" | "" => Some(false),
        _ => None,
    }
}

fn read(path: &Path, problems: &mut Vec<Problem>) -> Config {
    let text = fs::read(path).map_err(|error| error.to_string()).and_then(|bytes| {
        String::from_utf8(bytes)
            .map_err(|error| format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
    });
    match text {
        Ok(text) => {
            let config = file::parse(&text, problems);
            problems.extend(bad_certificates(&config));
            config
        }
        Err(error) => {
            problems.push(Problem::Unreadable(error));
            Config::default()
        }
    }
}

/// A certificate file that cannot be used is better told now than by the first call.
fn bad_certificates(config: &Config) -> Vec<Problem> {
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
    let bad = files.into_iter().filter_map(|(field, path)| {
        let found = match fs::read(&path) {
            Err(error) => error.to_string(),
            Ok(bytes) if !contains(&bytes, b"-----BEGIN CERTIFICATE-----") => {
                "no certificate in it".to_owned()
            }
            Ok(_) => return None,
        };
        let found = format!("\"{}\" ({found})", path.display());
        Some(Problem::value(field, found, "a readable file with PEM certificates"))
    });
    bad.collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
