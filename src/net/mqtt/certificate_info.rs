//! What is known about a certificate.

/// What a certificate contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The names it is valid for.
    pub names: String,
    /// When it expires, as text and in seconds since 1970.
    pub expires: (String, i64),
    /// Whether it has expired.
    pub expired: bool,
    /// Whether a device that verifies it, as an ESP32 does, refuses it.
    pub refused: bool,
    /// Why devices reject it or may reject it, one sentence each. If it has expired, one says so.
    pub warnings: Vec<String>,
}

impl CertificateInfo {
    /// Whether it is valid for this name (RFC 6125: a `*` stands for one label).
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names
            .to_ascii_lowercase()
            .split(", ")
            .any(|name| name == host || name.strip_prefix("*.").is_some_and(|rest| Some(rest) == parent))
    }
}
