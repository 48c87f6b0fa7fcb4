// Lists the runs, and lays two or more over each other. What is chosen is in the address, so it can be kept and sent.
import { $, ask, digits, el, svg, whole, bytes, seconds, span, moment, pill } from "./text.js";
import { Chart } from "./charts.js";

const MOST = 8, AGAIN_MS = 10_000;
const DASHES = [undefined, [7, 4], [2, 3], [10, 3, 2, 3]];
const inAddress = () => new URLSearchParams(location.search).getAll("compare");
let runs = [], chosen = inAddress().slice(0, MOST), curves = new Map(), charts = {}, shown = "";

const known = (x) => x !== null && x !== undefined;
const address = (id) => `.?run=${encodeURIComponent(id)}`;
const look = (i) => ({ colour: `--hue${i % 8}`, dash: DASHES[i % DASHES.length] });
const plan = (r) => (known(r.stages) ? `${r.stages} x ${r.replicas}` : "–");
const ended = (r) => el("span", {}, pill(r.phase), r.phase !== "finished" && r.reason ? el("small", { class: "why" }, r.reason) : null);

// [heading, its cell of a run, whether it stands to the right]
const COLUMNS = [
  ["began", (r) => moment(r.began_s)],
  ["lasted", (r) => span(r.last_s - r.began_s), true],
  ["state", ended],
  ["steps", (r) => `${whole(r.step)} of ${whole(r.steps)}`, true],
  ["loss", (r) => digits(r.loss, 4), true],
  ["held out", (r) => digits(r.eval_loss, 4), true],
  ["tokens/s", (r) => whole(r.tokens_per_s), true],
  ["step", (r) => seconds(r.step_s), true],
  ["stages x replicas", plan],
];

const FIGURES = [
  ...COLUMNS.slice(0, 8),
  ["predicted step", (r) => seconds(r.predicted_step_s), true],
  ["tokens", (r) => whole(r.tokens), true],
  ["sent a step", (r) => bytes(r.sent_bytes), true],
  ["stages x replicas", plan],
  ["began again", (r) => (r.attempts > 1 ? `${r.attempts - 1} times` : "–")],
];

function row(r) {
  const name = el("a", { href: r.own ? "." : address(r.id), id: `open-${r.id}` }, r.run || r.id);
  if (r.error) return el("tr", { class: "bad" }, el("td"), el("th", { scope: "row" }, r.id), el("td", { colspan: COLUMNS.length }, r.error));
  const box = el("input", { type: "checkbox", id: `choose-${r.id}`, "aria-label": `Compare ${r.run} of ${r.id}` });
  box.checked = chosen.includes(r.id);
  box.disabled = !box.checked && chosen.length >= MOST;
  box.addEventListener("change", () => choose(r.id, box.checked));
  return el("tr", { class: box.checked ? "chosen" : null }, el("td", {}, box),
    el("th", { scope: "row" }, name, el("small", {}, `${r.id}${r.own ? ", this page's" : ""}`)),
    ...COLUMNS.map(([, of, number]) => el("td", { class: number ? "n" : null }, of(r))));
}

function list() {
  const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = runs.filter((r) => wanted.every((w) => `${r.id} ${r.run} ${r.job} ${r.phase} ${r.reason}`.toLowerCase().includes(w)));
  $("found").textContent = runs.length === 1 ? "1 run" : rows.length < runs.length ? `${rows.length} of ${runs.length} runs` : `${runs.length} runs`;
  const focused = document.activeElement?.id;
  $("list").replaceChildren(rows.length
    ? el("table", { class: "runs" }, el("thead", {}, el("tr", {}, el("td"), el("th", { scope: "col" }, "run"),
      ...COLUMNS.map(([name, , number]) => el("th", { scope: "col", class: number ? "n" : null }, name)))), el("tbody", {}, ...rows.map(row)))
    : el("p", { class: "soft" }, runs.length ? "None of them." : "No run yet."));
  if (focused && document.activeElement?.id !== focused) $(focused)?.focus({ preventScroll: true });
  $("none").hidden = !chosen.length;
  $("chosen").textContent = chosen.length === 1 ? "1 chosen; choose another to compare" : chosen.length ? `${chosen.length} chosen${chosen.length >= MOST ? ", the most" : ""}` : "";
}

