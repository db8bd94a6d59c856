// ----- tables: only the rows in sight exist

class VirtualTable {
  /// `fill` writes an item into a row, whose cells have the classes `c-` and a column's name; the first one has the button that `open`s it.
  constructor({ scroll, space, columns, name = "", fill, open, nearEnd = () => {} }) {
    Object.assign(this, { scroll, space, columns, name, fill, open, nearEnd, items: [] });
    scroll.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()));
    addEventListener("resize", () => requestAnimationFrame(() => this.draw()));
    space.addEventListener("click", (event) => { const row = event.target.closest(".row"); if (row) this.open(row.item, row.querySelector("button")); });
    space.addEventListener("keydown", (event) => this.move(event));
  }
  set(items) {
    this.items = items;
    this.space.parentElement.parentElement.setAttribute("aria-rowcount", items.length + 1);
    this.draw();
  }
  draw() {
    const height = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--row"), 10), { scroll, space, items } = this;
    space.style.height = items.length * height + "px";
    const first = Math.max(0, Math.floor(scroll.scrollTop / height) - 5);
    const seen = Math.min(items.length - first, Math.ceil(scroll.clientHeight / height) + 10);
    while (space.children.length > Math.max(0, seen)) space.lastChild.remove();
    while (space.children.length < seen) space.append(this.row());
    const rows = space.children;
    // Each row keeps its item while it stays in sight, and with it the focus.
    for (let i = first; i < first + seen; i++) {
      const row = rows[i % seen];
      row.item = items[i];
      row.index = i;
      row.setAttribute("aria-rowindex", i + 2);
      row.style.top = i * height + "px";
      this.fill(row, items[i]);
    }
    if (first + seen >= items.length - 5) this.nearEnd();
  }
  row() {
    const row = make("div", "row " + this.name);
    row.setAttribute("role", "row");
    for (const [i, column] of this.columns.entries()) {
      const cell = make("span", "c-" + column);
      cell.setAttribute("role", "cell");
      if (i === 0) { const button = make("button"); button.type = "button"; cell.append(button); }
      row.append(cell);
    }
    return row;
  }
  /// The arrow keys go from row to row.
  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key], row = event.target.closest(".row");
    if (!step || !row) return;
    event.preventDefault();
    const index = Math.min(this.items.length - 1, Math.max(0, row.index + step)), height = row.offsetHeight;
    const top = index * height, end = top + height;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    if (end > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = end - this.scroll.clientHeight;
    this.draw();
    [...this.space.children].find((other) => other.index === index)?.querySelector("button").focus();
  }
}

// ----- devices

const COLUMNS = ["device", "state", "time", "server", "packets", "loss", "jitter", "redials"];
const RANK = { bridged: 7, ringing: 6, live: 5, redialing: 4, greeting: 3, dialing: 2, away: 1, idle: 0 };
/// How urgent a device is: first those whose call is sick, in the order of SICK.
const urgency = (d) => d.ailment ? 100 - SICK.indexOf(d.ailment) : RANK[d.state] ?? 0;
const KEYS = {
  device: (d) => d.session.mac, state: urgency, time: (d) => d.session.call ? d.session.call.seconds : -1,
  server: (d) => d.server, packets: (d) => d.session.call ? d.session.call.packetsUp : -1,
  loss: (d) => d.loss, jitter: (d) => d.session.call ? d.session.call.jitterMs : -1,
  redials: (d) => d.session.call ? d.session.call.redials : -1,
};
let sorting = { by: "state", down: true }, listed = [];
const deviceTable = new VirtualTable({ scroll: $("scroll"), space: $("space"), columns: COLUMNS, fill: fillDevice, open: (device, from) => pick(device.session.clientId, from) });

