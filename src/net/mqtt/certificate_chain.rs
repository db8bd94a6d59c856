//! What devices make of a certificate: its dates, its names, and its chain. Only with OpenSSL.

use std::net::IpAddr;

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::x509::{X509, X509NameRef, X509Ref, X509VerifyResult};

use super::certificate_info::CertificateInfo;

/// A certificate that expires within this time is warned about: certbot renews 30 days before.
const EXPIRY_WARNING_DAYS: i32 = 14;
/// Where systems keep their public authorities, unless `SSL_CERT_FILE` names the file.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The public authorities that this machine knows, which are nearly those in a device's firmware; empty if it has no list.
pub(crate) fn public_authorities() -> Vec<X509> {
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let pem = match named {
        Some(path) => std::fs::read(path).ok(),
        None => BUNDLES.iter().find_map(|path| std::fs::read(path).ok()),
    };
    pem.and_then(|pem| X509::stack_from_pem(&pem).ok()).unwrap_or_default()
}

/// What the first certificate of `chain` contains, and what is wrong with it. With `authorities` it is judged as an ESP32 does,
/// which knows these alone; if there are none, only what the chain itself shows is judged.
pub(crate) fn judge(chain: &[X509], authorities: Option<&[X509]>) -> Result<CertificateInfo, ErrorStack> {
    let own = chain.first().ok_or_else(ErrorStack::get)?;
    let names = names(own);
    let now = Asn1Time::days_from_now(0)?;
    let since_1970 = Asn1Time::from_unix(0)?.diff(own.not_after())?;
    let expires = i64::from(since_1970.days) * 86_400 + i64::from(since_1970.secs);
    let days_left = now.diff(own.not_after())?.days;
    let mut warnings = Vec::new();
    let expired = *own.not_after() < *now;
    if expired {
        warnings.push(format!(
            "the certificate for {names} expired on {}: devices that verify it cannot connect",
            own.not_after()
        ));
    }
    if *own.not_before() > *now {
        warnings.push(format!(
            "the certificate for {names} is not valid before {}: devices that verify it cannot connect (is this \
             machine's clock right?)",
            own.not_before()
        ));
    }
    warnings.extend(chain_warning(chain, &names, authorities));
    let refused = !warnings.is_empty();
    if !expired && days_left < EXPIRY_WARNING_DAYS {
        warnings.push(format!(
            "the certificate for {names} expires on {}, in {days_left} days: renew it",
            own.not_after()
        ));
    }
    Ok(CertificateInfo { names, expires: (own.not_after().to_string(), expires), expired, refused, warnings })
}

/// Why a device cannot verify the chain. An ESP32 follows the certificates that it is sent to the last one, and looks for the
/// issuer of that one alone among its authorities (ESP-IDF, `esp_crt_bundle`).
fn chain_warning(chain: &[X509], names: &str, authorities: Option<&[X509]>) -> Option<String> {
    let own = chain.first()?;
    let mut path = vec![own];
    while let Some(last) = path.last()
        && path.len() < chain.len()
        && !issued(last, last)
        && let Some(issuer) = chain.iter().find(|other| issued(other, last))
    {
        path.push(issuer);
    }
    let last = path.last()?;
    let is_known = |certificate: &X509Ref| {
        authorities.is_some_and(|all| all.iter().any(|root| issued(root, certificate)))
    };
    if is_known(last) {
        return None;
    }
    let issuer = common_name(last.issuer_name());
    let is_self_signed = issued(own, own);
    Some(match authorities {
        Some(_) if is_self_signed => format!(
            "the certificate for {names} is self-signed: devices verify certificates against public authorities and \
             cannot connect; get one from a public authority, for example with certbot"
        ),
        Some(_) if path.iter().any(|certificate| is_known(certificate)) => {
            let root = common_name(last.subject_name());
            format!(
                "the chain of the certificate for {names} ends with {root} as signed by {issuer}: an ESP32 looks for \
                 {issuer}, does not know it, and cannot connect, though it knows {root} itself; remove the last \
                 certificate from the file (certbot: --preferred-chain \"{root}\")"
            )
        }
        _ if path.len() == 1 && !is_self_signed => format!(
            "the certificate for {names} is not followed by that of its issuer, {issuer}: devices that do not have the \
             issuer's certificate cannot verify it; append it to the file (certbot's fullchain.pem contains both)"
        ),
        Some(known) if !known.is_empty() => format!(
            "the certificate for {names} comes from {issuer}, which is none of the public authorities that this machine \
             knows: an ESP32 knows these only and cannot connect"
        ),
        _ => return None,
    })
}

/// Whether `issuer` signed `certificate`.
fn issued(issuer: &X509Ref, certificate: &X509Ref) -> bool {
    issuer.issued(certificate) == X509VerifyResult::OK
        && issuer.public_key().and_then(|key| certificate.verify(&key)).unwrap_or(false)
}

/// The names a certificate is valid for: the alternative names, or else the common name.
fn names(own: &X509Ref) -> String {
    let alternatives = own.subject_alt_names();
    let dns = alternatives.iter().flatten().filter_map(|name| name.dnsname().map(str::to_owned));
    let ips = alternatives.iter().flatten().filter_map(|name| {
        let bytes = name.ipaddress()?;
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
    });
    let all: Vec<_> = dns.chain(ips).collect();
    if all.is_empty() { common_name(own.subject_name()) } else { all.join(", ") }
}

fn common_name(name: &X509NameRef) -> String {
    let entry = name.entries_by_nid(Nid::COMMONNAME).next().or_else(|| name.entries().last());
    let text = entry.and_then(|entry| entry.data().to_string().ok());
    text.unwrap_or_else(|| "(no name)".to_owned())
}
