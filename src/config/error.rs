//! Why a configuration was refused, in one line.

use std::fmt::{self, Display};

/// Why a configuration was refused. Displays as one line that names the place, the field, what was found and what is
/// allowed; a secret is never part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

/// All that is wrong with a configuration, never empty. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// What is wrong, wherever it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The field it is about, dotted; empty for the whole file.
    pub(super) field: String,
    message: String,
}

impl Problem {
    /// A field with a value it must not have.
    pub(super) fn value(field: impl Into<String>, found: impl Display, allowed: impl Display) -> Self {
        Self { field: field.into(), message: format!("found {found}, allowed: {allowed}") }
    }

    /// A file that cannot be read, or is not JSON.
    pub(super) fn file(message: String) -> Self {
        Self { field: String::new(), message }
    }

    /// This problem, found in `place`: a file's path, or `environment`.
    pub(super) fn at(self, place: impl Display) -> ConfigError {
        let Self { field, message } = self;
        let colon = if field.is_empty() { "" } else { ": " };
        ConfigError(format!("{place}: {field}{colon}{message}"))
    }
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}
