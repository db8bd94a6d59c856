//! MCP between a device and its chat server: discovery and cache of the device's tools, and translation of request ids.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::action::{LogEvent, ToolCount};
use super::context::Context;
use super::request_ids::RequestIds;
use super::tool_lists::{ReceivedText, ToolList};
use crate::proto::message::{self, JsonObject, Reader, Rpc};

/// How long discovery waits for each response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pages of tools that are fetched at most; devices have fewer.
const MAX_PAGES: usize = 64;
/// The bytes of tools that are cached; pages beyond it are not.
const MAX_TOOLS_BYTES: usize = 256 * 1024;
/// The chat server's pending requests whose ids are translated; beyond it the oldest one is dropped.
const MAX_TRANSLATED: usize = 64;
/// The longest id of a chat server that is translated, in bytes.
const MAX_ID_BYTES: usize = 128;

/// What becomes of an `mcp` message of the chat server.
pub(super) enum ServerMessageOutcome<'a> {
    /// This text is for the device: the message, or the message under an id of ours.
    Forward(Cow<'a, str>),
    /// Nothing more to do.
    Consumed,
    /// Answered from the cache: this text goes back to the chat server.
    Answer(String),
}

/// The tool discovery of a device. It takes no heap memory until there is an MCP message.
pub(super) enum ToolCache {
    /// Turned off.
    Disabled,
    /// `initialize` was sent with this id when the device was accepted.
    AwaitingInitialize(u32),
    /// The device did not answer.
    Unanswered,
    /// The discovery is complete, and nothing else is to be remembered.
    Discovered(ToolList),
    /// Any other state.
    Active(Box<McpProxy>),
}

/// Discovery, cached answers and translated requests of one device.
pub(super) struct McpProxy {
    step: DiscoveryStep,
    /// The device's result of `initialize`, raw, until it is in the list.
    initialize_result: Option<ReceivedText>,
    /// The server's `initialize` was answered from the cache, so its `notifications/initialized` is not for the device.
    initialize_answered_from_cache: bool,
    /// The pending request of the discovery.
    pending: Option<DiscoveryRequest>,
    /// Ids of the gateway with the ids of the chat server, raw, that they replace.
    translated_ids: VecDeque<(u32, Box<str>)>,
}

enum DiscoveryStep {
    Initializing,
    Listing(Box<PartialList>),
    /// All tools, or the first pages and the cursor of the next.
    Complete(ToolList),
    Failed,
}

#[derive(Default)]
struct PartialList {
    tools: Vec<ReceivedText>,
    cursors: Vec<Box<str>>,
    /// How many of the cursors had been seen when a page did not fit, and the tools from that page on.
    cut: Option<(usize, usize)>,
}

struct DiscoveryRequest {
    id: u32,
    deadline: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolsPage<'a> {
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
    #[serde(default)]
    next_cursor: Option<String>,
}

impl ToolCache {
    /// Starts the discovery on a new connection. The chat server's requests that were pending on an `earlier` connection may still
    /// be answered.
    pub(super) fn start(earlier: Self, session_id: Option<&str>, cx: &mut Context<'_>) -> Self {
        if !cx.config.mcp.enabled {
            return Self::Disabled;
        }
        let params = format!(
            r#"{{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{}}}"#,
            cx.config.mcp.capabilities, cx.config.mcp.client_info
        );
        if let Self::Active(mcp) = earlier
            && !mcp.translated_ids.is_empty()
        {
            let mut mcp = Box::new(McpProxy {
                translated_ids: mcp.translated_ids,
                ..McpProxy::new(DiscoveryStep::Initializing)
            });
            mcp.send_request("initialize", &params, session_id, cx);
            return Self::Active(mcp);
        }
        let id = cx.ids.issue();
        cx.publish(message::mcp_request(session_id, id, "initialize", &params));
        Self::AwaitingInitialize(id)
    }

