// ----- calls that have ended

const CALL_COLUMNS = ["when", "device", "verdict", "time", "server", "lossOf", "setup", "reason"], CALLS_PAGE = 500;
let ended = [], endedNext = null, endedQuery = "", loadingCalls = false, today = null;
const callTable = new VirtualTable({
  scroll: $("callScroll"), space: $("ended"), columns: CALL_COLUMNS, name: "call", fill: fillCall,
  open: (call, from) => openCall(call.id, from), nearEnd: () => { if (endedNext !== null) loadCalls(); },
});

function fillCall(row, call) {
  const [when, device, verdict, time, server, loss, setup, reason] = row.children;
  put(when.firstChild, clock(call.endedAt));
  put(device, call.mac);
  row.title = call.clientId;
  put(verdict, t("v_" + call.verdict));
  verdict.className = "c-verdict " + verdictClass(call.verdict);
  row.classList.toggle("sick", verdictClass(call.verdict) === "bad");
  row.classList.toggle("worry", verdictClass(call.verdict) === "warn");
  put(time, duration(call.seconds));
  put(server, host(call.server));
  server.className = "c-server dim";
  put(loss, call.packetsUp ? percent(call.lossPercent / 100) + " / " + percent(call.worstLossPercent / 100) : "–");
  put(setup, call.setup.totalMs === null ? "–" : number(call.setup.totalMs) + " ms");
  setup.className = "c-setup " + (call.setup.totalMs >= SETUP_LIMIT_MS ? "warn" : "");
  put(reason, named("b_", call.reason));
  reason.className = "c-reason dim";
}
/// What the form asks for, as the query of the API. Its times are those of this browser, so their zone is said.
function callQuery() {
  const query = new URLSearchParams(), utc = (value) => value && new Date(value).toISOString().slice(0, 19) + "Z";
  const fields = { device: $("callDevice").value.trim(), server: $("callServer").value.trim(), verdict: $("verdict").value, since: utc($("since").value), until: utc($("until").value) };
  for (const [key, value] of Object.entries(fields)) if (value) query.set(key, value);
  return query.toString();
}
function searchCalls({ device = "" } = {}) {
  if (device) $("callDevice").value = device;
  openTab("calls");
  freshCalls(true);
}
/// The first page, if the form or the calls have changed; `force` also when nothing has.
async function freshCalls(force = false) {
  const query = callQuery();
  if (!force && query === endedQuery && ended.length > CALLS_PAGE) return;
  if (force) $("callScroll").scrollTop = 0;
  endedQuery = query;
  try {
    const page = await ask("/api/calls?limit=" + CALLS_PAGE + (query && "&" + query));
    if (query !== endedQuery) return;
    if (!force && page.calls[0]?.id === ended[0]?.id) return;
    [ended, endedNext] = [page.calls, page.next];
    put($("callsWrong"), "");
  } catch (error) {
    if (error instanceof Refused && error.status < 500 && error.status !== 401) put($("callsWrong"), error.message);
    else throw error;
  }
  showCalls();
}
async function loadCalls() {
  if (loadingCalls) return;
  loadingCalls = true;
  const query = endedQuery, cursor = endedNext;
  try {
    const page = await ask("/api/calls?limit=" + CALLS_PAGE + "&cursor=" + cursor + (query && "&" + query));
    if (query === endedQuery && cursor === endedNext) { ended = [...ended, ...page.calls]; endedNext = page.next; }
  } catch { /* The next scroll asks again. */ }
  loadingCalls = false;
  showCalls();
}
function showCalls() {
  $("noCalls").hidden = ended.length > 0;
  put($("callCount"), endedNext === null ? number(ended.length) : t("atLeast", { n: number(ended.length) }));
  callTable.set(ended);
}

// ----- the hours of today

const TODAY_PAGES = 20;
async function loadToday() {
  const midnight = new Date(); midnight.setHours(0, 0, 0, 0);
  const day = midnight.toISOString().slice(0, 19) + "Z";
  if (today?.day !== day) today = { day, hours: Array.from({ length: 24 }, () => ({ good: 0, worry: 0, sick: 0, setups: [] })), last: 0 };
  let cursor = null, newest = today.last;
  for (let i = 0; i < TODAY_PAGES; i++) {
    const page = await ask("/api/calls?limit=1000&since=" + day + (cursor ? "&cursor=" + cursor : ""));
    for (const call of page.calls.filter((call) => call.id > today.last)) {
      const hour = today.hours[new Date(call.endedAt).getHours()], kind = verdictClass(call.verdict);
      hour[kind === "bad" ? "sick" : kind === "warn" ? "worry" : "good"]++;
      if (call.setup.totalMs !== null) hour.setups.push(call.setup.totalMs);
      newest = Math.max(newest, call.id);
    }
    cursor = page.next;
    if (cursor === null || cursor <= today.last) break;
  }
  today.last = newest;
}
function showHours() {
  const hours = today.hours, ends = ["0:00", "24:00"], titles = hours.map((hour, i) => t("hourTitle", { hour: i, n: number(hour.good + hour.worry + hour.sick), bad: number(hour.sick + hour.worry), ms: number(median(hour.setups) ?? 0) }));
  const all = hours.reduce((sum, hour) => sum + hour.good + hour.worry + hour.sick, 0), wrong = hours.reduce((sum, hour) => sum + hour.worry + hour.sick, 0);
  $("hours").replaceChildren(
    bars({ title: t("hourCalls"), now: t("hourNow", { n: number(all), bad: number(wrong) }), columns: hours.map((hour) => [[hour.sick, "bad"], [hour.worry, "warn"], [hour.good, "good"]]), atLeast: 10, ends, titles }),
    bars({ title: t("hourSetup"), now: number(median(hours.flatMap((hour) => hour.setups)) ?? 0) + " ms", columns: hours.map((hour) => [[median(hour.setups) ?? 0, "plain"]]), atLeast: 100, limit: SETUP_LIMIT_MS, ends, titles }));
}
async function pollCalls() {
  if (recent === null && state === "live") { put($("callsWrong"), t("x_history_off")); return; }
  try { await loadToday(); } catch (error) { if (error.code === "history_off") return; throw error; }
  showHours();
  await freshCalls();
}
