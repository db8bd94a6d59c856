//! The hot paths one by one, with their allocations.
//!
//! ```text
//! cargo bench --bench micro             all of them
//! cargo bench --bench micro -- audio    those whose name contains a word
//! ```
#![allow(clippy::unwrap_used)]

#[path = "shared/call_fixture.rs"]
mod call_fixture;

use std::time::{Duration, Instant};

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, Divan, black_box};
use mqtt_websocket_proxy::net::backend::websocket_context_pool::ContextPool;
use mqtt_websocket_proxy::net::event_loop::timer_wheel::TimerWheel;
use mqtt_websocket_proxy::net::event_loop::token::SessionId;
use mqtt_websocket_proxy::net::sessions::index::Index;
use mqtt_websocket_proxy::proto::audio::{Cipher, HEADER_LEN, MAX_PAYLOAD};
use mqtt_websocket_proxy::proto::message::{self, Reader};
use mqtt_websocket_proxy::proto::mqtt::{decode, encode};
use mqtt_websocket_proxy::tools::device::{Login, test_audio};

use self::call_fixture::{CallFixture, KEY, audio_frame, datagram, send_frame};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const TTS_MESSAGE: &str = r#"{"session_id":"0b1e2c5a-6c0f-4b7e-9a57-1f0c3a3a1c55","type":"tts","state":"sentence_start","text":"The weather will be fine tomorrow, with a light wind from the west."}"#;

fn main() {
    Divan::default().max_time(Duration::from_millis(500)).config_with_args().main();
}

// ----- text -----------------------------------------------------------------------------------------------------------

#[divan::bench]
fn mqtt_decode_connect(bencher: Bencher) {
    let packet = Login::new("02:00:00:00:00:01".parse().unwrap(), Some(b"key")).connect_packet();
    bencher.bench(|| decode(black_box(&packet), 4096).unwrap().map(|(_, used)| used));
}

#[divan::bench]
fn mqtt_decode_publish(bencher: Bencher) {
    let mut packet = Vec::new();
    encode::publish(&mut packet, "device-server", TTS_MESSAGE.as_bytes());
    bencher.bench(|| decode(black_box(&packet), 65_536).unwrap().map(|(_, used)| used));
}

#[divan::bench]
fn message_peek() -> bool {
    message::peek(black_box(TTS_MESSAGE), Reader::Device).is_ok()
}

/// What a chat server usually sends has the device's session id already.
#[divan::bench]
fn message_with_session_id() -> usize {
    message::with_session_id(black_box(TTS_MESSAGE), Some("0b1e2c5a-6c0f-4b7e-9a57-1f0c3a3a1c55")).len()
}

// ----- audio ----------------------------------------------------------------------------------------------------------

/// The cipher alone: a packet of 60 ms, and the longest.
#[divan::bench(args = [test_audio::PACKET_LEN, MAX_PAYLOAD])]
fn audio_cipher(bencher: Bencher, len: usize) {
    let (cipher, mut payload) = (Cipher::new(&KEY), vec![0; len]);
    bencher.bench_local(|| cipher.apply(black_box(&[1; 16]), &mut payload));
}

/// A datagram becomes the payload of a WebSocket frame.
#[divan::bench]
fn audio_decrypt(bencher: Bencher) {
    let (mut call, mut sequence) = (CallFixture::new(), 0);
    let datagrams = || {
        sequence += 1;
        datagram(sequence)
    };
    bencher.with_inputs(datagrams).bench_local_refs(|datagram| call.uplink(datagram));
}

/// A chat server's frame becomes a datagram.
#[divan::bench]
fn audio_encrypt(bencher: Bencher) {
    let mut call = CallFixture::new();
    call.uplink(&mut datagram(1));
    let frame = audio_frame();
    let mut out = [0; HEADER_LEN + MAX_PAYLOAD];
    bencher.bench_local(|| call.downlink(black_box(&frame), &mut out));
}

/// The payload becomes a masked frame, and leaves with one write.
#[divan::bench]
fn websocket_frame(bencher: Bencher) {
    let (mut contexts, frame) = (ContextPool::default(), audio_frame());
    let mut send = || send_frame(&mut contexts, black_box(&frame));
    // The first one allocates what later ones reuse.
    send();
    bencher.bench_local(send);
}

// ----- the loop -------------------------------------------------------------------------------------------------------

/// Find a datagram's session among many calls.
#[divan::bench(args = [100, 9_000])]
fn session_lookup(bencher: Bencher, calls: u32) {
    let mut index = Index::default();
    let ssrc = |n: u32| n.wrapping_mul(0x9e37_79b9);
    for n in 0..calls {
        index.add_call(ssrc(n), SessionId { slot: n, epoch: n });
    }
    let mut n = 0;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        n = (n + 7) % calls;
        index.call(black_box(ssrc(n)))
    });
}

/// One timer is set and one expires, among many.
#[divan::bench(args = [100, 10_000])]
fn timer_wheel_expire(bencher: Bencher, timers: u64) {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start);
    for n in 0..timers {
        wheel.arm(start + Duration::from_millis(8 * n), n);
    }
    let (mut now, mut due) = (start, Vec::new());
    bencher.bench_local(|| {
        now += Duration::from_millis(8);
        wheel.arm(now + Duration::from_millis(8 * timers), 0);
        wheel.expire(now, &mut due);
        due.drain(..).count()
    });
}
