//! Answers devices' OTA requests.

use std::net::{IpAddr, SocketAddr};

use log::{error, info, warn};

use crate::admin::http::Method;
use crate::config::{Config, Ota, OtaDenial, Secret};
use crate::net::error::BindError;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::OtaId;
use crate::net::gateway::Gateway;
use crate::net::log_limiter::suppressed_suffix;
use crate::net::media::credentials::local_address;
use crate::net::metrics::OtaOutcome;
use crate::net::ota::connection::{OtaRequest, OtaResponse, Progress};
use crate::net::ota::server::OtaServer;
use crate::proto::identity::Mac;
use crate::proto::ota::{self, Endpoint, MqttSection, TLS_PORT};

/// Reads, writes and requests per dispatch and connection: enough for one request.
const STEP_BUDGET: usize = 8;

/// Listens on the OTA port. If the default port cannot be used, the gateway runs without: most often another gateway on the same
/// host has the port. If a port that was configured cannot be used, the gateway does not start.
pub(super) fn bind_ota(config: &Config) -> Result<OtaServer, BindError> {
    let Some(addr) = config.ota.enabled.then(|| SocketAddr::new(config.ota.host, config.ota.port)) else {
        return Ok(OtaServer::new(None));
    };
    match OtaServer::bind(addr).map_err(|error| BindError::Port("OTA", addr, error)) {
        Err(error) if config.ota.port == Ota::default().port => {
            warn!(
                "{error}; devices get no OTA answer: free that port or set another ota.port, then start again"
            );
            Ok(OtaServer::new(None))
        }
        Err(error) => Err(error),
        Ok(server) => {
            let port = server.local_addr().ok().flatten().unwrap_or(addr).port();
            match server.denial(IpAddr::from([127, 0, 0, 1]), config) {
                Some(denial @ OtaDenial::Unprotected) => {
                    error!("ota: no device is answered on port {port}: {denial}");
                }
                _ => info!("devices ask for their settings at http://HOST:{port}/xiaozhi/ota/"),
            }
            Ok(server)
        }
    }
}

impl Gateway {
    /// Reads, answers and writes as far as the socket allows, within the budget. May be called at any time.
    pub(super) fn drive_ota(&mut self, id: OtaId) {
        for _ in 0..STEP_BUDGET {
            match self.ota.advance(id, &self.io) {
                Progress::Continue => {}
                Progress::Wait => return self.ota.arm_timer(id, &mut self.io),
                Progress::Close => return self.ota.close_connection(id),
                Progress::Request(request) => self.dispatch_ota_request(id, &request),
            }
        }
        self.io.run_queue.push(Task::Ota(id));
        self.ota.arm_timer(id, &mut self.io);
    }

    /// Answers a request, by its path.
    fn dispatch_ota_request(&mut self, id: OtaId, request: &OtaRequest) {
        let (outcome, response) = self.answer_device(id, request);
        self.io.metrics.ota_outcome(outcome);
        self.ota.respond(id, &response, request.head.method == Method::HEAD, &self.io);
    }

    fn answer_device(&mut self, id: OtaId, request: &OtaRequest) -> (OtaOutcome, OtaResponse) {
        let Some((ip, local)) = self.ota.addresses(id) else {
            return (OtaOutcome::Invalid, OtaResponse::error(400, "The connection is closed."));
        };
        let invalid = |status, sentence| (OtaOutcome::Invalid, OtaResponse::error(status, sentence));
        if let Some(denial) = self.ota.denial(ip, &self.io.config) {
            return self.refuse_device(ip, None, denial);
        }
        if !self.ota.may_ask(ip, self.io.now) {
            return (OtaOutcome::Limited, OtaResponse::error(429, "This address has asked too often."));
        }
        if ![Method::GET, Method::POST, Method::HEAD].contains(&request.head.method) {
            return invalid(405, "A device asks with GET or POST.");
        }
        // A device sends neither field; a page of a web site must not read passwords.
        if request.head.origin.is_some() || request.head.is_cross_site {
            return invalid(403, "Web pages get no answer.");
        }
        let Some(mac) = request.field("device-id").and_then(|mac| mac.parse::<Mac>().ok()) else {
            return invalid(
                400,
                "This is the OTA address of mqtt-websocket-proxy, and works: enter it in the device. A device sends its MAC in the \
                 header field Device-Id.",
            );
        };
        if let Some(denial) = self.io.config.ota.mac_denial(mac) {
            return self.refuse_device(ip, Some(mac), denial);
        }
        let Some(section) = self.mqtt_section(mac, request.head.host.as_deref(), local) else {
            warn!("OTA: [{ip}] {mac}: there is no IPv4 address to tell the device: set ota.endpoint");
            return invalid(500, "There is no IPv4 address to tell: set ota.endpoint.");
        };
        if let Some(left_out) = self.ota.answer_log.allows((), self.io.now) {
            let more = suppressed_suffix(left_out);
            info!("OTA: [{ip}] {mac} is told to connect to {}{more}", section.endpoint);
        }
        let answer = ota::answer(&section, &self.ota.server_time());
        (OtaOutcome::Answered, OtaResponse::json(200, answer))
    }

    fn refuse_device(
        &mut self,
        ip: IpAddr,
        mac: Option<Mac>,
        denial: OtaDenial,
    ) -> (OtaOutcome, OtaResponse) {
        if let Some(more) = self.mqtt.refusals().log.allows(ip, &mut self.io) {
            let mac = mac.map(|mac| format!(" {mac}")).unwrap_or_default();
            warn!("OTA: [{ip}]{mac} refused: {denial}{more}");
        }
        (OtaOutcome::Refused, OtaResponse::error(403, "This device or its address is not allowed."))
    }

    /// What the device with this MAC, which asked this `Host` over a connection to this local address, is told.
    fn mqtt_section(&self, mac: Mac, asked: Option<&str>, local: IpAddr) -> Option<MqttSection> {
        let config = &self.io.config;
        let (host, port) =
            config.ota_endpoint(asked, local).or_else(|| Some((local_address()?.to_string(), None)))?;
        let serves_tls = self.addresses.mqtts.is_some_and(|mqtts| mqtts.port() == TLS_PORT)
            && self.mqtt.certificate.as_ref().is_some_and(|watched| watched.is_for_devices(&host));
        let port = port.or_else(|| (!serves_tls).then_some(self.addresses.mqtt.port()));
        let key = config.mqtt.signature_key.as_ref().map(Secret::as_bytes);
        let endpoint = Endpoint { host, port }.to_string();
        Some(MqttSection::new(endpoint, mac, &config.ota.group, None, key, config.ota.keepalive))
    }
}
