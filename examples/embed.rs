//! The gateway as a library in another program: it listens on free ports, runs in a thread, and is stopped.
//!
//! ```text
//! cargo run --example embed
//! ```
#![allow(clippy::print_stdout)] // An example shows what it does.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use mqtt_websocket_proxy::tools::echo::EchoServer;

fn main() -> Result<(), Box<dyn Error>> {
    // A chat server for the calls; here the built-in echo server, in your program a URL from your settings.
    let chat_server = EchoServer::start()?;
    let mut config = Config::default();
    config.websocket.production = vec![Arc::new(chat_server.url().parse()?)];
    // Port 0 is any free port; 0.0.0.0 would accept other machines.
    (config.mqtt.host, config.mqtt.port) = (Ipv4Addr::LOCALHOST.into(), 0);
    (config.udp.host, config.udp.port) = (Ipv4Addr::LOCALHOST.into(), 0);
    config.api.port = 0;

    // The gateway runs on its own thread; use `Gateway::bind` and `Gateway::run` for a thread of yours.
    let gateway = Running::start(config, None)?;
    let addresses = gateway.addresses();
    println!("gateway up: MQTT {}, UDP {}", addresses.mqtt, addresses.udp);

    // The rest of your program. Here: a device makes a call.
    let login = Login::new("02:00:00:00:00:02".parse()?, None);
    let mut device = SimulatedDevice::connect(addresses.mqtt, &login, Duration::from_secs(5))?;
    let call = device.call()?;
    println!("a device is in a call, session {}", call.parameters.session_id);

    // Devices in a call get a goodbye, then the thread ends. A handle can stop it from any other thread.
    gateway.stop(Duration::from_secs(1))?;
    let goodbye = device.wait_for("goodbye", Duration::from_secs(5))?;
    println!("the gateway said {goodbye} and stopped");
    Ok(())
}
