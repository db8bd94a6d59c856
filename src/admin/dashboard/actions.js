// ----- actions: each asks first, and says what became of it

let running = null;
/// Shows a dialog. `run` does what it is for and returns what to say; without it there is only something to read.
function openDialog({ title, body = [], confirm, danger = false, run = null }) {
  const dialog = $("dialog");
  running = run;
  put($("dialogTitle"), title);
  $("dialogBody").replaceChildren(...body);
  $("outcome").replaceChildren();
  $("confirm").hidden = !run;
  $("confirm").disabled = false;
  put($("confirm"), confirm || "");
  $("confirm").className = danger ? "danger" : "";
  put($("cancel"), t(run ? "cancel" : "close"));
  if (!dialog.open) dialog.showModal();
}
async function runDialog() {
  const run = running;
  if (!run) return $("dialog").close();
  $("confirm").disabled = true;
  put($("outcome"), "…");
  try {
    const told = await run();
    if (running !== run) return;
    // With nothing to say the dialog shows it itself, and can be used again.
    if (told === null) { $("outcome").replaceChildren(); $("confirm").disabled = false; return; }
    running = null;
    $("outcome").replaceChildren(...[told].flat());
    $("outcome").className = "good";
    $("confirm").hidden = true;
    put($("cancel"), t("close"));
    $("cancel").focus({ preventScroll: true });
  } catch (error) {
    put($("outcome"), error.message);
    $("outcome").className = "bad";
    $("confirm").disabled = false;
  }
  poll();
}
function field(label, element) {
  const box = make("label", "", t(label));
  element.name = label;
  box.append(element);
  return box;
}
function input(attributes = {}) { return Object.assign(make("input"), { autocomplete: "off", ...attributes }); }

const ACTIONS = [["message", false], ["notify", false], ["ring", true], ["hang", true], ["cut", false], ["deny", false]];
/// Buttons for a device: those in the second column of ACTIONS need a call.
function showActions(device) {
  const box = $("acts");
  if (box.children.length !== ACTIONS.length || box.language !== language) {
    box.language = language;
    box.replaceChildren(...ACTIONS.map(([name]) => {
      const button = make("button", ["hang", "cut", "deny"].includes(name) ? "danger" : "", t(name));
      button.id = "act-" + name;
      button.addEventListener("click", () => ({ message: askMessage, notify: askNotify, ring: askRing, hang: askEnd, cut: askEnd, deny: askDeny })[name](picked, name));
      return button;
    }));
  }
  ACTIONS.forEach(([, needsCall], i) => { box.children[i].disabled = !device || needsCall && !device.session.call; });
}
const macOf = (id) => devices.get(id)?.session.mac ?? id;
const delivered = (answer) => t(answer.delivery === "queued" ? "queued" : "sent");

function askMessage(id) {
  const [status, text] = [input({ required: true, maxLength: 50, value: t("notice") }), input({ required: true, maxLength: 500 })], emotion = make("select");
  options(emotion, ["neutral", "happy", "sad", "surprised", "thinking"].map((name) => [name, t("emo_" + name)]));
  openDialog({ title: t("messageTo", { n: macOf(id) }), body: [field("status", status), field("text", text), field("emotion", emotion)], confirm: t("sendIt"),
    run: async () => delivered(await ask(devicePath("messages", id), "POST", { type: "alert", status: status.value, message: text.value, emotion: emotion.value })) });
}
function askNotify(id) {
  const text = input({ maxLength: 500 }), file = input({ type: "file", accept: ".ogg,.opus,audio/ogg" }), drop = field("sound", file);
  drop.classList.add("drop");
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.toggle("over", over); if (name === "drop") file.files = event.dataTransfer.files; });
  }
  openDialog({ title: t("notifyTo", { n: macOf(id) }), body: [make("p", "dim", t("notifyHelp")), field("text", text), drop], confirm: t("sendIt"), run: async () => {
    const [sound] = file.files;
    if (!sound) return delivered(await ask(devicePath("notify", id), "POST", { text: text.value }));
    const query = text.value ? "?fallback=alert&text=" + encodeURIComponent(text.value) : "";
    const answer = await ask(devicePath("notify", id) + query, "POST", sound);
    return delivered(answer) + " " + t(answer.inCall ? "soundInCall" : await isFetched(answer.id) ? "soundFetched" : "soundWaits");
  } });
}
/// Whether the device fetches the sound in the next seconds.
async function isFetched(id) {
  for (let i = 0; i < 10; i++) {
    if ((await ask(devicePath("notify", id))).fetched) return true;
    await new Promise((done) => setTimeout(done, 500));
  }
  return false;
}
function askRing(id) {
  const target = make("select"), caller = input({ maxLength: 64 });
  options(target, [...devices.values()].map((d) => d.session.mac).filter((mac) => mac !== macOf(id)).sort().map((mac) => [mac, mac]));
  openDialog({ title: t("ringFrom", { n: macOf(id) }), body: [make("p", "dim", t("ringHelp")), field("target", target), field("callerName", caller)], confirm: t("ring"), run: async () => {
    const answer = await ask("/api/call/request", "POST", { caller_mac: macOf(id), target_mac: target.value, caller_nickname: caller.value });
    if (!["bridged", "pending"].includes(answer.status)) throw new Error(named("ring_", answer.status) + (answer.status === "error" ? ": " + answer.message : ""));
    return t("ring_" + answer.status);
  } });
}
function askEnd(id, name) {
  openDialog({ title: t(name) + ": " + macOf(id), body: [make("p", "", t("help_" + name))], confirm: t(name), danger: true, run: async () => {
    await ask(devicePath("sessions", id) + (name === "cut" ? "?disconnect=true" : ""), "DELETE");
    return t("done_" + name);
  } });
}

