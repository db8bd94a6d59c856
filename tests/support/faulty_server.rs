//! Chat servers that fail before their hello, and the alert that a device then gets.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::chat_server::{ChatServer, Message, Peer, upgrade_response};
use super::device::{Device, HELLO};
use super::refusing_port;

/// How a chat server fails before its hello.
#[derive(Clone, Copy, Debug)]
pub enum ServerFault {
    Refused,
    Reset,
    ClosedAtOnce,
    Status(&'static str),
    NotHttp,
    WrongAccept,
    CloseCode(u16),
    GoneAfterUpgrade,
    BadFrame,
    Goodbye,
    StallsBeforeTls,
    StallsAtUpgrade,
    StallsInHead,
    StallsAtHello,
    StallsAtConnect,
    Unresolvable,
}

/// Faults that are noticed at once.
pub const IMMEDIATE_FAULTS: [ServerFault; 14] = [
    ServerFault::Refused,
    ServerFault::Reset,
    ServerFault::ClosedAtOnce,
    ServerFault::Status("400 Bad Request"),
    ServerFault::Status("401 Unauthorized"),
    ServerFault::Status("302 Found"),
    ServerFault::Status("200 OK"),
    ServerFault::Status("503 Service Unavailable"),
    ServerFault::NotHttp,
    ServerFault::WrongAccept,
    ServerFault::CloseCode(1000),
    ServerFault::CloseCode(1011),
    ServerFault::GoneAfterUpgrade,
    ServerFault::Goodbye,
];

/// Faults that are only noticed by a time limit.
pub const STALLING_FAULTS: [ServerFault; 5] = [
    ServerFault::StallsBeforeTls,
    ServerFault::StallsAtUpgrade,
    ServerFault::StallsInHead,
    ServerFault::StallsAtHello,
    ServerFault::StallsAtConnect,
];

/// The URL of a server with this fault, and what must be kept alive for it.
pub fn start_faulty_server(fault: ServerFault) -> (String, Vec<Box<dyn std::any::Any + Send>>) {
    match fault {
        ServerFault::Refused => return (format!("ws://{}/", refusing_port()), Vec::new()),
        ServerFault::Unresolvable => return ("ws://does-not-exist.invalid/".to_owned(), Vec::new()),
        ServerFault::StallsAtConnect => {
            // The accept queue has one place, which is taken: further SYNs are dropped.
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(0).unwrap();
            let listener: TcpListener = socket.into();
            let addr = listener.local_addr().unwrap();
            let mut kept: Vec<Box<dyn std::any::Any + Send>> = vec![Box::new(listener)];
            while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
                kept.push(Box::new(stream));
            }
            return (format!("ws://{addr}/"), kept);
        }
        _ => {}
    }
    let server = ChatServer::start();
    let url = match fault {
        ServerFault::StallsBeforeTls => format!("wss://{}/", server.addr),
        _ => server.url(),
    };
    server.serve(move |peer| run_fault(peer, fault));
    (url, Vec::new())
}

fn run_fault(mut peer: Peer, fault: ServerFault) {
    match fault {
        ServerFault::Reset => peer.reset(),
        ServerFault::ClosedAtOnce => drop(peer),
        ServerFault::Status(status) => drop(peer.refuse(status)),
        ServerFault::NotHttp => {
            peer.request();
            peer.send_raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n");
        }
        ServerFault::WrongAccept => {
            let mut request = peer.request();
            request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("sec-websocket-key"));
            request.headers.push(("sec-websocket-key".to_owned(), "AAAAAAAAAAAAAAAAAAAAAA==".to_owned()));
            peer.send_raw(upgrade_response(&request).as_bytes());
            peer.ignore_until_closed();
        }
        ServerFault::CloseCode(code) => {
            peer.upgrade();
            peer.json();
            peer.send_close(Some(code));
            while !matches!(peer.message(), Message::End | Message::Close(_)) {}
        }
        ServerFault::GoneAfterUpgrade => {
            peer.upgrade();
            peer.json();
            peer.reset();
        }
        ServerFault::BadFrame => {
            peer.upgrade();
            peer.send_raw(&[0xff, 0x00]);
            while peer.message() != Message::End {}
        }
        ServerFault::Goodbye => {
            peer.upgrade();
            peer.json();
            peer.send_text(r#"{"type":"goodbye"}"#);
            while peer.message() != Message::End {}
        }
        ServerFault::StallsInHead => {
            peer.request();
            peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso");
            peer.ignore_until_closed();
        }
        ServerFault::StallsAtHello => {
            peer.upgrade();
            while peer.message() != Message::End {}
        }
        _ => peer.ignore_until_closed(),
    }
}

/// The device gets a complete hello reply, so that it stops waiting, a goodbye, and an alert that stays on its screen; returns how
/// long they took.
pub fn assert_failure_alert(device: &mut Device) -> Duration {
    let start = Instant::now();
    device.send_text(HELLO);
    let alert = device.expect_failure();
    let took = start.elapsed();
    for key in ["status", "message", "emotion"] {
        assert!(alert[key].as_str().is_some_and(|text| !text.is_empty()), "{alert}");
    }
    device.mqtt.assert_nothing_pending();
    took
}
