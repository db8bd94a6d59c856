//! The crate's source files without their tests, and which of them imports which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Marks code for tests and fuzzing.
const FUZZING_ATTRIBUTE: &str = "#[cfg(any(test, fuzzing))]";
/// How the attribute of an inline module of tests begins.
const TEST_ATTRIBUTES: [&str; 2] = ["#[cfg(test)]", "#[cfg(all(test,"];

/// The folder with the crate's sources.
pub fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file of a module, tests included.
pub fn all_files(module: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![src().join(module)]);
    found.extend(Some(src().join(format!("{module}.rs"))).filter(|path| path.exists()));
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file of a module, without those for tests and fuzzing.
pub fn source_files(module: &str) -> Vec<PathBuf> {
    let mut found = all_files(module);
    let for_tests: Vec<_> = found.iter().flat_map(|path| test_modules(path)).collect();
    found.retain(|path| {
        !for_tests.iter().any(|test| path.starts_with(test) || path == &test.with_extension("rs"))
    });
    found
}

/// The modules that a file declares for tests only, as paths without `.rs`.
fn test_modules(path: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let text = text.replace(FUZZING_ATTRIBUTE, "#[cfg(test)]");
    let names = text.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        // Other attributes may stand in between.
        let line = rest.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#["))?;
        line.strip_suffix(';')?.split_once("mod ").map(|(_, name)| name)
    });
    names.map(|name| folder_of_children(path).join(name)).collect()
}

/// Where the files of a module's children are.
fn folder_of_children(path: &Path) -> PathBuf {
    match path.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" | "main" => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    }
}

/// A source text without its comments.
pub fn without_comments(text: &str) -> String {
    // Slashes of a URL follow a colon; those of a comment follow a space or start the line.
    let comment = |line: &str| if line.starts_with("//") { Some(0) } else { line.find(" //") };
    let lines = text.lines().map(|line| &line[..comment(line).unwrap_or(line.len())]);
    lines.collect::<Vec<_>>().join("\n")
}

/// The production code of a file: without comments, and without inline modules of tests.
pub fn production_code(text: &str) -> String {
    let text = without_comments(text);
    let mut kept: Vec<&str> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let opens_tests = |next: &str| next.starts_with("mod ") && next.ends_with('{');
        if TEST_ATTRIBUTES.iter().any(|attribute| line.starts_with(attribute))
            && lines.clone().find(|next| !next.starts_with("#[")).is_some_and(opens_tests)
        {
            lines.find(|line| *line == "}");
            continue;
        }
        kept.push(line);
    }
    kept.join("\n")
}

