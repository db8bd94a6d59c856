//! The cause of a TLS error, derived from the messages of the platforms' libraries.

/// The likeliest cause.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TlsErrorCause {
    /// This program was built without TLS.
    NotBuiltIn,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for another host.
    NameMismatch,
    /// The certificate was not issued by a trusted authority.
    UnknownAuthority,
    /// The port speaks something else.
    NotTls,
    /// Anything else.
    Other,
}

impl TlsErrorCause {
    /// The likeliest cause of a library's error message.
    pub fn from_message(why: &str) -> Self {
        let why = why.to_ascii_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| why.contains(part));
        match () {
            () if has(&["built without tls"]) => Self::NotBuiltIn,
            () if has(&["expired"]) => Self::Expired,
            () if has(&["not yet valid"]) => Self::NotYetValid,
            () if has(&["mismatch", "not match"]) => Self::NameMismatch,
            () if has(&["certificate", "self signed", "self-signed", "trust"]) => Self::UnknownAuthority,
            () if has(&["wrong version", "packet length", "http request", "record"]) => Self::NotTls,
            () => Self::Other,
        }
    }
}
