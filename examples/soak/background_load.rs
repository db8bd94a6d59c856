//! Everything besides calls: idle devices, bad connections, bad datagrams, API requests, reloads. Also measures
//! the machine's own latency.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::{
    DeviceError, DeviceErrorKind, DeviceStep, HELLO, Incoming, SimulatedDevice,
};

use crate::context::{Context, RESPONSE_TIMEOUT, login};
use crate::gateway::{Config, TOKEN};

const IDLE: u8 = 2;
const REJECTED: u8 = 4;

/// Idle devices: each pings in turn, and sometimes one is replaced.
pub(crate) fn idle_devices(context: &Context, many: usize) {
    let mut rng = context.rng(9_002);
    let mut devices: Vec<Option<SimulatedDevice>> = (0..many).map(|_| None).collect();
    for round in 0.. {
        if context.is_over() || many == 0 {
            return;
        }
        let i = round % many;
        if let Some(device) = &mut devices[i]
            && let Err(failure) = ping(device)
        {
            context.record_failure(format_args!("an idle device lost its connection: {failure}"));
            devices[i] = None;
        }
        if devices[i].is_none() || rng.below(20) == 0 {
            // The older connection of the same device is dropped afterwards.
            devices[i] = context
                .connect(&login(IDLE, i, 90))
                .inspect_err(|failure| {
                    context.record_failure(format_args!("an idle device was not let in: {failure}"))
                })
                .ok();
        }
        context.sleep(Duration::from_millis(50));
    }
}

fn ping(device: &mut SimulatedDevice) -> Result<(), DeviceError> {
    device.ping()?;
    // The gateway also asks the device for its tools.
    while let Some(incoming) = device.receive(RESPONSE_TIMEOUT)? {
        if incoming == Incoming::PingResp {
            return Ok(());
        }
    }
    Err(DeviceError { step: DeviceStep::MqttConnection, kind: DeviceErrorKind::Timeout(RESPONSE_TIMEOUT) })
}

/// Connections that are not valid devices.
pub(crate) fn rejected_connections(context: &Context) {
    let mut rng = context.rng(9_003);
    let mut kept: Vec<TcpStream> = Vec::new();
    while !context.is_over() {
        context.sleep(rng.ms(20, 300));
        let Ok(mut stream) = TcpStream::connect_timeout(&context.mqtt, RESPONSE_TIMEOUT) else {
            context.record_failure("the MQTT port takes no connection");
            continue;
        };
        context.counters.rejected_connections.fetch_add(1, Relaxed);
        let connect = login(REJECTED, rng.below(50) as usize, 60).connect_packet();
        let bytes = match rng.below(8) {
            0 => Vec::new(),
            1 => rng.bytes(200),
            2 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            3 => connect[..connect.len() / 2].to_vec(),
            4 => vec![0x10, 0xff, 0xff, 0xff, 0x7f],
            5 => {
                // A wrong password: the last byte is changed.
                let mut wrong = connect;
                wrong.last_mut().into_iter().for_each(|byte| *byte ^= 1);
                wrong
            }
            6 => [&connect[..], &[0x32, 5, 0, 1, b'x', 0, 1]].concat(),
            _ => [&connect[..], &[0x30, 0x80, 0x80, 4]].concat(),
        };
        // The gateway may have closed it at the first byte.
        let _ = stream.write_all(&bytes);
        if rng.below(2) == 0 && kept.len() < 20 {
            kept.push(stream);
        } else if kept.len() > 10 {
            kept.remove(0);
        }
    }
}

/// Datagrams of unknown calls, and random ones.
pub(crate) fn bad_datagrams(context: &Context, to: SocketAddr) {
    let mut rng = context.rng(9_004);
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) else {
        return context.record_failure("no UDP socket");
    };
    while !context.is_over() {
        for _ in 0..rng.below(10) {
            let length = rng.below(1500) as usize;
            let mut bytes = rng.bytes(length);
            if length > 16 && rng.below(2) == 0 {
                // A valid header of an unknown call.
                bytes[0] = 1;
                bytes[2..4].copy_from_slice(&((length - 16) as u16).to_be_bytes());
            }
            // A full socket does not matter.
            let _ = socket.send_to(&bytes, to);
            context.counters.bad_datagrams.fetch_add(1, Relaxed);
        }
        context.sleep(rng.ms(50, 200));
    }
}

/// Valid and invalid requests to the management API.
pub(crate) fn api_requests(context: &Context, api: SocketAddr) {
    const REQUESTS: [(&str, bool, u16); 10] = [
        ("GET /healthz", false, 200),
        ("GET /metrics", true, 200),
        ("GET /api/sessions", true, 200),
        ("GET /api/config", true, 200),
        ("GET /api/errors", true, 200),
        ("GET /api/calls?limit=1000", true, 200),
        ("GET /", false, 200),
        ("GET /api/sessions", false, 401),
        ("GET /api/sessions/nobody", true, 404),
        ("DELETE /nowhere", true, 404),
    ];
    for (request, token, expected) in REQUESTS.into_iter().cycle() {
        if context.is_over() {
            return;
        }
        match http_status(api, request, token) {
            Ok(status) if status == expected => {}
            Ok(status) => {
                context.record_failure(format_args!("{request}: answered {status}, expected {expected}"))
            }
            Err(error) => context.record_failure(format_args!("{request}: {error}")),
        }
        context.counters.api_requests.fetch_add(1, Relaxed);
        context.sleep(Duration::from_millis(300));
    }
}

/// The status of the response to a request without body.
fn http_status(api: SocketAddr, request: &str, token: bool) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&api, RESPONSE_TIMEOUT)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    let token = if token { format!("Authorization: Bearer {TOKEN}\r\n") } else { String::new() };
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {api}\r\n{token}Content-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("no answer: {answer:?}")))
}

/// New configurations, and sometimes an invalid file.
pub(crate) fn reloads(context: &Context, config: &Config, api: SocketAddr) {
    for round in 1.. {
        context.sleep(Duration::from_secs(7));
        if context.is_over() {
            return;
        }
        let invalid = round % 4 == 0;
        let written = if invalid { config.write_invalid() } else { config.write(round) };
        let answer = written.and_then(|()| http_status(api, "POST /api/reload", true));
        if !matches!((&answer, invalid), (Ok(200), false) | (Ok(400..500), true)) {
            context.record_failure(format_args!(
                "a reload of a {} file: {answer:?}",
                if invalid { "bad" } else { "good" }
            ));
        }
        context.counters.reloads.fetch_add(1, Relaxed);
    }
}

/// The round trip of a datagram between two sockets, twenty times a second.
pub(crate) fn machine_latency(context: &Context) {
    let pair = || -> std::io::Result<_> {
        let (one, other) =
            (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
        one.connect(other.local_addr()?)?;
        other.connect(one.local_addr()?)?;
        one.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok((one, other))
    };
    let Ok((one, other)) = pair() else { return context.record_failure("no UDP socket") };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 200];
            while let Ok(n @ 1..) = other.recv(&mut buffer) {
                // Ends when the other side does.
                let _ = other.send(&buffer[..n]);
            }
        });
        while !context.is_over() {
            let begin = Instant::now();
            if one.send(HELLO.as_bytes()).is_ok() && one.recv(&mut [0; 200]).is_ok() {
                context.machine_latencies.add(begin.elapsed());
            }
            context.sleep(Duration::from_millis(50));
        }
        let _ = one.send(&[]);
    });
}
