//! Makes text from peers safe to show in the log, in the management API and on a terminal; numbers and percent-encoding.

use std::borrow::Cow;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;

/// Whether a character can be shown as it is: no control character (C0, DEL, C1), no line or paragraph separator, and no
/// character that changes the direction of the text around it.
pub(crate) fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The first `max` bytes, or up to three fewer, so that no character is split.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The text, [`cut`] to `max` bytes, with unprintable characters escaped.
pub(crate) fn printable(text: &str, max: usize) -> Cow<'_, str> {
    escaped(cut(text, max), is_printable)
}

fn escaped(text: &str, is_plain: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Plain whatever `is_plain` says, as nearly all texts are; the compiler makes vector instructions of it.
    let is_simple =
        text.bytes().fold(true, |so_far, byte| so_far & matches!(byte, b' '..=b'~') & (byte != b'"'));
    if is_simple || text.chars().all(&is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) { escaped.push(c) } else { escaped.extend(c.escape_default()) }
    }
    Cow::Owned(escaped)
}

/// The most characters that a text of a peer takes in a line.
pub(crate) const SHOWN_MAX: usize = 128;
/// The bytes of a text that are shown at most: four are the longest character.
pub(crate) const SHOWN_MAX_BYTES: usize = 4 * SHOWN_MAX;

/// The text with unprintable characters escaped, in at most [`SHOWN_MAX`] characters; `…` stands for the rest.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    bounded(text, is_printable)
}

/// As [`shown`], in quotes; those in the text are escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", bounded(text.trim(), |c| is_printable(c) && c != '"'))
}

fn bounded(text: &str, is_plain: impl Fn(char) -> bool) -> Cow<'_, str> {
    let mut shown = escaped(cut(text, SHOWN_MAX_BYTES), &is_plain);
    if shown.len() > SHOWN_MAX && shown.chars().nth(SHOWN_MAX).is_some() || text.len() > SHOWN_MAX_BYTES {
        let mut rest = SHOWN_MAX - 1;
        let fits = |c: &char| {
            let width = if is_plain(*c) { 1 } else { c.escape_default().len() };
            rest.checked_sub(width).inspect(|left| rest = *left).is_some()
        };
        let end: usize = text.chars().take_while(fits).map(char::len_utf8).sum();
        shown = Cow::Owned(format!("{}…", escaped(&text[..end], is_plain)));
    }
    shown
}

/// A number in decimal digits alone; `parse` would accept a sign too.
pub(crate) fn parse_digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A part of a URL without its percent-encoding (RFC 3986 section 2.1); `None` when that is broken or no
/// UTF-8 comes out.
pub(crate) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        bytes.extend(HEXLOWER_PERMISSIVE.decode(digits).ok()?);
        bytes.extend_from_slice(rest);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// A text that any part of a URL can hold (RFC 3986 section 2.3).
pub(crate) fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_is_bounded_and_stays_on_one_line() {
        for (text, max, expected) in [
            ("", 9, ""),
            ("a\"\\ 你好 \u{1f600} \u{301}\u{200d}", 99, "a\"\\ 你好 \u{1f600} \u{301}\u{200d}"),
            ("a\r\nb\t\u{1b}[31m\u{7f}\u{85}", 99, "a\\r\\nb\\t\\u{1b}[31m\\u{7f}\\u{85}"),
            ("\u{2028}\u{202e}\u{2069}\u{200f}\u{61c}", 99, "\\u{2028}\\u{202e}\\u{2069}\\u{200f}\\u{61c}"),
            ("abc", 2, "ab"),
            ("你好", 5, "你"),
            ("你好", 2, ""),
            ("\n\n", 1, "\\n"),
        ] {
            assert_eq!(printable(text, max), expected, "{text:?}");
        }
    }

    #[test]
    fn a_shown_text_takes_a_limited_number_of_characters_whatever_its_script() {
        for (text, count, expected) in [
            ("", 1, String::new()),
            ("a\n\"", 1, "a\\n\"".to_owned()),
            ("x", 128, "x".repeat(128)),
            ("x", 129, "x".repeat(127) + "…"),
            ("x", 100_000, "x".repeat(127) + "…"),
            ("语", 128, "语".repeat(128)),
            ("语", 129, "语".repeat(127) + "…"),
            ("\u{1f600}", 128, "\u{1f600}".repeat(128)),
            ("\u{1f600}", 1000, "\u{1f600}".repeat(127) + "…"),
            ("\u{202e}", 16, "\\u{202e}".repeat(16)),
            // An escape is not cut.
            ("\u{202e}", 17, "\\u{202e}".repeat(15) + "…"),
            ("\n", 1000, "\\n".repeat(63) + "…"),
        ] {
            let text = text.repeat(count);
            assert_eq!(shown(&text), expected, "{text:?}");
            assert!(shown(&text).chars().count() <= SHOWN_MAX);
        }
    }

    #[test]
    fn a_quoted_text_escapes_quotes_and_control_characters_only() {
        for (text, expected) in [
            (" 认证失败\n", "\"认证失败\""),
            ("нет \"токена\"\u{1b}[0m", "\"нет \\\"токена\\\"\\u{1b}[0m\""),
            ("a\r\nb", "\"a\\r\\nb\""),
        ] {
            assert_eq!(quoted(text), expected);
        }
        assert_eq!(quoted(&"\"".repeat(1000)).chars().count(), 2 + 127, "an escape is not cut");
        assert_eq!(quoted(&"语".repeat(1000)).chars().count(), 2 + SHOWN_MAX);
    }
}
