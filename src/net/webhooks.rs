//! Tells HTTP servers of events, each on a thread of its own.
//!
//! A server that does not answer or fails is asked again, after a pause that doubles. Meanwhile events wait in the ring, which all
//! readers share; the oldest ones are lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac as _};
use log::{error, info, warn};
use sha2::Sha256;

use crate::admin::event::StoredEvent;
use crate::config::{Config, Webhook};
use crate::net::backend::http_client;
use crate::net::backend::upgrade::USER_AGENT;
use crate::net::event_ring::{EventStream, ReaderEnd};

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failure doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
const STACK_SIZE: usize = 256 << 10;

/// The threads, which end with it.
#[derive(Default)]
pub(crate) struct Webhooks {
    running: Vec<Running>,
    events: Option<EventStream>,
    counts: Arc<Counts>,
}

struct Running {
    webhook: Webhook,
    end: Arc<ReaderEnd>,
    /// Gets nothing, and ends with the thread.
    ended: Receiver<()>,
}

/// What became of events, for the metrics. Not 64 bits: MIPS and older ARM have no such atomic.
#[derive(Default)]
struct Counts {
    delivered: AtomicUsize,
    refused: AtomicUsize,
    failed: AtomicUsize,
    lost: AtomicUsize,
}

impl Webhooks {
    /// Tells the servers of this configuration of the events from now on; one that was told before goes on.
    pub(crate) fn configure(&mut self, config: &Arc<Config>, events: &EventStream) {
        self.events = Some(events.clone());
        self.running.retain(|running| {
            let stays = config.webhooks.contains(&running.webhook);
            if !stays {
                running.end.end_now();
            }
            stays
        });
        events.wake_readers();
        for webhook in &config.webhooks {
            if self.running.iter().any(|running| running.webhook == *webhook) {
                continue;
            }
            let end = Arc::new(ReaderEnd::default());
            let (alive, ended) = mpsc::channel();
            let reader = Reader {
                webhook: webhook.clone(),
                config: config.clone(),
                end: end.clone(),
                _alive: alive,
                cursor: events.last_id(),
                events: events.clone(),
                counts: self.counts.clone(),
            };
            let spawned = thread::Builder::new().name("webhook".to_owned()).stack_size(STACK_SIZE);
            match spawned.spawn(move || reader.run()) {
                Ok(_) => self.running.push(Running { webhook: webhook.clone(), end, ended }),
                Err(error) => error!("webhook {}: no thread can be started: {error}", webhook.shown_url()),
            }
        }
    }

    /// Waits until the events so far are delivered, `within` at most. What is not is lost.
    pub(crate) fn finish(self, within: Duration) {
        let until = Instant::now() + within;
        self.running.iter().for_each(|running| running.end.end_after_last());
        if let Some(events) = &self.events {
            events.wake_readers();
        }
        for Running { webhook, ended, .. } in &self.running {
            let left = until.saturating_duration_since(Instant::now());
            if ended.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                warn!("webhook {}: it does not get the last events before the end", webhook.shown_url());
            }
        }
    }

    /// How many events were delivered, were refused for good, failed once more, or were lost.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 4] {
        let Counts { delivered, refused, failed, lost } = &*self.counts;
        [("delivered", delivered), ("refused", refused), ("failed", failed), ("lost", lost)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed) as u64))
    }
}

impl Drop for Webhooks {
    fn drop(&mut self) {
        self.running.iter().for_each(|running| running.end.end_now());
        if let Some(events) = &self.events {
            events.wake_readers();
        }
    }
}

struct Reader {
    webhook: Webhook,
    config: Arc<Config>,
    end: Arc<ReaderEnd>,
    _alive: Sender<()>,
    /// The id of the last event that it has dealt with.
    cursor: u64,
    events: EventStream,
    counts: Arc<Counts>,
}

impl Reader {
    fn run(mut self) {
        while let Some((lost, event)) =
            self.events.wait_after(&mut self.cursor, |kind| self.webhook.wants(kind), &self.end)
        {
            if lost > 0 {
                self.counts.lost.fetch_add(lost as usize, Ordering::Relaxed);
                warn!(
                    "webhook {}: {lost} events, of all kinds, were not kept for it: it is too slow",
                    self.webhook.shown_url()
                );
            }
            self.deliver(&event);
        }
    }

    /// Asks until the server has taken the event, or has refused it for good.
    fn deliver(&self, event: &StoredEvent) {
        let url = self.webhook.shown_url();
        let request = request(&self.webhook, event);
        let (mut pause, mut failures) = (FIRST_PAUSE, 0);
        while !self.end.is_now() {
            let until = Instant::now() + TIMEOUT;
            let why = match http_client::status(
                &self.webhook.url.target,
                &self.config.websocket,
                &request,
                until,
            ) {
                Ok(200..=299) => {
                    self.counts.delivered.fetch_add(1, Ordering::Relaxed);
                    if failures > 0 {
                        info!("webhook {url}: works again after {failures} failures");
                    }
                    return;
                }
                Ok(status @ 400..=499) if ![408, 425, 429].contains(&status) => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                    return warn!(
                        "webhook {url}: HTTP {status} for {}: it is not sent again",
                        event.kind.name()
                    );
                }
                Ok(status) => format!("HTTP {status}"),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    format!("no answer in {} s", TIMEOUT.as_secs())
                }
                Err(error) => error.to_string(),
            };
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            failures += 1;
            if failures == 1 {
                warn!("webhook {url}: {why}; it is sent again, at first after 1 s, later every minute");
            }
            self.events.pause(pause, &self.end);
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

/// The whole request. Its signature is that of its body: hex of HMAC-SHA256 with the webhook's secret.
fn request(webhook: &Webhook, event: &StoredEvent) -> Vec<u8> {
    let target = &webhook.url.target;
    let signature = webhook.secret.as_ref().map_or(String::new(), |secret| {
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        hmac.update(event.json.as_bytes());
        format!("X-Webhook-Signature: sha256={}\r\n", HEXLOWER.encode(&hmac.finalize().into_bytes()))
    });
    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nX-Webhook-Event: {}\r\nX-Webhook-Id: {}\r\n{signature}Connection: close\r\n\r\n{}",
        target.path,
        target.authority,
        event.json.len(),
        event.kind.name(),
        event.id,
        event.json
    )
    .into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{EventKind, Secret};

    #[test]
    fn a_request_is_signed_and_its_body_is_the_event() {
        let event = StoredEvent { id: 7, kind: EventKind::CallEnded, json: "{\"id\":7}".into() };
        let webhook = |secret| Webhook {
            url: "https://hooks.example:8443/a?b=c".parse().unwrap(),
            secret: Secret::new(secret),
            events: Vec::new(),
        };
        let expected = |signature: &str| {
            format!(
                "POST /a?b=c HTTP/1.1\r\nHost: hooks.example:8443\r\nUser-Agent: {USER_AGENT}\r\n\
                 Content-Type: application/json\r\nContent-Length: 8\r\nX-Webhook-Event: call.ended\r\nX-Webhook-Id: 7\r\n\
                 {signature}Connection: close\r\n\r\n{{\"id\":7}}"
            )
        };
        // printf '{"id":7}' | openssl dgst -sha256 -hmac key
        let signed = "d58e0d14e8dea9485fd865ae1d313a5e2c0e2bf87bb3d66dd75ff442d5ad0e2a";
        for (secret, signature) in
            [("", String::new()), ("key", format!("X-Webhook-Signature: sha256={signed}\r\n"))]
        {
            let found = String::from_utf8(request(&webhook(secret), &event)).unwrap();
            assert_eq!(found, expected(&signature));
        }
    }
}
