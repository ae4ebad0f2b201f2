// Curves: one chart a quantity, one line a group of runs. Pointer or arrow keys read the values off at a step.
const DASHES = ["", "6 3", "2 2", "8 2 2 2"];
const BOX = { left: 46, right: 312, top: 10, bottom: 140 };
const hidden = new Set();
// Black has to turn white in the dark; the dash pattern is the cue that is no colour.
const colourOf = (number) => {
  const colour = report.palette[number % report.palette.length];
  return colour === "#000000" ? "currentColor" : colour;
};
const dashOf = (number) => DASHES[number % DASHES.length];

function chart({ name, title, lines }) {
  const shown = lines.filter((line) => !hidden.has(line.label));
  if (!shown.length) return null;
  const steps = [...new Set(shown.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const first = steps[0], last = Math.max(steps.at(-1), first + 1);
  const low = Math.min(...shown.flatMap((line) => line.low)), high = Math.max(...shown.flatMap((line) => line.high));
  const x = (step) => BOX.left + ((BOX.right - BOX.left) * (step - first)) / (last - first);
  const y = (v) => BOX.bottom - ((BOX.bottom - BOX.top - 5) * (v - low)) / (high - low || 1);
  const cursor = make("line", { y1: BOX.top, y2: BOX.bottom, class: "cursor", visibility: "hidden" });
  const svg = make("svg", { viewBox: "0 0 320 165", role: "img", tabindex: 0,
    "aria-label": `${title} over steps; arrow keys read its values` },
    make("line", { x1: BOX.left, x2: BOX.right, y1: BOX.bottom, y2: BOX.bottom, class: "axis" }),
    make("text", { x: 42, y: BOX.top + 9, "text-anchor": "end" }, short(high)),
    make("text", { x: 42, y: BOX.bottom + 3, "text-anchor": "end" }, high > low ? short(low) : ""),
    make("text", { x: BOX.left, y: 157 }, `step ${first}`),
    make("text", { x: BOX.right, y: 157, "text-anchor": "end" }, String(steps.at(-1))), cursor);
  for (const line of shown) {
    const at = (values) => line.steps.map((step, i) => `${x(step)},${y(values[i])}`);
    const band = [...at(line.high), ...at(line.low).reverse()];
    svg.append(make("polygon", { points: band.join(" "), fill: colourOf(line.number), opacity: 0.18 }),
      line.steps.length > 1
        ? make("polyline", { points: at(line.middle).join(" "), stroke: colourOf(line.number),
          "stroke-dasharray": dashOf(line.number), class: "curve" })
        : make("circle", { cx: x(line.steps[0]), cy: y(line.middle[0]), r: 3, fill: colourOf(line.number) }));
  }
  const values = make("div", { class: "values", "aria-live": "polite" });
  let at = null;
  const read = (place) => {
    at = Math.max(0, Math.min(steps.length - 1, place));
    const step = steps[at];
    for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(step));
    cursor.setAttribute("visibility", "visible");
    values.replaceChildren(`step ${step}`, ...shown.filter((line) => line.steps.includes(step)).map((line) =>
      make("span", {}, swatch(line.number), `${line.label} ${short(line.middle[line.steps.indexOf(step)])}`)));
  };
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const step = first + ((((event.clientX - box.left) * 320) / box.width - BOX.left) * (last - first)) / (BOX.right - BOX.left);
    read(steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0));
  };
  svg.onkeydown = (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    read(at === null ? (move > 0 ? 0 : steps.length - 1) : at + move);
    event.preventDefault();
  };
  const caption = title === name ? [title] : [title, " ", make("code", {}, name)];
  return make("figure", {}, make("figcaption", {}, ...caption), svg, values);
}
function swatch(number) {
  return make("svg", { viewBox: "0 0 24 8", class: "swatch", "aria-hidden": "true" },
    make("line", { x1: 0, x2: 24, y1: 4, y2: 4, stroke: colourOf(number), "stroke-width": 3,
      "stroke-dasharray": dashOf(number) }));
}
const OPEN = 6;
function drawCharts() {
  const open = [...$("charts").querySelectorAll("details")].map((details) => details.open);
  $("charts").replaceChildren(...report.sections.map((section, i) => {
    const details = make("details", {}, make("summary", {}, section.title),
      make("div", { class: "grid" }, ...section.charts.map(chart).filter(Boolean)));
    details.open = open[i] ?? i < OPEN;
    return details;
  }));
  if (!report.sections.length) $("charts").replaceChildren("These runs have logged no metrics yet.");
}
report.groups.forEach((group, number) => {
  const box = make("input", { type: "checkbox" });
  box.checked = true;
  box.onchange = () => { box.checked ? hidden.delete(group) : hidden.add(group); drawCharts(); };
  $("legend").append(make("label", {}, box, swatch(number), group));
});
drawCharts();
