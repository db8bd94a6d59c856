// ----- chat servers

const SERVER_CLASS = { well: "good", failing: "bad", unwell: "warn", unknown: "dim" };
let shownServers = "";
function showServers() {
  const news = language + JSON.stringify(servers) + JSON.stringify(recent && recent[0]?.id);
  if (news === shownServers) return;
  shownServers = news;
  $("servers").replaceChildren(...servers.map((server) => {
    const item = make("li"), top = make("div", "top");
    // Only calls that needed no second server say how long this one takes.
    const setups = (recent || []).filter((call) => call.server === server.url && !call.failureCount).map((call) => call.setup.totalMs);
    top.append(make("strong", SERVER_CLASS[server.state], t("q_" + server.state)), make("span", "", server.url), make("span", "dim", server.route));
    item.append(top);
    const latency = median(setups), seen = server.seenSeconds === null ? "–" : t("ago", { n: duration(server.seenSeconds) });
    item.append(make("p", "dim", t("serverFacts", { calls: number(server.calls), answered: number(server.answered), failures: number(server.failures), ms: latency === null ? "–" : number(latency) + " ms", seen })));
    if (server.state === "failing") item.append(make("p", "bad", about(t("failingSince", { n: duration(server.failingSeconds), stage: named("g_", server.stage) }), said(server.reason))), make("p", "", "→ " + (said(server.advice) || t("serverHelp"))));
    return item;
  }));
}
