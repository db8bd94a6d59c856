// ----- the page as a whole

const TABS = ["now", "calls", "servers", "events", "log", "gateway"];
function openTab(name) {
  tab = name;
  for (const other of TABS) $("view-" + other).hidden = other !== name;
  for (const button of $("tabs").children) button.name === name ? button.setAttribute("aria-current", "page") : button.removeAttribute("aria-current");
  if (name !== "events") closeEvents();
  pollTab().catch(() => {});
  show();
}
/// What only the tab in sight needs.
async function pollTab() {
  if (state === "connecting") return;
  if (tab === "calls") await pollCalls();
  if (tab === "events") followEvents();
  if (tab === "log") await pollLog();
}
function show() {
  if (totals.devices === undefined) return;
  $("desk").hidden = false;
  $("ask").hidden = true;
  $("forget").hidden = !token;
  showStatus();
  showHealth();
  showTabs();
  if (tab === "now") { showTiles(); showErrors(); list(); }
  if (tab === "servers") showServers();
  showDetail();
}
/// The view of chat servers says in its name how many of them fail.
function showTabs() {
  const failing = servers.filter((server) => server.state === "failing").length, button = $("tabs").children[TABS.indexOf("servers")];
  put(button, t("tab_servers") + (failing ? " (" + number(failing) + ")" : ""));
  button.classList.toggle("bad", failing > 0);
}
function showStatus() {
  $("status").className = state === "lost" ? "bad" : "";
  put($("status"), state === "lost" && reason ? about(t(state), reason) : t(state));
}
let refusedBy = null;
/// Asks for the token; says why if there is an error.
function locked(error) {
  clearTimeout(timer);
  closeEvents();
  era++;
  token = null;
  store.set(sessionStorage, "token", null);
  devices.clear();
  sweep = { next: 0, generation: 1 };
  [before, totals, errors, servers, recent, ready, ended, endedNext, events, today, logLines, logLast] = [null, {}, [], [], null, null, [], null, [], null, [], 0];
  trends = {};
  [shownErrors, shownHealth, shownServers] = ["", "", ""];
  pick(null);
  $("dialog").close();
  $("tiles").replaceChildren();
  for (const name of ["desk", "forget"]) $(name).hidden = true;
  $("ask").hidden = false;
  refusedBy = error;
  put($("refused"), error?.message ?? "");
  state = "connecting";
  showStatus();
  $("token").focus();
}
/// Everything again, in the language that is chosen now.
function refresh() {
  [shownErrors, shownHealth, shownServers] = ["", "", ""];
  speak();
  put($("refused"), refusedBy?.message ?? "");
  state === "live" ? show() : showStatus();
}
function speak() {
  if (language === "zh" && !catalogue) loadCatalogue();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = t("title");
  for (const element of document.querySelectorAll("[data-t]")) put(element, t(element.dataset.t));
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.dataset.label));
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = t(element.dataset.placeholder);
  for (const id of ["search", "eventText", "logText"]) $(id).placeholder = t($(id).dataset.label);
  put($("language"), t("other"));
  $("tabs").setAttribute("aria-label", t("views"));
  $("tabs").replaceChildren(...TABS.map((name) => {
    const button = make("button", "", t("tab_" + name));
    button.name = name;
    if (name === tab) button.setAttribute("aria-current", "page");
    button.addEventListener("click", () => openTab(name));
    return button;
  }));
  options($("verdict"), [["", t("everyVerdict")], ...VERDICTS.map((name) => [name, t("v_" + name)])]);
  options($("logLevel"), LEVELS.map((name) => [name, t("level_" + name)]));
  if (!logLines.length) $("logLevel").value = "trace";
  options($("eventKind"), [["", t("everyKind")], ...EVENT_KINDS.map((name) => [name, t("n_" + name.replace(".", "_"))])]);
  $("callHead").replaceChildren(...CALL_COLUMNS.map((column) => {
    const cell = make("span", "c-" + column, t("c_" + column));
    cell.setAttribute("role", "columnheader");
    return cell;
  }));
  heads();
  if (pickedCall !== null && shownCall) showCall(shownCall);
  if (ended.length) showCalls();
  if (today) showHours();
  if (events.length) showEvents();
  if (logLines.length) showLog();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  store.set(sessionStorage, "token", token);
  poll();
});
addEventListener("hashchange", () => {
  const linked = linkedToken();
  if (linked) { token = linked; poll(); }
});
$("forget").addEventListener("click", () => locked(null));
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  store.set(localStorage, "language", language);
  refresh();
});
for (const [id, event] of [["search", "input"], ["filter", "change"], ["byServer", "change"], ["byRoute", "change"], ["byGateway", "change"]]) {
  $(id).addEventListener(event, () => { $("scroll").scrollTop = 0; list(); });
}
$("order").addEventListener("change", () => order($("order").value, !["device", "server"].includes($("order").value)));
$("calls").addEventListener("submit", (event) => { event.preventDefault(); freshCalls(true).catch(() => {}); });
$("verdict").addEventListener("change", () => freshCalls(true).catch(() => {}));
$("logLevel").addEventListener("change", showLog);
$("logText").addEventListener("input", showLog);
$("eventKind").addEventListener("change", showEvents);
$("eventText").addEventListener("input", showEvents);
$("shut").addEventListener("click", () => pick(null));
addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("dialog").open && !$("detail").hidden) pick(null); });
$("dialogForm").addEventListener("submit", (event) => { event.preventDefault(); runDialog(); });
$("cancel").addEventListener("click", () => $("dialog").close());
// The event comes later: another dialog may be open by then.
$("dialog").addEventListener("close", () => { if ($("dialog").open) return; running = null; $("dialogBody").replaceChildren(); $("outcome").replaceChildren(); });
for (const id of ["addDevice", "firstDevice"]) $(id).addEventListener("click", askAddDevice);
$("denied").addEventListener("click", askDenied);
$("check").addEventListener("click", askCheck);
$("reload").addEventListener("click", askReload);
$("showConfig").addEventListener("click", showConfig);
$("bundle").addEventListener("click", downloadBundle);
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
speak();
showStatus();
poll();
