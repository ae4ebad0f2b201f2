// Every text of a run is set as a text node or an attribute's value, never as markup.
const report = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG_TAGS = ["svg", "polyline", "polygon", "text", "line", "rect", "circle", "title"];
function make(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.includes(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const root = document.documentElement;
root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
$("theme").onclick = () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; };

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(1)} %` : "–");
// Four significant digits, without a tail of zeros.
const short = (value) => (isNumber(value) ? String(Number(value.toPrecision(4))) : "–");

function drawRuns() {
  const grouped = report.groups.length < report.runs.length;
  const columns = [
    ["run", (r) => r.name], ...(grouped ? [["group", (r) => r.group]] : []), ["objective", (r) => r.objective ?? "–"],
    ["seed", (r) => r.seed ?? "–"], ["steps", (r) => r.steps ?? "–"],
    ["held-out accuracy: first", (r) => percent(r.first)], ["best", (r) => percent(r.best)],
    ["last", (r) => percent(r.last)], ["last held-out entropy (nats)", (r) => (isNumber(r.entropy) ? r.entropy.toFixed(3) : "–")],
  ];
  $("runs").append(
    make("thead", {}, make("tr", {}, ...columns.map(([name]) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...report.runs.map((run) => make("tr", {}, ...columns.map(([, cell], i) =>
      make(i ? "td" : "th", i ? {} : { scope: "row" }, String(cell(run))))))));
}
drawRuns();
// A row a setting, as runs may be many and settings in which they differ are few.
function drawDifferences() {
  if (report.runs.length < 2) return;
  $("differ").hidden = false;
  $("same").hidden = report.differences.length > 0;
  if (!report.differences.length) return;
  const row = (tag, head, cells) => make("tr", {}, make("th", { scope: tag === "th" ? "col" : "row" }, head),
    ...cells.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, cell ?? "–")));
  $("differences").append(make("thead", {}, row("th", "setting", report.runs.map((run) => run.name))),
    make("tbody", {}, ...report.differences.map(([key, values]) => row("td", make("code", {}, key), values))));
}
drawDifferences();
