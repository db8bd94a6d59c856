//! The gateway's own certificate: loaded from two PEM files and checked.
//!
//! With OpenSSL, this code checks the dates, the key and the chain. On other platforms the TLS library reports what is wrong
//! when it loads the files.

#[cfg(feature = "tls")]
use std::fmt::Display;
use std::fs;
use std::path::Path;

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

impl Certificate {
    /// Reads and checks both files. A certificate for `devices`, which are told this address, is judged as an ESP32 does. Blocks.
    ///
    /// # Errors
    /// Whatever rules out every TLS connection, as one line that begins with a key of the section that names the files. An expired
    /// certificate is not an error, but a warning.
    pub fn load(cert_file: &Path, key_file: &Path, devices: Option<&PublicIp>) -> Result<Self, String> {
        let read = |key, path: &Path| {
            fs::read(path).map_err(|error| format!("{key}: {} cannot be read: {error}", path.display()))
        };
        let certificates = read("cert_file", cert_file)?;
        let key = read("key_file", key_file)?;
        if contains(&key, "ENCRYPTED") {
            return Err(convert_key(
                &format!("key_file: the key in {} is encrypted", key_file.display()),
                key_file,
            ));
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

/// What is wrong with a key that has to be converted: nobody can enter its password, or the system's TLS library does not support its
/// format.
fn convert_key(problem: &str, key_file: &Path) -> String {
    let key = key_file.display();
    problem.to_owned() + &format!("; convert it with: openssl pkcs8 -topk8 -nocrypt -in {key} -out {key}.pk8")
}

fn contains(pem: &[u8], word: &str) -> bool {
    pem.windows(word.len()).any(|part| part == word.as_bytes())
}

#[cfg(not(feature = "tls"))]
fn build(_: &[u8], _: &[u8], _: &Path, _: &Path, _: Option<&PublicIp>) -> Result<Certificate, String> {
    Err("cert_file: this program was built without TLS (cargo feature tls)".to_owned())
}

/// Leaves the checks to the platform's TLS library.
#[cfg(all(feature = "tls", any(windows, target_vendor = "apple")))]
fn build(
    pem: &[u8],
    key: &[u8],
    cert_file: &Path,
    key_file: &Path,
    _: Option<&PublicIp>,
) -> Result<Certificate, String> {
    if !contains(key, "-----BEGIN PRIVATE KEY-----") {
        return Err(match contains(key, "PRIVATE KEY-----") {
            true => {
                let problem = format!("key_file: the key in {} is not in PKCS#8 form", key_file.display());
                convert_key(&problem, key_file)
            }
            false => no_key(key_file, NONE_FOUND),
        });
    }
    let acceptor = acceptor(pem, key, cert_file)?;
    Ok(Certificate { acceptor, pem: pem.to_owned(), info: None })
}

#[cfg(feature = "tls")]
fn acceptor(pem: &[u8], pkcs8: &[u8], cert_file: &Path) -> Result<Acceptor, String> {
    let identity = native_tls::Identity::from_pkcs8(pem, pkcs8);
    identity.and_then(native_tls::TlsAcceptor::new).map_err(|error| refused(cert_file, error))
}

/// The TLS library does not accept the certificate.
#[cfg(feature = "tls")]
fn refused(cert_file: &Path, why: impl Display) -> String {
    format!("cert_file: the certificate in {} cannot be used: {why}", cert_file.display())
}

/// The key file contains no PEM private key, or a malformed one.
#[cfg(feature = "tls")]
fn no_key(key_file: &Path, why: impl Display) -> String {
    format!("key_file: {} contains no PEM private key: {why}", key_file.display())
}

#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
use openssl_details::build;

/// Checks by OpenSSL.
#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
mod openssl_details {
    use std::fmt::Display;
    use std::path::Path;

    use openssl::error::ErrorStack;
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    use super::{Certificate, NONE_FOUND, acceptor, contains, no_key};
    use crate::config::PublicIp;
    use crate::net::mqtt::certificate_chain::{judge, public_authorities};

    /// Also accepts keys in the older formats of RSA and EC.
    pub(super) fn build(
        pem: &[u8],
        key: &[u8],
        cert_file: &Path,
        key_file: &Path,
        devices: Option<&PublicIp>,
    ) -> Result<Certificate, String> {
        let no_certificate = |why: &dyn Display| {
            format!("cert_file: {} is not a list of PEM certificates: {why}", cert_file.display())
        };
        let refused = |why: ErrorStack| super::refused(cert_file, why);
        let chain = X509::stack_from_pem(pem).map_err(|error| no_certificate(&error))?;
        let own = chain.first().ok_or_else(|| no_certificate(&NONE_FOUND))?;
        if !contains(key, "PRIVATE KEY-----") {
            return Err(no_key(key_file, NONE_FOUND));
        }
        // Without the callback, OpenSSL would ask for a password on the terminal.
        let key = PKey::private_key_from_pem_callback(key, |_| Ok(0)).map_err(|why| no_key(key_file, why))?;
        if !own.public_key().map_err(refused)?.public_eq(&key) {
            let (key, certificate) = (key_file.display(), cert_file.display());
            return Err(format!(
                "key_file: the key in {key} does not match the first certificate in {certificate}"
            ));
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
