//! Neither direction of a running call allocates per packet. All allocations of this process are counted,
//! including the peers', so the peers prepare in advance what they send.
#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::System;
use std::io::{Read, Write};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use support::audio::Call;
use support::chat_server::{ChatServer, Peer, audio_frame};
use support::device::Device;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: u8 = 8;
const WARM_UP: u32 = 50;
const PACKETS: u32 = 500;
const OPUS: [u8; 120] = [0x88; 120];
/// A masked binary frame with two bytes of length, and the header of the audio.
const FRAME: usize = 8 + 16 + OPUS.len();

#[test]
fn no_packet_allocates_in_either_direction() {
    let server = ChatServer::start();
    // Many times faster than real time.
    let gateway = support::gateway_with(&[server.url()], |config| config.udp.downlink_pace = false);
    let mut devices: Vec<_> =
        (0..CALLS).map(|number| Device::connect(gateway.addresses().mqtt, number)).collect();
    let mut calls: Vec<_> = devices.iter_mut().map(|device| device.call(&server)).collect();
    let up: Vec<Vec<_>> = (1..=WARM_UP + PACKETS)
        .map(|sequence| calls.iter().map(|(call, _)| call.seal(0, sequence, &OPUS)).collect())
        .collect();
    let opus = audio_frame(60, &OPUS);
    let mut down = vec![0x82, 126, 0, opus.len() as u8];
    down.extend(opus);

    calls.iter().for_each(|(call, _)| call.udp.set_read_timeout(Some(support::TIMEOUT)).unwrap());
    // The first packets of a call allocate.
    let (warm_up, measured) = up.split_at(WARM_UP as usize);
    warm_up.iter().for_each(|packets| round_trips(&mut calls, packets, &down));
    let region = Region::new(ALLOCATOR);
    measured.iter().for_each(|packets| round_trips(&mut calls, packets, &down));
    let counted = region.change();

    let packets = 2 * PACKETS as usize * calls.len();
    assert!(
        counted.allocations + counted.reallocations < packets / 100,
        "{} allocations and {} reallocations in {packets} packets",
        counted.allocations,
        counted.reallocations
    );
}

/// One packet each way in each call. All of one direction are sent at once.
fn round_trips(calls: &mut [(Call, Peer)], packets: &[Vec<u8>], down: &[u8]) {
    for ((call, _), packet) in calls.iter().zip(packets) {
        call.udp.send_to(packet, call.gateway).unwrap();
    }
    for (_, peer) in calls.iter() {
        peer.tcp().unwrap().read_exact(&mut [0; FRAME]).unwrap();
    }
    for (_, peer) in calls.iter() {
        peer.tcp().unwrap().write_all(down).unwrap();
    }
    for (call, _) in calls.iter() {
        let received = call.udp.recv(&mut [0; 2048]).unwrap();
        assert_eq!(received, 16 + OPUS.len());
    }
}
