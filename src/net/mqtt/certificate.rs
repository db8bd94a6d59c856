//! The gateway's own certificate: read from two PEM files, judged in words, and put to use.
//!
//! Where the platform's TLS library is OpenSSL, dates, key and chain are looked at here; elsewhere that library says what
//! is wrong when it is handed the files.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// What takes the connections of devices that speak TLS.
#[cfg(feature = "tls")]
pub(crate) type Acceptor = native_tls::TlsAcceptor;
/// Never made: the program was built without TLS.
#[cfg(not(feature = "tls"))]
#[derive(Clone)]
pub(crate) enum Acceptor {}

/// A certificate that can be used, and what is doubtful about it.
pub struct Certificate {
    pub(crate) acceptor: Acceptor,
    pem: Vec<u8>,
    /// What is known of it; nothing on systems whose TLS library is not OpenSSL.
    pub info: Option<CertificateInfo>,
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The names it is for.
    pub names: String,
    /// Its last second, in words and in seconds since 1970.
    pub expires: (String, i64),
    /// Whether that is over.
    pub expired: bool,
    /// What makes devices refuse it or may do so, one sentence each; that it has expired is among them.
    pub warnings: Vec<String>,
}

/// Why there is no certificate to use: one line for the operator.
#[derive(Debug)]
pub enum CertificateError {
    /// The program was built without the `tls` feature.
    Absent,
    /// A file cannot be read: which, of what, and the system's word.
    Unreadable(&'static str, PathBuf, io::Error),
    /// The certificate file holds no PEM certificate, or a broken one.
    NoCertificate(PathBuf, String),
    /// The key file holds no PEM private key, or a broken one.
    NoKey(PathBuf, String),
    /// The key is encrypted, and there is nobody to ask for its password.
    Encrypted(PathBuf),
    /// The key is in a form that this system's TLS library does not read.
    OldForm(PathBuf),
    /// Key and certificate do not belong together: the key's file, the certificate's.
    Mismatch(PathBuf, PathBuf),
    /// The TLS library refuses them.
    Refused(PathBuf, String),
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let convert = |f: &mut fmt::Formatter<'_>, path: &Path| {
            let key = path.display();
            write!(f, "; convert it with: openssl pkcs8 -topk8 -nocrypt -in {key} -out {key}.pk8")
        };
        match self {
            Self::Absent => f.write_str("mqtt.tls: this program was built without TLS (cargo feature tls)"),
            Self::Unreadable(key, path, error) => {
                write!(f, "{key}: {} cannot be read: {error}", path.display())
            }
            Self::NoCertificate(path, why) => {
                write!(f, "mqtt.tls.cert_file: {} is no list of PEM certificates: {why}", path.display())
            }
            Self::NoKey(path, why) => {
                write!(f, "mqtt.tls.key_file: {} holds no PEM private key: {why}", path.display())
            }
            Self::Encrypted(path) => {
                write!(f, "mqtt.tls.key_file: the key in {} is encrypted", path.display())?;
                convert(f, path)
            }
            Self::OldForm(path) => {
                write!(f, "mqtt.tls.key_file: the key in {} is not in PKCS#8 form", path.display())?;
                convert(f, path)
            }
            Self::Mismatch(key, certificate) => write!(
                f,
                "mqtt.tls.key_file: the key in {} does not match the first certificate in {}",
                key.display(),
                certificate.display()
            ),
            Self::Refused(path, why) => {
                write!(f, "mqtt.tls.cert_file: the certificate in {} cannot be used: {why}", path.display())
            }
        }
    }
}

impl std::error::Error for CertificateError {}

impl Certificate {
    /// Reads both files. Blocks on them.
    ///
    /// # Errors
    /// When no TLS connection could be made with them. A certificate that has expired is none of these errors.
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Self, CertificateError> {
        let read = |key, path: &Path| {
            fs::read(path).map_err(|error| CertificateError::Unreadable(key, path.to_owned(), error))
        };
        let certificates = read("mqtt.tls.cert_file", cert_file)?;
        let key = read("mqtt.tls.key_file", key_file)?;
        if holds(&key, "ENCRYPTED") {
            return Err(CertificateError::Encrypted(key_file.to_owned()));
        }
        make(&certificates, &key, cert_file, key_file)
    }
}

