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
