//! The echo chat server on a port of your choice, for a gateway's `websocket.production_servers`.
//!
//! ```text
//! cargo run --example chat_server -- --listen 127.0.0.1:8000    serves until it is stopped
//! cargo run --example chat_server                               starts on a free port, talks to itself, and ends
//! ```
#![allow(clippy::print_stdout)] // An example shows what it does.

use std::error::Error;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use mqtt_websocket_proxy::tools::echo::EchoServer;
use tungstenite::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = pico_args::Arguments::from_env();
    let listen: Option<SocketAddr> = args.opt_value_from_str("--listen")?;
    if let Some(unknown) = args.finish().first() {
        return Err(format!("unknown argument {unknown:?}; allowed: --listen ADDRESS:PORT").into());
    }
    let Some(listen) = listen else { return self_test() };
    let server = EchoServer::start_on(listen)?;
    println!("echo chat server at {}; Ctrl-C stops it", server.url());
    loop {
        std::thread::park();
    }
}

/// A short call, as a gateway would make it.
fn self_test() -> Result<(), Box<dyn Error>> {
    let server = EchoServer::start()?;
    println!("echo chat server at {}", server.url());
    let stream = TcpStream::connect(server.addr())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut socket, _) = tungstenite::client(server.url(), stream)?;

    let hello = r#"{"type":"hello","version":2,"transport":"websocket","audio_params":{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":20}}"#;
    socket.send(Message::text(hello))?;
    println!("> {hello}\n< {}", socket.read()?);
    let listen = r#"{"type":"listen","state":"start","mode":"manual"}"#;
    socket.send(Message::text(listen))?;
    println!("> {listen}");
    for _ in 0..10 {
        socket.send(Message::binary(&b"an Opus packet"[..]))?;
    }
    let stop = r#"{"type":"listen","state":"stop"}"#;
    socket.send(Message::text(stop))?;
    println!("> 10 frames\n> {stop}");
    // Each frame is echoed at once, and again between `tts start` and `tts stop`.
    let mut frames = 0;
    loop {
        match socket.read()? {
            Message::Binary(_) => frames += 1,
            Message::Text(text) => {
                println!("< {frames} frames, then {text}");
                frames = 0;
                if text.contains(r#""state":"stop""#) {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}
