//! `GET /metrics`: what was counted, and what is now, looked at when asked.

use std::time::SystemTime;

use super::proc_stats;
use crate::admin::prometheus::Kind::{Counter, Gauge};
use crate::admin::prometheus::Text;
use crate::logger;
use crate::net::gateway::Gateway;
use crate::net::metrics;
use crate::net::tls_listener::TlsDoor;
use crate::session::{CallState, Facts};

/// What a look at every session finds.
#[derive(Default)]
struct Census {
    online: usize,
    away: usize,
    calls: [usize; CallState::ALL.len()],
    dials: [usize; DIAL_STAGES.len()],
    /// Of the calls that go on.
    facts: Facts,
}

/// Stages of a WebSocket that is being opened.
const DIAL_STAGES: [&str; 4] = ["waiting", "connect", "tls", "upgrade"];

impl Gateway {
    pub(super) fn scrape(&self) -> String {
        let mut text = Text::default();
        let census = self.census();
        self.devices_into(&census, &mut text);
        self.calls_into(&census, &mut text);
        self.servers_into(&census, &mut text);
        self.audio_into(&census, &mut text);
        self.loop_into(&mut text);
        if self.team.leads() {
            self.process_into(&mut text);
        }
        text.finish()
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        for session in self.sessions.iter() {
            let core = &session.core;
            census.online += usize::from(core.is_online());
            census.away += usize::from(core.is_present() && !core.is_online());
            if let Some(call) = core.call() {
                census.calls[call.state as usize] += 1;
                metrics::add(&mut census.facts, call.facts);
            }
            let stage = session.backend.as_ref().map(|backend| match backend.is_waiting() {
                true => "waiting",
                false => backend.stage(),
            });
            // The open ones are at none of these.
            if let Some(place) = stage.and_then(|stage| DIAL_STAGES.iter().position(|known| *known == stage))
            {
                census.dials[place] += 1;
            }
        }
        census
    }

    fn devices_into(&self, census: &Census, text: &mut Text) {
        let metrics = &self.metrics;
        text.single(Gauge, "gateway_devices_online", "Devices that are let in.", census.online);
        text.single(Gauge, "gateway_devices_away", "Devices whose call waits for their return.", census.away);
        text.single(
            Counter,
            "gateway_mqtt_connections_total",
            "TCP connections accepted on the MQTT port.",
            metrics.connections,
        );
        text.single(
            Counter,
            "gateway_mqtt_turned_away_total",
            "Of these, closed at once because there were too many.",
            metrics.turned_away,
        );
        text.by(
            Counter,
            "gateway_tls_handshakes_total",
            "TLS handshakes of devices.",
            "result",
            [("ok", metrics.tls_handshakes), ("failed", metrics.tls_failed)],
        );
        if let Some(expires) = self.tls_door.as_ref().and_then(TlsDoor::expires) {
            text.single(
                Gauge,
                "gateway_tls_certificate_expires_timestamp_seconds",
                "When the certificate for devices expires.",
                expires,
            );
        }
        text.single(Counter, "gateway_logins_total", "Devices let in.", metrics.admitted);
        text.by(
            Counter,
            "gateway_logins_refused_total",
            "Devices refused at CONNECT.",
            "reason",
            metrics.refusals(),
        );
        text.by(
            Counter,
            "gateway_bad_texts_total",
            "Messages that are no JSON object.",
            "from",
            [("device", metrics.bad_device_texts), ("server", metrics.bad_server_texts)],
        );
    }

    fn calls_into(&self, census: &Census, text: &mut Text) {
        let metrics = &self.metrics;
        let states = CallState::ALL.iter().zip(census.calls).map(|(state, count)| (state.label(), count));
        text.by(Gauge, "gateway_calls", "Calls going on.", "state", states);
        text.by(
            Counter,
            "gateway_calls_ended_total",
            "Calls that are over, by what ended them.",
            "reason",
            metrics.calls_ended(),
        );
        text.by(
            Counter,
            "gateway_device_calls_total",
            "Calls between devices, asked for and answered.",
            "outcome",
            [("requested", metrics.device_calls), ("bridged", metrics.device_calls_bridged)],
        );
        text.histogram(
            "gateway_hello_to_reply_seconds",
            "From a device's hello to its reply.",
            &metrics.hello_to_reply,
        );
    }

