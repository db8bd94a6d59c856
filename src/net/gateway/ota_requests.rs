//! Answers devices' OTA requests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use log::{error, info, warn};
use mio::Waker;

use crate::admin::http::Method;
use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{Config, Ota, OtaDenial, Secret};
use crate::net::error::BindError;
use crate::net::event_loop::inherited::Inherited;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::OtaId;
use crate::net::gateway::Gateway;
use crate::net::log_limiter::suppressed_suffix;
use crate::net::media::credentials::local_address;
use crate::net::metrics::OtaOutcome;
use crate::net::ota::connection::Progress;
use crate::net::ota::message::{OtaRequest, OtaResponse};
use crate::net::ota::server::OtaServer;
use crate::net::ota::upstream_connection::{Asked, Finished, is_passed_on};
use crate::proto::identity::Mac;
use crate::proto::ota::{self, Endpoint, MqttSection, TLS_PORT};

/// Reads, writes and requests per dispatch and connection: enough for one request.
const STEP_BUDGET: usize = 8;

/// Listens on the OTA port. If the default port cannot be used, the gateway runs without: most often another gateway on the same
/// host has the port. If a port that was configured cannot be used, the gateway does not start.
pub(super) fn bind_ota(
    config: &Config,
    waker: Arc<Waker>,
    inherited: &mut Inherited,
) -> Result<OtaServer, BindError> {
    let Some(addr) = config.ota.enabled.then(|| SocketAddr::new(config.ota.host, config.ota.port)) else {
        return Ok(OtaServer::new(None, waker));
    };
    let failed = |error| BindError::Port("OTA", addr, error);
    match OtaServer::bind(addr, waker.clone(), inherited).map_err(failed) {
        Err(error) if config.ota.port == Ota::default().port => {
            warn!(
                "{error}; devices get no OTA answer: free that port or set another ota.port, then start again"
            );
            Ok(OtaServer::new(None, waker))
        }
        Err(error) => Err(error),
        Ok(server) => {
            let port = server.local_addr().ok().flatten().unwrap_or(addr).port();
            match server.denial(IpAddr::from([127, 0, 0, 1]), false, config) {
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
                Progress::Finished(finished) => self.finish_ota_request(id, *finished),
            }
        }
        self.io.run_queue.push(Task::Ota(id));
        self.ota.arm_timer(id, &mut self.io);
    }

    pub(super) fn on_ota_timer(&mut self, id: OtaId, tick: u64) {
        if self.ota.on_timer(id, tick, &mut self.io) {
            self.drive_ota(id);
        }
    }

    /// Answers a request by its path, or passes it on to another server and lets it wait.
    fn dispatch_ota_request(&mut self, id: OtaId, request: &OtaRequest) {
        let head_only = request.head.method == Method::HEAD;
        let sound = self.answer_sound(id, &request.head);
        let (outcome, response) = match sound.map_or_else(|| self.check_device(id, request), Err) {
            Ok(section) => {
                let Some(section) = self.pass_on(id, section, request) else { return };
                (OtaOutcome::Answered, self.own_answer(&section))
            }
            Err(answered) => answered,
        };
        self.io.metrics.ota_outcome(outcome);
        self.ota.respond(id, &response, head_only, &self.io);
    }

    /// Passes a request on, if there is another server for it; else gives the section back for this gateway's own answer.
    fn pass_on(&mut self, id: OtaId, section: MqttSection, request: &OtaRequest) -> Option<MqttSection> {
        let config = self.io.config.clone();
        let server = config.ota.upstream.as_ref();
        let Some(server) = server.filter(|_| request.head.method != Method::HEAD && !is_passed_on(request))
        else {
            return Some(section);
        };
        let asked = match request.head.path.ends_with("/activate") {
            true => Asked::Activation,
            false => Asked::Settings(section),
        };
        if self.ota.may_pass_on() {
            self.ota.pass_on(id, server, asked, request, &self.io);
        } else {
            let answer = Err("too many requests wait for it".to_owned());
            self.finish_ota_request(id, Finished { asked, answer });
        }
        None
    }

    /// Responds with what the other server has said, or else with this gateway's own answer.
    fn finish_ota_request(&mut self, id: OtaId, finished: Finished) {
        let Finished { asked, answer } = finished;
        let (why, response) = match (asked, answer) {
            (Asked::Settings(section), answer) => {
                let merged = answer.and_then(|(status, body)| match status {
                    200 => ota::merge(&body, &section, &self.ota.server_time())
                        .ok_or_else(|| "its answer is no JSON object".to_owned()),
                    status => Err(format!("HTTP {status}")),
                });
                match merged {
                    Ok(merged) => (None, OtaResponse::json(200, merged)),
                    Err(why) => (Some(why), self.own_answer(&section)),
                }
            }
            (Asked::Activation, Ok((status, body))) => (None, OtaResponse::json(status, body)),
            (Asked::Activation, Err(why)) => {
                (Some(why), OtaResponse::error(502, "The server that activates devices does not answer."))
            }
        };
        let outcome = if why.is_some() { OtaOutcome::UpstreamFailed } else { OtaOutcome::PassedOn };
        if let Some(why) = why
            && let Some(left_out) = self.ota.upstream_log.allows((), self.io.now)
            && let Some(server) = &self.io.config.ota.upstream
        {
            let more = suppressed_suffix(left_out);
            warn!("OTA: {server} (ota.upstream): {why}; devices get this gateway's own answer{more}");
            let message = format!("{server} (ota.upstream): {why}");
            self.admin.record_error(RecentErrorKind::OtaUpstreamFailed, None, &message);
        }
        self.io.metrics.ota_outcome(outcome);
        self.ota.respond(id, &response, false, &self.io);
    }

    fn own_answer(&self, section: &MqttSection) -> OtaResponse {
        OtaResponse::json(200, ota::answer(section, &self.ota.server_time()))
    }

    /// What the device that has sent this is told.
    ///
    /// # Errors
    /// Why it is told nothing.
    fn check_device(
        &mut self,
        id: OtaId,
        request: &OtaRequest,
    ) -> Result<MqttSection, (OtaOutcome, OtaResponse)> {
        let Some((ip, local)) = self.ota.addresses(id) else {
            return Err((OtaOutcome::Invalid, OtaResponse::error(400, "The connection is closed.")));
        };
        let invalid = |status, sentence| Err((OtaOutcome::Invalid, OtaResponse::error(status, sentence)));
        if let Some(denial) = self.ota.denial(ip, request.is_forwarded(), &self.io.config) {
            return Err(self.refuse_device(ip, None, denial));
        }
        if !self.ota.may_ask(ip, self.io.now) {
            return Err((OtaOutcome::Limited, OtaResponse::error(429, "This address has asked too often.")));
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
            return Err(self.refuse_device(ip, Some(mac), denial));
        }
        let Some(section) = self.mqtt_section(mac, request.head.host.as_deref(), local) else {
            warn!("OTA: [{ip}] {mac}: there is no IPv4 address to tell the device: set ota.endpoint");
            return invalid(500, "There is no IPv4 address to tell: set ota.endpoint.");
        };
        if let Some(left_out) = self.ota.answer_log.allows((), self.io.now) {
            let more = suppressed_suffix(left_out);
            info!("OTA: [{ip}] {mac} is told to connect to {}{more}", section.endpoint);
        }
        Ok(section)
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
            let device = format!("{ip}{mac}");
            self.admin.record_error(RecentErrorKind::OtaRefused, Some(&device), &denial.to_string());
        }
        (OtaOutcome::Refused, OtaResponse::error(403, "This device or its address is not allowed."))
    }

    /// What the device with this MAC, which asked this `Host` over a connection to this local address, is told.
    pub(super) fn mqtt_section(&self, mac: Mac, asked: Option<&str>, local: IpAddr) -> Option<MqttSection> {
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
