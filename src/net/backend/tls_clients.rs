//! TLS clients for chat servers, by what they trust.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::path::PathBuf;

use crate::config::{ChatServerConfig, WebSocket};
use crate::net::backend::tls::TlsClient;

/// TLS clients by what they trust; each loads its roots once, when first needed.
#[derive(Default)]
pub(crate) struct TlsClients(HashMap<(Option<PathBuf>, bool), TlsClient>);

impl TlsClients {
    /// The client for this server. CA files are read when first needed.
    ///
    /// # Errors
    /// Why the CA file cannot be read, in words.
    pub(crate) fn client(
        &mut self,
        server: &ChatServerConfig,
        defaults: &WebSocket,
    ) -> Result<&mut TlsClient, String> {
        let ca_file = server.ca_file.as_ref().or(defaults.ca_file.as_ref()).filter(|_| server.tls);
        let key = (ca_file.cloned(), server.insecure.unwrap_or(defaults.insecure));
        match self.0.entry(key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let (ca_file, insecure) = entry.key();
                let pem = match ca_file {
                    Some(path) => {
                        Some(fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?)
                    }
                    None => None,
                };
                let client = TlsClient::new(pem, *insecure);
                Ok(entry.insert(client))
            }
        }
    }

    /// Forgets all, so that changed files are read again.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
