//! The gateway's own certificate: loaded from two PEM files and checked.
//!
//! With OpenSSL, this code checks the dates, the key and the chain. On other platforms the TLS library reports what is wrong
//! when it loads the files.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use mio::net::TcpStream;

use crate::config::PublicIp;
use crate::net::event_loop::tls_handshake::HandshakeProgress;
pub use crate::net::mqtt::certificate_info::CertificateInfo;

/// Accepts TLS connections.
#[cfg(feature = "tls")]
type Acceptor = native_tls::TlsAcceptor;
/// Never constructed: the program was built without TLS.
#[cfg(not(feature = "tls"))]
enum Acceptor {}

/// A usable certificate with its key.
pub struct Certificate {
    acceptor: Acceptor,
    pem: Vec<u8>,
    /// What the certificate contains; known only with OpenSSL.
    pub info: Option<CertificateInfo>,
}

/// Why a certificate cannot be used. Displayed as one line that begins with a key of the section that names the files.
#[derive(Debug)]
pub enum CertificateError {
    /// The program was built without the `tls` feature.
    Absent,
    /// A file cannot be read: its key in the section, its path, the system's error.
    Unreadable(&'static str, PathBuf, io::Error),
    /// The certificate file contains no PEM certificate, or a malformed one.
    NoCertificate(PathBuf, String),
    /// The key file contains no PEM private key, or a malformed one.
    NoKey(PathBuf, String),
    /// The key is encrypted, and nobody can enter its password.
    Encrypted(PathBuf),
    /// The key is in a format that this system's TLS library does not support.
    OldForm(PathBuf),
    /// The key does not belong to the certificate: the key's file, the certificate's.
    Mismatch(PathBuf, PathBuf),
    /// The TLS library does not accept them.
    Refused(PathBuf, String),
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let convert = |f: &mut fmt::Formatter<'_>, path: &Path| {
            let key = path.display();
            write!(f, "; convert it with: openssl pkcs8 -topk8 -nocrypt -in {key} -out {key}.pk8")
        };
        match self {
            Self::Absent => f.write_str("cert_file: this program was built without TLS (cargo feature tls)"),
            Self::Unreadable(key, path, error) => {
                write!(f, "{key}: {} cannot be read: {error}", path.display())
            }
            Self::NoCertificate(path, why) => {
                write!(f, "cert_file: {} is not a list of PEM certificates: {why}", path.display())
            }
            Self::NoKey(path, why) => {
                write!(f, "key_file: {} contains no PEM private key: {why}", path.display())
            }
            Self::Encrypted(path) => {
                write!(f, "key_file: the key in {} is encrypted", path.display())?;
                convert(f, path)
            }
            Self::OldForm(path) => {
                write!(f, "key_file: the key in {} is not in PKCS#8 form", path.display())?;
                convert(f, path)
            }
            Self::Mismatch(key, certificate) => write!(
                f,
                "key_file: the key in {} does not match the first certificate in {}",
                key.display(),
                certificate.display()
            ),
            Self::Refused(path, why) => {
                write!(f, "cert_file: the certificate in {} cannot be used: {why}", path.display())
            }
        }
    }
}

impl std::error::Error for CertificateError {}

impl Certificate {
    /// Reads and checks both files. A certificate for `devices`, which are told this address, is judged as an ESP32 does. Blocks.
    ///
    /// # Errors
    /// Whatever rules out every TLS connection. An expired certificate is not an error, but a warning.
    pub fn load(
        cert_file: &Path,
        key_file: &Path,
        devices: Option<&PublicIp>,
    ) -> Result<Self, CertificateError> {
        let read = |key, path: &Path| {
            fs::read(path).map_err(|error| CertificateError::Unreadable(key, path.to_owned(), error))
        };
        let certificates = read("cert_file", cert_file)?;
        let key = read("key_file", key_file)?;
        if contains(&key, "ENCRYPTED") {
            return Err(CertificateError::Encrypted(key_file.to_owned()));
        }
        build(&certificates, &key, cert_file, key_file, devices)
    }

    /// Whether both come from the same certificate file content.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.pem == other.pem
    }

    /// Starts the TLS handshake of an accepted connection.
    ///
    /// # Errors
    /// Why the handshake failed, as text.
    #[cfg(feature = "tls")]
    pub(crate) fn accept(&self, tcp: TcpStream) -> Result<HandshakeProgress, String> {
        HandshakeProgress::from_result(self.acceptor.accept(tcp))
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn accept(&self, _: TcpStream) -> Result<HandshakeProgress, String> {
        match self.acceptor {}
    }
}

