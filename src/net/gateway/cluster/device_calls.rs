//! Calls between devices of two gateways: their messages and audio as frames of the channels between gateways.
//!
//! A message that cannot be sent ends the calls with that gateway here. It ends them there as soon as it can be told
//! ([`Kind::CallsLost`]), before anything else is said to it. So nobody waits for what was lost.

use std::collections::BTreeSet;

use log::debug;

use crate::cluster::{ClusterState, GatewayId, Kind};
use crate::net::event_loop::io::Io;
use crate::net::gateway::Gateway;
use crate::net::gateway::cluster::ClusterPart;
use crate::net::gateway::worker_relay::Way;
use crate::proto::identity::Mac;
use crate::session::{DropReason, Place, RelayBody, RelayId, RelayMessage, decode_audio, encode_audio};

/// The leader's part in calls with devices of other gateways.
#[derive(Default)]
pub(crate) struct CallsWithGateways {
    /// The gateways that have not been told yet that calls with their devices have ended here.
    untold: BTreeSet<u64>,
    /// Where frames are written. Only its memory is reused.
    frame: Vec<u8>,
    /// Packets of audio that were sent, and received.
    packets: [u64; 2],
}

impl ClusterPart {
    /// Sends audio to a device of another gateway. Only the leader can.
    ///
    /// # Errors
    /// [`DropReason::RelayFull`] while Redis is slow or cannot be used.
    pub(crate) fn send_call_audio(
        &mut self,
        gateway: u64,
        call: RelayId,
        device: Mac,
        opus: &[u8],
        io: &Io,
    ) -> Result<(), DropReason> {
        self.calls.frame.clear();
        encode_audio(call, device, opus, &mut self.calls.frame);
        let (to, kind) = (GatewayId(gateway), Kind::CallAudio as u8);
        let sent = self.client.send(to, kind, 0, &self.calls.frame, io);
        sent.map_err(|_| DropReason::RelayFull)?;
        self.calls.packets[0] += 1;
        Ok(())
    }
}

impl ClusterPart {
    /// What passes between this gateway and others: by kind.
    pub(crate) fn passed(&self) -> [(&'static str, u64); 4] {
        let [sent, received] = self.calls.packets;
        [
            ("audio_sent", sent),
            ("audio_received", received),
            ("requests_sent", self.requests.sent),
            ("requests_answered", self.requests.answered),
        ]
    }
}

impl Gateway {
    // ----- to other gateways --------------------------------------------------------------------------------------

    pub(crate) fn send_call_message(&mut self, gateway: u64, message: &RelayMessage) {
        let to = GatewayId(gateway);
        let sent = self.tell_calls_lost(gateway)
            && self.cluster.client.send(to, Kind::CallMessage as u8, 0, &message.encode(), &self.io).is_ok();
        if sent {
            return;
        }
        self.cluster.calls.untold.insert(gateway);
        // Else the call has ended already.
        if !matches!(message.body, RelayBody::End(_)) {
            self.on_gateways_lost(Some(to));
        }
    }

    /// False when it cannot be told.
    fn tell_calls_lost(&mut self, gateway: u64) -> bool {
        if !self.cluster.calls.untold.contains(&gateway) {
            return true;
        }
        let kind = Kind::CallsLost as u8;
        let told = self.cluster.client.send(GatewayId(gateway), kind, 0, b"", &self.io).is_ok();
        if told {
            self.cluster.calls.untold.remove(&gateway);
        }
        told
    }

    /// Tells the gateways that could not be told yet. To be called when Redis may be reachable again.
    pub(crate) fn tell_all_calls_lost(&mut self) {
        let has_untold = !self.cluster.calls.untold.is_empty();
        if has_untold && self.cluster.client.state() == ClusterState::Connected {
            let untold = self.cluster.calls.untold.clone();
            untold.into_iter().for_each(|gateway| _ = self.tell_calls_lost(gateway));
        }
    }

    /// Redis is connected, for the first time or again: what others have sent meanwhile is lost.
    pub(crate) fn on_calls_redis_connected(&mut self) {
        self.on_gateways_lost(None);
        self.cluster.calls.untold.extend(self.cluster.client.peers().map(|peer| peer.id.0));
    }

    /// This gateway, or any, cannot be reached: the calls with its devices end.
    pub(crate) fn on_gateways_lost(&mut self, which: Option<GatewayId>) {
        let which = which.map(|GatewayId(number)| number);
        self.at_all_workers(move |gateway| gateway.end_calls_with_gateways(which));
    }

    // ----- from other gateways ------------------------------------------------------------------------------------

    pub(crate) fn on_call_message(&mut self, from: GatewayId, payload: &[u8]) {
        let Some(message) = RelayMessage::decode(payload) else {
            return debug!("cluster: gateway {from} has sent a message about a call that cannot be read");
        };
        match self.workers.other_worker_of(message.to) {
            Some(worker) => self.relay.send(worker, Way::FromGateway(from.0), message, &mut self.io),
            None => self.on_relay_message(Place::Gateway(from.0), message),
        }
    }

    pub(crate) fn on_call_audio(&mut self, from: GatewayId, payload: &[u8]) {
        self.cluster.calls.packets[1] += 1;
        let Some((call, to, opus)) = decode_audio(payload) else {
            return self.io.metrics.discarded(DropReason::BadFrame);
        };
        let Some(worker) = self.workers.other_worker_of(to) else {
            return self.on_relayed_audio(Place::Gateway(from.0), call, opus);
        };
        if let Err(reason) = self.relay.send_audio(worker, Way::FromGateway(from.0), (call, to), opus) {
            self.io.metrics.discarded(reason);
        }
    }
}
