//! What the tests of the sub-commands share.

pub(super) mod fake_gateway;
