//! The dashboard in a headless Chromium, which is controlled with the Chrome DevTools Protocol.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use data_encoding::BASE64;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::TIMEOUT;
use super::admin::{Fixture, TOKEN};

/// One tab of a browser.
pub struct Browser {
    process: Child,
    profile: PathBuf,
    socket: WebSocket<TcpStream>,
    session: Option<String>,
    calls: u64,
    /// Exceptions of the page, and violations of its Content-Security-Policy.
    pub complaints: Vec<String>,
}

impl Browser {
    /// `None`, with a message, if there is no browser.
    pub fn start() -> Option<Self> {
        static PROFILES: AtomicUsize = AtomicUsize::new(0);
        let Some(path) = find_chromium() else {
            eprintln!("skipped: no Chromium here (install it, or set CHROME to its path)");
            return None;
        };
        let number = PROFILES.fetch_add(1, Ordering::Relaxed);
        let profile = env::temp_dir().join(format!("gateway-page-{}-{number}", std::process::id()));
        let mut process = Command::new(path)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
                "--lang=en-US",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url =
            lines.find_map(|line| Some(line.split_once("DevTools listening on ")?.1.to_owned())).unwrap();
        thread::spawn(move || lines.for_each(drop));
        let host = url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let (socket, _) = tungstenite::client(url.as_str(), stream).unwrap();
        let mut browser = Self { process, profile, socket, session: None, calls: 0, complaints: Vec::new() };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({}));
        }
        browser.call("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
        browser.set_viewport(1280, 900);
        Some(browser)
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut request = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(request.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().unwrap() else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            let wrong = match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Log.entryAdded") => answer["params"]["entry"]["source"] == "security",
                _ => false,
            };
            if wrong {
                self.complaints.push(text.to_string());
            }
        }
    }

    pub fn open(&mut self, fixture: &Fixture) {
        self.open_at(fixture.api);
    }

    pub fn open_at(&mut self, api: SocketAddr) {
        self.call("Page.navigate", json!({ "url": format!("http://{api}/") }));
        self.until("document.readyState === 'complete' && typeof poll === 'function'");
    }

    /// The value of an expression in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    pub fn text(&mut self, expression: &str) -> String {
        self.value(expression).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub fn until(&mut self, expression: &str) {
        assert!(self.comes_true(expression), "{expression}\n{}", self.text("document.body?.innerText ?? ''"));
    }

    /// Waits until an expression is true; false if it does not become that.
    pub fn comes_true(&mut self, expression: &str) -> bool {
        let end = Instant::now() + TIMEOUT;
        while self.value(expression) != true {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        true
    }

    pub fn click(&mut self, selector: &str) {
        self.value(&format!("document.querySelector({}).click()", json!(selector)));
    }

    pub fn fill(&mut self, id: &str, text: &str) {
        self.value(&format!(
            "{{ const e = $({}); e.value = {}; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }}",
            json!(id),
            json!(text)
        ));
    }

    pub fn log_in(&mut self) {
        self.log_in_with(TOKEN);
    }

    pub fn log_in_with(&mut self, token: &str) {
        self.until("!$('ask').hidden");
        self.fill("token", token);
        self.click("#login button");
        self.until("state === 'live' && totals.devices !== undefined");
    }

    pub fn set_viewport(&mut self, width: u32, height: u32) {
        let mobile = width < 600;
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": if mobile { 2 } else { 1 }, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    pub fn set_dark_mode(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Checks that nothing is wider than the screen, and takes a screenshot if wanted.
    pub fn screenshot(&mut self, name: &str) {
        let overflow = self.value("document.documentElement.scrollWidth - innerWidth");
        assert!(overflow.as_i64().unwrap() <= 0, "{name}: {overflow} pixels too wide");
        let Some(folder) = env::var_os("PAGE_SHOTS") else { return };
        let shot = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        fs::create_dir_all(&folder).unwrap();
        let picture = BASE64.decode(shot["data"].as_str().unwrap().as_bytes()).unwrap();
        fs::write(Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ask the browser to end, so that its helper processes, which write into the profile, end too.
        let close = json!({ "id": 0, "method": "Browser.close" });
        let _ = self.socket.send(Message::text(close.to_string()));
        let end = Instant::now() + TIMEOUT;
        while !matches!(self.process.try_wait(), Ok(Some(_))) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

fn find_chromium() -> Option<PathBuf> {
    if let Some(path) = env::var_os("CHROME") {
        return Some(path.into());
    }
    let folders = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    env::split_paths(&folders)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|path| path.is_file())
}

/// The rules of axe-core, whose file `AXE` names (`.ci/page-picture` fetches it), about what is on the screen now.
pub fn assert_accessible(browser: &mut Browser, what: &str) {
    let Some(path) = env::var_os("AXE") else { return };
    let axe = fs::read_to_string(path).unwrap();
    browser.call("Runtime.evaluate", json!({ "expression": axe }));
    let found = browser.value(
        "axe.run(document).then((told) => told.violations.flatMap((rule) => rule.nodes.map((node) => rule.id + ': ' + node.html.slice(0, 200) + ' ' + node.failureSummary.slice(0, 300))))",
    );
    assert_eq!(found, json!([]), "{what}");
}
