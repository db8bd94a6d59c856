//! Errors of the API, in the form that the callers of each call expect.

use std::borrow::Cow;

use serde_json::json;

use super::http::Response;

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
    code: &'static str,
    /// A sentence, for people.
    sentence: Cow<'static, str>,
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