function isWanted(device, filter) {
  if (filter === "all") return true;
  if (filter === "sick") return device.ailment !== null;
  if (filter === "calls") return Boolean(device.session.call);
  return filter === "idle" ? !device.session.call : device.ailment === filter;
}
function list() {
  if ($("view-now").hidden) return;
  showFilters();
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), filter = $("filter").value;
  const server = $("byServer").value, route = $("byRoute").value, gateway = $("byGateway").value;
  const fits = (d) => isWanted(d, filter) && (!server || d.server === server) && (!route || d.route === route) && (!gateway || d.gateway === gateway) && words.every((word) => d.text.includes(word));
  const key = KEYS[sorting.by], sign = sorting.down ? -1 : 1, less = (a, b) => a < b ? -1 : a > b ? 1 : 0;
  const found = [...devices.values()].filter(fits).map((d) => [key(d), d]);
  found.sort(([a, x], [b, y]) => sign * less(a, b) || less(x.session.clientId, y.session.clientId));
  listed = found.map(([, d]) => d);
  put($("count"), t("shown", { n: number(listed.length), m: number(devices.size) }));
  $("empty").hidden = listed.length > 0;
  $("firstDevice").hidden = devices.size > 0;
  deviceTable.set(listed);
}
/// Choices with the number of devices that each would show.
function showFilters() {
  const counts = { all: devices.size, sick: 0, calls: 0, idle: 0 }, atServers = new Map(servers.map((server) => [server.url, 0])), routes = new Set(), gateways = new Set();
  for (const device of devices.values()) {
    counts[device.session.call ? "calls" : "idle"]++;
    if (device.ailment) { counts.sick++; counts[device.ailment] = (counts[device.ailment] || 0) + 1; }
    if (device.server) atServers.set(device.server, (atServers.get(device.server) || 0) + 1);
    routes.add(device.route);
    if (device.gateway) gateways.add(device.gateway);
  }
  const kinds = ["all", "sick", "calls", "idle"].map((name) => [name, t("only_" + name)]), ailments = SICK.map((name) => [name, t("v_" + name)]);
  options($("filter"), [...kinds, ...ailments].map(([name, text]) => [name, text + " (" + number(counts[name] || 0) + ")"]));
  options($("byServer"), [["", t("everyServer")], ...[...atServers.keys()].sort().map((url) => [url, host(url)])]);
  options($("byRoute"), [["", t("everyRoute")], ...[...routes].sort().map((route) => [route, route])]);
  options($("byGateway"), [["", t("everyGateway")], ...[...gateways].sort().map((name) => [name, name])]);
  $("byServer").hidden = atServers.size < 2;
  $("byRoute").hidden = routes.size < 2;
  $("byGateway").hidden = gateways.size < 2;
}
function fillDevice(row, { session, state, loss, ailment }) {
  const call = session.call, [device, status, time, server, packets, lost, jitter, redials] = row.children;
  row.device = session.clientId;
  row.title = session.clientId;
  row.classList.toggle("picked", session.clientId === picked);
  row.classList.toggle("sick", GRAVE.includes(ailment));
  row.classList.toggle("worry", ailment !== null && !GRAVE.includes(ailment));
  put(device.firstChild, session.mac);
  put(status, ailment ? t("v_" + ailment) : t("s_" + state));
  status.className = "c-state " + (ailment ? GRAVE.includes(ailment) ? "bad" : "warn" : { live: "good", bridged: "good", idle: "dim" }[state] || "warn");
  put(time, call ? duration(call.seconds) : "");
  put(server, call ? host(call.server) : "");
  server.className = "c-server dim";
  put(packets, call ? number(call.packetsUp) + " / " + number(call.packetsDown) : "");
  // Without any packet nothing is lost, which is no good sign.
  put(lost, call ? call.packetsUp ? percent(loss) : "–" : "");
  lost.className = "c-loss " + (loss * 100 >= LOSS_LIMIT ? "bad" : loss >= 0.01 ? "warn" : "");
  put(jitter, call ? number(call.jitterMs, 1) + " ms" : "");
  put(redials, call ? number(call.redials) : "");
  redials.className = "c-redials " + (call && call.redials ? "warn" : "");
}
function heads() {
  $("head").replaceChildren(...COLUMNS.map((column) => {
    const cell = make("span", "c-" + column), button = make("button", "", t("c_" + column) + (sorting.by === column ? sorting.down ? " ↓" : " ↑" : ""));
    cell.setAttribute("role", "columnheader");
    cell.setAttribute("aria-sort", sorting.by !== column ? "none" : sorting.down ? "descending" : "ascending");
    button.addEventListener("click", () => order(column, sorting.by === column ? !sorting.down : !["device", "server"].includes(column)));
    button.setAttribute("aria-pressed", sorting.by === column);
    cell.append(button);
    return cell;
  }));
  options($("order"), COLUMNS.map((column) => [column, t("sort", { n: t("c_" + column) })]));
  $("order").value = sorting.by;
}
function order(by, down) {
  sorting = { by, down };
  heads();
  $("scroll").scrollTop = 0;
  list();
}
