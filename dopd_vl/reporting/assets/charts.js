// Curves: one chart a quantity, one line a group of runs. Pointer or arrow keys read the values off at a step.
const DASHES = ["", "6 3", "2 2", "8 2 2 2"];
const BOX = { right: 308, top: 8, bottom: 142 };
const DIGIT = 6.4; // a digit's width in the charts' letters
const hidden = new Set();
// Black has to turn white in the dark; the dash pattern is the cue that is no colour.
const colourOf = (number) => {
  const colour = report.palette[number % report.palette.length];
  return colour === "#000000" ? "currentColor" : colour;
};
const dashOf = (number) => DASHES[number % DASHES.length];

// Round numbers that enclose the values: steps of 1, 2 or 5 times a power of ten, about `count` of them.
function ticks(low, high, count, smallest = 0) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(smallest, power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999));
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return { step, values: Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step) };
}
// As many decimals as tell the ticks apart.
function tickText(value, step, share) {
  const decimals = Math.max(0, -Math.floor(Math.log10(step * (share ? 100 : 1)) + 1e-9));
  if (share) return `${(100 * value).toFixed(decimals)} %`;
  if (value && (Math.abs(value) >= 1e6 || decimals > 5)) return value.toExponential(Math.max(0, Math.min(3,
    Math.floor(Math.log10(Math.abs(value))) - Math.floor(Math.log10(step) + 1e-9))));
  return value ? value.toFixed(decimals) : "0";
}

function chart({ name, title, share, lines }) {
  const shown = lines.filter((line) => !hidden.has(line.label));
  if (!shown.length) return null;
  const steps = [...new Set(shown.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const first = steps[0], last = Math.max(steps.at(-1), first + 1);
  const bounds = shown.flatMap((line) => [...line.low, ...line.high]);
  let low = bounds.reduce((a, b) => Math.min(a, b)), high = bounds.reduce((a, b) => Math.max(a, b));
  // What never changes, but for rounding, is seen against nought.
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) [low, high] = low ? [Math.min(0, low), Math.max(0, high)] : [0, 1];
  const across = ticks(low, high, 5);
  const labels = across.values.map((value) => tickText(value, across.step, share));
  const left = 8 + DIGIT * Math.max(...labels.map((label) => label.length));
  const [bottom, top] = [across.values[0], across.values.at(-1)];
  const x = (step) => left + ((BOX.right - left) * (step - first)) / (last - first);
  const y = (v) => BOX.bottom - ((BOX.bottom - BOX.top) * (v - bottom)) / (top - bottom);
  const along = ticks(first, last, 5, 1).values.filter((step) => step >= first && step <= last);
  const told = (value) => (share ? percent(value) : short(value));
  const cursor = make("line", { y1: BOX.top, y2: BOX.bottom, class: "cursor", visibility: "hidden" });
  const svg = make("svg", { viewBox: "0 0 320 174", role: "img", tabindex: 0,
    "aria-label": `${title} over steps; arrow keys read its values` },
    ...along.map((step) => make("line", { x1: x(step), x2: x(step), y1: BOX.top, y2: BOX.bottom, class: "grid-line" })),
    ...across.values.flatMap((value, i) => [
      make("line", { x1: left, x2: BOX.right, y1: y(value), y2: y(value), class: i ? "grid-line" : "axis" }),
      make("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end", class: "tick" }, labels[i])]),
    ...along.map((step) => make("text", { x: x(step), y: 156, "text-anchor": "middle", class: "tick" }, String(step))),
    make("text", { x: (left + BOX.right) / 2, y: 170, "text-anchor": "middle" }, "step"), cursor);
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
      make("span", {}, swatch(line.number), `${line.label} ${told(line.middle[line.steps.indexOf(step)])}`)));
  };
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const step = first + ((((event.clientX - box.left) * 320) / box.width - left) * (last - first)) / (BOX.right - left);
    read(steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0));
  };
  svg.onkeydown = (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    read(at === null ? (move > 0 ? 0 : steps.length - 1) : at + move);
    event.preventDefault();
  };
  return make("figure", {}, make("figcaption", {}, title, make("code", {}, title === name ? "\u00a0" : name)), svg, values);
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
