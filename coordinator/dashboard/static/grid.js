// The pipelines: a row for each replica, a cell for each stage with its worker and layers.
import { el, table, bytes, share, hue } from "./text.js";
import { regionsOf } from "./map.js";

const MANY = 160;  // workers beyond which regions are counted instead of workers named
const memory = (w) => (w.memory_used_bytes ? `${bytes(w.memory_used_bytes)} of ${bytes(w.memory_bytes)}` : bytes(w.memory_bytes));
const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
const known = (x) => x !== null && x !== undefined;

export function drawGrid(box, shape, run) {
  const plan = run.plan;
  if (!plan) { box.replaceChildren(el("p", { class: "soft" }, "No plan yet.")); shape.textContent = ""; return; }
  const hues = new Map(regionsOf(run).map((r) => [r.name, r.hue]));
  const of = new Map(run.workers.map((w) => [w.name, w]));
  const where = (name) => of.get(name)?.region || of.get(name)?.host || "here";
  const stages = plan.partition.length, replicas = plan.placement.length;
  shape.textContent = `${stages} stage${stages > 1 ? "s" : ""} x ${replicas} replica${replicas > 1 ? "s" : ""}, ${plan.schedule}, micro-batches of ${plan.micro_batch}`;
  const layers = (s) => (plan.partition[s][1] - plan.partition[s][0] === 1 ? `layer ${plan.partition[s][0]}` : `layers ${plan.partition[s][0]}–${plan.partition[s][1] - 1}`);
  if (stages * replicas > MANY) {
    const rows = plan.partition.map((_, s) => {
      const counts = new Map();
      for (const row of plan.placement) counts.set(where(row[s]), (counts.get(where(row[s])) || 0) + 1);
      const gone = plan.placement.filter((row) => of.get(row[s])?.state === "gone").length;
      const busy = mean(plan.placement.map((row) => of.get(row[s])?.busy).filter(known));
      return [s, layers(s), share(busy), gone || "", [...counts].sort((a, b) => b[1] - a[1]).map(([r, n]) => `${r} ${n}`).join(", ")];
    });
    box.replaceChildren(table(["stage", "layers", "busy", "gone", "replicas by region"], rows, [0, 2, 3]));
    return;
  }
  const head = el("tr", {}, el("th", {}, ""), ...plan.partition.map((_, s) => el("th", { scope: "col" }, `stage ${s}`, el("small", {}, layers(s)))));
  const rows = plan.placement.map((row, r) => el("tr", {}, el("th", { scope: "row" }, `replica ${r}`, el("small", {}, `${plan.micro_batches[r]} micro-b.`)),
    ...row.map((name) => {
      const w = of.get(name), gone = !w || w.state === "gone";
      return el("td", {}, el("a", { id: `cell-${name}`, href: `#worker-${name}`, class: gone ? "gone" : null,
        style: `--own:${hue(hues.get(where(name)) || 0)}`, title: w?.reason || `${name}: its row among the workers` },
        el("strong", {}, name), el("small", {}, gone ? "gone" : where(name)),
        gone ? null : el("small", {}, memory(w)), gone ? null : el("small", {}, known(w.busy) ? `busy ${share(w.busy)}` : "not recorded yet"),
        gone || !known(w.busy) ? null : el("span", { class: "meter", "aria-hidden": "true" }, el("i", { style: `width:${share(w.busy).replace(" ", "")}` }))));
    })));
  box.replaceChildren(el("table", { class: "cells" }, el("thead", {}, head), el("tbody", {}, ...rows)));
}

export function drawWorkers(box, run) {
  const order = { member: 0, spare: 1, gone: 2 };
  const rows = [...run.workers].sort((a, b) => order[a.state] - order[b.state] || a.name.localeCompare(b.name));
  if (rows.length <= MANY) { box.replaceChildren(namedWorkers(rows)); return; }
  const open = box.querySelector("details")?.open;
  const all = el("details", { open: open || null }, el("summary", { id: "all-workers" }, `All ${rows.length} workers`));
  all.addEventListener("toggle", () => { if (all.open && all.children.length === 1) all.append(namedWorkers(rows)); });
  if (open) all.append(namedWorkers(rows));
  const lost = rows.filter((w) => w.state === "gone");
  box.replaceChildren(workersByRegion(rows), ...(lost.length ? [el("h3", {}, `Gone: ${lost.length}`), namedWorkers(lost.slice(0, 50), "lost-")] : []), all);
}

function namedWorkers(rows, prefix = "worker-") {
  const shown = rows.map((w) => [w.name, w.state, w.region || "–", w.host, memory(w), share(w.busy),
    w.stage >= 0 ? `stage ${w.stage}, replica ${w.replica}` : "–", w.reason || "–"]);
  const made = table(["worker", "state", "region", "host", "memory", "busy", "place", "why"], shown, [4, 5]);
  made.querySelectorAll("tbody tr").forEach((tr, i) => { tr.id = prefix + rows[i].name; if (rows[i].state === "gone") tr.className = "bad"; });
  return made;
}

function workersByRegion(rows) {
  const of = new Map();
  for (const w of rows) of.set(w.region || "–", [...(of.get(w.region || "–") || []), w]);
  const count = (ws, state) => ws.filter((w) => w.state === state).length;
  return table(["region", "members", "spare", "gone", "memory", "busy"], [...of].sort(([a], [b]) => a.localeCompare(b)).map(([region, ws]) => [region,
    count(ws, "member"), count(ws, "spare"), count(ws, "gone"), bytes(ws.reduce((sum, w) => sum + (w.state === "gone" ? 0 : w.memory_bytes), 0)), share(mean(ws.map((w) => w.busy).filter(known)))]), [1, 2, 3, 4, 5]);
}
