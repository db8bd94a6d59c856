//! Why a configuration was refused, in one line.

use std::fmt;

/// Why a configuration was refused. Displays as one line that names the place, the field, what was found and what is
/// allowed; a secret is never part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    location: String,
    problem: Problem,
}

/// What is wrong, wherever it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// A field with a value it must not have.
    Value { field: String, found: String, allowed: String },
    /// A text that is not JSON; line and column from 1.
    Json { line: usize, column: usize, message: String },
    /// A file that cannot be read, in the system's own words.
    Unreadable(String),
}

impl Problem {
    pub(super) fn value(
        field: impl Into<String>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Value { field: field.into(), found: found.into(), allowed: allowed.into() }
    }

    /// The field it is about, dotted.
    pub(super) fn field(&self) -> Option<&str> {
        match self {
            Self::Value { field, .. } => Some(field),
            Self::Json { .. } | Self::Unreadable(_) => None,
        }
    }

    /// This problem, found in `place`: a file's path, or `environment`.
    pub(super) fn at(self, place: impl Into<String>) -> ConfigError {
        ConfigError { location: place.into(), problem: self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.location;
        match &self.problem {
            Problem::Value { field, found, allowed } => {
                write!(f, "{place}: {field}: found {found}, allowed: {allowed}")
            }
            Problem::Json { line, column, message } => {
                write!(f, "{place}: line {line}, column {column}: not JSON: {message}")
            }
            Problem::Unreadable(error) => write!(f, "{place}: cannot be read: {error}"),
        }
    }
}

impl std::error::Error for ConfigError {}
