//! Applies changed settings of MQTT over TLS.

use mio::Interest;

use crate::config::Config;
use crate::net::error::BindError;
use crate::net::event_loop::inherited::Inherited;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::{self, MQTTS};
use crate::net::mqtt::listener::{Listeners, listen_tls};
use crate::net::mqtt::watched_certificate::{CertificateProblems, WatchedCertificate};

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
            return Ok(self.certificate.as_mut().map(WatchedCertificate::renew).unwrap_or_default());
        }
        let certificate = WatchedCertificate::load("mqtt.tls", new.files(), Some(&io.config.udp.public_ip))?;
        if old.port != new.port || certificate.is_none() || self.tls.is_none() {
            let mut tls = listen_tls(io.config.mqtt.host, new, shared, &mut Inherited::default())?;
            if let Some(tls) = &mut tls {
                io.registry
                    .register(tls, token::fixed(MQTTS), Interest::READABLE)
                    .map_err(|error| BindError::Setup("register", error))?;
            }
            self.tls = tls;
        }
        self.certificate = certificate;
        Ok(self.certificate.as_ref().map(WatchedCertificate::describe).unwrap_or_default())
    }
}
