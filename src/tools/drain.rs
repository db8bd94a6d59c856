//! `drain`: asks the gateway on this machine to drain, and what its drain waits for.

use std::process::ExitCode;

use pico_args::Arguments;
use serde::Deserialize;

use super::command_line::{self, CommandLine};
use super::health::{http_request, local_api_address};
use super::page::Page;
use super::terminal::Terminal;
use crate::admin::routes::MAX_DRAIN_SECONDS;
use crate::config::{Config, Source};
use crate::text::parse_digits;

const HELP: &str = "\
Ask the gateway on this machine to drain: no new devices, and the end when the last call
is over. As SIGUSR1 does, but with an answer.

Usage: mqtt-websocket-proxy drain [options]

Options:
  --within DURATION  end the calls that go on after this time: 90s, 10m or 2h, a week at most;
                     given again, it counts from then on
  --status           only say what the drain waits for
  -c, --config FILE  configuration file, as for the gateway, which names the port and the token
  -h, --help         show this help

Environment: as for the gateway; see mqtt-websocket-proxy --help.

Exit code: 0 it drains, 1 it does not, or no gateway answers, 2 the configuration cannot be
used, or wrong usage.";

/// What to ask.
#[derive(Debug, PartialEq)]
enum Request {
    Status,
    /// In seconds.
    Drain(Option<u64>),
}

/// The answer of `POST /api/drain`, and of `GET /readyz`, where only a gateway that drains says how many there are.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status: String,
    calls: Option<usize>,
    devices: Option<usize>,
    seconds_left: Option<u64>,
}

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("drain", HELP, args, parse, |(source, request)| {
        let config = source.load().map_err(|error| error.to_string())?;
        let page = Page::of(&config)?;
        Ok(ask(&config, page.token.as_deref(), &request))
    })
}

fn parse(mut args: CommandLine) -> Result<(Source, Request), String> {
    let within = args.text("--within")?.map(|text| seconds("--within", &text)).transpose()?;
    let request = match args.flag("--status") {
        true if within.is_some() => return Err("--status: found --within too, allowed: one of both".into()),
        true => Request::Status,
        false => Request::Drain(within),
    };
    let source = Source::new(args.config()?, None, |name| std::env::var_os(name));
    args.finish()?;
    Ok((source, request))
}

/// A number of seconds, minutes or hours.
fn seconds(name: &str, text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, ""),
    };
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds =
        parse_digits::<u64>(number).zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    seconds.filter(|seconds| (1..=MAX_DRAIN_SECONDS).contains(seconds)).ok_or_else(|| {
        format!("{name}: found {text:?}, allowed: a number of seconds, minutes or hours up to a week: 90s, 10m, 2h")
    })
}

fn ask(config: &Config, token: Option<&str>, request: &Request) -> ExitCode {
    let (method, path) = match request {
        Request::Status => ("GET", "/readyz".to_owned()),
        Request::Drain(None) => ("POST", "/api/drain".to_owned()),
        Request::Drain(Some(seconds)) => ("POST", format!("/api/drain?within={seconds}")),
    };
    let (token, address) = (token.filter(|_| *request != Request::Status), local_api_address(config));
    let text = match http_request(config, method, &path, token) {
        Ok(text) => text,
        Err(error) => {
            Terminal::stderr().print_line(&format!("drain: {address}: no gateway answers: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let body = text.lines().last().unwrap_or_default();
    match serde_json::from_str::<Answer>(body).ok().filter(|answer| answer.status == "draining") {
        Some(answer) => {
            Terminal::stdout().print_line(&in_words(&answer));
            ExitCode::SUCCESS
        }
        None => {
            Terminal::stderr().print_line(&format!("drain: {address}: it does not drain: {body}"));
            ExitCode::FAILURE
        }
    }
}

fn in_words(answer: &Answer) -> String {
    let (calls, devices) = (answer.calls.unwrap_or_default(), answer.devices.unwrap_or_default());
    let left = answer.seconds_left.map(|left| format!("; calls that go on in {left} s are ended then"));
    format!("draining: waits for {calls} calls, {devices} devices{}", left.unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_end_within_a_week() {
        for (text, expected) in [("90s", 90), ("10m", 600), ("2h", 7200), ("168h", 604_800), ("1s", 1)] {
            assert_eq!(seconds("--within", text), Ok(expected), "{text}");
        }
        for text in
            ["", "s", "90", "0s", "-1s", "+1s", "1.5h", "169h", "10 m", "10d", "99999999999999999999h", "1µ"]
        {
            let error = seconds("--within", text).unwrap_err();
            assert!(error.starts_with(&format!("--within: found {text:?}, allowed: ")), "{error}");
        }
    }

    #[test]
    fn either_the_status_or_a_drain_is_asked_for() {
        let request = |args: &[&str]| parse(CommandLine::new(args)).map(|(_, request)| request);
        assert_eq!(request(&[]), Ok(Request::Drain(None)));
        assert_eq!(request(&["--within", "1m"]), Ok(Request::Drain(Some(60))));
        assert_eq!(request(&["--status"]), Ok(Request::Status));
        assert!(request(&["--status", "--within", "1m"]).unwrap_err().contains("one of both"));
        assert!(request(&["now"]).is_err());
    }

    #[test]
    fn the_answer_is_said_in_words() {
        let words = |body: &str| in_words(&serde_json::from_str(body).unwrap());
        let open = r#"{"status":"draining","calls":3,"devices":5}"#;
        assert_eq!(words(open), "draining: waits for 3 calls, 5 devices");
        let limited = r#"{"status":"draining","calls":0,"devices":1,"secondsLeft":59}"#;
        let expected = "draining: waits for 0 calls, 1 devices; calls that go on in 59 s are ended then";
        assert_eq!(words(limited), expected);
    }
}
