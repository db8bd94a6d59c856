//! `token`: today's token of the management page, and where the page is.

use std::process::ExitCode;

use pico_args::Arguments;

use super::command_line::{self, CommandLine};
use super::page::Page;
use super::step_report;
use super::terminal::Terminal;
use crate::config::Source;

const HELP: &str = "\
Print the token of the management page and API, and where the page is.

Usage: mqtt-websocket-proxy token [options]

With a signature key it is the token of today: it changes at midnight, and that of
yesterday is good for one more day. Otherwise it is api.token.

Options:
  -c, --config FILE  configuration file, as for the gateway
  --json             print one line of JSON: url, token, daily, link
  --lang LANG        en or zh: the language of messages (default: the environment's)
  -h, --help         show this help

Environment: as for the gateway; see mqtt-websocket-proxy --help.

Exit code: 0 printed, 2 the configuration cannot be used, or wrong usage.";

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("token", HELP, args, parse, |(source, json)| {
        let page = Page::of(&source.load().map_err(|error| error.to_string())?)?;
        let mut terminal = Terminal::stdout();
        match json {
            true => terminal.print_line(&step_report::to_json(&page)),
            false => lines(&page).iter().for_each(|line| terminal.say(line)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn parse(mut args: CommandLine) -> Result<(Source, bool), String> {
    let json = args.flag("--json");
    let source = Source::new(args.config()?, None, |name| std::env::var_os(name));
    args.finish()?;
    Ok((source, json))
}

fn lines(page: &Page) -> Vec<String> {
    match &page.token {
        Some(token) => {
            vec![format!("token: {token}"), format!("page:  {}", page.url), format!("both:  {}", page.link)]
        }
        None => vec![
            "token: none, since there is neither a signature key nor api.token: only this machine is served"
                .into(),
            format!("page:  {}", page.url),
        ],
    }
}
