// ----- calls to the gateway

class Refused extends Error { constructor(status, sentence) { super(sentence); this.status = status; } }
async function ask(path, method = "GET") {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  // Relative, so that the page also works under another path, behind a proxy that takes the path away.
  const answer = await fetch("." + path, { method, headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(TIMEOUT) });
  const text = await answer.text();
  if (answer.ok) return path === "/metrics" ? text : JSON.parse(text);
  let sentence = answer.status + "";
  try { sentence = JSON.parse(text).error || sentence; } catch { /* no JSON */ }
  throw new Refused(answer.status, sentence);
}
async function poll() {
  if (polling) return;
  clearTimeout(timer);
  polling = true;
  const began = era;
  try {
    const [metrics, told, past] = await Promise.all([ask("/metrics"), ask("/api/errors"), askEnded(), look(), sweepSome()]);
    // Locked meanwhile: nothing of it is to be seen.
    if (began !== era) { polling = false; return; }
    count(metrics);
    errors = told.errors;
    ended = past;
    state = "live";
    show();
  } catch (error) {
    if (began !== era) { polling = false; return; }
    if (error instanceof Refused && [401, 403, 503].includes(error.status)) {
      polling = false;
      return locked(error.status === 401 && !token ? "" : error.message);
    }
    state = "lost";
    reason = error instanceof Refused ? error.message : "";
    showStatus();
  }
  polling = false;
  if (!document.hidden) timer = setTimeout(poll, POLL);
}
/// The last calls that have ended; null if they are not kept.
async function askEnded() {
  const verdict = $("verdict").value;
  try {
    return (await ask("/api/calls?limit=" + ENDED + (verdict ? "&verdict=" + verdict : ""))).calls;
  } catch (error) {
    if (error instanceof Refused && error.status === 409) return null;
    throw error;
  }
}
/// Some pages of the list; a device that a whole round did not show is gone.
async function sweepSome() {
  for (let i = 0; i < PAGES_PER_POLL; i++) {
    const page = await ask("/api/sessions?limit=" + PAGE + "&after=" + sweep.next);
    for (const session of page.sessions) take(session);
    if (page.next !== null) { sweep.next = page.next; continue; }
    for (const [id, device] of devices) if (device.generation !== sweep.generation) devices.delete(id);
    sweep = { next: 0, generation: sweep.generation + 1 };
    return;
  }
}
function take(session) {
  const call = session.call, known = devices.get(session.clientId) || {};
  const loss = call ? call.last10s.lost / Math.max(1, call.last10s.packetsUp + call.last10s.lost) : -1;
  devices.set(session.clientId, Object.assign(known, {
    session, generation: sweep.generation, loss,
    state: !session.connected ? "away" : call ? call.state : "idle",
    text: (session.clientId + " " + session.mac + " " + session.ip + " " + (call && call.server || "")).toLowerCase(),
  }));
}
/// The device whose facts are open, more often than the list comes round.
async function look() {
  if (picked === null) return;
  const id = picked;
  let session = null;
  try {
    session = await ask("/api/sessions/" + encodeURIComponent(id));
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
  }
  if (id !== picked) return;
  if (!session || session.clientId !== id) { devices.delete(id); return; }
  take(session);
  remember(session.call);
}
function remember(call) {
  const last = history[history.length - 1], at = performance.now();
  if (!call) { history = []; return; }
  if (last && last.session !== call.sessionId && last.session !== null) history = [];
  const point = { at, session: call.sessionId, up: call.packetsUp, down: call.packetsDown, lost: call.lost, jitter: call.jitterMs };
  if (last && history.length) {
    const seconds = (at - last.at) / 1000, rate = (key) => Math.max(0, point[key] - last[key]) / seconds;
    if (seconds < 0.2) return;
    Object.assign(point, { upRate: rate("up"), downRate: rate("down") });
    const sent = rate("up") + rate("lost");
    point.lossNow = sent > 0 ? rate("lost") / sent * 100 : 0;
  }
  history.push(point);
  if (history.length > KEPT) history.shift();
}
