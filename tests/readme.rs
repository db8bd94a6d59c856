//! The README in both languages agrees with the program: keys and defaults, variables, arguments, files and links.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use mqtt_websocket_proxy::config::VARIABLES;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const READMES: [&str; 2] = ["README.md", "README.zh-CN.md"];

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

fn json(path: &str) -> Value {
    serde_json::from_str(&text(path)).unwrap()
}

/// The tables of a page, each as its rows below the head, each row as its cells.
fn tables(page: &str) -> Vec<Vec<Vec<String>>> {
    let mut tables: Vec<Vec<Vec<String>>> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        let row = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
        match row {
            Some(row) if !inside => {
                inside = true;
                assert!(!row.starts_with('`'), "a table without a head: {row}");
                tables.push(Vec::new());
            }
            Some(row) if !row.starts_with("---") => {
                let cells = row.split(" | ").map(|cell| cell.trim().to_owned()).collect();
                tables.last_mut().unwrap().push(cells);
            }
            Some(_) => {}
            None => inside = false,
        }
    }
    tables
}

/// The table whose first row begins with this cell.
fn table(page: &str, first: &str) -> Vec<Vec<String>> {
    let mut found = tables(page).into_iter().filter(|table| table[0][0].starts_with(first));
    let table = found.next().unwrap_or_else(|| panic!("no table begins with {first}"));
    assert!(found.next().is_none(), "two tables begin with {first}");
    table
}

/// The texts between backticks.
fn code_spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Every key of the file: its path, default, and whether it needs a restart.
fn keys(schema: &Value, path: &str, into: &mut Vec<(String, Value, bool)>) {
    for (key, property) in schema["properties"].as_object().unwrap() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        // For editors, and for another gateway.
        if path == "$schema" || path == "gateway" {
            continue;
        }
        if property.get("properties").is_some() {
            keys(property, &path, into);
        } else {
            let restart = property["description"].as_str().unwrap().contains("Needs a restart.");
            into.push((path, property["default"].clone(), restart));
        }
    }
}

#[test]
fn the_configuration_table_is_the_file_and_its_schema() {
    let (sample, mut keys_of_schema) = (json("config/gateway.json"), Vec::new());
    keys(&json("config/gateway.schema.json"), "", &mut keys_of_schema);
    assert!(keys_of_schema.len() >= 40);
    keys_of_schema.sort_by(|a, b| a.0.cmp(&b.0));
    for page in READMES {
        let mut table = table(&text(page), "`mqtt.host`");
        table.sort_by(|a, b| code_spans(&a[0]).cmp(&code_spans(&b[0])));
        assert_eq!(table.len(), keys_of_schema.len(), "{page}");
        for (row, (key, default, restart)) in table.iter().zip(&keys_of_schema) {
            let [name, value, meaning] = &row[..] else { panic!("{page}: {row:?}") };
            assert_eq!(code_spans(name), [key.as_str()], "{page}");
            assert_eq!(name.ends_with(r"\*"), *restart, "{page}: {key}: needs a restart");
            let shown: Value = serde_json::from_str(code_spans(value)[0]).unwrap();
            assert_eq!(&shown, default, "{page}: {key}");
            let in_file = key.split('.').fold(&sample, |value, key| &value[key]);
            assert_eq!(&shown, in_file, "{page}: {key}");
            assert!(!meaning.is_empty(), "{page}: {key}");
        }
    }
}

#[test]
fn the_server_table_is_the_schema() {
    let schema = json("config/gateway.schema.json");
    let forms = schema["$defs"]["server"]["anyOf"].as_array().unwrap();
    let object = forms.iter().find(|form| form["type"] == "object").unwrap();
    let mut of_schema: Vec<_> = object["properties"].as_object().unwrap().keys().collect();
    of_schema.sort();
    for page in READMES {
        let table = table(&text(page), "`url`");
        let mut names: Vec<_> = table.iter().map(|row| code_spans(&row[0])[0].to_owned()).collect();
        names.sort();
        assert_eq!(names.iter().collect::<Vec<_>>(), of_schema, "{page}");
    }
}

