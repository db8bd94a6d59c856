//! Byte tables as text: hexadecimal digits, with short forms.
//!
//! `0a ff` bytes; `00*100` a repeated byte; `'text'` its bytes; `(text)` the same after its length in two bytes;
//! `[ .. ]` bytes after their length in the protocol's format; `{name}` a value of the test.

/// The bytes of a line. `length` encodes the length of brackets; `named` returns the bytes for a name.
pub fn parse_bytes(line: &str, length: fn(usize) -> Vec<u8>, named: &dyn Fn(&str) -> Vec<u8>) -> Vec<u8> {
    let mut open: Vec<Vec<u8>> = vec![Vec::new()];
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let out = open.last_mut().unwrap();
        let until = |end: char| rest[1..].split_once(end).unwrap_or_else(|| panic!("no {end} in {line}")).0;
        let taken = match first {
            '\'' => {
                out.extend(until('\'').as_bytes());
                until('\'').len() + 2
            }
            '(' => {
                let text = until(')').as_bytes();
                out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                out.extend(text);
                text.len() + 2
            }
            '{' => {
                out.extend(named(until('}')));
                until('}').len() + 2
            }
            '[' => {
                open.push(Vec::new());
                1
            }
            ']' => {
                let body = open.pop().unwrap();
                let out = open.last_mut().unwrap_or_else(|| panic!("a ] too many in {line}"));
                out.extend(length(body.len()));
                out.extend(body);
                1
            }
            _ => {
                let word = rest.split([' ', ']', '[', '(', '\'']).next().unwrap();
                hex(word, line, out);
                word.len()
            }
        };
        rest = rest[taken..].trim_start();
    }
    assert_eq!(open.len(), 1, "a ] is missing in {line}");
    open.remove(0)
}

/// `0aff` or `0a*17`.
fn hex(word: &str, line: &str, out: &mut Vec<u8>) {
    let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
    assert!(!digits.is_empty() && digits.len() % 2 == 0, "{word:?} in {line}");
    for _ in 0..times.parse().unwrap_or_else(|_| panic!("{word:?} in {line}")) {
        let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
        out.extend(
            pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{word:?} in {line}"))),
        );
    }
}
