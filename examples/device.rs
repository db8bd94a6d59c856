//! A simulated device that makes one call.
//!
//! ```text
//! cargo run --example device -- 127.0.0.1:1883 --key KEY    calls through a gateway that runs already
//! cargo run --example device                                starts a gateway and an echo chat server of its own
//! ```
#![allow(clippy::print_stdout)] // An example shows what it does.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice, test_audio};
use mqtt_websocket_proxy::tools::echo::EchoServer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = pico_args::Arguments::from_env();
    let key: Option<String> = args.opt_value_from_str("--key")?;
    let mac = args.opt_value_from_str("--mac")?.unwrap_or_else(|| "02:00:00:00:00:03".to_owned());
    let packets: u32 = args.opt_value_from_str("--packets")?.unwrap_or(25);
    let gateway: Option<SocketAddr> = args.opt_free_from_str()?;
    if let Some(unknown) = args.finish().first() {
        return Err(
            format!("unknown argument {unknown:?}; allowed: ADDRESS:PORT, --key, --mac, --packets").into()
        );
    }
    let echo = EchoServer::start()?;
    let own = if gateway.is_none() { Some(own_gateway(&echo)?) } else { None };
    let gateway = gateway.or_else(|| own.as_ref().map(|own| own.addresses().mqtt)).ok_or("no gateway")?;

    let login = Login::new(mac.parse()?, key.as_deref().map(str::as_bytes));
    let mut device = SimulatedDevice::connect(gateway, &login, Duration::from_secs(5))?;
    println!("connected to {gateway} as {}", login.client_id);
    let mut call = device.call()?;
    println!("in a call: session {}, audio to {}", call.parameters.session_id, call.server_addr()?);

    // In realtime mode the firmware plays and listens at the same time; the echo server then echoes at once too.
    device.start_listening(&call, "realtime")?;
    for number in 0..packets {
        call.send(0, &test_audio::packet(number, 0))?;
        // A device sends one packet every 60 ms, and receives in between.
        let deadline = Instant::now() + Duration::from_millis(60);
        while let Some(audio) = call.receive(deadline.saturating_duration_since(Instant::now()))? {
            let what = test_audio::parse(&audio.payload)
                .map_or("speech".into(), |(number, _)| format!("packet {number}"));
            println!("heard {what}: sequence {}, {} bytes", audio.header.sequence, audio.payload.len());
        }
        while let Some(text) = device.receive_text(Duration::ZERO)? {
            println!("read  {text}");
        }
    }
    println!("{:?}", call.counts);
    device.goodbye(&call)?;
    device.disconnect()?;
    Ok(())
}

/// A gateway in a thread of this program. See the example `embed`.
fn own_gateway(echo: &EchoServer) -> Result<Running, Box<dyn Error>> {
    let mut config = Config::default();
    config.websocket.production = vec![Arc::new(echo.url().parse()?)];
    (config.mqtt.host, config.mqtt.port) = (Ipv4Addr::LOCALHOST.into(), 0);
    (config.udp.host, config.udp.port) = (Ipv4Addr::LOCALHOST.into(), 0);
    config.api.port = 0;
    Ok(Running::start(config, None)?)
}
