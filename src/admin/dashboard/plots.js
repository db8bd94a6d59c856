// ----- plots: with a scale, and the limit from which the gateway's verdict counts a value as bad

const WIDTH = 380, HEIGHT = 96, LEFT = 44, BOTTOM = 16, TOP = 6;

function svg(name, attributes = {}, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
/// The next number with one digit that is 1, 2 or 5.
function nice(top) {
  const power = 10 ** Math.floor(Math.log10(top));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= top * 0.999);
}
/// Title, present value, and the drawing with its axes. `limit` is shown as a line if there is one.
function frame({ title, now = "", unit = "", top, limit = null, ends }) {
  const box = make("div", "plot"), name = make("div", "name");
  name.append(make("span", "", title), make("span", "", now));
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title + (now ? ": " + now : "") });
  const y = (value) => TOP + (HEIGHT - BOTTOM - TOP) * (1 - Math.min(value, top) / top);
  for (const value of [0, top / 2, top]) {
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end" }, number(value, 1) + unit));
  }
  if (limit !== null && limit <= top) {
    drawing.append(svg("line", { class: "limit", x1: LEFT, x2: WIDTH, y1: y(limit), y2: y(limit) }));
    drawing.append(svg("text", { class: "limitText", x: WIDTH - 2, y: y(limit) - 2, "text-anchor": "end" }, t("limit", { n: number(limit, 1) + unit })));
  }
  drawing.append(svg("text", { x: LEFT, y: HEIGHT - 3 }, ends[0]), svg("text", { x: WIDTH - 2, y: HEIGHT - 3, "text-anchor": "end" }, ends[1]));
  box.append(name, drawing);
  return { box, drawing, y };
}
/// Lines over time. `slots`: how many values fill the width.
function lines({ series, slots, atLeast = 1, limit = null, ...rest }) {
  const top = nice(Math.max(atLeast, limit === null ? 0 : limit * 1.25, ...series.flat()));
  const { box, drawing, y } = frame({ ...rest, top, limit });
  series.forEach((values, i) => {
    const x = (k) => LEFT + (WIDTH - LEFT) * k / Math.max(slots - 1, 1);
    const points = values.length === 1 ? [values[0], values[0]] : values;
    drawing.append(svg("polyline", { class: i ? "second" : "", points: points.map((value, k) => x(k).toFixed(1) + "," + y(value).toFixed(1)).join(" ") }));
  });
  return box;
}
/// Bars, each of parts on top of one another: pairs of value and class.
function bars({ columns, atLeast = 1, limit = null, titles, ...rest }) {
  const top = nice(Math.max(atLeast, ...columns.map((parts) => parts.reduce((sum, [value]) => sum + value, 0))));
  const { box, drawing, y } = frame({ ...rest, top, limit });
  const width = (WIDTH - LEFT) / columns.length;
  columns.forEach((parts, i) => {
    let below = 0;
    for (const [value, name] of parts.filter(([value]) => value > 0)) {
      const bar = svg("rect", { class: name, x: LEFT + i * width + 1, width: Math.max(1, width - 2), y: y(below + value), height: Math.max(1, y(below) - y(below + value)) });
      bar.append(svg("title", {}, titles[i]));
      drawing.append(bar);
      below += value;
    }
  });
  return box;
}
