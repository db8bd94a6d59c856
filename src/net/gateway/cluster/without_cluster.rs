//! Without the feature `cluster`, a gateway is on its own.

use crate::admin::gateways::{ClusterDto, GatewayDto, GatewayList};
use crate::admin::worker_answer::Answer;
use crate::config::Config;
use crate::net::admin::list_selection::Selection;
use crate::net::admin::request::{AdminRequest, AdminResponse};
use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::proto::identity::Mac;
use crate::proto::mqtt::Packet;
use crate::session::{CloseReason, DropReason, RelayId, RelayMessage};

/// Nothing.
#[derive(Default)]
pub(crate) struct ClusterPart {
    pub(crate) client: NoClient,
    pub(crate) remote_calls: NoRemote,
    pub(crate) remote_devices: NoRemote,
}

/// No Redis.
#[derive(Default)]
pub(crate) struct NoClient;

impl NoClient {
    pub(crate) fn on_reload(&self, _: &Config) {}
}

/// No other gateway.
#[derive(Default)]
pub(crate) struct NoRemote;

impl NoRemote {
    pub(crate) fn holds(&self, _: SessionId) -> bool {
        false
    }

    pub(crate) fn len(&self) -> usize {
        0
    }

    pub(crate) fn contains(&self, _: SessionId) -> bool {
        false
    }

    pub(crate) fn is_attached(&self, _: SessionId) -> bool {
        false
    }

    pub(crate) fn forget(&self, _: SessionId) {}
}

impl ClusterPart {
    pub(crate) fn send_call_audio(
        &mut self,
        _: u64,
        _: RelayId,
        _: Mac,
        _: &[u8],
        _: &Io,
    ) -> Result<(), DropReason> {
        Err(DropReason::NoPeer)
    }
}

impl Gateway {
    pub(crate) fn start_cluster(&mut self) -> Result<(), getrandom::Error> {
        let _ = &self.cluster;
        Ok(())
    }

    pub(crate) fn list_gateways(&self, own: GatewayDto) -> GatewayList {
        let cluster = ClusterDto { state: "off", redis: None, unreachable_seconds: None, reason: None };
        GatewayList { cluster, gateways: vec![own] }
    }

    pub(crate) fn on_cluster_event(&mut self, _: usize) -> bool {
        false
    }

    pub(crate) fn advance_cluster(&mut self) {}

    #[cfg(target_os = "linux")]
    pub(crate) fn resign_from_cluster(&mut self) {}

    pub(crate) fn collect_answer(&mut self, response: AdminResponse) -> Option<Answer> {
        self.admin.collect(response, &self.io)
    }

    pub(crate) fn ask_all_gateways(&mut self, _: &AdminRequest, selection: &Selection) -> (bool, bool) {
        (selection.contains("", true), false)
    }

    pub(crate) fn own_run(&self) -> u64 {
        0
    }

    pub(crate) fn on_own_answer(&mut self, request_id: u64, answer: Answer) {
        self.admin.finish(request_id, &answer.into_response(), &mut self.io);
    }

    pub(crate) fn send_call_message(&mut self, _: u64, _: &RelayMessage) {}

    pub(crate) fn leave_cluster(&mut self) {}

    pub(crate) fn register_device(&mut self, _: SessionId) {}

    pub(crate) fn unregister_device(&mut self, _: SessionId, _: Mac) {}

    pub(crate) fn pass_packet_on(&mut self, _: SessionId, _: &Packet<'_>, _: &[u8]) -> bool {
        false
    }

    pub(crate) fn leave_remote_call(&mut self, _: SessionId, _: &CloseReason) {}

    pub(crate) fn gateway_with_call_of(&self, _: &AdminRequest) -> Option<u64> {
        None
    }
}
