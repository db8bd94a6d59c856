//! A connection to a server, from the lookup of its name to the open stream.

use std::mem;
use std::time::Instant;

use mio::net::TcpStream;

use crate::config::ChatServerConfig;
use crate::net::backend::dial::{Dial, DialContext, DialProgress};
use crate::net::backend::resolver::Answer;
use crate::net::event_loop::stream::Stream;

/// A connection that is being made, or is open.
#[derive(Default)]
pub(crate) enum DialedStream {
    /// There is none, or it has failed.
    #[default]
    Closed,
    /// The name is being looked up.
    Resolving,
    /// The name was looked up.
    Resolved(Answer),
    Dialing(Dial),
    Open(Stream<TcpStream>),
}

/// How far it has come.
pub(crate) enum StreamProgress {
    /// Continue at the next event or time.
    Waiting,
    /// It is open since now.
    Connected,
    /// It was open before.
    Open,
}

impl DialedStream {
    /// Continues to connect to this server, as far as the socket allows.
    ///
    /// # Errors
    /// Why there is no connection, in words.
    pub(crate) fn advance(
        &mut self,
        server: &ChatServerConfig,
        cx: &mut DialContext<'_>,
    ) -> Result<StreamProgress, String> {
        let dial = match mem::take(self) {
            Self::Resolved(answer) => {
                *self = Self::Dialing(Dial::start(answer?.into(), cx).map_err(|failure| failure.message)?);
                return Ok(StreamProgress::Waiting);
            }
            Self::Dialing(dial) => dial,
            other => {
                *self = other;
                let is_open = matches!(self, Self::Open(_));
                return Ok(if is_open { StreamProgress::Open } else { StreamProgress::Waiting });
            }
        };
        match dial.advance(server, cx).map_err(|failure| failure.message)? {
            DialProgress::Blocked(dial) => {
                *self = Self::Dialing(dial);
                Ok(StreamProgress::Waiting)
            }
            DialProgress::Connected(stream) => {
                *self = Self::Open(stream);
                Ok(StreamProgress::Connected)
            }
        }
    }

    /// When to try the next address although the socket has no event.
    pub(crate) fn next_step_at(&self) -> Option<Instant> {
        match self {
            Self::Dialing(dial) => dial.next_step_at(),
            Self::Closed | Self::Resolving | Self::Resolved(_) | Self::Open(_) => None,
        }
    }
}
