const POLL = 2000, PAGES_PER_POLL = 3, PAGE = 1000, KEPT = 90, TIMEOUT = 10000;
const SVG = "http://www.w3.org/2000/svg";
const COLUMNS = ["device", "state", "time", "server", "packets", "loss", "jitter", "redials", "ip"];
const VERDICTS = ["good", "no_audio", "lossy_uplink", "server_gaps", "server_slow", "server_failed", "device_lost", "limited"], ENDED = 50;
const TILES = ["devices", "calls", "up", "down", "loss", "redials", "memory", "turn", "up_time"];

const $ = (id) => document.getElementById(id);
const store = {
  get(where, key) { try { return where.getItem(key); } catch { return null; } },
  set(where, key, value) { try { value === null ? where.removeItem(key) : where.setItem(key, value); } catch { /* not kept, then */ } },
};
let language = store.get(localStorage, "language") || (/^zh/i.test(navigator.language) ? "zh" : "en");
// A link may bring the token behind #, which is not sent to the server. It does not stay in the address.
function linkedToken() {
  const linked = new URLSearchParams(location.hash.slice(1)).get("token");
  if (linked) { store.set(sessionStorage, "token", linked); window.history.replaceState(null, "", location.pathname); }
  return linked;
}
let token = linkedToken() || store.get(sessionStorage, "token");
const devices = new Map();
let sweep = { next: 0, generation: 1 }, listed = [], picked = null, history = [], before = null, errors = [], ended = null, totals = {};
let sorting = { by: "state", down: true }, timer = 0, polling = false, era = 0, state = "connecting", reason = "";

function t(key, values) {
  const text = WORDS[key] ? WORDS[key][language === "zh" ? 1 : 0] : key;
  return values ? text.replace(/\{(\w)\}/g, (_, name) => values[name]) : text;
}
const number = (value, digits = 0) => value.toLocaleString(language, { maximumFractionDigits: digits, minimumFractionDigits: 0 });
const percent = (part) => number(part * 100, part > 0 && part < 0.1 ? 2 : 1) + " %";
function duration(seconds) {
  const s = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
  const clock = two(Math.floor(s / 60) % 60) + ":" + two(s % 60);
  if (s < 3600) return clock;
  const day = Math.floor(s / 86400), hours = Math.floor(s / 3600) % 24 + ":" + clock;
  return day ? day + (language === "zh" ? " 天 " : " d ") + hours : hours;
}
function span(seconds) {
  if (!isFinite(seconds)) return "> 1 s";
  return seconds < 0.001 ? number(seconds * 1e6) + " µs" : number(seconds * 1e3, 1) + " ms";
}
function bytes(n) { return n < 1048576 ? number(n / 1024) + " kB" : number(n / 1048576, n < 104857600 ? 1 : 0) + " MB"; }
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}
function put(element, text) { if (element.textContent !== text) element.textContent = text; }
