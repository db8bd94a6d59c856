//! The sources of a configuration: file, environment and command line.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::LevelFilter;
use serde_json::Value;

use super::environment::{self, ENVIRONMENT, Variable};
use super::error::{ConfigError, ConfigErrors, Problem};
use super::keys::CONFIG_KEYS;
use super::node_config::{self, NodeConfig};
use super::value::TYPOGRAPHIC_QUOTES;
use super::{ChatServerConfig, Config, dotenv, file};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "config/gateway.json";

/// The Node.js gateway's file, which is read when there is no other.
pub const NODE_FILE: &str = "config/mqtt.json";

/// The Node.js gateway's own variables, in the working directory.
const ENV_FILE: &str = ".env";

/// Where a configuration comes from: a file or the defaults, the environment as it was at start, and the command line.
///
/// For a file in the shape of the Node.js gateway the environment includes `.env` in the working directory, which gives
/// variables that are not set. As in that gateway it is read once, at start.
#[derive(Clone)]
pub struct Source {
    path: Option<PathBuf>,
    variables: Vec<Variable>,
    /// What `.env` assigns, if there is one; or why it cannot be read.
    env_file: Option<Result<EnvFile, String>>,
    level: Option<LevelFilter>,
    echo: Option<Arc<ChatServerConfig>>,
}

impl Source {
    /// The source that the command line and the environment name. `config` is the file, over `CONFIG_FILE`, over
    /// `config/gateway.json` or the Node.js gateway's `config/mqtt.json` if there is one; `level` is the log level, over all others; `variable` looks up the
    /// environment.
    pub fn new(
        config: Option<PathBuf>,
        level: Option<LevelFilter>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let named = || variable(environment::CONFIG_FILE).filter(|path| !path.is_empty()).map(PathBuf::from);
        // Any other problem with a default file is reported when it is read.
        let is_there = |path: &&str| !matches!(Path::new(path).try_exists(), Ok(false));
        let default = || [DEFAULT_FILE, NODE_FILE].iter().find(|path| is_there(path)).map(PathBuf::from);
        let path = config.or_else(named).or_else(default);
        Self {
            path,
            variables: environment::read_variables(ENVIRONMENT, variable),
            env_file: read_env_file(),
            level,
            echo: None,
        }
    }

    /// The names of the environment variables that set keys.
    pub fn variables(&self) -> Vec<&str> {
        self.variables.iter().map(|variable| variable.name.as_str()).collect()
    }

    /// The file that is read; `None` when the gateway runs on defaults.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Lets the built-in echo server stand in, from the next [`Source::load`] on, when no chat server is configured.
    pub fn set_echo(&mut self, server: Arc<ChatServerConfig>) {
        self.echo = Some(server);
    }

    /// Reads the configuration, all of it or nothing. Blocks on the files it names.
    ///
    /// # Errors
    /// When a file cannot be read, or holds or names what is not allowed.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let (config, errors) = self.load_with_errors();
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// Reads as much of the configuration as is valid, and reports everything that is wrong with it. Blocks on the files it names.
    pub fn load_with_errors(&self) -> (Config, Vec<ConfigError>) {
        let mut problems = Vec::new();
        let mut config = self.path.as_ref().map_or_else(Config::default, |path| read(path, &mut problems));
        let mut errors: Vec<_> = problems.into_iter().map(|problem| problem.at(self.location())).collect();
        let variables = self.variables_for(config.node_config.as_mut(), &mut errors);
        if let (Some(_), Some(Ok(env_file))) = (&config.node_config, &self.env_file) {
            config.source_warnings.clone_from(&env_file.misspelt);
        }
        errors.extend(environment::conflicts(&self.variables).map(|problem| problem.at(ENVIRONMENT)));
        for variable in &variables {
            errors.extend(variable.apply(&mut config));
        }
        for problem in certificate_problems(&config) {
            errors.push(match variables.iter().rfind(|variable| variable.sets(&problem.field)) {
                Some(variable) => variable.error(problem),
                None => problem.at(self.location()),
            });
        }
        if config.node_config.is_some() && !variables.iter().any(|variable| variable.key.name == "udp.port") {
            config.udp.port = config.mqtt.port;
        }
        // Where there is nothing to protect, devices get their credentials from here.
        let is_chosen = variables.iter().any(|variable| variable.key.name == "ota.enabled");
        if self.path.is_none() && config.mqtt.signature_key.is_none() && !is_chosen {
            config.ota.enabled = true;
        }
        if let Some(level) = self.level {
            config.logging.level = level;
            config.debug = false;
        }
        errors.extend(config.conflicts().into_iter().map(|problem| problem.at(self.location())));
        let doubts = self.secret_doubts(&config, &variables);
        config.source_warnings.extend(doubts);
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

    /// The location that errors about several keys name.
    fn location(&self) -> String {
        self.path.as_ref().map_or_else(|| ENVIRONMENT.to_owned(), |path| path.display().to_string())
    }

    /// The variables that count. A file of the Node.js gateway brings its `.env` along.
    fn variables_for(&self, node: Option<&mut NodeConfig>, errors: &mut Vec<ConfigError>) -> Vec<&Variable> {
        let mut variables = Vec::new();
        match (node, &self.env_file) {
            (Some(node), Some(Ok(given))) => {
                let is_set = |name: &str| self.variables.iter().any(|variable| variable.name == name);
                variables.extend(given.variables.iter().filter(|variable| !is_set(&variable.name)));
                node.env_file = Some(variables.iter().map(|variable| variable.name.clone()).collect());
            }
            (Some(_), Some(Err(error))) => errors.push(unreadable(error).at(ENV_FILE)),
            (Some(_), None) | (None, _) => {}
        }
        variables.extend(&self.variables);
        variables
    }

    /// One sentence for each secret that has quotes, blanks or a remark in it, as files for another reader leave them.
    fn secret_doubts(&self, config: &Config, variables: &[&Variable]) -> Vec<String> {
        let mut doubts = Vec::new();
        for key in CONFIG_KEYS.iter().filter(|key| key.is_secret()) {
            let variable = variables.iter().rfind(|variable| variable.key.name == key.name);
            let label = variable
                .map_or_else(|| format!("{}: {}", self.location(), key.name), |variable| variable.label());
            let texts = match (key.write)(config) {
                Value::Array(texts) => texts,
                text => vec![text],
            };
            for text in texts.iter().filter_map(Value::as_str) {
                let parts: Vec<_> = secret_doubt(text).collect();
                if !parts.is_empty() {
                    doubts.push(format!(
                        "{label} {}: used as it is, and probably not meant so",
                        parts.join(" and ")
                    ));
                }
            }
        }
        doubts
    }
}

fn secret_doubt(text: &str) -> impl Iterator<Item = &'static str> {
    let is_quote = |c: char| c == '\'' || c == '"' || c == '`' || TYPOGRAPHIC_QUOTES.contains(c);
    [
        (text.starts_with(is_quote) || text.ends_with(is_quote), "begins or ends with a quote"),
        (text.trim() != text, "begins or ends with a blank"),
        (text.contains('#') && text.contains(char::is_whitespace), "holds a blank and #"),
    ]
    .into_iter()
    .filter_map(|(doubtful, what)| doubtful.then_some(what))
}

