// ----- plots

function plot() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}
function draw(svg, lines) {
  const top = Math.max(1e-9, ...lines.flat());
  while (svg.children.length < lines.length) svg.append(document.createElementNS(SVG, "polyline"));
  lines.forEach((line, i) => {
    const x = (k) => 100 - (line.length - 1 - k) * 100 / Math.max(line.length - 1, 15), y = (value) => 38 - 36 * value / top;
    svg.children[i].setAttribute("points", line.map((value, k) => x(k).toFixed(1) + "," + y(value).toFixed(1)).join(" "));
    if (i) svg.children[i].setAttribute("class", "second");
  });
}