#[test]
fn variables_and_arguments_are_those_of_the_help_text() {
    let output = Command::new(env!("CARGO_BIN_EXE_mqtt-websocket-proxy")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let options = help.lines().filter(|line| line.starts_with("  -"));
    let options: Vec<_> = options.map(|line| line.trim().split("  ").next().unwrap().trim()).collect();
    assert!(options.len() >= 5, "{options:?}");
    let tools = help.lines().filter_map(|line| line.strip_prefix("  mqtt-websocket-proxy "));
    let tools: Vec<_> =
        tools.filter(|line| !line.starts_with('[')).map(|line| line.split(' ').next().unwrap()).collect();
    for page in READMES {
        let page_text = text(page);
        let variables = table(&page_text, "`CONFIG_FILE`");
        let variables: Vec<_> = variables
            .iter()
            .map(|row| (code_spans(&row[0])[0], code_spans(&row[1]).first().map(|set| set.to_string())))
            .collect();
        let of_program: Vec<_> = VARIABLES
            .iter()
            .map(|(name, sets)| (*name, (!sets.contains(' ')).then(|| sets.to_string())))
            .collect();
        assert_eq!(variables, of_program, "{page}");

        let arguments = table(&page_text, "`-c`");
        let arguments: Vec<_> = arguments.iter().map(|row| code_spans(&row[0]).join(", ")).collect();
        assert_eq!(arguments, options, "{page}");

        let commands = table(&page_text, "`demo`");
        let commands: Vec<_> =
            commands.iter().map(|row| code_spans(&row[0])[0].split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(commands, tools, "{page}");
    }
}

/// The blocks between fences, with their language.
fn code_blocks(page: &str) -> Vec<&str> {
    page.split("```").skip(1).step_by(2).collect()
}

/// The targets of `[text](target)` outside of blocks.
fn links(page: &str) -> Vec<String> {
    let prose: String = page.split("```").step_by(2).collect();
    let targets = prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned());
    targets.collect()
}

#[test]
fn both_languages_are_in_step() {
    let [english, chinese] = READMES.map(text);
    assert_eq!(code_blocks(&english), code_blocks(&chinese));
    assert_eq!(code_blocks(&english).len(), english.matches("```").count() / 2);
    let shape = |page: &str| {
        let heads = page.lines().filter(|line| line.starts_with('#'));
        heads.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(shape(&english), shape(&chinese));
    let rows = |page: &str| tables(page).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(rows(&english), rows(&chinese));
    let others = |page: &str| {
        let links = links(page).into_iter().filter(|link| !link.starts_with("README"));
        links.map(|link| link.replace(".zh-CN", "")).collect::<Vec<_>>()
    };
    assert_eq!(others(&english), others(&chinese));
}

/// The pages that exist in Chinese, besides the README.
const TRANSLATED: [&str; 5] =
    ["install", "migrate-from-nodejs", "monitoring", "scale-out", "troubleshooting"];

#[test]
fn translated_pages_are_in_step() {
    let chinese: Vec<_> = pages().into_iter().filter(|page| page.ends_with(".zh-CN.md")).collect();
    assert_eq!(chinese.len(), 1 + TRANSLATED.len(), "{chinese:?}");
    for page in TRANSLATED {
        let [english, chinese] = ["", ".zh-CN"].map(|language| text(&format!("docs/{page}{language}.md")));
        assert_eq!(code_blocks(&english), code_blocks(&chinese), "{page}");
        assert_eq!(english.matches("```").count(), 2 * code_blocks(&english).len(), "{page}");
        let shape = |page: &str| {
            let prose: String = page.split("```").step_by(2).collect();
            let heads = prose.lines().filter(|line| line.starts_with('#'));
            heads.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(shape(&english), shape(&chinese), "{page}");
        let rows = |page: &str| tables(page).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(rows(&english), rows(&chinese), "{page}");
        // Without the anchors, which are translated headings.
        let targets = |page: &str| {
            let targets =
                links(page).into_iter().map(|link| link.split('#').next().unwrap().replace(".zh-CN", ""));
            targets.collect::<Vec<_>>()
        };
        assert_eq!(targets(&english), targets(&chinese), "{page}");
        for (page, other) in
            [(&english, format!("[简体中文]({page}.zh-CN.md)")), (&chinese, format!("[English]({page}.md)"))]
        {
            assert_eq!(page.lines().nth(2).map(|line| line.contains(&other)), Some(true), "{other}");
        }
        // A page that exists in Chinese is linked in Chinese.
        for link in links(&chinese).iter().skip(1) {
            let file = link.split('#').next().unwrap();
            let english = TRANSLATED.iter().any(|name| file == format!("{name}.md"));
            assert!(!english && !file.ends_with("README.md"), "docs/{page}.zh-CN.md links to {link}");
        }
    }
}

/// What a user of Redis may do is what `check` says that it needs.
#[test]
fn the_permissions_for_redis_are_those_that_check_names() {
    let source = text("src/cluster/check.rs");
    let permissions = source.split('"').find(|text| text.starts_with("~PREFIX:*")).unwrap();
    let permissions = permissions.replace("PREFIX", "mqtt-websocket-proxy");
    for page in ["docs/security.md", "docs/scale-out.md", "docs/scale-out.zh-CN.md"] {
        let text = text(page);
        let users: Vec<_> = text.lines().filter_map(|line| line.split_once(">a-long-random-text ")).collect();
        assert!(!users.is_empty(), "{page}");
        users.into_iter().for_each(|(_, found)| assert_eq!(found, permissions, "{page}"));
    }
}

/// Every page there is.
fn pages() -> Vec<String> {
    let mut pages: Vec<_> = READMES.map(str::to_owned).to_vec();
    pages.extend(["CHANGELOG.md".to_owned(), "CONTRIBUTING.md".to_owned()]);
    let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    pages.extend(docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap())));
    pages.retain(|page| page.ends_with(".md"));
    pages
}

/// The anchors of a page's headings.
fn heading_anchors(page: &str) -> Vec<String> {
    let prose: String = page.split("```").step_by(2).collect();
    let heads = prose.lines().filter(|line| line.starts_with('#'));
    let words = heads.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
    words.map(|head| head.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn link_targets_exist() {
    for page in pages() {
        let here = Path::new(ROOT).join(&page);
        for link in links(&text(&page)) {
            let (file, place) = link.split_once('#').unwrap_or((&link, ""));
            if file.contains("://") {
                continue;
            }
            let target = if file.is_empty() { here.clone() } else { here.parent().unwrap().join(file) };
            assert!(target.exists(), "{page} links to {link}");
            if !place.is_empty() {
                let places = heading_anchors(&fs::read_to_string(&target).unwrap());
                assert!(places.iter().any(|known| known == place), "{page} links to {link}: {places:?}");
            }
        }
    }
}

#[test]
fn the_commands_of_the_pages_exist() {
    let help = |tool: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-websocket-proxy"));
        let output = command.args((!tool.is_empty()).then_some(tool)).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let of_program = help("");
    let mut seen = 0;
    for page in pages() {
        let text = text(&page).replace("\\\n", " ");
        let lines = code_blocks(&text)
            .into_iter()
            .filter(|block| block.starts_with("sh\n"))
            .flat_map(str::lines)
            .map(str::trim);
        for line in lines {
            let called = line.split_once("mqtt-websocket-proxy ").or(line.split_once("--release -- "));
            let Some((before, arguments)) = called else { continue };
            // Other programs take the name as an argument.
            if !["", "(umask 077; ", "target/release/", "cargo run "].contains(&before) {
                continue;
            }
            let arguments = arguments.split([')', '#', '>']).next().unwrap();
            let mut words = arguments.split_whitespace().peekable();
            let tool = words.next_if(|word| !word.starts_with('-')).unwrap_or("");
            assert!(of_program.contains(&format!("mqtt-websocket-proxy {tool}")), "{page}: {line}");
            let options = help(tool);
            for option in words.filter(|word| word.starts_with('-')) {
                let known = |found: &str| found.trim_end_matches(',') == option;
                assert!(options.split_whitespace().any(known), "{page}: {option} in {line}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen}");
}

/// Messages of log and probe that are quoted in tables occur in the source; `...` stands for a value.
#[test]
fn messages_quoted_in_troubleshooting_exist() {
    fn all(folder: &Path) -> String {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| if path.is_dir() { all(&path) } else { fs::read_to_string(&path).unwrap() })
            .collect()
    }
    let source = all(&Path::new(ROOT).join("src")).replace("{} ", " ");
    let pages = ["docs/troubleshooting.md", "docs/troubleshooting.zh-CN.md"].map(text);
    for (page, first) in pages.iter().flat_map(|page| {
        ["`refused with return code 4", "`the certificate is for"].map(|first| (page, first))
    }) {
        for row in table(page, first) {
            for quoted in code_spans(&row[0]) {
                let said = quoted.trim_start_matches("closed: ");
                let said = said.strip_prefix("refused with return code ").map_or(said, |rest| &rest[1..]);
                for part in said.split("...") {
                    let part = part.trim().trim_start_matches(": ");
                    assert!(source.contains(part), "{quoted}: {part}");
                }
            }
        }
    }
}

#[test]
fn the_json_of_the_pages_is_json() {
    for page in READMES {
        let text = text(page);
        let json: Vec<_> =
            code_blocks(&text).into_iter().filter_map(|block| block.strip_prefix("json\n")).collect();
        assert!(json.len() >= 2, "{page}");
        for block in json {
            assert!(serde_json::from_str::<Value>(block).is_ok(), "{page}: {block}");
        }
    }
}
