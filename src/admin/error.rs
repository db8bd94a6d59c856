//! Errors of the API, in the form that the callers of each call expect.

use std::borrow::Cow;

use serde_json::json;

use super::response::Response;

/// The longest request line and header fields together, in bytes.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// The longest body, in bytes: a status call for more than a thousand devices. The Node.js gateway takes 100 KB.
pub const MAX_BODY_BYTES: usize = 128 * 1024;
/// The longest body that is a sound for a device, in bytes: four minutes at 32 kbit/s.
pub const MAX_SOUND_BYTES: usize = 1024 * 1024;
/// Header fields of a request.
pub(crate) const MAX_HEADERS: usize = 64;

/// The JSON form of a call's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorStyle {
    /// `{code, error}`: this gateway's own calls.
    Coded,
    /// `{error}`: the Node.js gateway's calls.
    Plain,
    /// `{success: false, error}`: the Node.js gateway's command call.
    Command,
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The status code.
    pub status: u16,
    /// Stable, for programs.
    pub code: &'static str,
    /// A sentence, for people.
    pub sentence: Cow<'static, str>,
    header: Option<(&'static str, String)>,
}

impl ApiError {
    /// An error without a header field of its own.
    pub fn new(status: u16, code: &'static str, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, sentence: sentence.into(), header: None }
    }

    /// With a header field of its own.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.header = Some((name, value.into()));
        self
    }

    /// The answer.
    pub fn response(self, style: ErrorStyle) -> Response {
        let body = match style {
            ErrorStyle::Coded => json!({ "code": self.code, "error": self.sentence }),
            ErrorStyle::Plain => json!({ "error": self.sentence }),
            ErrorStyle::Command => json!({ "success": false, "error": self.sentence }),
        };
        Response { extra_header: self.header, ..Response::json(self.status, body.to_string()) }
    }
}

impl Response {
    /// An error of the API: a stable code for programs, a sentence for people.
    pub fn error(status: u16, code: &'static str, sentence: &str) -> Self {
        ApiError::new(status, code, sentence.to_owned()).response(ErrorStyle::Coded)
    }
}

/// Why a request is not served, whatever it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Not HTTP/1.x, or contradictory.
    Malformed(&'static str),
    /// A head over [`MAX_HEAD_BYTES`] or with too many fields.
    HeadTooLong,
    /// A body over [`MAX_BODY_BYTES`], or a sound over [`MAX_SOUND_BYTES`].
    BodyTooLong,
    /// A transfer coding other than chunked.
    UnsupportedTransferCoding,
    /// An expectation other than `100-continue`.
    ExpectationFailed,
}

impl RequestError {
    /// The error to answer with, after which the connection is closed: where the next request would begin is not known.
    pub fn error(self) -> ApiError {
        let (status, code, sentence) = match self {
            Self::Malformed(why) => (400, "bad_request", format!("This is not an HTTP/1.1 request: {why}.")),
            Self::HeadTooLong => {
                let limits = format!("{MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields");
                (431, "head_too_long", format!("The request line and headers may have {limits}."))
            }
            Self::BodyTooLong => {
                let limits = format!("{MAX_BODY_BYTES} bytes, a sound for a device {MAX_SOUND_BYTES}");
                (413, "body_too_long", format!("A request body may have {limits}."))
            }
            Self::UnsupportedTransferCoding => {
                (501, "coding_unknown", "The only supported transfer coding is chunked.".to_owned())
            }
            Self::ExpectationFailed => {
                (417, "expectation_failed", "The only supported expectation is 100-continue.".to_owned())
            }
        };
        ApiError::new(status, code, sentence)
    }
}
