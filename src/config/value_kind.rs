//! The kinds of values that keys have: for each, how it is read from the file's JSON and how it is written.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::Problem;
use super::redis_url::is_gateway_name;
use super::route;
use super::value::JsonValue;
use super::webhook;
use super::{
    ChatServerConfig, EventKind, Framing, HttpUrl, LogFormat, LogTime, Network, OnDisconnect, PeerPolicy,
    PublicIp, RedisUrl, Route, Secret, ServerOrder, UrlError, Webhook,
};
use crate::proto::identity::{Mac, MacPrefix, MacPrefixes};
use crate::proto::ota::{ENDPOINT_ALLOWED, Endpoint, is_group};

/// How one kind of value is read and written.
pub(super) struct Kind<T> {
    read: Box<Read<T>>,
    write: Box<dyn Fn(&T) -> Value>,
}

/// Gives what can be read, and adds what is wrong to the problems. A list may do both.
type Read<T> = dyn Fn(&JsonValue<'_>, &mut Vec<Problem>) -> Option<T>;

impl<T: 'static> Kind<T> {
    fn new(
        read: impl Fn(&JsonValue<'_>) -> Result<T, Problem> + 'static,
        write: impl Fn(&T) -> Value + 'static,
    ) -> Self {
        let read = move |value: &JsonValue<'_>, problems: &mut Vec<Problem>| {
            read(value).map_err(|problem| problems.push(problem)).ok()
        };
        Self { read: Box::new(read), write: Box::new(write) }
    }

    /// A string in the file.
    fn string(
        allowed: impl Into<String>,
        parse: impl Fn(&str) -> Option<T> + 'static,
        format: impl Fn(&T) -> String + 'static,
    ) -> Self {
        let allowed = allowed.into();
        let read = move |value: &JsonValue<'_>| {
            let text: Option<String> = value.deserialize().ok();
            text.and_then(|text| parse(&text)).ok_or_else(|| value.invalid(allowed.clone()))
        };
        Self::new(read, move |value| Value::String(format(value)))
    }

    /// A list of such values. One that is refused is left out.
    fn list(self, allowed: &'static str) -> Kind<Vec<T>> {
        let Self { read, write } = self;
        let read_list = move |value: &JsonValue<'_>, problems: &mut Vec<Problem>| {
            let items = value.items(allowed).map_err(|problem| problems.push(problem)).ok()?;
            Some(items.iter().filter_map(|item| read(item, problems)).collect())
        };
        Kind { read: Box::new(read_list), write: Box::new(move |items| items.iter().map(&write).collect()) }
    }

    fn map<U: 'static>(self, into: impl Fn(T) -> U + 'static, from: impl Fn(&U) -> T + 'static) -> Kind<U> {
        let Self { read, write } = self;
        Kind {
            read: Box::new(move |value, problems| read(value, problems).map(&into)),
            write: Box::new(move |value| write(&from(value))),
        }
    }

    fn read(&self, value: &JsonValue<'_>, problems: &mut Vec<Problem>) -> Option<T> {
        (self.read)(value, problems)
    }

    /// Reads a value into `target`, which keeps its own when this one is refused.
    pub(super) fn read_into(&self, value: &JsonValue<'_>, target: &mut T, problems: &mut Vec<Problem>) {
        if let Some(found) = self.read(value, problems) {
            *target = found;
        }
    }

    pub(super) fn write(&self, value: &T) -> Value {
        (self.write)(value)
    }
}

fn plain<T: DeserializeOwned + Serialize + 'static>(allowed: &'static str) -> Kind<T> {
    Kind::new(move |value| value.deserialize().map_err(|_| value.invalid(allowed)), |value| json!(value))
}

pub(super) fn boolean() -> Kind<bool> {
    plain("true or false")
}

pub(super) fn port() -> Kind<u16> {
    plain("a whole number from 0 to 65535")
}

pub(super) fn ip() -> Kind<IpAddr> {
    plain("an IPv4 or IPv6 address to listen on, such as \"0.0.0.0\" or \"::\"")
}

fn in_range<T: DeserializeOwned + PartialOrd + Display + 'static>(
    what: &'static str,
    range: RangeInclusive<T>,
    write: impl Fn(&T) -> Value + 'static,
) -> Kind<T> {
    let read = move |value: &JsonValue<'_>| {
        let number = value.deserialize().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| value.invalid(format!("{what} from {} to {}", range.start(), range.end())))
    };
    Kind::new(read, write)
}

