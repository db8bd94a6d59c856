//! A certificate in use, which is loaded again when its files change and at a reload.

use std::fmt::Display;
use std::path::Path;

use log::{Level, error, info, log};

use crate::config::PublicIp;
use crate::net::error::BindError;
use crate::net::file_watch::FileWatch;
use crate::net::mqtt::certificate::Certificate;
use crate::net::mqtt::certificate_info::CertificateInfo;

/// Problems with the certificate, for the list of recent errors.
pub(crate) type CertificateProblems = Vec<String>;

/// A certificate in use and its files.
pub(crate) struct WatchedCertificate {
    pub(crate) certificate: Certificate,
    /// The section of the configuration that names its files.
    section: &'static str,
    /// The address that devices are told, if it is theirs.
    devices: Option<PublicIp>,
    /// Of the certificate and of the key.
    file_watches: [FileWatch; 2],
}

impl WatchedCertificate {
    /// Loads the certificate of this section, if it names one, and watches its files.
    ///
    /// # Errors
    /// A certificate that cannot be used.
    pub(crate) fn load(
        section: &'static str,
        files: Option<(&Path, &Path)>,
        devices: Option<&PublicIp>,
    ) -> Result<Option<Self>, BindError> {
        let Some((cert_file, key_file)) = files else { return Ok(None) };
        // The watches start first, so that they miss no change.
        let file_watches = [cert_file, key_file].map(|path| FileWatch::new(path.to_owned()));
        let certificate = Certificate::load(cert_file, key_file, devices)
            .map_err(|error| BindError::Certificate(section, error))?;
        Ok(Some(Self { certificate, section, devices: devices.cloned(), file_watches }))
    }

    /// When the certificate expires, in seconds since 1970, if that is known.
    pub(crate) fn expires(&self) -> Option<i64> {
        self.certificate.info.as_ref().map(|info| info.expires.1)
    }

    /// Its section of the configuration, and what is known about it.
    pub(crate) fn info(&self) -> Option<(&'static str, &CertificateInfo)> {
        Some((self.section, self.certificate.info.as_ref()?))
    }

    /// Whether devices that verify certificates can connect to this host, as far as is known.
    pub(crate) fn is_for_devices(&self, host: &str) -> bool {
        self.certificate.info.as_ref().is_some_and(|info| !info.refused && info.is_for(host))
    }

    /// Loads the certificate again if its files have changed and are stable again.
    pub(crate) fn check_files(&mut self) -> CertificateProblems {
        let watches = self.file_watches.iter_mut();
        match watches.fold(false, |changed, watch| watch.has_changed() | changed) {
            true => self.renew(),
            false => CertificateProblems::new(),
        }
    }

    /// Loads the certificate again from the same files. Keeps the current one if the new one cannot be used, as while only one
    /// of the files has been replaced, or if only the new one has expired.
    pub(crate) fn renew(&mut self) -> CertificateProblems {
        let keep = |why: &dyn Display| format!("the TLS certificate in use stays: {why}");
        let has_expired =
            |certificate: &Certificate| certificate.info.as_ref().is_some_and(|info| info.expired);
        let [cert_file, key_file] = self.file_watches.each_ref().map(FileWatch::path);
        let problem = match Certificate::load(cert_file, key_file, self.devices.as_ref()) {
            Ok(new) if new.is_same(&self.certificate) => return CertificateProblems::new(),
            Ok(new) if has_expired(&new) && !has_expired(&self.certificate) => {
                keep(&format_args!("the one in {} has expired", cert_file.display()))
            }
            Ok(new) => {
                self.certificate = new;
                return self.describe();
            }
            Err(error) => keep(&format_args!("{}.{error}", self.section)),
        };
        error!("{problem}");
        vec![problem]
    }

    /// Logs which certificate is in use, and its problems.
    pub(crate) fn describe(&self) -> CertificateProblems {
        let Some(info) = &self.certificate.info else { return CertificateProblems::new() };
        let section = self.section;
        info!("TLS certificate for {}, valid until {} ({section})", info.names, info.expires.0);
        let problems: Vec<_> = info.warnings.iter().map(|warning| format!("{section}: {warning}")).collect();
        for problem in &problems {
            log!(if info.expired { Level::Error } else { Level::Warn }, "{problem}");
        }
        problems
    }
}
