//! Sends one message to many devices: some at a time, so that audio is not delayed and a network is not flooded with what
//! thousands of devices do at the same moment.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use log::info;

use crate::admin::messages::{MessageCounts, Recipients};
use crate::admin::params::{BadParameter, Members};
use crate::admin::response::Response;
use crate::admin::worker_answer::Answer;
use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::admin_handlers::{bad_json, bad_parameter, bad_type, check_message_type};
use crate::proto::identity::ClientId;
use crate::session::Delivery;

/// Devices that get the message at a time, and the pause before the next: 2,500 in a second, for each worker.
pub(super) const BATCH: usize = 20;
const PAUSE: Duration = Duration::from_millis(8);
/// Messages to many that one worker sends or keeps at a time. The devices of a further one are refused.
pub(super) const MAX_BROADCASTS: usize = 8;

/// The messages that are being sent, one after the other.
#[derive(Default)]
pub(crate) struct Broadcasts(pub(super) VecDeque<Broadcast>);

pub(super) struct Broadcast {
    request_id: u64,
    message: String,
    pub(super) left: VecDeque<SessionId>,
    pub(super) counts: MessageCounts,
}

impl Gateway {
    /// `POST /api/messages`. `None`: the answer follows when this worker's last device was served.
    pub(super) fn handle_broadcast(
        &mut self,
        request_id: u64,
        body: &str,
    ) -> Result<Option<Answer>, Response> {
        let (recipients, message) = parse(body)?;
        let (chosen, mut counts) = self.choose(recipients);
        if self.broadcasts.0.len() >= MAX_BROADCASTS || chosen.is_empty() {
            counts.refused = chosen.len();
            return Ok(Some(Answer::Messages(counts)));
        }
        info!("{} devices are sent a message by an operator", chosen.len());
        let left = chosen.into();
        self.broadcasts.0.push_back(Broadcast { request_id, message, left, counts });
        if self.broadcasts.0.len() == 1 {
            self.io.timers.arm(self.io.now, TimerKind::Broadcast);
        }
        Ok(None)
    }

    /// The devices of this worker that get a message.
    fn choose(&self, recipients: Recipients) -> (Vec<SessionId>, MessageCounts) {
        let mut counts = MessageCounts::default();
        let mut chosen = match recipients {
            Recipients::All => self.sessions.ids(),
            Recipients::Group(group) => {
                let has_group =
                    |id: &SessionId| self.sessions.client_id(*id).map(ClientId::group) == Some(&group);
                self.sessions.ids().into_iter().filter(has_group).collect()
            }
            Recipients::Named(names) => {
                let mut named = HashSet::new();
                for name in names {
                    let found = self.sessions.all_by_name(&name);
                    if !found.iter().any(|id| self.is_present(*id)) {
                        counts.not_connected.insert(name);
                    }
                    named.extend(found);
                }
                named.into_iter().collect()
            }
        };
        chosen.retain(|id| self.is_present(*id));
        (chosen, counts)
    }

    fn is_present(&self, id: SessionId) -> bool {
        let is_elsewhere = self.cluster.remote_calls.contains(id);
        !is_elsewhere && self.sessions.core(id).is_some_and(|core| core.is_present())
    }

    /// Sends the next devices their message.
    pub(super) fn on_broadcast_timer(&mut self) {
        let Some(mut broadcast) = self.broadcasts.0.pop_front() else { return };
        for _ in 0..BATCH {
            let Some(id) = broadcast.left.pop_front() else { break };
            let counts = &mut broadcast.counts;
            match self.deliver_message(id, &broadcast.message) {
                Delivery::Sent => counts.sent += 1,
                Delivery::Queued => counts.queued += 1,
                Delivery::NotConnected => counts.left += 1,
            }
        }
        if broadcast.left.is_empty() {
            self.send_admin_response(broadcast.request_id, Answer::Messages(broadcast.counts));
        } else {
            self.broadcasts.0.push_front(broadcast);
        }
        if !self.broadcasts.0.is_empty() {
            self.io.timers.arm(self.io.now + PAUSE, TimerKind::Broadcast);
        }
    }
}

/// Who gets which message.
fn parse(body: &str) -> Result<(Recipients, String), Response> {
    let members = Members::of_body(body).map_err(|_| bad_json())?;
    let recipients = Recipients::parse(&members).map_err(bad_parameter)?;
    let message = members.object("message", "message.").map_err(bad_parameter)?;
    let (Some(message), Ok(Some(raw))) = (message, members.raw("message")) else {
        return Err(bad_parameter(BadParameter::new("message", "nothing", "an object")));
    };
    check_message_type(&message, raw).map_err(bad_type)?;
    message.string("session_id", "a string").map_err(bad_parameter)?;
    Ok((recipients, raw.to_owned()))
}
