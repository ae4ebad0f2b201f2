// Which rollout is shown, and beside it what each policy saw.
const kept = report.rollouts.flatMap(({ run, views, records }) => records.map((record) => ({ run, views, record })));
const verdict = (record) => (record.correct === true ? "right" : record.correct === false ? "wrong" : "not scored");
const unique = (values) => [...new Set(values)];
let matching = [];

function choice(name, options, onChange) {
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
  select.onchange = onChange;
  $("filters").append(make("label", {}, `${name} `, select));
  return select;
}
const all = (values) => [["", "all"], ...values.map((value) => [value, String(value)])];
const byRun = choice("Run", all(unique(kept.map(({ run }) => run))), list);
const byStep = choice("Step", all(unique(kept.map(({ record }) => record.step)).sort((a, b) => a - b)), list);
const byVerdict = choice("Answer", all(unique(kept.map(({ record }) => verdict(record)))), list);
const routed = kept.some(({ record }) => Array.isArray(record.regime));
const byRegime = choice("Regime", routed ? all(REGIMES) : all([]), list);
byRegime.parentElement.hidden = !routed;
let wantedColour = null; // what the reader chose, where a rollout has it
const byColour = choice("Colour", [], () => { wantedColour = byColour.value; show(); });
const which = choice("Rollout", [], show);
const steps = [["Previous", -1], ["Next", 1]].map(([text, move]) => {
  const button = make("button", { type: "button" }, text);
  button.onclick = () => {
    which.selectedIndex = (which.selectedIndex + move + which.options.length) % which.options.length;
    show();
  };
  $("filters").append(button);
  return button;
});
const counted = make("span", { class: "faint", role: "status" });
$("filters").append(counted);

function list() {
  const before = matching[which.selectedIndex];
  const fits = (select, value) => select.value === "" || select.value === String(value);
  matching = kept.filter(({ run, record }) => fits(byRun, run) && fits(byStep, record.step) &&
    fits(byVerdict, verdict(record)) &&
    (byRegime.value === "" || record.tokens.some((_, n) => regimeOf(record, n) === byRegime.value)));
  which.replaceChildren(...matching.map(({ run, record }, i) =>
    make("option", { value: i }, `${run}, step ${record.step}, ${record.id} (${verdict(record)})`)));
  which.selectedIndex = Math.max(0, matching.indexOf(before));
  for (const control of [which, ...steps]) control.disabled = !matching.length;
  counted.textContent = `${matching.length} of ${kept.length} rollouts`;
  show();
}

function show() {
  for (const id of ["facts", "key", "rollout", "detail", "seen"]) $(id).replaceChildren();
  const chosen = matching[which.selectedIndex];
  if (!chosen) {
    $("facts").append(kept.length ? "No rollout fits." : "These runs kept no rollouts.");
    return;
  }
  const { record } = chosen;
  const right = { right: "✓ right", wrong: "✗ wrong", "not scored": "not scored" }[verdict(record)];
  $("facts").append(make("p", {}, make("span", { class: `verdict ${verdict(record)}` }, right),
    ` ${chosen.run}, step ${record.step}, example ${record.id}`));
  if (record.answer !== null && record.answer !== undefined)
    $("facts").append(make("p", {}, "The answer is ", make("code", {}, String(record.answer)), "."));
  const columns = columnsOf(record);
  // Another objective has other columns. Its own quantity tells most, where it has no regimes.
  const own = columns.find((name) => !name.startsWith("logp/") && !["loss", "weight"].includes(name));
  const usual = ["regime", own, "loss"].find((name) => columns.includes(name)) ?? columns[0];
  byColour.replaceChildren(...columns.map((name) => make("option", { value: name }, columnName(name))));
  byColour.value = columns.includes(wantedColour) ? wantedColour : usual ?? "";
  const colour = byColour.value || "regime";
  if (columns.includes("regime")) $("key").append(...regimeKey(record));
  const buttons = tokenButtons(record, colour, byRegime.value, (n) => $("detail").replaceChildren(...detail(record, n)));
  $("rollout").append(...asLines(record, buttons));
  if (record.tokens.length) $("detail").append(make("p", { class: "faint" },
    "Point at a token, or reach it with Tab and the arrow keys."));
  $("seen").append(...pictures(record), ...views(chosen));
}
// How many tokens of each regime this rollout has, and their share of its loss.
function regimeKey(record) {
  const losses = Array.isArray(record.loss) ? record.loss.map((v) => (isNumber(v) ? v : 0)) : null;
  const total = losses ? losses.reduce((a, b) => a + b, 0) : 0;
  return REGIMES.map((regime, code) => {
    const places = record.regime.flatMap((value, n) => (value === code ? [n] : []));
    const loss = total ? `, ${Math.round((100 * places.reduce((a, n) => a + losses[n], 0)) / total)} % of the loss` : "";
    return make("span", { class: `token ${regime}`, title: MEANING[regime] }, `${regime} ${places.length}${loss}`);
  });
}

function picture(name, description, boxes) {
  const source = report.images[name];
  if (!source) return make("p", { class: "faint" }, `The image ${name} is not in the run folder.`);
  const image = make("img", { src: source, alt: description });
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 150);
  const frame = make("div", { class: "picture" }, image);
  for (const box of boxes) {
    const [left, top, right, bottom] = box.bbox.map((value) => value / 10);
    // The label stays within the picture.
    const side = [top < 8 ? "under" : "", left > 60 ? "leftward" : ""].join(" ").trim();
    const place = make("div", { class: "box" }, make("span", { class: side }, String(box.label ?? "")));
    Object.assign(place.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    frame.append(place);
  }
  return frame;
}
let withBoxes = true;
function pictures(record) {
  const frames = record.images.map((name, i) => {
    const boxes = record.boxes.filter((box) => (box.image ?? 0) === i);
    const labels = boxes.map((box) => box.label ?? "no label").join(", ");
    return picture(name, `image ${i + 1} of ${record.id}${boxes.length ? `, with boxes: ${labels}` : ""}`, boxes);
  });
  if (!frames.length) return [];
  const holder = make("div", { class: withBoxes ? "pictures" : "pictures bare" }, ...frames);
  if (!record.boxes.length) return [holder];
  const toggle = make("input", { type: "checkbox" });
  toggle.checked = withBoxes;
  toggle.onchange = () => { withBoxes = toggle.checked; holder.classList.toggle("bare", !withBoxes); };
  return [holder, make("label", {}, toggle, "the example's boxes")];
}
function views({ views: known, record }) {
  return record.views.map((place, i) => {
    const view = known[place];
    const see = view.sources.length > 1 ? "see" : "sees";
    const details = make("details", {}, make("summary", {}, `${view.sources.join(" and ")} ${see} `,
      make("code", {}, view.variant === "none" ? "the plain prompt" : String(view.variant))),
      ...(view.images ?? []).map((name) => picture(name, `image as ${view.sources.join(" and ")} sees it`, [])),
      make("pre", { tabindex: 0 }, view.prompt));
    details.open = i === 0;
    return details;
  });
}
report.rollouts.forEach(({ run, steps: found, records }) => {
  const here = unique(records.map((record) => record.step)).length;
  if (here < found) $("held").append(`Of ${run}, this page has the rollouts of ${here} of ${found} steps. `);
});
list();
