//! The device's tools: learned once per connection, answered from memory, with request ids that collide with nobody's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::action::{Action, Cx, Note};
use super::request_ids::RequestIds;
use crate::proto::message::{self, Object, Reader, Rpc};

/// A device that has not answered by now will not.
const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// More pages than any device has.
const MAX_PAGES: usize = 64;
/// Bytes of tools remembered; more are not cached.
const MAX_TOOLS_BYTES: usize = 256 * 1024;
/// The chat server's requests under way at once; the oldest is forgotten.
const MAX_TRANSLATED: usize = 64;
/// Bytes of a chat server's id that are worth remembering.
const MAX_ID_BYTES: usize = 128;

/// What became of an `mcp` message of the device.
pub(super) enum FromDevice {
    /// It is for the chat server.
    Forward,
    /// It answered a request of ours.
    Taken,
    /// It answered a translated request: this goes to the chat server.
    Reply(String),
}

/// What became of an `mcp` message of the chat server.
pub(super) enum FromServer {
    /// It is for the device.
    Forward,
    /// Nothing more to do.
    Taken,
    /// Answered from memory: this goes back.
    Answer(String),
    /// For the device, under an id of ours.
    Translated(String),
}

/// What there is to remember of a device's tools: nothing on the heap until it answers or is asked something.
pub(super) enum Tools {
    /// Not wanted.
    Off,
    /// `initialize` is out since the device was let in, under this id.
    Asked(u32),
    /// The device did not answer.
    Silent,
    /// More than that.
    Mind(Box<Mcp>),
}

/// Discovery, memory, and requests under way of one device.
pub(super) struct Mcp {
    step: Step,
    /// The device's answer to `initialize`, raw.
    initialized: Option<Box<str>>,
    /// We answered the server's `initialize`, so its `notifications/initialized` is ours too.
    spoke_for_device: bool,
    /// Our own request under way.
    asked: Option<Asked>,
    /// Ids of ours that stand for the chat server's own, which are raw.
    translated: VecDeque<(u32, Box<str>)>,
}

enum Step {
    Initializing,
    Listing(Box<Listing>),
    /// All tools as one raw JSON array.
    Known(Box<str>),
    Unknown,
}

#[derive(Default)]
struct Listing {
    tools: Vec<Box<str>>,
    cursors: Vec<Box<str>>,
}

struct Asked {
    id: u32,
    until: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolsPage<'a> {
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
    #[serde(default)]
    next_cursor: Option<String>,
}

impl Tools {
    /// Asks a device that just connected for its tools. Requests of the chat server that were under way when an
    /// `earlier` connection was lost may still be answered.
    pub(super) fn begin(earlier: Self, session_id: Option<&str>, cx: &mut Cx<'_>) -> Self {
        if !cx.config.mcp.enabled {
            return Self::Off;
        }
        let params = format!(
            r#"{{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{}}}"#,
            cx.config.mcp.capabilities, cx.config.mcp.client_info
        );
        if let Self::Mind(mcp) = earlier
            && !mcp.translated.is_empty()
        {
            let mut mcp = Box::new(Mcp { translated: mcp.translated, ..Mcp::new(Step::Initializing) });
            mcp.ask("initialize", &params, session_id, cx);
            return Self::Mind(mcp);
        }
        let id = cx.ids.issue();
        cx.out.push(Action::Publish(message::mcp_request(session_id, id, "initialize", &params)));
        Self::Asked(id)
    }

    /// Bytes of what the device told.
    pub(super) fn kept(&self) -> usize {
        let Self::Mind(mcp) = self else { return 0 };
        let all = |texts: &[Box<str>]| texts.iter().map(|text| text.len()).sum::<usize>();
        let step = match &mcp.step {
            Step::Listing(listing) => all(&listing.tools) + all(&listing.cursors),
            Step::Known(tools) => tools.len(),
            Step::Initializing | Step::Unknown => 0,
        };
        step + mcp.initialized.as_ref().map_or(0, |text| text.len())
    }

