//! What `init` asks in a terminal.

use std::io::{self, BufRead, IsTerminal};

use super::{Choices, parse_address, parse_macs, parse_server};
use crate::net::media::credentials::local_address;
use crate::net::ota::container_detection::is_container;
use crate::tools::terminal::Terminal;

/// Asks for what the command line does not name, if somebody can answer.
pub(super) fn ask_missing(terminal: &mut Terminal, choices: &mut Choices) {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return;
    }
    let mut answers = io::stdin().lock();
    let mut print = |line: &str| terminal.say(line);
    if choices.server.is_none() {
        let question =
            "Chat server, a ws:// or wss:// URL? Empty: the built-in echo server, the best first test.";
        choices.server = ask(question, &mut answers, parse_server, &mut print);
    }
    if choices.address.is_none() && std::env::var_os("PUBLIC_IP").is_none_or(|value| value.is_empty()) {
        let here = local_address().map(|ip| format!(", here {ip}")).unwrap_or_default();
        let question = format!(
            "Address or name at which devices reach this machine? Empty: its own{here}. Behind NAT or in a container it is \
             another one."
        );
        choices.address = ask(&question, &mut answers, parse_address, &mut print);
    }
    if choices.macs.is_none() && is_container() {
        let question = "MAC addresses of the devices, with commas between, or their first pairs? In a container the OTA port \
                        answers only devices that are named.";
        choices.macs = ask(question, &mut answers, parse_macs, &mut print);
    }
}

/// Asks until the answer is understood. `None`: it is empty, or there are no more.
fn ask<T>(
    question: &str,
    answers: &mut impl BufRead,
    parse: impl Fn(&str) -> Result<T, String>,
    print: &mut impl FnMut(&str),
) -> Option<T> {
    print(question);
    loop {
        let mut answer = String::new();
        let read = answers.read_line(&mut answer).unwrap_or(0);
        if read == 0 || answer.trim().is_empty() {
            return None;
        }
        match parse(answer.trim()) {
            Ok(value) => return Some(value),
            Err(error) => print(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_until_the_answer_is_understood() {
        let asked = |answers: &str| {
            let mut printed = Vec::new();
            let print = &mut |line: &str| printed.push(line.to_owned());
            let found = ask("where?", &mut answers.as_bytes(), parse_address, print);
            (found.map(|address| address.to_string()), printed.len())
        };
        assert_eq!(asked(" gw.example \n"), (Some("gw.example".to_owned()), 1));
        assert_eq!(asked("::1\na b\n192.0.2.1\n"), (Some("192.0.2.1".to_owned()), 3));
        assert_eq!(asked("\n192.0.2.1\n"), (None, 1));
        assert_eq!(asked("::1"), (None, 2));
        assert_eq!(asked(""), (None, 1));
    }
}
