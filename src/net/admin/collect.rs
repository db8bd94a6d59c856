//! `GET /metrics`: the counters, and the present state, which is read when the metrics are requested.

use crate::admin::prometheus::MetricFamilies;
use crate::logger;
#[cfg(feature = "cluster")]
use crate::net::admin::collect_cluster::write_cluster_metrics;
use crate::net::admin::proc_stats;
use crate::net::admin::server::AdminServer;
use crate::net::backend::connector::Connector;
#[cfg(feature = "cluster")]
use crate::net::cluster::ClusterClient;
use crate::net::event_loop::io::Io;
use crate::net::history::History;
use crate::net::media::audio_port::AudioPort;
use crate::net::metrics;
use crate::net::mqtt::listener::Listeners;
use crate::net::mqtt::watched_certificate::WatchedCertificate;
use crate::net::sessions::table::Sessions;
use crate::net::webhooks::Webhooks;
use crate::session::{CallState, CallStats, LoginKey, SetupStage};

/// Counts over all sessions.
#[derive(Default)]
struct SessionCounts {
    online: usize,
    away: usize,
    login_keys: [usize; LoginKey::ALL.len()],
    calls: [usize; CallState::ALL.len()],
    dials: [usize; DIAL_STAGES.len()],
    /// Of the calls in progress.
    call_stats: CallStats,
    lost: u64,
}

/// Stages of a WebSocket that is being opened.
const DIAL_STAGES: [&str; 4] = ["waiting", "connect", "tls", "upgrade"];