    /// The bytes that are kept for this device alone; lists that devices share have a limit of their own.
    pub(super) fn retained_bytes(&self) -> usize {
        let Self::Active(mcp) = self else { return 0 };
        let step = match &mcp.step {
            DiscoveryStep::Listing(listing) => {
                let tools = listing.tools.iter().map(|tool| tool.len()).sum::<usize>();
                tools + listing.cursors.iter().map(|cursor| cursor.len()).sum::<usize>()
            }
            DiscoveryStep::Initializing | DiscoveryStep::Complete(_) | DiscoveryStep::Failed => 0,
        };
        step + mcp.initialize_result.as_ref().map_or(0, |text| text.len())
    }

    /// `since`: when the device was accepted.
    pub(super) fn deadline(&self, since: Instant) -> Option<Instant> {
        match self {
            Self::Disabled | Self::Unanswered | Self::Discovered(_) => None,
            Self::AwaitingInitialize(_) => Some(since + RESPONSE_TIMEOUT),
            Self::Active(mcp) => mcp.pending.as_ref().map(|pending| pending.deadline),
        }
    }

    pub(super) fn on_timeout(&mut self, since: Instant, cx: &mut Context<'_>) {
        const WHY: &str = "no answer in 10 s";
        match self {
            Self::AwaitingInitialize(_) if since + RESPONSE_TIMEOUT <= cx.now => {
                *self = Self::Unanswered;
                cx.log(LogEvent::ToolDiscovery(Err(WHY)));
            }
            Self::Active(mcp) => {
                if mcp.pending.take_if(|pending| pending.deadline <= cx.now).is_some() {
                    mcp.fail_discovery(WHY, cx);
                }
            }
            Self::Disabled | Self::AwaitingInitialize(_) | Self::Unanswered | Self::Discovered(_) => {}
        }
    }

    /// A new WebSocket is open: it must not get the answers to an earlier server's requests.
    pub(super) fn on_new_server(&mut self) {
        if let Self::Active(mcp) = self {
            mcp.translated_ids = VecDeque::new();
        }
    }

    /// The call has ended, and with it the chat server's requests.
    pub(super) fn on_call_ended(&mut self) {
        if let Self::Active(mcp) = self {
            mcp.translated_ids = VecDeque::new();
            mcp.initialize_answered_from_cache = false;
        }
        self.compact();
    }

    /// Frees the proxy if only the list is left of it. To be called after each message for [`activate`](Self::activate)'s proxy.
    pub(super) fn compact(&mut self) {
        let is_idle = |mcp: &McpProxy| {
            matches!(mcp.step, DiscoveryStep::Complete(_))
                && mcp.pending.is_none()
                && mcp.translated_ids.is_empty()
                && !mcp.initialize_answered_from_cache
        };
        if matches!(self, Self::Active(mcp) if is_idle(mcp))
            && let Self::Active(mcp) = mem::replace(self, Self::Unanswered)
            && let DiscoveryStep::Complete(list) = mcp.step
        {
            *self = Self::Discovered(list);
        }
    }

    /// The proxy that handles a message; `None` if it is turned off.
    pub(super) fn activate(&mut self, since: Instant) -> Option<&mut McpProxy> {
        let mcp = match mem::replace(self, Self::Disabled) {
            Self::Disabled => return None,
            Self::AwaitingInitialize(id) => {
                let pending = Some(DiscoveryRequest { id, deadline: since + RESPONSE_TIMEOUT });
                Box::new(McpProxy { pending, ..McpProxy::new(DiscoveryStep::Initializing) })
            }
            Self::Unanswered => Box::new(McpProxy::new(DiscoveryStep::Failed)),
            Self::Discovered(list) => Box::new(McpProxy::new(DiscoveryStep::Complete(list))),
            Self::Active(mcp) => mcp,
        };
        *self = Self::Active(mcp);
        match self {
            Self::Active(mcp) => Some(mcp),
            _ => None,
        }
    }
}

impl McpProxy {
    fn new(step: DiscoveryStep) -> Self {
        Self {
            step,
            initialize_result: None,
            initialize_answered_from_cache: false,
            pending: None,
            translated_ids: VecDeque::new(),
        }
    }