pub(super) fn whole_number<T>(range: RangeInclusive<T>) -> Kind<T>
where
    T: DeserializeOwned + Serialize + PartialOrd + Display + 'static,
{
    in_range("a whole number", range, |number| json!(number))
}

pub(super) fn number(range: RangeInclusive<u32>) -> Kind<f64> {
    in_range("a number", f64::from(*range.start())..=f64::from(*range.end()), |number| {
        // Whole numbers without a fraction, as people write them.
        match number.fract() == 0.0 && (0.0..1e9).contains(number) {
            true => json!(*number as u64),
            false => json!(number),
        }
    })
}

/// A number of seconds, fractions allowed.
pub(super) fn seconds(range: RangeInclusive<u32>) -> Kind<Duration> {
    number(range).map(Duration::from_secs_f64, Duration::as_secs_f64)
}

pub(super) fn millis(range: RangeInclusive<u64>) -> Kind<Duration> {
    whole_number(range).map(Duration::from_millis, |duration| duration.as_millis() as u64)
}

pub(super) fn micros(range: RangeInclusive<u64>) -> Kind<Duration> {
    whole_number(range).map(Duration::from_micros, |duration| duration.as_micros() as u64)
}

/// A path; an empty one is none.
pub(super) fn path() -> Kind<Option<PathBuf>> {
    Kind::string(
        "a path, \"\" for none",
        |text| Some((!text.is_empty()).then(|| PathBuf::from(text))),
        |path| path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
    )
}

pub(super) fn networks() -> Kind<Vec<Network>> {
    const ALLOWED: &str = "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an IP address";
    Kind::string(ALLOWED, |text| text.parse().ok(), Network::to_string).list("a list of networks")
}

pub(super) fn macs() -> Kind<Vec<Mac>> {
    const ALLOWED: &str = "a MAC address such as \"aa:bb:cc:dd:ee:ff\"";
    Kind::string(ALLOWED, |text| text.parse().ok(), Mac::to_string).list(MACS_ALLOWED)
}

pub(super) fn mac_prefixes() -> Kind<MacPrefixes> {
    const ALLOWED: &str =
        "a MAC address such as \"aa:bb:cc:dd:ee:ff\", or its first pairs such as \"aa:bb:cc\"";
    Kind::string(ALLOWED, |text| text.parse().ok(), MacPrefix::to_string)
        .list(MACS_ALLOWED)
        .map(MacPrefixes::from, |prefixes| prefixes.as_slice().to_vec())
}

pub(super) const MACS_ALLOWED: &str = "a list of MAC addresses";

/// The address of the management listener.
pub(super) fn api_host() -> Kind<Option<IpAddr>> {
    Kind::string(
        "\"auto\", or an IPv4 or IPv6 address to listen on",
        |text| if text == "auto" { Some(None) } else { text.parse().ok().map(Some) },
        |host| host.as_ref().map_or_else(|| "auto".to_owned(), IpAddr::to_string),
    )
}

pub(super) fn public_ip() -> Kind<PublicIp> {
    Kind::string(PublicIp::ALLOWED, |text| text.parse().ok(), PublicIp::to_string)
}

/// Where devices reach the gateway; an empty one is none.
pub(super) fn endpoint() -> Kind<Option<Endpoint>> {
    let parse = |text: &str| match text {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    };
    let format = |endpoint: &Option<Endpoint>| endpoint.as_ref().map(Endpoint::to_string).unwrap_or_default();
    Kind::string(format!("{ENDPOINT_ALLOWED}; \"\" for none"), parse, format)
}

/// The first part of a client id.
pub(super) fn group() -> Kind<String> {
    const ALLOWED: &str = "1 to 64 letters, digits, \"_\", \"-\" and \".\", such as \"GID_default\"";
    Kind::string(ALLOWED, |text| is_group(text).then(|| text.to_owned()), String::clone)
}

/// The URL of a Redis server, which no message shows, since it holds a password; an empty one is none.
pub(super) fn redis_url() -> Kind<Option<RedisUrl>> {
    url(|url: &RedisUrl| &url.url)
}

/// The name of a gateway; an empty one is the host's.
pub(super) fn gateway_name() -> Kind<Option<String>> {
    const ALLOWED: &str = "1 to 64 letters, digits, \"_\", \"-\" and \".\"; \"\" for the host name";
    let parse = |text: &str| match text {
        "" => Some(None),
        text => is_gateway_name(text).then(|| Some(text.to_owned())),
    };
    Kind::string(ALLOWED, parse, |name| name.clone().unwrap_or_default())
}