/// Denying ends with a way back.
function askDeny(id) {
  openDialog({ title: t("denyIt", { n: macOf(id) }), body: [make("p", "", t("help_deny"))], confirm: t("deny"), danger: true, run: async () => {
    const { mac } = await ask(devicePath("denied", id), "PUT"), undo = make("button", "", t("allow"));
    undo.type = "button";
    undo.addEventListener("click", () => allow(mac, () => put($("outcome"), t("allowed"))));
    return [make("p", "", t("done_deny")), undo];
  } });
}
async function allow(mac, then) {
  try {
    await ask(devicePath("denied", mac), "DELETE");
    then();
  } catch (error) { put($("outcome"), error.message); $("outcome").className = "bad"; }
}
/// Devices that may not connect. The dialog stays open, so that several can be denied or allowed.
async function askDenied() {
  const box = make("div"), mac = input({ id: "denyMac", required: true, placeholder: "aa:bb:cc:dd:ee:ff", spellcheck: false });
  box.id = "deniedList";
  const listThem = async () => {
    const { denied, configured } = await ask("/api/denied"), rows = make("ul", "items");
    for (const mac of denied) {
      const row = make("li", "top"), again = make("button", "", t("allow"));
      again.type = "button";
      again.addEventListener("click", () => allow(mac, listThem));
      row.append(make("span", "", mac), again);
      rows.append(row);
    }
    for (const mac of configured) { const row = make("li", "top"); row.append(make("span", "", mac), make("span", "dim", "mqtt.denied_macs")); rows.append(row); }
    box.replaceChildren(rows.children.length ? rows : t("noCalls"));
  };
  const run = async () => {
    await ask(devicePath("denied", mac.value.trim()), "PUT");
    mac.value = "";
    await listThem();
    return null;
  };
  openDialog({ title: t("denied"), body: [make("p", "dim", t("help_deny")), box, field("macAddress", mac)], confirm: t("deny"), danger: true, run });
  listThem().catch((error) => put(box, error.message));
}

// ----- the gateway itself

