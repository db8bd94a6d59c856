//! Management requests that the dashboard needs: chat servers, a new device, and devices that may not connect.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use log::info;

use crate::admin::device_setup::{DeviceSetup, OtaObstacle, parse_mac};
use crate::admin::gateways::GatewayDto;
use crate::admin::params::{BadParameter, Members};
use crate::admin::response::Response;
use crate::admin::servers::{ServerDto, ServerList};
use crate::admin::worker_answer::{Answer, json_response};
use crate::config::{ChatServerConfig, PublicIp};
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::admin_handlers::{bad_json, bad_parameter};
use crate::net::gateway::handle::Addresses;
use crate::net::gateway::notify_requests::no_address;
use crate::net::media::credentials::local_address;
use crate::proto::identity::{ClientId, Mac, MacPrefix};
use crate::session::Core;
use crate::text;

/// The path under which a device asks for its settings.
const OTA_PATH: &str = "/xiaozhi/ota/";
/// Devices that operators may deny at once: a list in memory, which whoever has a token could otherwise fill without end.
const MAX_DENIED: usize = 1000;

impl Gateway {
    pub(super) fn handle_servers(&self) -> Answer {
        let config = &self.io.config;
        let mut calls: HashMap<(&str, &str), usize> = HashMap::new();
        for session in self.sessions.iter() {
            let server = session.core.call().and_then(|call| call.server);
            if let Some((server, client_id)) = server.zip(session.core.client_id()) {
                *calls.entry((config.route_name(client_id), &server.url)).or_default() += 1;
            }
        }
        let describe = |(route, server): (&str, &Arc<ChatServerConfig>)| ServerDto {
            route: route.into(),
            url: server.to_string().into(),
            calls: calls.get(&(route, server.url.as_str())).copied().unwrap_or_default(),
            status: self.servers.status(server, self.io.now),
        };
        Answer::Servers(ServerList { servers: config.servers().map(describe).collect() })
    }

    /// This gateway, and the others that are heard through Redis.
    pub(super) fn handle_gateways(&self) -> Response {
        let [mqtt, udp, api] = self.reachable_addresses(local_address());
        let own = GatewayDto {
            name: None,
            run: None,
            is_self: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mqtt,
            udp,
            api,
            devices: self.all_devices(),
            calls: self.all_calls(),
            draining: self.lifecycle.is_draining(),
            heard_seconds: 0,
        };
        json_response(&self.list_gateways(own))
    }

    pub(super) fn handle_list_denied(&self) -> Response {
        let mqtt = &self.io.config.mqtt;
        let shown = |macs: &mut dyn Iterator<Item = String>| macs.collect::<Vec<_>>();
        json_response(&serde_json::json!({
            "denied": shown(&mut mqtt.denied_by_operator.iter().map(Mac::to_string)),
            "configured": shown(&mut mqtt.denied_macs.as_slice().iter().map(MacPrefix::to_string)),
        }))
    }

    /// Denies a device until the gateway restarts, or takes that back. Each worker has its own copy of the list, so that a login
    /// needs no lock.
    pub(super) fn handle_deny(&mut self, name: &str, deny: bool) -> Result<Answer, Response> {
        let client_id = ClientId::parse(name).map(|client_id| client_id.mac());
        let Ok(mac) = client_id.or_else(|_| name.parse()) else {
            let allowed = "a client id, or a MAC address like aa:bb:cc:dd:ee:ff";
            let bad = BadParameter::new("clientId", &text::quoted(name), allowed);
            return Err(Response::error(404, "bad_client_id", &format!("{bad}.")));
        };
        let mqtt = &self.io.config.mqtt;
        let is_listed = mqtt.denied_by_operator.contains(&mac);
        if !deny && mqtt.denied_macs.contains(mac) {
            let why = "mqtt.denied_macs has this MAC: change the configuration.";
            return Err(Response::error(409, "denied_by_config", why));
        }
        if !deny && !is_listed {
            return Err(Response::error(404, "not_denied", "No operator has denied this MAC."));
        }
        if deny && !is_listed && mqtt.denied_by_operator.len() >= MAX_DENIED {
            let why = format!("{MAX_DENIED} MACs are denied: put them into mqtt.denied_macs.");
            return Err(Response::error(409, "too_many_denied", &why));
        }
        let config = Arc::make_mut(&mut self.io.config);
        match deny {
            true => config.mqtt.denied_by_operator.insert(mac),
            false => config.mqtt.denied_by_operator.remove(&mac),
        };
        if self.workers.is_leader() {
            let what = if deny { "is denied until the gateway restarts" } else { "may connect again" };
            info!("an operator: {mac} {what}");
        }
        let is_present = |id: &SessionId| self.sessions.core(*id).is_some_and(|core| core.is_present());
        let present: Vec<_> = self.sessions.by_mac(mac).filter(is_present).collect();
        let disconnected = if deny { present.len() } else { 0 };
        if deny {
            present.into_iter().for_each(|id| self.drive(id, Core::on_reload));
        }
        Ok(Answer::Denied { mac, denied: deny, disconnected })
    }

    /// Where others reach MQTT, audio and the API of this gateway: `local_ip` stands for a listener on all addresses. The last is empty
    /// without an API.
    pub(super) fn reachable_addresses(&self, local_ip: Option<Ipv4Addr>) -> [String; 3] {
        let Addresses { mqtt, udp, api, .. } = self.addresses;
        let reachable = |mut addr: SocketAddr| {
            if let Some(ip) = local_ip.filter(|_| addr.ip().is_unspecified()) {
                addr.set_ip(ip.into());
            }
            addr.to_string()
        };
        let udp = match &self.io.config.udp.public_ip {
            PublicIp::Auto => reachable(udp),
            PublicIp::Ip(ip) => SocketAddr::new(*ip, udp.port()).to_string(),
            public @ PublicIp::Host(_) => format!("{public}:{}", udp.port()),
        };
        [reachable(mqtt), udp, api.map(reachable).unwrap_or_default()]
    }

    /// Tells an operator what a new device needs.
    pub(super) fn handle_credentials(&self, body: &str) -> Result<Response, Response> {
        let members = Members::of_body(body).map_err(|_| bad_json())?;
        let mac = parse_mac(&members).map_err(bad_parameter)?;
        // The operator's own connection to the API says nothing about the network of the device.
        let unspecified = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let mqtt = self.mqtt_section(mac, None, unspecified).ok_or_else(no_address)?;
        let host = mqtt.endpoint.split(':').next().unwrap_or_default();
        let ota_url = self.addresses.ota.map(|ota| format!("http://{host}:{}{OTA_PATH}", ota.port()));
        let obstacle = match (&ota_url, self.io.config.ota.mac_denial(mac)) {
            (None, _) => Some(OtaObstacle::Off),
            (Some(_), Some(_)) => Some(OtaObstacle::Mac),
            (Some(_), None) => None,
        };
        let mqtt = Some(mqtt).filter(|_| self.io.config.api.issue_credentials);
        if mqtt.is_some() {
            info!("an operator is told the credentials of {mac}");
        }
        Ok(json_response(&DeviceSetup::new(mac, mqtt, ota_url, obstacle)))
    }
}