    /// `since`: when the device was let in.
    pub(super) fn deadline(&self, since: Instant) -> Option<Instant> {
        match self {
            Self::Off | Self::Silent => None,
            Self::Asked(_) => Some(since + REPLY_WITHIN),
            Self::Mind(mcp) => mcp.asked.as_ref().map(|asked| asked.until),
        }
    }

    pub(super) fn timeout(&mut self, since: Instant, cx: &mut Cx<'_>) {
        const WHY: &str = "no answer in 10 s";
        match self {
            Self::Asked(_) if since + REPLY_WITHIN <= cx.now => {
                *self = Self::Silent;
                cx.out.push(Action::Note(Note::Tools(Err(WHY))));
            }
            Self::Mind(mcp) => {
                if mcp.asked.take_if(|asked| asked.until <= cx.now).is_some() {
                    mcp.fail(WHY, cx);
                }
            }
            Self::Off | Self::Asked(_) | Self::Silent => {}
        }
    }

    /// A new WebSocket: what an earlier server asked is not for this one to hear.
    pub(super) fn another_server(&mut self) {
        if let Self::Mind(mcp) = self {
            mcp.translated = VecDeque::new();
        }
    }

    /// For a message to be judged; None when tools are not wanted.
    pub(super) fn mind(&mut self, since: Instant) -> Option<&mut Mcp> {
        let mcp = match self {
            Self::Off => return None,
            Self::Asked(id) => {
                let asked = Some(Asked { id: *id, until: since + REPLY_WITHIN });
                Mcp { asked, ..Mcp::new(Step::Initializing) }
            }
            Self::Silent => Mcp::new(Step::Unknown),
            Self::Mind(mcp) => return Some(mcp),
        };
        *self = Self::Mind(Box::new(mcp));
        match self {
            Self::Mind(mcp) => Some(mcp),
            _ => None,
        }
    }
}

impl Mcp {
    fn new(step: Step) -> Self {
        Self { step, initialized: None, spoke_for_device: false, asked: None, translated: VecDeque::new() }
    }

    /// A message of the device.
    pub(super) fn device_says(
        &mut self,
        text: &str,
        session_id: Option<&str>,
        cx: &mut Cx<'_>,
    ) -> FromDevice {
        let Some(rpc) = message::rpc(text, Reader::Server).filter(|rpc| rpc.method.is_none()) else {
            return FromDevice::Forward;
        };
        let ours = rpc.id.and_then(|id| id.parse::<u32>().ok()).filter(|id| RequestIds::contains(*id));
        let Some(id) = ours else { return FromDevice::Forward };
        if self.asked.take_if(|asked| asked.id == id).is_some() {
            self.discovered(&rpc, session_id, cx);
            return FromDevice::Taken;
        }
        // Of two with one id, 2^30 requests apart, the later one is still waited for.
        let place = self.translated.iter().rposition(|(ours, _)| *ours == id);
        let original = place.and_then(|place| self.translated.remove(place));
        match original.and_then(|(_, original)| message::replace_rpc_id(text, &original, Reader::Server)) {
            Some(text) => FromDevice::Reply(text),
            None => FromDevice::Taken,
        }
    }

