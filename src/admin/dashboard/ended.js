// ----- calls that have ended

function showEnded() {
  $("noCalls").hidden = ended.length > 0;
  const items = ended.map((call) => {
    const item = make("li"), top = make("div", "top");
    const colour = call.verdict === "good" ? "good" : ["server_gaps", "server_slow", "limited"].includes(call.verdict) ? "warn" : "bad";
    top.append(make("strong", colour, t("v_" + call.verdict)), make("span", "dim", new Date(call.endedAt).toLocaleString(language)));
    top.append(make("span", "dim", duration(call.seconds)), deviceLink(call.clientId));
    const facts = [call.server, call.reason, t("f_loss") + " " + percent(call.lossPercent / 100) + " / " + percent(call.worstLossPercent / 100)];
    if (call.failures.length) facts.push(call.failures[0].stage + ": " + call.failures[0].cause);
    item.append(top, make("p", "dim", facts.filter(Boolean).join(" · ")));
    return item;
  });
  $("ended").replaceChildren(...items);
}
/// A device's name, which opens its facts if it is connected.
function deviceLink(id) {
  const element = devices.has(id) ? make("button", "", id) : make("span", "dim", id);
  element.device = id;
  return element;
}
