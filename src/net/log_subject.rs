//! Which device, connection and call a log line is about.

use std::fmt;

use log::kv::{Error, Key, Source, Value, VisitSource};

/// The fields of every log line about a session. In a text line they stand in brackets in front of the message, in a JSON line
/// beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogSubject {
    /// The device's client id, at most 128 characters of it.
    pub(crate) device: Option<String>,
    /// Where its connection comes from, `ip:port`.
    pub(crate) address: Option<String>,
    /// The session id of its call: the one that the device was given or, before that, the gateway's own.
    pub(crate) session: Option<String>,
}

impl Source for LogSubject {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        if let Some(device) = &self.device {
            visitor.visit_pair(Key::from("device"), Value::from(device.as_str()))?;
        }
        if let Some(address) = &self.address {
            visitor.visit_pair(Key::from("address"), Value::from(address.as_str()))?;
        }
        if let Some(session) = &self.session {
            visitor.visit_pair(Key::from("session"), Value::from(session.as_str()))?;
        }
        Ok(())
    }
}

/// `[device address]`: for the message of a line about another session.
impl fmt::Display for LogSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.device, &self.address) {
            (Some(device), Some(address)) => write!(f, "[{device} {address}]"),
            (Some(device), None) => write!(f, "[{device}]"),
            (None, Some(address)) => write!(f, "[{address}]"),
            (None, None) => f.write_str("[gone]"),
        }
    }
}
