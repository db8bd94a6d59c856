//! The dashboard in a real browser.
//!
//! Needs Chromium (Debian: `apt-get install chromium`) or its path in `CHROME`; without it these tests print a message and pass.
//! `PAGE_SHOTS=DIR` writes screenshots there. `PAGE_DEVICES=1000` changes the number of simulated devices.

#![allow(clippy::unwrap_used)]

mod support;

use std::env;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use serde_json::{Value, json};
use support::admin::{Fixture, KEY, TOKEN, fixture, mac};
use support::browser::{Browser, assert_accessible};
use support::http::RawClient;
#[cfg(feature = "cluster")]
use support::redis;
use support::{TIMEOUT, refusing_port};

/// A client id with scripts, which run if the page inserts it as HTML.
const HOSTILE_CLIENT_ID: &str = "<img/src=x onerror=document.title='owned'>@@@aa_bb_cc_dd_ee_ff@@@<script>document.title='owned'<\u{2f}script>";

/// Devices, some of them in calls that send audio until this is dropped.
struct SimulatedDevices {
    over: Arc<AtomicBool>,
    speaker: Option<thread::JoinHandle<()>>,
    _idle: Vec<SimulatedDevice>,
}

impl SimulatedDevices {
    fn new(fixture: &Fixture, devices: usize, calls: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut all: Vec<SimulatedDevice> = (0..devices).map(|i| fixture.device(&mac(i as u16))).collect();
        let idle = all.split_off(calls);
        let mut speaking: Vec<_> = all
            .into_iter()
            .map(|mut device| {
                let call = device.call().unwrap();
                device.start_listening(&call, "auto").unwrap();
                (device, call)
            })
            .collect();
        let stop = over.clone();
        let speaker = thread::spawn(move || {
            for round in 0.. {
                for (i, (_, call)) in speaking.iter_mut().enumerate() {
                    let packet = call.encrypt(round * 60, &[0x88; 120]);
                    // Every third call loses packets.
                    if i % 3 != 1 || round % 20 != 7 {
                        let _ = call.send_packet(&packet);
                    }
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
        });
        Self { over, speaker: Some(speaker), _idle: idle }
    }
}

impl Drop for SimulatedDevices {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.speaker.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn an_operator_views_and_controls_devices() {
    let Some(mut browser) = Browser::start() else { return };
    let devices: usize = env::var("PAGE_DEVICES").map_or(200, |number| number.parse().unwrap());
    let fixture = fixture(|_| {});
    let _crowd = SimulatedDevices::new(&fixture, devices, 20);
    let _hostile = fixture.device_with_client_id(HOSTILE_CLIENT_ID);

    // The page needs no token, but its data does. It asks once, and reports a wrong token.
    browser.open(&fixture);
    browser.until("!$('ask').hidden");
    assert_eq!(browser.text("$('refused').textContent"), "");
    browser.screenshot("token");
    browser.fill("token", "wrong");
    browser.click("#login button");
    browser.until("$('refused').textContent.includes('Wrong or expired token')");
    assert_eq!(browser.value("$('desk').hidden"), true);
    browser.log_in();
    browser.open(&fixture);
    browser.until("state === 'live'");
    assert_eq!(browser.value("$('ask').hidden"), true, "kept for this tab");

    // Totals.
    browser.until("totals.upRate > 50 && totals.downRate > 50");
    let tile = |name: &str| format!("$('tile-{name}').children[1].textContent.replace(/[ ,]/g, '')");
    assert_eq!(browser.text(&tile("devices")), (devices + 1).to_string());
    assert_eq!(browser.text(&tile("calls")), "20");
    browser.until("totals.loss > 0.005 && totals.loss < 0.05");
    assert!(browser.text(&tile("memory")).ends_with("MB") || cfg!(not(target_os = "linux")));
    assert!(browser.text(&tile("turn")).ends_with('s'));

    // The table: sick calls first, then the others; search, filters, sorting; and only visible rows exist.
    browser.until(&format!("devices.size === {}", devices + 1));
    browser.until("listed[0].ailment === 'lossy_uplink' && listed.filter((d) => d.ailment).length === 7");
    browser.until("$('space').children[0].children[1].textContent === 'Packets lost'");
    assert_eq!(browser.value("listed.slice(0, 20).every((d) => d.session.call)"), true);
    browser.until(
        "$('health').classList.contains('warn') && $('findings').textContent.includes('in 7 of 20 calls')",
    );
    browser.click("#findings button");
    browser.until("listed.length === 7 && $('filter').value === 'lossy_uplink'");
    browser.fill("filter", "all");
    assert!(browser.value("$('space').children.length").as_u64().unwrap() < 40);
    if env::var_os("PAGE_SHOTS").is_some() {
        // The pictures show trends of some length.
        for _ in 0..24 {
            thread::sleep(Duration::from_millis(250));
            browser.value("poll()");
        }
    }
    browser.screenshot("overview");
    browser.click("#language");
    browser.screenshot("overview-chinese");
    browser.click("#language");
    browser.fill("search", "00:00:1 127.0");
    assert_eq!(browser.value("listed.length"), 16);
    browser.fill("search", "");
    browser.fill("filter", "calls");
    assert_eq!(browser.value("listed.length"), 20);
    browser.click("#head .c-loss button");
    let best = browser.value("listed[0].loss >= listed[19].loss && listed[0].loss > 0");
    assert_eq!(best, true);
    browser.fill("filter", "all");

    // One call, with its charts.
    browser.click("#space .row");
    browser.until("course.filter((point) => point.upRate > 5).length >= 2");
    for name in ["Duration", "Chat server", "Redials", "Lost"] {
        browser.until(&format!(
            "[...$('facts').querySelectorAll('dt')].some((e) => e.textContent === '{name}')"
        ));
    }
    browser.until("$('plots').querySelector('polyline').getAttribute('points').includes(' ')");
    browser.screenshot("desktop");
    browser.set_dark_mode(true);
    browser.screenshot("dark");
    browser.click("#language");
    assert_eq!(browser.text("document.documentElement.lang"), "zh-CN");
    browser.screenshot("chinese-dark");
    browser.set_dark_mode(false);
    browser.screenshot("chinese");
    browser.set_viewport(390, 844);
    browser.screenshot("phone-chinese");
    browser.click("#language");
    browser.screenshot("phone-call");
    browser.click("#shut");
    browser.screenshot("phone");
    browser.set_dark_mode(true);
    browser.screenshot("phone-dark");
    browser.set_dark_mode(false);
    browser.set_viewport(1280, 900);

    // Ending a call asks for confirmation, and does not end another one.
    browser.click("#space .row");
    let victim = browser.text("picked");
    browser.click("#act-hang");
    assert_eq!(browser.value("$('dialog').open"), true);
    assert_eq!(fixture.request("GET", "/api/sessions", None).1["calls"], 20);
    browser.click("#cancel");
    browser.click("#act-hang");
    browser.click("#confirm");
    browser.until("$('outcome').textContent === 'Hung up.'");
    browser.click("#cancel");
    fixture.poll_until("/api/sessions", |answer| answer["calls"] == 19);
    browser.until("$('act-hang').disabled && !$('act-cut').disabled");
    browser.click("#act-cut");
    browser.click("#confirm");
    browser.until("$('outcome').textContent === 'Disconnected.'");
    browser.click("#cancel");
    fixture.poll_until("/api/sessions", |answer| answer["devices"] == devices);
    browser.until(&format!("!devices.has({}) && $('act-cut').disabled", json!(victim)));

    // A client id is inserted as text only.
    browser.fill("search", "onerror");
    assert_eq!(browser.value("listed.length"), 1);
    browser.click("#space .row");
    browser.until("$('facts').textContent.includes('<img/src=x onerror=')");
    browser.screenshot("hostile");
    assert_eq!(browser.value("document.querySelectorAll('img, main script').length"), 0);
    assert_eq!(browser.text("document.title"), "MQTT WebSocket Proxy");
    browser.click("#forget");
    browser.until("!$('ask').hidden && devices.size === 0 && sessionStorage.length === 0");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn a_link_with_the_token_opens_the_page_and_hides_it() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = fixture(|_| {});
    let link = format!("http://{}/#token={TOKEN}", fixture.api);
    browser.call("Page.navigate", json!({ "url": link }));
    browser.until("typeof poll === 'function' && state === 'live'");
    assert_eq!(browser.value("$('ask').hidden"), true);
    assert_eq!(browser.text("location.href"), format!("http://{}/", fixture.api));
    // In a page that is open and has no token any more, a link is a change of what is behind #.
    browser.click("#forget");
    browser.until("!$('ask').hidden && sessionStorage.length === 0");
    browser.call("Page.navigate", json!({ "url": link }));
    browser.until("state === 'live' && location.hash === ''");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn a_token_that_is_entered_while_answers_for_the_one_before_are_on_their_way_is_tried() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = fixture(|_| {});
    browser.open(&fixture);
    browser.log_in();
    browser.value(
        "poll(); $('forget').click(); $('token').value = 'wrong'; $('login').querySelector('button').click()",
    );
    browser.until("$('refused').textContent.startsWith('Wrong or expired token')");
}

/// A port that refuses connections, and a gateway whose chat server should be there.
fn without_chat_server() -> (SocketAddr, Fixture) {
    let closed = refusing_port();
    let fixture = fixture(|config| {
        config.websocket.production = vec![Arc::new(format!("ws://{closed}/").parse().unwrap())];
    });
    (closed, fixture)
}

#[test]
fn recent_errors_are_available_over_the_api_too() {
    let (closed, fixture) = without_chat_server();
    assert_eq!(fixture.request("GET", "/api/errors", None).1, json!({ "errors": [] }));
    let mut device = fixture.device_with_client_id(HOSTILE_CLIENT_ID);
    for _ in 0..2 {
        // The device gets a hello reply, an alert and a goodbye.
        device.call().unwrap();
        device.wait_for("goodbye", TIMEOUT).unwrap();
    }
    let intruder = Login::new("aa:bb:cc:dd:ee:01".parse().unwrap(), Some(b"Another-Key-1"));
    assert!(SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &intruder, TIMEOUT).is_err());
    let told = fixture.poll_until("/api/errors", |answer| answer["errors"][0]["code"] == "login_refused");
    let find = |code: &str| {
        let mut errors = told["errors"].as_array().unwrap().iter();
        errors.find(|error| error["code"] == code).unwrap_or_else(|| panic!("no {code} in {told}"))
    };
    let refused = find("login_refused");
    assert!(
        refused["sentence"].as_str().unwrap().starts_with("127.0.0.1 refused with return code"),
        "{told}"
    );
    assert!(refused["advice"].as_str().unwrap().contains("mqtt.signature_key"), "{told}");
    assert_eq!(find("no_server")["device"], HOSTILE_CLIENT_ID);
    let failing = find("server_failing");
    assert_eq!((&failing["device"], &failing["times"]), (&Value::Null, &json!(1)));
    assert!(failing["sentence"].as_str().unwrap().contains(&closed.to_string()), "{told}");
    assert!(failing["at"].as_u64().unwrap() > 1_700_000_000_000, "{told}");
}

#[test]
fn chat_servers_are_listed_with_what_their_calls_have_shown() {
    let (closed, down) = without_chat_server();
    let server = |answer: &Value| answer["servers"][0].clone();
    let untried = server(&down.request("GET", "/api/servers", None).1);
    assert_eq!((&untried["state"], &untried["seenSeconds"]), (&json!("unknown"), &Value::Null));
    let _ = down.device(&mac(1)).call();
    let failing = server(&down.poll_until("/api/servers", |answer| server(answer)["state"] == "failing"));
    assert_eq!((&failing["route"], &failing["stage"]), (&json!("production"), &json!("connect")));
    assert_eq!(failing["url"], format!("ws://{closed}/"));
    assert!(failing["failures"].as_u64() >= Some(1) && failing["reason"].is_string(), "{failing}");

    // Two workers add up what they know.
    let up = fixture(|config| config.workers = 2);
    let mut devices: Vec<_> = (0..4).map(|n| up.device(&mac(n))).collect();
    let _calls: Vec<_> = devices.iter_mut().map(|device| device.call().unwrap()).collect();
    let well = server(&up.request("GET", "/api/servers", None).1);
    assert_eq!((&well["state"], &well["calls"], &well["answered"]), (&json!("well"), &json!(4), &json!(4)));
    let sessions = up.request("GET", "/api/sessions", None).1;
    assert_eq!(sessions["sessions"][0]["route"], "production");
}

#[test]
fn a_new_device_logs_in_with_what_the_api_says() {
    let fixture = fixture(|config| {
        config.ota.enabled = true;
        (config.ota.host, config.ota.port) = ([127, 0, 0, 1].into(), 0);
        config.ota.endpoint = Some("gateway.example:1883".parse().unwrap());
    });
    let (status, setup) = fixture.request("POST", "/api/credentials", Some(r#"{"mac":"AA-BB-CC-DD-EE-01"}"#));
    assert_eq!((status, &setup["mac"]), (200, &json!("aa:bb:cc:dd:ee:01")));
    let port = fixture.gateway.addresses().ota.unwrap().port();
    assert_eq!(setup["otaUrl"], format!("http://gateway.example:{port}/xiaozhi/ota/"));
    assert_eq!((&setup["otaObstacle"], setup["otaQr"].is_array()), (&Value::Null, true));
    assert_eq!(setup["mqtt"]["endpoint"], "gateway.example:1883");
    let text = |key: &str| setup["mqtt"][key].as_str().unwrap().to_owned();
    let mut login = Login::new("aa:bb:cc:dd:ee:01".parse().unwrap(), None);
    login.client_id = text("client_id");
    (login.user_name, login.password) = (Some(text("username")), Some(text("password")));
    SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &login, TIMEOUT).unwrap();
    for body in ["{}", r#"{"mac":"x"}"#, r#"{"mac":7}"#] {
        let (status, error) = fixture.request("POST", "/api/credentials", Some(body));
        assert_eq!((status, &error["code"]), (400, &json!("bad_parameter")), "{body}");
    }
    let (status, _) = fixture.request_with_token("POST", "/api/credentials", Some("{}"), None);
    assert_eq!(status, 401);
    // Without the password, if the configuration says so.
    let fixture = support::admin::fixture(|config| config.api.issue_credentials = false);
    let (status, setup) = fixture.request("POST", "/api/credentials", Some(r#"{"mac":"AA-BB-CC-DD-EE-01"}"#));
    assert_eq!((status, &setup["mqtt"], &setup["otaObstacle"]), (200, &Value::Null, &json!("off")));
}

#[test]
fn errors_are_shown_in_words_with_advice() {
    let Some(mut browser) = Browser::start() else { return };
    let (closed, fixture) = without_chat_server();
    let mut device = fixture.device_with_client_id(HOSTILE_CLIENT_ID);
    let _ = device.call();
    browser.open(&fixture);
    browser.log_in();
    browser.until("$('errors').textContent.includes('No chat server for a call')");
    browser.until("$('errors').textContent.includes('check dials every one')");
    assert!(browser.text("$('errors').textContent").contains(&format!("{closed}")));
    browser.until("$('health').classList.contains('bad')");
    let banner = browser.text("$('health').innerText");
    assert!(banner.contains("No chat server works") && banner.contains(&format!("{closed}")), "{banner}");
    assert_eq!(browser.value("$('errors').children.length"), 2, "one entry for each kind");
    browser.set_viewport(390, 844);
    let fold = "[...$('errors').children].every((entry) => entry.getBoundingClientRect().bottom <= 844)";
    assert_eq!(browser.value(fold), true, "above the fold on a phone");
    browser.screenshot("errors-phone-english");
    browser.set_viewport(1280, 900);
    browser.click("#tabs [name=servers]");
    browser.until("$('servers').textContent.includes('Fails')");
    browser.screenshot("servers");
    browser.click("#tabs [name=calls]");
    browser.until("$('ended').textContent.includes('Chat server failed')");
    assert!(browser.text("$('ended').textContent").contains("No chat server"));
    browser.value("$('verdict').value = 'good'; $('verdict').dispatchEvent(new Event('change'))");
    browser.until("$('ended').textContent === '' && !$('noCalls').hidden");
    browser.value("$('verdict').value = 'server_failed'; $('verdict').dispatchEvent(new Event('change'))");
    browser.until("$('ended').textContent.includes('Chat server failed')");
    browser.screenshot("calls");
    browser.click("#ended button");
    browser.until("$('failures').textContent.includes('a chat server failed (connecting)')");
    browser.screenshot("call");
    browser.click("#language");
    browser.until("$('ended').textContent.includes('聊天服务器故障')");
    browser.until("$('summary').textContent.startsWith('聊天服务器故障')");
    browser.value("dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))");
    assert_eq!(browser.value("$('detail').hidden"), true);
    browser.click("#tabs [name=now]");
    browser.until("$('errors').textContent.includes('子命令 check')");
    assert_eq!(browser.text("$('verdict').value"), "server_failed", "the choice stays");
    browser.screenshot("errors-chinese");
    browser.set_viewport(390, 844);
    browser.screenshot("errors-phone");
    assert_eq!(browser.value("document.querySelectorAll('img, main script').length"), 0);
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    assert_eq!(browser.text("$('status').textContent"), "实时");

    // A browser in Chinese; and a gateway that stops.
    let agent = json!({ "userAgent": "a browser", "acceptLanguage": "zh-TW" });
    browser.call("Emulation.setUserAgentOverride", agent);
    browser.value("localStorage.clear()");
    browser.open(&fixture);
    assert_eq!(browser.text("document.documentElement.lang"), "zh-CN");
    browser.until("state === 'live'");
    drop(fixture);
    browser.until("state === 'lost' && $('status').textContent === '与网关的连接已断开'");
    browser.until("$('verdictNow').textContent === '网关没有应答'");
    assert_eq!(browser.value("$('desk').hidden"), false, "what was known stays");
}

#[test]
fn axe_finds_nothing_in_any_view() {
    if env::var_os("AXE").is_none() {
        eprintln!("skipped: AXE does not name the file axe.min.js of axe-core");
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let (_, fixture) = without_chat_server();
    let mut device = fixture.device(&mac(1));
    let _ = device.call();
    let _idle: Vec<_> = (2..40).map(|n| fixture.device(&mac(n))).collect();
    browser.open(&fixture);
    browser.until("!$('ask').hidden");
    assert_accessible(&mut browser, "token");
    browser.log_in();
    browser.until("$('errors').children.length === 2 && listed.length === 39");
    for (width, dark, chinese) in
        [(1280, false, false), (1280, true, true), (390, false, true), (390, true, false)]
    {
        browser.set_viewport(width, 844);
        browser.set_dark_mode(dark);
        browser.value(&format!("language = {}; speak(); show();", json!(if chinese { "zh" } else { "en" })));
        for view in ["now", "calls", "servers", "events", "log", "gateway"] {
            browser.click(&format!("#tabs [name={view}]"));
            match view {
                "calls" => browser.until("ended.length === 1 && $('hours').children.length === 2"),
                "events" => browser.until("$('events').children.length > 30"),
                _ => {}
            }
            assert_accessible(
                &mut browser,
                &format!("{view}, {width} wide, dark: {dark}, Chinese: {chinese}"),
            );
            browser.screenshot(&format!("{view}-{width}{}", if dark { "-dark" } else { "" }));
        }
        browser.value("pick([...devices.keys()][0])");
        browser.until("$('facts').children.length > 0");
        assert_accessible(&mut browser, "a device");
        browser.value("openCall(ended[0].id)");
        browser.until("$('failures').children.length === 1");
        assert_accessible(&mut browser, "a call");
        for dialog in ["askAddDevice()", "askDenied()", "askCheck()"] {
            browser.value(&format!("pick(null); {dialog}"));
            assert_accessible(&mut browser, dialog);
            browser.click("#cancel");
        }
    }
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn the_page_translates_sentences_of_the_gateway_as_the_program_does() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = fixture(|_| {});
    browser.open(&fixture);
    browser.log_in();
    browser.click("#language");
    browser.value("said('x')");
    browser.until("catalogue !== null");
    for line in include_str!("data/translations.tsv").lines() {
        let (message, expected) = line.split_once('\t').unwrap();
        assert_eq!(browser.text(&format!("said({})", json!(message))), expected);
    }
    // Whatever a peer says costs little.
    for text in [": ".repeat(2000), "; ".repeat(2000), "{}".repeat(2000), " from ".repeat(500) + " to "] {
        browser.value(&format!("said({})", json!(text)));
    }
    // An error of the API.
    browser.value("openTab('gateway'); askDenied(); $('dialogBody').querySelector('input').value = 'nobody'");
    browser.click("#confirm");
    browser.until("$('outcome').textContent === 'clientId：发现 \"nobody\"，允许：客户端 ID，或形如 aa:bb:cc:dd:ee:ff 的 MAC 地址。'");
    browser.click("#language");
    browser.click("#confirm");
    browser.until("$('outcome').textContent.startsWith('clientId: found')");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn an_operator_acts_and_sees_what_became_of_it() {
    let Some(mut browser) = Browser::start() else { return };
    let secret = "server-token-in-the-url";
    let fixture = fixture(|config| {
        config.ota.enabled = true;
        (config.ota.host, config.ota.port) = ([127, 0, 0, 1].into(), 0);
        let url = format!("{}?token={secret}", config.websocket.production[0].url);
        config.websocket.production.push(Arc::new(url.parse().unwrap()));
    });
    let mut device = fixture.device(&mac(1));
    let mut other = fixture.device(&mac(2));
    let _call = device.call().unwrap();
    let _other_call = other.call().unwrap();
    browser.open(&fixture);
    browser.log_in();
    browser.until("devices.size === 2");
    let id = format!("[...devices.keys()].find((id) => devices.get(id).session.mac === '{}')", mac(1));
    browser.value(&format!("pick({id})"));

    // A message, and words. The dialog has the focus, and Esc closes it without sending anything.
    browser.click("#act-message");
    browser.value("$('dialogBody').querySelector('[name=text]').value = 'Dinner is ready'");
    browser.click("#confirm");
    browser.until("$('outcome').textContent === 'Sent.'");
    let alert = device.wait_for("alert", TIMEOUT).unwrap();
    assert!(alert.contains("Dinner is ready"), "{alert}");
    browser.click("#cancel");
    browser.click("#act-notify");
    browser.value("$('dialogBody').querySelector('[name=text]').value = 'At the door'");
    browser.click("#confirm");
    browser.until("$('outcome').textContent === 'Sent.'");
    assert!(device.wait_for("alert", TIMEOUT).unwrap().contains("At the door"));
    browser.click("#cancel");
    browser.click("#act-message");
    let esc =
        |kind: &str| json!({ "type": kind, "key": "Escape", "code": "Escape", "windowsVirtualKeyCode": 27 });
    browser.call("Input.dispatchKeyEvent", esc("keyDown"));
    browser.until("!$('dialog').open && !$('detail').hidden");

    // A file that is no sound, and what the API says about it.
    browser.click("#act-notify");
    browser.value("{ const bag = new DataTransfer(); bag.items.add(new File(['OggS no sound'], 'a.ogg')); $('dialogBody').querySelector('[type=file]').files = bag.files; }");
    browser.click("#confirm");
    browser.until("$('outcome').className === 'bad' && $('outcome').textContent.length > 20");
    browser.click("#cancel");

    // A device calls the other.
    browser.click("#act-ring");
    browser.click("#confirm");
    browser.until("$('outcome').textContent === 'It rings.'");
    browser.click("#cancel");

    // A device is denied: it loses its connection, and cannot come back until the operator takes that back.
    browser.value(&format!("pick({id})"));
    browser.click("#act-deny");
    browser.click("#confirm");
    browser.until("$('outcome').textContent.includes('until the gateway restarts')");
    browser.until("$('act-deny').disabled && $('summary').textContent.includes('no longer connected')");
    let login = Login::new(mac(1).parse().unwrap(), Some(KEY.as_bytes()));
    let connect = || SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &login, TIMEOUT);
    assert!(connect().is_err());
    browser.click("#outcome button");
    browser.until("$('outcome').textContent === 'It may connect again.'");
    connect().unwrap();
    browser.click("#cancel");
    // The list of them, in which any MAC can be denied.
    browser.value("pick(null); openTab('gateway')");
    browser.click("#denied");
    browser.fill("denyMac", "no MAC");
    browser.click("#confirm");
    browser.until("$('outcome').className === 'bad' && $('outcome').textContent.includes('MAC')");
    browser.fill("denyMac", "AA-BB-CC-00-00-07");
    browser.click("#confirm");
    browser.until("$('deniedList').textContent.includes('aa:bb:cc:00:00:07')");
    browser.click("#deniedList button");
    browser.until("$('deniedList').textContent === 'None.'");
    browser.click("#cancel");

    // A new device, the configuration, and a file for whoever helps, without any secret.
    browser.value("pick(null); openTab('gateway'); askAddDevice(); $('dialogBody').querySelector('input').value = 'aa:bb:cc:dd:ee:99'");
    browser.click("#confirm");
    browser.until("$('outcome').querySelector('svg') && $('outcome').textContent.includes('/xiaozhi/ota/')");
    browser.screenshot("add-device");
    browser.click("#cancel");
    browser.click("#reload");
    browser.until("$('dialogBody').textContent === 'This gateway was started without a configuration file.'");
    browser.click("#cancel");
    browser.click("#showConfig");
    browser.until("$('dialogBody').textContent.includes('production_servers')");
    browser.click("#cancel");
    let bundle = browser.text("diagnostics()");
    for part in ["\"config\"", "\"sessions\"", "\"calls\"", "gateway_devices_online"] {
        assert!(bundle.contains(part), "{part}");
    }
    for secret in [KEY, TOKEN, secret] {
        assert!(!bundle.contains(secret), "{secret}");
    }
    browser.click("#bundle");
    browser.until("$('bundled').textContent.includes('saved')");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn calls_without_audio_are_the_first_that_is_seen() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = fixture(|_| {});
    let mut devices: Vec<_> = (0..3).map(|n| fixture.device(&mac(n))).collect();
    let calls: Vec<_> = devices
        .iter_mut()
        .map(|device| {
            let call = device.call().unwrap();
            device.start_listening(&call, "auto").unwrap();
            call
        })
        .collect();
    let _idle: Vec<_> = (3..9).map(|n| fixture.device(&mac(n))).collect();
    browser.open(&fixture);
    browser.log_in();
    browser.until("$('findings').textContent.includes('No audio from the device in 3 of 3 calls')");
    assert_eq!(browser.text("$('verdictNow').textContent"), "Devices cannot call as they should");
    assert!(browser.text("$('findings').textContent").contains("Open the UDP port"));
    assert_eq!(browser.value("[...document.querySelectorAll('#space .row.sick')].length"), 3);
    assert_eq!(browser.value("listed.slice(0, 3).every((d) => d.ailment === 'no_audio')"), true);
    browser.screenshot("no-audio");
    drop(calls);
}

#[test]
fn any_number_of_devices_is_counted_and_shown() {
    let Some(mut browser) = Browser::start() else { return };
    for (devices, headline) in
        [(0, "No device is connected"), (5, "5 devices are connected"), (300, "300 devices are connected")]
    {
        let fixture = fixture(|_| {});
        let _devices: Vec<_> = (0..devices).map(|n| fixture.device(&mac(n))).collect();
        browser.open(&fixture);
        browser.log_in();
        browser.until(&format!("$('verdictNow').textContent.startsWith('{headline}')"));
        browser.until(&format!("listed.length === {devices}"));
        // Without any, the page says how to add one.
        let offers = "!$('empty').hidden && $('firstDevice').getBoundingClientRect().height > 0";
        assert_eq!(browser.value(offers), devices == 0);
        browser.screenshot(&format!("devices-{devices}"));
    }
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[cfg(feature = "cluster")]
#[test]
fn devices_of_all_gateways_are_shown_and_one_gateway_can_be_chosen() {
    let Some(mut browser) = Browser::start() else { return };
    if !redis::is_installed() {
        return;
    }
    let server = redis::RedisServer::start();
    let gateways = ["north", "south"].map(|name| {
        fixture(|config| {
            config.cluster.redis = Some(server.url().parse().unwrap());
            config.cluster.name = Some(name.to_owned());
        })
    });
    let _devices: Vec<_> = (0..5).map(|n| gateways[usize::from(n > 1)].device(&mac(n))).collect();
    browser.open(&gateways[0]);
    browser.log_in();
    browser.until("listed.length === 5 && !$('byGateway').hidden");
    browser.fill("byGateway", "south");
    assert_eq!(browser.value("listed.map((device) => device.gateway)"), json!(["south", "south", "south"]));
    browser.click("#space .row button");
    browser.until("$('facts').textContent.includes('Gatewaysouth')");
    browser.screenshot("gateways");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn ten_thousand_rows_stay_responsive() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = fixture(|_| {});
    // The page's code, with responses that the test provides in the browser.
    let answers = r#"
        const real = window.fetch;
        const call = (i) => ({ state: "live", sessionId: "s" + i, seconds: i, server: "ws://chat/" + i % 7, audioFrom: null, packetsUp: i * 9,
            bytesUp: 1, packetsDown: 1, bytesDown: 1, lost: i % 50, jitterMs: i % 9, reordered: 0, duplicates: 0, dropped: 0, redials: 0,
            verdict: "good", lossPercent: 0, last10s: { packetsUp: 166, lost: i % 50, gapMs: 0 } });
        const finished = (id) => ({ ...call(id), id, endedAt: new Date().toISOString(), clientId: "g@@@" + id, mac: "mac-" + id, reason: "device_goodbye",
            worstLossPercent: 0, setup: { totalMs: id % 900 }, failureCount: 0 });
        window.fetch = async (path, options) => {
            const found = /^\/api\/sessions\?limit=1000&after=(\d+)$/.exec(path);
            const past = /^\/api\/calls\?limit=(\d+)(?:&since=[^&]+)?(?:&cursor=(\d+))?$/.exec(path);
            if (past) {
                const [limit, before] = [Number(past[1]), Number(past[2] ?? 10001)], count = Math.min(limit, before - 1);
                const calls = Array.from({ length: count }, (_, k) => finished(before - 1 - k));
                return new Response(JSON.stringify({ calls, next: before - 1 > count ? before - count : null }));
            }
            if (!found) return real(path, options);
            const after = Number(found[1]);
            const sessions = Array.from({ length: 1000 }, (_, k) => after + k).map((i) => ({ clientId: "g@@@" + i, mac: "mac-" + i,
                ip: "10.0." + (i >> 8) + "." + (i & 255), connected: true, onlineSeconds: i, route: "r" + i % 3, call: i % 4 ? null : call(i) }));
            return new Response(JSON.stringify({ devices: 10000, calls: 2500, next: after < 9000 ? after + 1000 : null, sessions }));
        };
    "#;
    browser.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": answers }));
    browser.open(&fixture);
    browser.log_in();
    browser.until("devices.size === 10000 && listed.length === 10000");
    let rows = "$('space').children.length";
    assert!(browser.value(rows).as_u64().unwrap() < 40);
    // Scrolling reaches the last row.
    browser.click("#head .c-time button");
    browser.value("$('scroll').scrollTop = 1e9");
    browser.until("[...$('space').children].some((row) => row.device === listed[9999].session.clientId)");
    assert!(browser.value(rows).as_u64().unwrap() < 40);
    browser.screenshot("ten-thousand");
    let middle = |browser: &mut Browser, doing: &str| {
        let expression = format!(
            "(() => {{ const times = []; for (let i = 0; i < 9; i++) {{ const from = performance.now(); {doing}; times.push(performance.now() - from); }} return times.sort((a, b) => a - b)[4]; }})()"
        );
        browser.value(&expression).as_f64().unwrap()
    };
    let sorting = middle(&mut browser, "order('loss', i % 2 === 0)");
    let scrolling = middle(&mut browser, "$('scroll').scrollTop = i * 30000; deviceTable.draw()");
    eprintln!("10,000 rows: sorting {sorting:.1} ms, scrolling {scrolling:.1} ms");
    browser.fill("search", "mac-777");
    assert_eq!(browser.value("listed.length"), 11);
    // Calls that have ended come page by page while one scrolls; of them, too, only rows in sight exist.
    browser.click("#tabs [name=calls]");
    browser.until("($('callScroll').scrollTop = 1e9) && ended.length === 10000 && endedNext === null");
    browser.until("[...$('ended').children].some((row) => row.item.id === 1)");
    assert!(browser.value("$('ended').children.length").as_u64().unwrap() < 40);
    browser.until("today.hours.reduce((sum, hour) => sum + hour.good, 0) === 10000");
    let scrolling = middle(&mut browser, "$('callScroll').scrollTop = i * 30000; callTable.draw()");
    let paint = browser.value("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1");
    browser.call("HeapProfiler.collectGarbage", json!({}));
    let heap = browser.call("Runtime.getHeapUsage", json!({}))["usedSize"].as_f64().unwrap() / 1048576.0;
    eprintln!("10,000 records: scrolling {scrolling:.1} ms; first paint {paint} ms, heap {heap:.1} MiB");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn the_page_itself_needs_no_token_and_nothing_from_outside() {
    let fixture = fixture(|_| {});
    let reply = RawClient::round_trip(fixture.api, "GET / HTTP/1.1\r\nHost: gateway\r\n\r\n");
    assert_eq!((reply.status, reply.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = reply.field("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert!(reply.body.starts_with("<!doctype html>"));
    let (status, _) = fixture.request_with_token("GET", "/api/errors", None, None);
    assert_eq!(status, 401);
    assert_eq!(fixture.request("POST", "/", Some("{}")).0, 405);
}

#[test]
fn a_client_that_accepts_gzip_gets_the_page_and_the_description_of_the_api_compressed() {
    let fixture = fixture(|_| {});
    for (path, texts) in [("/", "<!doctype html>"), ("/openapi.json", "{")] {
        let mut client = TcpStream::connect(fixture.api).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        let fields = "Host: gateway\r\nAccept-Encoding: gzip, deflate\r\nConnection: close\r\n";
        client.write_all(format!("GET {path} HTTP/1.1\r\n{fields}\r\n").as_bytes()).unwrap();
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).unwrap();
        let body = 4 + reply.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(reply[..body].to_vec()).unwrap();
        assert!(head.contains("\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\n"), "{head}");
        // Another implementation reads it, its checksum too.
        let mut gunzip =
            Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        gunzip.stdin.take().unwrap().write_all(&reply[body..]).unwrap();
        let output = gunzip.wait_with_output().unwrap();
        let plain =
            RawClient::round_trip(fixture.api, &format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n"));
        assert!(output.status.success() && plain.field("content-encoding").is_none(), "{output:?}");
        assert!(plain.body.starts_with(texts) && output.stdout == plain.body.as_bytes());
        assert!(reply.len() * 2 < plain.body.len(), "{} of {}", reply.len(), plain.body.len());
    }
}