function choose(id, on) {
  chosen = on ? [...chosen, id] : chosen.filter((x) => x !== id);
  const query = chosen.map((x) => `compare=${encodeURIComponent(x)}`).join("&");
  history.replaceState(null, "", query ? `?${query}` : "runs");
  list();
  compare().catch(fail);
}

// The curves of runs that have not the same steps, over all steps of any: a column a run.
function laid(points) {
  const steps = [...new Set(points.flatMap((p) => p.map(([step]) => step)))].sort((a, b) => a - b);
  return [steps, ...points.map((p) => { const at = new Map(p); return steps.map((s) => at.get(s) ?? null); })];
}

async function compare() {
  const of = chosen.map((id) => runs.find((r) => r.id === id)).filter((r) => r && !r.error);
  document.querySelectorAll(".compared").forEach((section) => { section.hidden = of.length < 2; });
  if (of.length < 2) return;
  const query = of.map((r) => `run=${encodeURIComponent(r.id)}`).join("&");
  const asked = chosen.join("\n");
  const [{ settings }] = await Promise.all([ask(`api/compare?${query}`), ...of.map(async (r) => {
    if (curves.get(r.id)?.last_s !== r.last_s) curves.set(r.id, { last_s: r.last_s, ...(await ask(`api/steps?run=${encodeURIComponent(r.id)}`)) });
  })]);
  if (asked !== chosen.join("\n")) return;  // others were chosen meanwhile
  const names = of.map((r) => (of.filter((o) => o.run === r.run).length > 1 ? `${r.run} (${r.id})` : r.run));
  $("key").replaceChildren(...of.map((r, i) => el("span", {}, stroke(look(i)), names[i])));
  $("figures").replaceChildren(across(names, FIGURES.map(([name, value, number]) => [name, number, ...of.map(value)])));
  $("settings").replaceChildren(settings.length ? across(names, settings.map((s) => [dotted(s.key), false, ...s.values.map((v) => v || "–")]))
    : el("p", { class: "soft" }, "None: their jobs say the same."));
  const lines = names.map((label, i) => ({ label, ...look(i) }));
  const column = (name) => of.map((r) => { const { series } = curves.get(r.id); return series.step.map((s, i) => [s, series[name][i]]); });
  const held = of.map((r) => curves.get(r.id).evals);
  draw("loss", "Loss by step", lines, laid(column("loss")));
  draw("held", "Held-out loss by step", lines.map((l) => ({ ...l, points: true })), laid(held));
  draw("seconds", "Seconds of a step", lines, laid(column("step_s")));
  shown = names.join("\n");
}

function draw(id, title, lines, columns) {
  if (!charts[id] || shown !== lines.map((l) => l.label).join("\n")) { charts[id]?.close(); charts[id] = new Chart($(id), title, lines); }
  charts[id].show(columns);
}

// A run's line as the curves have it, for who cannot tell the colours: its dashes, too.
function stroke({ colour, dash }) {
  return svg("svg", { viewBox: "0 0 34 10", class: "stroke", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 34, y1: 5, y2: 5, stroke: `var(${colour})`, "stroke-width": 2.5, "stroke-dasharray": (dash || []).join(" ") }));
}

// A key that may be broken behind its dots.
const dotted = (key) => el("span", {}, ...key.split(".").flatMap((part, i) => (i ? [".", el("wbr"), part] : [part])));

// A row for each figure, a column for each run.
function across(names, rows) {
  return el("table", { class: "across" }, el("thead", {}, el("tr", {}, el("td"), ...names.map((n, i) => el("th", { scope: "col" }, stroke(look(i)), n)))),
    el("tbody", {}, ...rows.map(([name, number, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((c) => el("td", {}, c))))));
}

function fail(error) {
  $("chosen").textContent = error.message;
  console.error(error);
}

async function read() {
  const found = await ask("api/runs");
  const same = JSON.stringify(found) === JSON.stringify(runs);
  runs = found;
  chosen = chosen.filter((id) => runs.some((r) => r.id === id));
  if (!runs.some((r) => r.own)) $("live")?.remove();
  if (!same) { list(); await compare(); }
}

$("filter").addEventListener("input", list);
$("none").addEventListener("click", () => { chosen = []; choose("", false); $("filter").focus(); });
setInterval(() => { if (!document.hidden) read().catch(fail); }, AGAIN_MS);
await read().catch(fail);
