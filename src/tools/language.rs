//! The language of what the sub-commands, and a start that fails, say to people.
//!
//! Messages are written in English where they arise, since the log and `--json` are English always. Where one is shown, its
//! translation is looked up in a catalogue by the English text, in which `{}` stands for a value.

use std::borrow::Cow;
use std::ffi::OsString;
use std::sync::OnceLock;

use pico_args::Arguments;

use crate::compressed_texts;

/// What stands for a value.
const PLACEHOLDER: &str = "{}";
/// The variables that name the language (POSIX.1-2017 section 8.2); the first that is set and not empty counts.
const VARIABLES: [&str; 3] = ["LC_ALL", "LC_MESSAGES", "LANG"];
/// An entry that begins with a value and has less text than this says little about what it is: its value has no space.
const SHORT_ENTRY_BYTES: usize = 8;
/// Values inside of values, as in `found an object, allowed: a string, empty for none`, and spaces before a message.
const MAX_DEPTH: usize = 8;

/// Messages are shown in Chinese, and not in English.
static IS_CHINESE: OnceLock<bool> = OnceLock::new();

/// Takes `--lang` out of the arguments, wherever it stands, and sets the language for the rest of the process: that one,
/// else the environment's, else English.
///
/// # Errors
/// When the option has another value than `en` or `zh`: one line.
pub fn choose(args: &mut Arguments, variable: impl Fn(&str) -> Option<OsString>) -> Result<(), String> {
    let option: Option<String> = args.opt_value_from_str("--lang").map_err(|error| error.to_string())?;
    let is_chinese = match option.as_deref() {
        Some("en") => false,
        Some("zh") => true,
        Some(other) => return Err(format!("--lang: found {other:?}, allowed: en, zh")),
        None => is_chinese_by_environment(variable),
    };
    // Only the first choice counts, and there is one in a process.
    let _ = IS_CHINESE.set(is_chinese);
    Ok(())
}

fn is_chinese_by_environment(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = VARIABLES.into_iter().filter_map(variable).find(|value| !value.is_empty());
    set.is_some_and(|value| value.to_string_lossy().starts_with("zh"))
}

/// Whether messages are shown in English, which is also the language of the log.
pub fn is_english() -> bool {
    IS_CHINESE.get() != Some(&true)
}

/// The message in the language of this process; as it is, when the catalogue lacks it.
pub fn translated(message: &str) -> Cow<'_, str> {
    if is_english() { Cow::Borrowed(message) } else { Cow::Owned(chinese(message)) }
}

/// The text with spaces behind it, so that it is at least this many columns wide on a terminal.
pub(super) fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The columns that a text takes on a terminal.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(|c| if is_wide(c) { 2 } else { 1 }).sum()
}

/// Whether a character takes two columns, and a line may end before and after it: CJK and its punctuation.
pub(super) fn is_wide(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{ff00}'..='\u{ff60}')
}

fn chinese(message: &str) -> String {
    static CATALOGUE: OnceLock<Vec<(String, String)>> = OnceLock::new();
    let catalogue = CATALOGUE.get_or_init(|| read_catalogue(&compressed_texts::CHINESE.text()));
    translate(message, catalogue, MAX_DEPTH).unwrap_or_else(|| message.to_owned())
}

/// The pairs of a catalogue: an English text and its translation.
fn read_catalogue(text: &str) -> Vec<(String, String)> {
    let texts = |keyword| {
        let values = text.lines().filter_map(move |line| line.strip_prefix(keyword)?.strip_suffix('"'));
        values.map(|value| value.replace("\\\"", "\"").replace("\\\\", "\\"))
    };
    texts("msgid \"").zip(texts("msgstr \"")).filter(|(id, _)| !id.is_empty()).collect()
}

