//! The TLS listener of MQTT and its certificate.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use mio::net::TcpListener;

use crate::config::Tls;
use crate::net::error::BindError;
use crate::net::event_loop::tcp;
use crate::net::file_watch::FileWatch;
use crate::net::mqtt::certificate::Certificate;

/// The TLS listener and its certificate.
pub(crate) struct TlsListener {
    pub(crate) listener: TcpListener,
    pub(crate) certificate: Certificate,
    pub(super) file_watches: [FileWatch; 2],
}

impl TlsListener {
    /// Opens the TLS port, if TLS is configured.
    ///
    /// # Errors
    /// A certificate that cannot be used, or a port that cannot be opened.
    pub(crate) fn open(host: IpAddr, tls: &Tls, shared: bool) -> Result<Option<Self>, BindError> {
        let Some((cert_file, key_file)) = tls.files() else { return Ok(None) };
        let (certificate, file_watches) = load_and_watch(cert_file, key_file)?;
        let addr = SocketAddr::new(host, tls.port);
        let listener =
            tcp::listen(addr, shared).map_err(|error| BindError::Port("MQTT over TLS", addr, error))?;
        Ok(Some(Self { listener, certificate, file_watches }))
    }

    /// When the certificate expires, in seconds since 1970, if that is known.
    pub(crate) fn expires(&self) -> Option<i64> {
        self.certificate.info.as_ref().map(|info| info.expires.1)
    }

    pub(super) fn has_expired(&self) -> bool {
        self.certificate.info.as_ref().is_some_and(|info| info.expired)
    }

    /// Whether one of the files has changed and is stable again.
    pub(super) fn files_changed(&mut self) -> bool {
        self.file_watches.iter_mut().fold(false, |changed, watch| watch.has_changed() | changed)
    }
}

/// Loads a certificate and watches its files. The watches start first, so that they miss no change.
pub(super) fn load_and_watch(
    cert_file: &Path,
    key_file: &Path,
) -> Result<(Certificate, [FileWatch; 2]), BindError> {
    let watches = [cert_file, key_file].map(|path| FileWatch::new(path.to_owned()));
    let certificate = Certificate::load(cert_file, key_file).map_err(BindError::Certificate)?;
    Ok((certificate, watches))
}
