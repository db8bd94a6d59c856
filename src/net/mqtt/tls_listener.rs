//! MQTT over TLS: the listener, its certificate, and a new certificate in mid-flight.

use std::net::{IpAddr, SocketAddr};

use log::{error, info, warn};
use mio::Interest;
use mio::net::TcpListener;

use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{Config, Tls};
use crate::net::event_loop::token;
use crate::net::gateway::file_watch::FileWatch;
use crate::net::gateway::{BindError, Gateway, MQTTS};
use crate::net::mqtt::certificate::{Acceptor, Certificate, CertificateError};
use crate::net::mqtt::listener;

/// The TLS listener and what its handshakes need.
pub(in crate::net) struct TlsListener {
    pub(in crate::net) listener: TcpListener,
    certificate: Certificate,
    file_watches: [FileWatch; 2],
}

impl TlsListener {
    /// Opens it, when there is to be TLS.
    ///
    /// # Errors
    /// A certificate that cannot be used, or a port that cannot be listened on.
    pub(in crate::net) fn open(host: IpAddr, tls: &Tls, shared: bool) -> Result<Option<Self>, BindError> {
        let Some((cert_file, key_file)) = tls.files() else { return Ok(None) };
        // Watched from before it is read, so that no change is missed.
        let watches = [cert_file, key_file].map(|path| FileWatch::new(path.to_owned()));
        let certificate = Certificate::load(cert_file, key_file).map_err(BindError::Certificate)?;
        let addr = SocketAddr::new(host, tls.port);
        let listener =
            listener::listen(addr, shared).map_err(|error| BindError::Port("MQTT over TLS", addr, error))?;
        Ok(Some(Self { listener, certificate, file_watches: watches }))
    }

    pub(in crate::net) fn acceptor(&self) -> &Acceptor {
        &self.certificate.acceptor
    }

    /// When its certificate expires, in seconds since 1970, where that can be told.
    pub(in crate::net) fn expires(&self) -> Option<i64> {
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

impl Gateway {
    /// Takes the TLS settings of `new` over, or nothing. A certificate whose files keep their names is only ever replaced
    /// by one that works; what is wrong with them is in the log, and no reason against the rest of the configuration.
    pub(in crate::net) fn reload_tls(&mut self, new: &Config) -> Result<(), BindError> {
        if self.draining || self.is_stopping() {
            return Ok(());
        }
        let (then, now) = (&self.config.mqtt.tls, &new.mqtt.tls);
        if then.files() == now.files() && then.port == now.port {
            self.renew_certificate();
            return Ok(());
        }
        match (now.files(), &mut self.tls_listener) {
            (Some((cert_file, key_file)), Some(door)) if then.port == now.port => {
                let watches = [cert_file, key_file].map(|path| FileWatch::new(path.to_owned()));
                door.certificate = Certificate::load(cert_file, key_file).map_err(BindError::Certificate)?;
                door.file_watches = watches;
            }
            _ => {
                let mut door = TlsListener::open(self.config.mqtt.host, now, !self.workers.is_single())?;
                if let Some(door) = &mut door {
                    let registry = self.poll.registry();
                    registry
                        .register(&mut door.listener, token::fixed(MQTTS), Interest::READABLE)
                        .map_err(|error| BindError::Setup("register", error))?;
                }
                self.tls_listener = door;
                self.watch_files();
            }
        }
        self.describe_certificate();
        Ok(())
    }

    /// Looks at the certificate's files, and takes a new certificate from them if they have changed.
    pub(in crate::net) fn check_certificate_files(&mut self) {
        if self.tls_listener.as_mut().is_some_and(TlsListener::files_changed) {
            self.renew_certificate();
        }
    }

    /// Takes a new certificate from the same files. The one in use stays when there is none, or none that is better:
    /// files are renewed one after the other.
    fn renew_certificate(&mut self) {
        let Some(door) = &mut self.tls_listener else { return };
        let Some((cert_file, key_file)) = self.config.mqtt.tls.files() else { return };
        let kept = |why: &dyn std::fmt::Display| format!("the TLS certificate in use stays: {why}");
        let sentence = match Certificate::load(cert_file, key_file) {
            Ok(new) if new.is_same(&door.certificate) => return,
            Ok(new) if new.info.as_ref().is_some_and(|facts| facts.expired) && !door.has_expired() => {
                kept(&format_args!("the one in {} has expired", cert_file.display()))
            }
            Ok(new) => {
                door.certificate = new;
                return self.describe_certificate();
            }
            Err(error) => kept(&error),
        };
        error!("{sentence}");
        self.admin.record_error(RecentErrorKind::SuspectSetting, None, &sentence);
    }

    /// Says which certificate is in use, and what is doubtful about it.
    pub(in crate::net) fn describe_certificate(&mut self) {
        let Some(door) = self.tls_listener.as_ref().filter(|_| self.workers.is_leader()) else { return };
        let Some(facts) = door.certificate.info.clone() else { return };
        info!("TLS certificate for {}, valid until {}", facts.names, facts.expires.0);
        for doubt in facts.warnings {
            let sentence = format!("mqtt.tls: {doubt}");
            if facts.expired {
                error!("{sentence}")
            } else {
                warn!("{sentence}")
            }
            self.admin.record_error(RecentErrorKind::SuspectSetting, None, &sentence);
        }
    }
}

impl From<CertificateError> for BindError {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(error)
    }
}
