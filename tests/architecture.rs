//! The rules of the source tree: the pure modules stay pure, imports point one way and not in circles, files and functions
//! stay short.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "support/source_tree.rs"]
mod source_tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use source_tree::{
    Imports, SourceTree, all_files, circles, functions_longer_than, lines_of_code, names_in, production_code,
    source_files, src, without_comments,
};

/// Sockets, clocks, randomness and logs, which pure modules must not use.
const FORBIDDEN_IN_CORE: [&str; 22] = [
    "mio",
    "tungstenite",
    "native_tls",
    "socket2",
    "nix",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "Instant::now",
    "SystemTime",
    "thread_local",
    "std::io",
    "std::fs",
    "std::env",
    "std::thread",
    "log::",
    "trace!",
    "debug!",
    "info!",
    "warn!",
    "error!",
    "getrandom",
];

/// A top-level module, and those that it must not import.
const FORBIDDEN_IMPORTS: [(&str, &[&str]); 7] = [
    ("proto", &["session", "net", "admin", "tools", "config", "logger"]),
    ("session", &["net", "admin", "tools", "logger"]),
    ("config", &["session", "net", "admin", "tools", "logger"]),
    ("admin", &["net", "tools", "logger"]),
    ("cluster", &["session", "net", "admin", "tools", "config", "logger"]),
    ("net", &["tools"]),
    ("logger", &["session", "net", "admin", "tools", "proto"]),
];

/// The parts of the shell, which the tools of the event loop must not import.
const PARTS_OF_NET: [&str; 7] =
    ["net::mqtt", "net::backend", "net::media", "net::sessions", "net::admin", "net::ota", "net::gateway"];

/// Lines of production code: neither empty, nor comments, nor tests.
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn pure_modules_use_no_socket_clock_random_source_or_log() {
    for module in ["proto", "session", "admin", "cluster"] {
        let files = source_files(module);
        assert!(files.len() >= 6, "{module}: {files:?}");
        for path in files {
            let found = names_in(&production_code(&fs::read_to_string(&path).unwrap()), &FORBIDDEN_IN_CORE);
            assert!(found.is_empty(), "{} names {found:?}", path.display());
        }
    }
}

