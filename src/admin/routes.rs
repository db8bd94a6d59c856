//! The routes of the API: one table, which the OpenAPI file describes.

use std::borrow::Cow;

use http::Method;

use super::error::{ApiError, ErrorStyle, MAX_BODY_BYTES, MAX_SOUND_BYTES};
use crate::text::percent_decode;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The gateway runs.
    Health,
    /// The gateway takes devices.
    Ready,
    /// Numbers for Prometheus.
    Metrics,
    /// The description of all this.
    OpenApi,
    /// Asks a device's tools and waits for the answer.
    Command,
    /// The answer to a command that came after its time.
    CommandResult,
    /// Which devices are connected, and which in a call.
    DevicesStatus,
    /// Disconnects some devices, or all.
    Disconnect,
    /// A device calls another one.
    CallRequest,
    /// A device answers the one that calls it.
    CallAccept,
    /// A call between devices ends.
    CallHangUp,
    /// Sends a device a message.
    Message,
    /// Sends many devices a message.
    Messages,
    /// Sends an idle device sound and words.
    Notify,
    /// Whether the device has fetched its sound.
    NotifyState,
    /// Lists devices and calls.
    Sessions,
    /// Lists calls that have ended.
    Calls,
    /// Shows one of them, and its course.
    Call,
    /// Shows one device and its call.
    Session,
    /// Ends a device's call, or its connection too.
    EndSession,
    /// Lists devices that may not connect.
    Denied,
    /// Denies a device until a restart.
    Deny,
    /// Takes that back.
    Allow,
    /// Lists chat servers and what is known about them.
    Servers,
    /// Lists the gateways of the service.
    Gateways,
    /// Says what a new device needs.
    Credentials,
    /// Checks settings and chat servers.
    Check,
    /// The report of that.
    CheckReport,
    /// Reads the configuration file again.
    Reload,
    /// Begins a drain.
    Drain,
    /// Shows the configuration in force.
    Config,
    /// What went wrong lately.
    Errors,
    /// The last lines of the log.
    Log,
    /// What happens, as it happens.
    Events,
    /// The page for operators.
    Dashboard,
    /// What the page needs to speak Chinese.
    Catalogue,
}

/// Which worker can answer a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Any: it is about the gateway.
    AnyWorker,
    /// The one that has the device.
    DeviceWorker,
    /// All of them together.
    AllWorkers,
}

/// Which gateway of several can answer a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The one that is asked.
    Asked,
    /// The one that has the device.
    Device,
    /// All of them together.
    All,
    /// Any that has what has this id.
    AnyThatHas,
}

impl Endpoint {
    /// Which gateway of several can answer it.
    pub fn reach(self) -> Reach {
        match self {
            Self::Sessions | Self::Calls | Self::Servers | Self::Errors => Reach::All,
            Self::DevicesStatus | Self::Disconnect | Self::Messages => Reach::All,
            Self::CommandResult | Self::NotifyState | Self::Call => Reach::AnyThatHas,
            _ if self.scope() == Scope::DeviceWorker => Reach::Device,
            _ => Reach::Asked,
        }
    }

    /// Which worker can answer it.
    pub fn scope(self) -> Scope {
        match self {
            Self::Command | Self::CallRequest | Self::CallAccept | Self::CallHangUp | Self::Message => {
                Scope::DeviceWorker
            }
            Self::Notify | Self::Session | Self::EndSession => Scope::DeviceWorker,
            Self::Metrics | Self::DevicesStatus | Self::Disconnect | Self::Messages => Scope::AllWorkers,
            Self::Sessions | Self::Servers | Self::Deny | Self::Allow => Scope::AllWorkers,
            _ => Scope::AnyWorker,
        }
    }

