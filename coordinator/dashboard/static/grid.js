// The pipelines: a row for each replica, a cell for each stage with its worker and layers.
import { el, table, bytes, hue } from "./text.js";
import { regionsOf } from "./map.js";

const MANY = 160;  // cells beyond which regions are counted instead of workers named

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
      return [s, layers(s), [...counts].sort((a, b) => b[1] - a[1]).map(([r, n]) => `${r} ${n}`).join(", "), gone || ""];
    });
    box.replaceChildren(table(["stage", "layers", "replicas by region", "gone"], rows, [0, 3]));
    return;
  }
  const head = el("tr", {}, el("th", {}, ""), ...plan.partition.map((_, s) => el("th", { scope: "col" }, `stage ${s}`, el("small", {}, layers(s)))));
  const rows = plan.placement.map((row, r) => el("tr", {}, el("th", { scope: "row" }, `replica ${r}`, el("small", {}, `${plan.micro_batches[r]} micro-b.`)),
    ...row.map((name) => {
      const w = of.get(name), gone = !w || w.state === "gone";
      return el("td", {}, el("span", { class: gone ? "gone" : null, style: `background:${hue(hues.get(where(name)) || 0)}`, title: w?.reason || name },
        name, el("small", {}, gone ? "gone" : `${where(name)} · ${bytes(w.memory_bytes)}`)));
    })));
  box.replaceChildren(el("table", { class: "cells" }, el("thead", {}, head), el("tbody", {}, ...rows)));
}

export function drawWorkers(box, run) {
  const order = { member: 0, spare: 1, gone: 2 };
  const rows = [...run.workers].sort((a, b) => order[a.state] - order[b.state] || a.name.localeCompare(b.name));
  const shown = rows.slice(0, 600).map((w) => [w.name, w.state, w.region || "–", w.host, bytes(w.memory_bytes),
    w.stage >= 0 ? `stage ${w.stage}, replica ${w.replica}` : "–", w.reason]);
  box.replaceChildren(table(["worker", "state", "region", "host", "memory", "place", "why"], shown, [4]));
}
