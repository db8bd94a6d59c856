//! Without the feature `cluster`, a gateway is on its own.

use mio::event::Event;

use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::proto::identity::Mac;

/// Nothing.
#[derive(Default)]
pub(crate) struct ClusterPart {}

impl Gateway {
    pub(super) fn start_cluster(&mut self) -> Result<(), getrandom::Error> {
        let _ = &self.cluster;
        Ok(())
    }

    pub(super) fn on_cluster_event(&mut self, _: usize, _: &Event) -> bool {
        false
    }

    pub(super) fn advance_cluster(&mut self) {}

    pub(super) fn leave_cluster(&mut self) {}

    pub(super) fn register_device(&mut self, _: SessionId) {}

    pub(super) fn unregister_device(&mut self, _: SessionId, _: Mac) {}
}
