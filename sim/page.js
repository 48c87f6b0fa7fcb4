// Zooms the time axes of a report's timelines, all together. Without it the pictures stand as they are.
(() => {
  const all = [...document.querySelectorAll("svg.zoom")];
  if (!all.length) return;
  let low = 0, high = 1;                       // the part of the axis that is shown
  const NS = "http://www.w3.org/2000/svg";
  const parts = all.map(svg => {
    const d = svg.dataset, g = svg.querySelector("g.scroll"), ticks = svg.querySelector("g.ticks");
    const line = ticks.querySelector("path"), label = ticks.querySelector("text");
    return { svg, g, ticks, line, label, left: +d.left, right: +d.right, end: +d.end };
  });
  const steps = (a, b, n) => {
    const raw = (b - a) / n, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * .999);
    const out = [];
    for (let k = Math.ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k++) out.push(+(k * step).toPrecision(9));
    return out;
  };
  const draw = () => {
    for (const p of parts) {
      const width = p.right - p.left, k = 1 / (high - low), y = p.line.getAttribute("d").split(/[ L]/);
      p.g.setAttribute("transform", `translate(${p.left - (p.left + low * width) * k} 0) scale(${k} 1)`);
      p.ticks.replaceChildren();
      for (const t of steps(low * p.end, high * p.end, Math.max(3, width / 100 | 0))) {
        const x = p.left + (t / p.end - low) * k * width;
        const line = p.line.cloneNode(), label = p.label.cloneNode();
        line.setAttribute("d", `M${x.toFixed(1)} ${y[1]}L${x.toFixed(1)} ${y[3]}`);
        label.setAttribute("x", x.toFixed(1));
        label.textContent = t + " s";
        p.ticks.append(line, label);
      }
    }
  };
  const set = (a, b) => {
    const span = Math.min(1, Math.max(1e-4, b - a));
    low = Math.min(Math.max(0, a), 1 - span);
    high = low + span;
    requestAnimationFrame(draw);
  };
  const zoom = (factor, at = .5) => {
    const middle = low + at * (high - low), span = Math.min(1, (high - low) * factor);
    set(middle - at * span, middle + (1 - at) * span);
  };
  const inside = (p, event) => {
    const box = p.svg.getBoundingClientRect(), scale = box.width / p.svg.viewBox.baseVal.width;
    return ((event.clientX - box.left) / scale - p.left) / (p.right - p.left);
  };
  for (const p of parts) {
    const bar = document.createElement("div");
    bar.className = "zoombar";
    const button = (text, name, act) => {
      const b = document.createElement("button");
      b.type = "button"; b.textContent = text; b.title = name; b.setAttribute("aria-label", name);
      b.addEventListener("click", act);
      bar.append(b);
    };
    button("+", "Zoom in", () => zoom(.5));
    button("−", "Zoom out", () => zoom(2));
    button("‹", "Earlier", () => set(low - (high - low) / 2, high - (high - low) / 2));
    button("›", "Later", () => set(low + (high - low) / 2, high + (high - low) / 2));
    button("All", "The whole step", () => set(0, 1));
    bar.append(Object.assign(document.createElement("span"), { textContent: "drag to move, Ctrl and wheel to zoom" }));
    (p.svg.closest(".wide") || p.svg).before(bar);
    p.svg.addEventListener("wheel", e => {
      if (!e.ctrlKey && !e.metaKey) return;
      e.preventDefault();
      zoom(e.deltaY < 0 ? .8 : 1.25, Math.min(1, Math.max(0, inside(p, e))));
    }, { passive: false });
    p.svg.addEventListener("dblclick", e => zoom(.5, Math.min(1, Math.max(0, inside(p, e)))));
    let from = null;
    p.svg.addEventListener("pointerdown", e => {
      if (high - low < 1 && e.button === 0) { from = { at: inside(p, e), low }; p.svg.setPointerCapture(e.pointerId); }
    });
    p.svg.addEventListener("pointermove", e => {
      if (from) { const by = (from.at - inside(p, e)) * (high - low); set(from.low + by, from.low + by + high - low); }
    });
    p.svg.addEventListener("pointerup", () => { from = null; });
    p.svg.addEventListener("pointercancel", () => { from = null; });
  }
})();
