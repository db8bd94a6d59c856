//! Requests and responses of the OTA port.

use std::sync::Arc;

use crate::admin::forwarded::names_client;
use crate::admin::http::RequestHead;
use crate::admin::response::{JSON, reason_phrase};

/// A complete request.
pub(crate) struct OtaRequest {
    pub(crate) head: RequestHead,
    /// All header fields, in order.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl OtaRequest {
    /// Whether an HTTP proxy says that it has passed this on for somebody else. A device sends none of these fields.
    pub(crate) fn is_forwarded(&self) -> bool {
        self.fields.iter().any(|(name, _)| names_client(name))
    }

    /// The value of a header field, if it is there and text.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name))?;
        str::from_utf8(value).ok().map(str::trim)
    }
}

/// A response. Its body may be shared by many connections.
pub(crate) struct OtaResponse {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Arc<[u8]>,
}

impl OtaResponse {
    /// A JSON text, or what another server calls JSON.
    pub(crate) fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type: JSON, body: body.into().into() }
    }

    /// An error: a sentence for people.
    pub(crate) fn error(status: u16, sentence: &str) -> Self {
        Self::json(status, serde_json::json!({ "error": sentence }).to_string())
    }

    /// With Content-Length: the firmware of some modems truncates a chunked body.
    pub(super) fn head(&self) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\
             Cache-Control: no-store\r\n\r\n",
            reason_phrase(*status),
            body.len(),
        )
        .into_bytes()
    }
}