/// What keys in Redis begin with.
pub(super) fn key_prefix() -> Kind<String> {
    const ALLOWED: &str = "1 to 64 letters, digits, \"_\", \"-\" and \".\"";
    Kind::string(ALLOWED, |text| is_gateway_name(text).then(|| text.to_owned()), String::clone)
}

/// One of some words, in any case.
fn one_of<T: Copy + PartialEq>(words: &'static [(&'static str, T)]) -> Kind<T> {
    let allowed = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let parse = |text: &str| {
        words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, meaning)| *meaning)
    };
    let format = |value: &T| {
        words.iter().find(|(_, meaning)| meaning == value).map_or("", |(word, _)| word).to_owned()
    };
    Kind::string(allowed, parse, format)
}

pub(super) fn peer_policy() -> Kind<PeerPolicy> {
    one_of(&[("adaptive", PeerPolicy::Adaptive), ("strict", PeerPolicy::Strict)])
}

pub(super) fn server_order() -> Kind<ServerOrder> {
    one_of(&[("spread", ServerOrder::Spread), ("first", ServerOrder::First)])
}

pub(super) fn log_format() -> Kind<LogFormat> {
    one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
}

pub(super) fn log_time() -> Kind<LogTime> {
    one_of(&[("local", LogTime::Local), ("utc", LogTime::Utc)])
}

fn on_disconnect() -> Kind<OnDisconnect> {
    one_of(&[("auto", OnDisconnect::Auto), ("redial", OnDisconnect::Redial), ("end", OnDisconnect::End)])
}

/// A bearer token that a server expects: something an HTTP header can hold.
fn server_token() -> Kind<Option<Secret>> {
    secret_where("visible ASCII characters without spaces, empty for none", |text| {
        text.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// A URL that no message shows, since its query may hold a token; an empty one is none.
pub(super) fn http_url() -> Kind<Option<HttpUrl>> {
    url(|url: &HttpUrl| &url.url)
}

fn url<T: FromStr<Err = UrlError> + 'static>(text: fn(&T) -> &String) -> Kind<Option<T>> {
    let read = |value: &JsonValue<'_>| {
        let text: String = value.deserialize().map_err(|_| value.invalid("a URL"))?;
        let url = (!text.is_empty()).then(|| text.parse()).transpose();
        url.map_err(|error| value.invalid_redacted("a text that is not shown", error))
    };
    Kind::new(read, move |url| json!(url.as_ref().map_or("", |url| text(url))))
}

fn framing() -> Kind<Framing> {
    one_of(&[("auto", Framing::Auto), ("header", Framing::Header), ("raw", Framing::Raw)])
}

pub(super) fn level() -> Kind<LevelFilter> {
    Kind::string(LEVELS, parse_level, |level| level.as_str().to_lowercase())
}

/// What [`parse_level`] accepts, for error messages and the help text.
pub const LEVELS: &str = "off, error, warn, info, debug, trace";

/// The log level of this name, in any case; `warning` and `fatal` are understood too.
pub fn parse_level(name: &str) -> Option<LevelFilter> {
    match name.to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::Warn),
        "fatal" => Some(LevelFilter::Error),
        name => name.parse().ok(),
    }
}

/// A string that no message shows; an empty one is no secret.
pub(super) fn secret() -> Kind<Option<Secret>> {
    secret_where("a string, empty for none", |_| true)
}

/// A list of such strings, none of them empty.
pub(super) fn secrets() -> Kind<Vec<Secret>> {
    const ALLOWED: &str = "a list of strings that are not empty";
    let read = |value: &JsonValue<'_>| {
        let texts: Option<Vec<String>> = value.deserialize().ok();
        let secrets = texts.and_then(|texts| texts.iter().map(|text| Secret::new(text)).collect());
        secrets.ok_or_else(|| value.invalid_redacted(value.json_type(), ALLOWED))
    };
    Kind::new(read, |secrets: &Vec<Secret>| secrets.iter().map(|secret| json!(secret.0)).collect())
}

