//! Makes text from peers safe to show in the log, in the management API and on a terminal.

use std::borrow::Cow;

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
    let text = cut(text, max);
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_printable(c) { escaped.push(c) } else { escaped.extend(c.escape_default()) }
    }
    Cow::Owned(escaped)
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
}
