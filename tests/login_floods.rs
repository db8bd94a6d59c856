//! Floods before login, on real sockets: silent and half-spoken connections, bad logins and guesses, while slow devices and
//! clients of others are served.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, Network, Secret};
use mqtt_websocket_proxy::net::Running;
use openssl::ssl::HandshakeError;
use support::admin::fixture;
use support::device::client_id;
use support::gateway_with;
use support::host::{connect_from, wait_until};
use support::http::{RawClient, http_call};
use support::mqtt::{Client, Connect, Packet};
use support::process::Folder;
use support::real_time::assert_in_real_time;
use support::tls::CertificateAuthority;

const NO_SERVERS: [&str; 0] = [];
const ATTACKER: [u8; 4] = [127, 0, 0, 66];
const HERE: [u8; 4] = [127, 0, 0, 1];
/// What a device on a slow network takes for each flight of its handshake, and for CONNECT.
const FLIGHT: Duration = Duration::from_millis(600);

/// Runs `during` while a flood goes on: first so many connections at once, then so many per second. `say` is what the `n`th
/// connection begins with; each of them stays open, and some send a byte now and then.
fn under_flood<T>(
    connect: impl Fn() -> TcpStream + Send + Sync,
    (at_once, per_second): (usize, u32),
    say: impl Fn(usize) -> Vec<u8> + Send + Sync,
    during: impl FnOnce() -> T,
) -> T {
    let (opened, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = VecDeque::new();
            let mut paced_from = Instant::now();
            while !over.load(Relaxed) {
                let n = opened.fetch_add(1, Relaxed);
                let mut stream = connect();
                let _ = stream.write_all(&say(n));
                held.push_back(stream);
                // One that is a while old goes on, if it has begun.
                if n % 3 == 0 && held.len() > 60 && !say(n - 60).is_empty() {
                    let older = held.len() - 60;
                    let _ = held[older].write_all(&[1]);
                }
                if held.len() > 3000 {
                    held.pop_front();
                }
                match n.checked_sub(at_once) {
                    None => paced_from = Instant::now(),
                    Some(n) => {
                        let next = paced_from + Duration::from_secs(1) * n as u32 / per_second;
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                }
            }
        });
        wait_until("the flood goes on", || opened.load(Relaxed) > at_once + per_second as usize / 4);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        over.store(true, Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A stream that waits before each flight: before the first bytes, and before each write behind a read.
#[derive(Debug)]
struct SlowStream {
    tcp: TcpStream,
    has_read: bool,
}

impl From<TcpStream> for SlowStream {
    fn from(tcp: TcpStream) -> Self {
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(support::TIMEOUT)).unwrap();
        Self { tcp, has_read: true }
    }
}

impl Read for SlowStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.has_read = true;
        self.tcp.read(buffer)
    }
}

impl Write for SlowStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.has_read) {
            thread::sleep(FLIGHT);
        }
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs in over this stream.
fn log_in(mut stream: impl Read + Write, connect: &Connect) -> Result<(), String> {
    stream.write_all(&connect.packet()).map_err(|error| format!("CONNECT: {error}"))?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).map_err(|error| format!("CONNACK: {error}"))?;
    (answer == [0x20, 2, 0, 0]).then_some(()).ok_or_else(|| format!("{answer:?}"))
}

/// Four devices at once, which must all log in. A machine that is too slow makes each of their flights longer.
fn four_log_in(log_in: impl Fn(u8) -> Result<(), String> + Sync) {
    assert_in_real_time(|| {
        let outcomes: Result<Vec<()>, String> = thread::scope(|scope| {
            let log_in = &log_in;
            let devices: Vec<_> = (1..=4).map(|n| scope.spawn(move || log_in(n))).collect();
            devices.into_iter().map(|device| device.join().unwrap()).collect()
        });
        outcomes.map(drop)
    });
}

/// A gateway with a certificate.
struct TlsGateway {
    authority: CertificateAuthority,
    gateway: Running,
    _folder: Folder,
}