    /// The form of its errors: that of the Node.js gateway for the calls that it has.
    pub fn error_style(self) -> ErrorStyle {
        match self {
            Self::Command => ErrorStyle::Command,
            Self::DevicesStatus | Self::CallRequest | Self::CallAccept => ErrorStyle::Plain,
            _ => ErrorStyle::Coded,
        }
    }
}

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Public,
    /// Like a token call, unless `api.metrics_need_token` is off.
    Metrics,
    /// Who shows a token.
    Token,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// GET answers HEAD too.
    pub method: Method,
    /// The path; a name in braces, at its end, stands for one segment.
    pub path: &'static str,
    /// Who may make it.
    pub access: Access,
    /// What it is for.
    pub endpoint: Endpoint,
}

/// The longest time that a drain may be given: a week.
pub const MAX_DRAIN_SECONDS: u64 = 7 * 24 * 3600;

/// Every call.
pub static ROUTES: [Route; 36] = {
    use Access::{Metrics, Public, Token};
    [
        route(Method::GET, "/", Public, Endpoint::Dashboard),
        route(Method::GET, "/messages.zh.po", Public, Endpoint::Catalogue),
        route(Method::GET, "/healthz", Public, Endpoint::Health),
        route(Method::GET, "/readyz", Public, Endpoint::Ready),
        route(Method::GET, "/metrics", Metrics, Endpoint::Metrics),
        route(Method::GET, "/openapi.json", Public, Endpoint::OpenApi),
        route(Method::POST, "/api/commands/{clientId}", Token, Endpoint::Command),
        route(Method::GET, "/api/commands/results/{id}", Token, Endpoint::CommandResult),
        route(Method::POST, "/api/devices/status", Token, Endpoint::DevicesStatus),
        route(Method::POST, "/api/devices/disconnect", Token, Endpoint::Disconnect),
        route(Method::POST, "/api/call/request", Token, Endpoint::CallRequest),
        route(Method::POST, "/api/call/accept", Token, Endpoint::CallAccept),
        route(Method::POST, "/api/call/hangup", Token, Endpoint::CallHangUp),
        route(Method::POST, "/api/messages", Token, Endpoint::Messages),
        route(Method::POST, "/api/messages/{clientId}", Token, Endpoint::Message),
        route(Method::POST, "/api/notify/{clientId}", Token, Endpoint::Notify),
        route(Method::GET, "/api/notify/{clientId}", Token, Endpoint::NotifyState),
        route(Method::GET, "/api/sessions", Token, Endpoint::Sessions),
        route(Method::GET, "/api/sessions/{clientId}", Token, Endpoint::Session),
        route(Method::DELETE, "/api/sessions/{clientId}", Token, Endpoint::EndSession),
        route(Method::GET, "/api/denied", Token, Endpoint::Denied),
        route(Method::PUT, "/api/denied/{clientId}", Token, Endpoint::Deny),
        route(Method::DELETE, "/api/denied/{clientId}", Token, Endpoint::Allow),
        route(Method::GET, "/api/calls", Token, Endpoint::Calls),
        route(Method::GET, "/api/calls/{id}", Token, Endpoint::Call),
        route(Method::GET, "/api/servers", Token, Endpoint::Servers),
        route(Method::GET, "/api/gateways", Token, Endpoint::Gateways),
        route(Method::POST, "/api/credentials", Token, Endpoint::Credentials),
        route(Method::POST, "/api/check", Token, Endpoint::Check),
        route(Method::GET, "/api/check", Token, Endpoint::CheckReport),
        route(Method::POST, "/api/reload", Token, Endpoint::Reload),
        route(Method::POST, "/api/drain", Token, Endpoint::Drain),
        route(Method::GET, "/api/config", Token, Endpoint::Config),
        route(Method::GET, "/api/errors", Token, Endpoint::Errors),
        route(Method::GET, "/api/events", Token, Endpoint::Events),
        route(Method::GET, "/api/log", Token, Endpoint::Log),
    ]
};

const fn route(method: Method, path: &'static str, access: Access, endpoint: Endpoint) -> Route {
    Route { method, path, access, endpoint }
}

