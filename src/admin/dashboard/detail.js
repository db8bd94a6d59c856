// ----- one device, or one call that has ended

let picked = null, pickedCall = null, opener = null, course = [];

/// Opens a device; null closes.
function pick(id, from = null) {
  if (id !== null) opener = from;
  picked = id;
  pickedCall = null;
  course = [];
  put($("said"), "");
  $("detail").hidden = id === null;
  for (const part of ["facts", "plots", "failures", "acts"]) $(part).replaceChildren();
  if (id === null) {
    opener?.focus();
    opener = null;
  } else {
    showDetail();
    $("who").focus();
    look().then(() => { if (id === picked) showDetail(); }, () => {});
  }
  deviceTable.draw();
}
/// The device whose facts are open, more often than the list comes round.
async function look() {
  if (picked === null) return;
  const id = picked;
  let session = null;
  try {
    session = await ask(devicePath("sessions", id));
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
  }
  if (id !== picked) return;
  if (!session || session.clientId !== id) { devices.delete(id); return; }
  take(session);
  remember(session.call);
}
function remember(call) {
  const last = course[course.length - 1], at = performance.now();
  if (!call) { course = []; return; }
  if (last && last.session !== call.sessionId && last.session !== null) course = [];
  const point = { at, session: call.sessionId, up: call.packetsUp, down: call.packetsDown, lost: call.lost, jitter: call.jitterMs };
  if (last && course.length) {
    const seconds = (at - last.at) / 1000, rate = (key) => Math.max(0, point[key] - last[key]) / seconds;
    if (seconds < 0.2) return;
    const sent = rate("up") + rate("lost");
    Object.assign(point, { upRate: rate("up"), downRate: rate("down"), lossNow: sent > 0 ? rate("lost") / sent * 100 : 0 });
  }
  course.push(point);
  if (course.length > KEPT) course.shift();
}
function showDetail() {
  if (picked === null) return;
  const device = devices.get(picked);
  put($("who"), device ? device.session.mac : picked);
  showActions(device);
  if (!device) {
    $("facts").replaceChildren();
    $("plots").replaceChildren();
    put($("summary"), t("gone"));
    $("summary").className = "warn";
    return;
  }
  const session = device.session, call = session.call, ailing = device.ailment;
  put($("summary"), ailing ? about(t("v_" + ailing), t("r_" + ailing, {})) : t("s_" + device.state));
  $("summary").className = ailing ? GRAVE.includes(ailing) ? "bad" : "warn" : "dim";
  const facts = [["id", session.clientId], ["ip", session.ip], ["online", duration(session.onlineSeconds)], ["route", session.route]];
  if (session.gateway) facts.push(["gateway", session.gateway]);
  if (call) {
    facts.push(["time", duration(call.seconds)], ["server", call.server || "–"], ["session", call.sessionId || "–"], ["audio", call.audioFrom || "–"], ...callFacts(call));
  }
  describe($("facts"), facts);
  showCourse(call);
}
/// What a call in progress and one that has ended have in common.
function callFacts(call) {
  const ms = (value) => value === null ? "–" : number(value) + " ms";
  return [["up", number(call.packetsUp) + " · " + bytes(call.bytesUp)], ["down", number(call.packetsDown) + " · " + bytes(call.bytesDown)],
    ["loss", number(call.lost) + " · " + percent(call.lossPercent / 100)], ["worst", percent(call.worstLossPercent / 100)],
    ["jitter", number(call.medianJitterMs, 1) + " / " + number(call.worstJitterMs, 1) + " ms"],
    ["gaps", number(call.gaps) + " · " + ms(call.gapMs)], ["setup", ms(call.setup.totalMs)], ["answer", ms(call.slowestAnswerMs)],
    ["unheard", ms(call.unheardMs)], ["order", number(call.reordered)], ["twice", number(call.duplicates)], ["dropped", number(call.dropped)], ["redials", number(call.redials)]];
}
/// The last minutes of a call in progress, since it was opened here.
function showCourse(call) {
  const timed = course.filter((point) => point.upRate !== undefined), last = timed[timed.length - 1];
  if (!call || !last) return $("plots").replaceChildren();
  const seconds = (timed.length - 1) * POLL / 1000, ends = ["−" + duration(Math.max(seconds, 30)), t("nowEnd")], slots = Math.max(timed.length, 16);
  $("plots").replaceChildren(
    lines({ title: t("p_packets"), now: number(last.upRate, 1) + " / " + number(last.downRate, 1), series: [timed.map((p) => p.upRate), timed.map((p) => p.downRate)], slots, atLeast: 20, ends }),
    lines({ title: t("p_loss"), now: percent(last.lossNow / 100), unit: " %", series: [timed.map((p) => p.lossNow)], slots, atLeast: 5, limit: LOSS_LIMIT, ends }),
    lines({ title: t("p_jitter"), now: number(last.jitter, 1) + " ms", series: [timed.map((p) => p.jitter)], slots, atLeast: 20, ends }));
}