/// The end of an error about a file that contains no PEM block of the required kind.
#[cfg(feature = "tls")]
const NONE_FOUND: &str = "there is none in it";

fn contains(pem: &[u8], word: &str) -> bool {
    pem.windows(word.len()).any(|part| part == word.as_bytes())
}

#[cfg(not(feature = "tls"))]
fn build(
    _: &[u8],
    _: &[u8],
    _: &Path,
    _: &Path,
    _: Option<&PublicIp>,
) -> Result<Certificate, CertificateError> {
    Err(CertificateError::Absent)
}

/// Leaves the checks to the platform's TLS library.
#[cfg(all(feature = "tls", any(windows, target_vendor = "apple")))]
fn build(
    pem: &[u8],
    key: &[u8],
    cert_file: &Path,
    key_file: &Path,
    _: Option<&PublicIp>,
) -> Result<Certificate, CertificateError> {
    if !contains(key, "-----BEGIN PRIVATE KEY-----") {
        return Err(match contains(key, "PRIVATE KEY-----") {
            true => CertificateError::OldForm(key_file.to_owned()),
            false => CertificateError::NoKey(key_file.to_owned(), NONE_FOUND.to_owned()),
        });
    }
    let acceptor = acceptor(pem, key, cert_file)?;
    Ok(Certificate { acceptor, pem: pem.to_owned(), info: None })
}

#[cfg(feature = "tls")]
fn acceptor(pem: &[u8], pkcs8: &[u8], cert_file: &Path) -> Result<Acceptor, CertificateError> {
    let identity = native_tls::Identity::from_pkcs8(pem, pkcs8);
    identity
        .and_then(native_tls::TlsAcceptor::new)
        .map_err(|error| CertificateError::Refused(cert_file.to_owned(), error.to_string()))
}

#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
use openssl_details::build;

/// Checks by OpenSSL.
#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
mod openssl_details {
    use std::path::Path;

    use openssl::error::ErrorStack;
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    use super::{Certificate, CertificateError, NONE_FOUND, acceptor, contains};
    use crate::config::PublicIp;
    use crate::net::mqtt::certificate_chain::{judge, public_authorities};

    /// Also accepts keys in the older formats of RSA and EC.
    pub(super) fn build(
        pem: &[u8],
        key: &[u8],
        cert_file: &Path,
        key_file: &Path,
        devices: Option<&PublicIp>,
    ) -> Result<Certificate, CertificateError> {
        let no_certificate = |why: String| CertificateError::NoCertificate(cert_file.to_owned(), why);
        let no_key = |why: String| CertificateError::NoKey(key_file.to_owned(), why);
        let refused = |why: ErrorStack| CertificateError::Refused(cert_file.to_owned(), why.to_string());
        let chain = X509::stack_from_pem(pem).map_err(|error| no_certificate(error.to_string()))?;
        let own = chain.first().ok_or_else(|| no_certificate(NONE_FOUND.to_owned()))?;
        if !contains(key, "PRIVATE KEY-----") {
            return Err(no_key(NONE_FOUND.to_owned()));
        }
        // Without the callback, OpenSSL would ask for a password on the terminal.
        let key =
            PKey::private_key_from_pem_callback(key, |_| Ok(0)).map_err(|why| no_key(why.to_string()))?;
        if !own.public_key().map_err(refused)?.public_eq(&key) {
            return Err(CertificateError::Mismatch(key_file.to_owned(), cert_file.to_owned()));
        }
        let authorities = devices.map(|_| public_authorities());
        let mut info = judge(&chain, authorities.as_deref()).map_err(refused)?;
        if let Some(PublicIp::Host(host)) = devices
            && !info.is_for(host)
        {
            info.warnings.push(format!(
                "the certificate for {} is not for {host} (udp.public_ip): a device whose endpoint has that name cannot connect",
                info.names
            ));
        }
        let pkcs8 = key.private_key_to_pem_pkcs8().map_err(refused)?;
        let acceptor = acceptor(pem, &pkcs8, cert_file)?;
        Ok(Certificate { acceptor, pem: pem.to_owned(), info: Some(info) })
    }
}