impl TlsGateway {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let authority = CertificateAuthority::new();
        let pair = authority.issue("127.0.0.1");
        let folder =
            Folder::new().with_file("cert.pem", pair.certificate_pem()).with_file("key.pem", pair.key_pem());
        let gateway = gateway_with(&NO_SERVERS, |config| {
            config.mqtt.tls.port = 0;
            config.mqtt.tls.cert_file = Some(folder.0.join("cert.pem"));
            config.mqtt.tls.key_file = Some(folder.0.join("key.pem"));
            change(config);
        });
        Self { authority, gateway, _folder: folder }
    }

    fn addr(&self) -> SocketAddr {
        self.gateway.addresses().mqtts.unwrap()
    }

    fn log_in(&self, tcp: TcpStream, number: u8) -> Result<(), String> {
        let tls = self.authority.client().connect("127.0.0.1", SlowStream::from(tcp));
        log_in(tls.map_err(|error| error.to_string())?, &Connect::new(&client_id(number)))
    }

    /// The bytes of a ClientHello.
    fn client_hello(&self) -> Vec<u8> {
        struct Recorder(Vec<u8>);
        impl Read for Recorder {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(ErrorKind::WouldBlock.into())
            }
        }
        impl Write for Recorder {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        match self.authority.client().connect("127.0.0.1", Recorder(Vec::new())) {
            Err(HandshakeError::WouldBlock(handshake)) => handshake.get_ref().0.clone(),
            _ => panic!("no ClientHello"),
        }
    }
}

#[test]
fn silent_connections_take_no_handshake_place() {
    let tls = TlsGateway::new(|config| config.mqtt.tls.max_handshakes = 4);
    // They come while a device is in its handshake.
    under_flood(
        || connect_from(ATTACKER, tls.addr()),
        (300, 300),
        |_| Vec::new(),
        || {
            four_log_in(|n| tls.log_in(connect_from(HERE, tls.addr()), n));
        },
    );
}

#[test]
fn half_spoken_handshakes_do_not_lock_slow_devices_out() {
    let tls = TlsGateway::new(|_| {});
    let hello = tls.client_hello();
    let say = |n: usize| hello[..[hello.len(), 1, 6, hello.len() - 200][n % 4]].to_vec();
    under_flood(
        || connect_from(ATTACKER, tls.addr()),
        (300, 300),
        say,
        || {
            four_log_in(|n| tls.log_in(connect_from(HERE, tls.addr()), n));
        },
    );
}

#[test]
fn behind_a_load_balancer_a_flood_counts_by_its_own_address() {
    let network: Network = "127.0.0.1".parse().unwrap();
    let tls = TlsGateway::new(|config| config.mqtt.proxy_protocol_from = vec![network]);
    let header = |client: &str| format!("PROXY TCP6 {client} 2001:db8::1 4242 8883\r\n").into_bytes();
    // All addresses of one /64.
    let say = |n: usize| [&header(&format!("2001:db8:0:66::{n:x}"))[..], &[22, 3, 1, 2, 0, 1]].concat();
    under_flood(
        || connect_from(HERE, tls.addr()),
        (300, 300),
        say,
        || {
            four_log_in(|n| {
                let mut tcp = connect_from(HERE, tls.addr());
                tcp.write_all(&header(&format!("2001:db8:0:{n}::1"))).unwrap();
                tls.log_in(tcp, n)
            });
        },
    );
}

#[test]
fn silent_and_half_spoken_connections_on_the_plain_port_do_not_lock_slow_devices_out() {
    let gateway = gateway_with(&NO_SERVERS, |config| config.mqtt.max_connections = 10);
    let addr = gateway.addresses().mqtt;
    let connect = Connect::new(&client_id(9)).packet();
    let say = |n: usize| connect[..[0, 1, 10, connect.len() - 70][n % 4]].to_vec();
    under_flood(
        || connect_from(ATTACKER, addr),
        (600, 1000),
        say,
        || {
            four_log_in(|n| log_in(SlowStream::from(connect_from(HERE, addr)), &Connect::new(&client_id(n))));
        },
    );
}

#[test]
fn a_flood_of_the_management_port_does_not_cut_a_slow_client_off() {
    let fixture = fixture(|_| {});
    let say = |n: usize| {
        let whole = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        whole.as_bytes()[..[0, 1, 20, whole.len()][n % 4]].to_vec()
    };
    under_flood(
        || connect_from(ATTACKER, fixture.api),
        (300, 300),
        say,
        || {
            let mut slow = RawClient::open(fixture.api);
            for part in ["GET /heal", "thz HTTP/1.1\r\nHost", ": x\r\n", "\r\n"] {
                slow.send(part);
                thread::sleep(FLIGHT);
            }
            assert_eq!(slow.reply().map(|reply| reply.status), Some(200));
            // The connection stays open for another request.
            slow.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(slow.reply().map(|reply| reply.status), Some(200));
        },
    );
    let metrics = http_call(fixture.api, "GET", "/metrics", None, Some(support::admin::TOKEN)).1;
    assert!(
        metrics.contains("gateway_connections_closed_for_others_total{reason=\"api_crowding\"} "),
        "{metrics}"
    );
}

