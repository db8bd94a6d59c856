//! What a crowd of devices took is given back to the system when it has left.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used)]

mod support;

use support::device::client_id;
use support::host::{resident_kib, wait_until};
use support::mqtt::{Client, Connect};
use support::process::Folder;

/// More than make a peak.
const DEVICES: u8 = 200;
/// The first bytes of a PUBLISH of 60,000, of which the last never comes: the gateway keeps them.
const PARTIAL_PACKET_LEN: usize = 59_000;

#[test]
fn memory_is_returned_to_the_system_after_a_peak() {
    let config = r#"{"mqtt":{"host":"127.0.0.1"},"udp":{"host":"127.0.0.1"},"websocket":{"production_servers":["ws://127.0.0.1:9/"]},"mcp":{"enabled":false}}"#;
    let folder = Folder::new().with_file("gateway.json", config);
    let process = folder.start("-c gateway.json", &[]);
    let connect = |number| {
        let mut client = Client::open(process.mqtt());
        client.send(&Connect::new(&client_id(number)).packet());
        assert_eq!(client.packet().body, [0, 0]);
        client
    };
    let first = connect(0);
    let before = resident_kib(process.id());
    let mut part = vec![0x30, 0xe0, 0xd4, 0x03];
    part.resize(PARTIAL_PACKET_LEN, 0);
    let mut crowd: Vec<_> = (1..DEVICES).map(connect).collect();
    crowd.iter_mut().for_each(|client| client.send(&part));
    let peak = before + usize::from(DEVICES) * PARTIAL_PACKET_LEN / 1024 / 2;
    wait_until("the gateway holds what came", || resident_kib(process.id()) > peak);
    // Its memory lies behind that of the crowd, so nothing goes by itself.
    let last = connect(DEVICES);
    drop(crowd);
    wait_until("the memory is given back", || resident_kib(process.id()) < before + 2 * 1024);
    drop((first, last));
}
