//! Where the management page is, and the token that opens it.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::admin::auth::todays_token;
use crate::clock::{local_time_zone, wall_clock};
use crate::config::Config;
use crate::net::media::credentials::local_address;
use crate::text::percent_encode;

/// The page's URL, for a management API that listens here.
pub fn page_url(api: SocketAddr, is_tls: bool) -> String {
    let ip = match api.ip() {
        ip if ip.is_unspecified() => local_address().unwrap_or(Ipv4Addr::LOCALHOST).into(),
        ip => ip,
    };
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{}/", SocketAddr::new(ip, api.port()))
}

/// The page, and what opens it.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Page {
    pub(super) url: String,
    /// `None` when only this machine is served, without a token.
    pub(super) token: Option<String>,
    /// True for the token of today, false for `api.token`.
    pub(super) daily: bool,
    /// The URL with the token behind `#`, which the browser does not send to the server.
    pub(super) link: String,
}

impl Page {
    /// Of a gateway with this configuration, which listens at `api`.
    ///
    /// # Errors
    /// Nothing opens it: why.
    pub(super) fn new(config: &Config, api: SocketAddr) -> Result<Self, String> {
        let key = config.mqtt.signature_key.as_ref();
        let weakness = key.and_then(|key| key.weakness());
        let daily = key
            .filter(|_| weakness.is_none())
            .and_then(|key| todays_token(wall_clock(&local_time_zone()), key.as_bytes()));
        let fixed =
            || config.api.token.as_ref().map(|token| String::from_utf8_lossy(token.as_bytes()).into());
        let is_daily = daily.is_some();
        let token: Option<String> = daily.or_else(fixed);
        if let (Some(weakness), None) = (weakness, &token) {
            return Err(format!(
                "there is no token: mqtt.signature_key {weakness}; allowed: at least 8 characters with upper and lower \
                 case letters and without a common word, or set api.token"
            ));
        }
        let url = page_url(api, config.api.tls.enabled);
        let link =
            token.as_ref().map_or(url.clone(), |token| format!("{url}#token={}", percent_encode(token)));
        Ok(Self { url, token, daily: is_daily, link })
    }

    /// As [`Self::new`], of the gateway that this machine would run.
    ///
    /// # Errors
    /// There is no page, or nothing opens it: why.
    pub(super) fn of(config: &Config) -> Result<Self, String> {
        if !config.api.enabled || config.api.port == 0 {
            return Err(
                "there is no page, or its port is not known: api.enabled must be true and api.port not 0"
                    .into(),
            );
        }
        Self::new(config, SocketAddr::new(config.api_host(), config.api.port))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn the_page_has_an_address_that_a_browser_can_open() {
        let url = |api: &str, is_tls| page_url(api.parse().unwrap(), is_tls);
        assert_eq!(url("127.0.0.1:8007", false), "http://127.0.0.1:8007/");
        assert_eq!(url("[::1]:8443", true), "https://[::1]:8443/");
        for api in ["0.0.0.0:8007", "[::]:8007"] {
            assert!(url(api, false).starts_with("http://") && url(api, false).ends_with(":8007/"));
            assert!(!url(api, false).contains("//0.0.0.0") && !url(api, false).contains("[::]"));
        }
    }

    #[test]
    fn the_token_is_that_of_the_key_or_else_the_fixed_one() {
        let page = |key: &str, token: &str| {
            let mut config = Config::default();
            config.mqtt.signature_key = Secret::new(key);
            config.api.token = Secret::new(token);
            Page::of(&config)
        };
        let open = page("", "").unwrap();
        assert_eq!((open.token, open.link.as_str()), (None, "http://127.0.0.1:8007/"));
        let daily = page("A-strong-Key-17", "a-token+of/the-operator").unwrap();
        assert!(daily.daily && daily.token.as_ref().is_some_and(|token| token.len() == 64), "{daily:?}");
        let fixed = page("weak", "a-token+of/the-operator").unwrap();
        assert_eq!((fixed.daily, fixed.token.as_deref()), (false, Some("a-token+of/the-operator")));
        assert!(fixed.link.ends_with("/#token=a-token%2Bof%2Fthe-operator"), "{}", fixed.link);
        let error = page("weak", "").unwrap_err();
        assert!(error.contains("shorter than 8 characters"), "{error}");
        let mut off = Config::default();
        off.api.enabled = false;
        assert!(Page::of(&off).unwrap_err().contains("api.enabled"));
    }
}
