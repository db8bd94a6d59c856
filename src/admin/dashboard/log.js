// ----- the log: the last lines, and what follows while they are shown

const LINES_KEPT = 500, LEVELS = ["error", "warn", "info", "debug", "trace"], LEVEL_CLASS = { error: "bad", warn: "warn", debug: "dim", trace: "dim" };
let logLines = [], logLast = 0, loadingLog = false;
async function pollLog() {
  if (loadingLog) return;
  loadingLog = true;
  try {
    const { last, lines } = await ask("/api/log?after=" + logLast);
    // Another process counts from 1 again, and all its lines came.
    if (last < logLast) logLines = [];
    logLast = last;
    if (lines.length) { logLines = [...logLines, ...lines].slice(-LINES_KEPT); showLog(); }
  } finally { loadingLog = false; }
}
/// The last line is in sight, unless the reader has scrolled away from it.
function showLog() {
  const box = $("logLines"), follows = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
  const text = $("logText").value.toLowerCase(), most = LEVELS.indexOf($("logLevel").value);
  const shown = logLines.filter((entry) => LEVELS.indexOf(entry.level) <= most && entry.line.toLowerCase().includes(text));
  put($("logCount"), t("shown", { n: number(shown.length), m: number(logLines.length) }));
  const kept = new Map([...box.children].map((element) => [element.line, element]));
  box.replaceChildren(...shown.map((entry) => {
    const element = kept.get(entry.id) ?? make("div", LEVEL_CLASS[entry.level] ?? "", entry.line);
    element.line = entry.id;
    return element;
  }));
  if (follows) box.scrollTop = box.scrollHeight;
}
