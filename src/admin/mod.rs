//! The management API without its sockets: requests and answers as bytes, who may call, which calls there are, and what
//! they show.
//!
//! ```text
//! bytes -> http (head) -> body -> auth -> routes -> [net::admin carries it out] -> dto, prometheus -> http -> bytes
//! ```

pub mod auth;
pub mod body;
pub mod call_history;
pub mod call_record;
pub mod command_results;
pub mod dashboard;
pub mod device_setup;
pub mod dto;
pub mod error;
pub mod event;
pub mod forwarded;
pub mod gateway_answers;
pub mod gateways;
pub mod http;
pub mod messages;
pub mod notify;
pub mod notify_files;
pub mod params;
pub mod prometheus;
pub mod recent_errors;
pub mod requests_between_gateways;
pub mod response;
pub mod response_parser;
pub mod routes;
pub mod servers;
pub mod worker_answer;
