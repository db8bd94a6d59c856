//! A gateway between XiaoZhi voice devices (MQTT for control, encrypted UDP for audio) and WebSocket chat servers.

pub mod config;
pub mod logger;
pub mod net;
pub mod proto;
pub mod session;
pub mod tools;
