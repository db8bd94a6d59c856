//! Operators' denials of devices hold at all gateways: each tells the others what it was asked, and a new one what holds.

use crate::admin::routes::Endpoint;
use crate::admin::worker_answer::Answer;
use crate::cluster::{GatewayId, Kind};
use crate::net::admin::request::AdminRequest;
use crate::net::gateway::Gateway;
use crate::net::gateway::notify_requests::NOBODY;
use crate::proto::identity::Mac;

/// Bytes of a MAC.
const MAC_LEN: usize = 6;

impl Gateway {
    /// An operator has asked this gateway.
    pub(crate) fn tell_denied(&mut self, request_id: u64, answer: &Answer) {
        let Answer::Denied { mac, denied, .. } = answer else { return };
        if request_id != NOBODY {
            let kind = if *denied { Kind::Denied } else { Kind::Allowed };
            let gateways: Vec<_> = self.cluster.client.peers().map(|peer| peer.id).collect();
            for gateway in gateways {
                // One that does not hear it asks when it is heard again.
                let _ = self.cluster.client.send(gateway, kind as u8, 0, &mac.bytes(), &self.io);
            }
        }
    }

    /// Another gateway was heard for the first time.
    pub(crate) fn tell_all_denied(&mut self, gateway: GatewayId) {
        let denied: Vec<u8> =
            self.io.config.mqtt.denied_by_operator.iter().flat_map(|mac| mac.bytes()).collect();
        if !denied.is_empty() {
            let _ = self.cluster.client.send(gateway, Kind::Denied as u8, 0, &denied, &self.io);
        }
    }

    pub(crate) fn on_denied_elsewhere(&mut self, macs: &[u8], denied: bool) {
        let endpoint = if denied { Endpoint::Deny } else { Endpoint::Allow };
        for mac in macs.as_chunks::<MAC_LEN>().0 {
            let mac = Mac::from(*mac);
            if self.io.config.mqtt.denied_by_operator.contains(&mac) != denied {
                let request = AdminRequest::new(NOBODY, endpoint, mac.to_string(), String::new());
                self.hand_to_workers(request);
            }
        }
    }
}
