//! Chat servers that fail before their hello, in every way there is, and what a device then hears.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::chat::{ChatServer, Message, Peer, agreement};
use super::closed_port;
use super::device::{Device, HELLO};

/// How a chat server fails before its hello.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
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

/// Those that show at once.
pub const QUICK: [Fault; 14] = [
    Fault::Refused,
    Fault::Reset,
    Fault::ClosedAtOnce,
    Fault::Status("400 Bad Request"),
    Fault::Status("401 Unauthorized"),
    Fault::Status("302 Found"),
    Fault::Status("200 OK"),
    Fault::Status("503 Service Unavailable"),
    Fault::NotHttp,
    Fault::WrongAccept,
    Fault::CloseCode(1000),
    Fault::CloseCode(1011),
    Fault::GoneAfterUpgrade,
    Fault::Goodbye,
];

/// Those that show by a deadline only.
pub const SLOW: [Fault; 5] = [
    Fault::StallsBeforeTls,
    Fault::StallsAtUpgrade,
    Fault::StallsInHead,
    Fault::StallsAtHello,
    Fault::StallsAtConnect,
];

/// A URL that fails so, and what keeps it failing.
pub fn faulty(fault: Fault) -> (String, Vec<Box<dyn std::any::Any + Send>>) {
    match fault {
        Fault::Refused => return (format!("ws://{}/", closed_port()), Vec::new()),
        Fault::Unresolvable => return ("ws://does-not-exist.invalid/".to_owned(), Vec::new()),
        Fault::StallsAtConnect => {
            // A queue of one place that is taken: further SYNs are dropped.
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
        Fault::StallsBeforeTls => format!("wss://{}/", server.addr),
        _ => server.url(),
    };
    server.serve(move |peer| fail(peer, fault));
    (url, Vec::new())
}

fn fail(mut peer: Peer, fault: Fault) {
    match fault {
        Fault::Reset => peer.reset(),
        Fault::ClosedAtOnce => drop(peer),
        Fault::Status(status) => drop(peer.refuse(status)),
        Fault::NotHttp => {
            peer.request();
            peer.send_raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n");
        }
        Fault::WrongAccept => {
            let mut request = peer.request();
            request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("sec-websocket-key"));
            request.headers.push(("sec-websocket-key".to_owned(), "AAAAAAAAAAAAAAAAAAAAAA==".to_owned()));
            peer.send_raw(agreement(&request).as_bytes());
            peer.hold();
        }
        Fault::CloseCode(code) => {
            peer.upgrade();
            peer.json();
            peer.send_close(Some(code));
            while !matches!(peer.message(), Message::End | Message::Close(_)) {}
        }
        Fault::GoneAfterUpgrade => {
            peer.upgrade();
            peer.json();
            peer.reset();
        }
        Fault::BadFrame => {
            peer.upgrade();
            peer.send_raw(&[0xff, 0x00]);
            while peer.message() != Message::End {}
        }
        Fault::Goodbye => {
            peer.upgrade();
            peer.json();
            peer.say(r#"{"type":"goodbye"}"#);
            while peer.message() != Message::End {}
        }
        Fault::StallsInHead => {
            peer.request();
            peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso");
            peer.hold();
        }
        Fault::StallsAtHello => {
            peer.upgrade();
            while peer.message() != Message::End {}
        }
        _ => peer.hold(),
    }
}

/// The device is told in words, ends the call, and can call again; how long that took.
pub fn assert_told_in_words(device: &mut Device) -> Duration {
    let start = Instant::now();
    device.say(HELLO);
    let alert = device.json();
    let took = start.elapsed();
    assert_eq!(alert["type"], "alert");
    for key in ["status", "message", "emotion"] {
        assert!(alert[key].as_str().is_some_and(|text| !text.is_empty()), "{alert}");
    }
    // A complete hello, so that the device's wait ends, and goodbye.
    let call = device.answered();
    device.expect_goodbye(&call.session_id);
    device.mqtt.assert_quiet();
    took
}
