//! The session table, its indexes and its memory budget.

pub mod index;
pub(in crate::net) mod memory_budget;
pub(in crate::net) mod session;
pub(in crate::net) mod table;
