//! Command-line parsing that the sub-commands share.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use pico_args::Arguments;

use super::language::translated;
use super::terminal::Terminal;
use crate::config::edit_distance;

/// The arguments that are not read yet, and the options that were looked for.
pub(super) struct CommandLine(Arguments, Vec<&'static str>);

/// Runs a sub-command, or prints its help, or says what is wrong with its arguments or why it cannot do what it is asked to.
pub(super) fn run<T>(
    name: &str,
    help: &str,
    mut args: Arguments,
    parse: impl FnOnce(CommandLine) -> Result<T, String>,
    run: impl FnOnce(T) -> Result<ExitCode, String>,
) -> ExitCode {
    if args.contains(["-h", "--help"]) {
        Terminal::stdout().print_line(help);
        return ExitCode::SUCCESS;
    }
    let options = parse(CommandLine(args, vec!["--help"]));
    let options = options.map_err(|error| error + &format!("; see {name} --help"));
    options.and_then(run).unwrap_or_else(|error| {
        Terminal::stderr().print_line(&format!("{name}: {}", translated(&error)));
        ExitCode::from(2)
    })
}

/// An option whose value is a path.
///
/// # Errors
/// When the value is missing.
pub fn path_option(args: &mut Arguments, keys: [&'static str; 2]) -> Result<Option<PathBuf>, String> {
    let path = |text: &OsStr| Ok::<_, Infallible>(text.into());
    let apart = args.opt_value_from_os_str(keys, path);
    // This one reads UTF-8 only, but also `--key=value`.
    let joined = |args: &mut Arguments| args.opt_value_from_str(keys);
    let found = apart.and_then(|found| if found.is_some() { Ok(found) } else { joined(args) });
    found.map_err(|error| error.to_string())
}

/// Refuses arguments that were not read. An option gets the nearest of the known ones beside it.
///
/// # Errors
/// When there are any: the first, in words.
pub fn finish(args: Arguments, known: &[&str]) -> Result<(), String> {
    args.finish().first().map_or(Ok(()), |unknown| Err(unknown_argument(&unknown.to_string_lossy(), known)))
}

fn unknown_argument(unknown: &str, known: &[&str]) -> String {
    let name = unknown.split('=').next().unwrap_or_default();
    let nearest =
        nearest(name, known).filter(|nearest| name.starts_with('-') && name.len() > 2 && *nearest != name);
    let nearest = nearest.map(|nearest| format!("; the nearest is {nearest}")).unwrap_or_default();
    format!("unknown or repeated argument {unknown:?}{nearest}")
}

/// The known name that is the fewest edits from this one.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known.iter().copied().min_by_key(|known| edit_distance(name, known))
}

impl CommandLine {
    pub(super) fn value<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, String> {
        self.1.push(name);
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
        self.1.push("--config");
        path_option(&mut self.0, ["-c", "--config"])
    }

    /// The gateway's signature key, which may be in the environment.
    pub(super) fn signature_key(&mut self) -> Result<Option<String>, String> {
        let key = self.text("--key")?.or_else(|| std::env::var("MQTT_SIGNATURE_KEY").ok());
        Ok(key.filter(|key| !key.is_empty()))
    }

    pub(super) fn flag(&mut self, name: &'static str) -> bool {
        self.1.push(name);
        self.0.contains(name)
    }

    /// An argument without a name. To be read after all others.
    pub(super) fn free(&mut self) -> Result<Option<String>, String> {
        match self.0.opt_free_from_str::<String>() {
            Ok(Some(option)) if option.starts_with('-') => Err(unknown_argument(&option, &self.1)),
            found => found.map_err(|error| error.to_string()),
        }
    }

    /// Refuses what was not read.
    pub(super) fn finish(self) -> Result<(), String> {
        finish(self.0, &self.1)
    }

    #[cfg(test)]
    pub(super) fn new(args: &[&str]) -> Self {
        Self(Arguments::from_vec(args.iter().map(Into::into).collect()), Vec::new())
    }
}