/// What `.env` in the working directory says.
#[derive(Clone)]
struct EnvFile {
    variables: Vec<Variable>,
    /// One sentence for each name that is one typing error from one that counts.
    misspelt: Vec<String>,
}

/// What `.env` in the working directory assigns to the Node.js gateway's variables, if there is such a file.
fn read_env_file() -> Option<Result<EnvFile, String>> {
    let assigned = match fs::read(ENV_FILE) {
        Ok(bytes) => dotenv::parse(&dotenv::decode(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(error.to_string())),
    };
    let place = |name: &str| node_config::VARIABLES.iter().position(|known| *known == name);
    let mut variables = environment::read_variables(ENV_FILE, |name| {
        place(name)?;
        assigned.iter().rev().find(|(assigned, _)| assigned == name).map(|(_, value)| value.into())
    });
    variables.sort_by_key(|variable| place(&variable.name));
    let misspelt = assigned
        .iter()
        .filter_map(|(name, _)| environment::misspelt(ENV_FILE, name, &node_config::VARIABLES));
    Some(Ok(EnvFile { variables, misspelt: misspelt.collect() }))
}

fn unreadable(error: &str) -> Problem {
    Problem::file(format!("cannot be read: {error}"))
}

fn read(path: &Path, problems: &mut Vec<Problem>) -> Config {
    let text = fs::read(path).map_err(|error| error.to_string()).and_then(|bytes| {
        String::from_utf8(bytes)
            .map_err(|error| format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
    });
    match text {
        Ok(text) => file::parse(&text, path.file_name() == Path::new(NODE_FILE).file_name(), problems),
        Err(error) => {
            problems.push(unreadable(&error));
            Config::default()
        }
    }
}

/// Certificate files that cannot be used, so that this is not first noticed in a call.
fn certificate_problems(config: &Config) -> Vec<Problem> {
    let websocket = &config.websocket;
    let routes = websocket.routes.iter().enumerate();
    let routes = routes.map(|(index, route)| (format!("websocket.routes[{index}].servers"), &route.servers));
    let lists = [("production", &websocket.production), ("development", &websocket.development)];
    let lists = lists.map(|(list, servers)| (format!("websocket.{list}_servers"), servers));
    let own = lists.into_iter().chain(routes).flat_map(|(list, servers)| {
        servers.iter().enumerate().filter_map(move |(index, server)| {
            Some((format!("{list}[{index}].ca_file"), server.ca_file.as_ref()?))
        })
    });
    let shared = websocket.ca_file.iter().map(|path| ("websocket.ca_file".to_owned(), path));
    let bad = own.chain(shared).filter_map(|(field, path)| {
        const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
        let found = match fs::read(path) {
            Err(error) => error.to_string(),
            Ok(bytes) if bytes.windows(BEGIN.len()).any(|part| part == BEGIN) => return None,
            Ok(_) => "no certificate in it".to_owned(),
        };
        let found = format!("\"{}\" ({found})", path.display());
        Some(Problem::value(field, found, "a readable file with PEM certificates"))
    });
    bad.collect()
}