    /// The device's response to the request with this id, one of ours. Returns what the chat server gets, if it asked.
    pub(super) fn on_response(
        &mut self,
        text: &str,
        id: u32,
        rpc: &Rpc<'_>,
        session_id: Option<&str>,
        cx: &mut Context<'_>,
    ) -> Option<String> {
        if self.pending.take_if(|pending| pending.id == id).is_some() {
            self.on_discovery_response(rpc, session_id, cx);
            return None;
        }
        // Ids repeat after 2^30 requests: of two equal ones, the later request is the one still waited for.
        let index = self.translated_ids.iter().rposition(|(ours, _)| *ours == id)?;
        let (_, original) = self.translated_ids.remove(index)?;
        message::replace_rpc_id(text, &original, Reader::Server)
    }

    fn on_discovery_response(&mut self, rpc: &Rpc<'_>, session_id: Option<&str>, cx: &mut Context<'_>) {
        let Some(result) = rpc.result else {
            return self.fail_discovery("the device answered with an error", cx);
        };
        match &mut self.step {
            DiscoveryStep::Initializing => {
                self.initialize_result = Some(cx.tool_lists.received(result));
                self.step = DiscoveryStep::Listing(Box::default());
                cx.publish(message::mcp_notification(session_id, "notifications/initialized"));
                self.send_request("tools/list", r#"{"cursor":""}"#, session_id, cx);
            }
            DiscoveryStep::Listing(listing) => {
                let PartialList { tools, cursors, cut } = &mut **listing;
                let Ok(page) = serde_json::from_str::<ToolsPage<'_>>(result) else {
                    return self.fail_discovery("invalid page of tools", cx);
                };
                let bytes = |tools: &[&RawValue]| tools.iter().map(|tool| tool.get().len()).sum::<usize>();
                let fits = tools.len() + page.tools.len() <= cx.config.mcp.max_tools_count
                    && tools.iter().map(|tool| tool.len()).sum::<usize>() + bytes(&page.tools)
                        <= MAX_TOOLS_BYTES;
                match cut {
                    None if fits => {
                        tools.extend(page.tools.iter().map(|tool| cx.tool_lists.received(tool.get())));
                    }
                    _ => cut.get_or_insert((cursors.len(), 0)).1 += page.tools.len(),
                }
                let Some(next) = page.next_cursor.filter(|cursor| !cursor.is_empty()) else {
                    return self.finish_discovery(cx);
                };
                if cursors.len() >= MAX_PAGES || cursors.iter().any(|seen| **seen == *next) {
                    return self.fail_discovery("the pages do not end", cx);
                }
                let params = format!(r#"{{"cursor":{}}}"#, message::json_quote(&next));
                cursors.push(next.into_boxed_str());
                self.send_request("tools/list", &params, session_id, cx);
            }
            DiscoveryStep::Complete(_) | DiscoveryStep::Failed => {}
        }
    }

    /// All pages have been seen. Of more tools than may be cached, the first pages are, and the server gets the cursor of the next.
    fn finish_discovery(&mut self, cx: &mut Context<'_>) {
        let DiscoveryStep::Listing(listing) = &self.step else { return };
        let PartialList { tools, cursors, cut } = &**listing;
        let (pages, forwarded) = cut.unwrap_or_default();
        let count = Ok(ToolCount { cached: tools.len(), forwarded });
        let next = match (cut, cursors.get(pages.wrapping_sub(1))) {
            (None, _) => None,
            (Some(_), Some(cursor)) => Some(&**cursor),
            // Not even the first page fits: all requests are forwarded.
            (Some(_), None) => {
                cx.log(LogEvent::ToolDiscovery(count));
                return self.step = DiscoveryStep::Failed;
            }
        };
        let initialize_result = self.initialize_result.as_deref().unwrap_or_default();
        let Some(list) = cx.tool_lists.share(initialize_result, tools, next) else {
            return self.fail_discovery("the different lists of all devices leave no memory for it", cx);
        };
        cx.log(LogEvent::ToolDiscovery(count));
        self.initialize_result = None;
        self.step = DiscoveryStep::Complete(list);
    }

    /// The device's result of `initialize`, raw.
    fn initialize_result(&self) -> Option<&str> {
        match &self.step {
            DiscoveryStep::Complete(list) => Some(list.initialize_result()),
            _ => self.initialize_result.as_deref(),
        }
    }

    fn fail_discovery(&mut self, why: &'static str, cx: &mut Context<'_>) {
        self.step = DiscoveryStep::Failed;
        cx.log(LogEvent::ToolDiscovery(Err(why)));
    }

    fn send_request(&mut self, method: &str, params: &str, session_id: Option<&str>, cx: &mut Context<'_>) {
        let id = cx.ids.issue();
        self.pending = Some(DiscoveryRequest { id, deadline: cx.now + RESPONSE_TIMEOUT });
        cx.publish(message::mcp_request(session_id, id, method, params));
    }

    /// Handles a message of the chat server, which knows the session as `session_id`.
    pub(super) fn on_server_message<'a>(
        &mut self,
        text: &'a str,
        session_id: Option<&str>,
        cx: &mut Context<'_>,
    ) -> ServerMessageOutcome<'a> {
        let unchanged = ServerMessageOutcome::Forward(Cow::Borrowed(text));
        let Some(rpc) = message::parse_rpc(text, Reader::Device).filter(|_| cx.config.mcp.enabled) else {
            return unchanged;
        };
        let Some(method) = rpc.method.as_deref() else { return unchanged };
        match (method, rpc.id, &self.step, self.initialize_result()) {
            ("tools/list", Some(id), DiscoveryStep::Complete(list), _) if requests_full_list(rpc.params) => {
                ServerMessageOutcome::Answer(message::mcp_result(session_id, id, &list.to_result()))
            }
            ("initialize", Some(id), _, Some(result)) if !has_capabilities(rpc.params) => {
                let answer = message::mcp_result(session_id, id, result);
                self.initialize_answered_from_cache = true;
                ServerMessageOutcome::Answer(answer)
            }
            ("notifications/initialized", None, ..) if self.initialize_answered_from_cache => {
                ServerMessageOutcome::Consumed
            }
            _ => {
                self.initialize_answered_from_cache &= method != "initialize";
                self.translate(text, &rpc, cx)
                    .map_or(unchanged, |text| ServerMessageOutcome::Forward(text.into()))
            }
        }
    }

    /// The request with an id of the gateway, if the server's own id is in the range of the gateway's, or of a kind that devices do
    /// not answer.
    fn translate(&mut self, text: &str, rpc: &Rpc<'_>, cx: &Context<'_>) -> Option<String> {
        let is_plain = |id: &str| id.parse::<u32>().is_ok_and(|id| id < RequestIds::FIRST);
        let id = rpc.id.filter(|id| !is_plain(id) && id.len() <= MAX_ID_BYTES)?;
        let ours = cx.ids.issue();
        let translated = message::replace_rpc_id(text, &ours.to_string(), Reader::Device)?;
        if self.translated_ids.len() >= MAX_TRANSLATED {
            self.translated_ids.pop_front();
        }
        self.translated_ids.push_back((ours, id.into()));
        Some(translated)
    }
}

/// Whether a `tools/list` asks for the whole list: it has no parameters, or only an empty cursor.
fn requests_full_list(params: Option<&str>) -> bool {
    let Some(params) = params.filter(|params| *params != "null") else { return true };
    JsonObject::parse(params).is_ok_and(|params| {
        params.entries().all(|(key, value)| key == "cursor" && matches!(value, "\"\"" | "null"))
    })
}

/// Whether an `initialize` has capabilities. They contain the URL for the camera's pictures, so the device must get them.
fn has_capabilities(params: Option<&str>) -> bool {
    let params = params.and_then(|params| JsonObject::parse(params).ok());
    let capabilities = params.as_ref().and_then(|params| params.object("capabilities"));
    capabilities.is_some_and(|capabilities| capabilities.entries().next().is_some())
}
