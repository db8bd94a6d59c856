//! Which devices use which chat servers.

use std::sync::Arc;

use super::ChatServerConfig;
use crate::proto::identity::{ClientId, MacPrefix};

/// Devices with chat servers of their own: an item of `websocket.routes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// For the operator.
    pub name: String,
    /// The groups of their client ids: exact, or the beginning before a `*`. Empty: all.
    pub groups: Vec<String>,
    /// Their MACs, or the first pairs of them, or `*`. Empty: all.
    pub macs: Vec<String>,
    /// At least one.
    pub servers: Vec<Arc<ChatServerConfig>>,
}

impl Route {
    /// Whether the device with this client id uses it: its group and its MAC both fit.
    pub fn matches(&self, id: &ClientId) -> bool {
        let group = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => id.group().starts_with(prefix),
            None => id.group() == pattern,
        };
        let mac = id.mac().to_string();
        (self.groups.is_empty() || self.groups.iter().any(group))
            && (self.macs.is_empty()
                || self.macs.iter().any(|pattern| pattern == "*" || mac.starts_with(pattern)))
    }
}

/// The pattern of a group: `*` only at its end.
pub(super) fn group_pattern(text: &str) -> Option<String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    (!text.is_empty() && !name.contains('*')).then(|| text.to_owned())
}

/// The pattern of a MAC as [`Route::matches`] takes it: `*`, or whole pairs, behind which a `*` may stand.
pub(super) fn mac_pattern(text: &str) -> Option<String> {
    if text == "*" {
        return Some(text.to_owned());
    }
    let pairs = text.strip_suffix('*').map(|prefix| prefix.trim_end_matches([':', '_', '-'])).unwrap_or(text);
    pairs.parse::<MacPrefix>().ok().map(|prefix| prefix.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_for_the_devices_whose_group_and_mac_fit() {
        let id = ClientId::parse("GID_kids@@@aa_bb_cc_dd_ee_ff@@@u").unwrap();
        for (groups, macs, expected) in [
            (&["GID_kids"][..], &[][..], true),
            (&["GID_kid"], &[], false),
            (&["GID_kid*"], &[], true),
            (&["x", "*"], &[], true),
            (&[], &["AA-BB-CC-DD-EE-FF"], true),
            (&[], &["aa:bb"], true),
            (&[], &["aa:bb:*"], true),
            (&[], &["*"], true),
            (&[], &["bb:cc"], false),
            (&["GID_kids"], &["bb"], false),
            (&["other"], &["aa"], false),
        ] {
            let route = Route {
                groups: groups.iter().map(|text| group_pattern(text).unwrap()).collect(),
                macs: macs.iter().map(|text| mac_pattern(text).unwrap()).collect(),
                ..Route::default()
            };
            assert_eq!(route.matches(&id), expected, "{groups:?} {macs:?}");
        }
        for text in ["", "a*b", "**"] {
            assert_eq!(group_pattern(text), None, "{text}");
        }
        for text in ["", "a", "aa:b*", "*a"] {
            assert_eq!(mac_pattern(text), None, "{text}");
        }
    }
}