/// The parts that the metrics are read from.
pub(crate) struct MetricSources<'a> {
    pub(crate) sessions: &'a Sessions,
    pub(crate) io: &'a Io,
    pub(crate) mqtt: &'a Listeners,
    pub(crate) connector: &'a Connector,
    pub(crate) audio: &'a AudioPort,
    pub(crate) admin: &'a AdminServer,
    pub(crate) history: &'a History,
    pub(crate) webhooks: &'a Webhooks,
    #[cfg(feature = "cluster")]
    pub(crate) cluster: &'a ClusterClient,
    /// What passes between this gateway and others, by kind.
    #[cfg(feature = "cluster")]
    pub(crate) passed: [(&'static str, u64); 4],
    pub(crate) draining: bool,
    /// The number of this worker, and how many there are.
    pub(crate) worker: usize,
    pub(crate) workers: usize,
}

impl MetricSources<'_> {
    /// The metrics of this worker.
    pub(crate) fn collect(&self) -> MetricFamilies {
        let mut families = MetricFamilies::default();
        let out = &mut families;
        let counts = self.count_sessions();
        self.write_scalars(&counts, out);
        self.write_device_metrics(&counts, out);
        self.write_call_metrics(&counts, out);
        self.write_server_metrics(&counts, out);
        self.write_audio_metrics(&counts, out);
        self.write_loop_metrics(out);
        self.write_worker_metrics(out);
        if self.worker == 0 {
            self.write_process_metrics(out);
            #[cfg(feature = "cluster")]
            write_cluster_metrics(self.cluster, self.passed, out);
        }
        families
    }

    fn count_sessions(&self) -> SessionCounts {
        let mut counts = SessionCounts::default();
        let current_key = self.io.config.mqtt.key_fingerprint();
        for session in self.sessions.iter() {
            let core = &session.core;
            counts.online += usize::from(core.is_online());
            counts.away += usize::from(core.is_present() && !core.is_online());
            if core.is_present() {
                counts.login_keys[core.login_key(current_key) as usize] += 1;
            }
            if let Some(call) = core.call() {
                counts.calls[call.state as usize] += 1;
                metrics::add(&mut counts.call_stats, &call.stats);
                counts.lost += call.settled_lost;
            }
            let stage = session.backend.as_ref().map(|backend| match backend.is_queued() {
                true => "waiting",
                false => backend.stage().label(),
            });
            // An open WebSocket is at none of these stages.
            if let Some(i) = stage.and_then(|stage| DIAL_STAGES.iter().position(|known| *known == stage)) {
                counts.dials[i] += 1;
            }
        }
        counts
    }

    fn write_scalars(&self, counts: &SessionCounts, out: &mut MetricFamilies) {
        let metrics = &self.io.metrics;
        out.gauge("gateway_devices_online", "Devices that are logged in.").value(counts.online);
        out.gauge("gateway_devices_away", "Disconnected devices whose call is kept for a while.")
            .value(counts.away);
        out.gauge("gateway_sessions", "Devices, kept calls and closing connections.")
            .value(self.sessions.len());
        out.gauge("gateway_api_connections", "API connections open now.").value(self.admin.connections.len());

        out.counter("gateway_mqtt_connections_total", "MQTT connections accepted.")
            .value(metrics.connections);
        out.counter("gateway_mqtt_turned_away_total", "MQTT connections over a limit, closed.")
            .value(metrics.turned_away_by_reason().map(|(_, count)| count).sum::<u64>());
        out.counter("gateway_logins_total", "Successful logins of devices.").value(metrics.admitted);
        out.counter("gateway_mac_limit_total", "Logins over 16 client ids per MAC.")
            .value(metrics.over_mac_limit);
        out.counter("gateway_dials_total", "WebSockets dialled.").value(metrics.dials);
        out.counter("gateway_dials_opened_total", "WebSockets opened.").value(metrics.dials_opened);
        out.counter("gateway_redials_total", "Calls continued over another WebSocket.")
            .value(metrics.redials);
        out.counter(
            "gateway_device_notifications_total",
            "JSON-RPC notifications of devices without a call.",
        )
        .value(metrics.device_notifications);
        out.counter("gateway_repeated_hellos_total", "Server hellos during a call.")
            .value(metrics.repeated_hellos);
        out.counter(
            "gateway_audio_lost_total",
            "Uplink packets lost, of calls in progress up to their last full ten seconds.",
        )
        .value(metrics.audio_lost + counts.lost);
        out.counter("gateway_api_connections_total", "API connections accepted.")
            .value(metrics.api_connections);
        out.counter("gateway_api_displaced_total", "API connections closed for others.")
            .value(metrics.api_displaced_by_reason().map(|(_, count)| count).sum::<u64>());
        out.counter("gateway_refusal_lines_left_out_total", "Log lines about refusals over a limit.")
            .value(metrics.refusal_lines_left_out);
    }

    fn write_device_metrics(&self, counts: &SessionCounts, out: &mut MetricFamilies) {
        let metrics = &self.io.metrics;
        let login_keys = LoginKey::ALL.iter().zip(counts.login_keys).map(|(key, count)| (key.label(), count));
        out.gauge(
            "gateway_devices_by_signature_key",
            "Devices online and away, by the signature key that they logged in with.",
        )
        .by("key", login_keys);
        out.counter(
            "gateway_macs_denied_total",
            "Devices refused or disconnected because of their MAC, by list.",
        )
        .by("list", metrics.mac_denials());
        out.counter(
            "gateway_connections_closed_for_others_total",
            "MQTT connections turned away, and API connections displaced.",
        )
        .by("reason", metrics.turned_away_by_reason().chain(metrics.api_displaced_by_reason()));
        out.counter(
            "gateway_logins_refused_late_total",
            "Failed logins whose answer was delayed or omitted.",
        )
        .by("answer", [("delayed", metrics.refusals_delayed), ("none", metrics.refusals_unanswered)]);
        out.counter("gateway_tls_handshakes_total", "TLS handshakes of devices.")
            .by("result", [("ok", metrics.tls_handshakes), ("failed", metrics.tls_failed)]);
        out.counter("gateway_logins_refused_total", "Devices refused at CONNECT.")
            .by("reason", metrics.refusals());
        out.counter("gateway_bad_texts_total", "Messages that were not a JSON object.")
            .by("from", [("device", metrics.bad_device_texts), ("server", metrics.bad_server_texts)]);
    }

    fn write_call_metrics(&self, counts: &SessionCounts, out: &mut MetricFamilies) {
        let metrics = &self.io.metrics;
        let states = CallState::ALL.iter().zip(counts.calls).map(|(state, count)| (state.label(), count));
        out.gauge("gateway_calls", "Calls in progress.").by("state", states);
        out.counter("gateway_calls_ended_total", "Calls that have ended, by reason.")
            .by("reason", metrics.calls_ended());
        out.counter("gateway_calls_by_verdict_total", "Calls that have ended, by what was wrong with them.")
            .by("verdict", metrics.verdicts());
        out.counter("gateway_device_calls_total", "Calls between devices, requested and answered.")
            .by("outcome", [("requested", metrics.device_calls), ("bridged", metrics.device_calls_bridged)]);
        let (packets, batches) = (metrics.relay_packets, metrics.relay_batches);
        let help = "What was passed to other workers for calls between devices: audio packets, and the batches that carried them.";
        out.counter("gateway_worker_relay_total", help)
            .by("of", [("packets", packets), ("batches", batches)]);
        out.histogram("gateway_hello_to_reply_seconds", "Time from a device's hello to the reply.")
            .seconds(&metrics.times.hello_to_reply);
        out.histogram("gateway_call_setup_seconds", "Time from a device's hello to the reply, by stage.")
            .seconds_by(
                "stage",
                SetupStage::ALL.iter().map(|stage| stage.label()).zip(&metrics.times.setup_stages),
            );
    }

    fn write_server_metrics(&self, counts: &SessionCounts, out: &mut MetricFamilies) {
        let metrics = &self.io.metrics;
        out.gauge("gateway_dials", "WebSockets being opened.")
            .by("stage", DIAL_STAGES.into_iter().zip(counts.dials));
        out.counter("gateway_server_failures_total", "Chat servers that failed, by stage.")
            .by("stage", metrics.dial_failures());
    }

    fn write_audio_metrics(&self, counts: &SessionCounts, out: &mut MetricFamilies) {
        let metrics = &self.io.metrics;
        let mut all = metrics.ended_calls;
        metrics::add(&mut all, &counts.call_stats);
        out.counter("gateway_audio_packets_total", "Audio packets forwarded.")
            .by("direction", [("up", all.up_packets), ("down", all.down_packets)]);
        out.counter("gateway_audio_bytes_total", "Opus bytes forwarded.")
            .by("direction", [("up", all.up_bytes), ("down", all.down_bytes)]);
        out.counter(
            "gateway_audio_discarded_total",
            "Audio packets dropped, or held until their source is known (path_held).",
        )
        .by("reason", metrics.discards());
        out.counter("gateway_datagrams_total", "UDP datagrams received, sent, and refused by the system.")
            .by(
                "outcome",
                [
                    ("received", metrics.datagrams_in),
                    ("sent", metrics.datagrams_out),
                    ("refused", metrics.datagrams_failed),
                    ("receive_error", self.audio.socket.receive_errors()),
                ],
            );
    }

    fn write_loop_metrics(&self, out: &mut MetricFamilies) {
        let metrics = &self.io.metrics;
        out.gauge("gateway_queue_length", "Entries waiting, by queue.").by(
            "queue",
            [
                ("datagrams", self.audio.socket.queued()),
                ("dials", self.connector.queued()),
                ("names", self.connector.pending_lookups()),
                ("leftovers", self.io.run_queue.len()),
            ],
        );
        out.histogram(
            "gateway_turn_seconds",
            "Time an iteration of the loop takes, without waiting for events.",
        )
        .seconds(&metrics.times.iterations);
        let classes = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let answers = classes.into_iter().zip(metrics.api_answers).skip(2);
        out.counter("gateway_api_answers_total", "Responses of this API, by status.").by("status", answers);
        out.counter("gateway_api_refused_total", "Callers of this API that were refused.")
            .by("reason", metrics.api_refusals());
        out.counter("gateway_ota_requests_total", "OTA requests of devices.")
            .by("result", metrics.ota_outcomes());
        out.counter("gateway_api_tls_handshakes_total", "TLS handshakes of this API.")
            .by("result", [("ok", metrics.api_tls_handshakes), ("failed", metrics.api_tls_failed)]);
    }

    /// How the load is spread over the workers. Each reports 0 for the others, so that the sum has the number of each.
    fn write_worker_metrics(&self, out: &mut MetricFamilies) {
        let names: Vec<String> = (0..self.workers).map(|worker| worker.to_string()).collect();
        let busy = self.io.metrics.times.iterations.sum().as_secs_f64();
        let datagrams = self.io.metrics.datagrams_in as f64;
        let samples = |own: f64| {
            let value = move |worker| if worker == self.worker { own } else { 0.0 };
            names.iter().enumerate().map(move |(worker, name)| (name.as_str(), value(worker)))
        };
        let index = &self.sessions.index;
        out.gauge("gateway_worker_devices", "Devices of each worker.")
            .by("worker", samples(index.devices() as f64));
        out.gauge("gateway_worker_calls", "Calls of each worker.")
            .by("worker", samples(index.calls() as f64));
        out.counter("gateway_worker_datagrams_total", "Datagrams that each worker received.")
            .by("worker", samples(datagrams));
        out.counter("gateway_worker_busy_seconds_total", "Time that each worker did not wait.")
            .by("worker", samples(busy));
    }

    /// What is kept and told of calls and events.
    fn write_record_metrics(&self, out: &mut MetricFamilies) {
        out.gauge("gateway_history_calls", "Calls that have ended and are kept in memory.")
            .value(self.history.calls().len());
        out.counter("gateway_history_records_lost_total", "Calls that could not be written to history.file.")
            .value(self.history.lost_records());
        out.gauge("gateway_event_streams", "Clients of this API that read events.")
            .value(self.admin.event_streams());
        let help = "Events for webhooks: delivered, refused by the server for good, failed attempts, and those of all kinds that were lost.";
        out.counter("gateway_webhook_events_total", help).by("result", self.webhooks.counts());
    }

    /// What is not added up over the workers: only the leader reports it, behind what all report.
    fn write_process_metrics(&self, out: &mut MetricFamilies) {
        if let Some(expires) = self.mqtt.certificate.as_ref().and_then(WatchedCertificate::expires) {
            out.gauge(
                "gateway_tls_certificate_expires_timestamp_seconds",
                "When the certificate for devices expires.",
            )
            .value(expires);
        }
        if let Some(expires) = self.admin.certificate.as_ref().and_then(WatchedCertificate::expires) {
            out.gauge(
                "gateway_api_tls_certificate_expires_timestamp_seconds",
                "When this API's own certificate expires.",
            )
            .value(expires);
        }
        out.gauge(
            "gateway_draining",
            "1 while the gateway drains: it accepts no new devices and ends after its last call.",
        )
        .value(u8::from(self.draining));
        out.counter("gateway_log_lines_lost_total", "Log lines that could not be written.")
            .value(logger::lost_lines());
        self.write_record_metrics(out);
        let tls = if cfg!(feature = "tls") { "true" } else { "false" };
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("tls", tls)];
        out.gauge("gateway_build_info", "The build; its value is always 1.").with(&labels, 1);
        out.gauge("process_start_time_seconds", "When the gateway started, in seconds since 1970.")
            .value(self.admin.started.as_secs_f64());
        let process = proc_stats::read();
        let mut gauge = |name, help, value: Option<u64>| {
            if let Some(value) = value {
                out.gauge(name, help).value(value);
            }
        };
        gauge("process_resident_memory_bytes", "Resident memory.", process.resident_bytes);
        gauge("process_virtual_memory_bytes", "Virtual memory.", process.virtual_bytes);
        gauge("process_open_fds", "Open file descriptors.", process.open_fds);
        gauge("process_max_fds", "Limit of open file descriptors.", process.max_fds);
        gauge("process_threads", "Threads.", process.threads);
        if let Some(seconds) = process.cpu_seconds {
            out.counter("process_cpu_seconds_total", "CPU time used.").value(seconds);
        }
    }
}
