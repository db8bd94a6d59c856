//! The management API without its sockets: requests and answers as bytes, who may call, which calls there are, and what
//! they show.
//!
//! ```text
//! bytes -> http (head) -> body -> auth -> routes -> [net::admin carries it out] -> json, metrics -> http -> bytes
//! ```

pub mod auth;
pub mod body;
pub mod error;
pub mod http;
pub mod json;
pub mod merge;
pub mod metrics;
pub mod page;
pub mod params;
pub mod routes;
pub mod troubles;
