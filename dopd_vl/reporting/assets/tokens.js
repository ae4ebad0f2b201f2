// One rollout as a row of tokens, and everything known of one token.
const REGIMES = ["LH", "LL", "HT", "HS"];
const MEANING = {
  LH: "low gap, high probability: both policies agree and are sure",
  LL: "low gap, low probability: both agree and are unsure",
  HT: "high gap, the teacher gives the token more",
  HS: "high gap, the student's copy gives the token more",
};
const SYMBOLS = { "logp/teacher/privileged": "q_T", "logp/student/privileged": "q_S", gap: "A (nats)", loss: "loss (nats, weighted)" };
const regimeOf = (record, n) => (Array.isArray(record.regime) ? REGIMES[record.regime[n]] ?? null : null);
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const shownToken = (text) => (text.trim() ? visible(text) : visible(text.replaceAll(" ", "␣")));

// Columns of numbers, one a token.
function columnsOf(record) {
  return Object.keys(record).filter((name) => !["tokens", "images", "boxes", "views"].includes(name) &&
    Array.isArray(record[name]) && record[name].length === record.tokens.length);
}
function columnName(name) {
  if (SYMBOLS[name]) return SYMBOLS[name];
  return name.startsWith("logp/") ? `probability, ${name.slice(5)}` : name;
}
function columnValue(record, name, n) {
  const value = record[name][n];
  if (name === "regime") return regimeOf(record, n) ?? "none";
  if (name.startsWith("logp/")) return isNumber(value) ? short(Math.exp(value)) : "–";
  return isNumber(value) ? short(value) : typeof value === "boolean" ? (value ? "yes" : "no") : "–";
}

// `colour`: "regime", or the column whose size tints the token; `only`: the regime that is not dimmed.
function tokenButtons(record, colour, only, onLook) {
  // Of a probability, how surprising the token is.
  const sign = colour.startsWith("logp/") ? -1 : 1;
  const values = colour === "regime" ? [] : record[colour].map((v) => (isNumber(v) ? sign * v : 0));
  const largest = Math.max(...values.map(Math.abs), 1e-12);
  const buttons = record.tokens.map((token, n) => {
    const regime = regimeOf(record, n);
    const byRegime = colour === "regime" && regime;
    const note = colour === "regime" ? regime ?? "" : columnValue(record, colour, n);
    const button = make("button", { type: "button", tabindex: -1,
      class: ["token", byRegime ? regime : "", only && regime !== only ? "dim" : ""].join(" ").trim(),
      "aria-label": `token ${n + 1}: ${shownToken(token)} ${note}` }, shownToken(token), make("sub", {}, note));
    if (colour !== "regime") {
      button.classList.add(values[n] < 0 ? "below" : "above");
      button.style.setProperty("--share", `${Math.round((70 * Math.abs(values[n])) / largest)}%`);
    }
    button.onfocus = () => { choose(n); };
    button.onpointerenter = (event) => { if (event.pointerType === "mouse") onLook(n); };
    button.onclick = () => button.focus();
    button.onkeydown = (event) => {
      const to = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      buttons[to]?.focus();
    };
    return button;
  });
  function choose(n) {
    buttons.forEach((button, i) => { button.tabIndex = i === n ? 0 : -1; button.setAttribute("aria-pressed", i === n); });
    onLook(n);
  }
  if (buttons.length) buttons[0].tabIndex = 0;
  return buttons;
}
// A token that ends a line ends it here too.
function asLines(record, buttons) {
  return buttons.flatMap((button, n) => (record.tokens[n].includes("\n") ? [button, make("br")] : [button]));
}

function detail(record, n) {
  const regime = regimeOf(record, n);
  const first = ["gap", "logp/teacher/privileged", "logp/student/privileged", "loss", "weight"];
  const names = columnsOf(record).filter((name) => name !== "regime");
  names.sort((a, b) => (first.indexOf(a) + 1 || 99) - (first.indexOf(b) + 1 || 99));
  const head = make("h3", {}, `Token ${n + 1} of ${record.tokens.length}: `, make("code", {}, shownToken(record.tokens[n])));
  const parts = [head];
  if (regime) parts.push(make("p", {}, make("span", { class: `token ${regime}` }, regime), ` ${MEANING[regime]}`));
  parts.push(make("dl", {}, ...names.map((name) =>
    make("div", {}, make("dt", {}, columnName(name)), make("dd", {}, columnValue(record, name, n))))));
  const sources = Object.entries(record.alternatives ?? {});
  if (sources.length) {
    parts.push(make("h4", {}, "Likeliest tokens here"),
      make("div", { class: "policies" }, ...sources.map(([source, places]) => alternatives(record, source, places[n], n))));
  }
  return parts;
}
function alternatives(record, source, pairs, n) {
  const symbol = SYMBOLS[`logp/${source}`];
  const row = (token, p, note) => {
    const sampled = token === record.tokens[n];
    const bar = make("td", { class: "bar" }, isNumber(p) ? p.toFixed(3) : "–");
    bar.style.setProperty("--p", `${100 * (isNumber(p) ? p : 0)}%`);
    return make("tr", sampled ? { class: "sampled" } : {}, make("td", {}, make("code", {}, shownToken(String(token))), note), bar);
  };
  const rows = pairs.map(([token, p]) => row(token, p, token === record.tokens[n] ? " said" : ""));
  const logp = record[`logp/${source}`]?.[n];
  if (!pairs.some(([token]) => token === record.tokens[n]) && isNumber(logp)) rows.push(row(record.tokens[n], Math.exp(logp), " said"));
  return make("table", {}, make("caption", {}, symbol ? `${source} (${symbol})` : source), make("tbody", {}, ...rows));
}
