// ----- one device

function pick(id) {
  picked = id;
  history = [];
  disarm();
  put($("said"), "");
  $("detail").hidden = id === null;
  $("cols").classList.toggle("open", id !== null);
  showDetail();
  rows();
  if (id !== null && matchMedia("(max-width: 1080px)").matches) $("detail").scrollIntoView();
  if (id !== null) look().then(() => { if (id === picked) showDetail(); }, () => {});
}
function showDetail() {
  if (picked === null) return;
  const device = devices.get(picked);
  put($("who"), device ? device.session.mac : picked);
  const call = device && device.session.call;
  $("hang").disabled = !call;
  $("cut").disabled = !device;
  if (!device) {
    $("facts").replaceChildren();
    $("plots").hidden = true;
    if (!$("said").textContent) put($("said"), t("gone"));
    return;
  }
  const session = device.session;
  const facts = [["id", session.clientId], ["ip", session.ip], ["online", duration(session.onlineSeconds)], ["state", t("s_" + device.state)]];
  if (call) {
    facts.push(["verdict", t("v_" + call.verdict)], ["time", duration(call.seconds)], ["server", call.server || "–"], ["session", call.sessionId || "–"],
      ["audio", call.audioFrom || "–"], ["up", number(call.packetsUp) + " · " + bytes(call.bytesUp)],
      ["down", number(call.packetsDown) + " · " + bytes(call.bytesDown)], ["loss", number(call.lost) + " · " + percent(call.lossPercent / 100)],
      ["jitter", number(call.jitterMs, 1) + " ms"], ["order", number(call.reordered)], ["twice", number(call.duplicates)],
      ["dropped", number(call.dropped)], ["redials", number(call.redials)]);
  }
  const list = $("facts");
  while (list.children.length > facts.length * 2) list.lastChild.remove();
  while (list.children.length < facts.length * 2) list.append(make("dt"), make("dd"));
  facts.forEach(([name, value], i) => { put(list.children[i * 2], t("f_" + name)); put(list.children[i * 2 + 1], value); });
  showPlots(call);
}
function showPlots(call) {
  const box = $("plots"), timed = history.filter((point) => point.upRate !== undefined);
  box.hidden = !call;
  if (!box.firstChild) {
    for (let i = 0; i < 3; i++) {
      const part = make("div", "plot"), name = make("div", "name");
      name.append(make("span"), make("span"));
      part.append(name, plot());
      box.append(part);
    }
  }
  const last = timed[timed.length - 1];
  const lines = [
    ["p_packets", [timed.map((p) => p.upRate), timed.map((p) => p.downRate)], last ? number(last.upRate, 1) + " / " + number(last.downRate, 1) : ""],
    ["p_loss", [timed.map((p) => p.lossNow)], last ? number(last.lossNow, 1) : ""],
    ["p_jitter", [history.map((p) => p.jitter)], history.length ? number(history[history.length - 1].jitter, 1) : ""],
  ];
  lines.forEach(([name, values, now], i) => {
    const [title, svg] = box.children[i].children;
    put(title.children[0], t(name));
    put(title.children[1], now);
    draw(svg, values);
  });
}
/// A button that ends something asks once more.
function disarm() {
  for (const name of ["hang", "cut"]) {
    $(name).classList.remove("sure");
    put($(name), t(name));
  }
}
async function end(name) {
  const button = $(name), id = picked;
  if (!button.classList.contains("sure")) {
    disarm();
    button.classList.add("sure");
    put(button, t("sure"));
    return;
  }
  disarm();
  try {
    await ask("/api/sessions/" + encodeURIComponent(id) + (name === "cut" ? "?disconnect=true" : ""), "DELETE");
    put($("said"), t("done_" + name));
  } catch (error) {
    put($("said"), error.message);
  }
  poll();
}
