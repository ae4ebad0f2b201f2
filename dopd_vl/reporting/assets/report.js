"use strict";
// Every text of a run is set as a text node, never as markup.
const runs = JSON.parse(document.getElementById("data").textContent);
const REGIMES = ["LH", "LL", "HT", "HS"];
// Okabe and Ito's palette; the dash pattern is the cue that is no colour.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES = ["", "6 3", "2 2", "8 2 2 2"];
const $ = (id) => document.getElementById(id);
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "polyline", "polygon", "text", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const root = document.documentElement;
root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
$("theme").onclick = () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; };

const groups = [...new Set(runs.map((run) => run.group))];
const hidden = new Set();
const WANTED = /accuracy|entropy|gap|tau|threshold|share\/|mass|length|clipped|loss/;
const shown = (name) => name !== "step" && WANTED.test(name);
const quantities = [...new Set(runs.flatMap((run) => run.metrics.flatMap(Object.keys)))].filter(shown);

// A group's value at a step: mean, least and greatest of the runs that logged it there.
function series(group, quantity) {
  const at = new Map();
  for (const run of runs.filter((r) => r.group === group))
    for (const row of run.metrics)
      if (Number.isFinite(row[quantity])) at.set(row.step, [...(at.get(row.step) || []), row[quantity]]);
  return [...at].sort((a, b) => a[0] - b[0]).map(([step, values]) => ({
    step, mean: values.reduce((a, b) => a + b) / values.length, low: Math.min(...values), high: Math.max(...values),
  }));
}
function chart(quantity) {
  const lines = groups.map((g) => [g, series(g, quantity)]).filter(([g, s]) => !hidden.has(g) && s.length);
  const points = lines.flatMap(([, s]) => s);
  if (!points.length) return null;
  const last = Math.max(...points.map((p) => p.step), 1);
  const low = Math.min(...points.map((p) => p.low)), high = Math.max(...points.map((p) => p.high));
  const x = (step) => 46 + (264 * step) / last, y = (v) => 140 - (125 * (v - low)) / (high - low || 1);
  const svg = make("svg", { viewBox: "0 0 320 165", role: "img", "aria-label": `${quantity} over steps` },
    make("line", { x1: 46, x2: 310, y1: 140, y2: 140, stroke: "gray" }),
    make("text", { x: 2, y: 18 }, high.toPrecision(3)), make("text", { x: 2, y: 144 }, low.toPrecision(3)),
    make("text", { x: 46, y: 158 }, "step 0"), make("text", { x: 310, y: 158, "text-anchor": "end" }, String(last)));
  for (const [group, s] of lines) {
    const i = groups.indexOf(group), colour = COLOURS[i % COLOURS.length];
    const band = [...s.map((p) => `${x(p.step)},${y(p.high)}`), ...s.map((p) => `${x(p.step)},${y(p.low)}`).reverse()];
    svg.append(make("polygon", { points: band.join(" "), fill: colour, opacity: 0.2 }), make("polyline", {
      points: s.map((p) => `${x(p.step)},${y(p.mean)}`).join(" "), fill: "none", stroke: colour,
      "stroke-width": 2, "stroke-dasharray": DASHES[i % DASHES.length] }));
  }
  return make("figure", {}, make("figcaption", {}, quantity), svg);
}
const drawCharts = () => $("charts").replaceChildren(...quantities.map(chart).filter(Boolean));
groups.forEach((group, i) => {
  const box = make("input", { type: "checkbox" });
  box.checked = true;
  box.onchange = () => { box.checked ? hidden.delete(group) : hidden.add(group); drawCharts(); };
  const label = make("label", {}, box, ` ${group}`);
  label.style.borderBottom = `3px ${i % 2 ? "dashed" : "solid"} ${COLOURS[i % COLOURS.length]}`;
  $("legend").append(label);
});
drawCharts();

const rollouts = runs.flatMap((run) => run.rollouts.map((record) => ({ run: run.name, record })));
const verdict = (r) => (r.correct === true ? "right" : r.correct === false ? "wrong" : "not scored");
function choice(name, values) {
  const select = make("select", {}, ...["all", ...values].map((v) => make("option", {}, String(v))));
  select.onchange = () => list();
  $("filters").append(make("label", {}, `${name} `, select));
  return select;
}
const unique = (values) => [...new Set(values)];
const byRun = choice("Run", unique(rollouts.map((r) => r.run)));
const byStep = choice("Step", unique(rollouts.map((r) => r.record.step)));
const byVerdict = choice("Answer", ["right", "wrong", "not scored"]);
const byRegime = choice("Regime", REGIMES);
const which = make("select", { "aria-label": "Rollout" });
which.onchange = () => show();
$("filters").append(make("label", {}, "Rollout ", which));
function list() {
  which.replaceChildren();
  rollouts.forEach(({ run, record: r }, i) => {
    const fits = (select, value) => select.value === "all" || select.value === String(value);
    if (fits(byRun, run) && fits(byStep, r.step) && fits(byVerdict, verdict(r)) &&
      (byRegime.value === "all" || (r.regime || []).some((v) => REGIMES[v] === byRegime.value)))
      which.append(make("option", { value: i }, `${run}, step ${r.step}, ${r.id} (${verdict(r)})`));
  });
  show();
}
function show() {
  $("detail").replaceChildren();
  if (which.value === "") return $("rollout").replaceChildren("No rollouts to show.");
  const r = rollouts[+which.value].record;
  const buttons = r.tokens.map((token, n) => {
    const regime = r.regime ? REGIMES[r.regime[n]] : "";
    const text = token.trim() ? token : JSON.stringify(token).slice(1, -1).replaceAll(" ", "␣") || "∅";
    const dim = byRegime.value !== "all" && regime !== byRegime.value ? " dim" : "";
    const button = make("button", { type: "button", class: `token ${regime || ""}${dim}`,
      "aria-label": `token ${n + 1}: ${text} ${regime || ""}` }, text, make("sub", {}, regime || ""));
    button.onfocus = button.onmouseenter = () => detail(r, n);
    button.onkeydown = (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move && buttons[n + move]) { buttons[n + move].focus(); event.preventDefault(); }
    };
    return button;
  });
  $("rollout").replaceChildren(make("p", {}, `Example ${r.id}, ${verdict(r)}; the answer is ${r.answer}`), ...buttons);
}
function detail(r, n) {
  const names = { "logp/teacher/privileged": "q_T", "logp/student/privileged": "q_S" };
  const cells = Object.entries(r).filter(([k, v]) => k !== "tokens" && Array.isArray(v) && v.length === r.tokens.length);
  $("detail").replaceChildren(make("dl", {}, make("dt", {}, "token"), make("dd", {}, JSON.stringify(r.tokens[n])),
    ...cells.flatMap(([k, v]) => [make("dt", {}, names[k] || k),
      make("dd", {}, k === "regime" ? REGIMES[v[n]] || "none" : names[k] ? Math.exp(v[n]).toFixed(4) : String(v[n]))])));
}
list();
