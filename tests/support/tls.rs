//! Certificates for chat servers and gateways, created by the test.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslAcceptor, SslConnector, SslMethod, SslVersion};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Builder, X509Name};

use super::process::Folder;

/// A private certificate authority.
pub struct CertificateAuthority {
    key: PKey<Private>,
    certificate: X509,
}

impl CertificateAuthority {
    pub fn new() -> Self {
        Self::named("Test authority")
    }

    pub fn named(common: &str) -> Self {
        let key = new_key();
        let mut builder = builder(common, &key);
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        let subject = name(common);
        builder.set_issuer_name(&subject).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Self { certificate: builder.build(), key }
    }

    /// Its certificate in PEM, for a CA file.
    pub fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    /// A TLS acceptor for this host (a name or an IP address).
    pub fn server(&self, host: &str) -> SslAcceptor {
        self.server_up_to(host, SslVersion::TLS1_3)
    }

    /// A TLS acceptor with no newer version than this. With TLS 1.3, its session tickets arrive after the handshake.
    pub fn server_up_to(&self, host: &str, version: SslVersion) -> SslAcceptor {
        let CertifiedKey { certificate, key } = self.issue(host);
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_max_proto_version(Some(version)).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_certificate(&certificate).unwrap();
        acceptor.build()
    }

    /// A certificate for this host, valid for 30 days.
    pub fn issue(&self, host: &str) -> CertifiedKey {
        self.issue_for(host, new_key(), -1, 30)
    }

    /// A certificate for this host and key, with its validity in days from now.
    pub fn issue_for(&self, host: &str, key: PKey<Private>, from: i64, until: i64) -> CertifiedKey {
        let mut builder = builder(host, &key);
        builder.set_not_before(&days_from_now(from)).unwrap();
        builder.set_not_after(&days_from_now(until)).unwrap();
        builder.set_issuer_name(self.certificate.subject_name()).unwrap();
        let mut names = SubjectAlternativeName::new();
        match host.parse::<IpAddr>() {
            Ok(_) => names.ip(host),
            Err(_) => names.dns(host),
        };
        let names = names.build(&builder.x509v3_context(Some(&self.certificate), None)).unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        CertifiedKey { certificate: builder.build(), key }
    }

    /// An intermediate authority, signed by this one.
    pub fn intermediate(&self) -> Self {
        let key = new_key();
        let mut builder = builder("Test intermediate", &key);
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        builder.set_issuer_name(self.certificate.subject_name()).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        Self { certificate: builder.build(), key }
    }

    /// The certificate of another authority as signed by this one, in PEM.
    pub fn cross_signed(&self, other: &Self) -> Vec<u8> {
        let mut builder = builder("replaced", &other.key);
        builder.set_subject_name(other.certificate.subject_name()).unwrap();
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        builder.set_issuer_name(self.certificate.subject_name()).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        builder.build().to_pem().unwrap()
    }

    /// A self-signed certificate for this host.
    pub fn self_signed(host: &str) -> CertifiedKey {
        let Self { certificate, key } = Self::named(host);
        CertifiedKey { certificate, key }
    }

    /// A client that only trusts this authority.
    pub fn client(&self) -> SslConnector {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        let mut store = X509StoreBuilder::new().unwrap();
        store.add_cert(self.certificate.clone()).unwrap();
        connector.set_cert_store(store.build());
        connector.build()
    }
}

/// A certificate and its key.
pub struct CertifiedKey {
    pub certificate: X509,
    pub key: PKey<Private>,
}

impl CertifiedKey {
    pub fn certificate_pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}

/// A certificate for 127.0.0.1 and its key in files, and the authority that signed it.
pub struct CertificateFiles {
    pub authority: CertificateAuthority,
    folder: Folder,
}

impl CertificateFiles {
    pub fn new() -> Self {
        let authority = CertificateAuthority::new();
        let files = Self { authority, folder: Folder::new() };
        files.write(&files.authority.issue("127.0.0.1"));
        files
    }

    pub fn cert(&self) -> PathBuf {
        self.folder.0.join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.0.join("key.pem")
    }

    pub fn write(&self, pair: &CertifiedKey) {
        fs::write(self.cert(), pair.certificate_pem()).unwrap();
        fs::write(self.key(), pair.key_pem()).unwrap();
    }
}

fn days_from_now(days: i64) -> Asn1Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    Asn1Time::from_unix(now as i64 + days * 86_400).unwrap()
}

pub fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn name(common: &str) -> X509Name {
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, common).unwrap();
    name.build()
}

fn builder(common: &str, key: &PKey<Private>) -> X509Builder {
    let mut builder = X509Builder::new().unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name(common)).unwrap();
    builder.set_pubkey(key).unwrap();
    // A day back, in case a clock is slightly behind.
    builder.set_not_before(&days_from_now(-1)).unwrap();
    builder.set_not_after(&days_from_now(30)).unwrap();
    builder
}
