//! Upgrade in place, on systems where it is not possible: it is refused.

use std::io;

use log::error;

use crate::config::{Config, Source};
use crate::net::error::BindError;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::handle::Program;
use crate::net::media::steering::SharedPort;
use crate::net::upgrade::Predecessor;
use crate::proto::identity::Mac;

/// Nothing.
#[derive(Default)]
pub(crate) struct Upgrades(());

impl Upgrades {
    pub(crate) fn new(_: Option<SharedPort>) -> Self {
        Self(())
    }

    pub(crate) fn of_worker(&self) -> Self {
        Self(())
    }

    pub(crate) fn is_replaced(&self) -> bool {
        false
    }
}

impl Gateway {
    pub(super) fn upgrade(&mut self, program: Program) {
        let path = program.path.display();
        error!(
            "the upgrade to {path} is refused: it needs Linux; restart the gateway instead, which ends its calls"
        );
    }

    pub(super) fn on_predecessor_readable(&mut self, _: u32) {}

    pub(super) fn on_own_channel_readable(&mut self) {}

    pub(super) fn return_to_predecessor(&mut self, _: SessionId, _: &str, _: &[u8]) -> bool {
        false
    }

    pub(super) fn report_call_started(&self, _: Mac) {}

    pub(super) fn report_call_ended(&self, _: Mac) {}

    /// Not possible.
    ///
    /// # Errors
    /// None.
    pub fn bind_in_place_of(
        predecessor: &mut Predecessor,
        _: Config,
        _: Option<Source>,
    ) -> Result<Self, BindError> {
        match predecessor.0 {}
    }

    /// Not possible.
    ///
    /// # Errors
    /// None.
    pub fn replace(&mut self, predecessor: &Predecessor) -> io::Result<()> {
        match predecessor.0 {}
    }

    /// Cannot be called, since there is no [`Predecessor`].
    pub fn begin_to_serve(&self, predecessor: &Predecessor) {
        match predecessor.0 {}
    }
}