    fn servers_into(&self, census: &Census, text: &mut Text) {
        let metrics = &self.metrics;
        text.single(Counter, "gateway_dials_total", "WebSockets asked for.", metrics.dials);
        text.single(Counter, "gateway_dials_opened_total", "WebSockets opened.", metrics.dials_opened);
        text.by(
            Gauge,
            "gateway_dials",
            "WebSockets being opened.",
            "stage",
            DIAL_STAGES.into_iter().zip(census.dials),
        );
        text.by(
            Counter,
            "gateway_server_failures_total",
            "Chat servers that failed, by stage.",
            "stage",
            metrics.dial_failures(),
        );
        text.single(
            Counter,
            "gateway_redials_total",
            "Calls that went on with another WebSocket.",
            metrics.redials,
        );
        text.single(
            Counter,
            "gateway_repeated_hellos_total",
            "Hellos of chat servers in mid-call.",
            metrics.repeated_hellos,
        );
    }

    fn audio_into(&self, census: &Census, text: &mut Text) {
        let metrics = &self.metrics;
        let mut all = metrics.over;
        metrics::add(&mut all, &census.facts);
        text.by(
            Counter,
            "gateway_audio_packets_total",
            "Audio packets passed on.",
            "direction",
            [("up", all.up_packets), ("down", all.down_packets)],
        );
        text.by(
            Counter,
            "gateway_audio_bytes_total",
            "Opus bytes in them.",
            "direction",
            [("up", all.up_bytes), ("down", all.down_bytes)],
        );
        text.single(
            Counter,
            "gateway_audio_lost_total",
            "Uplink packets that never came, counted when their call is over.",
            metrics.over.lost,
        );
        text.by(
            Counter,
            "gateway_audio_discarded_total",
            "Audio packets dropped.",
            "reason",
            metrics.discards(),
        );
        text.by(
            Counter,
            "gateway_datagrams_total",
            "UDP datagrams received, sent, and refused by the system.",
            "outcome",
            [
                ("received", metrics.datagrams_in),
                ("sent", metrics.datagrams_out),
                ("refused", metrics.datagrams_failed),
                ("receive_error", self.udp.receive_errors()),
            ],
        );
    }

    fn loop_into(&self, text: &mut Text) {
        let metrics = &self.metrics;
        text.by(
            Gauge,
            "gateway_queue_length",
            "What waits, by queue.",
            "queue",
            [
                ("datagrams", self.udp.queued()),
                ("dials", self.dial_queue.len()),
                ("names", self.tickets.len()),
                ("leftovers", self.ready.len()),
            ],
        );
        text.histogram("gateway_turn_seconds", "The working part of a turn of the loop.", &metrics.turns);
        text.single(
            Gauge,
            "gateway_sessions",
            "Connections of devices, with what is left of them.",
            self.sessions.len(),
        );
        text.single(Gauge, "gateway_api_connections", "Connections to this API.", self.admin.conns.len());
        text.single(
            Counter,
            "gateway_api_connections_total",
            "Connections to this API since the start.",
            metrics.api_connections,
        );
        text.single(
            Counter,
            "gateway_api_displaced_total",
            "Of these, closed for a newcomer.",
            metrics.api_displaced,
        );
        let classes = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let answers = classes.into_iter().zip(metrics.api_answers).skip(2);
        text.by(Counter, "gateway_api_answers_total", "Answers of this API by status.", "status", answers);
    }

    /// What there is once, however many workers there are.
    fn process_into(&self, text: &mut Text) {
        text.single(
            Gauge,
            "gateway_draining",
            "Whether the gateway takes no new devices and ends with its last call: 1 or 0.",
            u8::from(self.draining),
        );
        text.single(
            Counter,
            "gateway_log_lines_lost_total",
            "Log lines that could not be written.",
            logger::lost_lines(),
        );
        let tls = if cfg!(feature = "tls") { "true" } else { "false" };
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("tls", tls)];
        text.family(Gauge, "gateway_build_info", "The build; its value is always 1.", [(labels, 1)]);
        let started = self.admin.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        text.single(
            Gauge,
            "process_start_time_seconds",
            "When the gateway started, in seconds since 1970.",
            started.as_secs_f64(),
        );
        let process = proc_stats::read();
        let mut gauge = |name, help, value: Option<u64>| {
            if let Some(value) = value {
                text.single(Gauge, name, help, value);
            }
        };
        gauge("process_resident_memory_bytes", "Memory in use.", process.resident_bytes);
        gauge("process_virtual_memory_bytes", "Address space in use.", process.virtual_bytes);
        gauge("process_open_fds", "Descriptors in use.", process.descriptors);
        gauge("process_max_fds", "Descriptors allowed.", process.max_descriptors);
        gauge("process_threads", "Threads.", process.threads);
        if let Some(seconds) = process.cpu_seconds {
            text.single(Counter, "process_cpu_seconds_total", "CPU time used.", seconds);
        }
    }
}
