//! The dashboard behind HAProxy, under another path, as behind an ingress: with a token, and without one by `api.trusted_proxies`.
//!
//! Needs Chromium, as `dashboard.rs` does, and HAProxy (Debian: `apt-get install haproxy`); without one of them it prints a message
//! and passes.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Secret;
use serde_json::json;
use support::TIMEOUT;
use support::admin::{Fixture, config, fixture, mac};
use support::browser::Browser;
use support::process::Folder;

/// HAProxy in front of a gateway, which it serves under `/voice/`.
struct Ingress {
    process: Child,
    _folder: Folder,
    address: SocketAddr,
}

impl Ingress {
    /// `None`, with a message, if there is no HAProxy.
    fn start(gateway: &Fixture) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
        let Some(program) = folders.map(|folder| folder.join("haproxy")).find(|file| file.is_file()) else {
            eprintln!("skipped: no HAProxy here");
            return None;
        };
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        let file = format!(
            "defaults\n    mode http\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n    option forwardfor\n\
             frontend ingress\n    bind {address}\n    use_backend gateway if {{ path /voice }} or {{ path_beg /voice/ }}\n\
             backend gateway\n    http-request replace-path /voice/?(.*) /\\1\n    server gateway {}\n",
            gateway.api
        );
        let folder = Folder::new().with_file("haproxy.cfg", file);
        drop(free);
        let process = Command::new(program)
            .args(["-q", "-db", "-f"])
            .arg(folder.0.join("haproxy.cfg"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + TIMEOUT;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "HAProxy does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Some(Self { process, _folder: folder, address })
    }

    fn open(&self, browser: &mut Browser, path: &str) {
        browser.call("Page.navigate", json!({ "url": format!("http://{}{path}", self.address) }));
        browser.until("document.readyState === 'complete' && typeof poll === 'function'");
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn with_a_token_the_page_works_under_another_path() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = fixture(|_| {});
    let Some(ingress) = Ingress::start(&fixture) else { return };
    let mut device = fixture.device(&mac(1));
    // With and without the slash at the end of the path.
    for path in ["/voice", "/voice/"] {
        ingress.open(&mut browser, path);
        browser.log_in();
        browser.until("devices.size === 1");
        browser.click("#tabs [name=events]");
        browser.until("$('events').children.length === 1");
        browser.value("openTab('now'); pick([...devices.keys()][0])");
        browser.click("#act-message");
        browser.value("$('dialogBody').querySelector('[name=text]').value = 'Dinner'");
        browser.click("#confirm");
        browser.until("$('outcome').textContent === 'Sent.'");
        device.wait_for("alert", TIMEOUT).unwrap();
        browser.click("#cancel");
        browser.click("#forget");
        browser.until("!$('ask').hidden");
    }

    // A wrong token, and one that is no longer valid, in the language that the reader chooses meanwhile.
    browser.fill("token", "wrong");
    browser.click("#login button");
    browser.until("$('refused').textContent.startsWith('Wrong or expired token')");
    browser.click("#language");
    browser.until("$('refused').textContent === '令牌错误或已过期；每日令牌在午夜更换。'");
    browser.log_in();
    let changed = config(&fixture.echo, |config| config.api.token = Secret::new("another-token-since-today"));
    fixture.gateway.handle().reload(changed);
    browser
        .until("!$('ask').hidden && $('refused').textContent === '令牌错误或已过期；每日令牌在午夜更换。'");
    assert_eq!(browser.value("$('desk').hidden && sessionStorage.length === 0"), true);
    browser.screenshot("token-expired-chinese");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn without_a_token_a_trusted_proxy_forwards_for_this_machine_only() {
    let Some(mut browser) = Browser::start() else { return };
    for is_trusted in [true, false] {
        let fixture = fixture(|config| {
            (config.mqtt.signature_key, config.api.token) = (None, None);
            if is_trusted {
                config.api.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            }
        });
        let Some(ingress) = Ingress::start(&fixture) else { return };
        ingress.open(&mut browser, "/voice/");
        if is_trusted {
            browser.until("state === 'live' && $('ask').hidden");
            // Another machine, as the proxy in front of this one says.
            let elsewhere = json!({ "headers": { "X-Forwarded-For": "203.0.113.9" } });
            browser.call("Network.setExtraHTTPHeaders", elsewhere);
            browser.until("!$('ask').hidden");
        }
        browser.until("$('refused').textContent.includes('requests that a proxy forwards are refused')");
        browser.click("#language");
        browser.until(
            "$('refused').textContent === '没有密钥和令牌时，代理转发的请求会被拒绝：请设置 api.token。'",
        );
        browser.click("#language");
        browser.call("Network.setExtraHTTPHeaders", json!({ "headers": {} }));
    }
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
