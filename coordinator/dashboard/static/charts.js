// The curves, by uPlot: made once, given new points as they come.
import { digits, el } from "./text.js";

const HEIGHT = 190;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Chart {
  constructor(box, title, lines) {
    this.box = box;
    this.lines = lines;
    this.title = title;
    this.data = null;
    this.watch = new ResizeObserver(() => this.plot?.setSize(this.size()));
    this.watch.observe(box);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.again = () => this.make();
    this.dark.addEventListener("change", this.again);
  }
  close() {
    this.watch.disconnect();
    this.dark.removeEventListener("change", this.again);
    this.plot?.destroy();
    this.box.replaceChildren();
  }
  size() { return { width: Math.max(200, this.box.clientWidth), height: HEIGHT }; }
  make() {
    if (!this.data) return;
    this.plot?.destroy();
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "12px system-ui" };
    this.plot = new uPlot({
      ...this.size(), cursor: { points: { size: 6 } },
      scales: { x: { time: false } },
      axes: [{ ...axis, label: "step", labelSize: 16, labelFont: "12px system-ui", size: 36 }, { ...axis, size: 56, values: (_, v) => v.map((x) => digits(x)) }],
      series: [{ label: "step" }, ...this.lines.map((l) => ({ label: l.label, stroke: colour(l.colour), width: 1.8, dash: l.dash,
        spanGaps: true, points: { show: l.points || false, size: 5 }, value: (_, v) => digits(v, 4) }))],
    }, this.data, this.box);
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-label", this.title);
  }
  show(columns) {
    const fresh = !this.data;
    this.data = columns;
    if (!columns[0].length) { if (fresh) this.data = null; this.box.replaceChildren(el("p", { class: "soft" }, "Nothing yet.")); return; }
    if (!this.plot) { this.box.replaceChildren(); this.make(); } else this.plot.setData(columns);
    const last = this.lines.map((l, i) => `${l.label} ${digits(columns[i + 1].findLast((v) => v !== null), 4)}`).join(", ");
    this.box.setAttribute("aria-label", `${this.title}; last: ${last}`);
  }
}
