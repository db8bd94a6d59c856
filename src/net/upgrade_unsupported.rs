//! Upgrade in place, on systems where it is not possible: no process replaces another one.

use std::convert::Infallible;
use std::io;

/// There is none.
pub struct Predecessor(pub(crate) Infallible);

impl Predecessor {
    /// None.
    ///
    /// # Errors
    /// None.
    pub fn from_environment() -> io::Result<Option<Self>> {
        Ok(None)
    }

    /// Does nothing.
    pub fn report_failure(&self, _: &str) {}
}