/// A token that callers show: hard to guess, and something an HTTP header can hold.
pub(super) fn token() -> Kind<Option<Secret>> {
    secret_where("16 or more visible ASCII characters without spaces, empty for none", |text| {
        text.is_empty() || text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

fn secret_where(allowed: &'static str, is_good: fn(&str) -> bool) -> Kind<Option<Secret>> {
    let read = move |value: &JsonValue<'_>| match value.deserialize::<String>() {
        Ok(text) if is_good(&text) => Ok(Secret::new(&text)),
        Ok(_) => Err(value.invalid_redacted("a text that is not shown", allowed)),
        Err(_) => Err(value.invalid_redacted(value.json_type(), allowed)),
    };
    Kind::new(read, |secret| json!(secret.as_ref().map_or("", |secret| &secret.0)))
}

/// The text of an object, without its white space.
pub(super) fn object() -> Kind<String> {
    let read = |value: &JsonValue<'_>| {
        let object: Result<serde_json::Map<String, Value>, _> = value.deserialize();
        object.map(|object| Value::from(object).to_string()).map_err(|_| value.invalid("an object"))
    };
    Kind::new(read, |text| serde_json::from_str(text).unwrap_or_else(|_| json!({})))
}

/// A list of chat servers.
pub(super) fn servers(server: Kind<Arc<ChatServerConfig>>) -> Kind<Vec<Arc<ChatServerConfig>>> {
    server.list("a list of chat servers")
}

/// A server is given as its URL, or as an object with the URL and settings of its own.
pub(super) fn server() -> Kind<Arc<ChatServerConfig>> {
    Kind { read: Box::new(read_server), write: Box::new(|server| write_server(server)) }
}

/// A server that is given as its URL; `rewrite` may change that first.
pub(super) fn server_url(rewrite: fn(&str) -> String) -> Kind<Arc<ChatServerConfig>> {
    let read = move |value: &JsonValue<'_>| {
        let text: String = value.deserialize().map_err(|_| value.invalid("a ws:// or wss:// URL"))?;
        let text = rewrite(&text);
        text.parse::<ChatServerConfig>().map(Arc::new).map_err(|error| {
            // A password before the host, or a token in the query, belongs in no message.
            if text.contains(['@', '?']) {
                value.invalid_redacted("a URL with parts that are not shown", error)
            } else {
                value.invalid(error)
            }
        })
    };
    Kind::new(read, |server| json!(server.url))
}

/// Devices with chat servers of their own.
pub(super) fn routes() -> Kind<Vec<Route>> {
    Kind { read: Box::new(read_route), write: Box::new(write_route) }.list("a list of routes")
}

fn groups() -> Kind<Vec<String>> {
    const ALLOWED: &str = "a group such as \"GID_kids\", or its beginning and a *";
    Kind::string(ALLOWED, route::group_pattern, String::clone).list("a list of groups")
}

fn route_macs() -> Kind<Vec<String>> {
    const ALLOWED: &str =
        "a MAC address such as \"aa:bb:cc:dd:ee:ff\", its first pairs such as \"aa:bb:cc\", or \"*\"";
    Kind::string(ALLOWED, route::mac_pattern, String::clone).list(MACS_ALLOWED)
}

fn read_route(value: &JsonValue<'_>, problems: &mut Vec<Problem>) -> Option<Route> {
    let fields = value.members().map_err(|problem| problems.push(problem)).ok()?;
    let (mut route, before) = (Route::default(), problems.len());
    for (key, field) in &fields {
        match key.as_str() {
            "name" => plain("a text").read_into(field, &mut route.name, problems),
            "groups" => groups().read_into(field, &mut route.groups, problems),
            "macs" => route_macs().read_into(field, &mut route.macs, problems),
            "servers" => servers(server()).read_into(field, &mut route.servers, problems),
            _ => problems.push(field.unknown_key(value, vec!["name", "groups", "macs", "servers"])),
        }
    }
    if problems.len() == before
        && (route.servers.is_empty() || route.groups.is_empty() && route.macs.is_empty())
    {
        problems.push(
            value.invalid("\"servers\", at least one, and \"groups\" or \"macs\", \"*\" for all devices"),
        );
    }
    if route.name.is_empty() {
        route.name.clone_from(&value.path);
    }
    (problems.len() == before).then_some(route)
}

fn write_route(route: &Route) -> Value {
    let mut object = json!({
        "name": route.name,
        "servers": route.servers.iter().map(|server| write_server(server)).collect::<Vec<_>>(),
    });
    for (key, patterns) in [("groups", &route.groups), ("macs", &route.macs)] {
        if !patterns.is_empty() {
            object[key] = json!(patterns);
        }
    }
    object
}

/// Servers that are told of events.
pub(super) fn webhooks() -> Kind<Vec<Webhook>> {
    const ALLOWED: &str = "a list of up to 8 webhooks";
    let Kind { read, write } =
        Kind { read: Box::new(read_webhook), write: Box::new(write_webhook) }.list(ALLOWED);
    let read_few = move |value: &JsonValue<'_>, problems: &mut Vec<Problem>| {
        let webhooks = read(value, problems)?;
        let few = webhooks.len() <= MAX_WEBHOOKS;
        if !few {
            problems.push(value.invalid_redacted(&format!("{} webhooks", webhooks.len()), ALLOWED));
        }
        few.then_some(webhooks)
    };
    Kind { read: Box::new(read_few), write }
}

