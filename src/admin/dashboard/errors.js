// ----- errors: one entry for each kind, the newest first

let shownErrors = "";
function showErrors() {
  // Left alone while nothing changed, so that text in it can be selected.
  const news = language + JSON.stringify(errors.map((error) => [error, devices.has(error.device)]));
  if (news === shownErrors) return;
  shownErrors = news;
  $("quiet").hidden = errors.length > 0;
  const open = new Set([...$("errors").children].filter((group) => group.open).map((group) => group.code));
  $("errors").replaceChildren(...[...grouped(errors, (error) => error.code)].map(([code, group]) => {
    const box = make("details"), head = make("summary"), top = make("span", "top"), entries = make("ul", "items");
    box.code = code;
    box.open = open.has(code);
    top.append(make("strong", "", named("e_", code)), make("span", "warn", t("times", { n: number(group.reduce((sum, error) => sum + error.times, 0)) })), make("span", "dim", clock(group[0].at)));
    head.append(top, make("p", "dim", said(group[0].advice)));
    entries.append(...group.map((error) => {
      const item = make("li"), line = make("div", "top");
      line.append(make("span", "dim", clock(error.at)));
      if (error.times > 1) line.append(make("span", "warn", t("times", { n: number(error.times) })));
      if (error.device) line.append(deviceLink(error.device));
      item.append(line, make("p", "", said(error.sentence)));
      return item;
    }));
    box.append(head, entries);
    return box;
  }));
}

// ----- events: the last ones, and what follows while they are shown

const EVENTS_KEPT = 500, EVENT_KINDS = ["device.online", "device.offline", "device.notification", "call.started", "call.ended", "server.failed", "server.recovered", "certificate.expiring", "config.reloaded", "config.refused", "limit.reached"];
let events = [], eventStream = null, eventsDue = false;
function closeEvents() { eventStream?.abort(); eventStream = null; }
async function followEvents() {
  if (eventStream) return;
  const stream = eventStream = new AbortController();
  try {
    const last = events.length ? events[0].id : 0;
    const answer = await send("/api/events", { headers: { "Last-Event-ID": String(last) }, signal: stream.signal });
    if (!answer.ok) throw await refusal(answer);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) takeEvent(part);
    }
  } catch { /* The next poll follows again. */ }
  if (eventStream === stream) eventStream = null;
}
function takeEvent(part) {
  const data = part.split("\n").find((line) => line.startsWith("data: "));
  const event = data && JSON.parse(data.slice(6));
  if (!event || !event.message) return;
  events.unshift(event);
  if (events.length > EVENTS_KEPT) events.pop();
  if (!eventsDue) { eventsDue = true; requestAnimationFrame(() => { eventsDue = false; showEvents(); }); }
}
function showEvents() {
  const kind = $("eventKind").value, text = $("eventText").value.toLowerCase();
  const shown = events.filter((event) => (!kind || event.event === kind) && JSON.stringify(event).toLowerCase().includes(text));
  $("noEvents").hidden = shown.length > 0;
  put($("eventCount"), t("shown", { n: number(shown.length), m: number(events.length) }));
  $("events").replaceChildren(...shown.map((event) => {
    const item = make("li"), top = make("div", "top");
    const colour = ["server.failed", "config.refused"].includes(event.event) ? "bad" : ["limit.reached", "certificate.expiring"].includes(event.event) ? "warn" : "";
    top.append(make("span", "dim", clock(event.time)), make("strong", colour, named("n_", event.event.replace(".", "_"))));
    if (event.device) top.append(deviceLink(event.device));
    item.append(top, make("span", "", said(event.message)));
    return item;
  }));
}
