// ----- sentences of the gateway in the reader's language: by the catalogue of its messages, whose entries have {} for a value

const MAX_DEPTH = 8, SHORT_ENTRY = 8;
let catalogue = null, askedCatalogue = false;
const translations = new Map();

/// A sentence of the gateway; as it is, if the catalogue lacks it, or until it is there.
function said(text) {
  if (language !== "zh" || !text) return text;
  if (!catalogue) { loadCatalogue(); return text; }
  if (!translations.has(text)) {
    if (translations.size > 2000) translations.clear();
    translations.set(text, translate(text, MAX_DEPTH) ?? text);
  }
  return translations.get(text);
}
/// An error of the API: one about a parameter is a message, made a sentence.
const saidError = (text) => language === "zh" && /^\S+: found .*\.$/s.test(text) ? said(text.slice(0, -1)) + "。" : said(text);
async function loadCatalogue() {
  if (askedCatalogue) return;
  askedCatalogue = true;
  try {
    const answer = await send("/messages.zh.po");
    if (!answer.ok) throw await refusal(answer);
    catalogue = entries(await answer.text());
    refresh();
  } catch { setTimeout(() => { askedCatalogue = false; }, 10000); }
}
/// The pairs of a catalogue in the format of GNU gettext, the longest text first: it says most about what a message is.
function entries(file) {
  const texts = (keyword) => file.split("\n").filter((line) => line.startsWith(keyword)).map((line) => JSON.parse(line.slice(keyword.length)));
  const [ids, strings] = [texts("msgid "), texts("msgstr ")];
  const found = ids.map((id, i) => ({ parts: id.split("{}"), length: id.replaceAll("{}", "").length, translation: strings[i] })).filter((entry) => entry.length);
  // Of two that are as long, the later one counts.
  return found.reverse().sort((a, b) => b.length - a.length);
}
/// As `tools/language.rs` does it; null if no entry fits.
function translate(message, depth) {
  if (!depth) return null;
  const inner = (value) => translate(value, depth - 1) ?? value;
  let values = null;
  const best = catalogue.find((entry) => (values = valuesOf(message, entry)) !== null);
  // A message, and a remark behind it, which is no part of the message's last value, and not within parentheses.
  const at = message.lastIndexOf("; "), isWhole = (text) => text.split("(").length === text.split(")").length;
  if (at > 0 && isWhole(message.slice(at)) && (!best || values.at(-1)?.includes("; "))) {
    const remark = translate(message.slice(at), depth - 1);
    if (remark !== null) return inner(message.slice(0, at)) + remark;
  }
  if (best) return filled(best.translation, values.map(inner));
  if (message.startsWith(" ")) {
    const found = translate(message.slice(1), depth - 1);
    return found === null ? null : " " + found;
  }
  // The name of a file, a field or an option, and what is wrong with it. A certificate's field may have its section before it.
  const colon = message.indexOf(": ");
  if (colon >= 0) {
    const place = message.slice(0, colon), rest = message.slice(colon + 2), dot = place.lastIndexOf(".");
    const field = dot >= 0 ? translate(place.slice(dot + 1) + ": " + rest, depth - 1) : null;
    if (field !== null) return place.slice(0, dot + 1) + field;
    const found = translate(rest, depth - 1);
    if (found !== null) return place + "：" + found;
  }
  // A warning, made a sentence.
  if (!/^[A-Z].*\.$/s.test(message)) return null;
  const sentence = translate(message[0].toLowerCase() + message.slice(1, -1), depth - 1);
  return sentence === null ? null : sentence + "。";
}
/// The values of a message, if it is an instance of this entry: each ends where the text goes on for the first time.
function valuesOf(message, { parts, length }) {
  if (!message.startsWith(parts[0])) return null;
  const values = [];
  let at = parts[0].length;
  for (let i = 1; i < parts.length; i++) {
    const part = parts[i], isLast = i === parts.length - 1;
    const end = !isLast ? message.indexOf(part, at) : message.endsWith(part) && message.length - part.length >= at ? message.length - part.length : -1;
    if (end < 0) return null;
    const value = message.slice(at, end);
    // One at the beginning is a name, an address or the like, and not a part of another message.
    if (i === 1 && parts[0] === "" && (value.includes(": ") || value.includes("; ") || length < SHORT_ENTRY && value.includes(" "))) return null;
    if (value.endsWith(":") && !value.endsWith("::")) return null;
    values.push(value);
    at = end + part.length;
  }
  return at === message.length ? values : null;
}
/// The translation with the values in their places: {} in their order, or {1} by number.
function filled(translation, values) {
  let next = 0;
  return translation.replace(/\{(\d*)\}/g, (_, number) => values[number ? number - 1 : next++] ?? "");
}
