//! Which HTTP servers are told of events.

use super::{HttpUrl, Secret};

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// What happened, for event streams and webhooks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum EventKind {
            $($(#[$doc])* $variant,)*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

event_kinds! {
    /// A device has logged in.
    DeviceOnline => "device.online",
    /// A device has left, or lost its connection.
    DeviceOffline => "device.offline",
    /// A device without a call reports something of its own accord.
    DeviceNotification => "device.notification",
    /// A device got its hello reply.
    CallStarted => "call.started",
    /// A call has ended, whether it was answered or not.
    CallEnded => "call.ended",
    /// A chat server begins to fail.
    ServerFailed => "server.failed",
    /// A chat server works again.
    ServerRecovered => "server.recovered",
    /// A certificate expires soon, or has expired.
    CertificateExpiring => "certificate.expiring",
    /// A changed configuration is in force.
    ConfigReloaded => "config.reloaded",
    /// A changed configuration was refused.
    ConfigRefused => "config.refused",
    /// A device, a call or a connection was refused because of a limit.
    LimitReached => "limit.reached",
}

/// A server that is told of events: an item of `webhooks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where events are posted to.
    pub url: HttpUrl,
    /// The key of the signatures; without one there are none.
    pub secret: Option<Secret>,
    /// Names of events, or their beginnings and a `*`; empty: all.
    pub events: Vec<String>,
}

impl Webhook {
    /// The URL without its path and query: with many services they are the secret that lets whoever has them post.
    pub fn shown_url(&self) -> String {
        let target = &self.url.target;
        let path = if target.path == "/" { "/" } else { "/***" };
        format!("http{}://{}{path}", if target.tls { "s" } else { "" }, target.authority)
    }

    /// Whether it is told of such an event.
    pub fn wants(&self, kind: EventKind) -> bool {
        self.events.is_empty() || self.events.iter().any(|pattern| matches(pattern, kind))
    }
}

fn matches(pattern: &str, kind: EventKind) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => kind.name().starts_with(start),
        None => kind.name() == pattern,
    }
}

/// The pattern, if it fits any event.
pub(super) fn event_pattern(text: &str) -> Option<String> {
    EventKind::ALL.iter().any(|kind| matches(text, *kind)).then(|| text.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_not_shown() {
        for (url, shown) in [
            ("http://a:81/", "http://a:81/"),
            ("https://hooks.example/services/T0/B1/x9", "https://hooks.example/***"),
            ("https://a/?key=x", "https://a/***"),
        ] {
            let webhook = Webhook { url: url.parse().unwrap(), secret: None, events: Vec::new() };
            assert_eq!(webhook.shown_url(), shown);
        }
    }

    #[test]
    fn patterns_choose_events() {
        let webhook = |events: &[&str]| Webhook {
            url: "http://a/".parse().unwrap(),
            secret: None,
            events: events.iter().map(|event| (*event).to_owned()).collect(),
        };
        for (events, wanted, unwanted) in [
            (&[][..], &["call.ended", "device.online"][..], &[][..]),
            (&["*"], &["call.ended", "device.online"], &[]),
            (&["call.*"], &["call.started", "call.ended"], &["device.online"]),
            (&["call.ended", "server.failed"], &["call.ended", "server.failed"], &["call.started"]),
        ] {
            for kind in EventKind::ALL {
                let found = webhook(events).wants(*kind);
                assert!(found || !wanted.contains(&kind.name()), "{events:?} {kind:?}");
                assert!(!found || !unwanted.contains(&kind.name()), "{events:?} {kind:?}");
            }
        }
        for text in ["", "call", "call.over", "x*", "*.ended"] {
            assert_eq!(event_pattern(text), None, "{text}");
        }
        assert_eq!(event_pattern("c*").as_deref(), Some("c*"));
    }
}