function askAddDevice() {
  const mac = input({ required: true, placeholder: "aa:bb:cc:dd:ee:ff", spellcheck: false });
  openDialog({ title: t("addDevice"), body: [make("p", "dim", t("addDeviceAsk")), field("macAddress", mac)], confirm: t("showSteps"),
    run: async () => setupSteps(await ask("/api/credentials", "POST", { mac: mac.value.trim() })) });
}
function setupSteps(setup) {
  const steps = make("ol"), step = (key, values) => steps.append(make("li", "", t(key, values)));
  const shown = [steps];
  if (setup.otaObstacle) shown.unshift(make("p", "warn", t("ota_" + setup.otaObstacle, { n: setup.mac })));
  if (setup.otaUrl) {
    step("step_wifi");
    step("step_ota", { n: setup.otaUrl });
    step("step_save");
    if (setup.otaQr) shown.push(qrCode(setup.otaQr));
  } else {
    step(setup.mqtt ? "step_elsewhere" : "step_none");
  }
  if (!setup.mqtt) return shown;
  const box = make("details"), pre = make("pre", "", JSON.stringify({ mqtt: setup.mqtt }, null, 2));
  pre.tabIndex = 0;
  box.append(make("summary", "", t("credentials")), make("p", "dim", t("credentialsHelp")), pre);
  return [...shown, box];
}
function qrCode(rows) {
  const size = rows.length + 8, drawing = svg("svg", { class: "qr", viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": t("qr"), "shape-rendering": "crispEdges" });
  const path = rows.map((row, y) => [...row].map((dark, x) => dark === "1" ? `M${x + 4} ${y + 4}h1v1h-1z` : "").join("")).join("");
  drawing.append(svg("path", { d: path }));
  return drawing;
}
function changesText({ applied, needsRestart }) {
  const names = (keys) => keys.length ? keys.join(", ") : t("nothing");
  return [make("p", "", t("applied", { n: names(applied) })), make("p", needsRestart.length ? "warn" : "", t("needsRestart", { n: names(needsRestart) }))];
}
async function askReload() {
  openDialog({ title: t("reload"), body: [make("p", "dim", "…")] });
  try {
    const changes = await ask("/api/reload?preview=true", "POST");
    openDialog({ title: t("reload"), body: [make("p", "", t("preview")), ...changesText(changes)], confirm: t("reloadNow"),
      run: async () => [make("p", "", t("reloaded")), ...changesText(await ask("/api/reload", "POST"))] });
  } catch (error) {
    openDialog({ title: t("reload"), body: [make("p", "bad", error.message)] });
  }
}
async function showConfig() {
  const pre = make("pre", "", "…");
  pre.tabIndex = 0;
  pre.setAttribute("aria-label", t("showConfig"));
  openDialog({ title: t("showConfig"), body: [pre] });
  try { put(pre, JSON.stringify(await ask("/api/config"), null, 2)); } catch (error) { put(pre, error.message); }
}
/// The report of a check that is started now; it takes some seconds for each chat server that does not answer.
async function checkNow() {
  await ask("/api/check", "POST");
  for (;;) {
    const told = await ask("/api/check");
    if (!told.running) return told.report;
    await new Promise((done) => setTimeout(done, 500));
  }
}
const CHECK_CLASS = { ok: "good", warn: "warn", fail: "bad" };
function checkReport(report) {
  const list = make("ul", "items");
  const add = (name, state, detail, advice) => {
    const item = make("li"), top = make("div", "top");
    top.append(make("strong", CHECK_CLASS[state] ?? "dim", t("check_" + state)), make("span", "plain", said(name)));
    item.append(top, ...detail ? [make("p", "plain", said(detail))] : [], ...advice.map((text) => make("p", "dim", "→ " + said(text))));
    list.append(item);
  };
  const worst = (list) => [...list].sort((a, b) => CHECK_ORDER.indexOf(a.state) - CHECK_ORDER.indexOf(b.state));
  for (const server of worst(report.servers)) {
    add(server.server, server.state, server.steps.map((step) => said(step.step) + (step.state === "ok" ? step.ms === undefined ? "" : " " + number(step.ms, 1) + " ms" : ": " + said(step.detail))).join(" · "), server.troubles.flatMap((trouble) => [trouble.cause, ...trouble.advice]));
  }
  for (const { name, state, detail, advice } of worst(report.settings)) add(name, state, detail, advice);
  return list;
}
const CHECK_ORDER = ["fail", "warn", "unknown", "ok", "skipped"];
function askCheck() {
  openDialog({ title: t("check"), body: [make("p", "", t("checkAsk"))], confirm: t("checkNow"), run: async () => {
    const report = await checkNow();
    $("dialogBody").replaceChildren();
    return [make("p", report.ok ? "good" : "bad", t(report.ok ? "checkFine" : "checkFails")), checkReport(report)];
  } });
}
/// What a person who helps needs to see, as one file. The API masks secrets; the token of this page is nowhere in it.
async function diagnostics() {
  const part = async (path) => { try { return await ask(path); } catch (error) { return "error: " + error.message; } };
  const checked = checkNow().catch((error) => "error: " + error.message);
  const [config, told, metrics, sessions, calls, known, log] = await Promise.all(["/api/config", "/api/errors", "/metrics", "/api/sessions?limit=1000", "/api/calls?limit=1000", "/api/servers", "/api/log"].map(part));
  const all = { made: new Date().toISOString(), version: $("version").textContent, browser: navigator.userAgent, findings: findings(), ready, config, check: await checked, servers: known, errors: told, sessions, calls, events, log, metrics };
  return JSON.stringify(all, null, 1);
}
async function downloadBundle() {
  put($("bundled"), t("bundling"));
  try {
    const link = make("a"), text = await diagnostics();
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "diagnostics-" + new Date().toISOString().slice(0, 19).replaceAll(":", "") + ".json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    put($("bundled"), t("bundleDone", { n: link.download, m: bytes(text.length) }));
  } catch (error) { put($("bundled"), error.message); }
}