fn with_key(config: &mut Config) {
    config.mqtt.signature_key = Secret::new("key");
}

#[test]
fn refused_logins_make_room_for_good_ones() {
    let gateway = gateway_with(&NO_SERVERS, |config| {
        with_key(config);
        config.mqtt.max_connections = 50;
    });
    let addr = gateway.addresses().mqtt;
    let bad = Connect::signed(&client_id(200), "wrong").packet();
    // From the same address as the good ones.
    under_flood(
        || connect_from(HERE, addr),
        (700, 600),
        |_| bad.clone(),
        || {
            let devices: Vec<Client> =
                (0..30).map(|n| Client::log_in(addr, &Connect::signed(&client_id(n), "key"))).collect();
            for mut device in devices {
                device.assert_nothing_pending();
            }
        },
    );
}

#[test]
fn an_address_gets_few_verdicts_however_many_guesses_it_makes_at_once() {
    let gateway = gateway_with(&NO_SERVERS, |config| {
        with_key(config);
        config.workers = 2;
    });
    let addr = gateway.addresses().mqtt;
    let began = Instant::now();
    let mut verdicts = 0;
    for _ in 0..3 {
        let guess = |n| {
            let mut client = Client::from(connect_from(ATTACKER, addr));
            client.send(&Connect::signed(&client_id(n), "wrong").packet());
            client
        };
        let guesses: Vec<Client> = (0..200).map(guess).collect();
        // A good login from the same address is none of them.
        let mut good = Client::from(connect_from(ATTACKER, addr));
        assert_eq!(good.connack_code(&Connect::signed(&client_id(201), "key")), 0);
        for mut client in guesses {
            let answers = client.read_until_closed();
            assert!(answers.iter().all(|answer| *answer == Packet::connack(4)), "{answers:?}");
            verdicts += answers.len();
        }
    }
    // Sixteen in the first second, then one in each.
    let most = 17 + began.elapsed().as_secs() as usize;
    assert!((16..=most).contains(&verdicts), "{verdicts} in {:?}", began.elapsed());
}

#[test]
fn a_flood_of_refusals_writes_a_few_short_lines_and_a_summary() {
    let file = r#"{"mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "api": {"enabled": false}}"#;
    let folder = Folder::new().with_file("gateway.json", file);
    let mut process = folder.start("-c gateway.json", &[("MQTT_SIGNATURE_KEY", "A-good-Key-9")]);
    let began = Instant::now();
    let devices: Vec<Client> = (0..500)
        .map(|n: u16| {
            let [a, b] = n.to_be_bytes();
            let mut client = Client::from(connect_from([127, 1, a, b], process.mqtt()));
            // A valid client id of 250 bytes, which would take 600 characters.
            let id = format!("{}@@@02:00:00:00:00:01@@@u", "\u{202e}".repeat(74));
            client.send(&Connect::signed(&id, "wrong").packet());
            client
        })
        .collect();
    for mut device in devices {
        assert_eq!(device.read_until_closed(), [Packet::connack(4)]);
    }
    let is_refusal = |line: &&String| line.contains("refused with return code 4");
    let left_out = |line: &String| {
        let line = line.split("] ").nth(1)?;
        let (count, _) =
            line.split_once(" more refused logins or connections in the last second were not logged")?;
        count.parse::<usize>().ok()
    };
    let total = |lines: &[String]| {
        lines.iter().filter(is_refusal).count() + lines.iter().filter_map(left_out).sum::<usize>()
    };
    // There is a summary for each second that the flood takes.
    while total(&process.seen) < 500 {
        process.wait_for_line("refused");
    }
    let seconds = began.elapsed().as_secs() as usize + 1;
    process.signal("TERM");
    let (_, lines) = process.end();
    let refusals: Vec<_> = lines.iter().filter(is_refusal).collect();
    assert!((1..=10 * seconds).contains(&refusals.len()), "{} in {seconds} s", refusals.len());
    assert!(refusals.iter().all(|line| line.contains("\\u{202e}") && line.chars().count() < 300));
    assert_eq!(total(&lines), 500, "{lines:#?}");
}