/// The names of `names` that occur in `code` as whole words.
pub fn names_in<'a>(code: &str, names: &[&'a str]) -> Vec<&'a str> {
    let occurs = |name: &str| {
        code.match_indices(name).any(|(at, _)| {
            let ends = name.ends_with(is_word) && code[at + name.len()..].starts_with(is_word);
            !code[..at].ends_with(is_word) && !ends
        })
    };
    names.iter().copied().filter(|name| occurs(name)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The lines of code in a file: neither empty nor comments.
pub fn lines_of_code(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Each function of formatted code that has more than `limit` lines of code: its name, and how many it has.
pub fn functions_longer_than(limit: usize, code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let is_qualifier = |word: &str| word.starts_with("pub") || QUALIFIERS.contains(&word);
        if !before.split_whitespace().all(is_qualifier) {
            continue;
        }
        // Without a body, it is over before one opens.
        let is_header_end = |line: &&str| line.ends_with(['{', ';', '}']);
        let Some(open) = lines[first..].iter().find(|line| is_header_end(line)) else { continue };
        if !open.ends_with('{') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let length =
            lines[first..].iter().position(|line| *line == end).map_or(lines.len() - first, |last| last + 1);
        if length > limit {
            found.push((after.chars().take_while(|c| is_word(*c)).collect(), length));
        }
    }
    found
}

/// What may stand before `fn`, beside `pub`.
const QUALIFIERS: [&str; 4] = ["const", "async", "unsafe", "extern"];

/// One file with what it imports.
struct Module {
    file: PathBuf,
    /// Its code without tests and without `use`, by inline module: the empty path is the file itself.
    code: Vec<(Vec<String>, String)>,
    uses: Vec<Use>,
}

/// One name that a file brings into scope.
struct Use {
    /// The inline module that it stands in.
    inline: Vec<String>,
    path: Vec<String>,
    name: String,
    is_reexport: bool,
}

/// Which files each file imports.
pub type Imports<'a> = BTreeMap<&'a Path, BTreeSet<&'a Path>>;

/// All files of the library, by module path.
pub struct SourceTree(BTreeMap<Vec<String>, Module>);

impl SourceTree {
    /// Reads the library, without tests and fuzzers.
    pub fn read() -> Self {
        let files = source_files("").into_iter().map(|file| (module_path(&file), file));
        Self(files.map(|(path, file)| (path, Module::parse(file))).collect())
    }

    /// Every import: the importing file, and the file that defines what it imports.
    pub fn imports(&self) -> Imports<'_> {
        let mut imports = Imports::new();
        for (at, module) in &self.0 {
            let targets = imports.entry(&module.file).or_default();
            let used = module.uses.iter().filter(|import| module.needs(import));
            let paths = used.map(|import| (&import.inline, import.path.clone()));
            let inline = module
                .code
                .iter()
                .flat_map(|(inline, code)| paths_in(code).into_iter().map(move |path| (inline, path)));
            for (inline, path) in paths.chain(inline) {
                let scope = [&at[..], inline].concat();
                targets.extend(self.resolve(&scope, &path, 0).filter(|target| *target != module.file));
            }
        }
        imports
    }

    /// The file that defines what `path` means inside the module `scope`; none for other crates.
    fn resolve(&self, scope: &[String], path: &[String], depth: usize) -> Option<&Path> {
        // More than any chain of re-exports.
        if depth > 8 {
            return None;
        }
        let (first, rest) = path.split_first()?;
        let mut absolute = match first.as_str() {
            "crate" => Vec::new(),
            "self" => scope.to_vec(),
            "super" => scope[..scope.len().checked_sub(1)?].to_vec(),
            name => {
                let child = [scope, &[name.to_owned()]].concat();
                if self.0.contains_key(&child) {
                    child
                } else {
                    let import = self.import(scope, name)?;
                    let module = self.enclosing(scope);
                    if import.path == path {
                        return None;
                    }
                    let path = [&import.path[..], rest].concat();
                    return self.resolve(&[module, &import.inline[..]].concat(), &path, depth + 1);
                }
            }
        };
        let mut rest = rest;
        while let Some(("super", after)) = rest.split_first().map(|(name, after)| (name.as_str(), after)) {
            absolute.pop()?;
            rest = after;
        }
        while let Some((name, after)) = rest.split_first() {
            let child = [&absolute[..], std::slice::from_ref(name)].concat();
            if !self.0.contains_key(&child) {
                break;
            }
            (absolute, rest) = (child, after);
        }
        if let Some(name) = rest.first()
            && self.import(&absolute, name).is_some()
            && let Some(file) = self.resolve(&absolute, rest, depth + 1)
        {
            return Some(file);
        }
        self.0.get(self.enclosing(&absolute)).map(|module| module.file.as_path())
    }

    /// What brings `name` into scope in a module.
    fn import(&self, scope: &[String], name: &str) -> Option<&Use> {
        let at = self.enclosing(scope);
        let inline = &scope[at.len()..];
        self.0.get(at)?.uses.iter().find(|import| import.name == name && import.inline == inline)
    }

    /// The module of the file that the module is in: an inline one has no file of its own.
    fn enclosing<'a>(&self, scope: &'a [String]) -> &'a [String] {
        let lengths = (0..=scope.len()).rev();
        lengths.map(|length| &scope[..length]).find(|scope| self.0.contains_key(*scope)).unwrap_or_default()
    }
}

