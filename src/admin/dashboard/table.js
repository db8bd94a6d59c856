// ----- the table: only the rows in sight exist

const RANK = { bridged: 7, ringing: 6, live: 5, redialing: 4, greeting: 3, dialing: 2, away: 1, idle: 0 };
const KEYS = {
  device: (d) => d.session.mac, state: (d) => RANK[d.state], time: (d) => d.session.call ? d.session.call.seconds : -1,
  server: (d) => d.session.call?.server || "", packets: (d) => d.session.call ? d.session.call.packetsUp : -1,
  loss: (d) => d.loss, jitter: (d) => d.session.call ? d.session.call.jitterMs : -1,
  redials: (d) => d.session.call ? d.session.call.redials : -1, ip: (d) => d.session.ip,
};
function list() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), filter = $("filter").value;
  const wanted = (d) => (filter === "all" || (filter === "calls") === Boolean(d.session.call)) && words.every((word) => d.text.includes(word));
  const key = KEYS[sorting.by], sign = sorting.down ? -1 : 1;
  const less = (a, b) => a < b ? -1 : a > b ? 1 : 0;
  listed = [...devices.values()].filter(wanted).map((d) => [key(d), d]);
  listed.sort(([a, x], [b, y]) => sign * less(a, b) || less(x.session.clientId, y.session.clientId));
  listed = listed.map(([, d]) => d);
  put($("count"), t("shown", { n: number(listed.length), m: number(devices.size) }));
  $("empty").hidden = listed.length > 0;
  $("table").setAttribute("aria-rowcount", listed.length);
  rows();
}
function rows() {
  const height = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--row"), 10);
  const scroll = $("scroll"), space = $("space");
  space.style.height = listed.length * height + "px";
  const first = Math.max(0, Math.floor(scroll.scrollTop / height) - 5);
  const wanted = listed.slice(first, first + Math.ceil(scroll.clientHeight / height) + 10);
  while (space.children.length > wanted.length) space.lastChild.remove();
  while (space.children.length < wanted.length) {
    const row = make("div", "row");
    row.setAttribute("role", "row");
    row.tabIndex = 0;
    for (const column of COLUMNS) row.append(make("span", "c-" + column));
    for (const cell of row.children) cell.setAttribute("role", "cell");
    space.append(row);
  }
  wanted.forEach((device, i) => fill(space.children[i], device, (first + i) * height));
}
function fill(row, { session, state, loss }, top) {
  const call = session.call;
  const [device, status, time, server, packets, lost, jitter, redials, ip] = row.children;
  row.style.top = top + "px";
  row.device = session.clientId;
  row.title = session.clientId;
  row.classList.toggle("picked", session.clientId === picked);
  put(device, session.mac);
  put(status, t("s_" + state));
  status.className = "c-state " + ({ live: "good", idle: "dim" }[state] || "warn");
  put(time, call ? duration(call.seconds) : "");
  put(server, call && call.server ? call.server.replace(/^wss?:\/\//, "") : "");
  server.className = "c-server dim";
  put(packets, call ? number(call.packetsUp) + " / " + number(call.packetsDown) : "");
  put(lost, call ? percent(loss) : "");
  lost.className = "c-loss " + (loss >= 0.05 ? "bad" : loss >= 0.01 ? "warn" : "");
  put(jitter, call ? number(call.jitterMs, 1) + " ms" : "");
  put(redials, call ? number(call.redials) : "");
  redials.className = "c-redials " + (call && call.redials ? "warn" : "");
  put(ip, session.ip);
  ip.className = "c-ip dim";
}
