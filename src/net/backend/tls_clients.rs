//! The TLS clients of chat servers, by what they trust.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::path::PathBuf;

use crate::config::{ChatServerConfig, WebSocket};
use crate::net::backend::tls::TlsClient;

/// TLS clients by CA file and `insecure`. Each loads its authorities once.
#[derive(Default)]
pub(crate) struct TlsClients(HashMap<(Option<PathBuf>, bool), TlsClient>);

impl TlsClients {
    /// The client for this server. Its CA file is read on first use.
    ///
    /// # Errors
    /// Why the CA file cannot be read, as text.
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
                let read =
                    |path: &PathBuf| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
                let client = TlsClient::new(ca_file.as_ref().map(read).transpose()?, *insecure);
                Ok(entry.insert(client))
            }
        }
    }

    /// Drops all clients, so that changed CA files are read again.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