/// What a method and path lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteMatch<'a> {
    /// A call, and the client id or other id in its path, decoded.
    Found(Endpoint, Option<Cow<'a, str>>),
    /// The path has other methods: these.
    MethodNotAllowed(String),
    /// Nothing.
    NotFound,
}

impl RouteMatch<'_> {
    /// The error when no call was found; `None` when one was.
    pub fn error_response(&self) -> Option<ApiError> {
        match self {
            Self::Found(..) => None,
            Self::MethodNotAllowed(allowed) => {
                let sentence = format!("This path takes {allowed}.");
                Some(ApiError::new(405, "method_not_allowed", sentence).with("Allow", allowed))
            }
            Self::NotFound => {
                Some(ApiError::new(404, "not_found", "There is no such call; GET /openapi.json lists them."))
            }
        }
    }
}

/// Who may ask for this path. What is not known needs a token, so that nobody learns without one what there is.
pub fn required_access(path: &str) -> Access {
    first(path).map_or(Access::Token, |route| route.access)
}

/// The form of errors that callers of this path expect, whatever their method.
pub fn error_style(path: &str) -> ErrorStyle {
    first(path).map_or(ErrorStyle::Coded, |route| route.endpoint.error_style())
}

/// The longest body that a call of this path takes, in bytes.
pub fn max_body_bytes(path: &str) -> usize {
    match first(path) {
        Some(Route { endpoint: Endpoint::Notify, .. }) => MAX_SOUND_BYTES,
        _ => MAX_BODY_BYTES,
    }
}

/// Methods of one path have the same access and the same errors.
fn first(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| match_path(route.path, path).is_some())
}

/// The call of this method and path, which is still percent-encoded.
pub fn match_route<'a>(method: &Method, path: &'a str) -> RouteMatch<'a> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut allowed: Vec<&str> = Vec::new();
    for route in &ROUTES {
        let Some(segment) = match_path(route.path, path) else { continue };
        if route.method != *method {
            allowed.push(route.method.as_str());
            continue;
        }
        return match segment.map(percent_decode) {
            Some(None) => RouteMatch::NotFound,
            Some(Some(client_id)) => RouteMatch::Found(route.endpoint, Some(client_id)),
            None => RouteMatch::Found(route.endpoint, None),
        };
    }
    if allowed.is_empty() { RouteMatch::NotFound } else { RouteMatch::MethodNotAllowed(allowed.join(", ")) }
}

