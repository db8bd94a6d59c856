//! The dependency rules: the pure modules stay pure, and imports point one way.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

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

/// A module, and the modules it must not import.
const FORBIDDEN_IMPORTS: [(&str, &[&str]); 6] = [
    ("proto", &["session", "net", "admin", "tools", "config", "logger"]),
    ("session", &["net", "admin", "tools", "logger"]),
    ("config", &["session", "net", "admin", "tools", "logger"]),
    ("admin", &["net", "tools", "logger"]),
    ("net", &["tools"]),
    ("logger", &["session", "net", "admin", "tools", "proto"]),
];

/// Marks code for tests and fuzzing.
const FUZZING_ATTRIBUTE: &str = "#[cfg(any(test, fuzzing))]";

/// Every file of a module, without those for tests.
fn source_files(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![src.join(module)]);
    found.extend(Some(src.join(format!("{module}.rs"))).filter(|path| path.exists()));
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    let for_tests: Vec<_> = found.iter().flat_map(|path| test_modules(path)).collect();
    found.retain(|path| {
        !for_tests.iter().any(|test| path.starts_with(test) || path == &test.with_extension("rs"))
    });
    found
}

/// The modules that a file declares for tests only, as paths without `.rs`.
fn test_modules(path: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let folder = match path.file_stem().unwrap().to_str().unwrap() {
        "mod" => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    };
    let text = text.replace(FUZZING_ATTRIBUTE, "#[cfg(test)]");
    let names = text.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        // Other attributes may stand in between.
        let line = rest.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#["))?;
        line.strip_suffix(';')?.split_once("mod ").map(|(_, name)| name)
    });
    names.map(|name| folder.join(name)).collect()
}

/// The production code of a file: without comments, and without the tests at its end.
fn production_code(text: &str) -> String {
    // Slashes of a URL follow a colon; those of a comment follow a space or start the line.
    let comment = |line: &str| if line.starts_with("//") { Some(0) } else { line.find(" //") };
    let lines = text.lines().map(|line| &line[..comment(line).unwrap_or(line.len())]);
    let mut kept: Vec<&str> = Vec::new();
    let mut lines = lines.peekable();
    while let Some(line) = lines.next() {
        let opens_tests = |next: &str| next.starts_with("mod ") && next.ends_with('{');
        if line == "#[cfg(test)]"
            && lines.clone().find(|next| !next.starts_with("#[")).is_some_and(opens_tests)
        {
            break;
        }
        kept.push(line);
    }
    kept.join("\n")
}

/// The names of `names` that occur in `code` as whole words.
fn names_in<'a>(code: &str, names: &[&'a str]) -> Vec<&'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let occurs = |name: &str| {
        code.match_indices(name).any(|(at, _)| {
            let ends = name.ends_with(is_word) && code[at + name.len()..].starts_with(is_word);
            !code[..at].ends_with(is_word) && !ends
        })
    };
    names.iter().copied().filter(|name| occurs(name)).collect()
}

#[test]
fn pure_modules_use_no_socket_clock_random_source_or_log() {
    for module in ["proto", "session", "admin"] {
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

#[test]
fn forbidden_names_are_found_in_production_code_only() {
    let text = "use mio::Token; // std::io\n// log::x\n    // getrandom\nlet url = \"ws://a\"; nix();\nlet a = Instant::nowhere();\n#[cfg(test)]\nmod tests {\nlog::info!(1)\n}\n";
    assert_eq!(names_in(&production_code(text), &FORBIDDEN_IN_CORE), ["mio", "nix"]);
    assert_eq!(
        names_in("catalog::x; dialog; mio_x; std::io::Read; warn!(\"\")", &FORBIDDEN_IN_CORE),
        ["std::io", "warn!"]
    );
    assert_eq!(names_in("let now = Instant::now();", &FORBIDDEN_IN_CORE), ["Instant::now"]);
    let attributes = "a\n#[cfg(test)]\n#[allow(clippy::unwrap_used)]\nmod tests {\nmio\n}";
    assert_eq!(production_code(attributes), "a");
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

/// The compiler denies `unsafe` everywhere else; the one use has a SAFETY comment.
#[test]
fn unsafe_code_is_denied_except_in_one_module() {
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
    assert_eq!(allowed, [root.join("src/net/gateway/memory_trim.rs")]);
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
