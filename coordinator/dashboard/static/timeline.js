// A step as it was predicted and as it was: rows are ranks. And where the time went, as bars.
import { svg, el, seconds } from "./text.js";

const COLOURS = { forward: 0, backward: 1, send: 5, recv: 5, wait: null, reduce: 2, optimizer: 4, encode: 3, decode: 3, recompute: 6 };
const colour = (kind) => (COLOURS[kind] === undefined ? "var(--hue7)" : COLOURS[kind] === null ? "var(--wait)" : `var(--hue${COLOURS[kind]})`);
const MOST_ROWS = 24;

export function drawTimeline(figure, bars, found) {
  const last = found.measured.at(-1);
  figure.replaceChildren(); bars.replaceChildren();
  if (!last && !found.predicted) { figure.append(el("p", { class: "soft" }, "No step is recorded yet.")); return; }
  const both = [["predicted", found.predicted], [last ? `step ${last.step}` : "", last]].filter(([, t]) => t && t.spans.length);
  const end = Math.max(...both.map(([, t]) => Math.max(...t.spans.map((s) => s[3]))));
  const width = Math.max(320, figure.clientWidth || 900), names = width < 560 ? 74 : 130, row = 15, gap = 26;
  const ranks = Math.min(MOST_ROWS, Math.max(...both.map(([, t]) => t.n_ranks)));
  const height = both.length * (ranks * row + gap) + 22;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `One step of ${ranks} ranks, predicted and measured, ${seconds(end)} long` });
  const at = (t) => names + (t / end) * (width - names - 8);
  let top = 4;
  const kinds = new Set();
  for (const [title, t] of both) {
    root.append(svg("text", { x: 0, y: top + 12, class: "soft" }, title));
    top += 18;
    for (let r = 0; r < ranks; r += 1) {
      root.append(svg("text", { x: 0, y: top + r * row + 11, style: "font-size:11px" }, (found.devices[r] || `rank ${r}`).slice(0, names < 100 ? 10 : 20)));
      root.append(svg("line", { x1: names, x2: width - 8, y1: top + r * row + row - 1, y2: top + r * row + row - 1, stroke: "var(--line)", "stroke-width": 0.5 }));
    }
    const paths = new Map();
    for (const [rank, kind, from, to] of t.spans) {
      if (rank >= ranks || kind === "wait" || kind.startsWith("send") || kind.startsWith("recv")) continue;
      kinds.add(kind);
      const box = `M${at(from).toFixed(2)} ${top + rank * row + 1}H${Math.max(at(to), at(from) + 0.6).toFixed(2)}v${row - 4}H${at(from).toFixed(2)}Z`;
      paths.set(kind, (paths.get(kind) || "") + box);
    }
    for (const [kind, d] of paths) root.append(svg("path", { d, fill: colour(kind) }));
    top += ranks * row + 8;
  }
  for (let i = 0; i <= 4; i += 1) root.append(svg("text", { x: at((end * i) / 4), y: height - 6, class: "soft", "text-anchor": i === 0 ? "start" : i === 4 ? "end" : "middle" }, seconds((end * i) / 4)));
  figure.append(el("div", { class: "key" }, ...[...kinds].sort().map((k) => el("span", {}, el("i", { style: `background:${colour(k)}` }), k))), root);
  const more = Math.max(...both.map(([, t]) => t.n_ranks)) - ranks;
  if (more > 0) figure.append(el("p", { class: "soft" }, `and ${more} more ranks`));
  drawShares(bars, both, end, width, names);
}

// Mean over ranks of the time in each kind; the rest is waiting.
function drawShares(figure, both, end, width, names) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${both.length * 26 + 8}`, role: "img", "aria-label": "Where the time goes, mean over ranks" });
  both.forEach(([title, t], i) => {
    const sums = new Map();
    for (const [, kind, from, to] of t.spans) if (kind !== "wait" && !kind.startsWith("send") && !kind.startsWith("recv")) sums.set(kind, (sums.get(kind) || 0) + to - from);
    let x = names;
    root.append(svg("text", { x: 0, y: i * 26 + 16 }, title));
    const add = (kind, s, fill) => {
      const w = (s / end) * (width - names - 8);
      const bar = svg("rect", { x, y: i * 26 + 3, width: Math.max(0, w), height: 18, fill });
      bar.append(svg("title", {}, `${kind}: ${seconds(s)}`));
      root.append(bar);
      if (w > 8 * (kind.length + 8)) root.append(svg("text", { x: x + 6, y: i * 26 + 16, style: fill === "var(--wait)" ? "" : "fill:var(--on)" }, `${kind} ${seconds(s)}`));
      x += w;
    };
    let used = 0;
    const own = Math.max(...t.spans.map((s) => s[3]));
    for (const [kind, total] of [...sums].sort((a, b) => b[1] - a[1])) { add(kind, total / t.n_ranks, colour(kind)); used += total / t.n_ranks; }
    add("waiting", Math.max(0, own - used), "var(--wait)");
  });
  figure.append(el("p", { class: "soft", style: "margin:12px 0 4px" }, "Where the time goes, mean over the ranks"), root);
}