impl Certificate {
    /// Whether it is this very one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

fn holds(pem: &[u8], word: &str) -> bool {
    pem.windows(word.len()).any(|part| part == word.as_bytes())
}

#[cfg(not(feature = "tls"))]
fn make(_: &[u8], _: &[u8], _: &Path, _: &Path) -> Result<Certificate, CertificateError> {
    Err(CertificateError::Absent)
}

/// By the platform's TLS library alone.
#[cfg(all(feature = "tls", any(windows, target_vendor = "apple")))]
fn make(pem: &[u8], key: &[u8], cert_file: &Path, key_file: &Path) -> Result<Certificate, CertificateError> {
    if !holds(key, "-----BEGIN PRIVATE KEY-----") {
        return Err(match holds(key, "PRIVATE KEY-----") {
            true => CertificateError::OldForm(key_file.to_owned()),
            false => CertificateError::NoKey(key_file.to_owned(), "there is none in it".to_owned()),
        });
    }
    let acceptor = acceptor(pem, key, cert_file)?;
    Ok(Certificate { acceptor, pem: pem.to_owned(), facts: None })
}

#[cfg(feature = "tls")]
fn acceptor(pem: &[u8], pkcs8: &[u8], cert_file: &Path) -> Result<Acceptor, CertificateError> {
    let identity = native_tls::Identity::from_pkcs8(pem, pkcs8);
    identity
        .and_then(native_tls::TlsAcceptor::new)
        .map_err(|error| CertificateError::Refused(cert_file.to_owned(), error.to_string()))
}

#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
use openssl_details::make;

/// What OpenSSL knows of certificates and keys.
#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
mod openssl_details {
    use std::path::Path;

    use openssl::asn1::Asn1Time;
    use openssl::error::ErrorStack;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::{X509, X509NameRef, X509Ref, X509VerifyResult};

    use super::{Certificate, CertificateError, CertificateInfo, acceptor, holds};

    /// Also reads keys in the older forms of RSA and EC.
    pub(crate) fn make(
        pem: &[u8],
        key: &[u8],
        cert_file: &Path,
        key_file: &Path,
    ) -> Result<Certificate, CertificateError> {
        let no_certificate = |why: String| CertificateError::NoCertificate(cert_file.to_owned(), why);
        let no_key = |why: String| CertificateError::NoKey(key_file.to_owned(), why);
        let refused = |why: ErrorStack| CertificateError::Refused(cert_file.to_owned(), why.to_string());
        let chain = X509::stack_from_pem(pem).map_err(|error| no_certificate(error.to_string()))?;
        let own = chain.first().ok_or_else(|| no_certificate("there is none in it".to_owned()))?;
        if !holds(key, "PRIVATE KEY-----") {
            return Err(no_key("there is none in it".to_owned()));
        }
        // Nobody is there to type a password.
        let key =
            PKey::private_key_from_pem_callback(key, |_| Ok(0)).map_err(|why| no_key(why.to_string()))?;
        if !own.public_key().map_err(refused)?.public_eq(&key) {
            return Err(CertificateError::Mismatch(key_file.to_owned(), cert_file.to_owned()));
        }
        let facts = facts(own, &chain).map_err(refused)?;
        let pkcs8 = key.private_key_to_pem_pkcs8().map_err(refused)?;
        Ok(Certificate {
            acceptor: acceptor(pem, &pkcs8, cert_file)?,
            pem: pem.to_owned(),
            info: Some(facts),
        })
    }

    fn facts(own: &X509Ref, chain: &[X509]) -> Result<CertificateInfo, ErrorStack> {
        let names = names(own);
        let now = Asn1Time::days_from_now(0)?;
        let since_1970 = Asn1Time::from_unix(0)?.diff(own.not_after())?;
        let expires = i64::from(since_1970.days) * 86_400 + i64::from(since_1970.secs);
        let mut doubts = Vec::new();
        let expired = *own.not_after() < *now;
        if expired {
            doubts.push(format!(
                "the certificate for {names} expired on {}: devices that verify it cannot connect",
                own.not_after()
            ));
        }
        if *own.not_before() > *now {
            doubts.push(format!(
                "the certificate for {names} is not valid before {}: devices that verify it cannot connect (is this \
                 machine's clock right?)",
                own.not_before()
            ));
        }
        let issued = |issuer: &X509Ref| issuer.issued(own) == X509VerifyResult::OK;
        if !chain.iter().any(|certificate| issued(certificate)) {
            doubts.push(format!(
                "the certificate for {names} stands without its issuer, {}: devices that do not know that one cannot \
                 verify it; put the issuer's certificate behind it in the same file (fullchain.pem of certbot has both)",
                common_name(own.issuer_name())
            ));
        }
        Ok(CertificateInfo {
            names,
            expires: (own.not_after().to_string(), expires),
            expired,
            warnings: doubts,
        })
    }

    /// The names a certificate is for: those devices compare, else its common name.
    fn names(own: &X509Ref) -> String {
        let alternatives = own.subject_alt_names();
        let dns = alternatives.iter().flatten().filter_map(|name| name.dnsname().map(str::to_owned));
        let ips = alternatives.iter().flatten().filter_map(|name| match name.ipaddress()? {
            bytes if bytes.len() == 4 => {
                <[u8; 4]>::try_from(bytes).ok().map(|ip| std::net::IpAddr::from(ip).to_string())
            }
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|ip| std::net::IpAddr::from(ip).to_string()),
        });
        let all: Vec<_> = dns.chain(ips).collect();
        if all.is_empty() { common_name(own.subject_name()) } else { all.join(", ") }
    }

    fn common_name(name: &X509NameRef) -> String {
        let entry = name.entries_by_nid(Nid::COMMONNAME).next().or_else(|| name.entries().last());
        let text = entry.and_then(|entry| entry.data().to_string().ok());
        text.unwrap_or_else(|| "nobody named".to_owned())
    }
}