#[test]
fn imports_follow_the_dependency_direction() {
    for (module, above) in FORBIDDEN_IMPORTS {
        let files = source_files(module);
        assert!(!files.is_empty(), "{module}");
        for path in files {
            let code = production_code(&fs::read_to_string(&path).unwrap());
            let names: Vec<_> = above.iter().map(|other| format!("crate::{other}")).collect();
            let found = names_in(&code, &names.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(found.is_empty(), "{} names {found:?}", path.display());
            // `use crate::{a, b}` would not match the names above.
            assert!(!code.contains("crate::{"), "{}: one `use crate::` a line, please", path.display());
        }
    }
}

/// The parts are constructed and tested without the gateway that connects them.
#[test]
fn inside_net_only_the_gateway_folder_names_the_gateway() {
    let gateway = src().join("net/gateway");
    for path in all_files("net").iter().filter(|path| !path.starts_with(&gateway)) {
        // Their tests too.
        let mut code = without_comments(&fs::read_to_string(path).unwrap());
        if *path == src().join("net/mod.rs") {
            let kept = |line: &&str| !line.starts_with("pub use gateway::") && *line != "pub mod gateway;";
            code = code.lines().filter(kept).collect::<Vec<_>>().join("\n");
        }
        let found =
            names_in(&code, &["Gateway", "net::gateway", "super::gateway", "mod gateway", "use gateway"]);
        assert!(found.is_empty(), "{} names {found:?}", path.display());
    }
}

#[test]
fn the_event_loop_imports_no_part_of_the_shell() {
    let event_loop = src().join("net/event_loop");
    for path in all_files("net/event_loop") {
        let code = without_comments(&fs::read_to_string(&path).unwrap());
        let found = names_in(&code, &PARTS_OF_NET);
        assert!(found.is_empty(), "{} names {found:?}", path.display());
    }
    let allowed = ["net/metrics.rs", "net/log_limiter.rs"].map(|file| src().join(file));
    for (file, targets) in SourceTree::read().imports() {
        let is_elsewhere = |target: &&&Path| {
            target.starts_with(src().join("net"))
                && !target.starts_with(&event_loop)
                && !allowed.iter().any(|file| file == **target)
        };
        let found: Vec<_> = targets.iter().filter(is_elsewhere).collect();
        assert!(!file.starts_with(&event_loop) || found.is_empty(), "{} imports {found:?}", file.display());
    }
}

#[test]
fn files_outside_the_gateway_folder_import_one_another_in_no_circle() {
    let tree = SourceTree::read();
    let mut imports = tree.imports();
    let edges: usize = imports.values().map(BTreeSet::len).sum();
    assert!(edges > 300, "only {edges} imports are found: the reader of `use` is broken");
    imports.retain(|file, _| !file.starts_with(src().join("net/gateway")));
    let found: Vec<_> = circles(&imports).iter().map(|circle| describe(circle, &imports)).collect();
    assert!(found.is_empty(), "circles of imports:\n{}", found.join("\n"));
}

/// The imports within a circle, one a line.
fn describe(circle: &BTreeSet<PathBuf>, imports: &Imports<'_>) -> String {
    let inside = imports.iter().filter(|(file, _)| circle.contains(**file));
    let lines = inside.flat_map(|(file, targets)| {
        let targets = targets.iter().filter(|target| circle.contains(**target));
        targets.map(|target| format!("  {} imports {}", file.display(), target.display()))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn files_and_functions_are_short() {
    for path in source_files("") {
        let code = production_code(&fs::read_to_string(&path).unwrap());
        let lines = lines_of_code(&code);
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines of code", path.display());
        let found = functions_longer_than(FUNCTION_LINES_MAX, &code);
        assert!(found.is_empty(), "{}: {found:?} lines of code", path.display());
    }
}

#[test]
fn long_functions_are_found() {
    let code = "impl A {\n    fn one() -> u8 {\n        1\n    }\n\n    pub(crate) fn two(\n        a: u8,\n    ) -> u8 {\n        if a {\n        }\n    }\n    fn declared(\n    );\n}\n";
    assert_eq!(functions_longer_than(3, code), [("two".to_owned(), 6)]);
    assert_eq!(functions_longer_than(2, code), [("one".to_owned(), 3), ("two".to_owned(), 6)]);
    assert_eq!(functions_longer_than(6, code), []);
}

#[test]
fn circles_are_found_but_not_between_a_module_and_its_parts() {
    let graph = |edges: &[(&'static str, &'static str)]| {
        let mut imports = Imports::new();
        for (from, to) in edges {
            imports.entry(Path::new(*from)).or_default().insert(Path::new(*to));
        }
        circles(&imports).iter().map(|circle| circle.len()).collect::<Vec<_>>()
    };
    assert_eq!(graph(&[("a.rs", "b.rs"), ("b.rs", "c.rs")]), []);
    assert_eq!(graph(&[("a.rs", "b.rs"), ("b.rs", "c.rs"), ("c.rs", "a.rs")]), [3]);
    assert_eq!(graph(&[("a.rs", "a/b.rs"), ("a/b.rs", "a.rs")]), []);
    assert_eq!(graph(&[("a/mod.rs", "a/b.rs"), ("a/b.rs", "a/mod.rs")]), []);
    assert_eq!(
        graph(&[("a.rs", "a/b.rs"), ("a/b.rs", "a/c.rs"), ("a/c.rs", "a/b.rs"), ("a/c.rs", "a.rs")]),
        [2]
    );
    assert_eq!(graph(&[("a.rs", "a/b.rs"), ("a/b.rs", "d.rs"), ("d.rs", "a.rs")]), [3]);
}

#[test]
fn imports_lead_to_the_file_that_defines_the_name() {
    let tree = SourceTree::read();
    let imports = tree.imports();
    let imports =
        |from: &str, to: &str| imports[src().join(from).as_path()].contains(src().join(to).as_path());
    // By a re-export of `session`, of `super`, of the crate, and by a module's name.
    assert!(imports("net/gateway/core_actions.rs", "session/action.rs"));
    assert!(!imports("net/gateway/core_actions.rs", "session/mod.rs"));
    assert!(imports("session/media.rs", "session/action.rs"));
    assert!(imports("net/gateway/core_actions.rs", "net/gateway/mod.rs"));
    assert!(imports("net/gateway/core_actions.rs", "net/media/credentials.rs"));
    assert!(imports("session/call/text.rs", "proto/message/hello.rs"));
    // What a module only passes on, it does not import.
    assert!(!imports("session/mod.rs", "session/action.rs"));
}

#[test]
fn forbidden_names_are_found_in_production_code_only() {
    let text = "use mio::Token; // std::io\n// log::x\n    // getrandom\nlet url = \"ws://a\"; nix();\nlet a = Instant::nowhere();\n#[cfg(test)]\nmod tests {\nlog::info!(1)\n}\n";
    assert_eq!(names_in(&production_code(text), &FORBIDDEN_IN_CORE), ["mio", "nix"]);
    assert_eq!(
        names_in("catalog::x; dialog; mio_x; std::io::Read; warn!(\"\")", &FORBIDDEN_IN_CORE),
        ["std::io", "warn!"]
    );
    assert_eq!(names_in("let now = Instant::now();", &FORBIDDEN_IN_CORE), ["Instant::now"]);
    let attributes = "a\n#[cfg(test)]\n#[allow(clippy::unwrap_used)]\nmod tests {\nmio\n}\nb";
    assert_eq!(production_code(attributes), "a\nb");
    assert_eq!(production_code("#[cfg(test)]\nmod tests;\nmio"), "#[cfg(test)]\nmod tests;\nmio");
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let rows = model.split("## Threats").nth(1).unwrap().lines().filter(|line| line.starts_with("| "));
    for row in rows.skip(2) {
        let (_, tests) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
        for test in tests.split(", ") {
            let name = test
                .strip_prefix('`')
                .and_then(|test| test.strip_suffix('`'))
                .unwrap_or_else(|| panic!("{row}"));
            let (file, name) = name.split_once("::").unwrap_or_else(|| panic!("{name} names no file"));
            let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            let found = text.split("#[test]").skip(1).any(|rest| {
                let line = rest.lines().map(str::trim).find(|line| line.starts_with("fn "));
                line.is_some_and(|line| line.starts_with(&format!("fn {name}(")))
            });
            assert!(found, "docs/security.md names {name}, which is no test of {file}");
        }
    }
}

/// The compiler denies `unsafe` everywhere else; each block has a SAFETY comment, and one module defines two C symbols.
#[test]
fn unsafe_code_is_denied_except_in_three_modules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\n[lints.rust]\nunsafe_code = \"deny\"\n"), "the compiler holds it");
    let mut allowed = Vec::new();
    for file in source_files("") {
        let text = fs::read_to_string(&file).unwrap();
        if text.contains("allow(unsafe_code)") {
            assert_eq!(text.matches("unsafe {").count(), text.matches("// SAFETY: ").count());
            allowed.push(file);
        }
    }
    allowed.sort();
    let three =
        ["src/net/event_loop/tls_sessions.rs", "src/net/gateway/memory_trim.rs", "src/no_unwinding.rs"];
    assert_eq!(allowed, three.map(|file| root.join(file)));
}

#[test]
fn docs_testing_lists_every_test_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/testing.md")).unwrap();
    let (_, table) = page.split_once("| file | what |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut named: Vec<_> = rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    let entries = fs::read_dir(root.join("tests")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = names.filter(|name| name.ends_with(".rs")).collect();
    named.sort();
    files.sort();
    assert_eq!(named, files);
}

/// The names between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn docs_architecture_lists_every_file_of_net() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let (_, table) = page.split_once("| file in `src/net/` | purpose |").unwrap();
    let net = src().join("net");
    let (mut folder, mut named) = (net.clone(), BTreeSet::new());
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let (name, purpose) = row[1..].split_once('|').unwrap();
        if name.contains("**") {
            folder = net.join(quoted(name).next().unwrap());
        } else {
            let files: Vec<_> = quoted(name).map(|file| folder.join(file)).collect();
            assert!(!files.is_empty() && files.iter().all(|file| file.is_file()), "{row}");
            named.extend(files);
        }
        // What replaces a folder or a file where that is left out.
        let others = quoted(purpose).filter(|name| name.ends_with(".rs") && !name.contains('/'));
        named.extend(others.flat_map(|name| [folder.join(name), folder.parent().unwrap().join(name)]));
    }
    let is_listed = |file: &PathBuf| named.contains(file) || file.ends_with("mod.rs");
    let missing: Vec<_> = source_files("net").into_iter().filter(|file| !is_listed(file)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

#[test]
fn docs_architecture_shows_short_flows_through_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    for (flow, max) in [("Uplink datagram", 9), ("Hello", 16), ("Management request", 9)] {
        let (_, after) = page.split_once(&format!("**{flow}**")).unwrap();
        let steps = after.lines().skip(2).take_while(|line| !line.is_empty());
        let files: Vec<_> = steps.map(|step| quoted(step).next().unwrap()).collect();
        assert!((4..=max).contains(&files.len()), "{flow}: {files:?}");
        let missing: Vec<_> = files.iter().filter(|file| !src().join(file).is_file()).collect();
        assert!(missing.is_empty(), "{flow}: {missing:?}");
        assert_eq!(files.iter().collect::<BTreeSet<_>>().len(), files.len(), "{flow} comes back to a file");
    }
}
