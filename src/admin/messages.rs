//! What `POST /api/messages` asks for, and what became of it: one message to many devices.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::params::{BadParameter, Members};

/// Devices that are named in one request.
const MAX_NAMED: usize = 1000;

/// Who gets a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Recipients {
    /// Every device.
    All,
    /// Those whose client id begins with this group.
    Group(String),
    /// Those with these client ids or MACs.
    Named(BTreeSet<String>),
}

impl Recipients {
    /// Reads the member `to`.
    ///
    /// # Errors
    /// When it is missing or names nobody in a known way.
    pub fn parse(members: &Members<'_>) -> Result<Self, BadParameter> {
        const ALLOWED: &str = r#""all", {"group": "GID_.."} or an array of client ids and MACs"#;
        let bad = |found: &str| BadParameter::new("to", found, ALLOWED);
        let raw = members.raw("to")?.ok_or_else(|| bad("nothing"))?;
        let names = match serde_json::from_str(raw) {
            Ok(Value::String(all)) if all == "all" => return Ok(Self::All),
            Ok(Value::Object(object)) => {
                return match object.get("group") {
                    Some(Value::String(group)) if object.len() == 1 => Ok(Self::Group(group.clone())),
                    _ => Err(bad(raw)),
                };
            }
            Ok(Value::Array(names)) => names,
            _ => return Err(bad(raw)),
        };
        if names.len() > MAX_NAMED {
            let found = format!("{} of them", names.len());
            return Err(BadParameter::new("to", &found, format!("{MAX_NAMED} client ids and MACs at most")));
        }
        let name = |name| match name {
            Value::String(name) => Ok(name),
            other => Err(bad(&other.to_string())),
        };
        names.into_iter().map(name).collect::<Result<_, _>>().map(Self::Named)
    }
}

/// What became of a message to many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageCounts {
    /// Devices whose connection it was written to.
    pub sent: usize,
    /// Devices that lost their connection in a call: it waits for their return.
    pub queued: usize,
    /// Devices that left before it was their turn.
    pub left: usize,
    /// Devices that were not served, since too many messages to many were being sent.
    pub refused: usize,
    /// The names for which there was no device.
    pub not_connected: BTreeSet<String>,
}

impl MessageCounts {
    /// Adds those of another worker: a name has no device if no worker has it.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.queued += other.queued;
        self.left += other.left;
        self.refused += other.refused;
        self.not_connected.retain(|name| other.not_connected.contains(name));
    }

    /// The body of the response.
    pub fn to_json(&self) -> Value {
        json!({
            "sent": self.sent,
            "queued": self.queued,
            "offline": self.left + self.not_connected.len(),
            "refused": self.refused,
            "notConnected": self.not_connected,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_all_a_group_or_named() {
        let parse =
            |body: &str| Recipients::parse(&Members::of_body(body).unwrap()).map_err(|bad| bad.to_string());
        let named = |names: &[&str]| Recipients::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let allowed = r#"allowed: "all", {"group": "GID_.."} or an array of client ids and MACs"#;
        let bad = |found: &str| Err(format!("to: found {found}, {allowed}"));
        let many = format!(r#"{{"to":[{}"x"]}}"#, r#""x","#.repeat(MAX_NAMED));
        for (body, expected) in [
            (r#"{"to":"all"}"#, Ok(Recipients::All)),
            (r#"{"to":{"group":"GID_kids"}}"#, Ok(Recipients::Group("GID_kids".to_owned()))),
            (r#"{"to":["b","a","b"]}"#, Ok(named(&["a", "b"]))),
            (r#"{"to":[]}"#, Ok(named(&[]))),
            ("{}", bad("nothing")),
            (r#"{"to":null}"#, bad("nothing")),
            (r#"{"to":"aa:bb"}"#, bad(r#""aa:bb""#)),
            (r#"{"to":true}"#, bad("true")),
            (r#"{"to":{}}"#, bad("{}")),
            (r#"{"to":{"group":7}}"#, bad(r#"{"group":7}"#)),
            (r#"{"to":{"group":"a","b":1}}"#, bad(r#"{"group":"a","b":1}"#)),
            (r#"{"to":["a",7]}"#, bad("7")),
            (r#"{"to":"all","to":[]}"#, Err("to: found it more than once, allowed: one value".to_owned())),
            (&many, Err("to: found 1001 of them, allowed: 1000 client ids and MACs at most".to_owned())),
        ] {
            assert_eq!(parse(body), expected, "{body}");
        }
    }

    #[test]
    fn a_name_is_offline_if_no_worker_has_it() {
        let counts = |sent, names: [&str; 2]| MessageCounts {
            sent,
            queued: 1,
            left: 2,
            refused: 3,
            not_connected: names.map(str::to_owned).into(),
        };
        let mut all = counts(4, ["a", "b"]);
        all.add(&counts(5, ["b", "c"]));
        let expected = json!({ "sent": 9, "queued": 2, "offline": 5, "refused": 6, "notConnected": ["b"] });
        assert_eq!(all.to_json(), expected);
    }
}
