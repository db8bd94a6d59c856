//! Renewal of the TLS certificate while running: its files are watched, and read again at a reload.

use log::{Level, error, info, log};
use mio::Interest;

use crate::config::{Config, Tls};
use crate::net::error::BindError;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::{self, MQTTS};
use crate::net::mqtt::certificate::Certificate;
use crate::net::mqtt::listener::Listeners;
use crate::net::mqtt::tls_listener::{TlsListener, load_and_watch};

/// Problems with the certificate, for the list of recent errors.
pub(crate) type CertificateProblems = Vec<String>;

impl Listeners {
    /// Applies the TLS settings of `new`; on an error, none of them. When the settings are the same, the files are read again.
    /// If that fails, the certificate stays, a problem is returned, and the rest of the configuration can be reloaded.
    ///
    /// # Errors
    /// Other settings with a certificate that cannot be used or a port that cannot be opened.
    pub(crate) fn reload_tls(
        &mut self,
        new: &Config,
        shared: bool,
        io: &Io,
    ) -> Result<CertificateProblems, BindError> {
        let (old, new) = (&io.config.mqtt.tls, &new.mqtt.tls);
        if old.files() == new.files() && old.port == new.port {
            return Ok(self.renew_certificate(old));
        }
        match (new.files(), &mut self.tls) {
            (Some((cert_file, key_file)), Some(tls)) if old.port == new.port => {
                (tls.certificate, tls.file_watches) = load_and_watch(cert_file, key_file)?;
            }
            _ => {
                let mut tls = TlsListener::open(io.config.mqtt.host, new, shared)?;
                if let Some(tls) = &mut tls {
                    io.registry
                        .register(&mut tls.listener, token::fixed(MQTTS), Interest::READABLE)
                        .map_err(|error| BindError::Setup("register", error))?;
                }
                self.tls = tls;
            }
        }
        Ok(self.describe_certificate())
    }

    /// Loads the certificate again if its files have changed.
    pub(crate) fn check_certificate_files(&mut self, io: &Io) -> CertificateProblems {
        match self.tls.as_mut().is_some_and(TlsListener::files_changed) {
            true => self.renew_certificate(&io.config.mqtt.tls),
            false => CertificateProblems::new(),
        }
    }

    /// Loads the certificate again from the same files. Keeps the current one if the new one cannot be used, as while only one
    /// of the files has been replaced, or if only the new one has expired.
    fn renew_certificate(&mut self, config: &Tls) -> CertificateProblems {
        let (Some(tls), Some((cert_file, key_file))) = (&mut self.tls, config.files()) else {
            return CertificateProblems::new();
        };
        let keep = |why: &dyn std::fmt::Display| format!("the TLS certificate in use stays: {why}");
        let problem = match Certificate::load(cert_file, key_file) {
            Ok(new) if new.is_same(&tls.certificate) => return CertificateProblems::new(),
            Ok(new) if new.info.as_ref().is_some_and(|info| info.expired) && !tls.has_expired() => {
                keep(&format_args!("the one in {} has expired", cert_file.display()))
            }
            Ok(new) => {
                tls.certificate = new;
                return self.describe_certificate();
            }
            Err(error) => keep(&error),
        };
        error!("{problem}");
        vec![problem]
    }

    /// Logs which certificate is in use, and its problems.
    pub(crate) fn describe_certificate(&self) -> CertificateProblems {
        let Some(info) = self.tls.as_ref().and_then(|tls| tls.certificate.info.as_ref()) else {
            return CertificateProblems::new();
        };
        info!("TLS certificate for {}, valid until {}", info.names, info.expires.0);
        let problems: Vec<_> = info.warnings.iter().map(|warning| format!("mqtt.tls: {warning}")).collect();
        for problem in &problems {
            log!(if info.expired { Level::Error } else { Level::Warn }, "{problem}");
        }
        problems
    }
}
