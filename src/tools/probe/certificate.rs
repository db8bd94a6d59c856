//! What an ESP32 makes of the certificate that a gateway serves.

use std::net::SocketAddr;

use super::options::ProbeOptions;
use crate::net::mqtt::certificate::CertificateInfo;

/// Fetches the chain over a connection of its own, since native-tls does not show it, and judges it. Authorities of `--ca-file`
/// count as public ones.
#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
pub(super) fn judge_served_chain(gateway: SocketAddr, options: &ProbeOptions) -> Option<CertificateInfo> {
    use std::net::TcpStream;

    use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
    use openssl::x509::X509;

    use crate::net::mqtt::certificate_chain::{judge, public_authorities};

    let tcp = TcpStream::connect_timeout(&gateway, options.timeout).ok()?;
    tcp.set_read_timeout(Some(options.timeout)).ok()?;
    tcp.set_write_timeout(Some(options.timeout)).ok()?;
    let mut connector = SslConnector::builder(SslMethod::tls_client()).ok()?;
    connector.set_verify(SslVerifyMode::NONE);
    let tls = connector.build().connect(&options.host, tcp).ok()?;
    let chain: Vec<X509> = tls.ssl().peer_cert_chain()?.iter().map(ToOwned::to_owned).collect();
    let mut authorities = public_authorities();
    authorities.extend(
        options.ca_pem.as_deref().and_then(|pem| X509::stack_from_pem(pem).ok()).into_iter().flatten(),
    );
    judge(&chain, Some(&authorities)).ok()
}

#[cfg(not(all(feature = "tls", not(any(windows, target_vendor = "apple")))))]
pub(super) fn judge_served_chain(_: SocketAddr, _: &ProbeOptions) -> Option<CertificateInfo> {
    None
}
