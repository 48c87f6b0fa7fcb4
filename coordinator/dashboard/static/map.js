// The map: a circle for each region with its workers, an arc for each pair that exchanges tensors.
import { svg, el, table, bytes, rate, seconds, hue } from "./text.js";

const WIDTH = 1200, HEIGHT = 470, TOP = 78, BOTTOM = -58;
const x = (lon) => ((lon + 180) / 360) * WIDTH;
const y = (lat) => ((TOP - lat) / (TOP - BOTTOM)) * HEIGHT;
const outline = await (await fetch("static/land.json")).json();
const places = await (await fetch("static/places.json")).json();
const land = outline.map((ring) => "M" + ring.map(([lon, lat]) => `${x(lon).toFixed(1)} ${y(lat).toFixed(1)}`).join("L") + "Z").join("");

const KINDS = { activation: "activations", gradient: "their gradients", shard: "weights' gradients", sum: "summed gradients" };

export function regionsOf(run) {
  const found = new Map();
  for (const w of run.workers) {
    const name = w.region || w.host || "here";
    const region = found.get(name) || { name, workers: 0, gone: 0, at: places[name.toLowerCase()] };
    region[w.state === "gone" ? "gone" : "workers"] += 1;
    found.set(name, region);
  }
  return [...found.values()].sort((a, b) => a.name.localeCompare(b.name)).map((r, i) => ({ ...r, hue: i }));
}

export function drawMap(figure, run) {
  const regions = regionsOf(run).filter((r) => r.at);
  figure.replaceChildren();
  if (!regions.length) return;
  // As much of the world as is used, never less than a third of it.
  const lons = regions.map((r) => x(r.at[1])), lats = regions.map((r) => y(r.at[0]));
  const narrow = figure.clientWidth < 560;
  const pad = 90, wanted = Math.max(Math.max(...lons) - Math.min(...lons) + 2 * pad, WIDTH / 3);
  const left = Math.max(0, Math.min(Math.min(...lons) - pad, WIDTH - wanted));
  const width = Math.min(wanted, WIDTH);
  const height = Math.min(HEIGHT, Math.max(width * (narrow ? 0.62 : 0.34), Math.max(...lats) - Math.min(...lats) + 2 * pad));
  const top = Math.max(0, Math.min((Math.min(...lats) + Math.max(...lats) - height) / 2, HEIGHT - height));
  const unit = width / Math.max(320, figure.clientWidth || 900);  // user units of a screen pixel
  const root = svg("svg", { viewBox: `${left} ${top} ${width} ${height}`, role: "img",
    "aria-label": `Map of ${regions.length} regions: ${regions.map((r) => `${r.name} ${r.workers}`).join(", ")}` });
  root.append(svg("path", { d: land, fill: "var(--land)" }));
  const at = new Map(regions.map((r) => [r.name, r]));
  const most = Math.max(1, ...run.traffic.map((t) => t.sent_bytes));
  for (const flow of run.traffic) {
    const a = at.get(flow.from), b = at.get(flow.to);
    if (!a || !b || a === b) continue;
    const [x1, y1, x2, y2] = [x(a.at[1]), y(a.at[0]), x(b.at[1]), y(b.at[0])];
    const lift = Math.hypot(x2 - x1, y2 - y1) * 0.22;
    const [nx, ny] = [(y1 - y2) / Math.hypot(x2 - x1, y2 - y1), (x2 - x1) / Math.hypot(x2 - x1, y2 - y1)];
    const path = svg("path", { d: `M${x1} ${y1}Q${(x1 + x2) / 2 + nx * lift} ${(y1 + y2) / 2 + ny * lift} ${x2} ${y2}`,
      fill: "none", stroke: hue(a.hue), "stroke-opacity": 0.75, "stroke-linecap": "round",
      "stroke-width": unit * (1.2 + 5 * Math.sqrt(flow.sent_bytes / most)) });
    path.append(svg("title", {}, `${flow.from} to ${flow.to}, ${KINDS[flow.kind] || flow.kind}: ${bytes(flow.sent_bytes)} a step, ${flow.codec}`));
    root.append(path);
  }
  const dots = regions.map((r) => ({ ...r, cx: x(r.at[1]), cy: y(r.at[0]), radius: unit * (6 + Math.min(12, 2.2 * Math.sqrt(r.workers))) }));
  const taken = dots.map((d) => ({ left: d.cx - d.radius, right: d.cx + d.radius, top: d.cy - d.radius, bottom: d.cy + d.radius }));
  const view = { left, right: left + width, top, bottom: top + height };
  const labels = [];
  for (const d of dots.sort((a, b) => b.workers - a.workers || a.cy - b.cy)) {
    const words = `${d.name} · ${d.workers}${d.gone ? ` (${d.gone} gone)` : ""}`;
    const dot = svg("circle", { cx: d.cx, cy: d.cy, r: d.radius, fill: d.workers ? hue(d.hue) : "var(--paper)", stroke: d.workers ? "var(--paper)" : "var(--alarm)", "stroke-width": 1.5 * unit });
    dot.append(svg("title", {}, words));
    root.append(dot);
    const box = roomFor(d, words.length * 6.4 * unit, 14 * unit, 3 * unit, taken, view);
    if (!box) continue;
    taken.push(box);
    labels.push(svg("text", { x: box.left, y: box.bottom - 3 * unit,
      style: `font-size:${12 * unit}px;paint-order:stroke;stroke:var(--paper);stroke-width:${3 * unit}px` }, words));
  }
  root.append(...labels);
  figure.append(root);
}

// Where a label beside its dot covers nothing else; null: nowhere, and the dot's title and the tables name it.
function roomFor(d, width, height, gap, taken, view) {
  const [middle, beside] = [d.cy - height / 2, d.cx - width / 2];
  const corners = [[d.cx + d.radius + gap, middle], [d.cx - d.radius - gap - width, middle], [beside, d.cy - d.radius - gap - height], [beside, d.cy + d.radius + gap]];
  const boxes = corners.map(([l, t]) => ({ left: l, right: l + width, top: t, bottom: t + height }));
  const inside = (b) => b.left >= view.left && b.right <= view.right && b.top >= view.top && b.bottom <= view.bottom;
  return boxes.find((b) => inside(b) && !taken.some((o) => b.left < o.right && o.left < b.right && b.top < o.bottom && o.top < b.bottom)) || null;
}

export function drawLinks(box, run, links) {
  const busy = new Map();
  for (const t of run.traffic) {
    const key = `${t.from}\n${t.to}`;
    const seen = busy.get(key) || { sent: 0, raw: 0, codecs: new Set() };
    seen.sent += t.sent_bytes; seen.raw += t.raw_bytes; seen.codecs.add(t.codec);
    busy.set(key, seen);
  }
  const rows = links.map((l) => ({ ...l, use: busy.get(`${l.from}\n${l.to}`) }));
  rows.sort((a, b) => (b.use?.sent || 0) - (a.use?.sent || 0) || a.from.localeCompare(b.from));
  const shown = rows.slice(0, 60).map((l) => [l.from, l.to, seconds(l.latency_s), rate(l.bandwidth_Bps),
    l.use ? bytes(l.use.sent) : "–", l.use ? [...l.use.codecs].join(", ") : "–", l.use && l.use.sent ? (l.use.raw / l.use.sent).toFixed(1) : "–"]);
  box.replaceChildren(shown.length ? table(["from", "to", "one way", "bandwidth", "bytes a step", "codec", "ratio"], shown, [2, 3, 4, 6])
    : el("p", { class: "soft" }, "No link is measured yet."));
}