impl Module {
    fn parse(file: PathBuf) -> Self {
        let text = production_code(&fs::read_to_string(&file).unwrap());
        let (mut uses, mut code) = (Vec::new(), vec![(Vec::new(), String::new())]);
        let mut statement: Option<String> = None;
        for line in text.lines() {
            let inline = code.last().unwrap().0.clone();
            if let Some(name) = line.strip_suffix(" {").and_then(|line| line.split_once("mod "))
                && !line.starts_with(' ')
            {
                code.push((vec![name.1.to_owned()], String::new()));
            } else if line == "}" && !inline.is_empty() {
                code.push((Vec::new(), String::new()));
            } else if statement.is_some() || is_use(line) {
                let so_far = statement.take().unwrap_or_default() + line.trim();
                match so_far.strip_suffix(';') {
                    Some(whole) => {
                        let (visibility, tree) = whole.split_once("use ").unwrap();
                        for (path, name) in expand(tree) {
                            let is_reexport = !visibility.is_empty();
                            uses.push(Use { inline: inline.clone(), path, name, is_reexport });
                        }
                    }
                    None => statement = Some(so_far),
                }
            } else {
                code.last_mut().unwrap().1.extend([line, "\n"]);
            }
        }
        Self { file, code, uses }
    }

    /// Whether the file uses what it names itself, and does not only pass it on.
    fn needs(&self, import: &Use) -> bool {
        !import.is_reexport
            || self.code.iter().any(|(_, code)| !names_in(code, &[import.name.as_str()]).is_empty())
    }
}

fn is_use(line: &str) -> bool {
    let line = line.trim_start();
    ["use ", "pub use ", "pub(crate) use ", "pub(super) use "].iter().any(|start| line.starts_with(start))
}

/// The paths of `a::{b, c as d}`, each with the name that it gets.
fn expand(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let (path, name) = match tree.split_once(" as ") {
            Some((path, name)) => (path, name),
            None => (tree, tree.rsplit("::").next().unwrap()),
        };
        let path = path.strip_suffix("::self").unwrap_or(path);
        let name = if name == "self" { path.rsplit("::").next().unwrap() } else { name };
        return vec![(path.split("::").map(str::to_owned).collect(), name.to_owned())];
    };
    let group = group.strip_suffix('}').unwrap_or_else(|| panic!("{tree}"));
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(&format!("{head}{}", part.trim()))).collect()
}

/// Every path of two or more names in the code.
fn paths_in(code: &str) -> Vec<Vec<String>> {
    let is_path = |c: char| is_word(c) || c == ':';
    let words = code.split(|c| !is_path(c)).filter(|word| word.contains("::"));
    let paths = words.map(|word| word.split("::").map(str::to_owned).collect::<Vec<_>>());
    paths.filter(|path| path.iter().take(2).all(|name| !name.is_empty() && !name.contains(':'))).collect()
}

/// The module that a file is, from the crate's root.
fn module_path(file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(src()).unwrap().with_extension("");
    let mut path: Vec<String> = relative.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if path.last().is_some_and(|name| name == "mod") || path == ["lib"] {
        path.pop();
    }
    path
}

/// The groups of files that import one another, directly or by way of others. A module that is split over files is no
/// circle: `a/b.rs` may use what `a.rs` or `a/mod.rs` defines.
pub fn circles(imports: &Imports<'_>) -> Vec<BTreeSet<PathBuf>> {
    let mut found = Vec::new();
    for group in groups(imports) {
        let parent = group.iter().find(|file| {
            let children = folder_of_children(file);
            group.iter().all(|other| other == *file || other.starts_with(&children))
        });
        match parent {
            Some(parent) => {
                let is_child = |file: &&Path| group.contains(*file) && file != parent;
                let children = imports.iter().filter(|(file, _)| is_child(file));
                found.extend(circles(
                    &children
                        .map(|(file, targets)| (*file, targets.iter().copied().filter(is_child).collect()))
                        .collect(),
                ));
            }
            None => found.push(group.into_iter().map(Path::to_owned).collect()),
        }
    }
    found
}

/// The strongly connected components of more than one file.
fn groups<'a>(imports: &Imports<'a>) -> BTreeSet<BTreeSet<&'a Path>> {
    let reach = |start: &'a Path| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(file) = open.pop() {
            open.extend(imports.get(file).into_iter().flatten().filter(|next| seen.insert(**next)));
        }
        seen
    };
    let reached: BTreeMap<&Path, _> = imports.keys().map(|file| (*file, reach(file))).collect();
    let imports_back = |from: &Path, to: &Path| reached.get(from).is_some_and(|reached| reached.contains(to));
    let in_circles = imports.keys().filter(|file| imports_back(file, file));
    in_circles
        .map(|file| reached[file].iter().copied().filter(|other| imports_back(other, file)).collect())
        .collect()
}
