//! `.env` files by the rules of Node's `dotenv` package (version 16), for files that were written for it.
//!
//! Its dialect is its own: nothing is substituted, so a secret may hold `$` and `\`; `#` begins a comment anywhere in an
//! unquoted value; a quoted value may span lines; what is no assignment is skipped.

/// The text of a file in any encoding in which names and values are ASCII. What is not UTF-8, as remarks in GBK, becomes
/// replacement characters; Windows writes UTF-16 too.
pub(super) fn decode(bytes: &[u8]) -> String {
    let units = |read: fn([u8; 2]) -> u16| -> Vec<u16> {
        bytes[2..].chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect()
    };
    match bytes {
        [0xff, 0xfe, ..] => String::from_utf16_lossy(&units(u16::from_le_bytes)),
        [0xfe, 0xff, ..] => String::from_utf16_lossy(&units(u16::from_be_bytes)),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The assignments of a file in their order; the last one of a name counts.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find('\n').unwrap_or(rest.len());
        let mut used = end;
        if let Some((name, start)) = parse_name(&rest[..end]) {
            let at = end - start.len();
            let value = match quoted_len(&rest[at..]) {
                Some(length) => {
                    used = rest[at + length..].find('\n').map_or(rest.len(), |end| at + length + end);
                    &rest[at..at + length]
                }
                None => start.split('#').next().unwrap_or_default().trim(),
            };
            found.push((name.to_owned(), unquote(value)));
        }
        rest = rest.get(used + 1..).unwrap_or_default();
    }
    found
}

/// The name that a line assigns to, and what is behind its sign.
fn parse_name(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let (name, rest) = line.split_at(line.find(|c| !is_name(c)).unwrap_or(line.len()));
    let value = match rest.strip_prefix(':') {
        Some(value) if value.is_empty() || value.starts_with([' ', '\t']) => value,
        _ => rest.trim_start().strip_prefix('=')?,
    };
    (!name.is_empty()).then_some((name, value.trim_start()))
}

/// The length of the value in quotes that `text` begins with, these included, when nothing but a comment follows it.
fn quoted_len(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| "'\"`".contains(*c))?;
    let mut escaped = false;
    let (end, _) = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == quote && !escaped;
        escaped = *c == '\\';
        ends
    })?;
    let behind = text[end + 1..].split('\n').next().unwrap_or_default().trim_start();
    (behind.is_empty() || behind.starts_with('#')).then_some(end + 1)
}

/// Takes a pair of quotes away. Double ones let `\n` and `\r` stand for a line's end.
fn unquote(value: &str) -> String {
    let inner = ['\'', '"', '`']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote).and_then(|rest| rest.strip_suffix(*quote)));
    let inner = inner.unwrap_or(value);
    if value.starts_with('"') { inner.replace("\\n", "\n").replace("\\r", "\r") } else { inner.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn files_are_parsed_as_by_the_node_package() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/node_vectors.json")).unwrap();
        let cases = vectors["env"].as_array().unwrap();
        assert!(cases.len() > 30);
        for case in cases {
            let found: BTreeMap<_, _> = parse(case["text"].as_str().unwrap()).into_iter().collect();
            let found = serde_json::to_value(&found).unwrap();
            assert_eq!(found, case["values"], "{}", case["text"]);
        }
    }
}
