//! Passes requests on to another OTA server, while their connections wait.

use crate::config::HttpUrl;
use crate::net::backend::dial::DialContext;
use crate::net::backend::resolver::Answer;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{self, OtaId, Role};
use crate::net::ota::connection::{Progress, connection_mut};
use crate::net::ota::message::OtaRequest;
use crate::net::ota::server::OtaServer;
use crate::net::ota::upstream_connection::{Asked, Upstream};

/// Requests to the other server at once. Beyond that, devices get this gateway's own answer at once.
const MAX_UPSTREAM_REQUESTS: usize = 64;

impl OtaServer {
    /// Whether another request may wait for the other server.
    pub(crate) fn may_pass_on(&mut self) -> bool {
        let waiting = self.connections.iter_mut().filter_map(|(_, conn)| conn.upstream());
        waiting.count() < MAX_UPSTREAM_REQUESTS
    }

    /// Passes this connection's request on. The device waits.
    pub(crate) fn pass_on(
        &mut self,
        id: OtaId,
        server: &HttpUrl,
        asked: Asked,
        request: &OtaRequest,
        io: &Io,
    ) {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return };
        let mut upstream = Upstream::new(server.clone(), asked, request, io.now);
        let client = &mut self.upstream_client;
        client.last_lookup_id += 1;
        upstream.lookup_id = client.last_lookup_id;
        let (host, port) = (&server.target.host, server.target.port);
        let answer = client.resolver.lookup(host, port, upstream.lookup_id, false, io.now);
        client.lookups.insert(upstream.lookup_id, id);
        let lookup_id = upstream.lookup_id;
        conn.wait_for(upstream);
        if let Some(answer) = answer {
            self.on_resolved(lookup_id, answer);
        }
    }

    /// Handles the answers of the resolver.
    pub(crate) fn collect_resolved(&mut self, io: &mut Io) {
        let mut resolved = Vec::new();
        self.upstream_client.resolver.take_finished(io.now, &mut resolved);
        for (lookup_id, answer) in resolved {
            if let Some(id) = self.on_resolved(lookup_id, answer) {
                io.run_queue.push(Task::Ota(id));
            }
        }
    }

    /// The connection that waits for this lookup, if it still does.
    fn on_resolved(&mut self, lookup_id: u64, answer: Answer) -> Option<OtaId> {
        let id = self.upstream_client.lookups.remove(&lookup_id)?;
        let upstream = connection_mut(&mut self.connections, id)?.upstream()?;
        if upstream.lookup_id != lookup_id {
            return None;
        }
        upstream.resolved(answer);
        Some(id)
    }

    /// The connection in this slot, if it waits for another server and an event of that one's connection has to be served.
    pub(crate) fn ready_upstream(&mut self, slot: usize, readable: bool) -> Option<OtaId> {
        let conn = self.connections.get_mut(slot)?;
        let epoch = conn.epoch;
        conn.upstream().filter(|upstream| upstream.is_ready(readable))?;
        Some(OtaId { slot: slot as u32, epoch })
    }

    /// Continues this connection's request to another server; none when it has none.
    pub(super) fn advance_upstream(&mut self, id: OtaId, io: &Io) -> Option<Progress> {
        let conn = connection_mut(&mut self.connections, id)?;
        let upstream = conn.upstream()?;
        let answer = match self.upstream_client.tls.client(upstream.server(), &io.config.websocket) {
            Ok(tls) => {
                let token = token::token(Role::OtaUpstream, id.slot as usize);
                let mut cx = DialContext { registry: &io.registry, token, now: io.now, tls };
                upstream.advance(&mut self.scratch, &mut cx)
            }
            Err(message) => Err(message),
        };
        Some(match answer {
            Ok(None) => Progress::Wait,
            Ok(Some(answer)) => conn.finish(Ok(answer)),
            Err(why) => conn.finish(Err(why)),
        })
    }

    /// Drops the TLS clients, so that changed CA files are read again.
    pub(crate) fn forget_tls_clients(&mut self) {
        self.upstream_client.tls.clear();
    }
}
