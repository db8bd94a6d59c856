//! The configuration file: its sections and keys.

use super::Config;
use super::error::Problem;
use super::keys::{CONFIG_KEYS, ConfigKey};
use super::node_config;
use super::value::{JsonValue, without_comments};

/// Keys that are accepted without effect.
const UNUSED_KEYS: [&str; 3] = [SCHEMA_KEY, "gateway.device_id", "gateway.client_id"];

/// The schema of the file, for editors.
const SCHEMA_KEY: &str = "$schema";

/// Reads the text of a configuration file, in this gateway's own shape or in that of the Node.js gateway; `named_node` when
/// it has that one's name, which tells the shape of a file with keys of neither. What it leaves out keeps its default, and
/// so does what is refused: that goes to `problems`.
pub(super) fn parse(text: &str, named_node: bool, problems: &mut Vec<Problem>) -> Config {
    // Some editors begin a file with a byte order mark, which JSON does not allow.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = without_comments(text);
    let mut config = Config::default();
    if text.trim().is_empty() {
        problems.push(Problem::file(
            "the file is empty; with nothing but {} in it, everything has its default".to_owned(),
        ));
        return config;
    }
    match JsonValue::parse("", &text) {
        Ok(root) if node_config::is_node_config(&root, named_node) => {
            config = node_config::read(&root, problems)
        }
        Ok(root) => read_section(&root, &mut config, problems),
        Err(problem) => problems.push(problem),
    }
    config
}

fn read_section(section: &JsonValue<'_>, config: &mut Config, problems: &mut Vec<Problem>) {
    let Ok(members) = section.members().map_err(|problem| problems.push(problem)) else { return };
    for (_, value) in members {
        let path = value.path.as_str();
        if let Some(key) = ConfigKey::find(path) {
            (key.read)(&value, config, problems);
        } else if UNUSED_KEYS.contains(&path) {
            config.unused_keys.extend((path != SCHEMA_KEY).then(|| path.to_owned()));
        } else if !keys_in(path).is_empty() {
            read_section(&value, config, problems);
        } else {
            problems.push(value.unknown_key(section, keys_in(&section.path)));
        }
    }
}

/// The keys and sections directly in a section; none when there is no such section.
fn keys_in(section: &str) -> Vec<&'static str> {
    let inside = |name: &'static str| match section {
        "" => Some(name),
        section => name.strip_prefix(section)?.strip_prefix('.'),
    };
    let names = UNUSED_KEYS.into_iter().chain(CONFIG_KEYS.iter().map(|key| key.name));
    let mut keys: Vec<_> = names.filter_map(inside).filter_map(|rest| rest.split('.').next()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}
