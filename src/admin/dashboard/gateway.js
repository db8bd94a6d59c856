// ----- calls to the gateway

/// What the API answers to what it refuses, in the language that is chosen when it is read.
class Refused extends Error {
  constructor(status, code, sentence) { super(); Object.assign(this, { status, code, sentence }); }
  get message() { return this.code && WORDS["x_" + this.code] ? t("x_" + this.code) : saidError(this.sentence); }
}
/// Where the page is: under another path behind a proxy that takes that away, with or without the slash at its end.
const BASE = location.pathname.replace(/\/$/, "");
function send(path, { method = "GET", body, headers = {}, signal = AbortSignal.timeout(TIMEOUT) } = {}) {
  if (token) headers = { ...headers, Authorization: "Bearer " + token };
  return fetch(BASE + path, { method, body, headers, signal, cache: "no-store", credentials: "omit" });
}
async function refusal(answer) {
  let told = {};
  try { told = JSON.parse(await answer.text()); } catch { /* no JSON */ }
  return new Refused(answer.status, told.code, told.error || String(answer.status));
}
async function ask(path, method = "GET", content) {
  const isFile = content instanceof Blob;
  const body = content === undefined || isFile ? content : JSON.stringify(content);
  const headers = content === undefined ? {} : { "Content-Type": isFile ? "audio/ogg" : "application/json" };
  const answer = await send(path, { method, body, headers });
  if (!answer.ok) throw await refusal(answer);
  return path === "/metrics" ? answer.text() : answer.json();
}
const devicePath = (what, id) => "/api/" + what + "/" + encodeURIComponent(id);

let devices = new Map(), sweep = { next: 0, generation: 1 }, errors = [], servers = [], recent = null, ready = null;
let timer = 0, polling = false, era = 0;

async function poll() {
  if (polling) return;
  clearTimeout(timer);
  polling = true;
  const began = era;
  try {
    const [metrics, told, known, past, isReady] = await Promise.all(
      [ask("/metrics"), ask("/api/errors"), ask("/api/servers"), askRecent(), askReady(), look(), sweepSome(), pollTab()]);
    // Locked meanwhile: nothing of it is to be seen.
    if (began !== era) return restart();
    count(metrics);
    errors = told.errors;
    servers = known.servers;
    recent = past;
    ready = isReady;
    state = "live";
    show();
  } catch (error) {
    if (began !== era) return restart();
    if (error instanceof Refused && [401, 403, 503].includes(error.status)) {
      polling = false;
      return locked(error.status === 401 && !token ? null : error);
    }
    state = "lost";
    reason = error instanceof Refused ? error.message : "";
    showStatus();
    showHealth();
  }
  polling = false;
  if (!document.hidden) timer = setTimeout(poll, POLL);
}
/// Polls with the token that was entered while the answers for the one before were on their way.
function restart() {
  polling = false;
  if (token) poll();
}
/// The last calls that have ended; null if they are not kept.
async function askRecent() {
  try {
    return (await ask("/api/calls?limit=100")).calls;
  } catch (error) {
    if (error instanceof Refused && error.code === "history_off") return null;
    throw error;
  }
}
/// Whether the gateway takes devices: it says so with any status.
async function askReady() { return (await send("/readyz")).json(); }
/// Some pages of the list; a device that a whole round did not show is gone.
async function sweepSome() {
  for (let i = 0; i < PAGES_PER_POLL; i++) {
    const page = await ask("/api/sessions?limit=" + PAGE + "&after=" + encodeURIComponent(sweep.next));
    for (const session of page.sessions) take(session);
    if (page.next !== null) { sweep.next = page.next; continue; }
    for (const [id, device] of devices) if (device.generation !== sweep.generation) devices.delete(id);
    sweep = { next: 0, generation: sweep.generation + 1 };
    return;
  }
}
/// What is wrong with a call now; null if nothing is.
function ailment(session) {
  const call = session.call;
  if (!call) return null;
  if (call.state === "redialing") return "redialing";
  if (!session.connected) return "device_lost";
  if (call.verdict !== "good") return call.verdict;
  const { packetsUp, lost, gapMs } = call.last10s, expected = packetsUp + lost;
  if (expected >= LOSS_MIN_PACKETS && lost / expected * 100 >= LOSS_LIMIT) return "lossy_uplink";
  return gapMs >= GAP_LIMIT_MS ? "server_gaps" : null;
}
function take(session) {
  const call = session.call, known = devices.get(session.clientId) || {};
  const loss = call ? call.last10s.lost / Math.max(1, call.last10s.packetsUp + call.last10s.lost) : -1;
  devices.set(session.clientId, Object.assign(known, {
    session, generation: sweep.generation, loss, ailment: ailment(session),
    state: !session.connected ? "away" : call ? call.state : "idle",
    route: session.route, gateway: session.gateway || "", server: call && call.server || "",
    text: (session.clientId + " " + session.mac + " " + session.ip + " " + (call && call.server || "")).toLowerCase(),
  }));
}