    fn discovered(&mut self, rpc: &Rpc<'_>, session_id: Option<&str>, cx: &mut Cx<'_>) {
        let Some(result) = rpc.result else { return self.fail("the device answered with an error", cx) };
        match &mut self.step {
            Step::Initializing => {
                self.initialized = Some(result.into());
                self.step = Step::Listing(Box::default());
                cx.out.push(Action::Publish(message::mcp_notification(
                    session_id,
                    "notifications/initialized",
                )));
                self.ask("tools/list", r#"{"cursor":""}"#, session_id, cx);
            }
            Step::Listing(listing) => {
                let Listing { tools, cursors } = &mut **listing;
                let Ok(page) = serde_json::from_str::<ToolsPage<'_>>(result) else {
                    return self.fail("a page of tools that is none", cx);
                };
                let max = cx.config.mcp.max_tools_count;
                let room = max.saturating_sub(tools.len());
                tools.extend(page.tools.iter().take(room).map(|tool| Box::from(tool.get())));
                if tools.iter().map(|tool| tool.len()).sum::<usize>() > MAX_TOOLS_BYTES {
                    return self.fail("more tools than are remembered", cx);
                }
                let next = page.next_cursor.filter(|cursor| !cursor.is_empty());
                let Some(next) = next.filter(|_| tools.len() < max) else {
                    cx.out.push(Action::Note(Note::Tools(Ok(tools.len()))));
                    self.step = Step::Known(format!("[{}]", tools.join(",")).into_boxed_str());
                    return;
                };
                if cursors.len() >= MAX_PAGES || cursors.iter().any(|seen| **seen == *next) {
                    return self.fail("its pages never end", cx);
                }
                let params = format!(r#"{{"cursor":{}}}"#, message::quote(&next));
                cursors.push(next.into_boxed_str());
                self.ask("tools/list", &params, session_id, cx);
            }
            Step::Known(_) | Step::Unknown => {}
        }
    }

    fn fail(&mut self, why: &'static str, cx: &mut Cx<'_>) {
        self.step = Step::Unknown;
        cx.out.push(Action::Note(Note::Tools(Err(why))));
    }

    fn ask(&mut self, method: &str, params: &str, session_id: Option<&str>, cx: &mut Cx<'_>) {
        let id = cx.ids.issue();
        self.asked = Some(Asked { id, until: cx.now + REPLY_WITHIN });
        cx.out.push(Action::Publish(message::mcp_request(session_id, id, method, params)));
    }

    /// A message of the chat server, which knows itself by `session_id`.
    pub(super) fn server_says(
        &mut self,
        text: &str,
        session_id: Option<&str>,
        cx: &mut Cx<'_>,
    ) -> FromServer {
        let Some(rpc) = message::rpc(text, Reader::Device).filter(|_| cx.config.mcp.enabled) else {
            return FromServer::Forward;
        };
        let Some(method) = rpc.method.as_deref() else { return FromServer::Forward };
        match (method, rpc.id, &self.step, &self.initialized) {
            ("tools/list", Some(id), Step::Known(tools), _) if asks_for_all(rpc.params) => {
                let result = format!(r#"{{"tools":{tools}}}"#);
                FromServer::Answer(message::mcp_result(session_id, id, &result))
            }
            ("initialize", Some(id), _, Some(result)) if !carries_capabilities(rpc.params) => {
                self.spoke_for_device = true;
                FromServer::Answer(message::mcp_result(session_id, id, result))
            }
            ("initialize", ..) => {
                self.spoke_for_device = false;
                self.translate(text, &rpc, cx)
            }
            ("notifications/initialized", None, ..) if self.spoke_for_device => FromServer::Taken,
            _ => self.translate(text, &rpc, cx),
        }
    }

    /// Gives a request an id of ours when the server's own could be taken for one, or is not one devices answer.
    fn translate(&mut self, text: &str, rpc: &Rpc<'_>, cx: &Cx<'_>) -> FromServer {
        let plain = |id: &str| id.parse::<u32>().is_ok_and(|id| id < RequestIds::FIRST);
        let Some(id) = rpc.id.filter(|id| !plain(id) && id.len() <= MAX_ID_BYTES) else {
            return FromServer::Forward;
        };
        let ours = cx.ids.issue();
        let Some(translated) = message::replace_rpc_id(text, &ours.to_string(), Reader::Device) else {
            return FromServer::Forward;
        };
        if self.translated.len() >= MAX_TRANSLATED {
            self.translated.pop_front();
        }
        self.translated.push_back((ours, id.into()));
        FromServer::Translated(translated)
    }
}

/// A tools/list that any complete list answers: no parameters, or none but an empty cursor.
fn asks_for_all(params: Option<&str>) -> bool {
    let Some(params) = params.filter(|params| *params != "null") else { return true };
    Object::parse(params).is_ok_and(|params| {
        params.entries().all(|(key, value)| key == "cursor" && matches!(value, "\"\"" | "null"))
    })
}

/// The camera's vision URL travels in the capabilities of `initialize`.
fn carries_capabilities(params: Option<&str>) -> bool {
    let params = params.and_then(|params| Object::parse(params).ok());
    let capabilities = params.as_ref().and_then(|params| params.object("capabilities"));
    capabilities.is_some_and(|capabilities| capabilities.entries().next().is_some())
}
