use std::io::{Read, Write};

use super::*;

type Client = WebSocket<std::net::TcpStream>;

fn connect(server: &EchoServer) -> Client {
    let stream = std::net::TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    tungstenite::client(server.url(), stream).unwrap().0
}

fn hello(client: &mut Client) {
    let hello = r#"{"type":"hello","version":2,"audio_params":{"frame_duration":20}}"#;
    client.send(Message::text(hello)).unwrap();
    let reply = client.read().unwrap().into_text().unwrap();
    assert!(reply.starts_with(r#"{"type":"hello","transport":"websocket","session_id":""#), "{reply}");
    assert!(reply.ends_with(r#""audio_params":{"frame_duration":20}}"#), "{reply}");
}

#[test]
fn frames_come_back_byte_for_byte_and_in_order() {
    let server = EchoServer::start().unwrap();
    let mut client = connect(&server);
    hello(&mut client);
    // More than the budget of one iteration, in one burst.
    for i in 0..300_u16 {
        client.write(Message::binary(i.to_be_bytes().repeat(usize::from(i) + 1))).unwrap();
    }
    client.flush().unwrap();
    for i in 0..300_u16 {
        let echoed = client.read().unwrap().into_data();
        assert_eq!(&echoed[..], i.to_be_bytes().repeat(usize::from(i) + 1));
    }
}

#[test]
fn a_recording_is_played_back_between_tts_start_and_stop() {
    let server = EchoServer::start().unwrap();
    let mut client = connect(&server);
    hello(&mut client);
    client.send(Message::text(r#"{"type":"listen","state":"start","mode":"manual"}"#)).unwrap();
    for i in 0..8_u8 {
        client.send(Message::binary(vec![i; 20])).unwrap();
    }
    client.send(Message::text(r#"{"type":"listen","state":"stop"}"#)).unwrap();
    let mut seen = Vec::new();
    loop {
        match client.read().unwrap() {
            Message::Text(text) if text.contains(r#""state":"stop""#) => break,
            Message::Text(text) if text.contains(r#""state":"start""#) => seen.clear(),
            Message::Binary(frame) => seen.push(frame[0]),
            _ => {}
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn bad_clients_do_not_disturb_the_others() {
    let server = EchoServer::start().unwrap();
    let mut good = connect(&server);
    hello(&mut good);

    let mut not_http = std::net::TcpStream::connect(server.addr()).unwrap();
    not_http.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    not_http.write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = not_http.read_to_end(&mut rest);

    let silent = std::net::TcpStream::connect(server.addr()).unwrap();
    let mut rude = connect(&server);
    rude.get_mut().write_all(&[0xff; 64]).unwrap();
    drop(rude);
    let mut talker = connect(&server);
    for text in ["", "[", "7", "{\"type\":7}", "{\"type\":\"hello\",\"audio_params\":null}"] {
        talker.send(Message::text(text)).unwrap();
    }
    assert!(talker.read().unwrap().into_text().unwrap().contains("\"hello\""));

    good.send(Message::binary(vec![1, 2, 3])).unwrap();
    assert_eq!(&good.read().unwrap().into_data()[..], [1, 2, 3]);
    drop(silent);
}

#[test]
fn a_client_that_does_not_read_loses_frames_and_no_memory() {
    let server = EchoServer::start().unwrap();
    let mut client = connect(&server);
    hello(&mut client);
    client.get_ref().set_nonblocking(true).unwrap();
    let frame = Message::binary(vec![7; 8 * 1024]);
    // Far more than both directions' socket buffers and the server's queue together.
    let mut wrote = 0;
    while wrote < 8192 {
        match client.write(frame.clone()) {
            Ok(()) => wrote += 1,
            Err(error) => panic!("the server stopped reading after {wrote} frames: {error}"),
        }
        if client.flush().is_err() {
            client.get_ref().set_nonblocking(false).unwrap();
            client.flush().unwrap();
            client.get_ref().set_nonblocking(true).unwrap();
        }
    }
}

#[test]
fn dropping_the_server_closes_its_peers() {
    let server = EchoServer::start().unwrap();
    let mut client = connect(&server);
    hello(&mut client);
    drop(server);
    assert!(client.read().is_err());
}
