// ----- is it healthy? What is wrong, with its remedy, the worst first

/// Errors of the last minutes count, and calls that ended in them.
const LATELY_MS = 5 * 60e3, CERTIFICATE_DAYS = 14;

/// What is wrong: `level` is bad if devices cannot call or be heard, else warn. `code` selects the texts h_ and r_.
function findings() {
  if (state === "lost") return [{ level: "bad", code: "lost", values: { reason } }];
  const found = [...gatewayFindings(), ...serverFindings(), ...callFindings(), ...errorFindings(), ...certificateFindings()];
  return found.sort((a, b) => (a.level === "bad" ? 0 : 1) - (b.level === "bad" ? 0 : 1));
}
function gatewayFindings() {
  if (!ready || !["draining", "stopping", "exhausted"].includes(ready.status)) return [];
  return [{ level: "bad", code: ready.status, values: { calls: number(ready.calls ?? 0) } }];
}
function serverFindings() {
  if (!servers.length) return [{ level: "bad", code: "no_servers", values: {} }];
  const found = [], routes = grouped(servers, (server) => server.route);
  for (const [route, list] of routes) {
    const failing = list.filter((s) => s.state === "failing"), unwell = list.filter((s) => s.state === "unwell");
    const values = { route, n: failing.length + unwell.length, m: list.length };
    const [first] = failing.length ? failing : unwell;
    if (!first) continue;
    Object.assign(values, { url: first.url, stage: named("g_", first.stage), reason: said(first.reason ?? ""), since: first.failingSeconds === null ? "" : duration(first.failingSeconds) });
    const advice = said(first.advice) || t("serverHelp");
    if (failing.length === list.length) found.push({ level: "bad", code: routes.size > 1 ? "route_down" : "servers_down", values, advice });
    else if (failing.length) found.push({ level: "warn", code: "server_down", values, advice });
    else found.push({ level: "warn", code: "server_unwell", values });
  }
  return found;
}
function grouped(list, key) {
  const groups = new Map();
  for (const item of list) groups.set(key(item), [...groups.get(key(item)) || [], item]);
  return groups;
}
/// Calls that go on and those that ended lately, by what is wrong with them.
function callFindings() {
  const counts = {}, limits = new Set();
  let all = 0;
  const add = (what) => { all++; if (what && what !== "good") counts[what] = (counts[what] || 0) + 1; };
  for (const device of devices.values()) if (device.session.call) add(device.ailment);
  for (const call of recent || []) if (Date.now() - new Date(call.endedAt) < LATELY_MS) {
    add(call.verdict);
    if (call.verdict === "limited") limits.add(named("b_", call.reason));
  }
  return SICK.filter((what) => counts[what]).map((what) => {
    const isMost = counts[what] * 2 >= all && ["no_audio", "server_failed", "limited"].includes(what);
    return { level: isMost ? "bad" : "warn", code: what, values: { n: number(counts[what]), m: number(all), limits: [...limits].join(", ") }, filter: what };
  });
}
function errorFindings() {
  const found = [];
  for (const [code, group] of grouped(errors.filter((error) => Date.now() - error.at < LATELY_MS), (error) => error.code)) {
    const values = { n: number(group.reduce((sum, error) => sum + error.times, 0)), sentence: said(group[0].sentence), advice: said(group[0].advice), device: group[0].device };
    if (["too_many_calls", "too_many_devices", "cannot_accept"].includes(code)) found.push({ level: "bad", code: "error", error: code, values });
    // While no device is connected, whoever was turned away may be one. Else it may be anybody who tries ports.
    const isAll = ["login_refused", "tls_on_plain_port", "tls_failed", "ota_refused"].includes(code) && totals.devices === 0;
    if (isAll || ["login_refused", "duplicate_client_id", "hello_version", "reload_refused", "server_ended_call", "ota_upstream_failed"].includes(code)) {
      found.push({ level: isAll ? "bad" : "warn", code: "error", error: code, values });
    }
  }
  return found;
}
function certificateFindings() {
  const days = (totals.certificate - Date.now() / 1000) / 86400;
  if (days <= 0) return [{ level: "bad", code: "certificate_expired", values: {} }];
  return days < CERTIFICATE_DAYS ? [{ level: "warn", code: "certificate_expires", values: { n: number(Math.ceil(days)) } }] : [];
}

let shownHealth = "";
function showHealth() {
  if (totals.devices === undefined && state !== "lost") return;
  const found = findings();
  const isTried = servers.some((server) => server.state === "well");
  const level = found[0]?.level ?? (totals.devices && isTried ? "good" : "idle");
  const headline = found.length ? level === "bad" ? "notHealthy" : "healthyBut" : level === "good" ? "healthy" : totals.devices ? "untried" : "noDevices";
  $("health").className = "card " + level;
  put($("verdictNow"), t(state === "lost" ? "h_lost" : headline, { n: number(totals.devices ?? 0), m: number(totals.calls ?? 0) }));
  const news = language + JSON.stringify([found, level]);
  if (news === shownHealth) return;
  shownHealth = news;
  $("findings").replaceChildren(...found.slice(0, 4).map((finding) => {
    const item = make("li"), values = finding.values;
    const what = finding.error ? about(t("e_" + finding.error) + (language === "zh" ? "（" + t("times", { n: values.n }) + "）" : " (" + t("times", { n: values.n }) + ")"), values.sentence) + (values.device ? " · " + values.device : "") : t("h_" + finding.code, values);
    if (state !== "lost") item.append(make("strong", finding.level, what));
    if (finding.filter) {
      const button = make("button", "link", t("showThem"));
      button.addEventListener("click", () => { openTab("now"); $("filter").value = finding.filter; list(); $("cols").scrollIntoView({ block: "nearest" }); });
      item.append(" ", button);
    }
    item.append(make("p", "", finding.error ? values.advice : t("r_" + finding.code, values)));
    if (finding.advice) item.append(make("p", "", "→ " + finding.advice));
    return item;
  }));
}