/// The translation of a message, by the entry that has most of its text; values are translated too, if they are messages.
fn translate(message: &str, catalogue: &[(String, String)], depth: usize) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    let matches = |(id, translation)| Some((id, translation, values(message, id)?));
    let entries = catalogue.iter().map(|(id, translation)| (id.as_str(), translation.as_str()));
    let best = entries.filter_map(matches).max_by_key(|(id, ..)| literal_bytes(id));
    let inner = |value: &str| translate(value, catalogue, depth).unwrap_or_else(|| value.to_owned());
    // A message, and a remark behind it, which is no part of the message's last value, and not within parentheses.
    let has_remark =
        best.as_ref().is_none_or(|(.., values)| values.last().is_some_and(|last| last.contains("; ")));
    let is_whole = |text: &str| text.matches('(').count() == text.matches(')').count();
    if let Some(at) = message.rfind("; ").filter(|at| has_remark && *at > 0 && is_whole(&message[*at..]))
        && let Some(remark) = translate(&message[at..], catalogue, depth)
    {
        return Some(inner(&message[..at]) + &remark);
    }
    if let Some((_, translation, values)) = best {
        return Some(filled(translation, &values.into_iter().map(inner).collect::<Vec<_>>()));
    }
    // An entry may be indented less than the message is here.
    if let Some(unindented) = message.strip_prefix(' ') {
        return translate(unindented, catalogue, depth).map(|found| format!(" {found}"));
    }
    // The name of a file, a field or an option, and what is wrong with it. A certificate's field may have its section before it.
    if let Some((place, rest)) = message.split_once(": ") {
        if let Some((section, field)) = place.rsplit_once('.')
            && let Some(found) = translate(&format!("{field}: {rest}"), catalogue, depth)
        {
            return Some(format!("{section}.{found}"));
        }
        if let Some(found) = translate(rest, catalogue, depth) {
            return Some(format!("{place}：{found}"));
        }
    }
    // A warning, made a sentence.
    let mut rest = message.strip_suffix('.')?.chars();
    let first = rest.next().filter(char::is_ascii_uppercase)?;
    let message = format!("{}{}", first.to_ascii_lowercase(), rest.as_str());
    translate(&message, catalogue, depth).map(|sentence| sentence + "。")
}

/// The length of an entry without its values.
fn literal_bytes(id: &str) -> usize {
    id.len() - PLACEHOLDER.len() * id.matches(PLACEHOLDER).count()
}

/// The values of a message, if it is an instance of this text: each ends where the text goes on for the first time, and is not cut
/// off behind the name of what it is about. One at the beginning is a name, an address or the like, and not a part of another message.
fn values<'a>(message: &'a str, id: &str) -> Option<Vec<&'a str>> {
    let mut parts = id.split(PLACEHOLDER);
    let mut rest = message.strip_prefix(parts.next()?)?;
    let mut values = Vec::new();
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let end = if parts.peek().is_none() {
            rest.ends_with(part).then(|| rest.len() - part.len())?
        } else {
            rest.find(part)?
        };
        let value = &rest[..end];
        if values.is_empty() && id.starts_with(PLACEHOLDER) {
            let is_short = literal_bytes(id) < SHORT_ENTRY_BYTES;
            if value.contains(": ") || value.contains("; ") || is_short && value.contains(' ') {
                return None;
            }
        }
        if value.ends_with(':') && !value.ends_with("::") {
            return None;
        }
        values.push(value);
        rest = &rest[end + part.len()..];
    }
    rest.is_empty().then_some(values)
}

/// The translation with the values in their places: `{}` in their order, or `{1}` by number.
fn filled(translation: &str, values: &[String]) -> String {
    let (mut text, mut rest, mut next) = (String::new(), translation, 0);
    while let Some((before, behind)) = rest.split_once('{') {
        text.push_str(before);
        let number = behind.split_once('}').filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()));
        rest = if let Some((number, behind)) = number {
            let index = number.parse().map_or(next, |number: usize| number.wrapping_sub(1));
            text.push_str(values.get(index).map_or("", String::as_str));
            next += 1;
            behind
        } else {
            text.push('{');
            behind
        };
    }
    text + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
