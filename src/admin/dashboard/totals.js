// ----- totals, out of the metrics

const TILES = ["devices", "calls", "up", "down", "loss", "redials", "memory", "turn", "up_time"];
/// Tiles with a small line of the last minutes, since the page was opened.
const TRENDS = { devices: "devices", calls: "calls", up: "upRate", down: "downRate", loss: "loss", memory: "memory", turn: "turn" };
let before = null, totals = {}, trends = {};

function samples(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, key, value] of (parts[2] || "").matchAll(/(\w+)="([^"]*)"/g)) labels[key] = value;
    (found[parts[1]] ||= []).push({ labels, value: Number(parts[3].replace("Inf", "Infinity")) });
  }
  return found;
}
function count(text) {
  const all = samples(text), at = performance.now();
  const one = (name, label, is) => (all[name] || []).find((s) => !label || s.labels[label] === is)?.value ?? 0;
  const calls = all.gateway_calls || [];
  const now = {
    at, devices: one("gateway_devices_online"), away: one("gateway_devices_away"),
    calls: calls.reduce((sum, s) => sum + s.value, 0), live: one("gateway_calls", "state", "live"),
    up: one("gateway_audio_packets_total", "direction", "up"), down: one("gateway_audio_packets_total", "direction", "down"),
    redials: one("gateway_redials_total"), memory: one("process_resident_memory_bytes"), fds: one("process_open_fds"),
    turns: one("gateway_turn_seconds_count"), busy: one("gateway_turn_seconds_sum"),
    buckets: (all.gateway_turn_seconds_bucket || []).map((s) => ({ le: Number(s.labels.le.replace("+Inf", "Infinity")), n: s.value })),
    started: one("process_start_time_seconds"),
    certificate: Math.min(...(all.gateway_tls_certificate_expires_timestamp_seconds || []).map((s) => s.value)),
  };
  put($("version"), all.gateway_build_info?.[0]?.labels.version || "");
  let up = 0, lost = 0;
  for (const { session: { call } } of devices.values()) if (call) { up += call.last10s.packetsUp; lost += call.last10s.lost; }
  const last = before && before.turns <= now.turns ? before : null;
  const seconds = last ? (at - last.at) / 1000 : 0, rate = (key) => last ? Math.max(0, now[key] - last[key]) / seconds : null;
  const turns = last ? now.turns - last.turns : now.turns;
  const below = now.buckets.find((b, i) => b.n - (last?.buckets[i]?.n ?? 0) >= turns * 0.99);
  before = now;
  totals = {
    ...now, upRate: rate("up"), downRate: rate("down"), loss: up + lost ? lost / (up + lost) : null,
    turn: turns ? (now.busy - (last ? last.busy : 0)) / turns : 0, below: below ? below.le : 0,
  };
  for (const [name, key] of Object.entries(TRENDS)) (trends[name] ||= []).push(totals[key]);
  for (const values of Object.values(trends)) if (values.length > KEPT) values.shift();
}
function trendOf(name) {
  const values = (trends[name] ?? []).filter((value) => value !== null), top = Math.max(...values, 1e-9);
  return values.map((value, i) => (i * 100 / (Math.max(values.length, 16) - 1)).toFixed(1) + "," + (22 - 20 * value / top).toFixed(1)).join(" ");
}
function showTiles() {
  if (!$("tiles").firstChild) {
    for (const name of TILES) {
      const tile = make("div", "card tile");
      tile.id = "tile-" + name;
      tile.append(make("div", "name"), make("div", "value"), make("div", "note"));
      if (TRENDS[name]) {
        const drawing = svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" });
        drawing.append(svg("polyline"));
        tile.append(drawing);
      }
      $("tiles").append(tile);
    }
  }
  const rate = (value) => value === null ? "–" : number(value, value < 10 ? 1 : 0);
  const values = {
    devices: [number(totals.devices), totals.away ? t("n_away", { n: number(totals.away) }) : ""],
    calls: [number(totals.calls), totals.calls > totals.live ? t("n_states", { n: number(totals.calls - totals.live) }) : ""],
    up: [rate(totals.upRate), t("n_total", { n: number(totals.up) })],
    down: [rate(totals.downRate), t("n_total", { n: number(totals.down) })],
    loss: [totals.loss === null ? "–" : percent(totals.loss), t("n_lossOver")],
    redials: [number(totals.redials), t("n_redials")],
    memory: [totals.memory ? bytes(totals.memory) : "–", totals.fds ? t("n_fds", { n: number(totals.fds) }) : ""],
    turn: [span(totals.turn), t("n_turn", { n: span(totals.below) })],
    up_time: [duration(Math.max(0, Date.now() / 1000 - totals.started)), ""],
  };
  for (const name of TILES) {
    const [title, value, note, drawing] = $("tile-" + name).children;
    drawing?.firstChild.setAttribute("points", trendOf(name));
    put(title, t("t_" + name));
    put(value, values[name][0]);
    put(note, values[name][1]);
  }
}
