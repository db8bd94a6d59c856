//! The man page and the shell completions agree with `--help`, from which they are made.
//!
//! `UPDATE_MANUAL=1 cargo test --test manual` writes them again.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

const NAME: &str = "mqtt-websocket-proxy";

/// A line of the options: its names, its value, and what it means.
struct HelpOption {
    names: Vec<String>,
    value: Option<String>,
    meaning: String,
}

/// A help text: the program's own, or that of a command.
struct Help {
    /// Empty for the program's own.
    command: String,
    /// What the list of commands says about it.
    summary: String,
    /// The arguments of its usage line.
    usage: String,
    options: Vec<HelpOption>,
    text: String,
}

impl Help {
    fn ask(command: &str, usage: &str, summary: &str) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_mqtt-websocket-proxy"));
        let output = program.args((!command.is_empty()).then_some(command)).arg("--help").output().unwrap();
        assert!(output.status.success(), "{command}");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut options: Vec<HelpOption> = Vec::new();
        let section = text.lines().skip_while(|line| *line != "Options:").skip(1);
        for line in section.take_while(|line| line.starts_with("  ")) {
            if line.starts_with("  -") {
                options.push(parse_option(line));
            } else {
                let meaning = &mut options.last_mut().unwrap().meaning;
                write!(meaning, " {}", line.trim()).unwrap();
            }
        }
        assert!(options.iter().any(|option| option.names.contains(&"--help".to_owned())), "{command}");
        Self {
            command: command.to_owned(),
            summary: summary.to_owned(),
            usage: usage.to_owned(),
            options,
            text,
        }
    }

    /// The paragraphs behind the options, each with its heading where it has one.
    fn sections(&self) -> impl Iterator<Item = &str> {
        let behind = self.text.split("\nOptions:\n").nth(1).unwrap();
        behind.split("\n\n").skip(1).map(str::trim_end)
    }
}

fn parse_option(line: &str) -> HelpOption {
    let (left, meaning) = line.trim().split_once("  ").unwrap_or_else(|| panic!("no meaning: {line}"));
    let words = left.split([' ', ',']).filter(|word| !word.is_empty());
    let (names, values): (Vec<_>, Vec<_>) = words.map(str::to_owned).partition(|word| word.starts_with('-'));
    HelpOption { names, value: values.into_iter().next(), meaning: meaning.trim().to_owned() }
}

/// The program's own help, and that of each command it lists.
fn helps() -> Vec<Help> {
    let mut helps = vec![Help::ask("", "[options]", "run the gateway")];
    let list: Vec<_> = helps[0].text.lines().map(str::to_owned).collect();
    for line in list.iter().filter_map(|line| line.strip_prefix("  mqtt-websocket-proxy ")) {
        let (usage, summary) = line.split_once("  ").unwrap_or((line, ""));
        let (command, usage) = usage.trim().split_once(' ').unwrap_or((usage.trim(), ""));
        if !command.starts_with('[') {
            helps.push(Help::ask(command, usage, summary.trim()));
        }
    }
    assert!(helps.len() >= 6);
    helps
}

/// Compares a kept file with what it must be, or writes it.
fn compare(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_MANUAL").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        return fs::write(file, expected).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default().replace('\r', "");
    let differs = kept.lines().zip(expected.lines()).find(|(kept, expected)| kept != expected);
    assert!(
        kept == expected,
        "{path} is not what --help says; write it with UPDATE_MANUAL=1 cargo test --test manual; first: {differs:?}"
    );
}

/// A text as roff: no line begins with a control character, and each `-` can be copied as one.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = escaped.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn roff_options(options: &[HelpOption], page: &mut String) {
    for HelpOption { names, value, meaning } in options {
        let names = names.iter().map(|name| format!("\\fB{}\\fR", roff(name)));
        let names = names.collect::<Vec<_>>().join(", ");
        let value = value.as_ref().map(|value| format!(" \\fI{}\\fR", roff(value))).unwrap_or_default();
        write!(page, ".TP\n{names}{value}\n{}\n", roff(meaning)).unwrap();
    }
}

/// What stands between the usage line and the options of a command, as paragraphs.
fn description(help: &Help) -> String {
    let before = help.text.split("\nOptions:\n").next().unwrap();
    let paragraphs = before.split("\n\n").filter(|paragraph| !paragraph.trim_start().starts_with("Usage:"));
    paragraphs.map(|paragraph| roff(paragraph.trim())).collect::<Vec<_>>().join("\n.PP\n")
}