/// Whether `path` is `pattern`, and the segment that stands for the name in braces.
fn match_path<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    match pattern.split_once('{') {
        None => (pattern == path).then_some(None),
        Some((start, _)) => {
            let segment = path.strip_prefix(start)?;
            (!segment.is_empty() && !segment.contains('/')).then_some(Some(segment))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn paths_match_routes() {
        let id = |id: &str| Some(Cow::Owned(id.to_owned()));
        for (method, path, expected) in [
            (Method::GET, "/healthz", RouteMatch::Found(Endpoint::Health, None)),
            (Method::HEAD, "/healthz", RouteMatch::Found(Endpoint::Health, None)),
            (
                Method::POST,
                "/api/commands/g@@@a_b@@@c",
                RouteMatch::Found(Endpoint::Command, id("g@@@a_b@@@c")),
            ),
            (
                Method::POST,
                "/api/commands/g%40%40%40%E7%BB%84%2Fx",
                RouteMatch::Found(Endpoint::Command, id("g@@@组/x")),
            ),
            (Method::POST, "/api/commands/%zz", RouteMatch::NotFound),
            (Method::POST, "/api/commands/", RouteMatch::NotFound),
            (Method::POST, "/api/commands/a/b", RouteMatch::NotFound),
            (Method::GET, "/api/commands/results/7", RouteMatch::Found(Endpoint::CommandResult, id("7"))),
            (Method::POST, "/api/devices/status", RouteMatch::Found(Endpoint::DevicesStatus, None)),
            (Method::GET, "/api/devices/status", RouteMatch::MethodNotAllowed("POST".to_owned())),
            (Method::GET, "/api/sessions", RouteMatch::Found(Endpoint::Sessions, None)),
            (Method::GET, "/api/sessions/x", RouteMatch::Found(Endpoint::Session, id("x"))),
            (Method::DELETE, "/api/sessions/x", RouteMatch::Found(Endpoint::EndSession, id("x"))),
            (Method::PATCH, "/api/sessions/x", RouteMatch::MethodNotAllowed("GET, DELETE".to_owned())),
            (Method::GET, "", RouteMatch::NotFound),
            (Method::GET, "/API/sessions", RouteMatch::NotFound),
            (Method::GET, "//api/sessions", RouteMatch::NotFound),
        ] {
            assert_eq!(match_route(&method, path), expected, "{method:?} {path}");
        }
    }

    #[test]
    fn only_listed_paths_are_public() {
        for (path, expected) in [
            ("/", Access::Public),
            ("/healthz", Access::Public),
            ("/openapi.json", Access::Public),
            ("/metrics", Access::Metrics),
            ("/metrics/", Access::Token),
            ("/api/sessions", Access::Token),
            ("/api/sessions/x", Access::Token),
            ("/unknown", Access::Token),
        ] {
            assert_eq!(required_access(path), expected, "{path}");
        }
    }

    #[test]
    fn the_openapi_file_describes_exactly_the_routes() {
        let file: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in file["paths"].as_object().unwrap() {
            for (method, operation) in
                item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
            {
                described.insert((path.clone(), method.to_uppercase()));
                let place = format!("{method} {path}");
                assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{place}");
                let open = operation.get("security") == Some(&serde_json::json!([]));
                let optional = operation.get("security") == Some(&serde_json::json!([{}, { "token": [] }]));
                let access = match (open, optional) {
                    (true, _) => Access::Public,
                    (_, true) => Access::Metrics,
                    _ => Access::Token,
                };
                assert_eq!(super::required_access(path), access, "{place}");
                let answers = operation["responses"].as_object().unwrap();
                assert!(answers.contains_key("200") || answers.contains_key("202"), "{place}");
                for status in ["401", "403", "500"] {
                    assert_eq!(answers.contains_key(status), access != Access::Public, "{place} {status}");
                }
                for status in ["400", "408", "413", "417", "431", "501"] {
                    assert!(answers.contains_key(status), "any request may be answered so: {place} {status}");
                }
                let suffix = match error_style(path) {
                    ErrorStyle::Coded => "BodyTooLong",
                    ErrorStyle::Plain => "BodyTooLongPlain",
                    ErrorStyle::Command => "BodyTooLongCommand",
                };
                let reference = answers["413"]["$ref"].as_str().unwrap();
                assert_eq!(reference.rsplit('/').next(), Some(suffix), "{place}");
                assert_eq!(path.contains("{clientId}"), item["parameters"][0]["$ref"].is_string(), "{place}");
                assert_eq!(
                    operation.get("requestBody").is_some(),
                    method == "post" && !["/api/check", "/api/reload", "/api/drain"].contains(&path.as_str()),
                    "{place}"
                );
            }
        }
        let routes = ROUTES.iter().map(|route| (route.path.to_owned(), route.method.as_str().to_owned()));
        assert_eq!(described, routes.collect());
        assert_refs_resolve(&file, &file);
    }

    /// Every `$ref` leads somewhere.
    fn assert_refs_resolve(file: &Value, value: &Value) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(file.pointer(pointer).is_some(), "{reference}");
                }
                object.values().for_each(|value| assert_refs_resolve(file, value));
            }
            Value::Array(items) => items.iter().for_each(|value| assert_refs_resolve(file, value)),
            _ => {}
        }
    }
}
