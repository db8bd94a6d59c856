//! Commands for Redis, and its replies: RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;

/// The longest bulk string of a reply or message.
pub(super) const BULK_MAX: usize = super::MAX_PAYLOAD + (8 << 10);
/// The longest simple string, error or number.
const LINE_MAX: usize = 1024;
/// The most elements of an array.
const ELEMENTS_MAX: usize = 256;
/// The most bytes of a reply.
const REPLY_MAX: usize = BULK_MAX + (64 << 10);

/// A reply, or a message of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Text(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Reply>),
}

impl Reply {
    /// A bulk or simple string.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(bytes) => Some(bytes),
            Self::Text(text) => Some(text.as_bytes()),
            Self::Error(_) | Self::Integer(_) | Self::Null | Self::Array(_) => None,
        }
    }
}

/// Appends a command.
pub(super) fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply in `input` and how many bytes it takes; `None` while it is incomplete.
///
/// # Errors
/// It is no reply of RESP2, or exceeds a limit; in words.
pub(super) fn reply(input: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    if !is_complete(input)? {
        return match input.len() > REPLY_MAX {
            true => Err(format!("a reply longer than {REPLY_MAX} bytes")),
            false => Ok(None),
        };
    }
    let decoded = decode_range(input).map_err(|error| format!("a malformed reply: {}", error.details()))?;
    Ok(decoded.map(|(frame, len)| (owned(input, &frame), len)))
}

/// Whether a whole reply is there. Looks at lengths only, so that the decoder gets nothing that is nested or too long.
fn is_complete(input: &[u8]) -> Result<bool, String> {
    let (mut at, mut elements, mut is_first) = (0, 1, true);
    while elements > 0 {
        elements -= 1;
        let rest = input.get(at..).unwrap_or_default();
        let Some(end) = rest.windows(2).take(LINE_MAX).position(|pair| pair == b"\r\n") else {
            return match rest.len() > LINE_MAX {
                true => Err(format!("a line longer than {LINE_MAX} bytes")),
                false => Ok(false),
            };
        };
        let number = || std::str::from_utf8(&rest[1..end]).ok().and_then(|text| text.parse::<i64>().ok());
        at += end + 2;
        match rest[0] {
            b'*' if is_first => match number() {
                Some(count @ -1..) if count <= ELEMENTS_MAX as i64 => elements += count.max(0) as usize,
                _ => return Err(format!("an array that has not 0 to {ELEMENTS_MAX} elements")),
            },
            b'$' => match number() {
                Some(len @ -1..) if len <= BULK_MAX as i64 => {
                    at += if len < 0 { 0 } else { len as usize + 2 }
                }
                _ => return Err(format!("a string that has not 0 to {BULK_MAX} bytes")),
            },
            b'+' | b'-' | b':' => {}
            _ => return Err("what no Redis sends".to_owned()),
        }
        is_first = false;
    }
    Ok(at <= input.len())
}

fn owned(input: &[u8], frame: &RangeFrame) -> Reply {
    let slice = |range: &(usize, usize)| input.get(range.0..range.1).unwrap_or_default();
    let text = |range: &(usize, usize)| String::from_utf8_lossy(slice(range)).into_owned();
    match frame {
        RangeFrame::SimpleString(range) => Reply::Text(text(range)),
        RangeFrame::Error(range) => Reply::Error(text(range)),
        RangeFrame::Integer(number) => Reply::Integer(*number),
        RangeFrame::BulkString(range) => Reply::Bulk(slice(range).to_vec()),
        RangeFrame::Array(frames) => Reply::Array(frames.iter().map(|frame| owned(input, frame)).collect()),
        RangeFrame::Null => Reply::Null,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"SET", b"k", b"\r\n\0"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n\r\n\0\r\n");
    }

    #[test]
    fn replies_are_decoded_however_they_are_cut() {
        let bulk = |text: &str| Reply::Bulk(text.as_bytes().to_vec());
        for (bytes, expected) in [
            (&b"+OK\r\n"[..], Reply::Text("OK".to_owned())),
            (b"-NOPERM no\r\n", Reply::Error("NOPERM no".to_owned())),
            (b":-7\r\n", Reply::Integer(-7)),
            (b"$-1\r\n", Reply::Null),
            (b"*-1\r\n", Reply::Null),
            (b"$0\r\n\r\n", bulk("")),
            (b"$4\r\n\r\n+x\r\n", bulk("\r\n+x")),
            (b"*0\r\n", Reply::Array(Vec::new())),
            (
                b"*3\r\n$1\r\na\r\n$-1\r\n:1\r\n",
                Reply::Array(vec![bulk("a"), Reply::Null, Reply::Integer(1)]),
            ),
        ] {
            for len in 0..bytes.len() {
                assert_eq!(reply(&bytes[..len]), Ok(None), "{len} bytes of {bytes:?}");
            }
            let more = [bytes, b"+more\r\n"].concat();
            assert_eq!(reply(&more).unwrap().unwrap(), (expected, bytes.len()));
        }
    }

    #[test]
    fn what_is_too_long_nested_or_no_reply_is_an_error() {
        let long = [b"+".as_slice(), &[b'x'; LINE_MAX + 2]].concat();
        for bytes in [
            &b"HTTP/1.1 400\r\n"[..],
            b"$-2\r\n",
            b"$x\r\n",
            b"$99999999999999999999\r\n",
            b"$1000000\r\n",
            b"*257\r\n",
            b"*1\r\n*1\r\n*1\r\n",
            b"%1\r\n",
            &long,
        ] {
            assert!(reply(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
