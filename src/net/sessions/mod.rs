//! The session table, its indexes and its memory budget.

pub mod index;
pub(crate) mod memory_budget;
pub(crate) mod session;
pub(crate) mod table;
