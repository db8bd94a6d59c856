// ----- the page as a whole

let shownErrors = "", shownEnded = "";
function show() {
  for (const name of ["desk", "cols", "troubles"]) $(name).hidden = false;
  $("ask").hidden = true;
  $("forget").hidden = !token;
  showStatus();
  if (totals.series) showTiles();
  list();
  showDetail();
  // Left alone while nothing changed, so that text in it can be selected.
  const news = language + JSON.stringify(errors.map((error) => [error, devices.has(error.device)]));
  if (news !== shownErrors) { shownErrors = news; showErrors(); }
  $("past").hidden = ended === null;
  const newlyEnded = language + JSON.stringify((ended || []).map((call) => [call.id, devices.has(call.clientId)]));
  if (ended && newlyEnded !== shownEnded) { shownEnded = newlyEnded; showEnded(); }
}
function showStatus() {
  $("status").className = { live: "ok", lost: "bad" }[state] || "";
  put($("status"), t(state) + (state === "lost" && reason ? ": " + reason : ""));
}
function locked(why) {
  clearTimeout(timer);
  era++;
  token = null;
  store.set(sessionStorage, "token", null);
  devices.clear();
  sweep = { next: 0, generation: 1 };
  before = null;
  totals = {};
  errors = [];
  ended = null;
  pick(null);
  $("tiles").replaceChildren();
  for (const name of ["desk", "cols", "past", "troubles", "forget"]) $(name).hidden = true;
  $("ask").hidden = false;
  put($("refused"), why);
  state = "connecting";
  showStatus();
  $("token").focus();
}
function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = t("title");
  for (const element of document.querySelectorAll("[data-t]")) put(element, t(element.dataset.t));
  put($("language"), t("other"));
  $("search").placeholder = t("search");
  $("search").setAttribute("aria-label", t("search"));
  $("token").setAttribute("aria-label", t("token"));
  const verdict = $("verdict").value;
  $("verdict").replaceChildren(...["", ...VERDICTS].map((name) => {
    const option = make("option", "", t(name ? "v_" + name : "everyVerdict"));
    option.value = name;
    return option;
  }));
  $("verdict").value = verdict;
  $("verdict").setAttribute("aria-label", t("past"));
  disarm();
  heads();
}
function heads() {
  $("head").replaceChildren(...COLUMNS.map((column) => {
    const cell = make("span", "c-" + column), button = make("button", "", t("c_" + column) + (sorting.by === column ? sorting.down ? " ↓" : " ↑" : ""));
    cell.setAttribute("role", "columnheader");
    cell.setAttribute("aria-sort", sorting.by !== column ? "none" : sorting.down ? "descending" : "ascending");
    button.setAttribute("aria-pressed", sorting.by === column);
    button.addEventListener("click", () => order(column, sorting.by === column ? !sorting.down : !["device", "server", "ip"].includes(column)));
    cell.append(button);
    return cell;
  }));
  $("order").replaceChildren(...COLUMNS.map((column) => {
    const option = make("option", "", t("sort", { n: t("c_" + column) }));
    option.value = column;
    return option;
  }));
  $("order").value = sorting.by;
}
function order(by, down) {
  sorting = { by, down };
  heads();
  $("scroll").scrollTop = 0;
  list();
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
$("forget").addEventListener("click", () => locked(""));
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  store.set(localStorage, "language", language);
  speak();
  state === "live" ? show() : showStatus();
});
$("search").addEventListener("input", () => { $("scroll").scrollTop = 0; list(); });
$("filter").addEventListener("change", () => { $("scroll").scrollTop = 0; list(); });
$("verdict").addEventListener("change", poll);
$("order").addEventListener("change", () => order($("order").value, !["device", "server", "ip"].includes($("order").value)));
$("scroll").addEventListener("scroll", () => requestAnimationFrame(rows));
$("space").addEventListener("click", (event) => { const row = event.target.closest(".row"); if (row) pick(row.device); });
$("space").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.device) pick(event.target.device); });
for (const list of ["ended", "errors"]) {
  $(list).addEventListener("click", (event) => { if (event.target.tagName === "BUTTON") { pick(event.target.device); $("detail").scrollIntoView({ block: "nearest" }); } });
}
$("shut").addEventListener("click", () => pick(null));
$("hang").addEventListener("click", () => end("hang"));
$("cut").addEventListener("click", () => end("cut"));
addEventListener("resize", () => requestAnimationFrame(rows));
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
speak();
showStatus();
poll();
