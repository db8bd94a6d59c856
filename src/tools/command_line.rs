//! Command-line parsing that the sub-commands share.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use pico_args::Arguments;

use super::terminal::Terminal;

/// The arguments that are not read yet.
pub(super) struct CommandLine(Arguments);

/// Runs a sub-command, or prints its help, or says what is wrong with its arguments.
pub(super) fn run<T>(
    name: &str,
    help: &str,
    mut args: Arguments,
    parse: impl FnOnce(CommandLine) -> Result<T, String>,
    run: impl FnOnce(T) -> ExitCode,
) -> ExitCode {
    if args.contains(["-h", "--help"]) {
        Terminal::stdout().print_line(help);
        return ExitCode::SUCCESS;
    }
    match parse(CommandLine(args)) {
        Ok(options) => run(options),
        Err(error) => usage_error(name, &format!("{error}; see {name} --help")),
    }
}

/// Says why a sub-command cannot do what it is asked to.
pub(super) fn usage_error(name: &str, error: &str) -> ExitCode {
    Terminal::stderr().print_line(&format!("{name}: {error}"));
    ExitCode::from(2)
}

/// An option whose value is a path.
///
/// # Errors
/// When the value is missing.
pub fn path_option(args: &mut Arguments, keys: [&'static str; 2]) -> Result<Option<PathBuf>, String> {
    let path = |text: &OsStr| Ok::<_, Infallible>(text.into());
    args.opt_value_from_os_str(keys, path).map_err(|error| error.to_string())
}

impl CommandLine {
    pub(super) fn value<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, String> {
        self.0.opt_value_from_str(name).map_err(|error| error.to_string())
    }

    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, String> {
        self.value(name)
    }

    /// A number from 1 to `max`.
    pub(super) fn whole_number(&mut self, name: &'static str, max: u32) -> Result<Option<u32>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (1..=max).contains(number));
        number
            .map(Some)
            .ok_or_else(|| format!("{name}: found {text:?}, allowed: a whole number from 1 to {max}"))
    }

    /// The configuration file.
    pub(super) fn config(&mut self) -> Result<Option<PathBuf>, String> {
        path_option(&mut self.0, ["-c", "--config"])
    }

    /// The gateway's signature key, which may be in the environment.
    pub(super) fn signature_key(&mut self) -> Result<Option<String>, String> {
        let key = self.text("--key")?.or_else(|| std::env::var("MQTT_SIGNATURE_KEY").ok());
        Ok(key.filter(|key| !key.is_empty()))
    }

    pub(super) fn flag(&mut self, name: &'static str) -> bool {
        self.0.contains(name)
    }

    /// An argument without a name. To be read after all others.
    pub(super) fn free(&mut self) -> Result<Option<String>, String> {
        self.0.opt_free_from_str().map_err(|error| error.to_string())
    }

    /// Refuses what was not read.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.0.finish().first() {
            Some(unknown) => Err(format!("unknown argument {}", unknown.to_string_lossy())),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn new(args: &[&str]) -> Self {
        Self(Arguments::from_vec(args.iter().map(Into::into).collect()))
    }
}