fn man_page(helps: &[Help]) -> String {
    let (own, commands) = helps.split_first().unwrap();
    let about = own.text.lines().nth(1).unwrap().trim_end_matches('.');
    let mut page = format!(
        ".\\\" Made from --help by tests/manual.rs.\n.TH MQTT\\-WEBSOCKET\\-PROXY 1 \"\" \"{NAME}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n",
        roff(NAME),
        roff(about)
    );
    for (index, Help { command, usage, .. }) in helps.iter().enumerate() {
        let line = [command.as_str(), usage].join(" ");
        let separator = if index > 0 { ".br\n" } else { "" };
        writeln!(page, "{separator}\\fB{}\\fR {}", roff(NAME), roff(line.trim())).unwrap();
    }
    page.push_str(".SH OPTIONS\n");
    roff_options(&own.options, &mut page);
    page.push_str(".SH COMMANDS\n");
    for help in commands {
        let title = [help.command.as_str(), help.usage.as_str()].join(" ");
        write!(page, ".SS {}\n{}\n", roff(title.trim()), description(help)).unwrap();
        roff_options(&help.options, &mut page);
        for section in help.sections() {
            write!(page, ".PP\n.nf\n{}\n.fi\n", roff(section)).unwrap();
        }
    }
    for section in own.sections() {
        let (heading, rest) = match section.split_once(':') {
            Some((heading, rest)) if heading.len() < 70 && !heading.contains('\n') => (heading, rest),
            _ => panic!("no heading: {section}"),
        };
        let (heading, remark) = heading.split_once(", ").unwrap_or((heading, ""));
        let remark = if remark.is_empty() { String::new() } else { format!("Used {}:\n.PP\n", roff(remark)) };
        write!(
            page,
            ".SH {}\n{remark}.nf\n{}\n.fi\n",
            heading.to_uppercase(),
            roff(rest.trim_matches('\n').trim_start_matches(' '))
        )
        .unwrap();
    }
    page.push_str(".SH FILES\n.TP\n/etc/mqtt\\-websocket\\-proxy/gateway.json\nThe configuration of the service.\n.TP\n/etc/mqtt\\-websocket\\-proxy/environment\nIts variables, for secrets.\n.SH SEE ALSO\n/usr/share/doc/mqtt\\-websocket\\-proxy/README.md\n");
    page
}

/// Whether the value of an option is a file.
fn takes_file(option: &HelpOption) -> bool {
    option.value.as_deref() == Some("FILE")
}

/// The values of an option that has a few: those that its meaning lists, as of the log level.
fn choices(option: &HelpOption) -> Option<String> {
    let is_level = option.names.contains(&"--log-level".to_owned());
    is_level.then(|| option.meaning.replace([',', '|'], " ").split_whitespace().collect::<Vec<_>>().join(" "))
}

fn bash(helps: &[Help]) -> String {
    let commands: Vec<_> = helps[1..].iter().map(|help| help.command.as_str()).collect();
    let mut script = format!(
        "# Completions of {NAME} for bash. Made from --help by tests/manual.rs.\n\n_mqtt_websocket_proxy() {{\n    \
         local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words\n    \
         COMPREPLY=()\n    case $command:$before in\n"
    );
    for Help { command, options, .. } in helps {
        for option in options.iter().filter(|option| option.value.is_some()) {
            let command = if command.is_empty() { "*" } else { command };
            let patterns: Vec<_> = option.names.iter().map(|name| format!("{command}:{name}")).collect();
            let reply = match (takes_file(option), choices(option)) {
                (true, _) => {
                    "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$word\"); return"
                        .to_owned()
                }
                (_, Some(choices)) => {
                    format!("mapfile -t COMPREPLY < <(compgen -W '{choices}' -- \"$word\"); return")
                }
                _ => "return".to_owned(),
            };
            writeln!(script, "        {}) {reply} ;;", patterns.join(" | ")).unwrap();
        }
    }
    script.push_str("    esac\n    case $command in\n");
    for Help { command, options, .. } in helps[1..].iter().chain(&helps[..1]) {
        let names: Vec<_> = options.iter().flat_map(|option| &option.names).map(String::as_str).collect();
        let (pattern, mut words) =
            if command.is_empty() { ("*", commands.clone()) } else { (command.as_str(), Vec::new()) };
        words.extend(names);
        writeln!(script, "        {pattern}) words='{}' ;;", words.join(" ")).unwrap();
    }
    script.push_str("    esac\n    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n}\n\n");
    writeln!(script, "complete -F _mqtt_websocket_proxy {NAME}").unwrap();
    script
}

/// A meaning as a text in single quotes for zsh's `_arguments`, which has `[]` and `:` for itself.
fn zsh_text(text: &str) -> String {
    text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:")
}

