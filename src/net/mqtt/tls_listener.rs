//! The TLS listener of MQTT, its certificate, and the renewal of the certificate while running.

use std::net::{IpAddr, SocketAddr};

use log::{Level, error, info, log};
use mio::Interest;
use mio::net::TcpListener;

use crate::config::{Config, Tls};
use crate::net::error::BindError;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::tcp;
use crate::net::event_loop::token::{self, MQTTS};
use crate::net::file_watch::FileWatch;
use crate::net::mqtt::certificate::{Acceptor, Certificate};
use crate::net::mqtt::listener::Listeners;

/// The TLS listener and what its handshakes need.
pub(crate) struct TlsListener {
    pub(crate) listener: TcpListener,
    certificate: Certificate,
    file_watches: [FileWatch; 2],
}

impl TlsListener {
    /// Opens it, when there is to be TLS.
    ///
    /// # Errors
    /// A certificate that cannot be used, or a port that cannot be listened on.
    pub(crate) fn open(host: IpAddr, tls: &Tls, shared: bool) -> Result<Option<Self>, BindError> {
        let Some((cert_file, key_file)) = tls.files() else { return Ok(None) };
        // Watched from before it is read, so that no change is missed.
        let watches = [cert_file, key_file].map(|path| FileWatch::new(path.to_owned()));
        let certificate = Certificate::load(cert_file, key_file).map_err(BindError::Certificate)?;
        let addr = SocketAddr::new(host, tls.port);
        let listener =
            tcp::listen(addr, shared).map_err(|error| BindError::Port("MQTT over TLS", addr, error))?;
        Ok(Some(Self { listener, certificate, file_watches: watches }))
    }

    pub(crate) fn acceptor(&self) -> &Acceptor {
        &self.certificate.acceptor
    }

    /// When its certificate expires, in seconds since 1970, where that can be told.
    pub(crate) fn expires(&self) -> Option<i64> {
        self.certificate.info.as_ref().map(|facts| facts.expires.1)
    }

    fn has_expired(&self) -> bool {
        self.certificate.info.as_ref().is_some_and(|facts| facts.expired)
    }

    /// Whether one of the files has changed and come to rest.
    fn files_changed(&mut self) -> bool {
        self.file_watches.iter_mut().fold(false, |changed, watch| watch.has_changed() | changed)
    }
}

/// What became of the certificate, for the list of recent errors.
pub(crate) type CertificateProblems = Vec<String>;

impl Listeners {
    /// Takes over the TLS settings of `new`, or nothing. A certificate whose files keep their names is only replaced by one
    /// that works; if it does not, the log says why, and the rest of the configuration is reloaded all the same.
    ///
    /// # Errors
    /// A certificate that cannot be used, or a port that cannot be listened on.
    pub(crate) fn reload_tls(
        &mut self,
        new: &Config,
        shared: bool,
        io: &Io,
    ) -> Result<CertificateProblems, BindError> {
        let (then, now) = (&io.config.mqtt.tls, &new.mqtt.tls);
        if then.files() == now.files() && then.port == now.port {
            return Ok(self.renew_certificate(then));
        }
        match (now.files(), &mut self.tls) {
            (Some((cert_file, key_file)), Some(tls)) if then.port == now.port => {
                let watches = [cert_file, key_file].map(|path| FileWatch::new(path.to_owned()));
                tls.certificate = Certificate::load(cert_file, key_file).map_err(BindError::Certificate)?;
                tls.file_watches = watches;
            }
            _ => {
                let mut tls = TlsListener::open(io.config.mqtt.host, now, shared)?;
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

    /// Takes a new certificate from its files if they have changed.
    pub(crate) fn check_certificate_files(&mut self, io: &Io) -> CertificateProblems {
        match self.tls.as_mut().is_some_and(TlsListener::files_changed) {
            true => self.renew_certificate(&io.config.mqtt.tls),
            false => CertificateProblems::new(),
        }
    }

    /// Takes a new certificate from the same files. The one in use stays when they hold none, or none that is better:
    /// certificate and key are renewed one after the other.
    fn renew_certificate(&mut self, config: &Tls) -> CertificateProblems {
        let (Some(tls), Some((cert_file, key_file))) = (&mut self.tls, config.files()) else {
            return CertificateProblems::new();
        };
        let kept = |why: &dyn std::fmt::Display| format!("the TLS certificate in use stays: {why}");
        let problem = match Certificate::load(cert_file, key_file) {
            Ok(new) if new.is_same(&tls.certificate) => return CertificateProblems::new(),
            Ok(new) if new.info.as_ref().is_some_and(|info| info.expired) && !tls.has_expired() => {
                kept(&format_args!("the one in {} has expired", cert_file.display()))
            }
            Ok(new) => {
                tls.certificate = new;
                return self.describe_certificate();
            }
            Err(error) => kept(&error),
        };
        error!("{problem}");
        vec![problem]
    }

    /// Logs which certificate is in use, and what is wrong with it.
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