/// Each has a thread of its own.
const MAX_WEBHOOKS: usize = 8;

fn event_patterns() -> Kind<Vec<String>> {
    let names = EventKind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
    let allowed = format!("one of {names}, or its beginning and a *");
    Kind::string(allowed, webhook::event_pattern, String::clone).list("a list of events")
}

fn read_webhook(value: &JsonValue<'_>, problems: &mut Vec<Problem>) -> Option<Webhook> {
    let fields = value.members().map_err(|problem| problems.push(problem)).ok()?;
    let (mut url, mut secret_key, mut events, before) = (None, None, Vec::new(), problems.len());
    for (key, field) in &fields {
        match key.as_str() {
            "url" => http_url().read_into(field, &mut url, problems),
            "secret" => secret().read_into(field, &mut secret_key, problems),
            "events" => event_patterns().read_into(field, &mut events, problems),
            _ => problems.push(field.unknown_key(value, vec!["url", "secret", "events"])),
        }
    }
    if url.is_none() && problems.len() == before {
        problems.push(value.invalid_redacted("no url", "an object with a \"url\""));
    }
    let url = url.filter(|_| problems.len() == before)?;
    Some(Webhook { url, secret: secret_key, events })
}

fn write_webhook(webhook: &Webhook) -> Value {
    let mut object = json!({ "url": webhook.url.url });
    if webhook.secret.is_some() {
        object["secret"] = secret().write(&webhook.secret);
    }
    if !webhook.events.is_empty() {
        object["events"] = json!(webhook.events);
    }
    object
}

fn read_server(value: &JsonValue<'_>, problems: &mut Vec<Problem>) -> Option<Arc<ChatServerConfig>> {
    let url_kind = server_url(str::to_owned);
    if !value.is_object() {
        return url_kind.read(value, problems);
    }
    let fields = value.members().map_err(|problem| problems.push(problem)).ok()?;
    let Some((_, url)) = fields.iter().find(|(key, _)| key == "url") else {
        problems.push(value.invalid("an object with a \"url\""));
        return None;
    };
    let mut server = url_kind.read(url, problems)?;
    let (settings, before) = (Arc::make_mut(&mut server), problems.len());
    for (key, field) in &fields {
        match key.as_str() {
            "url" => {}
            "framing" => framing().read_into(field, &mut settings.framing, problems),
            "insecure" => settings.insecure = boolean().read(field, problems),
            "ca_file" => path().read_into(field, &mut settings.ca_file, problems),
            "on_disconnect" => on_disconnect().read_into(field, &mut settings.on_disconnect, problems),
            "token" => server_token().read_into(field, &mut settings.token, problems),
            "send_goodbye" => settings.send_goodbye = boolean().read(field, problems),
            "ping" => boolean().read_into(field, &mut settings.ping, problems),
            "health_url" => http_url().read_into(field, &mut settings.health_url, problems),
            _ => problems.push(field.unknown_key(value, SERVER_KEYS.to_vec())),
        }
    }
    (problems.len() == before).then_some(server)
}

const SERVER_KEYS: [&str; 9] =
    ["url", "framing", "insecure", "ca_file", "on_disconnect", "token", "send_goodbye", "ping", "health_url"];

fn write_server(server: &ChatServerConfig) -> Value {
    let mut object = json!({ "url": server.url });
    if server.framing != Framing::Auto {
        object["framing"] = framing().write(&server.framing);
    }
    if let Some(insecure) = server.insecure {
        object["insecure"] = json!(insecure);
    }
    if server.ca_file.is_some() {
        object["ca_file"] = path().write(&server.ca_file);
    }
    if server.on_disconnect != OnDisconnect::Auto {
        object["on_disconnect"] = on_disconnect().write(&server.on_disconnect);
    }
    if server.token.is_some() {
        object["token"] = server_token().write(&server.token);
    }
    if let Some(send_goodbye) = server.send_goodbye {
        object["send_goodbye"] = json!(send_goodbye);
    }
    if !server.ping {
        object["ping"] = json!(false);
    }
    if server.health_url.is_some() {
        object["health_url"] = http_url().write(&server.health_url);
    }
    if object.as_object().is_some_and(|object| object.len() == 1) { json!(server.url) } else { object }
}