fn zsh(helps: &[Help]) -> String {
    let arguments = |options: &[HelpOption], indent: &str| {
        let mut lines = String::new();
        for option in options {
            let meaning = zsh_text(&option.meaning);
            let value = option.value.as_ref().map(|value| match (takes_file(option), choices(option)) {
                (true, _) => ":FILE:_files".to_owned(),
                (_, Some(choices)) => format!(":{value}:({choices})"),
                _ => format!(":{}: ", zsh_text(value)),
            });
            for name in &option.names {
                let others = format!("({})", option.names.join(" "));
                write!(lines, " \\\n{indent}'{others}{name}[{meaning}]{}'", value.as_deref().unwrap_or(""))
                    .unwrap();
            }
        }
        lines
    };
    let mut script =
        format!("#compdef {NAME}\n# Completions of {NAME} for zsh. Made from --help by tests/manual.rs.\n\n");
    script.push_str("_mqtt_websocket_proxy() {\n    local -a commands=(\n");
    for Help { command, summary, .. } in &helps[1..] {
        writeln!(script, "        '{command}:{}'", summary.replace('\'', "'\\''")).unwrap();
    }
    script.push_str("    )\n    if (( CURRENT > 2 )); then\n        case $words[2] in\n");
    for Help { command, options, usage, .. } in &helps[1..] {
        let host = if usage.starts_with("HOST") { " \\\n                    '2:host:_hosts'" } else { "" };
        writeln!(script, "            {command})\n                shift words; (( CURRENT-- ))\n                _arguments{}{host}\n                return ;;",
            arguments(options, "                    "), host = host.replace("'2:", "'1:")).unwrap();
    }
    write!(script, "        esac\n    fi\n    _arguments{} \\\n        '1:command:{{_describe command commands}}'\n}}\n\n_mqtt_websocket_proxy \"$@\"\n",
        arguments(&helps[0].options, "        ")).unwrap();
    script
}

fn fish(helps: &[Help]) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut script = format!(
        "# Completions of {NAME} for fish. Made from --help by tests/manual.rs.\n\ncomplete -c {NAME} -f\n"
    );
    for Help { command, summary, .. } in &helps[1..] {
        writeln!(script, "complete -c {NAME} -n __fish_use_subcommand -a {command} -d {}", quoted(summary))
            .unwrap();
    }
    for Help { command, options, .. } in helps {
        let condition = match command.as_str() {
            "" => "__fish_use_subcommand".to_owned(),
            command => quoted(&format!("__fish_seen_subcommand_from {command}")),
        };
        for option in options {
            write!(script, "complete -c {NAME} -n {condition}").unwrap();
            for name in &option.names {
                match name.strip_prefix("--") {
                    Some(long) => write!(script, " -l {long}").unwrap(),
                    None => write!(script, " -s {}", &name[1..]).unwrap(),
                }
            }
            match (&option.value, takes_file(option), choices(option)) {
                (None, ..) => {}
                (_, true, _) => script.push_str(" -r -F"),
                (.., Some(choices)) => write!(script, " -x -a '{choices}'").unwrap(),
                _ => script.push_str(" -x"),
            }
            writeln!(script, " -d {}", quoted(&option.meaning)).unwrap();
        }
    }
    script
}

#[test]
fn the_man_page_is_what_help_says() {
    compare("config/mqtt-websocket-proxy.1", &man_page(&helps()));
}

#[test]
fn the_completions_are_what_help_says() {
    let helps = helps();
    compare("config/completions/mqtt-websocket-proxy.bash", &bash(&helps));
    compare("config/completions/_mqtt-websocket-proxy", &zsh(&helps));
    compare("config/completions/mqtt-websocket-proxy.fish", &fish(&helps));
}

/// bash itself completes with the script, where it is installed.
#[cfg(unix)]
#[test]
fn bash_completes_commands_options_and_values() {
    let complete = |line: &str| {
        let script = format!(
            "type mapfile compopt >/dev/null || exit 3; . config/completions/mqtt-websocket-proxy.bash; COMP_WORDS=({NAME} {line}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _mqtt_websocket_proxy; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let output =
            Command::new("bash").args(["-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let output = output.ok().filter(|output| output.status.code() != Some(3))?;
        assert!(output.status.success(), "{output:?}");
        Some(
            String::from_utf8(output.stdout)
                .unwrap()
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    };
    for (line, expected) in [
        ("pro", &["probe"][..]),
        ("--c", &["--config"]),
        ("-l de", &["debug"]),
        ("probe --no", &["--no-pause"]),
        ("check --mig", &["--migrate"]),
        ("probe --key ''", &[]),
    ] {
        // bash before version 4, as of macOS, has no mapfile.
        let Some(found) = complete(line) else { return eprintln!("skipped: no bash of version 4 or later") };
        assert_eq!(found, expected, "{line}");
    }
}
