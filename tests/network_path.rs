//! What lies between gateway and device: relays that forget a silent path, the class of service of audio, and acknowledgements.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use support::chat_server::{ChatServer, audio_frame};
use support::device::Device;
use support::gateway_with;
use support::real_time::assert_in_real_time;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A relay that forgets a flow after this time without a datagram in either direction: traefik's default.
const FORGETS_AFTER: Duration = Duration::from_secs(3);

/// A UDP relay between one device and the gateway.
struct Relay {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(gateway: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = front.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || relay(&front, gateway, &stopped));
        Self { addr, stop, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.take().unwrap().join();
    }
}

fn relay(front: &UdpSocket, gateway: SocketAddr, stopped: &AtomicBool) {
    /// The device, the socket towards the gateway, and when it was last used.
    type Flow = (SocketAddr, UdpSocket, Instant);
    front.set_nonblocking(true).unwrap();
    let mut flow: Option<Flow> = None;
    let mut buffer = [0; 2048];
    while !stopped.load(Ordering::Acquire) {
        flow = flow.filter(|(_, _, used)| used.elapsed() < FORGETS_AFTER);
        while let Ok((n, from)) = front.recv_from(&mut buffer) {
            let (device, back, used) = flow.get_or_insert_with(|| {
                let back = UdpSocket::bind("127.0.0.1:0").unwrap();
                back.connect(gateway).unwrap();
                back.set_nonblocking(true).unwrap();
                (from, back, Instant::now())
            });
            (*device, *used) = (from, Instant::now());
            back.send(&buffer[..n]).unwrap();
        }
        if let Some((device, back, used)) = &mut flow {
            while let Ok(n) = back.recv(&mut buffer) {
                *used = Instant::now();
                front.send_to(&buffer[..n], *device).unwrap();
            }
        }
        std::thread::sleep(MS(5));
    }
}

/// Whether a device behind the relay hears an answer that the chat server gives after 4.5 s, and the keep-alives before it.
fn hears_a_late_answer(keep_alive: Duration) -> (bool, usize) {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.udp.keep_alive = keep_alive);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    let relay = Relay::start(call.gateway);
    call.gateway = relay.addr;
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    let until = Instant::now() + MS(4_500);
    let mut keep_alives = Vec::new();
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        keep_alives.extend(call.receive_within(left));
    }
    assert!(keep_alives.iter().all(|packet| packet.sequence() == 0 && *packet == keep_alives[0]));
    peer.send_audio(2, b"\x58b");
    let answer = call.receive_within(MS(1_000)).filter(|packet| packet.sequence() > 0);
    assert!(answer.as_ref().is_none_or(|packet| (packet.sequence(), &*packet.payload) == (1, b"\x58b")));
    (answer.is_some(), keep_alives.len())
}

#[test]
fn an_answer_after_a_long_pause_is_lost_without_keep_alives() {
    assert_eq!(hears_a_late_answer(Duration::ZERO), (false, 0));
}

#[test]
fn keep_alives_hold_the_path_open_for_a_late_answer() {
    assert_in_real_time(|| {
        let (heard, keep_alives) = hears_a_late_answer(MS(1_000));
        let holds = heard && (3..=4).contains(&keep_alives);
        holds.then_some(()).ok_or_else(|| format!("heard: {heard}, {keep_alives} keep-alives"))
    });
}

/// The DSCP of the first audio that a device gets.
#[cfg(target_os = "linux")]
fn received_dscp(host: &str, dscp: u8) -> Option<u8> {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.udp.host = host.parse().unwrap();
        config.udp.dscp = dscp;
    });
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    setsockopt(&call.udp, sockopt::IpRecvTos, &true).unwrap();
    call.send(1, b"\x58a");
    peer.binary();
    peer.send_audio(2, b"\x58b");
    call.udp.set_read_timeout(Some(support::TIMEOUT)).unwrap();
    let (mut buffer, mut space) = ([0; 2048], nix::cmsg_space!(u8));
    let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
    let received =
        recvmsg::<()>(call.udp.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
    received.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::Ipv4Tos(octet) => Some(octet >> 2),
        _ => None,
    })
}

#[cfg(target_os = "linux")]
#[test]
fn audio_leaves_with_the_configured_class_of_service() {
    for (host, dscp) in [("127.0.0.1", 46), ("::", 46), ("127.0.0.1", 8), ("127.0.0.1", 0)] {
        assert_eq!(received_dscp(host, dscp), Some(dscp), "{host}");
    }
}

/// How long the second of two messages, which a device sends in quick succession, takes to reach the chat server.
#[cfg(target_os = "linux")]
fn second_message_takes() -> Vec<Duration> {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, mut peer) = device.call(&server);
    // As the stack of a device: a short segment waits until the one before it is acknowledged.
    device.mqtt.stream.set_nodelay(false).unwrap();
    let measure = |n: u64| {
        // What the gateway sends makes it delay its acknowledgements.
        peer.send_text(&format!(r#"{{"type":"llm","n":{n}}}"#));
        device.json();
        let sent_at = Instant::now();
        device.send_text(r#"{"type":"listen","state":"detect"}"#);
        device.send_text(r#"{"type":"listen","state":"start"}"#);
        peer.json();
        peer.json();
        sent_at.elapsed()
    };
    (0..20).map(measure).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn the_second_of_two_quick_messages_does_not_wait_for_an_acknowledgement() {
    assert_in_real_time(|| {
        let mut took = second_message_takes();
        took.sort_unstable();
        // A delayed acknowledgement takes 40 ms.
        (took[10] < MS(20)).then_some(()).ok_or_else(|| format!("{took:?}"))
    });
}
