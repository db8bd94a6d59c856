// Everything a device says goes into the page as text, and the policy that comes with the page lets nothing else run.

const POLL = 2000, PAGES_PER_POLL = 3, PAGE = 1000, KEPT = 90, TIMEOUT = 10000;
const SVG = "http://www.w3.org/2000/svg";
/// What may be wrong with a call, the worst first; and those of it that keep a call from working.
const SICK = ["no_audio", "server_failed", "redialing", "device_lost", "limited", "lossy_uplink", "server_gaps", "server_slow"];
const GRAVE = ["no_audio", "server_failed", "redialing", "device_lost", "limited", "lossy_uplink"];
const VERDICTS = ["good", ...SICK.filter((name) => name !== "redialing")];
/// What the gateway's verdicts go by.
const LOSS_LIMIT = 3, LOSS_MIN_PACKETS = 50, GAP_LIMIT_MS = 500, SETUP_LIMIT_MS = 3000;

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
let state = "connecting", reason = "", tab = "now";

function t(key, values) {
  const text = WORDS[key] ? WORDS[key][language === "zh" ? 1 : 0] : key;
  return values ? text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "") : text;
}
/// What something is, and what is to be said about it.
const about = (what, more) => what + (language === "zh" ? "：" : ": ") + more;
/// A text of a family whose names come from the gateway; the name itself if this page does not know it.
const named = (family, name) => WORDS[family + name] ? t(family + name) : String(name);
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
/// A time: of today without the date.
function clock(when) {
  const date = new Date(when), isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString(language) : date.toLocaleString(language, { month: "numeric", day: "numeric", hour: "2-digit", minute: "2-digit" });
}
const host = (url) => url ? url.replace(/^wss?:\/\//, "") : "";
function median(values) {
  const sorted = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
}
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}
function put(element, text) { if (element.textContent !== text) element.textContent = text; }
/// The options of a select: pairs of value and text. The choice stays.
function options(select, pairs) {
  const key = JSON.stringify(pairs);
  if (select.pairs === key) return;
  select.pairs = key;
  const chosen = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => { const option = make("option", "", text); option.value = value; return option; }));
  select.value = pairs.some(([value]) => value === chosen) ? chosen : pairs[0]?.[0] ?? "";
}
/// Names and values as a list.
function describe(list, facts) {
  while (list.children.length > facts.length * 2) list.lastChild.remove();
  while (list.children.length < facts.length * 2) list.append(make("dt"), make("dd"));
  facts.forEach(([name, value], i) => { put(list.children[i * 2], t("f_" + name)); put(list.children[i * 2 + 1], value); });
}
