//! Calls between devices of two workers, one of which stands still for a while.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::run::{LIMIT, at_worker, gateway};
use crate::net::Running;
use crate::tools::device::{Call, Login, SimulatedDevice};
use crate::tools::echo::EchoServer;

fn mac(worker: usize) -> String {
    format!("aa:bb:cc:00:00:{worker:02x}")
}

/// The device that this worker of two serves, in a call with its chat server.
fn device_of(worker: usize, gateway: &Running) -> (SimulatedDevice, Call) {
    let login = Login::new(mac(worker).parse().unwrap(), None);
    let mut device = SimulatedDevice::connect(gateway.addresses().mqtt, &login, LIMIT).unwrap();
    let call = start_call(&mut device);
    (device, call)
}

fn start_call(device: &mut SimulatedDevice) -> Call {
    let mut call = device.call().unwrap();
    device.start_listening(&call, "auto").unwrap();
    call.send(60, b"\x58first").unwrap();
    call.receive(LIMIT).unwrap().expect("an echo");
    call
}

fn http(api: SocketAddr, path: &str, body: Option<&Value>) -> String {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).build().into();
    let url = format!("http://{api}{path}");
    let mut response = match body {
        Some(body) => {
            agent.post(url).header("Content-Type", "application/json").send(body.to_string()).unwrap()
        }
        None => agent.get(url).call().unwrap(),
    };
    response.body_mut().read_to_string().unwrap()
}

fn post(gateway: &Running, path: &str, body: &Value) -> String {
    let answer = http(gateway.addresses().api.unwrap(), path, Some(body));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["status"].as_str().unwrap().to_owned()
}

fn connect(gateway: &Running, caller: &mut (SimulatedDevice, Call), target: &mut (SimulatedDevice, Call)) {
    let request = json!({ "caller_mac": mac(0), "target_mac": mac(1), "caller_nickname": "n" });
    assert_eq!(post(gateway, "/api/call/request", &request), "pending");
    assert_eq!(post(gateway, "/api/call/accept", &json!({ "mac": mac(1) })), "bridged");
    caller.0.wait_for("call_accepted", LIMIT).unwrap();
    assert_hears(&mut caller.1, &mut target.1);
    assert_hears(&mut target.1, &mut caller.1);
}

/// Sends until the other device hears it.
fn assert_hears(from: &mut Call, to: &mut Call) {
    let end = Instant::now() + LIMIT;
    loop {
        from.send(60, b"\x58here").unwrap();
        match to.receive(Duration::from_millis(100)).unwrap() {
            Some(audio) if audio.payload == b"\x58here" => return,
            _ => assert!(Instant::now() < end, "it is never heard"),
        }
    }
}

/// The value of the sample with this name in `/metrics`.
fn metric(gateway: &Running, name: &str) -> f64 {
    let text = http(gateway.addresses().api.unwrap(), "/metrics", None);
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_call_with_a_worker_that_stalls_ends_at_both_and_the_next_one_works() {
    let echo = EchoServer::start().unwrap();
    for stalled in [0, 1] {
        let gateway = gateway(2, &echo, true);
        let (mut caller, mut target) = (device_of(0, &gateway), device_of(1, &gateway));
        connect(&gateway, &mut caller, &mut target);
        let (go_on, until) = mpsc::channel::<()>();
        at_worker(&gateway, stalled, move |_| _ = until.recv());
        let other = if stalled == 0 { &mut target } else { &mut caller };
        // More audio than may be on its way.
        for n in 0..1000 {
            other.1.send(n * 60, &[0x58; 1000]).unwrap();
            if n % 50 == 0 {
                other.0.ping().unwrap();
            }
        }
        other.0.wait_for("goodbye", LIMIT).unwrap();
        drop(go_on);
        let both = [&mut caller, &mut target];
        both.into_iter().enumerate().filter(|(n, _)| *n == stalled).for_each(|(_, device)| {
            device.0.wait_for("goodbye", LIMIT).unwrap();
        });
        let lost = metric(&gateway, r#"gateway_audio_discarded_total{reason="relay_full"}"#);
        assert!((1.0..1000.0).contains(&lost), "{lost}");
        let ended =
            |reason: &str| metric(&gateway, &format!(r#"gateway_calls_ended_total{{reason="{reason}"}}"#));
        assert_eq!((ended("peer_lost"), ended("peer_left")), (2.0, 0.0));
        for device in [&mut caller, &mut target] {
            device.1 = start_call(&mut device.0);
        }
        connect(&gateway, &mut caller, &mut target);
        gateway.stop(LIMIT).unwrap();
    }
}
