//! Which gateways and which page a request for a list is about.

use crate::admin::params::{BadParameter, query_number, query_value};
use crate::admin::routes::Endpoint;
use crate::net::admin::request::{MAX_CURSOR, MAX_PAGE_SIZE};
use crate::text::parse_digits;

/// Calls on a page, as `GET /api/calls` says: by default, and the maximum.
const CALLS_PAGE: (u64, u64) = (100, 1000);
/// In `?gateway=`, the gateway that is asked.
const SELF: &str = "self";

/// What the query says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Only the gateway of this name.
    gateway: Option<String>,
    /// Items on a page.
    pub(crate) limit: usize,
    /// Where the page begins: at this run of a gateway, or at the one that is asked, behind this cursor there.
    after: (Option<u64>, u64),
}

impl Selection {
    /// Reads the query of a request for what all gateways answer together.
    ///
    /// # Errors
    /// A parameter that is not allowed.
    pub(crate) fn parse(endpoint: Endpoint, query: &str) -> Result<Self, BadParameter> {
        let gateway = query_value(query, "gateway")?.map(|name| name.into_owned());
        let max = MAX_PAGE_SIZE as u64;
        let (limit, after) = match endpoint {
            Endpoint::Sessions => (query_number(query, "limit", max, (1, max))?, parse_after(query)?),
            Endpoint::Calls => (query_number(query, "limit", CALLS_PAGE.0, (1, CALLS_PAGE.1))?, (None, 0)),
            _ => (0, (None, 0)),
        };
        Ok(Self { gateway, limit: limit as usize, after })
    }

    /// Whether a gateway of this name, which is the one that is asked or another one, is to answer.
    pub(crate) fn contains(&self, name: &str, is_self: bool) -> bool {
        self.gateway.as_deref().is_none_or(|wanted| wanted == name || is_self && wanted == SELF)
    }

    /// Whether all gateways are to answer.
    #[cfg(feature = "cluster")]
    pub(crate) fn is_all(&self) -> bool {
        self.gateway.is_none()
    }

    /// The query for the part of a page of sessions that this run of a gateway has. A gateway before the beginning of the page only
    /// counts. `own`: the run of the gateway that is asked.
    pub(crate) fn page_of(&self, run: u64, own: u64, limit: usize) -> String {
        let (first, cursor) = (self.after.0.unwrap_or(own), self.after.1);
        let after = match run.cmp(&first) {
            _ if self.after == (None, 0) => 0,
            std::cmp::Ordering::Less => MAX_CURSOR,
            std::cmp::Ordering::Equal => cursor,
            std::cmp::Ordering::Greater => 0,
        };
        format!("limit={limit}&after={after}")
    }
}

/// A number, or a run and a number.
fn parse_after(query: &str) -> Result<(Option<u64>, u64), BadParameter> {
    let after = query_value(query, "after")?.unwrap_or_default();
    let Some((run, cursor)) = after.split_once('-').filter(|(run, _)| run.len() == 16) else {
        return Ok((None, query_number(query, "after", 0, (0, MAX_CURSOR))?));
    };
    let is_hex = run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match (u64::from_str_radix(run, 16), parse_digits::<u64>(cursor)) {
        (Ok(run), Some(number)) if is_hex && cursor.len() <= 16 => Ok((Some(run), number.min(MAX_CURSOR))),
        _ => Err(BadParameter::new("after", &format!("{after:?}"), "the `next` of the page before")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Selection, BadParameter> {
        Selection::parse(Endpoint::Sessions, query)
    }

    #[test]
    fn a_page_begins_at_one_gateway() {
        let page = |query: &str, run| parse(query).unwrap().page_of(run, 5, 9);
        for run in [1, 5, 9] {
            assert_eq!(page("", run), "limit=9&after=0");
            assert_eq!(page("after=0&limit=3", run), "limit=9&after=0");
        }
        for query in ["after=7", "after=0000000000000005-7"] {
            let pages = [1, 5, 9].map(|run| page(query, run));
            let expected = ["limit=9&after=9007199254740991", "limit=9&after=7", "limit=9&after=0"];
            assert_eq!(pages, expected, "{query}");
        }
        assert_eq!(page("after=0000000000000005-9999999999999999", 5), "limit=9&after=9007199254740991");
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        for bad in [
            "after=x",
            "after=-7",
            "after=5-7",
            "after=000000000000000G-7",
            "after=000000000000000A-7",
            "after=0000000000000005-",
            "after=0000000000000005-+7",
            "after=0000000000000005-12345678901234567",
            "limit=0",
            "limit=1001",
            "after=1&after=2",
            "gateway=a&gateway=b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_gateway_or_all_are_asked() {
        let selects = |query: &str, name, is_self| parse(query).unwrap().contains(name, is_self);
        assert!(selects("", "one", true) && selects("", "two", false));
        assert!(selects("gateway=self", "one", true) && !selects("gateway=self", "two", false));
        assert!(!selects("gateway=two", "one", true) && selects("gateway=two", "two", false));
    }
}