/// A call that has ended.
async function openCall(id, from) {
  pick(null);
  pickedCall = id;
  opener = from;
  $("detail").hidden = false;
  put($("who"), "…");
  put($("summary"), "");
  $("who").focus();
  try {
    const call = await ask("/api/calls/" + id);
    if (pickedCall === id) showCall(call);
  } catch (error) {
    if (pickedCall === id) put($("said"), error.message);
  }
}
let shownCall = null;
function showCall(call) {
  shownCall = call;
  put($("who"), call.mac + " · " + clock(call.endedAt));
  put($("summary"), call.verdict === "good" ? t("v_good") : about(t("v_" + call.verdict), t("r_" + call.verdict, {})));
  $("summary").className = verdictClass(call.verdict);
  const stages = Object.entries(call.setup).filter(([name, value]) => name !== "totalMs" && value).map(([name, value]) => named("g_", name.replace("Ms", "")) + " " + number(value) + " ms");
  describe($("facts"), [["id", call.clientId], ["ip", call.ip], ["began", new Date(call.startedAt).toLocaleString(language)], ["time", duration(call.seconds)],
    ["end", named("b_", call.reason) + " · " + t("by", { n: named("y_", call.endedBy) })], ["route", call.route], ["server", call.server || "–"],
    ...call.deviceCall ? [["peer", call.peer || "–"]] : [], ["session", call.sessionId], ["stages", stages.join(", ") || "–"], ...callFacts(call)]);
  const { sliceSeconds, slices } = call.series, slots = slices.length, ends = ["0:00", duration(slots * sliceSeconds)];
  const draw = (title, series, rest) => lines({ title, series, slots, ends, ...rest });
  $("plots").replaceChildren(...slots ? [
    draw(t("p_packets"), [slices.map((s) => s.packetsUp / sliceSeconds), slices.map((s) => s.packetsDown / sliceSeconds)], { atLeast: 20 }),
    draw(t("p_loss"), [slices.map((s) => s.lost / Math.max(1, s.lost + s.packetsUp) * 100)], { atLeast: 5, limit: LOSS_LIMIT, unit: " %" }),
    draw(t("p_jitter"), [slices.map((s) => s.jitterMs)], { atLeast: 20 }),
    draw(t("p_gaps"), [slices.map((s) => s.gapMs)], { atLeast: 600, limit: GAP_LIMIT_MS }),
  ] : []);
  $("failures").replaceChildren(...call.failures.map((failure) => {
    const item = make("li");
    item.append(make("strong", "bad", t("failedAfter", { n: number(failure.afterMs / 1000, 1), stage: named("g_", failure.stage) })), make("p", "", failure.server), make("p", "dim", said(failure.cause)));
    return item;
  }));
  const device = devices.get(call.clientId), again = make("button", "", t(device ? "showDevice" : "itsCalls"));
  again.addEventListener("click", () => device ? pick(call.clientId) : (pick(null), searchCalls({ device: call.mac })));
  $("acts").replaceChildren(again);
}
const verdictClass = (verdict) => verdict === "good" ? "good" : GRAVE.includes(verdict) ? "bad" : "warn";
/// A device's name, which opens its facts if it is connected.
function deviceLink(id) {
  const element = make(devices.has(id) ? "button" : "span", devices.has(id) ? "link" : "dim", id);
  if (devices.has(id)) element.addEventListener("click", () => pick(id, element));
  return element;
}
